"""What can be said of code without running it: how deep the stack is, where lines begin."""

from __future__ import annotations

import dis
import opcode
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from diagnose.bytecode.assembly import Instruction

__all__ = [
    "JUMPS",
    "LEAVES",
    "RESUMES_AT",
    "begins_body",
    "depths",
    "effect",
    "line_starts",
    "may_be_set",
    "plain_cells",
    "stored",
]

_op = opcode.opmap
# What leaves the function, or goes to a handler; and what goes on elsewhere in any case.
LEAVES = frozenset(
    _op[name]
    for name in ("RETURN_VALUE", "RETURN_CONST", "RERAISE", "RAISE_VARARGS")
    if name in _op
)
JUMPS = frozenset(
    _op[name] for name in ("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT")
)
_END_ASYNC_FOR, _RESUME = _op["END_ASYNC_FOR"], _op["RESUME"]

RESUMES_AT = 7 if sys.version_info >= (3, 15) else 3
"""What part of a RESUME's argument says where it stands: 0 at the begin, others behind yields.

4, since 3.15: where the call of a generator expression begins, which asks for the iterator; the
body begins with another one, as in all generators.
"""

# The interpreter jumps over these or expects them just where they are: nothing may be put
# in front of them, so no line begins there either (as sys.monitoring has it too).
_BOUND = frozenset(
    _op[name]
    for name in (
        "RESUME",
        "END_FOR",
        "END_SEND",
        "POP_ITER",
        "END_ASYNC_FOR",
        "CLEANUP_THROW",
        "NOT_TAKEN",
        # coverage passes over a line that begins with this one
        "PUSH_EXC_INFO",
    )
    if name in _op
)
_BINDS_NEXT = frozenset(_op[name] for name in ("KW_NAMES", "PRECALL", "YIELD_VALUE") if name in _op)
if sys.version_info >= (3, 13):
    _BINDS_NEXT |= {_op["END_FOR"]}  # the POP_TOP behind it is jumped over too


def effect(instruction: Instruction, *, jump: bool = False) -> int:
    """By how many values the stack is deeper behind it; or where it jumps to."""
    operation = instruction.opcode
    # What dis of these versions says about the two is not what they do.
    if sys.version_info < (3, 13) and operation == _op["RETURN_GENERATOR"]:
        return 1
    if sys.version_info[:2] == (3, 12) and operation == _op["SEND"] and jump:
        return 0
    argument = instruction.argument if operation >= dis.HAVE_ARGUMENT else None
    return dis.stack_effect(operation, argument, jump=jump)


def depths(listing: Sequence[Instruction]) -> dict[int, int]:
    """How deep the stack is before each instruction that can be reached, by its ``id``.

    Raises:
        ValueError: two ways to one instruction differ in it.
    """
    following = dict(zip(map(id, listing), listing[1:], strict=False))
    found: dict[int, int] = {}
    waiting = [(listing[0], 0)]
    while waiting:
        one, depth = waiting.pop()
        while True:
            known = found.setdefault(id(one), depth)
            if known != depth:
                message = f"the stack is {known} or {depth} deep at {one!r}"
                raise ValueError(message)
            if one.handler is not None:
                place = one.handler.target.entry
                if id(place) not in found:
                    waiting.append((place, one.handler.depth + one.handler.keeps_place + 1))
            if one.target is not None and one.opcode != _END_ASYNC_FOR:
                waiting.append((one.target.entry, depth + effect(one, jump=True)))
            if one.opcode in LEAVES or one.opcode in JUMPS:
                break
            depth += effect(one, jump=False)
            one = following[id(one)]
            if found.get(id(one)) == depth:
                break
    return found


_SAVES = _op.get("LOAD_FAST_AND_CLEAR")
_MAKE_CELL, _SWAP, _STORE_FAST = _op["MAKE_CELL"], _op["SWAP"], _op["STORE_FAST"]
_STORES_TWO, _STORES_FIRST = _op.get("STORE_FAST_STORE_FAST"), _op.get("STORE_FAST_LOAD_FAST")


def plain_cells(
    listing: Sequence[Instruction], cells: Collection[int], depth: Mapping[int, int]
) -> dict[int, frozenset[int]]:
    """By the ``id`` of an instruction: which of these cells' slots hold no cell before it.

    A comprehension that is inlined (3.12 and later) puts the value of a slot that it needs for a
    variable of its own on the stack, and back in the end; meanwhile there is a plain value in the
    slot, or none. Instructions that are not there have none of these slots.
    """
    if _SAVES is None or not any(one.opcode == _SAVES and one.argument in cells for one in listing):
        return {}
    following = dict(zip(map(id, listing), listing[1:], strict=False))
    found: dict[int, frozenset[int]] = {}
    # What is saved, by its place on the stack.
    waiting: list[tuple[Instruction, frozenset[int], dict[int, int]]] = [
        (listing[0], frozenset(), {})
    ]
    seen: set[tuple[int, frozenset[int]]] = set()
    while waiting:
        one, plain, saved = waiting.pop()
        if (id(one), plain) in seen or id(one) not in depth:
            continue
        seen.add((id(one), plain))
        found[id(one)] = found.get(id(one), frozenset()) | plain
        if one.handler is not None:
            below = {at: number for at, number in saved.items() if at < one.handler.depth}
            waiting.append((one.handler.target, plain, below))
        top, saved = depth[id(one)] - 1, dict(saved)
        if one.opcode == _SAVES and one.argument in cells:
            plain |= {one.argument}
            saved[top + 1] = one.argument
        elif one.opcode == _MAKE_CELL:
            plain -= {one.argument}
        elif one.opcode == _SWAP:
            pair = top, top + 1 - one.argument
            values = saved.pop(pair[0], None), saved.pop(pair[1], None)
            saved |= {
                at: number
                for at, number in zip(pair[::-1], values, strict=True)
                if number is not None
            }
        elif one.opcode in {_STORE_FAST, _STORES_FIRST, _STORES_TWO}:
            numbers: tuple[int, ...] = (one.argument,)
            if one.opcode != _STORE_FAST:
                numbers = (one.argument >> 4, one.argument & 15)
            for number in numbers[: 1 if one.opcode == _STORES_FIRST else 2]:
                if saved.pop(top, None) == number:
                    plain -= {number}
                top -= 1
        if one.target is not None:
            waiting.append((one.target, plain, saved))
        if one.opcode not in LEAVES and one.opcode not in JUMPS:
            waiting.append((following[id(one)], plain, saved))
    return found


def stored(one: Instruction) -> set[int]:
    """The numbers of the local variables that an instruction gives values."""
    if one.opcode == _STORE_FAST:
        return {one.argument}
    if one.opcode == _STORES_TWO:
        return {one.argument >> 4, one.argument & 15}
    return {one.argument >> 4} if one.opcode == _STORES_FIRST else set()


_DELETES = frozenset({_op["DELETE_FAST"], _SAVES} - {None})


def may_be_set(listing: Sequence[Instruction], given: Iterable[int], count: int) -> dict[int, int]:
    """By the ``id`` of an instruction: which of the first ``count`` variables may have a value.

    Args:
        listing: a function's instructions.
        given: the numbers of variables that have one at the begin.
        count: of variables; number N is bit N of what is found.
    """
    following = dict(zip(map(id, listing), listing[1:], strict=False))
    found: dict[int, int] = {}
    waiting = [(listing[0], sum(1 << number for number in given))]
    while waiting:
        one, now = waiting.pop()
        while True:
            known = found.get(id(one))
            now |= known or 0
            if now == known:
                break
            found[id(one)] = now
            if one.handler is not None:
                waiting.append((one.handler.target, now))
            if one.opcode in _DELETES:
                now &= ~(1 << one.argument)
            for number in stored(one):
                now |= 1 << number if number < count else 0
            if one.target is not None:
                waiting.append((one.target, now))
            if one.opcode in LEAVES or one.opcode in JUMPS or id(one) not in following:
                break
            one = following[id(one)]
    return found


def begins_body(instruction: Instruction) -> bool:
    """Whether the body of the function begins behind it."""
    return instruction.opcode == _RESUME and not instruction.argument & RESUMES_AT


def line_starts(listing: Sequence[Instruction]) -> dict[int, list[Instruction]]:
    """Where each line begins to run, by its number in the file.

    An expression that spans lines comes back to the first of them for the call itself; that
    is no new run of the line. A line may begin in several places, of which one is on each
    way through the function (``finally`` is there twice, a loop's condition too).
    """
    starts: dict[int, list[Instruction]] = {}
    line: int | None = None
    before: Instruction | None = None
    targets = {id(one.target) for one in listing if one.target is not None}
    targets |= {id(one.handler.target) for one in listing if one.handler is not None}
    begun = False
    for one in listing:
        here, last = one.location[:2]
        bound = one.opcode in _BOUND or (before is not None and before.opcode in _BINDS_NEXT)
        before = one
        if here is None:
            if id(one) in targets:
                line = None
            continue
        if begins_body(one):
            begun, line = True, None
            continue
        if not begun or bound:
            continue
        if here != line:
            comes_back = line is not None and last is not None and here < line <= last
            if not comes_back:
                starts.setdefault(here, []).append(one)
            line = here
    return starts
