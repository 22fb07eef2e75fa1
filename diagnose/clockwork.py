"""Threads that do work later: lifespans that end, buffers that are drained.

A :class:`Clockwork` is one daemon thread over a heap of deadlines on the monotonic
clock. The thread exists only while something is due, and it is made anew in a forked
child. Callbacks run in that thread, one at a time, outside the lock.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clockwork", "Timer"]

log = logging.getLogger(__name__)

# A condition can't wait longer than threading.TIMEOUT_MAX; a day is far below it, and
# waking once a day to find that nothing is due costs nothing.
LONGEST_WAIT_SECONDS = 86_400.0
SWEEP_AT_LEAST = 64

_all: weakref.WeakSet[Clockwork] = weakref.WeakSet()
_is_resuming_after_forks = False


class Timer:
    """One thing to do at a deadline; :meth:`cancel` makes it not happen."""

    __slots__ = ("_callback", "deadline")

    def __init__(self, deadline: float, callback: Callable[[], object]) -> None:
        self.deadline = deadline
        self._callback: Callable[[], object] | None = callback

    @property
    def pending(self) -> bool:
        """Whether the callback is still to be called."""
        return self._callback is not None

    def cancel(self) -> None:
        """Forget the callback; a callback that is running just now is not stopped."""
        self._callback = None

    def run(self) -> None:
        """Call what is due, unless it was cancelled; called by the clockwork only."""
        callback = self._callback
        if callback is None:
            return
        try:
            callback()
        except Exception:
            log.exception("%r failed", callback)
        finally:
            self._callback = None


class Clockwork:
    """One background thread that runs callbacks at their deadlines.

    Args:
        name: of the thread, as a debugger shows it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._condition = threading.Condition(threading.RLock())
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._sweep_at = SWEEP_AT_LEAST
        self._thread: threading.Thread | None = None
        self._running: Timer | None = None
        _all.add(self)

    @property
    def thread(self) -> threading.Thread | None:
        """The one that calls; None while nothing is due."""
        return self._thread

    def after(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Run ``callback`` once, ``seconds`` from now (at once when it is 0 or less)."""
        timer = Timer(time.monotonic() + seconds, callback)
        _resume_after_forks()
        with self._condition:
            if len(self._heap) >= self._sweep_at:
                self._sweep()
            heapq.heappush(self._heap, (timer.deadline, next(self._order), timer))
            self._ensure_thread()
            self._condition.notify()
        return timer

    def _sweep(self) -> None:
        # Cancelled timers stay in the heap until they are due; without this, probes
        # that are started and stopped all day would gather.
        self._heap = [entry for entry in self._heap if entry[2].pending]
        heapq.heapify(self._heap)
        self._sweep_at = max(SWEEP_AT_LEAST, 2 * len(self._heap))

    def _ensure_thread(self) -> None:
        if self._thread is None and self._heap:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is shutting down: nothing is due any more
                self._thread = None

    def _run(self) -> None:
        while (timer := self._next_due()) is not None:
            try:
                timer.run()
            except BaseException:  # such as SystemExit: it ends this thread, not the service
                with self._condition:
                    self._thread = None
                    self._ensure_thread()
                raise

    def _next_due(self) -> Timer | None:
        """Wait for the next timer; None when there is none: then the thread ends."""
        with self._condition:
            while self._heap:
                wait = self._heap[0][0] - time.monotonic()
                if wait <= 0:
                    self._running = heapq.heappop(self._heap)[2]
                    return self._running
                self._condition.wait(min(wait, LONGEST_WAIT_SECONDS))
            self._thread = self._running = None
            return None

    # A fork copies only the forking thread. The lock is held across it, so that the
    # child finds the heap whole; the child then makes a lock and a thread of its own.

    def _before_fork(self) -> None:
        self._condition.acquire()

    def _after_fork_in_parent(self) -> None:
        self._condition.release()

    def _after_fork_in_child(self) -> None:
        self._condition = threading.Condition(threading.RLock())
        self._thread = None
        # Whoever was running it is not here. It begins anew: at worst, a callback sees that
        # its work is done already.
        running, self._running = self._running, None
        if running is not None and running.pending:
            heapq.heappush(self._heap, (running.deadline, next(self._order), running))

    def _resume_in_child(self) -> None:
        with self._condition:
            self._ensure_thread()


def _resume_after_forks() -> None:
    """See to it that threads are started in a forked child, but after all other hooks.

    What is due there runs at once, and may need a lock that the hook of another module is
    still to make anew. Hooks run in the order of their registration, so this one is
    registered with the first timer.
    """
    global _is_resuming_after_forks  # noqa: PLW0603
    if not _is_resuming_after_forks:
        _is_resuming_after_forks = True
        os.register_at_fork(after_in_child=_each("_resume_in_child"))


def _each(method: str) -> Callable[[], None]:
    def run() -> None:
        for clockwork in sorted(_all, key=id):
            getattr(clockwork, method)()

    return run


os.register_at_fork(
    before=_each("_before_fork"),
    after_in_parent=_each("_after_fork_in_parent"),
    after_in_child=_each("_after_fork_in_child"),
)
