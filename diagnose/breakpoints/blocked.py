"""Callers that a breakpoint blocks: where each of them stands, and how it is let go."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Protocol

from diagnose.reentrancy import Quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType

    from diagnose.breakpoints.calls import Call

__all__ = ["PASSES", "Blocked", "Gate", "Monitor", "Opens", "TaskGate", "tell"]


class Opens(Protocol):
    """Anything that holds a call, wherever that stands."""

    def open(self) -> None:
        """Let it go; without waiting for anything."""


class Gate:
    """Blocks a thread until somebody opens it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        """From any thread; once."""
        self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Whether it was opened in time."""
        return self._lock.acquire(timeout=seconds)


class TaskGate:
    """Blocks a task, on its own event loop, until somebody opens it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._opened = asyncio.Event()

    def open(self) -> None:
        """From any thread."""
        tell(self._loop, self._opened.set)

    async def wait(self, seconds: float) -> bool:
        """Whether it was opened in time."""
        try:
            await asyncio.wait_for(self._opened.wait(), seconds)
        except TimeoutError:
            return False
        return True


def tell(loop: asyncio.AbstractEventLoop, what: Callable[[], object]) -> None:
    """Have an event loop call something soon; from any thread."""
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:  # that loop is closed: nobody waits there any more
        if not loop.is_closed():
            raise


class _Passes:
    """An awaitable that does not wait."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


PASSES = _Passes()
"""The awaitable of a call that is not blocked."""


class Monitor:
    """A breakpoint's lock, and the news of whatever happens at it.

    Attributes:
        lock: reentrant. It is entered itself, not the condition: that has an ``__enter__`` in
            Python, in which an interrupt may come when it holds the lock already, and nobody would
            release it.
        version: how many news there were.
        listeners: called at each, with the lock held, in the thread that brings it.
    """

    def __init__(self) -> None:
        self.version = 0
        self.renew()

    def renew(self) -> None:
        """Begin anew: in a forked child nobody else is left, and nobody releases the old lock."""
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self.listeners: list[Callable[[], object]] = []

    def announce(self) -> None:
        """Tell all who wait that something happened."""
        with self.lock:
            self.version += 1
            self._changed.notify_all()
            for listener in self.listeners:
                listener()

    def wait(self, version: int, seconds: float) -> None:
        """Wait for news after those that ``version`` counts, which a caller has looked at."""
        with Quiet(), self.lock:
            if self.version == version:
                self._changed.wait(seconds)


class Blocked:
    """The calls that stand at a breakpoint, in the order in which they came. Thread-safe.

    Attributes:
        is_open: nobody is blocked any more.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._held: list[tuple[Call, Opens]] = []
        self._next_passes = False
        self.is_open = False

    @property
    def held(self) -> list[tuple[Call, Opens]]:
        """Each call and what holds it; without the lock, which a signal handler can't wait for."""
        return list(self._held)

    @property
    def calls(self) -> list[Call]:
        """The calls alone."""
        with self._monitor.lock:
            return [call for call, _ in self._held]

    def hold(self, call: Call, gate: Opens, frame: FrameType | None) -> bool:
        """Block a call, unless it is one that was let go before it came; returns whether it is."""
        with self._monitor.lock:
            if self.is_open or self._next_passes:
                self._next_passes = False
                return False
            self.keep(call, gate, frame)
            return True

    def keep(self, call: Call, gate: Opens, frame: FrameType | None) -> None:
        """Block a call of a forked child, whose parent has said so."""
        with self._monitor.lock:
            call.frame = frame
            self._held.append((call, gate))

    def holds(self, call: Call, gate: Opens) -> bool:
        """Whether a call still stands there."""
        with self._monitor.lock:
            return (call, gate) in self._held

    def leave(self, call: Call, gate: Opens) -> None:
        """A call goes on, let go or not."""
        call.frame = None
        with Quiet(), self._monitor.lock:
            if (call, gate) in self._held:
                self._held.remove((call, gate))
                self._monitor.announce()

    def release(self) -> None:
        """Let all who stand here go on; if nobody does, let the next one pass who would."""
        # What is used to tell of it may itself be the target.
        with Quiet(), self._monitor.lock:
            if not self._let_go():
                self._next_passes = True

    def open(self) -> None:
        """Let all go on, and everybody pass who comes; idempotent."""
        with self._monitor.lock:
            self.is_open = True
            self._let_go()

    def _let_go(self) -> int:
        held, self._held = self._held, []
        for _, gate in held:
            gate.open()
        self._monitor.announce()
        return len(held)

    def begin_in_child(self, *, is_open: bool) -> None:
        """In a child that was just forked, whose one thread stands nowhere."""
        self._held = []
        self.is_open = is_open
