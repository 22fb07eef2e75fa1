"""The points at which threads that take turns stop, and how it is told."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from diagnose.breakpoints import places
from diagnose.breakpoints.blocked import PASSES
from diagnose.breakpoints.hooking import Hooking
from diagnose.breakpoints.schedules.locks import RUNNERS
from diagnose.breakpoints.settings import check_event
from diagnose.reentrancy import BUSY

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import FrameType

    from diagnose.breakpoints.schedules.locks import Told
    from diagnose.breakpoints.schedules.names import Names

__all__ = ["Point"]

_ident = threading.get_ident


class Point:
    """A point at which the threads of a run stop; others pass.

    Attributes:
        target: as a breakpoint takes it.
        event: where in it.
        calls: how often a thread of a run stopped there.

    Raises:
        DiagnoseError: the target is none.
        ValueError: the event is none.
    """

    def __init__(self, target: str | tuple[object, str], event: str) -> None:
        places.check(target)
        check_event(event)
        self.target, self.event = target, event
        self.calls = 0
        self._hooking = Hooking(target, event)

    @property
    def namespace(self) -> dict[str, Any]:
        """The namespace of its function's module; empty while it is not put on."""
        return self._hooking.namespace

    def put_on(self) -> None:
        """Begin to stop threads.

        Raises:
            DiagnoseError: there is no such function, or event in it.
        """
        try:
            self._hooking.find()
            self._hooking.put_on(self._reach)
        except BaseException:
            self.take_off()
            raise

    def take_off(self) -> None:
        """Put back what was there before; idempotent."""
        try:
            self._hooking.take_off()
        except BaseException:
            # An interrupt (Ctrl-C) in the middle of it.
            self._hooking.take_off()
            raise
        finally:
            self._hooking.end_quiet()

    def _reach(
        self,
        args: tuple[Any, ...],
        kwargs: Any,
        frame: FrameType,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> Awaitable[None]:
        ident = _ident()
        runner = RUNNERS.get(ident)
        if runner is not None and ident not in BUSY:
            self.calls += 1  # the threads take turns
            runner.stop_at(self._told(runner.names, args, kwargs, frame, result, exception))
        return PASSES

    def _told(  # noqa: PLR0917 - what a hook gets
        self,
        names: Names,
        args: tuple[Any, ...],
        kwargs: Any,
        frame: FrameType,
        result: Any,
        exception: BaseException | None,
    ) -> Told:
        """The text on it, and the file and line that show where."""
        name = self._hooking.name
        if self.event.startswith("line:"):
            return f"a line of {name}()", (frame.f_code.co_filename, frame.f_lineno)
        back = frame.f_back
        caller = None if back is None else (back.f_code.co_filename, back.f_lineno)
        if self.event == "call":
            given = [names.shown(each) for each in args]
            if isinstance(kwargs, dict):
                given += [f"{key}={names.shown(each)}" for key, each in kwargs.items()]
            return f"the call {name}({', '.join(given)})", caller
        if self.event == "end":
            return f"the end of {name}()", caller
        if exception is not None:
            return f"{name}() raising {type(exception).__name__}", caller
        return f"{name}() returning {names.shown(result)}", caller
