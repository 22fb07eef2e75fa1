"""What a manager knows of each spec: what was tried, what came of it, when to try again."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from diagnose import targets
from diagnose.arming import TOO_MANY
from diagnose.errors import (
    DiagnoseError,
    TargetDriftedError,
    TargetError,
    TargetNotImportedError,
)
from diagnose.specs import State

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from diagnose.arming import Appointment, Armed
    from diagnose.instruments import Instrument
    from diagnose.instruments.base import Status
    from diagnose.probes import FunctionProbe
    from diagnose.specs import Spec

__all__ = ["UNTOLD", "Outcome", "Record", "describe"]

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
        "appointment",
        "awaited",
        "coming",
        "content",
        "error",
        "final",
        "instrument",
        "key",
        "moved",
        "outcome",
        "probe",
        "skips",
        "skips_left",
        "slot",
        "spare",
        "spec",
        "status",
        "subject",
        "told",
        "warnings",
        "wrapped",
    )

    def __init__(
        self, key: Hashable, slot: str, content: object, probe: FunctionProbe | None
    ) -> None:
        self.key = key
        self.slot = slot
        self.content = content
        self.spec: Spec | None = None
        self.probe = probe
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

    @property
    def has_no_place(self) -> bool:
        """Whether it failed since there are too many."""
        return isinstance(self.error, DiagnoseError) and self.error.code == TOO_MANY

    def is_due(self) -> bool:
        """Whether what failed is to be tried again, this time."""
        if self.awaited:
            return any(name in sys.modules for name in self.awaited)
        if isinstance(self.error, TargetError) and self.spec is not None:
            # It costs little to see that the path leads somewhere now, or somewhere else.
            found = targets.find(self.spec.target)
            if found is not None and found.subject is not self.subject:
                return True
        self.skips_left -= 1
        return self.skips_left < 0

    def fail(self, error: Exception) -> None:
        """Note what an attempt raised; it becomes the outcome."""
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

    def succeed(self, armed: Armed) -> None:
        """Note that an instrument is armed."""
        self.probe, self.instrument = armed.probe, armed.instrument
        self.status = armed.instrument.status
        self.subject = armed.target.subject
        self.error, self.awaited, self.spare = None, (), None
        self.skips = 0


def describe(error: BaseException) -> str:
    """What to tell people about an error."""
    if isinstance(error, DiagnoseError):
        return error.message
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception's own __str__
        text = "?"
    return f"the instrument could not be made: {type(error).__name__}: {text}"
