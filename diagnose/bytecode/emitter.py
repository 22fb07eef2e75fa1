"""Writes instructions behind each other, in the form that this CPython wants.

Calls are written in three steps (``begin_call``, values, ``end_call``), since the place of
the NULL that goes with the callable is another one in each version.
"""

from __future__ import annotations

import dis
import opcode
import sys
import time
from typing import TYPE_CHECKING

from diagnose.bytecode.assembly import Handler, Instruction

if TYPE_CHECKING:
    from types import CodeType

    from diagnose.bytecode.assembly import Location

__all__ = ["NOWHERE", "TELLS_OF_TARGETS", "Constants", "Emitter"]

NOWHERE: Location = (None, None, None, None)
"""The location of what stands on no line: tracers and debuggers pass over it."""

_NULL_COMES_FIRST = sys.version_info < (3, 13)
TELLS_OF_TARGETS: bool = sys.version_info[:2] == (3, 12)
"""Tracers are told of the line of what is jumped to, unless what ran before is on it too; behind a
call that is not known."""
_ENTERS_ONE_BEFORE = sys.version_info >= (3, 13)
"""The error of entering a frame goes to the handler of the instruction before the call."""
_op = opcode.opmap
_CALL, _PRECALL, _PUSH_NULL = _op["CALL"], _op.get("PRECALL"), _op["PUSH_NULL"]
_COPY, _SWAP, _POP_TOP = _op["COPY"], _op["SWAP"], _op["POP_TOP"]
_LOAD_CONST, _LOAD_DEREF = _op["LOAD_CONST"], _op["LOAD_DEREF"]
_LOAD_FAST, _NOP = _op["LOAD_FAST"], _op["NOP"]
# On 3.11 LOAD_FAST is the one that looks whether there is a value.
_LOAD_FAST_CHECK = _op.get("LOAD_FAST_CHECK", _LOAD_FAST)
_TO_BOOL, _NOT_TAKEN = _op.get("TO_BOOL"), _op.get("NOT_TAKEN")
_JUMP_IF_TRUE = _op.get("POP_JUMP_IF_TRUE") or _op["POP_JUMP_FORWARD_IF_TRUE"]
_JUMP_IF_FALSE = _op.get("POP_JUMP_IF_FALSE") or _op["POP_JUMP_FORWARD_IF_FALSE"]
_JUMP_FORWARD, _NOP = _op["JUMP_FORWARD"], _op["NOP"]
_POP_EXCEPT, _PUSH_EXC_INFO = _op["POP_EXCEPT"], _op["PUSH_EXC_INFO"]
# Signals are not looked for on the way back.
_JUMP_BACK = _op["JUMP_BACKWARD_NO_INTERRUPT"]
_BINARY_OP, _ADD, _SUBTRACT = _op["BINARY_OP"], 0, 10
_BUILD_TUPLE, _IS_OP = _op["BUILD_TUPLE"], _op["IS_OP"]
_UNPACK, _RAISE_VARARGS = _op["UNPACK_SEQUENCE"], _op["RAISE_VARARGS"]
_STORE_FAST, _STORE_DEREF = _op["STORE_FAST"], _op["STORE_DEREF"]
_GET_LEN = _op["GET_LEN"]
_GET_AWAITABLE, _SEND, _END_SEND = _op["GET_AWAITABLE"], _op["SEND"], _op.get("END_SEND")
_YIELD, _RESUME = _op["YIELD_VALUE"], _op["RESUME"]
# On 3.12: how many handlers are around; with one alone, `close()` would not raise there.
_YIELDS_TO_AWAIT = {(3, 11): 0, (3, 12): 2}.get(sys.version_info[:2], 1)
_RESUMES_AFTER_AWAIT = 3
# Beside what is iterated over stands how far it is, for lists and tuples; else NULL.
_INDEX_TO_SEND_TO = sys.version_info >= (3, 15)


def _compiled(expression: str, *names: str) -> dis.Instruction:
    """The instruction that this version's compiler makes of an operator."""
    code = compile(expression, "", "eval")
    return next(one for one in dis.get_instructions(code) if one.opname in names)


_ITEM = _compiled("a[b]", "BINARY_SUBSCR", "BINARY_OP")
_GREATER = _compiled("a > b", "COMPARE_OP")

# How to read time.perf_counter. On Linux the system's call gives the same with less arithmetic,
# and since 3.13 it is a kind of call that is specialized.
_READ_CLOCK: tuple[object, ...] = (time.perf_counter,)
if sys.version_info >= (3, 13) and (
    time.get_clock_info("perf_counter").implementation == "clock_gettime(CLOCK_MONOTONIC)"
):
    _READ_CLOCK = (time.clock_gettime, time.CLOCK_MONOTONIC)


class Constants:
    """The objects that are added to a code object's constants."""

    def __init__(self, code: CodeType) -> None:
        self._first = len(code.co_consts)
        self._places: dict[int, int] = {}
        self.added: list[object] = []

    def place(self, value: object) -> int:
        """The number of a constant, by identity."""
        place = self._places.get(id(value))
        if place is None:
            place = self._places[id(value)] = self._first + len(self.added)
            self.added.append(value)
        return place


class Emitter:
    """Instructions one after the other, and how deep the stack is after them.

    Attributes:
        out: what was written.
        depth: of the stack, now.
        deepest: that it was.
        location, handler: of what is written next.
    """

    def __init__(
        self, constants: Constants, depth: int, location: Location, handler: Handler | None = None
    ) -> None:
        self.constants = constants
        self.out: list[Instruction] = []
        self.depth = self.deepest = depth
        self.location = location
        self.handler = handler
        self._landing: list[Instruction] = []

    def add(self, operation: int, argument: int = 0, change: int = 0) -> Instruction:
        """One instruction that changes the stack's depth by ``change``."""
        one = Instruction(operation, argument, self.location, self.handler)
        self.out.append(one)
        if self._landing:
            self.end(one)
        if change:
            self.depth = depth = self.depth + change
            if depth > self.deepest:  # noqa: PLR1730  (max() takes long, and there are many)
                self.deepest = depth
        return one

    def place(self, one: Instruction) -> None:
        """Put an instruction here that others lead to already."""
        self.out.append(one)
        self.end(one)

    def land(self, jump: Instruction) -> None:
        """Let a jump that stands elsewhere lead to what comes next here."""
        if TELLS_OF_TARGETS:
            self.add(_NOP)
            jump.target = self.add(_NOP)
        else:
            self._landing.append(jump)

    def end(self, following: Instruction) -> None:
        """Say what comes next."""
        for jump in self._landing:
            jump.target = following
        self._landing.clear()

    def constant(self, value: object) -> None:
        """Push an object, as it is."""
        self.add(_LOAD_CONST, self.constants.place(value), 1)

    def local(self, index: int, *, is_cell: bool, is_sure: bool) -> None:
        """Push a variable; where it is not sure to have a value, that may raise."""
        if is_cell:
            self.add(_LOAD_DEREF, index, 1)
        else:
            self.add(_LOAD_FAST if is_sure else _LOAD_FAST_CHECK, index, 1)

    def copy(self, position: int) -> None:
        """Push what stands at ``position``, counted from the bottom of the stack."""
        self.add(_COPY, self.depth - position, 1)

    def pop(self) -> None:
        """Drop the topmost value."""
        self.add(_POP_TOP, 0, -1)

    def drop_second(self) -> None:
        """Drop the value below the topmost one."""
        self.swap()
        self.pop()

    def swap(self, place: int = 2) -> None:
        """Let the topmost value and the one at ``place``, counted from it, change places."""
        self.add(_SWAP, place)

    def unpack(self, count: int) -> None:
        """Replace the topmost value, a tuple, by its items; the first becomes the topmost."""
        self.add(_UNPACK, count, count - 1)

    def store(self, index: int, *, is_cell: bool) -> None:
        """Give a variable the topmost value."""
        self.add(_STORE_DEREF if is_cell else _STORE_FAST, index, -1)

    def raise_it(self) -> None:
        """Raise the topmost value."""
        self.add(_RAISE_VARARGS, 1, -1)

    def go(self, target: Instruction) -> None:
        """Go on at ``target``, further on."""
        self.add(_JUMP_FORWARD).target = target

    def sink(self, count: int) -> None:
        """Let the topmost value change places with the ``count`` values below it, as they are."""
        for place in range(count + 1, 1, -1):
            self.swap(place)

    def begin_call(self, function: object) -> None:
        """Begin to call ``function``; its arguments are pushed next."""
        if _NULL_COMES_FIRST:
            self.add(_PUSH_NULL, 0, 1)
            self.constant(function)
        else:
            self.constant(function)
            self.add(_PUSH_NULL, 0, 1)

    def end_call(self, count: int = 0) -> None:
        """Call with the ``count`` topmost values; the result takes their place."""
        if _ENTERS_ONE_BEFORE and self.out[-1].handler is not self.handler:
            self.add(_NOP)
        if _PRECALL is not None:
            self.add(_PRECALL, count)
        self.add(_CALL, count, -count - 1)

    def call(self, function: object) -> None:
        """Push the result of a call without arguments."""
        self.begin_call(function)
        self.end_call()

    def wait(self) -> None:
        """Await the topmost value, in a coroutine; what it comes to takes its place."""
        self.add(_GET_AWAITABLE)
        if _INDEX_TO_SEND_TO:
            self.add(_PUSH_NULL, 0, 1)
        self.constant(None)
        send = self.add(_SEND)
        self.add(_YIELD, _YIELDS_TO_AWAIT)
        self.add(_RESUME, _RESUMES_AFTER_AWAIT)
        self.jump_back(send)
        send.target = self.add(
            _NOP if _END_SEND is None else _END_SEND, 0, -2 if _INDEX_TO_SEND_TO else -1
        )

    def read_clock(self) -> None:
        """Push what ``time.perf_counter`` says."""
        function, *arguments = _READ_CLOCK
        self.begin_call(function)
        for argument in arguments:
            self.constant(argument)
        self.end_call(len(arguments))

    def item(self, number: int) -> None:
        """Replace the topmost value, a list, by its item of that number."""
        self.constant(number)
        self.add(_ITEM.opcode, _ITEM.arg or 0, -1)

    def is_longer(self, limit: int) -> None:
        """Push whether the topmost value, a list, has more than ``limit`` items."""
        self.add(_GET_LEN, 0, 1)
        self.constant(limit)
        self.add(_GREATER.opcode, _GREATER.arg or 0, -1)

    def subtract(self) -> None:
        """Replace the two topmost values by their difference."""
        self.add(_BINARY_OP, _SUBTRACT, -1)

    def concatenate(self) -> None:
        """Replace the two topmost values by their sum."""
        self.add(_BINARY_OP, _ADD, -1)

    def tuple_of(self, count: int) -> None:
        """Replace the ``count`` topmost values by a tuple of them."""
        if not count:
            # The empty tuple is immortal: BUILD_TUPLE, which the compiler never uses for it, would
            # let its reference count go down by one each time (3.14 and 3.15).
            self.constant(())
            return
        self.add(_BUILD_TUPLE, count, 1 - count)

    def jump_if(self, target: Instruction, *, is_bool: bool = False) -> None:
        """Drop the topmost value, and go on at ``target``, further on, if it is true."""
        if _TO_BOOL is not None and not is_bool:
            self.add(_TO_BOOL)
        self.add(_JUMP_IF_TRUE, 0, -1).target = target
        if _NOT_TAKEN is not None:
            self.add(_NOT_TAKEN)

    def jump_if_is(self, value: object, target: Instruction) -> None:
        """Drop the topmost value, and go on at ``target``, further on, if it is ``value``."""
        self.constant(value)
        self.add(_IS_OP, 0, -1)
        self.jump_if(target, is_bool=True)

    def choose(self, usual: Emitter, other: Emitter, *, is_bool: bool = False) -> None:
        """Drop the topmost value, and go on with ``other`` if it is true.

        Both begin where this one is then, leave the stack equally deep and come together
        again. All jumps lead forward: on 3.11 tracers are told of a line once more after each
        jump back.

        Args:
            usual: what is done if it is false.
            other: what is done if it is true.
            is_bool: the topmost value is a ``bool`` for sure.
        """
        over = Instruction(_NOP, 0, self.location, self.handler)
        if _TO_BOOL is not None and not is_bool:
            self.add(_TO_BOOL)
        self.add(_JUMP_IF_FALSE, 0, -1).target = usual.out[0] if usual.out else over
        if _NOT_TAKEN is not None:
            self.add(_NOT_TAKEN)
        self.out += other.out
        if usual.out:
            leave = self.add(_JUMP_FORWARD)
            leave.target = over
            other.end(leave)
        else:
            other.end(over)
        self.out += usual.out
        usual.end(over)
        self.place(over)
        self.depth = usual.depth
        self.deepest = max(self.deepest, usual.deepest, other.deepest)

    def jump_back(self, target: Instruction | None = None) -> Instruction:
        """Go on at ``target``, further up; None: at what is given to :meth:`land`."""
        jump = self.add(_JUMP_BACK)
        jump.target = target
        return jump

    def guard_error(self, *, is_handled: bool = False) -> Emitter:
        """Let what is raised by what is written next take the place of the topmost value.

        That is an error on its way to a handler, and what comes after is the handler's begin.
        It is written where :meth:`end_guard` says, so that it gets there whatever happens: it
        is what leaves the ``with`` block, or puts back the error that was handled before.

        Args:
            is_handled: the error is the one that ``sys.exception()`` gives already, and below it
                is the one before.

        Returns:
            What is to be handed to :meth:`end_guard`, and to stand behind all else.
        """
        stub = Emitter(self.constants, self.depth + 1, self.location, self.handler)
        stub.drop_second()
        if is_handled:
            stub.swap()
            stub.add(_POP_EXCEPT, 0, -1)
            stub.add(_PUSH_EXC_INFO, 0, 1)
        self.handler = Handler(stub.out[0], self.depth, keeps_place=False)
        return stub

    def end_guard(self, stub: Emitter) -> None:
        """End what :meth:`guard_error` began."""
        self.handler = stub.handler
        stub.jump_back(self.add(_NOP))
