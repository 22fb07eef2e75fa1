"""Locks that a schedule knows of: who holds them, who waits for them, and where they were made.

While schedules are explored, ``threading.Lock`` and ``threading.RLock`` give these to the threads
that take turns, and to what makes their subject; so do events, conditions, semaphores and queues,
which are made of them. To everybody else they give what they always do.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from diagnose.errors import BreakpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from diagnose.breakpoints.schedules.names import Names

__all__ = ["MAKERS", "RUNNERS", "Lock", "Told", "Waiter", "replaced"]

_ident, _monotonic = threading.get_ident, time.monotonic
# What Condition.wait() calls; from 3.13 on, Lock is a class, and another object than this.
_plain: Any = threading.Lock
_allocate: Any = threading._allocate_lock  # type: ignore[attr-defined]
_reentrant: Any = threading.RLock
_WAIT = threading.Condition.wait.__code__

Told: TypeAlias = tuple[str, tuple[str, int] | None]
"""The text on a point that a thread came to, and the file and line that show where."""


class Waiter(Protocol):
    """A thread that takes turns with others.

    Attributes:
        letter: its name in a schedule.
        names: of objects in its run.
    """

    letter: str
    names: Names

    @property
    def has_ended(self) -> bool:
        """Whether its function has returned or raised."""

    def check(self) -> None:
        """Raise if it shall not go on."""

    def stop_at(self, told: Told) -> None:
        """Let others go on: it came to a point."""

    def wait_for(self, lock: Lock, deadline: float | None) -> bool:
        """Let others go on until the lock is free, or the time is over: then false."""

    def tell(self) -> None:
        """Somebody who takes no turns has released a lock that it waits for."""


RUNNERS: dict[int, Waiter] = {}
"""The threads that take turns, by their idents."""

MAKERS: set[int] = set()
"""The idents of threads that make a subject now."""


def _is_inside(filename: str) -> bool:
    """Whether a file is part of how locks work, rather than of the program that uses them."""
    return filename in _INSIDE or "/diagnose/breakpoints/" in filename


_INSIDE = {threading.__file__, queue.__file__}


class Lock:
    """Stands in for ``threading.Lock()`` or ``threading.RLock()``.

    Thread-safe. A thread that takes turns gives its turn away rather than to stop in it.

    Attributes:
        kind: ``"Lock"``, ``"RLock"``, or ``"notification"``: what a ``Condition.wait()`` waits in.
        owner: the :class:`Waiter` that holds it, or the ident of another thread; None: nobody.
        made_at: file, line and function.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.owner: Waiter | int | None = None
        self._is_reentrant = kind == "RLock"
        self._count = 0
        self._real = _allocate()
        self._waiting: list[Waiter] = []
        frame = sys._getframe(1)
        if frame.f_back is not None and frame.f_back.f_code is _WAIT:
            self.kind = "notification"
        while _is_inside(frame.f_code.co_filename) and frame.f_back is not None:
            frame = frame.f_back
        self.made_at = frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname

    @property
    def is_free(self) -> bool:
        """Whether nobody holds it."""
        return not self._real.locked()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as threading has it
        """See :class:`threading.Lock`."""
        ident = _ident()
        runner = RUNNERS.get(ident)
        me = runner or ident
        if self._is_reentrant and self.owner == me:
            self._count += 1
            return True
        if runner is None:
            if blocking and timeout < 0:
                self._check_owner()
            got = self._real.acquire(blocking, timeout)
        elif not blocking:
            runner.check()  # it may try again and again
            got = self._real.acquire(blocking, timeout)
        else:
            got = self._take_turns(runner, None if timeout < 0 else _monotonic() + timeout)
        if got:
            self.owner, self._count = me, 1
        return bool(got)

    def _take_turns(self, runner: Waiter, deadline: float | None) -> bool:
        while not self._real.acquire(blocking=False):
            self._waiting.append(runner)
            try:
                if not runner.wait_for(self, deadline):
                    return False
            finally:
                self._waiting.remove(runner)
        return True

    def _check_owner(self) -> None:
        """The test would wait forever: nobody is left to release it."""
        owner = self.owner
        if owner is not None and not isinstance(owner, int) and owner.has_ended:
            file, line, function = self.made_at
            message = (
                f"thread {owner.letter} ended while it held the {self.kind} that was made in "
                f"{function} ({file}:{line}); release it in a finally, or use `with`"
            )
            raise BreakpointError(message)

    def release(self) -> None:
        """See :class:`threading.Lock`."""
        ident = _ident()
        runner = RUNNERS.get(ident)
        if self._is_reentrant:
            if self.owner != (runner or ident):
                message = "cannot release un-acquired lock"
                raise RuntimeError(message)
            self._count -= 1
            if self._count:
                return
        self.owner = None
        self._real.release()
        if runner is None:
            for each in list(self._waiting):
                each.tell()

    def locked(self) -> bool:
        """See :class:`threading.Lock`."""
        return bool(self._real.locked())

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    # What threading.Condition asks of its lock.

    def _is_owned(self) -> bool:
        if self._is_reentrant:
            ident = _ident()
            return self.owner == (RUNNERS.get(ident) or ident)
        return self.locked()

    def _release_save(self) -> int:
        count, self._count = self._count, 1
        self.release()
        return count

    def _acquire_restore(self, count: int) -> None:
        self.acquire()
        self._count = count

    def _at_fork_reinit(self) -> None:
        self.owner, self._count = None, 0
        self._real._at_fork_reinit()


def _is_ours() -> bool:
    ident = _ident()
    return ident in RUNNERS or ident in MAKERS


def _make_lock() -> Any:
    return Lock("Lock") if _is_ours() else _allocate()


def _make_rlock() -> Any:
    return Lock("RLock") if _is_ours() else _reentrant()


@contextmanager
def replaced(namespaces: Iterable[dict[str, Any]]) -> Iterator[None]:
    """While it is entered, locks that are made may be those that a schedule knows of.

    Args:
        namespaces: of modules that may have names of their own for ``Lock`` and ``RLock``, beside
            that of :mod:`threading`.
    """
    instead = {id(_plain): _make_lock, id(_allocate): _make_lock, id(_reentrant): _make_rlock}
    done: list[tuple[dict[str, Any], str, Any]] = []
    # This module has to know the real ones.
    spaces = {id(each): each for each in [vars(threading), *namespaces] if each is not globals()}
    try:
        for space in spaces.values():
            for name, value in list(space.items()):
                if (made := instead.get(id(value))) is not None:
                    done.append((space, name, value))
                    space[name] = made
        yield
    finally:
        for space, name, value in done:
            space[name] = value
