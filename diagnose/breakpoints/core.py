"""Breakpoints: a test stops a thread where it matters, looks around, and lets it go on."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any, overload

from diagnose.breakpoints import places
from diagnose.breakpoints.stacks import note_where
from diagnose.breakpoints.stops import tell
from diagnose.breakpoints.waits import LOOK_SECONDS, Goal, Waits, seconds_of
from diagnose.breakpoints.workers import Started, StartedTask
from diagnose.errors import BreakpointError
from diagnose.reentrancy import Quiet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType
    from typing import Self

    from diagnose.breakpoints.conditions import Call, Condition

__all__ = ["AsyncBreakpoint", "Breakpoint"]


# Taken now: it may itself be the target, and then its module has a stand-in for it.
_monotonic = time.monotonic
_BEGIN_SECONDS = 0.5


class Breakpoint(Waits):
    """Stops the callers of a function, in a test.

    Used by ``with``; on leaving, whatever happened, the function is what it was, those who stand
    are let go, and the threads that were started have ended::

        with Breakpoint("shop.archive.S3Archive.unarchive") as bp:
            thread = bp.start_thread(archive.restore, "a.txt")
            bp.wait()  # it has called unarchive, and stands before its body
            assert archive.state == "restoring"
            bp.release()
        assert thread.result == "done"

    With ``async with`` it is an :class:`AsyncBreakpoint`, for tasks in place of threads.

    Every hit stops, the second one after a ``release()`` too; ``condition`` says which calls are
    hits. Children that are forked while it is entered stop too: they count here, and wait for
    ``release()`` here.

    Attributes:
        calls: how many calls got to the event, whether or not they met the condition.
        hits: how many of them met it.
        seen: a :class:`Call` for each, the first thousand, with its arguments.

    Args:
        target: a dotted path: whoever calls the function stops, on whatever reference. Or an
            object and an attribute's name, as a pair or as the first two arguments
            (``Breakpoint(S3Archive, "unarchive")``): whoever calls it through that attribute.
            Or the function itself (``Breakpoint(S3Archive.unarchive)``), as with its path.
        event: ``"call"``: before the body. ``"return"``: it has returned. ``"error"``: it has
            raised. ``"end"``: just before either, with the variables that it has then.
            ``"line:N"`` and ``"line:+K"``: before a line of the file, or the K-th after the
            ``def``, runs.
        condition: which calls are hits: a predicate over the call's arguments (by name, where its
            parameters are named as the function's; else in their order, ``self`` included), the
            number of a call (the first is 0), or several of these: any of them. On leaving, each
            must have been met by some call.
        timeout: seconds: how long :meth:`wait` waits if not told otherwise, how long a caller
            stands before it gets a :class:`~diagnose.errors.BreakpointTimeoutError`, how long
            a thread may take to end.
        fire: what to do at a hit in place of holding the caller: it is called in the caller's
            thread with the :class:`Call`, or without arguments if it takes none; what it raises,
            the function raises.

    Raises:
        DiagnoseError: on entering: there is no such function, or event in it.
        BreakpointError: on leaving: the condition was not met (an ``AssertionError``).
    """

    @overload
    def __init__(
        self,
        target: str | tuple[object, str] | Callable[..., object],
        event: str = "call",
        condition: Condition | Sequence[Condition] = None,
        timeout: float = 10.0,
        fire: Callable[[Call], object] | Callable[[], object] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        target: object,
        event: str,
        condition: Condition | Sequence[Condition] = None,
        timeout: float = 10.0,
        fire: Callable[[Call], object] | Callable[[], object] | None = None,
    ) -> None: ...

    def __init__(
        self,
        target: Any,
        event: str = "call",
        condition: Condition | Sequence[Condition] = None,
        timeout: float = 10.0,
        fire: Callable[[Call], object] | Callable[[], object] | None = None,
    ) -> None:
        if not isinstance(target, (str, tuple)) and not places.is_function(target):
            target, event = (target, event), "call"
        super().__init__(target, event, condition, timeout, fire)
        self._async: AsyncBreakpoint | None = None

    @classmethod
    def block(cls, target: Any, *args: Any, **kwargs: Any) -> Self:
        """A breakpoint that holds the caller until :meth:`release`; ``fire`` can't be given."""
        if "fire" in kwargs:
            message = "Breakpoint.block() holds the caller; for something else: Breakpoint(fire=…)"
            raise TypeError(message)
        return cls(target, *args, **kwargs)

    @classmethod
    def error(
        cls, exception: BaseException | type[BaseException], target: Any, *args: Any, **kwargs: Any
    ) -> Self:
        """A breakpoint whose hits raise ``exception`` in the caller; the rest as the class takes it.

        >>> import json
        >>> with Breakpoint.error(OSError("no disk"), "json.loads"):
        ...     json.loads("1")
        Traceback (most recent call last):
        OSError: no disk
        """
        is_class = isinstance(exception, type) and issubclass(exception, BaseException)
        if not is_class and not isinstance(exception, BaseException):
            message = (
                f"exception {exception!r:.100} is none; give it first, then the target: "
                "Breakpoint.error(OSError('no disk'), 'json.loads')"
            )
            raise TypeError(message)

        def fire(_: Call) -> None:
            # Of one object: its traceback would grow with each hit.
            if isinstance(exception, BaseException):
                raise exception.with_traceback(None)
            raise exception

        made: Any = cls
        return made(target, *args, fire=fire, **kwargs)  # type: ignore[no-any-return]

    # --- threads ---

    def start_thread(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Started:
        """Call ``func`` in a thread of its own; returns the thread.

        It has ``result`` and ``exception``. What it raises, :meth:`wait`, :meth:`join` and the end
        of the ``with`` block raise, unless the breakpoint itself made it raise that, or the test
        asked for ``exception``.
        """
        thread = Started(func, args, kwargs, self._note_end, repr(self))
        self._workers.append(thread)
        try:
            # What is used to start, to wait and to join may itself be the target.
            with Quiet():
                thread.start()
        except BaseException as error:
            # After an interrupt it may begin all the same. If not, it has no end to wait for.
            if isinstance(error, Exception) or not thread.has_begun(_BEGIN_SECONDS):
                self._workers.remove(thread)
            raise
        return thread

    def join(self, timeout: float | None = None) -> None:
        """Wait until the threads that were started have ended.

        Args:
            timeout: seconds; None: the breakpoint's.

        Raises:
            BreakpointTimeoutError: one has not; the message says where it is.
            BaseException: what one of them raised.
        """
        seconds = seconds_of(timeout, self.timeout)
        self._join(seconds)
        self._raise_late(seconds)
        self._raise_theirs()

    def _join(self, seconds: float) -> None:
        with Quiet():
            deadline = time.monotonic() + seconds
            for each in self._workers:
                if isinstance(each, Started):
                    each.join(max(0.0, deadline - time.monotonic()))

    # --- waiting ---

    def wait(self, timeout: float | None = None, hits: int | None = None) -> Call:
        """Wait for a hit; returns its :class:`Call`.

        Args:
            timeout: seconds; None: the breakpoint's.
            hits: how many hits there are to be since the breakpoint was entered. None: somebody
                stands at it, or there was a hit that no ``wait()`` has waited for yet.

        Raises:
            BreakpointTimeoutError: there was none; the message says what happened instead.
            BaseException: what a thread raised before it got there.
        """
        self._wait_for(self._goal_of(hits), timeout)
        return self._waited()

    def wait_until(
        self, condition: Callable[[], object] | int, timeout: float | None = None
    ) -> None:
        """Wait until something is true.

        Args:
            condition: called without arguments, after each event of the breakpoint (a call, a
                release, the end of a thread), and now and then for what is not among these. Or how
                many calls there are to be.
            timeout: seconds; None: the breakpoint's.

        Raises:
            BreakpointTimeoutError: it did not become true; the message says what happened.
        """
        self._wait_for(self._state_of(condition), timeout)

    def _wait_for(self, goal: Goal, timeout: float | None) -> None:
        seconds = seconds_of(timeout, self.timeout)
        deadline = _monotonic() + seconds
        while True:
            version = self._version
            if self._is_reached(goal):
                return
            left = deadline - _monotonic()
            if left <= 0:
                raise self._too_late(goal, seconds)
            with Quiet(), self._lock:
                # What happened since it was looked is not waited for.
                if self._version == version:
                    self._changed.wait(min(left, LOOK_SECONDS) if goal.looks else left)

    # --- with ---

    def __enter__(self) -> Self:
        self._check_unused()
        try:
            self._put_on(takes_tasks=False)
            return self
        except BaseException:  # an interrupt after all was done
            self._take_off()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, TimeoutError):
                # Now all still stand where they stood when it was raised.
                note_where(error, is_passing=True)
            self._take_off()
        except BaseException:  # an interrupt
            self._take_off()
            raise
        finally:
            try:
                self._join(self.timeout)
            finally:
                self._end_quiet()
        self._judge(error)

    async def __aenter__(self) -> AsyncBreakpoint:
        entered = AsyncBreakpoint(
            self.target, self.event, self._condition, self.timeout, self._fire
        )
        entered._enter()
        self._async = entered
        return entered

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        entered, self._async = self._async, None
        if entered is not None:
            await entered._exit(error)


class AsyncBreakpoint(Waits):
    """What ``async with Breakpoint(...)`` gives: for tasks in place of threads.

    A coroutine function stops when its coroutine is awaited, and other tasks go on. Another
    function stops the threads that call it; in the event loop's own it raises a
    :class:`~diagnose.errors.BreakpointError`, since nobody could let that go on.

    Attributes and arguments: see :class:`Breakpoint`.
    """

    def start_task(
        self, func: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
    ) -> StartedTask:
        """Call ``func`` and await what it returns in a task of its own; returns that.

        It has ``result`` and ``exception``, and can be awaited.
        """
        awaitable: Any = func(*args, **kwargs)
        if not inspect.isawaitable(awaitable):
            message = (
                f"{func!r:.100} returned {awaitable!r:.100}, which can't be awaited; a plain "
                "function runs in a thread: start_task(asyncio.to_thread, function)"
            )
            raise TypeError(message)
        name = getattr(func, "__name__", type(func).__name__)
        started = StartedTask(awaitable, name, self._note_end)
        self._workers.append(started)
        return started

    async def join(self, timeout: float | None = None) -> None:
        """See :meth:`Breakpoint.join`; for tasks."""
        seconds = seconds_of(timeout, self.timeout)
        await self._join(seconds)
        self._raise_late(seconds)
        self._raise_theirs()

    async def _join(self, seconds: float) -> None:
        tasks = [each.task for each in self._workers if isinstance(each, StartedTask)]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def wait(self, timeout: float | None = None, hits: int | None = None) -> Call:
        """See :meth:`Breakpoint.wait`."""
        await self._wait_for(self._goal_of(hits), timeout)
        return self._waited()

    async def wait_until(
        self, condition: Callable[[], object] | int, timeout: float | None = None
    ) -> None:
        """See :meth:`Breakpoint.wait_until`."""
        await self._wait_for(self._state_of(condition), timeout)

    async def _wait_for(self, goal: Goal, timeout: float | None) -> None:
        seconds = seconds_of(timeout, self.timeout)
        deadline = time.monotonic() + seconds
        while True:
            self._happened.clear()
            if self._is_reached(goal):
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._too_late(goal, seconds)
            try:
                async with asyncio.timeout(min(left, LOOK_SECONDS) if goal.looks else left):
                    await self._happened.wait()
            except TimeoutError:
                pass

    def _enter(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._happened = asyncio.Event()
        self._listeners.append(lambda: tell(self._loop, self._happened.set))
        self._put_on(takes_tasks=True)

    async def _exit(self, error: BaseException | None) -> None:
        if isinstance(error, TimeoutError):
            note_where(error, is_passing=True)
        try:
            self._take_off()
        finally:
            await self._join(self.timeout)
            for each in self._workers:
                if isinstance(each, StartedTask) and not each.has_ended:
                    self._late.append(each.whereabouts)
                    each.task.cancel()
        self._judge(error)

    def told(self) -> tuple[Sequence[Call], Sequence[str]]:
        """See :meth:`Stops.told <diagnose.breakpoints.stops.Stops.told>`."""
        threads, tasks = super().told()
        started = [each.whereabouts for each in list(self._workers) if not each.has_ended]
        return threads, [*tasks, *started]

    def _check_hold(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if loop is self._loop:
            message = (
                f"{self!r} would stop the event loop of the test, and nobody could release it: the "
                "function is no coroutine function. Run it in a thread (asyncio.to_thread), or "
                "put the breakpoint on a coroutine function"
            )
            raise BreakpointError(message)
