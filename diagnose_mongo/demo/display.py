"""What the demo looks like: in a terminal, or as plain lines."""

from __future__ import annotations

import sys
import textwrap
import time
from typing import TYPE_CHECKING, Protocol

from diagnose_mongo.demo.metrics import Row
from diagnose_mongo.demo.rollout import SpecStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Display", "PlainDisplay", "number", "short"]

_WIDTH = 98


class Display(Protocol):
    """Where the story is told."""

    def heading(self, text: str) -> None:
        """A new step begins."""

    def say(self, text: str) -> None:
        """Explain, or state a result."""

    def code(self, text: str) -> None:
        """Show what a user types."""

    def show(
        self, statuses: Sequence[SpecStatus], rows: Sequence[Row] = (), log: Sequence[str] = ()
    ) -> None:
        """Show how things stand; called many times a second."""

    def settle(self) -> None:
        """Leave the picture last shown where it is: what comes next comes below it."""


class PlainDisplay:
    """Lines of text: of the states of specs the changes, of values the last picture."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._problems: set[str] = set()
        self._values: list[str] = []
        self._began = time.monotonic()

    def heading(self, text: str) -> None:
        """See :class:`Display`."""
        self._print("")
        self._print(text)

    def say(self, text: str) -> None:
        """See :class:`Display`."""
        self._print(textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="  "))

    def code(self, text: str) -> None:
        """See :class:`Display`."""
        self._print(textwrap.indent(f">>> {text}", "    "))

    def show(
        self, statuses: Sequence[SpecStatus], rows: Sequence[Row] = (), log: Sequence[str] = ()
    ) -> None:
        """See :class:`Display`."""
        for status in statuses:
            summary = status.summary()
            if self._said.get(status.spec_id) != summary:
                self._said[status.spec_id] = summary
                seconds = time.monotonic() - self._began
                self._print(f"  {seconds:5.1f} s  {status.spec_id:<18} {summary}")
            for problem in status.problems:
                if (line := f"{status.spec_id}: {problem}") not in self._problems:
                    self._problems.add(line)
                    self.say...
