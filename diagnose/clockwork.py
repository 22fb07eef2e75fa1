"""Threads that do work later: lifespans that end, buffers that are drained.

A :class:`Clockwork` is one daemon thread over a heap of deadlines on the monotonic
clock. The thread exists only while something is due or it is held, and it is made anew in a
forked child. Callbacks run in that thread, one at a time, outside the lock; nothing that they
raise ends it. A :class:`Background` is a thread that does one thing every so many seconds.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import math
import threading
import time
import weakref
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from diagnose import forking
from diagnose.forking import Layer
from diagnose.threads import without_signals

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ["Background", "Clockwork", "Timer"]

log = logging.getLogger(__name__)

# Nothing can wait longer than threading.TIMEOUT_MAX; a day is far below it, and waking once a
# day to find that nothing is due costs nothing.
LONGEST_WAIT_SECONDS = 86_400.0
SWEEP_AT_LEAST = 64
LOOK_SECONDS = 1.0
"""How often the thread sees whether it is still held, where nothing is due."""

# Taken now: a program may probe or replace them, and then its modules have something else.
_clock = time.monotonic
_Thread, _current_thread = threading.Thread, threading.current_thread
_ident, _make_lock = threading.get_ident, threading.Lock

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
        except BaseException:
            # A handler or a filter of the application's may raise as well: nobody is left to tell.
            with contextlib.suppress(BaseException):
                log.exception("%r failed", callback)
        finally:
            self._callback = None


class Clockwork:
    """One background thread that runs callbacks at their deadlines.

    Args:
        name: of the thread, as a debugger shows it.
        inside: makes the context in which each callback is called.
    """

    def __init__(
        self,
        name: str,
        inside: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self._name = name
        self._inside = inside
        # Reentrant: a signal handler or a finalizer may come in the middle of anything. What
        # is under it takes microseconds and runs nothing of anybody else's.
        self._lock = threading.RLock()
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._sweep_at = SWEEP_AT_LEAST
        self._holds = 0
        self._thread: threading.Thread | None = None
        self._stands = False  # whether that thread has begun
        self._running: Timer | None = None
        # What is to be done at once, and what wakes the thread: both take no lock of Python's.
        self._at_once: deque[Callable[[], object]] = deque()
        self._wake: SimpleQueue[None] = SimpleQueue()
        _all.add(self)

    @property
    def thread(self) -> threading.Thread | None:
        """The one that calls; None while nothing is due and nobody holds it."""
        return self._thread if self._stands else None

    def soon(self, callback: Callable[[], object]) -> None:
        """Run ``callback`` at once, in the thread; for those who may wait for nothing.

        It can be called at any moment from anywhere: from a hit, a finalizer, a signal handler,
        whatever locks are held. It starts no thread: so there has to be one (:meth:`hold`), or
        the callback waits for the next one.
        """
        self._at_once.append(callback)
        self._wake.put(None)

    def after(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Run ``callback`` once, ``seconds`` from now (at once when it is 0 or less).

        It may start the thread: not to be called from a hit.
        """
        timer = Timer(_clock() + seconds, callback)
        with self._lock:
            if len(self._heap) >= self._sweep_at:
                self._sweep()
            self._push(timer)
        self._wake.put(None)
        self._ensure_thread()
        return timer

    def hold(self) -> None:
        """See to it that there is a thread until :meth:`release` was called as often."""
        with self._lock:
            self._holds += 1
        self._ensure_thread()

    def release(self) -> None:
        """Let the thread end, within a second, when nothing is due any more."""
        with self._lock:
            self._holds -= 1

    def settle(self, seconds: float, done: Callable[[], object]) -> bool:
        """Wait until what was asked for before this is done, for so long at most.

        Args:
            seconds: how long.
            done: is called then, in the thread, maybe long after this has returned.

        Returns:
            Whether it is done. In the thread itself nothing is waited for.
        """
        thread = self.thread
        if thread is None or thread.ident == _ident():
            return True
        waited = _make_lock()
        waited.acquire()

        def settled() -> None:
            try:
                done()
            finally:
                waited.release()

        self.after(0, settled)
        return waited.acquire(timeout=seconds)

    def _push(self, timer: Timer) -> None:
        heapq.heappush(self._heap, (timer.deadline, next(self._order), timer))

    def _sweep(self) -> None:
        # Cancelled timers stay in the heap until they are due; without this, probes
        # that are started and stopped all day would gather.
        self._heap = [entry for entry in self._heap if entry[2]._callback is not None]
        heapq.heapify(self._heap)
        self._sweep_at = max(SWEEP_AT_LEAST, 2 * len(self._heap))

    def _ensure_thread(self) -> None:
        _resume_after_forks()
        with self._lock:
            if not self._wants_thread():
                return
        # Without the lock: what a thread does before it comes here is Python's, and may be
        # probed. Of several that are made at once one is wanted; so it is if a start was
        # interrupted by a signal handler.
        thread = _Thread(target=self._run, name=self._name, daemon=True)
        with self._lock:
            if not self._wants_thread():
                return
            self._thread = thread
        try:
            with without_signals():
                thread.start()
        except RuntimeError:  # no more threads, or a program that ends
            return
        self._stand(thread)

    def _wants_thread(self) -> bool:
        return not self._stands and bool(self._holds or self._heap or self._at_once)

    def _stand(self, thread: threading.Thread) -> bool:
        """Note that a thread has begun; whether it is the one that is wanted."""
        with self._lock:
            is_wanted = self._thread is thread
            self._stands = self._stands or is_wanted
            return is_wanted

    def _run(self) -> None:
        me = _current_thread()
        if not self._stand(me):
            return
        try:
            while (timer := self._next_due()) is not None:
                with self._inside():
                    timer.run()
        finally:
            # Not so, if it was ended from outside (PyThreadState_SetAsyncExc).
            if self._thread is me:
                with self._lock:
                    self._thread, self._stands = None, False
                self._ensure_thread()

    def _next_due(self) -> Timer | None:
        """Wait for the next timer; None when there is none: then the thread ends."""
        while True:
            with self._lock:
                self._running = None
                while self._at_once:
                    self._push(Timer(-math.inf, self._at_once.popleft()))
                if self._heap:
                    wait = self._heap[0][0] - _clock()
                    if wait <= 0:
                        self._running = heapq.heappop(self._heap)[2]
                        return self._running
                elif self._holds > 0:
                    # It looks for itself: to be woken when it is let go costs more than all else
                    # that stopping a probe does.
                    wait = LOOK_SECONDS
                else:
                    self._thread, self._stands = None, False
                    return None
            with contextlib.suppress(Empty):
                self._wake.get(timeout=min(wait, LONGEST_WAIT_SECONDS))

    # A fork copies only the forking thread. The lock is held across it, so that the
    # child finds the heap whole; the child then makes a lock and a thread of its own.

    def _before_fork(self) -> None:
        self._lock.acquire()

    def _after_fork_in_parent(self) -> None:
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.RLock()
        self._wake = SimpleQueue()
        self._thread, self._stands = None, False
        # The thread that ran it is not here. It begins anew: at worst, a callback sees that
        # its work is done already.
        running, self._running = self._running, None
        if running is not None and running.pending:
            self._push(running)

    def _resume_in_child(self) -> None:
        self._ensure_thread()


class Background(threading.Thread):
    """Calls ``work`` at once and then every ``period`` seconds.

    Args:
        name: of the thread, as a debugger shows it.
        work: what it raises is logged, and it goes on.
        period: seconds from one end to the next begin; it may be changed.

    Attributes:
        stopping: set when it is to end.
    """

    def __init__(self, name: str, work: Callable[[], object], period: float) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self.period = period
        self.renew_events()

    def renew_events(self) -> None:
        """Take events that nobody waits for, or holds the locks of."""
        self.stopping = threading.Event()
        self._due = threading.Event()

    def start(self) -> None:
        """Begin; no signal is delivered to it."""
        with without_signals():
            super().start()

    def stop(self) -> None:
        """End the loop; does not wait for it."""
        self.stopping.set()
        self._due.set()

    def wake(self) -> None:
        """Work once more at once, or as soon as the one that is running is over."""
        self._due.set()

    def run(self) -> None:
        """Work, wait, and so on."""
        while True:
            self._due.clear()
            try:
                self._work()
            except Exception:
                log.exception("%r failed; it goes on", self._work)
            if self.stopping.is_set() or (self._due.wait(self.period) and self.stopping.is_set()):
                return


def _resume_after_forks() -> None:
    """See to it that threads are started in a forked child.

    Registered with the first timer: what is due there runs at once, and may use any library.
    """
    global _is_resuming_after_forks  # noqa: PLW0603
    if not _is_resuming_after_forks:
        _is_resuming_after_forks = True
        forking.resume(_each("_resume_in_child"))


def _each(method: str) -> Callable[[], None]:
    def run() -> None:
        for clockwork in sorted(_all, key=id):
            getattr(clockwork, method)()

    return run


forking.register(
    Layer.TIMERS,
    before=_each("_before_fork"),
    in_parent=_each("_after_fork_in_parent"),
    in_child=_each("_after_fork_in_child"),
)
