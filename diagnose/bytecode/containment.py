"""Contains what calls of ours raise: the function goes on as if they had not been there.

Around each call is an entry of the exception table, which costs nothing until something is
raised. It leads to instructions that ask a *judge* whether that is the end of it. So it is for
every mistake of ours; what belongs to the program (:mod:`diagnose.interrupts`) is raised again.

At the recursion limit the function fits, and neither what it is to call nor the judge does: the
error of *entering* a call is raised in the function itself. So around the call of the judge is an
entry that leads to instructions alone.
"""

from __future__ import annotations

import opcode
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diagnose.bytecode.assembly import Handler, Instruction
from diagnose.bytecode.emitter import TELLS_OF_TARGETS, Emitter
from diagnose.bytecode.flow import depths
from diagnose.interrupts import belongs_to_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from diagnose.bytecode.assembly import Location
    from diagnose.bytecode.emitter import Constants

    Judge = Callable[[BaseException], bool]

__all__ = ["LOST", "Containment", "LostError", "Stretch", "all_of", "drop"]


def drop(error: BaseException) -> bool:
    """A judge that lets nothing out but what belongs to the program."""
    try:
        return not belongs_to_program(error)
    except Exception:  # noqa: BLE001 - an audit hook may forbid to look at frames
        return True


def all_of(judges: Iterable[Judge]) -> Judge:
    """One judge for what several hooks need: each of them is told."""
    first, *others = dict.fromkeys(judges) or (drop,)
    if not others:
        return first

    def judge(error: BaseException) -> bool:
        return all([each(error) for each in (first, *others)])  # noqa: C419 - each is told

    return judge


class LostError(BaseException):
    """Skips what needs a value that is lost."""


class _Lost:
    def __rsub__(self, _: object) -> Any:
        raise LostError


LOST = _Lost()
"""Stands for a value that was to be had by a call which raised.

Subtracting it raises, so ``elapsed`` need not be looked at first.
"""

_op = opcode.opmap
_CHECK_EXC_MATCH, _RERAISE, _NOP = _op["CHECK_EXC_MATCH"], _op["RERAISE"], _op["NOP"]
_POP_TOP, _CALL = _op["POP_TOP"], _op["CALL"]
_CALLS = _op.get("PRECALL", _CALL)
_NO_ROOM = (RecursionError, MemoryError, LostError)


class Stretch:
    """Instructions that are done to their end, or skipped if one of them raises.

    Args:
        depth: of the stack, at their begin.
        location: of what deals with it.
        around: where goes what is raised again.
        judge: called with what was raised; True: skip the rest, False: raise it again.
    """

    def __init__(
        self,
        constants: Constants,
        depth: int,
        location: Location,
        around: Handler | None,
        judge: Judge,
    ) -> None:
        self._around = around
        # On the stack: the place that raised, and the error.
        self.stub = stub = Emitter(constants, depth + 2, location, around)
        self._skip = Instruction(_POP_TOP, 0, location, around)
        outer = Emitter(constants, depth + 4, location, around)
        drop_both = Instruction(_POP_TOP, 0, location, around)
        self._match(outer, drop_both)
        outer.place(drop_both)
        outer.depth -= 1
        outer.pop()
        stub.handler = Handler(outer.out[0], depth + 2, keeps_place=True)
        stub.begin_call(judge)
        stub.copy(depth + 1)
        stub.end_call(1)
        stub.handler = around
        stub.jump_if(self._skip, is_bool=True)
        stub.add(_RERAISE, 1)
        stub.out += outer.out
        stub.deepest = max(stub.deepest, outer.deepest)
        stub.place(self._skip)
        stub.depth = depth + 1
        stub.pop()
        self.handler = Handler(stub.out[0], depth, keeps_place=True)
        self._skipped = stub.add(_NOP)

    @staticmethod
    def _match(emit: Emitter, target: Instruction) -> None:
        """Go on at ``target`` if the topmost error is want of room; else raise it again."""
        emit.constant(_NO_ROOM)
        emit.add(_CHECK_EXC_MATCH)
        emit.jump_if(target, is_bool=True)
        emit.add(_RERAISE, 1)

    def skip_if_lost(self, emit: Emitter) -> None:
        """Drop the topmost value; skip the rest if it is :data:`LOST`."""
        emit.jump_if_is(LOST, self._skipped)

    def end(self, emit: Emitter) -> None:
        """End a stretch that leaves the stack as it was."""
        emit.handler = self._around
        if TELLS_OF_TARGETS:
            emit.add(_NOP)
        last = emit.out[-1]
        # It can't raise, and on 3.13 what the function's next instruction raises goes where this
        # one's does, if that is the error of entering a frame (of a property, say).
        last.handler = self._around
        if last.opcode == _POP_TOP:  # it needs something to drop
            self.stub.constant(None)
        self.stub.jump_back(last)

    def end_with(self, emit: Emitter, instead: object) -> None:
        """End a stretch that pushes a value: ``instead``, if it is skipped."""
        emit.handler = self._around
        self.stub.constant(instead)
        emit.land(self.stub.jump_back())


class Containment:
    """All stretches of one function.

    Attributes:
        stubs: what is to stand behind all else.
    """

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._single: dict[int, tuple[Callable[[Emitter], None], Judge]] = {}
        self.stubs: list[Emitter] = []

    def _begin(self, emit: Emitter, judge: Judge) -> Stretch:
        stretch = Stretch(self._constants, emit.depth, emit.location, emit.handler, judge)
        self.stubs.append(stretch.stub)
        emit.handler = stretch.handler
        return stretch

    @contextmanager
    def passing(self, emit: Emitter, judge: Judge) -> Iterator[Stretch]:
        """What is written in it leaves the stack as it was."""
        stretch = self._begin(emit, judge)
        yield stretch
        stretch.end(emit)

    @contextmanager
    def pushing(self, emit: Emitter, instead: object, judge: Judge) -> Iterator[Stretch]:
        """What is written in it pushes a value: or else ``instead``."""
        stretch = self._begin(emit, judge)
        yield stretch
        stretch.end_with(emit, instead)

    def each_call(
        self, written: Iterable[Instruction], instead: Callable[[Emitter], None], judge: Judge
    ) -> None:
        """Let each call in it be a stretch; ``instead`` writes what pushes another result."""
        self._single |= {id(one): (instead, judge) for one in written if one.opcode == _CALLS}

    def finish(self, listing: Sequence[Instruction]) -> None:
        """Do what :meth:`each_call` was told, now that all is there but the stubs."""
        if not self._single:
            return
        depth = depths([*listing, *(one for stub in self.stubs for one in stub.out)])
        for number, one in enumerate(listing):
            if id(one) not in self._single or id(one) not in depth:
                continue
            # On 3.11 either of two instructions calls, and the first takes the arguments.
            after = number + (1 if one.opcode == _CALL else 2)
            begin = depth[id(one)] - one.argument - 2
            instead, judge = self._single[id(one)]
            stretch = Stretch(self._constants, begin, one.location, one.handler, judge)
            # The one before too: on 3.13 its handler is taken for the error of entering a frame.
            for each in listing[number - 1 : after]:
                each.handler = stretch.handler
            instead(stretch.stub)
            stretch.stub.jump_back(listing[after])
            self.stubs.append(stretch.stub)
