"""What is put into a function and finds no room there is passed over.

At the recursion limit the function fits and what it is to call does not: the error of
*entering* a handler is raised in the function itself, where no handler's ``try`` is around it.
So an entry of the exception table is, which costs nothing until then. What it leads to is
instructions alone: a call would find no room either.

What a signal handler raises there goes on, unless it finds no room itself.
"""

from __future__ import annotations

import opcode
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diagnose.bytecode.assembly import Handler, Instruction
from diagnose.bytecode.emitter import NOWHERE, Emitter
from diagnose.bytecode.flow import depths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from diagnose.bytecode.emitter import Constants

__all__ = ["LOST", "Room", "Rooms"]


class _Lost:
    def __rsub__(self, _: object) -> Any:
        raise RecursionError


LOST = _Lost()
"""Stands for a value that was to be had by a call, and there was no room for it.

To subtract it is passed over as that call was, so that ``elapsed`` need not be looked at first.
"""

_op = opcode.opmap
_CHECK_EXC_MATCH, _RERAISE, _NOP = _op["CHECK_EXC_MATCH"], _op["RERAISE"], _op["NOP"]
_POP_TOP, _CALL = _op["POP_TOP"], _op["CALL"]
_CALLS = _op.get("PRECALL", _CALL)
_NO_ROOM = (RecursionError, MemoryError)

_TELLS_OF_TARGETS: bool = sys.version_info[:2] == (3, 12)
"""Tracers are told of the line of what is jumped to, unless what ran before is on it too; behind a
call that is not known."""


def _stub(constants: Constants, depth: int, around: Handler | None) -> tuple[Emitter, Handler]:
    """Begin what is to be done for want of room, with as much on the stack; what leads there."""
    stub = Emitter(constants, depth + 2, NOWHERE, around)
    stub.constant(_NO_ROOM)
    stub.add(_CHECK_EXC_MATCH)
    passed_over = Instruction(_POP_TOP, 0, NOWHERE, around)
    stub.jump_if(passed_over)
    stub.add(_RERAISE, 1)
    stub.out.append(passed_over)
    stub.depth -= 1
    stub.pop()
    return stub, Handler(stub.out[0], depth, keeps_place=True)


class Room:
    """A stretch of what an emitter writes: it is done, or it is passed over."""

    def __init__(self, emit: Emitter) -> None:
        self._emit = emit
        self._around = emit.handler
        self.stub, emit.handler = _stub(emit.constants, emit.depth, emit.handler)
        self._passed_over = self.stub.add(_NOP)

    def leave_if_lost(self) -> None:
        """Drop the topmost value; pass over the rest if it is :data:`LOST`."""
        self._emit.jump_if_is(LOST, self._passed_over)

    def end(self) -> None:
        """End a stretch that leaves the stack as it was."""
        self._emit.handler = self._around
        self._keep_line(1)
        last = self._emit.out[-1]
        # It can't raise, and on 3.13 what the function's next instruction raises goes where this
        # one's does, if that is the error of entering a frame (of a property, say).
        last.handler = self._around
        if last.opcode == _POP_TOP:  # it needs something to drop
            self.stub.constant(None)
        self.stub.jump_back(last)

    def end_with(self, instead: object) -> tuple[Instruction, int]:
        """End a stretch that pushes a value: ``instead``, if it is passed over.

        Returns:
            A jump, and how many instructions are in front of what it is to lead to.
        """
        self._emit.handler = self._around
        added = self._keep_line(2)
        self.stub.constant(instead)
        return self.stub.jump_back(self._emit.out[-1]), len(self._emit.out) - (added > 0)

    def _keep_line(self, count: int) -> int:
        if not _TELLS_OF_TARGETS or self._emit.location == NOWHERE:
            return 0
        for _ in range(count):
            self._emit.add(_NOP)
        return count


class Rooms:
    """All that may be passed over in one function.

    Attributes:
        stubs: what is to stand behind all else.
    """

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._landings: list[tuple[Instruction, int]] = []
        self._spared: dict[int, Callable[[Emitter], None]] = {}
        self.stubs: list[Emitter] = []

    @contextmanager
    def passing(self, emit: Emitter) -> Iterator[Room]:
        """What is written in it leaves the stack as it was."""
        room = Room(emit)
        self.stubs.append(room.stub)
        yield room
        room.end()

    @contextmanager
    def pushing(self, emit: Emitter, instead: object) -> Iterator[Room]:
        """What is written in it, at the function's begin, pushes a value: else ``instead``."""
        room = Room(emit)
        self.stubs.append(room.stub)
        yield room
        self._landings.append(room.end_with(instead))

    def land(self, begin: Sequence[Instruction]) -> None:
        """Say what was written at the function's begin, and its first instruction behind it."""
        for jump, number in self._landings:
            jump.target = begin[number]

    def spare(self, written: Iterable[Instruction], instead: Callable[[Emitter], None]) -> None:
        """Let each call in it be passed over; ``instead`` writes what pushes another result."""
        self._spared |= {id(one): instead for one in written if one.opcode == _CALLS}

    def spare_calls(self, listing: Sequence[Instruction]) -> None:
        """Do what :meth:`spare` was told, now that all is there but the stubs."""
        if not self._spared:
            return
        depth = depths([*listing, *(one for stub in self.stubs for one in stub.out)])
        for number, one in enumerate(listing):
            if id(one) not in self._spared or id(one) not in depth:
                continue
            # On 3.11 either of two instructions calls, and the first takes the arguments.
            after = number + (1 if one.opcode == _CALL else 2)
            begin = depth[id(one)] - one.argument - 2
            stub, handler = _stub(self._constants, begin, one.handler)
            # The one before too: on 3.13 its handler is taken for the error of entering a frame.
            for each in listing[number - 1 : after]:
                each.handler = handler
            self._spared[id(one)](stub)
            stub.jump_back(listing[after])
            self.stubs.append(stub)
