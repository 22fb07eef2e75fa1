"""What random programs are made of besides their own text: marks, bounds, odd objects.

All that a program does is seen through what stands here. Nothing here is probed, and what
expressions of probes may call changes nothing.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import sys
import types
from dataclasses import dataclass

__all__ = [
    "AsyncManager",
    "Box",
    "Color",
    "Manager",
    "Odd",
    "Point",
    "Ticks",
    "Token",
    "collect",
    "contextlib",
    "functools",
    "go_on",
    "here",
    "itertools",
    "mark",
    "noted",
    "numbers",
    "passed",
    "pause",
    "raises",
    "raises_odd",
    "random",
    "run",
    "same",
    "sys",
    "twice",
    "watched",
]  # fmt: skip

FUEL = 40
MOST_MARKS = 400


class _State:
    """Of one run: what was marked, what is left to be done, and what a probe's look found."""

    def __init__(self):
        self.log = []
        self.fuel = FUEL
        self.strange = []
        self.module = ""


state = _State()


def reset(module):
    """Begin a run."""
    state.__init__()
    state.module = module


# --- marks ------------------------------------------------------------------------------------


def mark(number, value=None):
    """Note a value at a place of the program; pass it on."""
    if len(state.log) < MOST_MARKS:
        state.log.append((number, show(value)))
    else:
        state.fuel = 0
    return 1


def go_on():
    """Whether there may be one more call, or turn of a ``while``: this is why programs end."""
    state.fuel -= 1
    return state.fuel > 0


def here():
    """Mark which lines the program stands at."""
    return mark("lines", _lines(sys._getframe(1)))


def _lines(frame):
    lines = []
    while frame is not None:
        if frame.f_globals.get("__name__") == state.module:
            lines.append((frame.f_code.co_qualname, frame.f_lineno))
        frame = frame.f_back
    return tuple(lines)


PLAIN = (int, float, str, bytes, bool, type(None), type(...))


def show(value, depth=3):
    """A value as text that is the same in each run."""
    kind = type(value)
    if kind in PLAIN:
        return repr(value)[:80]
    if depth == 0:
        return kind.__name__
    if kind in (list, tuple):
        return f"{kind.__name__}[{', '.join(show(each, depth - 1) for each in value[:9])}]"
    if kind in (set, frozenset):
        return f"{kind.__name__}[{', '.join(sorted(show(each, depth - 1) for each in value))}]"
    if isinstance(value, dict):
        pairs = ((show(key, 1), show(each, depth - 1)) for key, each in value.items())
        return f"dict[{', '.join(f'{key}: {each}' for key, each in sorted(pairs))}]"
    if isinstance(value, BaseException):
        return show_error(value, depth)
    if isinstance(value, Box):
        return f"{kind.__name__}{show(vars(value), depth - 1)}"
    return f"{kind.__name__} {getattr(value, '__qualname__', '')}"


def show_error(error, depth=3):
    """An exception: its kind, arguments, traceback and chain."""
    if error is None or depth == 0:
        return ""
    entries = []
    trace = error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if is_exact(error, trace) else "?"
        entries.append(f"{trace.tb_frame.f_code.co_qualname}:{line}")
        trace = trace.tb_next
    parts = [f"{type(error).__name__}{show(error.args, 1)} at {' > '.join(entries)}"]
    if isinstance(error, BaseExceptionGroup):
        parts += [show_error(each, depth - 1) for each in error.exceptions]
    for name in ("__cause__", "__context__"):
        if getattr(error, name) is not None:
            parts.append(f"{name} {show_error(getattr(error, name), depth - 1)}")
    return f"<{'; '.join(parts)}>"


def is_exact(error, trace):
    """Whether an entry's line is the same in each run.

    Where CPython 3.11 and 3.12 have made one instruction of two (STORE_FAST and LOAD_FAST), which
    depends on how often they ran, a variable without a value is missed at the first of them.
    """
    is_last = trace.tb_next is None
    return not (is_last and isinstance(error, UnboundLocalError) and sys.version_info < (3, 13))


# --- what programs use ------------------------------------------------------------------------


class Odd(BaseException):
    """No ``Exception``."""


class Token:
    """Marks when it goes."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        mark("gone", self.number)


class Box:
    """Holds attributes."""

    def __init__(self, **values):
        vars(self).update(values)


@dataclass
class Point:
    """For patterns."""

    x: int
    y: int = 0


class Color:
    """For patterns that are values."""

    RED = 1
    BLUE = "blue"


class Manager:
    """Marks what comes, and takes a ``ValueError`` or not."""

    def __init__(self, number):
        self.number = number

    def __enter__(self):
        mark("enter", self.number)
        if self.number == 9:
            raise KeyError("enter")
        return self.number

    def __exit__(self, kind, error, trace):
        mark("exit", error)
        if self.number == 8:
            raise TypeError("exit")
        return self.number % 2 == 1 and isinstance(error, ValueError | LookupError)


class AsyncManager(Manager):
    """The same, for ``async with``."""

    async def __aenter__(self):
        await pause(self.number)
        return self.__enter__()

    async def __aexit__(self, kind, error, trace):
        await pause("exit")
        return self.__exit__(kind, error, trace)


@types.coroutine
def pause(value):
    """Hand a value to whoever drives the coroutine; what is sent comes back."""
    return (yield value)


class Ticks:
    """For ``async for``."""

    def __init__(self, count):
        self.numbers = iter(range(count))

    def __aiter__(self):
        return self

    async def __anext__(self):
        await pause("tick")
        for number in self.numbers:
            return number
        raise StopAsyncIteration


def numbers(count):
    """A generator that marks what it is sent and how it ends."""
    try:
        for number in range(count):
            mark("sent", (yield number))
    finally:
        mark("numbers end")
    return count


def run(coroutine):
    """Drive a coroutine to its end, or close it."""
    with contextlib.closing(coroutine):
        for number in range(20):
            try:
                coroutine.send(number or None)
            except StopIteration as stop:
                return stop.value
    return "closed"


async def collect(generator):
    """The first values of an asynchronous generator."""
    values = []
    async for value in generator:
        values.append(value)
        if len(values) == 4:
            break
    return len(values)


def noted(function):
    """A decorator that marks calls."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        mark("before", len(args))
        try:
            return function(*args, **kwargs)
        finally:
            mark("after", sys.exception())

    return wrapper


def twice(function):
    """A decorator whose wrapper has another signature."""

    @functools.wraps(function)
    def wrapper(*given, a=None, **others):
        if go_on():
            function(*given, **others)
        return function(*given, **others)

    return wrapper


def passed(function):
    """A decorator that gives the function back."""
    return function


# --- what expressions of probes call: nothing that the program can see ------------------------


def same(value=1):
    """The value."""
    return value


def raises(*_):
    """Fail with a chain."""
    try:
        return {}["nothing"]
    except KeyError as error:
        raise ValueError("of an expression") from error


def raises_odd(*_):
    """Fail with no ``Exception``."""
    raise Odd("of an expression")


def watched():
    """Look at the program's frames as a debugger would: each stands at a line."""
    for name, line in _lines(sys._getframe(1)):
        if type(line) is not int or line < 1:
            state.strange.append(f"{name} stands at line {line}")
    return 1
