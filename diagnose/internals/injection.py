"""``end`` on 3.11: a call written into the byte code before each return.

The copy's code gets five instructions in front of every ``RETURN_VALUE`` (the value on
the stack stays below them) with the location of the return itself, so that tracebacks,
debuggers and coverage see the lines they saw before. All else is moved as it is: jumps
and the exception table are only pointed to where their targets are then. (The library
``bytecode`` computes them anew, and gets the table wrong for about one function in 400,
which crashes the process.)

Instructions: https://docs.python.org/3.11/library/dis.html#opcode-CALL
Tables: ``Objects/locations.md`` and ``Objects/exception_handling_notes.txt`` of CPython 3.11.
"""

from __future__ import annotations

import opcode
from dataclasses import dataclass
from sys import _getframe
from typing import TYPE_CHECKING

from diagnose.errors import ProbeError
from diagnose.trampoline import copy_function

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FunctionType

    from diagnose.internals import Fire, Watch

    Location = tuple[int | None, int | None, int | None, int | None]

__all__ = ["make"]


@dataclass(slots=True, eq=False)
class _Instruction:
    opcode: int
    argument: int
    location: Location
    target: int | None = None
    """Of a jump: a unit of the code as it was."""
    start: int = 0
    prefixes: int = 0
    """Units of ``EXTENDED_ARG`` in front of it."""

    @property
    def caches(self) -> int:
        return opcode._inline_cache_entries[self.opcode]  # type: ignore[attr-defined,no-any-return]

    @property
    def units(self) -> int:
        return self.prefixes + 1 + self.caches

    def fit(self) -> None:
        # Never fewer than before, so that laying out comes to an end.
        self.prefixes = max(self.prefixes, (self.argument.bit_length() - 1) // 8, 0)

    def encode(self) -> Iterator[int]:
        for number in range(self.prefixes, 0, -1):
            yield from (opcode.EXTENDED_ARG, self.argument >> 8 * number & 0xFF)
        yield from (self.opcode, self.argument & 0xFF)
        yield from bytes(2 * self.caches)


def _read(code: CodeType) -> dict[int, _Instruction]:
    """The instructions, by the unit that each begins at."""
    raw, locations = code.co_code, list(code.co_positions())
    found: dict[int, _Instruction] = {}
    start = argument = prefixes = 0
    while start + prefixes < len(raw) // 2:
        unit = start + prefixes
        operation, argument = raw[2 * unit], argument << 8 | raw[2 * unit + 1]
        if operation == opcode.EXTENDED_ARG:
            prefixes += 1
            continue
        one = found[start] = _Instruction(operation, argument, locations[unit], prefixes=prefixes)
        if operation in opcode.hasjrel:
            backward = "BACKWARD" in opcode.opname[operation]
            one.target = unit + 1 + (-argument if backward else argument)
        start += one.units
        argument = prefixes = 0
    return found


def _inject(code: CodeType, function: object) -> CodeType:
    """Write ``function()`` in front of each return."""
    operations = opcode.opmap
    calls = [
        (operations["PUSH_NULL"], 0),
        (operations["LOAD_CONST"], len(code.co_consts)),
        (operations["PRECALL"], 0),
        (operations["CALL"], 0),
        (operations["POP_TOP"], 0),
    ]
    # What pointed at an instruction points at the first of those that stand there now.
    first: dict[int, _Instruction] = {}
    listing: list[_Instruction] = []
    for unit, instruction in _read(code).items():
        begin = len(listing)
        if instruction.opcode == operations["RETURN_VALUE"]:
            listing += [_Instruction(*call, instruction.location) for call in calls]
        listing.append(instruction)
        first[unit] = listing[begin]

    size = _lay_out(listing, first)
    begins = {unit: instruction.start for unit, instruction in first.items()}
    begins[len(code.co_code) // 2] = size
    return code.replace(
        co_code=bytes(byte for instruction in listing for byte in instruction.encode()),
        co_consts=(*code.co_consts, function),
        co_linetable=bytes(_locations(listing, code.co_firstlineno)),
        co_exceptiontable=bytes(_exceptions(code.co_exceptiontable, begins)),
        co_stacksize=code.co_stacksize + 2,
    )


def _lay_out(listing: list[_Instruction], first: dict[int, _Instruction]) -> int:
    """Give each instruction its place, and jumps their arguments; the number of units."""
    while True:
        size = 0
        for instruction in listing:
            instruction.fit()
            instruction.start = size
            size += instruction.units
        before = [instruction.prefixes for instruction in listing]
        for instruction in listing:
            if instruction.target is not None:
                after = instruction.start + instruction.prefixes + 1
                instruction.argument = abs(first[instruction.target].start - after)
                instruction.fit()
        if before == [instruction.prefixes for instruction in listing]:
            return size


def _locations(listing: list[_Instruction], line: int) -> Iterator[int]:
    """Write a ``co_linetable``: entries of up to eight units."""
    for instruction in listing:
        begin, end, column, end_column = instruction.location
        for done in range(0, instruction.units, 8):
            length = min(8, instruction.units - done) - 1
            if begin is None:
                yield 0x80 | 15 << 3 | length
                continue
            change = begin - line
            line = begin
            signed = change << 1 if change >= 0 else -change << 1 | 1
            if end is None or column is None or end_column is None:
                yield 0x80 | 13 << 3 | length
                yield from _little(signed)
                continue
            yield 0x80 | 14 << 3 | length
            for value in (signed, end - begin, column + 1, end_column + 1):
                yield from _little(value)


def _little(value: int) -> Iterator[int]:
    while value >> 6:
        yield 0x40 | value & 0x3F
        value >>= 6
    yield value


def _exceptions(table: bytes, begins: dict[int, int]) -> Iterator[int]:
    """Write a ``co_exceptiontable`` with the same entries for the places as they are now."""
    values = _read_big(table)
    for start in values:
        end, target, depth = start + next(values), next(values), next(values)
        new = begins[start]
        yield from _big(new, first=0x80)
        for value in (begins[end] - new, begins[target], depth):
            yield from _big(value)


def _read_big(table: bytes) -> Iterator[int]:
    value = 0
    for byte in table:
        value = value << 6 | byte & 0x3F
        if not byte & 0x40:
            yield value
            value = 0


def _big(value: int, *, first: int = 0) -> Iterator[int]:
    for shift in range((max(value.bit_length(), 1) - 1) // 6 * 6, 0, -6):
        yield 0x40 | first | value >> shift & 0x3F
        first = 0
    yield first | value & 0x3F


@dataclass(slots=True)
class _Box:
    fire: Fire | None = None


class InjectionWatch:
    """See :class:`diagnose.internals.Watch`."""

    sees_errors = False
    coverage: str | None = None

    def __init__(self, function: FunctionType, code: CodeType) -> None:
        # A box, and not this object: code objects take no part in garbage collection, and
        # this one would lead back to itself.
        box = self._box = _Box()

        def at_return() -> None:
            fire = box.fire
            if fire is not None:
                fire(_getframe(1).f_locals)

        try:
            injected = _inject(code, at_return)
        except Exception as error:
            message = f"no call can be written into the code of {function!r}: {error}"
            raise ProbeError(message, code="end-unavailable") from error
        self.original = copy_function(function, injected)

    def arm(self, fire: Fire) -> None:
        self._box.fire = fire

    def disarm(self) -> None:
        self._box.fire = None


def make(function: FunctionType, code: CodeType) -> Watch:
    """Make a watch; raises ProbeError when the code can't be rewritten."""
    return InjectionWatch(function, code)
