"""What the demo looks like: a picture that is drawn anew in a terminal, else plain lines."""

from __future__ import annotations

import textwrap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diagnose_mongo.demo.metrics import Row
    from diagnose_mongo.rollouts import Rollout

__all__ = ["COLUMNS", "Display", "Picture", "PlainDisplay", "cells", "problems", "states"]

COLUMNS = ("metric", "worker", "values", "per s", "p50", "p95", "max")

_WIDTH = 98


@dataclass(frozen=True, slots=True)
class Picture:
    """How things stand.

    Attributes:
        specs: how far each has come; None: it is not shown.
        rows: what was measured.
        log: lines of log instruments.
    """

    specs: Sequence[Rollout] | None
    rows: Sequence[Row] = ()
    log: Sequence[str] = ()


class Display(Protocol):
    """Where the story is told. A context manager; what was drawn stays when it is left."""

    def heading(self, text: str) -> None:
        """A new step begins."""

    def say(self, text: str) -> None:
        """Explain, or state a result."""

    def code(self, text: str, language: str = "python") -> None:
        """Show what a user types, in Python or in a shell ("sh")."""

    def draw(self, picture: Picture) -> None:
        """Show how things stand, in place of how they stood; may be called often."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


class PlainDisplay:
    """Lines of text; of a picture, what has changed in the specs, and the values at its end."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._said: dict[str, str] = {}
        self._problems: set[tuple[str, str]] = set()
        self._last = Picture(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._settle()

    def heading(self, text: str) -> None:
        """Print it."""
        self._settle()
        _print(f"\n{text}")

    def say(self, text: str) -> None:
        """Print it, wrapped."""
        self._settle()
        _print(_wrapped(text, "   "))

    def code(self, text: str, language: str = "python") -> None:
        """Print it with a prompt."""
        self._settle()
        prompt = ">>> " if language == "python" else "$ "
        _print(textwrap.indent(prompt + text, "   "))

    def draw(self, picture: Picture) -> None:
        """Print what changed in the specs; keep the values until something else is printed."""
        self._last = picture
        if picture.specs is None:
            return
        for found in picture.specs:
            spec_id, stands = str(found.spec_id), states(found)
            if self._said.get(spec_id) != stands:
                self._said[spec_id] = stands
                self._note(f"{spec_id:<18} {stands}")
            for problem in problems(found):
                if (spec_id, problem) not in self._problems:
                    self._problems.add((spec_id, problem))
                    _print(_wrapped(problem, " " * 12))
        for gone in sorted(self._said.keys() - {str(found.spec_id) for found in picture.specs}):
            del self._said[gone]
            self._note(f"{gone:<18} the document is gone")

    def _note(self, text: str) -> None:
        _print(f"   {time.monotonic() - self._began:5.1f} s  {text}")

    def _settle(self) -> None:
        last, self._last = self._last, Picture(None)
        if last.rows:
            table = [COLUMNS, *(cells(row) for row in last.rows)]
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            for line in table:
                _print(f"   {_aligned(line, widths)}")
        for text in last.log:
            _print(f"   {text}")


def states(found: Rollout) -> str:
    """In how many processes a spec is in which state: ``2 emitting, 1 waiting``."""
    return ", ".join(f"{count} {state}" for state, count in found.counts.items())


def problems(found: Rollout) -> dict[str, int]:
    """What went wrong with a spec, by message, and in how many processes."""
    return {
        str(failure.examples[0]["err"] if failure.examples else failure.code): failure.count
        for failure in found.failures
    }


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def cells(row: Row) -> tuple[str, ...]:
    """The texts of a row's columns."""
    quantiles = [_quantity(row.name, row.quantiles.get(name)) for name in COLUMNS[4:]]
    tags = ", ".join(f"{key}={text}" for key, text in row.tags)
    return (
        f"{row.name} {tags}".rstrip() if row.worker is None else "",
        row.worker or "all",
        f"{row.count:,.0f}",
        f"{row.per_second:,.1f}",
        *quantiles,
    )


def _quantity(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name.endswith(".seconds"):
        return f"{value * 1000:,.2f} ms"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    """Text to the left, numbers to the right."""
    texts, numbers = zip(line[:2], widths, strict=False), zip(line[2:], widths[2:], strict=True)
    aligned = [f"{text:<{width}}" for text, width in texts]
    aligned += [f"{number:>{width}}" for number, width in numbers]
    return "  ".join(aligned).rstrip()


def _print(text: str) -> None:
    # At once: what is read through a pipe should come when it happens.
    print(text, flush=True)
