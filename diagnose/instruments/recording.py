"""An instrument that keeps what it saw: for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diagnose.instruments.base import Instrument

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ProbeTestInstrument"]


class ProbeTestInstrument(Instrument):
    """Keeps every value and its tags in memory, in the order of the hits.

    Attributes:
        log: ``(tags, value)`` for each hit.
        finish_called: whether a hit was served.
    """

    longest_seconds = None  # a test may stop in a debugger

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log: list[tuple[Mapping[str, Any], Any]] = []
        self.finish_called = False

    @property
    def results(self) -> list[Any]:
        """The values alone."""
        return [value for _, value in self.log]

    def emit(self, name: str, value: Any, tags: Mapping[str, Any]) -> None:
        """Keep the value."""
        self.log.append((tags, value))

    def finish(self) -> None:
        """Remember that a hit was served."""
        self.finish_called = True
