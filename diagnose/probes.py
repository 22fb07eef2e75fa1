"""Probes: one target, its instruments, and the life that each of them has."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import itertools
import logging
import math
import os
import sys
import threading
from collections.abc import MutableMapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, Self

from diagnose import expressions, handlers, reentrancy, targets
from diagnose.bytecode.containment import LostError, drop
from diagnose.clockwork import Clockwork
from diagnose.cpu_budget import Meter, Pause
from diagnose.errors import DiagnoseError
from diagnose.instruments import base, metrics
from diagnose.instruments.recording import ProbeTestInstrument
from diagnose.interrupts import belongs_to_program
from diagnose.sinks.standard import STANDARD_OUTPUT
from diagnose.sites import Armed, happens_inside, site_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
    from datetime import timedelta
    from types import FrameType, TracebackType

    from diagnose.bytecode.weaving import Hook
    from diagnose.clockwork import Timer
    from diagnose.cpu_budget import LongHit
    from diagnose.instruments import Instrument
    from diagnose.sites import Site
    from diagnose.targets import Target

__all__ = [
    "Arrival",
    "Changes",
    "FunctionProbe",
    "Hooked",
    "active_probes",
    "attach_to",
    "sensor",
    "start_all",
]

log = logging.getLogger(__name__)

active_probes: dict[str, FunctionProbe] = {}
"""The probes that are attached or were asked for, by target path."""

timers = Clockwork("diagnose-timers", reentrancy.Quiet)
"""What calls at deadlines: lifespans, budgets. It has a thread as long as anything is attached,
since a hit, which must not start one, may want something done."""
# Guards every change of what is probed. Held for microseconds, never while user code or
# the network is waited for (so probes are silent in its holder, who may itself call what is
# probed); a fork waits for it, so that a child finds no half-made probe.
_lock = threading.RLock()


class _Judge:
    """Asks an attachment about an error, as long as it is armed.

    Code that suspended generators still have refers to it, for ever maybe; so it refers to the
    attachment, and by that to the function and its module, only until then.
    """

    __slots__ = ("attachment",)

    def __init__(self, attachment: _Attachment) -> None:
        self.attachment: _Attachment | None = attachment

    def __call__(self, error: BaseException) -> bool:
        attachment = self.attachment
        return drop(error) if attachment is None else attachment.defect(error)


class _Attachment:
    """An instrument on a function, under a key.

    ``armed`` says whether its hook is to be on the site; a suspended one is not, for a time.
    """

    __slots__ = (
        "_claim", "_holds_timers", "_judged", "_span", "_spent", "armed", "hook", "instrument", "key", "meter", "probe", "site",
        "suspended", "timer",
    )  # fmt: skip

    def __init__(self, probe: FunctionProbe, key: str, instrument: Instrument, site: Site) -> None:
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
        self.hook = expressions.parsing(self._write)

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
        with reentrancy.Quiet(), _lock:
            if not self.armed or not self.probe.holds(self):
                return
            before, judged, span = self.hook, self._judged, self._span
            self.hook = expressions.parsing(self._write)
            try:
                _update(self.site, [self])
            except DiagnoseError:
                self.hook, self._judged, self._span = before, judged, span
                raise
            handlers.disarm(before)
            judged.attachment = None
            if span is not None:
                span.abandon()

    @property
    def event(self) -> str:
        """See :class:`_Placed`."""
        return self.instrument.event

    @property
    def place(self) -> Hashable:
        """See :class:`_Placed`."""
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
        reentrancy.quietly(self._end_by, error, "runtime-error")
        return True

    def defect(self, error: BaseException) -> bool:
        """Be off after what got past a handler's own ``try``: a mistake of this library.

        It is the judge of :mod:`diagnose.bytecode.containment`: false if the error belongs to the
        program. Whatever goes wrong here ends here, but for what a signal handler raises meanwhile.
        """
        if type(error) is LostError:
            return True
        try:
            reentrancy.leave_behind(error)
            if belongs_to_program(error):
                return False
            # Where no call was entered there was no room for one, which is nobody's mistake.
            if type(error) not in _NO_ROOM or _is_from_inside(error):
                reentrancy.quietly(self._end_by, error, "defect")
        except BaseException as later:
            if _is_theirs(later):
                raise
        return True

    def _end_by(self, error: BaseException, code: str) -> None:
        next(self.instrument.status.tallies()["error"])
        text = f"{_describe(error, self)} (at a hit; {_REARM})"
        is_handled_below = _has_context_of_program(error)
        was_raised = _restore_traceback(error)
        # What the program is handling meanwhile holds its frames.
        if not was_raised or is_handled_below:
            _set_context(error, None)
        if self._give_up(code, text):
            told = _without_objects(error, text)
            timers.soon(lambda: reentrancy.quietly(self._tell, told))

    def _tell(self, error: BaseException) -> None:
        try:
            raise error
        except BaseException:  # noqa: BLE001  (whatever it is)
            _call_hook(self.instrument, "handle_error", self.probe)
        finally:
            _restore_traceback(error)
        self._leave_site()

    def too_slow(self, hit: LongHit) -> None:
        """Pause after a hit that took too long; called in the program's thread."""
        if not self._disarm():
            return
        text = f"{self._too_long(hit)} (it is disarmed, and in {Pause.SECONDS:g} s tried again)"
        self.suspended = True
        status = self.instrument.status
        status.state, status.code, status.error = "suspended", "too-slow", text
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
        with reentrancy.Quiet(), _lock:
            if not self.suspended or not self.probe.holds(self):
                return
            self.suspended = False
            status = self.instrument.status
            status.code, status.error, status.state = "too-slow", text, "error"
        log.error("%r on %r: %s", self.instrument, self.probe.target, text)

    def _too_long(self, hit: LongHit) -> str:
        return (
            f"one hit took {hit.seconds * 1e3:.0f} ms, and {self.instrument.longest_seconds or 0:g} "
            "s is what it may hold up the program: let it look at less"
        )

    def done(self) -> None:
        """End after the last hit that the limits allow; called at that hit."""
        if self._disarm():
            self.instrument.status.state = "done"
            self._leave_later()

    # --- what the budget asks for ---

    def count(self) -> tuple[int, int]:
        """See :class:`diagnose.cpu_budget.Metered`."""
        status = self.instrument.status
        return status.hits, sum(status.suppressed.values())

    def suspend(self, reason: str) -> None:
        """See :class:`diagnose.cpu_budget.Metered`."""
        with reentrancy.Quiet(), _lock:
            if not self._disarm():
                return
            self.suspended = True
            status = self.instrument.status
            status.state, status.code, status.error = "suspended", "cpu-budget", reason
        # Later, when all that are to be suspended are: the first one makes the code for them all.
        self._leave_later()
        log.warning("%r on %r: %s", self.instrument, self.probe.target, reason)

    def resume(self) -> None:
        """See :class:`diagnose.cpu_budget.Metered`."""
        with reentrancy.Quiet(), _lock:
            # It may have been taken off while it was on its way to be suspended.
            if not self.suspended or not self.probe.holds(self):
                return
            status = self.instrument.status
            try:
                self.arm()
                _update(self.site, [self])
            except DiagnoseError as error:  # the code is another one by now
                self.armed = self.suspended = False
                status.state, status.code, status.error = "error", error.code, error.message
            else:
                status.state, status.code, status.error = "installed", None, None

    def note_cost(self, share: float) -> None:
        """See :class:`diagnose.cpu_budget.Metered`."""
        self.instrument.status.cost = share

    def _give_up(self, code: str, text: str) -> bool:
        if not self._disarm():
            return False
        status = self.instrument.status
        status.code, status.error, status.state = code, text, "error"
        return True

    def _disarm(self) -> bool:
        """Do nothing from now on; false if so it was already.

        Without the lock: the program's thread may hold locks of its own (a logging
        handler's), and whoever holds ours may be waiting for one of those.
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
        with reentrancy.Quiet(), _lock:
            _update(self.site)


_REARM = "the instrument is disarmed: change the spec to arm it again"


class _Instruments(MutableMapping[str, "Instrument"]):
    """A probe's instruments by key; a change takes effect at once while it is started."""

    def __init__(self, probe: FunctionProbe) -> None:
        self._probe = probe
        self.items_by_key: dict[str, Instrument] = {}

    def __getitem__(self, key: str) -> Instrument:
        return self.items_by_key[key]

    def __setitem__(self, key: str, instrument: Instrument) -> None:
        if self._probe.is_live:
            self._probe.attach(key, instrument)
        else:
            self.items_by_key[key] = instrument

    def __delitem__(self, key: str) -> None:
        if key not in self.items_by_key:
            raise KeyError(key)
        self._probe.detach(key)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self.items_by_key))

    def __len__(self) -> int:
        return len(self.items_by_key)

    def __repr__(self) -> str:
        return repr(self.items_by_key)


class FunctionProbe:
    """A target and the instruments on it.

    Thread-safe: instruments may be added, changed and removed while other threads are
    inside the function. A started probe whose instruments are all gone costs nothing.

    Args:
        target: dotted path, such as ``"shop.cart.Cart.checkout"``.
        instruments: by key; they are armed by :meth:`start`.
    """

    def __init__(self, target: str, instruments: Mapping[str, Instrument] | None = None) -> None:
        self.target = target
        self.started = False
        self._attachments: dict[str, _Attachment] = {}
        self._resolved: Target | None = None
        self.instruments = _Instruments(self)
        self.instruments.update(instruments or {})

    def __repr__(self) -> str:
        return f"FunctionProbe({self.target!r}, instruments={self.instruments!r})"

    @property
    def is_live(self) -> bool:
        """Whether an instrument that is added now is armed at once."""
        return self.started or bool(self._attachments)

    def warnings_on(self, key: str) -> tuple[str, ...]:
        """What of :attr:`warnings` is about the instrument under ``key``."""
        target, one = self._resolved, self._attachments.get(key)
        if target is None or one is None:
            return () if target is None else target.warnings
        return (*target.warnings, *one.site.warnings, *notes(one.instrument, target))

    @property
    def coverage(self) -> str:
        """``"code"``: every reference; ``"reference"``: those in modules and classes."""
        return next((one.site.coverage for one in list(self._attachments.values())), "code")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about how the target is probed."""
        found = () if self._resolved is None else self._resolved.warnings
        on_keys = [text for key in list(self._attachments) for text in self.warnings_on(key)]
        return tuple(dict.fromkeys((*found, *on_keys)))

    def start(self) -> None:
        """Arm all instruments; import the target's module if need be.

        Raises:
            DiagnoseError: one of them can't be armed; then none is.
        """
        # Importing runs other people's code: not under the lock.
        target = self._resolved or targets.resolve(self.target, import_modules=True)
        with _lock:
            if self.started:
                return
            self.started = True
            self._resolved = self._resolved or target
            active_probes.setdefault(self.target, self)
            waiting = [key for key in self.instruments if key not in self._attachments]
        try:
            with Changes() as changes:
                arrivals = [changes.attach(self, key, self.instruments[key]) for key in waiting]
            for arrival in arrivals:
                arrival.check()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Disarm all instruments and put the original code back. They stay listed."""
        with Changes() as changes, reentrancy.Quiet(), _lock:
            self._leave(changes)

    def _leave(self, changes: Changes) -> None:
        self.started = False
        for key in list(self._attachments):
            changes.take_off(self, key, "stopped")
        self._resolved = None
        if active_probes.get(self.target) is self:
            del active_probes[self.target]

    def attach(
        self,
        key: str,
        instrument: Instrument,
        *,
        lifespan: timedelta | None = None,
        target: Target | None = None,
    ) -> None:
        """Arm ``instrument`` under ``key``, in place of what was there before.

        The target's module is not imported. The old instrument goes on until the new one
        is in place: no call falls between them.

        Args:
            key: whatever tells this instrument from others.
            instrument: it may be attached to other targets as well.
            lifespan: when to end by itself; None: as its ``expires`` says.
            target: where the probe's path leads now, if that was found out just before; an
                instrument that is attached already moves there. None: to the function that
                the probe is on, or else to what its path leads to.

        Raises:
            DiagnoseError: it can't be armed; then everything is as it was.
        """
        with Changes() as changes:
            arrival = changes.attach(self, key, instrument, lifespan=lifespan, target=target)
        arrival.check()

    def holds(self, attachment: _Attachment) -> bool:
        """Whether it is attached, suspended or not."""
        return self._attachments.get(attachment.key) is attachment

    def detach(self, key: str) -> None:
        """Disarm what is under ``key``, if anything is; the last one puts the code back."""
        with Changes() as changes:
            changes.detach(self, key)

    def _expire(self, attachment: _Attachment) -> None:
        # Other deadlines may be due: what is still to be sent is not waited for.
        with Changes(waits=False) as changes, reentrancy.Quiet(), _lock:
            if self._attachments.get(attachment.key) is not attachment:
                return
            changes.take_off(self, attachment.key, "expired")
            self._items.pop(attachment.key, None)
            if not self._items:
                self.started = False

    def _leave_if_empty(self) -> None:
        with _lock:
            if self._items or self._attachments or self.started:
                return
            self._resolved = None
            if active_probes.get(self.target) is self:
                del active_probes[self.target]

    @property
    def _items(self) -> dict[str, Instrument]:
        return self.instruments.items_by_key


class Arrival:
    """What comes of an instrument that is to be put on; see :class:`Changes`.

    Attributes:
        error: why it could not be, once the changes are made.
    """

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: Exception | None = None

    def check(self) -> None:
        """See that it was put on, once the changes are made.

        Raises:
            DiagnoseError: it could not be; what was there before goes on.
        """
        if self.error is not None:
            raise self.error


class _Newcomer(Arrival):
    """One that does not serve hits yet."""

    __slots__ = ("attachment", "seconds", "status", "target")

    def __init__(self, attachment: _Attachment, target: Target, seconds: float | None) -> None:
        super().__init__()
        self.attachment = attachment
        self.target = target
        self.seconds = seconds
        status = attachment.instrument.status
        self.status = status.state, status.code, status.error

    @property
    def is_in_place(self) -> bool:
        """Whether its probe has it by now."""
        return self.attachment.probe.holds(self.attachment)

    def announce(self) -> None:
        """Say that it is there.

        Just before it is: the first hit may fail at once, and what it says has to stay.
        """
        status = self.attachment.instrument.status
        self.status = status.state, status.code, status.error
        status.state, status.code, status.error = "installed", None, None

    def turn_back(self) -> None:
        """Be as if it had never come."""
        self.attachment.armed = False
        # Code objects take no part in garbage collection: this breaks the cycle.
        self.attachment.disarm()
        self.attachment.let_go()
        status = self.attachment.instrument.status
        status.state, status.code, status.error = self.status


class Changes:
    """Instruments that are put on and taken off together: each function's code is made once.

    A context. What is noted in it takes effect at its end, one function after the other; what
    is taken off serves no hit from that moment on. If an exception ends it, nothing is put on.
    It is for one thread; others may have their own at the same time.

    Args:
        waits: at its end, for a moment, for what is still to be sent of what was taken off.
    """

    def __init__(self, *, waits: bool = True) -> None:
        self._waits = waits
        self._coming: dict[tuple[FunctionProbe, str], _Newcomer] = {}
        self._gone: list[_Attachment] = []
        self._probes: dict[FunctionProbe, None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        groups: dict[tuple[int, bool], list[_Newcomer]] = {}
        for newcomer in self._coming.values():
            place = id(newcomer.target.subject), looks_inside(newcomer.attachment.instrument)
            groups.setdefault(place, []).append(newcomer)
        try:
            while groups and kind is None:
                with reentrancy.Quiet(), _lock:
                    self._put_on(groups.pop(next(iter(groups))))
        finally:
            for newcomer in (each for group in groups.values() for each in group):
                newcomer.turn_back()
            for site in dict.fromkeys(one.site for one in self._gone):
                with reentrancy.Quiet(), _lock:
                    _update(site)
            for probe in self._probes:
                probe._leave_if_empty()
        _finish(self._gone, waits=self._waits)

    def attach(
        self,
        probe: FunctionProbe,
        key: str,
        instrument: Instrument,
        *,
        lifespan: timedelta | None = None,
        target: Target | None = None,
    ) -> Arrival:
        """Have an instrument put on; see :meth:`FunctionProbe.attach`.

        Returns:
            What says in the end whether it could be.

        Raises:
            DiagnoseError: it can't be, that much is known at once.
        """
        self._probes[probe] = None
        self._turn_back(probe, key)
        seconds = None if lifespan is None else lifespan.total_seconds()
        if seconds is None and instrument.expires is not None:
            seconds = base.remaining_seconds(instrument.expires)
        if seconds is not None and seconds <= 0:
            instrument.status.state = "expired"
            self.detach(probe, key)
            return Arrival()
        found = target or probe._resolved or targets.resolve(probe.target, import_modules=False)
        # Before it is armed, for the first hit may fail; and without the lock, for a new thread
        # is waited for.
        timers.hold()
        try:
            with reentrancy.Quiet(), _lock:
                found = target or probe._resolved or found
                site = site_of(found, inside=looks_inside(instrument))
                attachment = _Attachment(probe, key, instrument, site)
        except BaseException:
            timers.release()
            raise
        newcomer = self._coming[probe, key] = _Newcomer(attachment, found, seconds)
        return newcomer

    def detach(self, probe: FunctionProbe, key: str) -> None:
        """Take off what is under ``key``, if anything is, and forget it."""
        self._turn_back(probe, key)
        with reentrancy.Quiet(), _lock:
            self.take_off(probe, key, "stopped")
            probe._items.pop(key, None)

    def take_off(self, probe: FunctionProbe, key: str, state: str) -> None:
        """Take off what is under ``key``, if anything is; it stays listed. The lock is held."""
        self._probes[probe] = None
        attachment = probe._attachments.get(key)
        if attachment is not None:
            self._gone.append(attachment)
            _retire(attachment, state)
            del probe._attachments[key]

    def _turn_back(self, probe: FunctionProbe, key: str) -> None:
        newcomer = self._coming.pop((probe, key), None)
        if newcomer is not None:
            newcomer.turn_back()

    def _put_on(self, group: list[_Newcomer]) -> None:
        """Put instruments on one function, as many of them as can be."""
        # Anew: somebody else may have put something on the function meanwhile.
        inside = looks_inside(group[0].attachment.instrument)
        site = site_of(group[0].target, inside=inside)
        for each in group:
            each.attachment.site = site
            each.announce()
        try:
            errors = _place(site, [each.attachment for each in group])
            for each in group:
                each.error = errors.get(each.attachment)
                if each.error is None:
                    self._settle(each)
        finally:
            lost = [each for each in group if not each.is_in_place]
            for each in lost:
                each.turn_back()
            if any(each.error is None for each in lost):  # an interrupt
                olds = (
                    each.attachment.probe._attachments.get(each.attachment.key) for each in lost
                )
                _update(site, [old for old in olds if old and old.armed and old.site is site])

    def _settle(self, newcomer: _Newcomer) -> None:
        new = newcomer.attachment
        probe, key, instrument = new.probe, new.key, new.instrument
        old = probe._attachments.get(key)
        probe._attachments[key] = new
        probe._items[key] = instrument
        probe._resolved = newcomer.target
        active_probes.setdefault(probe.target, probe)
        instrument.status.attachments += 1
        instrument._rewrites[new] = new.rewrite
        if old is not None:
            self._gone.append(old)
            _retire(old, "stopped")
        if instrument.budget is not None:
            instrument.budget.add(new)
        if newcomer.seconds is not None:
            new.timer = timers.after(newcomer.seconds, lambda: probe._expire(new))
        try:
            instrument.attached()
        except Exception as error:  # noqa: BLE001  (it is a matter of this instrument alone)
            newcomer.error = error


# --- behind decorators -------------------------------------------------------------------


def looks_inside(instrument: Instrument) -> bool:
    """Whether it means the function that was written, and not what callers see of it.

    Raises:
        ExpressionError: one of its expressions can't be used.
    """
    if happens_inside(instrument.event):
        return True
    texts = {
        "value": instrument.value,
        "when": instrument.when,
        "custom.tags": instrument.custom.get("tags"),
    }
    return any(
        "hotspots" in expressions.parsing(functools.partial(instrument._parse, text, field)).names
        for field, text in texts.items()
        if isinstance(text, str) and "hotspots" in text
    )


def notes(instrument: Instrument, target: Target) -> tuple[str, ...]:
    """Which code is meant, where decorators leave a choice."""
    body = target.body
    if body is None or not target.decorators or not looks_inside(instrument):
        return ()
    code = body.__code__
    what = repr(instrument.event) if happens_inside(instrument.event) else "'hotspots'"
    where = f"{body.__module__}.{body.__qualname__}, {code.co_filename}:{code.co_firstlineno}"
    many = "a decorator" if target.decorators == 1 else f"{target.decorators} decorators"
    return (f"{what} is inside {where}, behind {many}",)


# --- sites: which hooks are on which function ------------------------------------------


class _Placed(Protocol):
    """What may have a hook on a site; of two with the same place the later one counts."""

    armed: bool
    hook: Hook

    @property
    def event(self) -> str:
        """The event that the hook is on."""

    @property
    def place(self) -> Hashable:
        """What tells it from others."""


_on_site: dict[Site, list[_Placed]] = {}
_has_ended = False


def _place(site: Site, news: Sequence[_Attachment]) -> dict[_Attachment, Exception]:
    """Bring what is new to a site, all at once; what can't be there, with the reason."""
    try:
        _update(site, news)
    except Exception as error:  # noqa: BLE001  (it is told as the outcome of one of them)
        if len(news) == 1:
            return {news[0]: error}
    else:
        return {}
    # One of them is to blame: the others are not to suffer for it.
    middle = len(news) // 2
    return _place(site, news[:middle]) | _place(site, news[middle:])


def _update(site: Site, news: Sequence[_Placed] = ()) -> None:
    """Bring a site's hooks in line with what is armed; if it raises, nothing changed."""
    if _has_ended and news:
        return  # a background thread still applies what it knows; the code stays as it is
    attachments = _on_site.get(site, [])
    places = {new.place for new in news}
    kept = [one for one in attachments if one.armed and one.place not in places]
    if not news and len(kept) == len(attachments):
        return
    kept += news
    if news:
        # First: after an interrupt in the middle of it, whoever takes it off finds it here.
        _on_site[site] = kept
    try:
        said = site.update([Armed(one.event, one.hook) for one in kept])
    except Exception as error:
        if news:
            _note(site, attachments)
            if not isinstance(error, DiagnoseError):
                _try_again(site)
            raise
        _try_again(site)
    else:
        _say(said)
    _note(site, kept)


def _note(site: Site, placed: list[_Placed]) -> None:
    if placed:
        _on_site[site] = placed
    else:
        _on_site.pop(site, None)


def _try_again(site: Site) -> None:
    """Bring a site to what is noted, after something has failed in the midst of a change.

    An audit hook of the program may have raised, at any step. What is to go is disarmed anyway.
    """
    placed = [Armed(one.event, one.hook) for one in _on_site.get(site, []) if one.armed]
    try:
        _say(site.update(placed))
    except Exception as error:  # noqa: BLE001
        # Somebody else replaced the code, or forbids us to; also to start a thread.
        with suppress(Exception):
            _say(f"{site!r} could not be brought up to date: {error}")


def _say(text: str | None) -> None:
    """Log a warning, not here: a thread that waits for our lock may hold that of a log handler."""
    if text is not None:
        timers.after(0, functools.partial(log.warning, "%s", text))


class Hooked:
    """A hook that is on a function, without an instrument: what breakpoints are made of.

    Args:
        target: whose function.
        event: ``"call"``, ``"return"``, ``"end"`` or ``"line:N"``.
        hook: what is called there.

    Raises:
        DiagnoseError: there is no such event in it.
    """

    __slots__ = ("_site", "armed", "event", "hook")

    def __init__(self, target: Target, event: str, hook: Hook) -> None:
        self._site = site_of(target, inside=happens_inside(event))
        self._site.scope(event, {})  # raises if there is no such event
        self.event, self.hook = event, hook
        self.armed = False

    def put_on(self) -> None:
        """Put it there.

        Raises:
            DiagnoseError: it can't be; then everything is as it was.
        """
        self.armed = True
        with reentrancy.Quiet(), _lock:
            _update(self._site, [self])

    @property
    def place(self) -> Hashable:
        """Each is one of its own."""
        return self

    def take_off(self) -> None:
        """Put back what was there before; idempotent."""
        with reentrancy.Quiet(), _lock:
            self.armed = False
            _update(self._site)


def _retire(attachment: _Attachment, state: str) -> None:
    """Make an attachment do nothing, from this moment, for calls inside it too."""
    attachment.armed = attachment.suspended = False
    attachment.disarm()
    attachment.let_go()
    attachment.instrument._rewrites.pop(attachment, None)
    if attachment.instrument.budget is not None:
        attachment.instrument.budget.discard(attachment)
    if attachment.timer is not None:
        attachment.timer.cancel()
    status = attachment.instrument.status
    status.attachments -= 1
    if not status.attachments and status.state not in {"error", "done"}:
        status.state = state
        status.code = status.error = None


def _finish(gone: Sequence[_Attachment], *, waits: bool = True) -> None:
    # Those that are on another function too, or were put on again, go on.
    off = [one.instrument for one in gone if not one.instrument.status.attachments]
    with reentrancy.Quiet():
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


def _describe(error: BaseException, attachment: _Attachment) -> str:
    instrument = attachment.instrument
    text = type.__dict__["__name__"].__get__(type(error))
    try:
        text = f"{text}: {error}"
    except BaseException as later:  # its own __str__
        if _is_theirs(later):
            raise
    return f"{instrument.value!r:.200} raised {text:.1000}{_where(error)}"


_get_traceback = BaseException.__dict__["__traceback__"].__get__
_set_traceback = BaseException.__dict__["__traceback__"].__set__
_get_context = BaseException.__dict__["__context__"].__get__
_set_context = BaseException.__dict__["__context__"].__set__
_OWN_FOLDER = os.path.dirname(__file__) + os.sep  # noqa: PTH120  (it is compared with texts)
_NO_ROOM = frozenset({RecursionError, MemoryError})


def _is_from_inside(error: BaseException) -> bool:
    """Whether a function of ours was entered before it was raised."""
    trace = _get_traceback(error)
    return trace is not None and trace.tb_next is not None


def _is_theirs(error: BaseException) -> bool:
    try:
        return belongs_to_program(error)
    except BaseException:  # noqa: BLE001  (this is the last resort)
        return False


_HEAP_TYPE = 1 << 9
_get_args = BaseException.__dict__["args"].__get__


def _without_objects(error: BaseException, text: str) -> BaseException:
    """An error to be told later, which keeps nothing of the call alive.

    Those that C code raises may have objects of the program with them (``AttributeError.obj``, the
    key of a ``KeyError``), and a cause or notes; errors of other classes are told as they are.
    """
    kind = type(error)
    if kind.__flags__ & _HEAP_TYPE:
        return error
    args = _get_args(error)
    if not all(type(each) in {str, int, float, bool, type(None)} for each in args):
        args = (text,)
    try:
        return kind(*args)
    except Exception:  # noqa: BLE001  (some want other arguments)
        return RuntimeError(text)


def _entries(error: BaseException) -> list[TracebackType]:
    """The entries of a traceback that are of calls within this hit, the outermost first."""
    entries: list[TracebackType] = []
    entry = _get_traceback(error)
    while entry is not None and (not entries or entry.tb_frame.f_back is entries[-1].tb_frame):
        entries.append(entry)
        entry = entry.tb_next
    return entries


def _where(error: BaseException) -> str:
    """Where an error came up, if that is in code that an expression called."""
    entries = _entries(error)
    if not entries or entries[-1].tb_frame.f_code.co_filename.startswith("<probe "):
        return ""
    code = entries[-1].tb_frame.f_code
    if code.co_filename.startswith(_OWN_FOLDER):
        return ""
    file = code.co_filename.rpartition(os.sep)[2]
    return f" (in {code.co_qualname}, {file}:{entries[-1].tb_lineno})"


def _is_of_hit(frame: FrameType | None) -> bool:
    """Whether it is below what serves a hit; also when it has come to its end."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<probe ") or code is reentrancy.quietly.__code__:
            return True
        frame = frame.f_back
    return False


def _has_context_of_program(error: BaseException) -> bool:
    """Whether its context is what the program was handling as the hit was served."""
    context, trace = _get_context(error), _get_traceback(error)
    caught = None if context is None else _get_traceback(context)
    # Not by sys._getframe: an audit hook may forbid that.
    frame = None if trace is None or caught is None else trace.tb_frame.f_back
    while frame is not None and caught is not None:
        if frame is caught.tb_frame:
            return True
        frame = frame.f_back
    return False


def _restore_traceback(error: BaseException) -> bool:
    """Take the entries of hits out of an error's traceback; whether any are left.

    So nothing of the call is kept alive, and an exception of the program's that an expression
    raised is as it was. Other threads may raise it at the same time: theirs stay. (3.11 does not
    say who called a generator that is over; entries of those stay too.)
    """
    entries: list[TracebackType | None] = []
    before: TracebackType | None = None
    entry = _get_traceback(error)
    while entry is not None:
        if not _is_of_hit(entry.tb_frame):
            entries.append(entry)
        elif (
            # What got past a handler's own `try` came to the probed function.
            before is not None
            and entries[-1:] == [before]
            and entry.tb_frame.f_back is before.tb_frame
        ):
            entries.pop()
        before, entry = entry, entry.tb_next
    for entry, following in itertools.pairwise([*entries, None]):
        if entry is not None and entry.tb_next is not following:
            entry.tb_next = following
    _set_traceback(error, entries[0] if entries else None)
    return bool(entries)


# --- the public functions ---------------------------------------------------------------


def attach_to(target: str) -> FunctionProbe:
    """Get the probe of a target: the one there is, or a new one.

    Put instruments into its ``instruments`` and call its ``start``.
    """
    with _lock:
        probe = active_probes.get(target)
        if probe is None:
            probe = active_probes[target] = FunctionProbe(target)
        return probe


def start_all() -> None:
    """Start every probe of :data:`active_probes` that is not started yet.

    Raises:
        DiagnoseError: the first one that could not be; the others are started all the same.
    """
    first: DiagnoseError | None = None
    for probe in list(active_probes.values()):
        try:
            probe.start()
        except DiagnoseError as error:
            first = first or error
    if first is not None:
        raise first


@contextmanager
def sensor(
    target: str,
    value: str = "result",
    name: str = "test_instrument",
    event: str = "return",
    mgr: base.Manager | None = None,
) -> Iterator[ProbeTestInstrument]:
    """Watch a target within a ``with`` block and keep what was seen: for tests.

    >>> import statistics
    >>> with sensor("statistics.mean", "data") as seen:
    ...     statistics.mean([1, 2, 3])
    2
    >>> seen.results
    [[1, 2, 3]]

    Raises:
        DiagnoseError: the target or the expression can't be used.
    """
    instrument = ProbeTestInstrument(name, value, event, mgr=mgr)
    key = f"sensor:{id(instrument)}"
    targets.resolve(target, import_modules=True)
    probe = attach_to(target)
    probe.attach(key, instrument)
    try:
        yield instrument
    finally:
        probe.detach(key)


def _decorate(instrument: Instrument, function: Any) -> None:
    target = targets.target_of(function)
    # There may be several of that path: a module may be loaded again, and a function inside of
    # another is made anew by each call of that. The probe's path need not lead to them.
    key = f"decorator:{id(instrument)}:{id(target.function)}"
    attach_to(target.path).attach(key, instrument, target=target)


base._Defaults.attach = staticmethod(_decorate)


# --- the end of the program -------------------------------------------------------------


def _end() -> None:
    """Take everything off, so that the program comes apart as if nothing had been there.

    Code that calls handlers keeps alive what these refer to, and the collector can't see it, as
    code takes no part in collection: files would not be flushed, finalizers not run.
    """
    global _has_ended  # noqa: PLW0603
    # Whatever happens here (an interrupt from the keyboard, a hook of the application's) is not
    # to be seen: the program has done all that it had to do.
    with suppress(BaseException), reentrancy.Quiet():
        if not _lock.acquire(timeout=_END_WAIT_SECONDS):
            return
        try:
            _has_ended = True
            placed = [one for each in list(_on_site.values()) for one in each]
            on = {one.probe for one in placed if isinstance(one, _Attachment)}
            with Changes() as changes:
                for probe in on.union(active_probes.values()):
                    with suppress(Exception):
                        probe._leave(changes)
            for site, each in list(_on_site.items()):
                for one in each:
                    one.armed = False
                with suppress(Exception):
                    _update(site)
        finally:
            _lock.release()
        # What is still to be told holds instruments, and by them what they are on.
        timers.settle(_END_WAIT_SECONDS, lambda: None)
        STANDARD_OUTPUT.settle()


_END_WAIT_SECONDS = 1.0
_LAST_PRIORITY = -2000  # behind managers, which say good-bye to their server
_is_following = False
# It is called after what the program registered since this was imported.
atexit.register(_end)


def _follow_multiprocessing() -> None:
    """See to it that all is taken off at the end of multiprocessing's children.

    These end by ``os._exit``, so not with what `atexit` knows, but with finalizers; they begin by
    forgetting their parent's, and then do what is to be done after a fork.
    """
    global _is_following  # noqa: PLW0603 - of the program, children included
    util = sys.modules.get("multiprocessing.util")
    if util is not None and hasattr(util, "register_after_fork") and not _is_following:
        _is_following = True
        util.register_after_fork(_end, _end_with_finalizers)


def _end_with_finalizers(end: Callable[[], None]) -> None:
    sys.modules["multiprocessing.util"].Finalize(None, end, exitpriority=_LAST_PRIORITY)


def _before_fork() -> None:
    with suppress(Exception):  # this is somebody else's module
        _follow_multiprocessing()
    _lock.acquire()


os.register_at_fork(
    before=_before_fork,
    # In the child too: its only thread is the one that took it.
    after_in_parent=_lock.release,
    after_in_child=_lock.release,
)
