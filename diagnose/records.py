"""A spec's life in one process: what was tried, what came of it, when to try again.

A :class:`Record` is always in one of these: nothing is armed (and :attr:`Record.error` may say
why), it waits for a module to be imported (:attr:`Record.appointment`), an instrument is on its way
(:attr:`Record.coming`, until the changes that it is part of are made), an instrument is armed
(:attr:`Record.instrument`), or nothing but a new version changes anything (:attr:`Record.final`).
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from diagnose import arming, probes, targets
from diagnose.errors import (
    DiagnoseError,
    TargetDriftedError,
    TargetError,
    TargetNotImportedError,
)
from diagnose.limits import ACTS
from diagnose.specs import Stage
from diagnose.status import State
from diagnose.wording import described

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping
    from datetime import datetime

    from diagnose.arming import Appointment, Armed, Places
    from diagnose.instruments import Instrument
    from diagnose.probes import Changes, FunctionProbe
    from diagnose.specs import Spec
    from diagnose.status import Status
    from diagnose.targets import Target

__all__ = ["UNTOLD", "Outcome", "Process", "Record", "Turn", "describe"]

log = logging.getLogger(__name__)

UNTOLD: Final = object()

_LONGEST_SKIP = 32


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an ``applied`` entry says, but for its version and time."""

    state: State
    err: str | None = None
    code: str | None = None
    warnings: tuple[str, ...] = ()
    found: Mapping[str, object] | None = None
    acts: bool = False
    """Whether its instrument may change what the program does."""


class Process(Protocol):
    """What a record asks of the manager that it belongs to."""

    process_id: str
    labels: dict[str, str]
    places: Places

    def parse(self, key: Hashable, document: Any) -> Spec:
        """Parse a document.

        Raises:
            SpecError: it is no valid spec.
        """

    def make(self, record: Record, spec: Spec, remaining: timedelta | None) -> Instrument:
        """Make a spec's instrument.

        Args:
            record: the spec's.
            spec: it.
            remaining: its lifespan from now on.

        Raises:
            Exception: whatever the class of instruments raises.
        """

    def waker(self) -> Callable[[], None]:
        """What has the manager apply soon, from any thread, as long as there is that manager."""


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One time that a manager brings its process in line with its specs.

    Attributes:
        process: the manager.
        now: the time that lifespans are counted in.
        switched_off: why nothing is to be armed at all, or None.
        changes: what is armed and disarmed in this turn.
    """

    process: Process
    now: datetime
    switched_off: str | None
    changes: Changes


class Record:
    """What a manager knows of one spec.

    Attributes:
        key: the spec's, in the manager.
        slot: its key on probes.
        content: the document's fingerprint; another one is another version.
        spec: None while the document is no valid spec.
        probe: what has an instrument in the slot, of this version or of the one before, which
            goes on until this one is in place.
        instrument: what is armed of this version.
        status: of the instrument that was armed last of this version.
        subject: what it is armed on, or was to be; None if the path led nowhere.
        appointment: what arms it as soon as its module is imported.
        spare: an instrument that was made for this version, and is armed nowhere yet.
        coming: what takes the place of all that once the changes that it is part of are made.
        warnings: what there was to say when it was armed.
        moved: what there is to say if its function was redefined.
        wrapped: what there is to say while its function is wrapped by another.
        outcome: None if the spec is not meant for this process.
        final: the outcome that only a new version changes (a hit failed, its time is over).
        error: what the last attempt raised.
        told: the document whose ``applied`` says so already, or UNTOLD.
        awaited: the modules that were missing; one of them has to be imported first.
        skips: how many times to apply before what failed is tried again. It doubles: what
            keeps failing is tried ever more rarely.
    """

    __slots__ = (
        "appointment", "awaited", "coming", "content", "error", "final", "instrument", "key",
        "moved", "outcome", "probe", "skips", "skips_left", "slot", "spare", "spec", "status",
        "subject", "told", "warnings", "wrapped",
    )  # fmt: skip

    def __init__(
        self, key: Hashable, slot: str, content: object, before: Record | None = None
    ) -> None:
        self.key = key
        self.slot = slot
        self.content = content
        self.spec: Spec | None = None
        self.probe: FunctionProbe | None = None if before is None else before.hand_over()
        self.instrument: Instrument | None = None
        self.status: Status | None = None
        self.subject: object = None
        self.appointment: Appointment | None = None
        self.spare: Instrument | None = None
        self.coming: Armed | None = None
        self.warnings: tuple[str, ...] = ()
        self.moved: str | None = None
        self.wrapped: str | None = None
        self.outcome: Outcome | None = None
        self.final: Outcome | None = None
        self.error: Exception | None = None
        self.told: object = UNTOLD
        self.awaited: tuple[str, ...] = ()
        self.skips = self.skips_left = 0

    # --- what a manager does with it ---

    def bring_up(self, document: Any, turn: Turn) -> None:
        """Do what is to be done for the spec, or have it done with the changes.

        Then the outcome is known; or, if there is something coming, by :meth:`welcome`.
        """
        try:
            if self.coming is not None:  # left behind by an interrupt
                self.disarm(turn.process.places, turn.changes)
            outcome = self._next(document, turn)
            if self.coming is None:  # else it is as it was, until the changes are made
                self.outcome = outcome
        except Exception as exc:  # noqa: BLE001 - whatever a spec holds is its own error
            self._fail(exc, turn)

    def welcome(self, turn: Turn) -> None:
        """Note what has come of an instrument that was to be put on, if there was one."""
        armed, before = self.coming, self.probe
        if armed is None:
            return
        try:
            armed.arrival.check()
            self.coming = None
            self._succeed(armed)
            if before is not None and before is not armed.probe:
                turn.changes.detach(before, self.slot)
            self.outcome = self._look(armed.instrument, turn)
        except Exception as exc:  # noqa: BLE001 - as above
            self._fail(exc, turn)

    def disarm(self, places: Places, changes: Changes) -> None:
        """Have all taken off with the changes, and wait for nothing."""
        appointment, self.appointment = self.appointment, None
        armed = None if appointment is None else appointment.cancel()
        on = {self.probe, *(each.probe for each in (armed, self.coming) if each is not None)}
        self.probe = self.instrument = self.coming = None
        places.leave(self.slot)
        for probe in on:
            try:
                if probe is not None:
                    changes.detach(probe, self.slot)
            except Exception:
                log.exception("taking %r off %r failed", self.slot, probe)

    def hand_over(self) -> FunctionProbe | None:
        """Leave what is armed to the next version; what has it in the slot."""
        probe = self.probe
        if self.coming is not None:  # left behind by an interrupt
            probe = self.coming.probe
        if self.appointment is not None and (kept := self.appointment.cancel()) is not None:
            probe = kept.probe
        return probe

    # --- steps ---

    def _next(self, document: Any, turn: Turn) -> Outcome | None:
        process, changes = turn.process, turn.changes
        if self.spec is None:
            if self.error is not None and not self._is_due():
                return self.outcome
            self.spec = process.parse(self.key, document)
            self.error = None
        spec = self.spec
        if not spec.selects(process.labels, process.process_id):
            self._rest(turn)
            return None
        if turn.switched_off is not None or not spec.enabled:
            self._rest(turn)
            reason = () if turn.switched_off is None else (turn.switched_off,)
            return Outcome(State.DISABLED, warnings=(*reason, *spec.warnings))
        if spec.stage is Stage.TAKEN_BACK:
            self._rest(turn)
            why = spec.reason or "its canary was taken back"
            return Outcome(State.DISABLED, warnings=(why, *spec.warnings))
        if self.final is not None:
            return self.final
        remaining = spec.remaining(turn.now)
        if remaining is not None and remaining <= timedelta():
            # The probe's own timer did it already, unless this clock was put forward.
            self.disarm(process.places, changes)
            return Outcome(State.EXPIRED, warnings=spec.warnings)
        if self.appointment is not None and (armed := self.appointment.take()) is not None:
            self.appointment = None
            self._succeed(armed)
        if self.instrument is not None:
            if self.instrument.status.state in {State.INSTALLED, State.EMITTING}:
                self._follow(spec, remaining, turn)
                if self.coming is not None:
                    return None
            outcome = self._look(self.instrument, turn)
            if outcome is not None:
                return outcome
        elif self.error is not None and not self._is_due(process.places):
            return self.outcome
        self.warnings = spec.warnings_at(turn.now)
        if spec.is_dry_run:
            return self._rehearse(spec, turn)
        return self._arm(spec, remaining, turn)

    def _rest(self, turn: Turn) -> None:
        """Have nothing armed for a time, and begin anew after it."""
        self.disarm(turn.process.places, turn.changes)
        self.error, self.awaited, self.skips, self.skips_left = None, (), 0, 0

    def _arm(self, spec: Spec, remaining: timedelta | None, turn: Turn) -> Outcome | None:
        appointment, self.appointment = self.appointment, None
        armed = None if appointment is None else appointment.cancel()
        if armed is not None:
            self._succeed(armed)
            return self._look(armed.instrument, turn)
        self.spare = turn.process.make(self, spec, remaining)
        self.subject = None
        self._put(spec, self.spare, remaining, arming.locate(spec), turn)
        return None

    def _rehearse(self, spec: Spec, turn: Turn) -> Outcome:
        """Find out what would be armed, and arm nothing."""
        self.disarm(turn.process.places, turn.changes)
        target = arming.locate(spec)
        self.subject = target.subject
        instrument = turn.process.make(self, spec, None)
        found = arming.rehearse(spec, instrument, target)
        notes = (*target.warnings, *probes.notes(instrument, target))
        acts = (ACTS,) if instrument.acts else ()
        warnings = tuple(dict.fromkeys((*self.warnings, *notes, *acts)))
        self.final = Outcome(State.VALIDATED, warnings=warnings, found=found, acts=instrument.acts)
        return self.final

    def _put(
        self,
        spec: Spec,
        instrument: Instrument,
        remaining: timedelta | None,
        target: Target,
        turn: Turn,
    ) -> None:
        """Have an instrument put on; :meth:`welcome` it when the changes are made."""
        self.subject = target.subject
        arming.check(spec, target)
        turn.process.places.take(self.slot, target)
        self.coming = arming.arm(
            spec, self.slot, instrument, remaining, target, changes=turn.changes
        )

    def _follow(self, spec: Spec, remaining: timedelta | None, turn: Turn) -> None:
        """Go where the path leads now, if its function was redefined."""
        target = targets.find(spec.target)
        if target is None:
            held, self.subject = self.subject, None
            target = arming.locate(spec)  # which says what is wrong
            self.subject = held
        if target.subject is self.subject:
            self.wrapped = None
        elif target.wraps(self.subject):
            by = target.location or f"a {type(target.subject).__name__}"
            self.wrapped = (
                f"{spec.target} was wrapped by {by}; the probe stays on the function inside"
            )
        elif (instrument := self.instrument) is not None:
            if spec.limits.hits is not None:
                left = max(1, spec.limits.hits - instrument.status.hits)
                instrument.limits = dataclasses.replace(spec.limits, hits=left)
            self._put(spec, instrument, remaining, target, turn)
            here = target.location or f"a {type(target.subject).__name__}"
            self.wrapped = None
            self.moved = f"the function was redefined; the probe moved to the new one at {here}"

    def _look(self, instrument: Instrument, turn: Turn) -> Outcome | None:
        """What the armed instrument has come to; None if somebody took it off."""
        status = instrument.status
        state = status.state
        if state is State.STOPPED:
            return None
        found = () if self.probe is None else self.probe.warnings_on(self.slot)
        notes = [note for note in (self.moved, self.wrapped) if note is not None]
        warnings = tuple(dict.fromkeys((*self.warnings, *notes, *found, *instrument.warnings)))
        if state in {State.NEW, State.INSTALLED}:
            return Outcome(State.INSTALLED, warnings=warnings, acts=instrument.acts)
        outcome = Outcome(state, status.error, status.code, warnings, acts=instrument.acts)
        if outcome.state in {State.ERROR, State.EXPIRED, State.DONE}:
            self.final = outcome
            self.disarm(turn.process.places, turn.changes)
        return outcome

    def _succeed(self, armed: Armed) -> None:
        """Note that an instrument is armed."""
        self.probe, self.instrument = armed.probe, armed.instrument
        self.status = armed.instrument.status
        self.subject = armed.target.subject
        self.error, self.awaited, self.spare = None, (), None
        self.skips = 0

    def _fail(self, error: Exception, turn: Turn) -> None:
        """Note what an attempt raised; it becomes the outcome."""
        self.disarm(turn.process.places, turn.changes)
        state = State.DRIFTED if isinstance(error, TargetDriftedError) else State.ERROR
        self.awaited = ()
        if isinstance(error, TargetNotImportedError) and self.spec is not None:
            state = State.PENDING
            names = targets.module_names(self.spec.target)
            missing = [name for name in names if sys.modules.get(name) is None]
            # One that is being executed is there already, and counts all the same.
            self.awaited = tuple(missing) if error.name in missing else (*missing, error.name or "")
        self.error = error
        self.skips_left = self.skips
        self.skips = min(2 * self.skips + 1, _LONGEST_SKIP)
        self.outcome = Outcome(
            state,
            describe(error),
            error.code if isinstance(error, DiagnoseError) else "instrument-failed",
            self.spec.warnings if self.spec else (),
        )
        self._wait(turn)

    def _wait(self, turn: Turn) -> None:
        """See to it that what is pending is armed as soon as its module is imported."""
        instrument, self.spare = self.spare, None
        spec, error = self.spec, self.error
        if spec is None or spec.is_dry_run or not isinstance(error, TargetNotImportedError):
            return
        remaining, wake = spec.remaining(turn.now), turn.process.waker()
        try:
            if instrument is None:  # it was armed, and its module was taken away
                instrument = turn.process.make(self, spec, remaining)
            self.appointment = arming.Appointment(
                spec,
                self.slot,
                instrument,
                remaining,
                places=turn.process.places,
                module=error.name,
                kept=wake,
            )
        except Exception:
            log.exception("%r will be applied by the first apply() after its import only", spec.id)
            return
        # Between the look and the watch it may have been imported.
        if self.appointment.keep():
            wake()

    def _is_due(self, places: Places | None = None) -> bool:
        """Whether what failed is to be tried again, this time."""
        if places is not None and self._has_no_place and self.spec is not None:
            if places.is_full():
                return False
            found = targets.find(self.spec.target)
            return not places.is_full(self.subject if found is None else found.subject)
        if self.awaited:
            return any(name in sys.modules for name in self.awaited)
        if isinstance(self.error, TargetError) and self.spec is not None:
            # It costs little to see that the path leads somewhere now, or somewhere else.
            found = targets.find(self.spec.target)
            if found is not None and found.subject is not self.subject:
                return True
        self.skips_left -= 1
        return self.skips_left < 0

    @property
    def _has_no_place(self) -> bool:
        return isinstance(self.error, DiagnoseError) and self.error.code == arming.TOO_MANY


def describe(error: BaseException) -> str:
    """What to tell people about an error."""
    if isinstance(error, DiagnoseError):
        return error.message
    return f"the instrument could not be made: {described(error)}"
