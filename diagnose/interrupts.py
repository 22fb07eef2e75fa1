"""Which exceptions belong to the program, although they came up while our code ran.

A signal handler runs between any two instructions of the main thread; what it raises (a time
limit of celery, rq or pytest-timeout, a ``KeyboardInterrupt``) comes out of whatever ran just
then. Another thread may inject an exception (``PyThreadState_SetAsyncExc``), a tracer may raise
one (a debugger's ``quit``), a hub may switch back with one (gevent). None of these is an
instrument's mistake.

CPython keeps no note of where an exception came from; its traceback is all there is:

- Python calls signal handlers with ``(number, frame)`` and tracers with ``(frame, event, …)``,
  where ``frame`` is the one that was interrupted, the callee's ``f_back``.
- It calls them, and raises what was injected, at the begin of a function, at a jump back and
  after calls of C functions; at the first two, nothing else can raise.
- What it raises itself comes from no ``raise`` statement and, if injected, has no arguments.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import opcode
import signal
import sys
import threading
from types import CodeType, FrameType, FunctionType, MethodType, TracebackType
from typing import Any

from diagnose.introspection import read_args, read_traceback

__all__ = ["belongs_to_program", "is_signal_handler"]

# Taken now: one of them may itself be probed, and then its module has a stand-in for it.
_get_ident, _main_thread, _getsignal = threading.get_ident, threading.main_thread, signal.getsignal
_signals = frozenset(map(int, signal.valid_signals()))
_events = frozenset({"call", "line", "return", "exception", "opcode", "c_call", "c_return"})


def _numbers(*names: str) -> frozenset[int]:
    return frozenset(opcode.opmap[name] for name in names if name in opcode.opmap)


_RESUME, _RAISES = opcode.opmap["RESUME"], _numbers("RAISE_VARARGS", "RERAISE")
_PAUSES = _numbers(
    "RESUME",
    "JUMP_BACKWARD",
    "POP_JUMP_BACKWARD_IF_TRUE",
    "POP_JUMP_BACKWARD_IF_FALSE",
    "POP_JUMP_BACKWARD_IF_NONE",
    "POP_JUMP_BACKWARD_IF_NOT_NONE",
)
_CALLS = _numbers("CALL", "PRECALL", "CALL_KW", "CALL_FUNCTION_EX", "IMPORT_NAME")
_DELEGATES = _numbers("SEND", "FOR_ITER")
if sys.version_info < (3, 12):  # its specialised forms jump, too
    _CALLS |= _numbers("COMPARE_OP")
_RESUME_SHOWS_THROW = sys.version_info >= (3, 13)
_RAISED_BY_C = frozenset({"asyncio.exceptions", "builtins", "_queue", "queue"})
"""Modules of exceptions that C functions raise without arguments."""
_MOST_ENTRIES = 10_000


def belongs_to_program(error: BaseException) -> bool:
    """Whether an exception that was caught in our code is one that the program has to get.

    What can't be told from an injected exception, and is taken for one: an exception of a class
    made in Python which the call of a C function raises without arguments
    (``future.result()`` after ``set_exception(Own())``). What is not recognised: an exception by
    which code that an expression called replaced the program's.

    Args:
        error: with its traceback, from the frame that caught it on.
    """
    entries = _entries(error)
    if not entries:
        return False
    if issubclass(type(error), KeyboardInterrupt) and _operation(entries[-1])[0] not in _RAISES:
        return True  # the usual handler of Ctrl-C, which has no frame
    if _is_injected(error, entries):
        return True
    # The first frame is the one that caught it: it may be that of a handler that is probed.
    if any(_is_tracer(entry.tb_frame) for entry in entries[1:]):
        return True
    if _get_ident() != _main_thread().ident:
        return False
    codes = _codes_of_handlers()
    return any(
        entry.tb_frame.f_code in codes or _is_handler(entry.tb_frame) or _is_pause(before)
        for before, entry in itertools.pairwise(entries)
    )


def is_signal_handler(frame: FrameType) -> bool:
    """Whether a frame of this thread is that of a handler which a signal called."""
    is_main = _get_ident() == _main_thread().ident
    return is_main and (frame.f_code in _codes_of_handlers() or _is_handler(frame))


def _entries(error: BaseException) -> list[TracebackType]:
    entries: list[TracebackType] = []
    entry = read_traceback(error)
    while entry is not None and len(entries) < _MOST_ENTRIES:
        entries.append(entry)
        entry = entry.tb_next
    return entries


def _operation(entry: TracebackType) -> tuple[int, int]:
    code, place = entry.tb_frame.f_code.co_code, entry.tb_lasti
    return (code[place], code[place + 1]) if 0 <= place < len(code) - 1 else (-1, 0)


def _is_pause(entry: TracebackType) -> bool:
    """Whether it is at an instruction that raises only what others want raised."""
    operation, argument = _operation(entry)
    if operation == _RESUME and _RESUME_SHOWS_THROW and argument & 3:
        return False  # of a generator: ``throw()`` looks like that
    return operation in _PAUSES


def _is_injected(error: BaseException, entries: list[TracebackType]) -> bool:
    innermost, kind = entries[-1], type(error)
    operation, _ = _operation(innermost)
    is_bare = not read_args(error)
    if _is_pause(innermost):
        return True  # whatever its class makes of its arguments
    if operation in _RAISES or kind.__dict__.get("__module__", "builtins") in _RAISED_BY_C:
        return False
    if operation == _RESUME:
        is_delegated = len(entries) > 1 and _operation(entries[-2])[0] in _DELEGATES
        return is_bare and (is_delegated or not issubclass(kind, Exception))
    # Of a class that is no Exception also with arguments: a hub's time-out (gevent).
    return operation in _CALLS and (is_bare or not issubclass(kind, Exception))


def _codes_of_handlers() -> set[CodeType]:
    found: set[CodeType] = set()
    for number in _signals:
        handler: Any = _getsignal(number)
        if handler is None or isinstance(handler, int):
            continue
        while type(handler) is functools.partial:
            handler = handler.func
        if type(handler) is MethodType:
            handler = handler.__func__
        elif type(handler) is not FunctionType:
            handler = type(handler).__dict__.get("__call__")
        if type(handler) is FunctionType:
            found.add(handler.__code__)
    return found


def _given(frame: FrameType) -> list[Any]:
    """The first positional arguments of a frame, as its variables are now."""
    code, values = frame.f_code, frame.f_locals
    given = [values.get(name) for name in code.co_varnames[: min(code.co_argcount, 5)]]
    if code.co_flags & inspect.CO_VARARGS:
        rest = values.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount])
        if type(rest) is tuple:
            given += rest[:5]
    return given


def _is_handler(frame: FrameType) -> bool:
    """Whether it was called as signal handlers are."""
    back, given = frame.f_back, _given(frame)
    return back is not None and any(
        second is back and type(first) is int and first in _signals
        for first, second in itertools.pairwise(given)
    )


def _is_tracer(frame: FrameType) -> bool:
    """Whether it was called as tracers and profilers are."""
    back, given = frame.f_back, _given(frame)
    return back is not None and any(
        first is back and type(second) is str and second in _events
        for first, second in itertools.pairwise(given)
    )
