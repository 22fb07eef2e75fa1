"""What a manager knows of each spec: what was tried, what came of it, when to try again."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from diagnose.errors import DiagnoseError, TargetNotImportedError
from diagnose.specs import State

if TYPE_CHECKING:
    from diagnose.instruments import Instrument
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


class Record:
    """What a manager knows of one spec.

    Attributes:
        slot: its key on probes.
        content: the document's fingerprint; another one is another version.
        spec: None while the document is no valid spec.
        probe: what has an instrument in the slot, of this version or of the one before, which
            goes on until this one is in place.
        instrument: what is armed of this version.
        warnings: what there was to say when it was armed.
        outcome: None if the spec is not meant for this process.
        final: the outcome that only a new version changes (a hit failed, its time is over).
        error: what the last attempt raised.
        told: the document whose ``applied`` says so already, or UNTOLD.
        awaited: the module that has to be imported first.
        skips: how many times to apply before what failed is tried again. It doubles: what
            keeps failing is tried ever more rarely.
    """

    __slots__ = (
        "awaited",
        "content",
        "error",
        "final",
        "instrument",
        "outcome",
        "probe",
        "skips",
        "skips_left",
        "slot",
        "spec",
        "told",
        "warnings",
    )

    def __init__(self, slot: str, content: object, probe: FunctionProbe | None) -> None:
        self.slot = slot
        self.content = content
        self.spec: Spec | None = None
        self.probe = probe
        self.instrument: Instrument | None = None
        self.warnings: tuple[str, ...] = ()
        self.outcome: Outcome | None = None
        self.final: Outcome | None = None
        self.error: Exception | None = None
        self.told: object = UNTOLD
        self.awaited: str | None = None
        self.skips = self.skips_left = 0

    def is_due(self) -> bool:
        """Whether what failed is to be tried again, this time."""
        if self.awaited is not None:
            return self.awaited in sys.modules
        self.skips_left -= 1
        return self.skips_left < 0

    def fail(self, error: Exception) -> None:
        """Note what an attempt raised; it becomes the outcome."""
        waits = isinstance(error, TargetNotImportedError)
        self.awaited = error.name if isinstance(error, TargetNotImportedError) else None
        self.error = error
        self.skips_left = self.skips
        self.skips = min(2 * self.skips + 1, _LONGEST_SKIP)
        self.outcome = Outcome(
            State.PENDING if waits else State.ERROR,
            describe(error),
            error.code if isinstance(error, DiagnoseError) else "instrument-failed",
            self.spec.warnings if self.spec else (),
        )

    def succeed(self, probe: FunctionProbe, instrument: Instrument) -> None:
        """Note that an instrument is armed."""
        self.probe, self.instrument = probe, instrument
        self.error = self.awaited = None
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
