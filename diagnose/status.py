"""What has become of an instrument, and of the spec that it is of."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING

from diagnose.tokens import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["State", "Status"]

REASONS = ("condition", "sample", "rate", "hits", "fleet", "reentrant", "check", "error")


class State(StrEnum):
    """What has become of a spec in one process; the words of an ``applied`` entry.

    Two of them stand in no entry: they are of an instrument alone.
    """

    NEW = "new"
    """An instrument that was never attached."""
    STOPPED = "stopped"
    """An instrument that was taken off."""

    PENDING = "pending"
    """The target's module is not imported yet; applied when it is."""
    INSTALLED = "installed"
    EMITTING = "emitting"
    """Installed, and it fired at least once."""
    ERROR = "error"
    DONE = "done"
    """It reached its hit limit."""
    EXPIRED = "expired"
    SUSPENDED = "suspended"
    """It cost more than its CPU budget; it is tried again later."""
    DRIFTED = "drifted"
    """The code is not the code that the spec was written against."""
    DISABLED = "disabled"
    VALIDATED = "validated"
    """It would have been installed, had it not been a dry run."""


class Status:
    """What has become of an instrument; read by managers, written by probes.

    Attributes:
        state: ``new``, ``installed``, ``emitting`` (fired at least once), ``error``,
            ``done`` (all hits of its limit), ``suspended`` (it cost too much, and is tried
            again later), ``expired`` or ``stopped``.
        code: of the error, as in :class:`~diagnose.errors.DiagnoseError`; or None.
        error: what went wrong and what to do; or None.
        attachments: how many functions the instrument is on.
        cost: the share of one core that it took lately, if a budget counts it.
    """

    __slots__ = ("_reasons", "_state", "attachments", "code", "cost", "drained", "error", "hit")

    def __init__(self) -> None:
        self._state = State.NEW
        self.code: str | None = None
        self.error: str | None = None
        self.hit = Tally()
        self.drained = 0
        self.attachments = 0
        self.cost = 0.0
        self._reasons = {reason: Tally() for reason in REASONS}

    @property
    def state(self) -> State:
        """``installed`` becomes ``emitting`` with the first hit."""
        return State.EMITTING if self._state is State.INSTALLED and self.hits else self._state

    def become(self, state: State, code: str | None = None, error: str | None = None) -> None:
        """Go on to another state, and say why."""
        # In this order: the state is what others look at.
        self.code, self.error, self._state = code, error, state

    @property
    def hits(self) -> int:
        """How often it fired (what is still in a buffer is not counted yet)."""
        return self.hit.value + self.drained

    @property
    def suppressed(self) -> Counter[str]:
        """How often it did not fire, by reason."""
        return Counter(
            {reason: tally.value for reason, tally in self._reasons.items() if tally.value}
        )

    def tallies(self) -> Mapping[str, Iterator[object]]:
        """By reason, what to take the next of for one suppressed hit."""
        return {reason: tally.ones for reason, tally in self._reasons.items()}
