"""Breakpoints: a test stops a thread where it matters, looks around, and lets it go on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, overload

from diagnose.breakpoints import places
from diagnose.breakpoints.blocked import tell
from diagnose.breakpoints.session import Session
from diagnose.breakpoints.settings import Settings, seconds_of
from diagnose.breakpoints.stacks import note_where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import FrameType, TracebackType
    from typing import Self

    from diagnose.breakpoints.calls import Call
    from diagnose.breakpoints.conditions import Condition
    from diagnose.breakpoints.workers import Started, StartedTask

__all__ = ["AsyncBreakpoint", "Breakpoint", "Nowhere"]


class BaseBreakpoint:
    """The public side of a breakpoint, of either kind.

    Each entering has a session of its own; before the first there is one that never begins.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session = Session(settings)

    def __repr__(self) -> str:
        return repr(self._settings)

    @property
    def target(self) -> Any:
        """The target, as it was given."""
        return self._settings.target

    @property
    def event(self) -> str:
        """The event at which calls stop."""
        return self._settings.event

    @property
    def timeout(self) -> float:
        """Seconds for whatever is waited for; it may be changed at any time."""
        return self._settings.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._settings.timeout = seconds

    @property
    def hits_at_most(self) -> int | None:
        """After so many hits, calls pass; None: there is no such number."""
        return self._settings.hits_at_most

    @hits_at_most.setter
    def hits_at_most(self, hits: int | None) -> None:
        self._settings.hits_at_most = hits

    @property
    def only_workers(self) -> bool:
        """Whether nobody calls the target but those who were started here."""
        return self._settings.only_workers

    @only_workers.setter
    def only_workers(self, are_alone: bool) -> None:
        self._settings.only_workers = are_alone

    @property
    def calls(self) -> int:
        """How many calls got to the event, whether or not they met the condition."""
        return self._session.stop.log.calls

    @property
    def hits(self) -> int:
        """How many of them met it."""
        return self._session.stop.log.hits

    @property
    def seen(self) -> list[Call]:
        """A :class:`Call` for each, the first thousand, with its arguments."""
        return self._session.stop.log.seen

    @property
    def stackframe(self) -> FrameType | None:
        """The frame of the function whose call stands here; of several, the latest. Else None."""
        standing = self.standing
        return standing[-1].frame if standing else None

    @property
    def standing(self) -> list[Call]:
        """The calls that stand here now, in the order in which they came."""
        return self._session.stop.blocked.calls

    def release(self) -> None:
        """Let all who stand here go on; if nobody does, let the next one pass who would.

        So it does not matter which of the two comes first.
        """
        self._session.stop.blocked.release()

    def disarm(self) -> None:
        """Stop no more calls, and let all go on who stand here; idempotent.

        Leaving the block does this too, then waits for those that were started, and judges.
        """
        self._session.take_off()

    def _check_unused(self) -> None:
        if self._session.is_on:
            message = f"{self!r} is in use already; make another one"
            raise RuntimeError(message)


class Breakpoint(BaseBreakpoint):
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
        target: a dotted path: callers of the function stop, by whatever reference they call it. Or an
            object and an attribute's name, as a pair or as the first two arguments
            (``Breakpoint(S3Archive, "unarchive")``): callers of that attribute stop.
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
            thread with the :class:`Call`, or without arguments if it takes none; the function
            raises its exceptions.

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
        kind = type(self).__name__
        super().__init__(Settings.checked(kind, target, event, condition, timeout, fire))
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
        return self._session.workers.start_thread(func, args, kwargs)

    def join(self, timeout: float | None = None) -> None:
        """Wait until the threads that were started have ended.

        Args:
            timeout: seconds; None: the breakpoint's.

        Raises:
            BreakpointTimeoutError: one has not; the message says where it is.
            BaseException: what one of them raised.
        """
        seconds = seconds_of(timeout, self.timeout)
        self._session.workers.join(seconds)
        self._session.waits.check_workers(seconds)

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
        waits = self._session.waits
        waits.wait(waits.for_hits(hits), timeout)
        return waits.latest()

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
        waits = self._session.waits
        waits.wait(waits.for_state(condition), timeout)

    # --- with ---

    def __enter__(self) -> Self:
        self._check_unused()
        session = self._session = Session(self._settings)
        try:
            session.put_on()
            return self
        except BaseException:  # an interrupt after all was done
            session.take_off()
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
            self._session.take_off()
        except BaseException:  # an interrupt
            self._session.take_off()
            raise
        finally:
            try:
                self._session.workers.join(self.timeout)
            finally:
                self._session.end_quiet()
        self._session.waits.judge(error)

    async def __aenter__(self) -> AsyncBreakpoint:
        given = self._settings
        entered = AsyncBreakpoint(
            given.target, given.event, given.condition, given.timeout, given.fire
        )
        self._async = await entered.__aenter__()
        return entered

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        entered, self._async = self._async, None
        if entered is not None:
            await entered.__aexit__(kind, error, trace)


class Nowhere(Breakpoint):
    """A breakpoint on nothing: it only starts threads, and waits for their end.

    Args:
        timeout: see :class:`Breakpoint`.
    """

    def __init__(self, timeout: float) -> None:
        super().__init__("nowhere", timeout=timeout)
        self._settings.kind, self._settings.has_target = "do", False


class AsyncBreakpoint(BaseBreakpoint):
    """The breakpoint of ``async with Breakpoint(...)``: for tasks in place of threads.

    A coroutine function stops when its coroutine is awaited, and other tasks go on. Another
    function stops the threads that call it; in the event loop's own it raises a
    :class:`~diagnose.errors.BreakpointError`, since nobody could let that go on.

    Attributes and arguments: see :class:`Breakpoint`.
    """

    def __init__(
        self,
        target: Any,
        event: str,
        condition: Condition | Sequence[Condition],
        timeout: float,
        fire: Callable[[Call], object] | Callable[[], object] | None,
    ) -> None:
        kind = type(self).__name__
        super().__init__(Settings.checked(kind, target, event, condition, timeout, fire))
        self._happened = asyncio.Event()  # at each entering another one

    def start_task(
        self, func: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
    ) -> StartedTask:
        """Call ``func`` and await what it returns in a task of its own; returns that.

        It has ``result`` and ``exception``, and can be awaited.
        """
        return self._session.workers.start_task(func, args, kwargs)

    async def join(self, timeout: float | None = None) -> None:
        """See :meth:`Breakpoint.join`; for tasks."""
        seconds = seconds_of(timeout, self.timeout)
        await self._session.workers.join_tasks(seconds)
        self._session.waits.check_workers(seconds)

    async def wait(self, timeout: float | None = None, hits: int | None = None) -> Call:
        """See :meth:`Breakpoint.wait`."""
        waits = self._session.waits
        await waits.wait_in_task(waits.for_hits(hits), timeout, self._happened)
        return waits.latest()

    async def wait_until(
        self, condition: Callable[[], object] | int, timeout: float | None = None
    ) -> None:
        """See :meth:`Breakpoint.wait_until`."""
        waits = self._session.waits
        await waits.wait_in_task(waits.for_state(condition), timeout, self._happened)

    async def __aenter__(self) -> Self:
        self._check_unused()
        loop, happened = asyncio.get_running_loop(), asyncio.Event()
        self._happened = happened
        self._session = Session(self._settings, loop)
        self._session.stop.monitor.listeners.append(lambda: tell(loop, happened.set))
        self._session.put_on()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        workers = self._session.workers
        if isinstance(error, TimeoutError):
            note_where(error, is_passing=True)
        try:
            self._session.take_off()
        finally:
            await workers.join_tasks(self.timeout)
            workers.cancel()
        self._session.waits.judge(error)
