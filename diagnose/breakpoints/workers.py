"""Threads and tasks that a breakpoint starts, and what became of them."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from diagnose.breakpoints.conditions import said, shown
from diagnose.breakpoints.stacks import innermost, place_of
from diagnose.reentrancy import Quiet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Started", "StartedTask"]


class Started(threading.Thread):
    """A thread that keeps what its function returned or raised.

    Attributes:
        result: what the function returned; None until then.
        has_ended: the function has returned or raised.
        starter: what started it, in words.
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
        # A daemon: one that never ends is an error of the test, and must not keep it from ending.
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
        """Whether it begins, within so many seconds; to be asked once, by who gave up its start."""
        return self._begun.acquire(timeout=seconds)

    @property
    def exception(self) -> BaseException | None:
        """What the function raised, or None. Who asks for it has seen it: it is raised nowhere."""
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
        """What it returned; None until then, or if it raised."""
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
