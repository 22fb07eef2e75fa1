"""Hotspots: which lines of a call took how long."""

from __future__ import annotations

import functools
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from diagnose.bytecode import timing
from diagnose.source_lines import source_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType

_longest = attrgetter("longest")

__all__ = ["Hotspots", "LineTime", "duration", "reporter"]


class LineTime(NamedTuple):
    """What one line took in one call, with all that it called.

    Attributes:
        line: its number in the file.
        count: how often it ran; an expression over several lines comes back to the first one.
        total: seconds, of all runs.
        longest: seconds, of the longest run.
        file: where its source is looked up.
        lineno: ``line``, by the name that Python has for it.
        time: seconds: ``total``, or of the :attr:`Hotspots.slowest` line ``longest``.
    """

    line: int
    count: int  # type: ignore[assignment]
    total: float
    longest: float
    file: str

    @property
    def lineno(self) -> int:
        """See the class."""
        return self.line

    @property
    def time(self) -> float:
        """See the class."""
        return self.total

    @property
    def source(self) -> str:
        """The line's text, without white space around it; empty where there is no file."""
        return source_line(self.file, self.line)

    def __str__(self) -> str:
        times = "once" if self.count == 1 else f"{self.count:,} times"
        longest = "" if self.count == 1 else f", longest {duration(self.longest)}"
        return f"line {self.line}: {duration(self.total)} ({times}{longest}): {self.source}"


class _Slowest(LineTime):
    """A line that was chosen for its longest run."""

    __slots__ = ()

    @property
    def time(self) -> float:
        """See :class:`LineTime`."""
        return self.longest


class Hotspots:
    """The lines of one call, and what each of them took; value of the name ``hotspots``.

    As text it is a table of the lines that ran, in the order of the file. Time spent in
    exceptions goes to the line that raised; a generator's includes the time it was suspended.
    """

    __slots__ = ("__weakref__", "_file", "_numbers", "_runs")

    def __init__(self, file: str, numbers: tuple[int, ...], runs: timing.Runs) -> None:
        self._file = file
        self._numbers = numbers
        self._runs = runs

    # Reckoned when somebody asks, and only what is asked for.

    @property
    def lines(self) -> tuple[LineTime, ...]:
        """The lines that ran, in the order of the file."""
        return tuple(
            LineTime(line, count, total, longest, self._file)
            for number, line in enumerate(self._numbers)
            for count, total, longest in [timing.line_totals(self._runs, number)]
            if count
        )

    @property
    def worst(self) -> LineTime | None:
        """The line that took most in all; None if no line ended."""
        number, count, total, longest = timing.worst(self._runs)
        if not count:
            return None
        return LineTime(self._numbers[number], count, total, longest, self._file)

    @property
    def slowest(self) -> LineTime | None:
        """The line with the longest single run; None if no line ended."""
        line = max(self.lines, key=_longest, default=None)
        return None if line is None else _Slowest(*line)

    def __iter__(self) -> Iterator[LineTime]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __str__(self) -> str:
        rows = [("line", "runs", "total", "longest", "")]
        rows += [
            (
                str(each.line),
                f"{each.count:,}",
                duration(each.total),
                duration(each.longest),
                each.source,
            )
            for each in self.lines
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join(
                [*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[4]]
            )
            for row in rows
        )

    def __repr__(self) -> str:
        return f"<Hotspots of {len(self)} lines, worst: {self.worst}>"


def reporter(code: CodeType) -> Callable[[tuple[int, ...], timing.Runs], Hotspots]:
    """What makes hotspots of the measured times of a function with this code."""
    return functools.partial(Hotspots, code.co_filename)


def duration(seconds: float) -> str:
    """A duration with three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"
