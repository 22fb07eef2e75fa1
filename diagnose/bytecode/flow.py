"""What can be said of code without running it: how deep the stack is, where lines begin."""

from __future__ import annotations

import dis
import opcode
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diagnose.bytecode.assembly import Instruction

__all__ = ["JUMPS", "LEAVES", "RESUMES_AT", "begins_body", "depths", "effect", "line_starts"]

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
