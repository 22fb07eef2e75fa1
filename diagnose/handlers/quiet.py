"""In which threads instruments are at work, and counts that need no lock."""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import sys
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BUSY", "Quiet", "Tally", "leave_behind", "parsing", "quietly"]


class _Busy(set[int]):
    """A set that can be a constant of a code object."""

    __hash__ = object.__hash__  # type: ignore[assignment]


T = TypeVar("T")

BUSY: set[int] = _Busy()
"""Idents of the threads in which an instrument runs just now: probes don't fire there."""


# Taken now: it may itself be probed, and then its module has a stand-in for it.
_ident = threading.get_ident

# Of the threads in it a forked child has only the one that forked, maybe in an instrument.
os.register_at_fork(after_in_child=lambda: BUSY.intersection_update((_ident(),)))


class Quiet:
    """A context in which no probe fires in this thread (instruments' own work)."""

    __slots__ = ("_entered",)

    def __enter__(self) -> None:
        ident = _ident()
        self._entered = ident not in BUSY
        BUSY.add(ident)

    def __exit__(self, *_: object) -> None:
        if self._entered:
            BUSY.discard(_ident())


def leave_behind(error: BaseException) -> None:
    """Leave the quiet state that a handler entered and could not leave.

    From 3.12 on the jump back of a loop (of a comprehension in an expression) stands outside of the
    ``try`` around it, so what a signal handler raises there passes by the ``finally``.
    """
    entry = error.__traceback__
    for _ in range(3):
        if entry is None:
            return
        if "@ident" in entry.tb_frame.f_code.co_varnames:
            BUSY.discard(entry.tb_frame.f_locals.get("@ident"))
        entry = entry.tb_next


def quietly(call: Callable[..., T], *args: object) -> T:
    """Call something in the quiet state, in the program's thread.

    Not a context manager: a signal handler may raise at the begin of its ``__exit__``, and then
    probes would be silent in this thread for good.
    """
    ident = _ident()
    is_outermost = ident not in BUSY
    try:
        BUSY.add(ident)
        return call(*args)
    finally:
        if is_outermost:
            BUSY.discard(ident)


_PARSES = 5


def parsing(make: Callable[[], T]) -> T:
    """What ``make`` returns, which parses Python; if another thread spoiled that, made again.

    On 3.11 all threads of an interpreter count how deep a syntax tree is in one number; where
    they take turns amid that, one of them gets a SystemError (CPython's gh-106905).
    """
    for _ in range(_PARSES - 1):
        with contextlib.suppress(SystemError):
            return make()
    return make()


class Tally:
    """A count that threads may raise at once without a lock.

    ``add``, or the ``next`` of ``ones``, raises it: one C call, atomic, which makes no object.
    """

    __slots__ = ("add", "ones")

    def __init__(self) -> None:
        self.ones: Iterator[object] = _ones()
        self.add: Callable[[], object] = self.ones.__next__

    @property
    def value(self) -> int:
        """How often it was raised."""
        return _taken(self.ones)


if getattr(sys, "_is_gil_enabled", lambda: True)():

    def _ones() -> Iterator[object]:
        return itertools.repeat(None, sys.maxsize)

    def _taken(ones: Iterator[object]) -> int:
        # What is left of it can be read, and nobody lives to see its end.
        return sys.maxsize - operator.length_hint(ones)

else:  # there a `repeat` loses some, and a `count` none

    def _ones() -> Iterator[object]:
        return itertools.count()

    def _taken(ones: Iterator[object]) -> int:
        # It shows itself: "count(3)".
        return int(repr(ones)[len("count(") : -1])
