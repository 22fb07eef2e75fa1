"""In which threads instruments are at work: probes are silent there."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from diagnose import forking
from diagnose.forking import Layer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BUSY", "Quiet", "leave_behind", "quietly"]


class _Busy(set[int]):
    """A set that can be a constant of a code object."""

    __hash__ = object.__hash__  # type: ignore[assignment]


T = TypeVar("T")

BUSY: set[int] = _Busy()
"""Idents of the threads in which an instrument runs just now: probes don't fire there."""


# Taken now: it may itself be probed, and then its module has a stand-in for it.
_ident = threading.get_ident

# Of the threads in it a forked child has only the one that forked, maybe in an instrument.
forking.register(Layer.STATE, in_child=lambda: BUSY.intersection_update((_ident(),)))


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
