"""Measures how long each line of one call takes, by instructions between its lines.

Where a run of a line ends, the time since the last such place goes to a list of that line's:
one call of the clock and a few instructions that touch the stack alone. Each call has lists of
its own, kept at the bottom of its stack, so threads and recursion do not meet. A loop now and
then folds the lists, so that they stay short.

However many lines there are, two values are kept: debuggers that jump need a shallow stack
(:mod:`diagnose.bytecode.weaving`).
"""

from __future__ import annotations

import opcode
import sys
import time
from typing import TYPE_CHECKING, Any

from diagnose.bytecode.emitter import Emitter
from diagnose.bytecode.flow import JUMPS, LEAVES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diagnose.bytecode.assembly import Instruction
    from diagnose.bytecode.emitter import Constants

__all__ = ["Runs", "Timing", "line_totals", "worst"]

_op = opcode.opmap
Runs = list[list[Any]]

# Where these lead to is bound to them.
_FIXED = frozenset(_op[name] for name in ("SEND", "END_ASYNC_FOR", "FOR_ITER") if name in _op) - (
    {_op["FOR_ITER"]} if sys.version_info < (3, 12) else set()
)
_NO_ENTRY = frozenset(_op[name] for name in ("END_ASYNC_FOR", "CLEANUP_THROW") if name in _op)
_PUSH_EXC_INFO = _op["PUSH_EXC_INFO"]
_JUMP_FORWARD, _JUMP_BACKWARD = _op["JUMP_FORWARD"], _op["JUMP_BACKWARD"]
# 3.11 has conditional jumps in both directions.
_FORWARD_TWIN = {
    number: _op[name.replace("BACKWARD", "FORWARD")]
    for name, number in _op.items()
    if name.startswith("POP_JUMP_BACKWARD")
}
_LIST_APPEND, _BUILD_LIST = _op["LIST_APPEND"], _op["BUILD_LIST"]

_FOLD_AT = 4096
"""A list that is longer makes a loop fold all of them."""

_clock = time.perf_counter


class Timing:
    """The instructions that measure lines, for one function.

    Args:
        constants: of the code that they go into.
        body: the function's instructions, behind its begin.
        depth: how deep the stack is before each, without what is kept.

    Attributes:
        lines: the numbers in the file of the lines that are measured.
        runs: where the list of all lists is on the stack.
    """

    def __init__(
        self, constants: Constants, body: Sequence[Instruction], depth: Mapping[int, int]
    ) -> None:
        self._constants = constants
        self._body = body
        self._depth = depth
        self._line_of: dict[int, int] = {}
        line = next((one.location[0] for one in body if one.location[0] is not None), 0)
        for one in body:
            line = one.location[0] or line
            self._line_of[id(one)] = line
        self.lines = tuple(sorted(set(self._line_of.values())))
        self.runs = self._kept = 0
        self.stubs: list[Emitter] = []
        self.deepest = 0

    # --- what is kept: a list of lists, one for each line and one for what was folded; and the
    # --- time at which the last run ended.

    @property
    def _last(self) -> int:
        return self.runs + 1

    def enter(self, emit: Emitter, there: int) -> int:
        """Push what is kept, below what is ``there`` already; the number of values."""
        begin = emit.depth
        self.runs = begin - there
        emit.add(_BUILD_LIST, 0, 1)
        for _ in range(len(self.lines) + 1):
            emit.add(_BUILD_LIST, 0, 1)
            emit.add(_LIST_APPEND, 1, -1)
        emit.sink(there)
        emit.read_clock()
        emit.sink(there)
        return emit.depth - begin

    def end_run(self, emit: Emitter, one: Instruction, following: Instruction | None) -> None:
        """Give the time since the last run to the line of ``one``; then comes ``following``."""
        line = self._line_of[id(one)]
        emit.copy(self.runs)
        emit.item(self.lines.index(line))
        emit.read_clock()
        # The last time minus now: in this order it takes the fewest instructions.
        emit.swap(emit.depth - self._last)
        emit.copy(self._last)
        emit.subtract()
        emit.add(_LIST_APPEND, 1, -1)
        # Whatever runs again and again goes back to an earlier line each time.
        if following is not None and self._line_of[id(following)] < line:
            self._fold_if_long(emit)
        emit.pop()

    def _fold_if_long(self, emit: Emitter) -> None:
        """Fold the lists if the topmost one has become long."""
        emit.is_longer(_FOLD_AT)
        short = Emitter(self._constants, emit.depth - 1, emit.location)
        folding = Emitter(self._constants, short.depth, emit.location, emit.handler)
        folding.begin_call(_fold)
        folding.copy(self.runs)
        folding.end_call(1)
        folding.pop()
        emit.choose(short, folding, is_bool=True)

    def raised(self, emit: Emitter) -> None:
        """Give the time since the last run to the line that raised; the error is topmost."""
        error = emit.depth - 1
        emit.begin_call(_note_error)
        emit.copy(error)
        emit.copy(self._last)
        emit.constant(self.lines)
        emit.copy(self.runs)
        emit.end_call(4)
        emit.swap(emit.depth - self._last)
        emit.pop()

    def weave(
        self, kept: int, ahead: dict[int, list[Instruction]], behind: dict[int, list[Instruction]]
    ) -> None:
        """Put in what ends runs, apart from returns.

        Args:
            kept: how many values are kept on the stack, those of others included.
            ahead: by instruction, what stands in front of it, also for those who jump there.
            behind: what stands behind it, for those who come from it.
        """
        self._kept = kept
        handlers = {id(one.handler.target) for one in self._body if one.handler is not None}
        following = [*self._body[1:], None]
        for one, after in zip(self._body, following, strict=True):
            depth = self._depth.get(id(one))
            if depth is None:
                continue
            depth += kept
            if id(one) in handlers and one.opcode == _PUSH_EXC_INFO:
                # Behind it: coverage passes over a line that begins with this instruction.
                emit = self._emitter(depth + 1, one)
                stub = emit.guard_error(is_handled=True)
                self.raised(emit)
                emit.end_guard(stub)
                self.stubs.append(stub)
                behind[id(one)] = emit.out
                self.deepest = max(self.deepest, emit.deepest)
            elif id(one) in handlers and one.opcode not in _NO_ENTRY:
                emit = self._emitter(depth, one)
                stub = emit.guard_error()
                self.raised(emit)
                emit.end_guard(stub)
                self.stubs.append(stub)
                self._put(ahead, one, emit)
            if one.target is not None:
                self._weave_jump(one, depth, ahead)
            if after is None or one.opcode in LEAVES or one.opcode in JUMPS:
                continue
            if self._line_of[id(after)] != self._line_of[id(one)] and id(after) in self._depth:
                emit = self._emitter(self._depth[id(after)] + kept, one)
                if after.handler is not None and (
                    one.handler is None or after.handler.depth > one.handler.depth
                ):
                    emit.handler = after.handler  # a "with" block has been entered
                self.end_run(emit, one, after)
                behind.setdefault(id(one), []).extend(emit.out)
                self.deepest = max(self.deepest, emit.deepest)

    def _weave_jump(
        self, one: Instruction, depth: int, ahead: dict[int, list[Instruction]]
    ) -> None:
        target = one.target
        if target is None or one.opcode in _FIXED:
            return
        if self._line_of[id(target)] == self._line_of[id(one)]:
            return
        if one.opcode in JUMPS:
            emit = self._emitter(depth, one)
            self.end_run(emit, one, target)
            self._put(ahead, one, emit)
            return
        # It may go on here too: what ends the run stands elsewhere, on the way to the target.
        stub = self._emitter(self._depth[id(target)] + self._kept, one)
        self.end_run(stub, one, target)
        self.stubs.append(stub)
        goes_back = one.opcode in _FORWARD_TWIN
        one.become(_FORWARD_TWIN.get(one.opcode, one.opcode), one.argument)
        stub.add(_JUMP_BACKWARD if goes_back else _op["JUMP_BACKWARD_NO_INTERRUPT"]).target = target
        one.target = stub.out[0]

    def _emitter(self, depth: int, one: Instruction) -> Emitter:
        # On the same line, or on the one before of what has none: no tracer sees it begin twice.
        line = self._line_of[id(one)]
        location = one.location if one.location[0] is not None else (line, line, None, None)
        return Emitter(self._constants, depth, location, one.handler)

    def _put(self, ahead: dict[int, list[Instruction]], one: Instruction, emit: Emitter) -> None:
        there = ahead.setdefault(id(one), [])
        there += emit.out
        one.front = there[0]
        self.deepest = max(self.deepest, emit.deepest)


# --- what is called from inside the code ---


def _note_error(error: BaseException, last: float, lines: tuple[int, ...], runs: Runs) -> float:
    """Give the time since ``last`` to the line of the calling frame that raised."""
    now = _clock()
    trace = error.__traceback__
    # The entry in front is that of the frame that the exception came to last: the caller's.
    if trace is not None and trace.tb_lineno in lines:
        times = runs[lines.index(trace.tb_lineno)]
        times.append(last - now)
        if len(times) > _FOLD_AT:
            _fold(runs)
    return now


# Times in the lists are negative, those that were folded are not.


def _fold(runs: Runs) -> None:
    """Empty the lists; the last one of them holds what was in them."""
    *lists, folded = runs
    if not folded:
        folded[:] = [(0, 0.0, 0.0)] * len(lists)
    for number, times in enumerate(lists):
        if times:
            folded[number] = line_totals(runs, number)
            times.clear()


def line_totals(runs: Runs, number: int) -> tuple[int, float, float]:
    """How often one line ran, how long in all, how long at most, in seconds."""
    times = runs[number]
    count, total, longest = runs[-1][number] if runs[-1] else (0, 0.0, 0.0)
    if times:
        longest = max(longest, -min(times))
    return count + len(times), total - sum(times), longest


def worst(runs: Runs) -> tuple[int, int, float, float]:
    """The number of the line that took most in all (0 if none ran), and its totals."""
    if runs[-1]:
        _fold(runs)
        number = max(range(len(runs[-1])), key=lambda number: runs[-1][number][1])
        return number, *runs[-1][number]
    totals = [*map(sum, runs)]
    total = min(totals)
    number = totals.index(total)
    times = runs[number]
    return number, len(times), -total, -min(times, default=0.0)
