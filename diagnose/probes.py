"""Probes: one target, its instruments, and the life that each of them has."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from diagnose import ending, registry, targets
from diagnose.attachments import Attachment, finish, retire
from diagnose.errors import DiagnoseError
from diagnose.instruments import base
from diagnose.instruments.recording import ProbeTestInstrument
from diagnose.reentrancy import Quiet
from diagnose.registry import lock, place, timers, update
from diagnose.sinks.standard import STANDARD_OUTPUT
from diagnose.sites import happens_inside, site_of
from diagnose.status import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import timedelta

    from diagnose.instruments import Instrument
    from diagnose.targets import Target

__all__ = [
    "Arrival",
    "Changes",
    "FunctionProbe",
    "active_probes",
    "attach_to",
    "sensor",
    "start_all",
]

active_probes: dict[str, FunctionProbe] = {}
"""The probes that are attached or were asked for, by target path."""


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
        self._attachments: dict[str, Attachment] = {}
        self._resolved: Target | None = None
        self.instruments = _Instruments(self)
        self.instruments.update(instruments or {})

    def __repr__(self) -> str:
        return f"FunctionProbe({self.target!r}, instruments={self.instruments!r})"

    @property
    def resolved(self) -> Target | None:
        """What its instruments are on, while there are any."""
        return self._resolved

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
        with lock:
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
        with Changes() as changes, Quiet(), lock:
            self.leave(changes)

    def leave(self, changes: Changes) -> None:
        """Have all its instruments taken off with the changes. For the lock's holder."""
        self.started = False
        for key in list(self._attachments):
            changes.take_off(self, key, State.STOPPED)
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

    def holds(self, attachment: Attachment) -> bool:
        """Whether it is attached, suspended or not."""
        return self._attachments.get(attachment.key) is attachment

    def detach(self, key: str) -> None:
        """Disarm what is under ``key``, if anything is; the last one puts the code back."""
        with Changes() as changes:
            changes.detach(self, key)

    def _expire(self, attachment: Attachment) -> None:
        # Other deadlines may be due: what is still to be sent is not waited for.
        with Changes(waits=False) as changes, Quiet(), lock:
            if self._attachments.get(attachment.key) is not attachment:
                return
            changes.take_off(self, attachment.key, State.EXPIRED)
            self._items.pop(attachment.key, None)
            if not self._items:
                self.started = False

    def _leave_if_empty(self) -> None:
        with lock:
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
    """An attachment that does not serve hits yet."""

    __slots__ = ("attachment", "before", "probe", "seconds", "target")

    def __init__(
        self,
        probe: FunctionProbe,
        attachment: Attachment,
        target: Target,
        seconds: float | None,
    ) -> None:
        super().__init__()
        self.probe = probe
        self.attachment = attachment
        self.target = target
        self.seconds = seconds
        status = attachment.instrument.status
        self.before = status.state, status.code, status.error

    @property
    def is_in_place(self) -> bool:
        """Whether its probe has it by now."""
        return self.probe.holds(self.attachment)

    def announce(self) -> None:
        """Say that it is there.

        Just before it is: the first hit may fail at once, and what it says has to stay.
        """
        status = self.attachment.instrument.status
        self.before = status.state, status.code, status.error
        status.become(State.INSTALLED)

    def turn_back(self) -> None:
        """Be as if it had never come."""
        self.attachment.armed = False
        # Code objects take no part in garbage collection: this breaks the cycle.
        self.attachment.disarm()
        self.attachment.let_go()
        self.attachment.instrument.status.become(*self.before)


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
        self._gone: list[Attachment] = []
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
                with Quiet(), lock:
                    self._put_on(groups.pop(next(iter(groups))))
        finally:
            for newcomer in (each for group in groups.values() for each in group):
                newcomer.turn_back()
            for site in dict.fromkeys(one.site for one in self._gone):
                with Quiet(), lock:
                    update(site)
            for probe in self._probes:
                probe._leave_if_empty()
        finish(self._gone, waits=self._waits)

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
            instrument.status.become(State.EXPIRED)
            self.detach(probe, key)
            return Arrival()
        found = target or probe._resolved or targets.resolve(probe.target, import_modules=False)
        # Before it is armed, for the first hit may fail; and without the lock, for a new thread
        # is waited for.
        timers.hold()
        try:
            with Quiet(), lock:
                found = target or probe._resolved or found
                site = site_of(found, inside=looks_inside(instrument))
                attachment = Attachment(probe, key, instrument, site)
        except BaseException:
            timers.release()
            raise
        newcomer = self._coming[probe, key] = _Newcomer(probe, attachment, found, seconds)
        return newcomer

    def detach(self, probe: FunctionProbe, key: str) -> None:
        """Take off what is under ``key``, if anything is, and forget it."""
        self._turn_back(probe, key)
        with Quiet(), lock:
            self.take_off(probe, key, State.STOPPED)
            probe._items.pop(key, None)

    def take_off(self, probe: FunctionProbe, key: str, state: State) -> None:
        """Take off what is under ``key``, if anything is; it stays listed. The lock is held."""
        self._probes[probe] = None
        attachment = probe._attachments.get(key)
        if attachment is not None:
            self._gone.append(attachment)
            retire(attachment, state)
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
            errors = place(site, [each.attachment for each in group])
            for each in group:
                each.error = errors.get(each.attachment)
                if each.error is None:
                    self._settle(each)
        finally:
            lost = [each for each in group if not each.is_in_place]
            for each in lost:
                each.turn_back()
            if any(each.error is None for each in lost):  # an interrupt
                olds = (each.probe._attachments.get(each.attachment.key) for each in lost)
                update(site, [old for old in olds if old and old.armed and old.site is site])

    def _settle(self, newcomer: _Newcomer) -> None:
        new = newcomer.attachment
        probe, key, instrument = newcomer.probe, new.key, new.instrument
        old = probe._attachments.get(key)
        probe._attachments[key] = new
        probe._items[key] = instrument
        probe._resolved = newcomer.target
        active_probes.setdefault(probe.target, probe)
        instrument.status.attachments += 1
        instrument.follow_custom(new, new.rewrite)
        if old is not None:
            self._gone.append(old)
            retire(old, State.STOPPED)
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
    return happens_inside(instrument.event) or instrument.reads_name("hotspots")


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


# --- the public functions ---------------------------------------------------------------


def attach_to(target: str) -> FunctionProbe:
    """Get the probe of a target: the one there is, or a new one.

    Put instruments into its ``instruments`` and call its ``start``.
    """
    with lock:
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


base.use_attach(_decorate)


# --- the end of the program -------------------------------------------------------------


def _end() -> None:
    """Take everything off, so that the program comes apart as if nothing had been there.

    Code that calls handlers keeps alive what these refer to, and the collector can't see it, as
    code takes no part in collection: files would not be flushed, finalizers not run.
    """
    with Quiet():
        if not lock.acquire(timeout=_END_WAIT_SECONDS):
            return
        try:
            placed = registry.close()
            on = {each.probe for each in placed if isinstance(each, Attachment)}
            live = {each for each in on if isinstance(each, FunctionProbe)}
            with Changes() as changes:
                for probe in live.union(active_probes.values()):
                    with suppress(Exception):
                        probe.leave(changes)
            registry.clear()
        finally:
            lock.release()
        # What is still to be told holds instruments, and by them what they are on.
        timers.settle(_END_WAIT_SECONDS, lambda: None)
        STANDARD_OUTPUT.settle()


_END_WAIT_SECONDS = 1.0
ending.register(ending.Layer.PROBES, _end)
