"""An instrument on a function: how its hits are served, and what ends it."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from typing import TYPE_CHECKING, Any, Protocol

from diagnose import handlers
from diagnose.bytecode.containment import LostError, drop
from diagnose.cpu_budget import Meter, Pause
from diagnose.errors import DiagnoseError
from diagnose.expressions import parsing
from diagnose.hit_errors import (
    describe,
    has_context_of_program,
    is_from_inside,
    is_theirs,
    is_want_of_room,
    restore_traceback,
    set_context,
    without_objects,
)
from diagnose.instruments import metrics
from diagnose.interrupts import belongs_to_program
from diagnose.reentrancy import Quiet, leave_behind, quietly
from diagnose.registry import lock, timers, update
from diagnose.status import State

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from diagnose.bytecode.weaving import Hook
    from diagnose.clockwork import Timer
    from diagnose.cpu_budget import LongHit
    from diagnose.instruments import Instrument
    from diagnose.sites import Site

__all__ = ["Attachment", "Holder", "finish", "retire"]

log = logging.getLogger(__name__)


class _Judge:
    """Asks an attachment about an error, as long as it is armed.

    Code that suspended generators still have refers to it, for ever maybe; so it refers to the
    attachment, and by that to the function and its module, only until then.
    """

    __slots__ = ("attachment",)

    def __init__(self, attachment: Attachment) -> None:
        self.attachment: Attachment | None = attachment

    def __call__(self, error: BaseException) -> bool:
        attachment = self.attachment
        return drop(error) if attachment is None else attachment.defect(error)


class Holder(Protocol):
    """The probe that an attachment belongs to."""

    target: str

    def holds(self, attachment: Attachment) -> bool:
        """Whether it is attached, suspended or not."""


class Attachment:
    """An instrument on a function, under a key.

    ``armed`` says whether its hook is to be on the site; a suspended one is not, for a time.
    """

    __slots__ = (
        "_claim", "_holds_timers", "_judged", "_span", "_spent", "armed", "hook", "instrument", "key", "meter", "probe", "site",
        "suspended", "timer",
    )  # fmt: skip

    def __init__(self, probe: Holder, key: str, instrument: Instrument, site: Site) -> None:
        self.probe = probe
        self.key = key
        self.instrument = instrument
        self.site = site
        self.timer: Timer | None = None
        self._spent: dict[str, Any] = {}
        self._holds_timers = True
        self.meter: Meter | None = None
        if instrument.longest_seconds is not None or instrument.budget is not None:
            longest = instrument.longest_seconds
            self.meter = Meter(math.inf if longest is None else longest, self.too_slow)
        self.arm()

    def arm(self) -> None:
        """Make the functions that serve hits, anew."""
        self.armed, self.suspended = True, False
        self._claim = itertools.count().__next__
        self.hook = parsing(self._write)

    def _write(self) -> Hook:
        instrument = self.instrument
        plan = instrument.plan(self.probe, self.fail, self.done, self.meter)
        self._judged = _Judge(self)
        plan = dataclasses.replace(plan, defect=self._judged)
        scope = self.site.scope(instrument.event, instrument.mgr.global_namespace)
        self._span = plan.span
        return handlers.write(plan, scope, f"<probe {instrument.name}>", self._spent)

    def rewrite(self) -> None:
        """Make the functions that serve hits anew, since what the instrument does has changed."""
        with Quiet(), lock:
            if not self.armed or not self.probe.holds(self):
                return
            before, judged, span = self.hook, self._judged, self._span
            self.hook = parsing(self._write)
            try:
                update(self.site, [self])
            except DiagnoseError:
                self.hook, self._judged, self._span = before, judged, span
                raise
            handlers.disarm(before)
            judged.attachment = None
            if span is not None:
                span.abandon()

    @property
    def event(self) -> str:
        """See :class:`Placed`."""
        return self.instrument.event

    @property
    def place(self) -> Hashable:
        """See :class:`Placed`."""
        return self.probe, self.key

    def let_go(self) -> None:
        """Need the timers' thread no more."""
        if self._holds_timers:
            self._holds_timers = False
            timers.release()

    # --- what handlers call, in the program's thread: it takes no lock, writes no log, starts no
    # --- thread; all of that is done by the timers' thread

    def fail(self, error: BaseException) -> bool:
        """Be off after what serving a hit raised; false if that belongs to the program."""
        if belongs_to_program(error):
            return False
        quietly(self._end_by, error, "runtime-error")
        return True

    def defect(self, error: BaseException) -> bool:
        """Be off after what got past a handler's own ``try``: a mistake of this library.

        It is the judge of :mod:`diagnose.bytecode.containment`: false if the error belongs to the
        program. Whatever goes wrong here ends here, but for what a signal handler raises meanwhile.
        """
        if type(error) is LostError:
            return True
        try:
            leave_behind(error)
            if belongs_to_program(error):
                return False
            # Where no call was entered there was no room for one, which is nobody's mistake.
            if not is_want_of_room(error) or is_from_inside(error):
                quietly(self._end_by, error, "defect")
        except BaseException as later:
            if is_theirs(later):
                raise
        return True

    def _end_by(self, error: BaseException, code: str) -> None:
        next(self.instrument.status.tallies()["error"])
        text = f"{describe(error, self.instrument.value)} (at a hit; {_REARM})"
        is_handled_below = has_context_of_program(error)
        was_raised = restore_traceback(error)
        # What the program is handling meanwhile holds its frames.
        if not was_raised or is_handled_below:
            set_context(error, None)
        if self._give_up(code, text):
            told = without_objects(error, text)
            timers.soon(lambda: quietly(self._tell, told))

    def _tell(self, error: BaseException) -> None:
        try:
            raise error
        except BaseException:  # noqa: BLE001  (whatever it is)
            _call_hook(self.instrument, "handle_error", self.probe)
        finally:
            restore_traceback(error)
        self._leave_site()

    def too_slow(self, hit: LongHit) -> None:
        """Pause after a hit that took too long; called in the program's thread."""
        if not self._disarm():
            return
        text = f"{self._too_long(hit)} (it is disarmed, and in {Pause.SECONDS:g} s tried again)"
        self.suspended = True
        self.instrument.status.become(State.SUSPENDED, "too-slow", text)
        timers.soon(lambda: self._pause(hit))

    def _pause(self, hit: LongHit) -> None:
        self._leave_site()
        Pause(timers, lambda late: self._judge(hit, late))

    def _judge(self, hit: LongHit, late: float) -> None:
        """Be tried again, unless the meter is sure that the hits themselves are to blame."""
        if self.meter is None or not self.meter.is_last(hit, late):
            log.warning("%r on %r: %s", self.instrument, self.probe.target, self._too_long(hit))
            self.resume()
            return
        text = f"{self._too_long(hit)} ({_REARM})"
        with Quiet(), lock:
            if not self.suspended or not self.probe.holds(self):
                return
            self.suspended = False
            self.instrument.status.become(State.ERROR, "too-slow", text)
        log.error("%r on %r: %s", self.instrument, self.probe.target, text)

    def _too_long(self, hit: LongHit) -> str:
        return (
            f"one hit took {hit.seconds * 1e3:.0f} ms, and {self.instrument.longest_seconds or 0:g} "
            "s is what it may hold up the program: let it look at less"
        )

    def done(self) -> None:
        """End after the last hit that the limits allow; called at that hit."""
        if self._disarm():
            self.instrument.status.become(State.DONE)
            self._leave_later()

    # --- what the budget asks for ---

    def count(self) -> tuple[int, int]:
        """See :class:`diagnose.cpu_budget.Metered`."""
        status = self.instrument.status
        return status.hits, sum(status.suppressed.values())

    def suspend(self, reason: str) -> None:
        """See :class:`diagnose.cpu_budget.Metered`."""
        with Quiet(), lock:
            if not self._disarm():
                return
            self.suspended = True
            self.instrument.status.become(State.SUSPENDED, "cpu-budget", reason)
        # Later, when all that are to be suspended are: the first one makes the code for them all.
        self._leave_later()
        log.warning("%r on %r: %s", self.instrument, self.probe.target, reason)

    def resume(self) -> None:
        """See :class:`diagnose.cpu_budget.Metered`."""
        with Quiet(), lock:
            # It may have been taken off while it was on its way to be suspended.
            if not self.suspended or not self.probe.holds(self):
                return
            status = self.instrument.status
            try:
                self.arm()
                update(self.site, [self])
            except DiagnoseError as error:  # the code is another one by now
                self.armed = self.suspended = False
                status.become(State.ERROR, error.code, error.message)
            else:
                status.become(State.INSTALLED)

    def note_cost(self, share: float) -> None:
        """See :class:`diagnose.cpu_budget.Metered`."""
        self.instrument.status.cost = share

    def _give_up(self, code: str, text: str) -> bool:
        if not self._disarm():
            return False
        self.instrument.status.become(State.ERROR, code, text)
        return True

    def _disarm(self) -> bool:
        """Do nothing from now on; false if so it was already.

        Without the lock: the program's thread may hold locks of its own (a logging
        handler's), and the holder of ours may be waiting for one of those.
        """
        if not self.armed or self._claim() > 0:
            return False
        self.armed = False
        self.disarm()
        return True

    def disarm(self) -> None:
        """Serve no hit from now on, also of calls that are inside."""
        handlers.disarm(self.hook)
        self._judged.attachment = None
        self.instrument.disarmed(self.hook)
        if self._span is not None:
            self._span.abandon()

    def _leave_later(self) -> None:
        # The code is made anew elsewhere: this thread has a program to go on with.
        timers.soon(self._leave_site)

    def _leave_site(self) -> None:
        with Quiet(), lock:
            update(self.site)


_REARM = "the instrument is disarmed: change the spec to arm it again"


def retire(attachment: Attachment, state: State) -> None:
    """Make an attachment do nothing, from this moment, for calls inside it too."""
    attachment.armed = attachment.suspended = False
    attachment.disarm()
    attachment.let_go()
    attachment.instrument.unfollow_custom(attachment)
    if attachment.instrument.budget is not None:
        attachment.instrument.budget.discard(attachment)
    if attachment.timer is not None:
        attachment.timer.cancel()
    status = attachment.instrument.status
    status.attachments -= 1
    if not status.attachments and status.state not in {State.ERROR, State.DONE}:
        status.become(state)


def finish(gone: Sequence[Attachment], *, waits: bool = True) -> None:
    """Tell instruments that they are off their last function; without the lock.

    Args:
        gone: retired ones.
        waits: for what is still to be sent of them, for a moment.
    """
    # Those that are on another function too, or were put on again, go on.
    off = [one.instrument for one in gone if not one.instrument.status.attachments]
    with Quiet():
        for instrument in off:
            _call_hook(instrument, "detached")
        if off and waits:
            metrics.settle()


def _call_hook(instrument: Instrument, name: str, *args: object) -> None:
    """Call what a user may have overridden; it must not harm anybody."""
    try:
        getattr(instrument, name)(*args)
    except BaseException:
        log.exception("%s of %r failed", name, instrument)
