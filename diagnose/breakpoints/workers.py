"""Threads and tasks that a breakpoint starts, and what became of them."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from typing import TYPE_CHECKING, Any

from diagnose.breakpoints.calls import said, shown
from diagnose.breakpoints.stacks import innermost, note_where, place_of
from diagnose.errors import BreakpointTimeoutError
from diagnose.reentrancy import Quiet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Started", "StartedTask", "Workers"]

_BEGIN_SECONDS = 0.5


class Started(threading.Thread):
    """A thread that keeps what its function returned or raised.

    Attributes:
        result: what the function returned; None until then.
        has_ended: the function has returned or raised.
        starter: the breakpoint that started it, in words.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        ended: Callable[[], None],
        starter: str,
    ) -> None:
        name = getattr(function, "__name__", type(function).__name__)
        # A daemon: a thread that never ends is an error of the test, and must not keep it from ending.
        super().__init__(name=f"breakpoint:{name}", daemon=True)
        self._function, self._args, self._kwargs = function, args, kwargs
        self._ended = ended
        self.starter = starter
        self.result: Any = None
        self.raised: BaseException | None = None
        self.is_seen = False
        self.has_ended = False
        self._begun = threading.Lock()
        self._begun.acquire()

    def has_begun(self, seconds: float) -> bool:
        """Whether it begins, within so many seconds; asked once, when its start was given up."""
        return self._begun.acquire(timeout=seconds)

    @property
    def exception(self) -> BaseException | None:
        """The exception of the function, or None. Asked for here, it is raised nowhere else."""
        self.is_seen = True
        return self.raised

    def run(self) -> None:
        """Call the function."""
        self._begun.release()
        try:
            self.result = self._function(*self._args, **self._kwargs)
        except BaseException as error:  # noqa: BLE001 - the test gets it
            self.raised = error
        finally:
            del self._function, self._args, self._kwargs
            # The thread itself is alive for some time more.
            self.has_ended = True
            with Quiet():
                self._ended()

    @property
    def whereabouts(self) -> str:
        """Where it is, or how it ended, in words."""
        if self.raised is not None:
            return f"{self.name!r} raised {said(self.raised)}"
        if self.has_ended:
            return f"{self.name!r} returned {shown(self.result)}"
        if (line := innermost(self.ident)) is None:
            return f"{self.name!r} is about to start"
        code = line[0].f_code
        return f"{self.name!r} is in {code.co_name} ({place_of(code.co_filename, line[1])})"


class StartedTask:
    """A task that a breakpoint started.

    Attributes:
        task: of :mod:`asyncio`.
    """

    def __init__(self, awaitable: Awaitable[Any], name: str, ended: Callable[[], None]) -> None:
        async def run() -> Any:
            return await awaitable

        self.task = asyncio.get_running_loop().create_task(run(), name=f"breakpoint:{name}")
        self.task.add_done_callback(lambda _: ended())
        self.is_seen = False

    def __await__(self) -> Any:
        self.is_seen = True
        return self.task.__await__()

    @property
    def name(self) -> str:
        """Of the task."""
        return self.task.get_name()

    @property
    def result(self) -> Any:
        """Its return value; None until then, or if it raised."""
        is_well = self.task.done() and not self.task.cancelled() and not self.raised
        return self.task.result() if is_well else None

    @property
    def raised(self) -> BaseException | None:
        """See :class:`Started`."""
        if not self.task.done() or self.task.cancelled():
            return None
        return self.task.exception()

    @property
    def exception(self) -> BaseException | None:
        """See :class:`Started`."""
        self.is_seen = True
        return self.raised

    @property
    def has_ended(self) -> bool:
        """Whether it has returned, raised or was cancelled."""
        return self.task.done()

    @property
    def whereabouts(self) -> str:
        """See :class:`Started`."""
        if self.raised is not None:
            return f"{self.name!r} raised {said(self.raised)}"
        if self.task.cancelled():
            return f"{self.name!r} was cancelled"
        if self.task.done():
            return f"{self.name!r} returned {shown(self.result)}"
        inner: Any = self.task.get_coro()
        while getattr(inner, "cr_await", None) is not None:
            following = inner.cr_await
            code = getattr(following, "cr_code", None)
            if code is None or "/diagnose/breakpoints/" in code.co_filename:
                break
            inner = following
        frame = getattr(inner, "cr_frame", None)
        if frame is None:
            return f"{self.name!r} is running"
        code = frame.f_code
        return f"{self.name!r} is in {code.co_name} ({code.co_filename}:{frame.f_lineno})"


class Workers:
    """The threads and tasks that a breakpoint started, and what they raised.

    Args:
        starter: the breakpoint; its text names it in messages.
        ended: called when one of them ends, in its thread or event loop.
        is_meant: whether the test means an exception to be raised, so that it needs no telling.
    """

    def __init__(
        self,
        starter: object,
        ended: Callable[[], None],
        is_meant: Callable[[BaseException], bool],
    ) -> None:
        self._starter, self._ended, self._is_meant = starter, ended, is_meant
        self._started: list[Started | StartedTask] = []
        self._late: list[str] = []

    def start_thread(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Started:
        """Call a function in a thread of its own; returns the thread."""
        thread = Started(func, args, kwargs, self._ended, repr(self._starter))
        self._started.append(thread)
        try:
            # What is used to start, to wait and to join may itself be the target.
            with Quiet():
                thread.start()
        except BaseException as error:
            # After an interrupt it may begin all the same. If not, it has no end to wait for.
            if isinstance(error, Exception) or not thread.has_begun(_BEGIN_SECONDS):
                self._started.remove(thread)
            raise
        return thread

    def start_task(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> StartedTask:
        """Call a function, and await what it returns in a task of its own; returns that.

        Raises:
            TypeError: it returned something that can't be awaited.
        """
        awaitable: Any = func(*args, **kwargs)
        if not inspect.isawaitable(awaitable):
            message = (
                f"{func!r:.100} returned {awaitable!r:.100}, which can't be awaited; a plain "
                "function runs in a thread: start_task(asyncio.to_thread, function)"
            )
            raise TypeError(message)
        name = getattr(func, "__name__", type(func).__name__)
        started = StartedTask(awaitable, name, self._ended)
        self._started.append(started)
        return started

    def forget(self) -> None:
        """Begin anew in a child that was just forked: they run in the parent."""
        self._started = []

    def join(self, seconds: float) -> None:
        """Wait until the threads have ended, or the time is over."""
        with Quiet():
            deadline = time.monotonic() + seconds
            for each in self._started:
                if isinstance(each, Started):
                    each.join(max(0.0, deadline - time.monotonic()))

    async def join_tasks(self, seconds: float) -> None:
        """Wait until the tasks have ended, or the time is over."""
        tasks = [each.task for each in self._started if isinstance(each, StartedTask)]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def cancel(self) -> None:
        """Cancel the tasks that have not ended; :meth:`raise_late` tells of them."""
        for each in self._started:
            if isinstance(each, StartedTask) and not each.has_ended:
                self._late.append(each.whereabouts)
                each.task.cancel()

    @property
    def have_all_ended(self) -> bool:
        """Whether there are some, and none can call the target any more."""
        return bool(self._started) and all(each.has_ended for each in self._started)

    @property
    def whereabouts(self) -> str:
        """Where each of them is, in words that go on a message."""
        each = "".join(f"\n  {each.whereabouts}" for each in self._started)
        return f"\nstarted by it:{each}" if each else ""

    @property
    def tasks(self) -> list[str]:
        """Where each task is that has not ended, in words. It takes no lock."""
        return [
            each.whereabouts
            for each in list(self._started)
            if isinstance(each, StartedTask) and not each.has_ended
        ]

    def raise_theirs(self) -> None:
        """Raise what one of them raised that nobody knows of yet."""
        error = self._theirs()
        if error is None:
            return
        for each in self._started:
            if each.raised is error:
                each.is_seen = True
                error.add_note(f"raised by {each.name!r}, which {self._starter!r} started")
        raise error

    def _theirs(self) -> BaseException | None:
        for each in self._started:
            error = each.raised
            # As with any thread: SystemExit ends it, and nothing else.
            is_end = isinstance(error, SystemExit)
            if error is not None and not (is_end or each.is_seen or self._is_meant(error)):
                return error
        return None

    def raise_late(self, seconds: float, hint: str) -> None:
        """Raise if one of them has not ended.

        Args:
            seconds: how long it was waited for.
            hint: what to do, for the message.

        Raises:
            BreakpointTimeoutError: it says where they are.
        """
        late = self._late or [each.whereabouts for each in self._started if not each.has_ended]
        if late:
            message = f"{self._starter!r}: not ended after {seconds:g} s: {', '.join(late)}{hint}"
            error = BreakpointTimeoutError(message)
            note_where(error)
            raise error
