"""Instructions of a code object, as a list that can be added to.

All that was there is moved as it is: only jumps, the exception table and the table of lines
are pointed to where things are then. (The library ``bytecode`` computes the exception table
anew, and gets it wrong for about one function in 400, which crashes the process.)

Instructions: https://docs.python.org/3/library/dis.html. Tables: ``Objects/locations.md`` and
``Objects/exception_handling_notes.txt`` of CPython 3.11 (``InternalDocs/`` from 3.14 on).
"""

from __future__ import annotations

import opcode
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import CodeType

__all__ = ["Handler", "Instruction", "read", "write"]

Location = tuple[int | None, int | None, int | None, int | None]
"""First line, last line, first column, end column; None where there is none."""

_opmap, _opname = opcode.opmap, opcode.opname
_EXTENDED_ARG = _opmap["EXTENDED_ARG"]

# A list by opcode until 3.12; a mapping by name since 3.13 (a dict, since 3.15 a frozendict).
_cache_table: Any = opcode._inline_cache_entries  # type: ignore[attr-defined]
CACHES: tuple[int, ...] = tuple(
    _cache_table[number] if isinstance(_cache_table, list) else _cache_table.get(name, 0)
    for number, name in enumerate(_opname[:256])
)
"""By opcode: how many units of inline cache follow."""

_BYTE = 0xFF
_JUMPS = frozenset(number for number in opcode.hasjrel if number <= _BYTE)
_FORWARD = frozenset(number for number in _JUMPS if "BACKWARD" not in _opname[number])
_FORWARD -= {_opmap["END_ASYNC_FOR"]}  # it says where its loop begins
_BACKWARD = _JUMPS - _FORWARD


class Handler(NamedTuple):
    """Where an exception goes to.

    Attributes:
        target: the first instruction of the handler.
        depth: how many values stay on the stack.
        keeps_place: whether the place that raised is put on the stack below the exception.
    """

    target: Instruction
    depth: int
    keeps_place: bool


class Instruction:
    """One instruction, without its caches and prefixes.

    Attributes:
        opcode: as in :mod:`opcode`.
        argument: 0 where there is none; of a jump, what was read.
        location: of the source.
        target: of a jump.
        handler: where what it raises goes to; None: out of the function.
        front: what was put in front of it, for those who jump here too; or None.
    """

    # Most have none of these, and there are many.
    target: Instruction | None = None
    front: Instruction | None = None
    prefixes = 0
    start = 0

    def __init__(
        self,
        opcode: int,
        argument: int,
        location: Location,
        handler: Handler | None = None,
    ) -> None:
        self.opcode = opcode
        self.argument = argument
        self.location = location
        self.handler = handler
        if argument > _BYTE:
            self.prefixes = (argument.bit_length() - 1) >> 3

    def become(self, opcode: int, argument: int = 0) -> None:
        """Let another instruction stand here: the caches go with it."""
        self.opcode, self.argument = opcode, argument
        self.prefixes = 0 if argument <= _BYTE else (argument.bit_length() - 1) >> 3

    @property
    def end(self) -> int:
        """The unit behind it and its caches."""
        return self.start + self.prefixes + 1 + CACHES[self.opcode]

    @property
    def entry(self) -> Instruction:
        """Where those who jump here arrive."""
        return self if self.front is None else self.front

    def __repr__(self) -> str:
        where = "" if self.target is None else f" -> {self.target.start}"
        return f"<{self.start} {_opname[self.opcode]} {self.argument}{where}>"


def read(code: CodeType) -> list[Instruction]:
    """The instructions of ``code``; ``start`` is the unit that each begins at."""
    raw, locations = code.co_code, list(code.co_positions())
    # Code of other generators may have no table of lines, or too short a one.
    locations += [(None, None, None, None)] * ((len(raw) >> 1) - len(locations))
    listing: list[Instruction] = []
    at_unit: dict[int, Instruction] = {}
    jumps: list[tuple[Instruction, int]] = []
    unit = begin = argument = 0
    count = len(raw) >> 1
    while unit < count:
        operation = raw[2 * unit]
        argument = argument << 8 | raw[2 * unit + 1]
        if operation == _EXTENDED_ARG:
            unit += 1
            continue
        one = Instruction(operation, argument, locations[unit])
        one.start = begin
        one.prefixes = unit - begin
        at_unit[begin] = one
        listing.append(one)
        unit += 1 + CACHES[operation]
        if operation in _FORWARD:
            jumps.append((one, unit + argument))
        elif operation in _BACKWARD:
            jumps.append((one, unit - argument))
        begin, argument = unit, 0
    for one, place in jumps:
        one.target = at_unit[place]
    if code.co_exceptiontable:
        _read_handlers(code.co_exceptiontable, listing, at_unit)
    return listing


def _read_handlers(
    table: bytes, listing: list[Instruction], at_unit: dict[int, Instruction]
) -> None:
    entries = _read_entries(table)
    start, end, handler = next(entries, (0, 0, (0, 0)))
    current = None
    for instruction in listing:
        while instruction.start >= end and end:
            start, end, handler = next(entries, (0, 0, (0, 0)))
            current = None
        if not end:
            return
        if instruction.start >= start:
            if current is None:
                place, depth = handler
                current = Handler(at_unit[place], depth >> 1, bool(depth & 1))
            instruction.handler = current


def _read_entries(table: bytes) -> Iterator[tuple[int, int, tuple[int, int]]]:
    values = _read_big(table)
    for start in values:
        end = start + next(values)
        yield start, end, (next(values), next(values))


def _read_big(table: bytes) -> Iterator[int]:
    value = 0
    for byte in table:
        value = value << 6 | byte & 0x3F
        if not byte & 0x40:
            yield value
            value = 0


def write(
    code: CodeType,
    listing: Sequence[Instruction],
    *,
    constants: Iterable[object] = (),
    stack_size: int = 0,
) -> CodeType:
    """Make a code object like ``code`` of other instructions.

    Args:
        code: names, constants, flags and the like are taken from it.
        listing: jumps and handlers lead to instructions in it.
        constants: come after those of ``code``.
        stack_size: if greater than that of ``code``.
    """
    _lay_out(listing)
    raw = bytearray()
    lines = bytearray()
    line, place, begin = code.co_firstlineno, listing[0].location, 0
    for one in listing:
        operation, argument, location = one.opcode, one.argument, one.location
        if location is not place and location != place:
            line = _write_location(lines, line, place, one.start - begin)
            place, begin = location, one.start
        if one.prefixes:
            for number in range(one.prefixes, 0, -1):
                raw.append(_EXTENDED_ARG)
                raw.append(argument >> 8 * number & 0xFF)
        raw.append(operation)
        raw.append(argument & 0xFF)
        if caches := CACHES[operation]:
            raw += bytes(2 * caches)
    _write_location(lines, line, place, (len(raw) >> 1) - begin)
    return code.replace(
        co_code=bytes(raw),
        co_consts=(*code.co_consts, *constants),
        co_linetable=bytes(lines),
        co_exceptiontable=_write_handlers(listing),
        co_stacksize=max(code.co_stacksize, stack_size),
    )


def _lay_out(listing: Sequence[Instruction]) -> None:
    """Give each instruction its place, and jumps their arguments."""
    jumps = [one for one in listing if one.opcode in _JUMPS]
    for one in jumps:
        if one.target is None:
            message = f"{one!r} leads nowhere"
            raise ValueError(message)
    while True:
        place = 0
        for one in listing:
            one.start = place
            place += one.prefixes + 1 + CACHES[one.opcode]
        fits = True
        for one in jumps:
            after = one.end
            target = one.target.entry.start  # type: ignore[union-attr]
            one.argument = target - after if one.opcode in _FORWARD else after - target
            if one.argument < 0:
                message = f"{one!r} jumps the wrong way"
                raise ValueError(message)
            # Never fewer than before, so that laying out comes to an end.
            needed = (one.argument.bit_length() - 1) >> 3
            if needed > one.prefixes:
                one.prefixes = needed
                fits = False
        if fits:
            return


def _write_location(table: bytearray, before: int, location: Location, units: int) -> int:
    """Add entries of up to eight units to a ``co_linetable``; the line that it is at then."""
    line, end_line, column, end_column = location
    while units > 0:
        length = min(units, 8) - 1
        units -= 8
        if line is None:
            table.append(0x80 | 15 << 3 | length)
            continue
        change = line - before
        before = line
        signed = change << 1 if change >= 0 else -change << 1 | 1
        if end_line is None or column is None or end_column is None or end_line < line:
            table.append(0x80 | 13 << 3 | length)
            _append_little(table, signed)
            continue
        table.append(0x80 | 14 << 3 | length)
        _append_little(table, signed)
        _append_little(table, end_line - line)
        _append_little(table, column + 1)
        _append_little(table, end_column + 1)
    return before


def _append_little(table: bytearray, value: int) -> None:
    while value >> 6:
        table.append(0x40 | value & 0x3F)
        value >>= 6
    table.append(value)


def _write_handlers(listing: Sequence[Instruction]) -> bytes:
    table = bytearray()
    current: Handler | None = None
    begin = 0
    for one in listing:
        if one.handler is not current and one.handler != current:
            if current is not None:
                _append_entry(table, begin, one.start, current)
            current, begin = one.handler, one.start
    if current is not None:
        _append_entry(table, begin, listing[-1].end, current)
    return bytes(table)


def _append_entry(table: bytearray, begin: int, end: int, handler: Handler) -> None:
    first = len(table)
    depth = handler.depth << 1 | handler.keeps_place
    for value in (begin, end - begin, handler.target.entry.start, depth):
        if value >> 6:
            for shift in range((value.bit_length() - 1) // 6 * 6, 0, -6):
                table.append(0x40 | value >> shift & 0x3F)
        table.append(value & 0x3F)
    table[first] |= 0x80
