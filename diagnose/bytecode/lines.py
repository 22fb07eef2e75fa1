"""Which line of the file an event ``line:N`` or ``line:+K`` is on, and which lines can be named."""

from __future__ import annotations

import re
from types import CodeType
from typing import TYPE_CHECKING

from diagnose.bytecode import assembly, flow
from diagnose.errors import ProbeError
from diagnose.source_lines import source_line

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["number", "probeable"]

_DEF = re.compile(r"(async\s+)?def\s")


def number(code: CodeType, event: str) -> int:
    """The number in the file of the line that an event ``line:N`` or ``line:+K`` is on.

    Raises:
        ProbeError: no code of the function begins there.
    """
    given = event.partition(":")[2]
    line = int(given)
    if given.startswith("+"):
        line += _def_line(code)
    starts = flow.line_starts(assembly.read(code))
    if line in starts:
        return line
    inside = [
        f"{nested.co_qualname} (line {nested.co_firstlineno})"
        for nested in _nested(code)
        if line in flow.line_starts(assembly.read(nested))
    ]
    what = f"line {line} of {code.co_filename!r}"
    if inside:
        message = (
            f"{what} is not run by {code.co_qualname!r} itself, but by functions made in it: "
            f"{', '.join(inside)}; probe one of them by a path of its own, or take a line that "
            f"{code.co_qualname!r} runs: {_nearest(starts, line)}"
        )
        raise ProbeError(message, code="line-elsewhere")
    message = (
        f"{what} has no code of {code.co_qualname!r}; the nearest lines that have some: "
        f"{_nearest(starts, line)}"
    )
    raise ProbeError(message, code="line-without-code")


_LINES_SHOWN = 40


def probeable(code: CodeType, event: str) -> list[int]:
    """The lines of the file that an event ``line:N`` can be on.

    Of many, those nearest to the line of ``event``, or the first ones.
    """
    starts = flow.line_starts(assembly.read(code))
    kind, _, number = event.partition(":")
    middle = code.co_firstlineno
    if kind == "line":
        middle = int(number) + (_def_line(code) if number.startswith("+") else 0)
    return sorted(sorted(starts, key=lambda each: abs(each - middle))[:_LINES_SHOWN])


def _def_line(code: CodeType) -> int:
    """The line of the ``def``: a code object knows only that of its first decorator."""
    first = code.co_firstlineno
    last = min(flow.line_starts(assembly.read(code)), default=first)
    for number in range(first, last + 1):
        if _DEF.match(source_line(code.co_filename, number)):
            return number
    return first


def _nested(code: CodeType) -> list[CodeType]:
    found = []
    for value in code.co_consts:
        if isinstance(value, CodeType):
            found += [value, *_nested(value)]
    return found


def _nearest(starts: Mapping[int, object], line: int) -> str:
    nearest = sorted(sorted(starts, key=lambda each: (abs(each - line), each))[:4])
    return ", ".join(map(str, nearest)) or "there are none"
