"""Serves the calls that get to a breakpoint: counts them, blocks the caller, or calls ``fire``.

Everything here runs in the threads, and event loops, of the program under test.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from diagnose.breakpoints.blocked import PASSES, Blocked, Gate, Monitor, TaskGate
from diagnose.breakpoints.calls import Call
from diagnose.breakpoints.conditions import Conditions
from diagnose.breakpoints.hits import Log
from diagnose.breakpoints.stacks import note_where
from diagnose.bytecode.containment import LOST
from diagnose.errors import BreakpointError, BreakpointTimeoutError
from diagnose.reentrancy import BUSY, Quiet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

    from diagnose.breakpoints.blocked import Opens
    from diagnose.breakpoints.lines import FarGate, Line
    from diagnose.breakpoints.settings import Settings

__all__ = ["Stop"]

_ident = threading.get_ident
_active: dict[int, threading.Thread] = threading._active  # type: ignore[attr-defined]
_BOOTSTRAP = threading.Thread._bootstrap.__code__  # type: ignore[attr-defined]


class Stop:
    """Serves each call that gets to a breakpoint, from its entering to its end.

    Thread-safe.

    Attributes:
        name: the function's, once it is found.
        takes_tasks: a coroutine function's tasks are held, in place of threads.
        monitor: the lock, and the news.
        log: the calls and hits so far.
        blocked: the calls that stand here.
        line: to the breakpoint in the parent, if this is a forked child.

    Args:
        settings: the breakpoint's.
        loop: the event loop of the test, which must never be held.
    """

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._settings = settings
        self._loop = loop
        self.name = ""
        self.takes_tasks = False
        self.monitor = Monitor()
        self.log = Log(settings, Conditions(settings.condition), self.monitor)
        self.blocked = Blocked(self.monitor)
        self.line: Line | None = None

    def __repr__(self) -> str:
        return repr(self._settings)

    def reach(
        self,
        args: tuple[Any, ...],
        kwargs: Any,
        frame: FrameType,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> Awaitable[None]:
        """Serve a call that got here; an exception from here is raised by the function."""
        ident = _ident()
        if ident in BUSY or self.blocked.is_open:
            return PASSES
        if ident not in _active and _is_between(frame):
            return PASSES
        # What is called from here may itself be the target.
        with Quiet():
            # They may be lost where there was no room for a call, at the recursion limit.
            kwargs = dict(kwargs) if kwargs is not LOST else {}
            call = Call(
                self.name,
                args=args,
                kwargs=kwargs,
                thread=threading.current_thread(),
                result=result,
                exception=exception,
            )
            gate = self._note(call, frame)
            fire = self._settings.fire
            if gate is None and call.is_hit and fire is not None:
                self._call_fire(fire, call, frame)
        if isinstance(gate, TaskGate):
            return self._hold_task(call, gate)
        if gate is not None:
            self._hold(call, gate)
        return PASSES

    def _note(self, call: Call, frame: FrameType) -> Gate | TaskGate | FarGate | None:
        """Take note of a call; returns where it has to stand, if it has to."""
        line = self.line
        call.number = self.log.count() if line is None else line.ask("count") or 0
        if not call.number:
            return None  # in a child that nobody waits for
        self.log.judge(call)
        stops = call.is_hit and self._settings.fire is None
        if line is not None:
            return self._note_in_child(line, call, frame, stops=stops)
        gate: Gate | TaskGate | None = None
        if stops:
            # A coroutine may be driven without a loop, by its ``send``.
            is_task = self.takes_tasks and asyncio._get_running_loop() is not None
            gate = TaskGate() if is_task else Gate()
        return gate if self.admit(call, gate, frame) else None

    def admit(self, call: Call, gate: Opens | None, frame: FrameType | None) -> bool:
        """Take note of a call whose conditions were looked at; returns whether it has to stand."""
        with self.monitor.lock:
            self.log.note(call)
            stands = gate is not None and call.is_hit and self.blocked.hold(call, gate, frame)
            self.monitor.announce()
        return stands

    def _note_in_child(
        self, line: Line, call: Call, frame: FrameType, *, stops: bool
    ) -> FarGate | None:
        """The parent takes note of it."""
        broken = None if self.log.broken is None else str(self.log.broken)
        gate = line.admit(call, self.log.conditions.met, broken, stops=stops)
        if gate is not None:
            self.blocked.keep(call, gate, frame)
        return gate

    def begin_in_child(self, line: Line) -> None:
        """Begin in a child that was just forked: of all threads it has only this one."""
        self.monitor.renew()
        self.line = line
        # Where there is no line, nobody could release them.
        self.blocked.begin_in_child(is_open=not line.is_open)

    def _call_fire(self, fire: Callable[[Call], object], call: Call, frame: FrameType) -> None:
        call.frame = frame
        try:
            fire(call)
        except BaseException as error:
            self.log.note_raised(error)
            raise
        finally:
            call.frame = None

    def _hold(self, call: Call, gate: Gate | FarGate) -> None:
        try:
            self._check_loop()
            if not gate.wait(self._settings.timeout):
                self._give_up(call, gate)
        finally:
            self.blocked.leave(call, gate)

    async def _hold_task(self, call: Call, gate: TaskGate) -> None:
        try:
            if not await gate.wait(self._settings.timeout):
                self._give_up(call, gate)
        finally:
            self.blocked.leave(call, gate)

    def _check_loop(self) -> None:
        """Raise if to hold this thread would be to hold the test."""
        if self._loop is None:
            return
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

    def _give_up(self, call: Call, gate: Opens) -> None:
        if not self.blocked.holds(call, gate):
            return  # it was let go in the very last moment
        message = (
            f"{call} stood at {self!r} for {self._settings.timeout:g} s, and nobody called "
            "release(); call it, give the breakpoint a longer timeout, or a condition that this "
            "call does not meet (condition=0: only the first call stops)"
        )
        error = BreakpointTimeoutError(message)
        note_where(error)
        raise error


def _is_between(frame: FrameType) -> bool:
    """Whether a thread is about to begin, so that its ``start()`` still waits for it, or has ended.

    Another one that :mod:`threading` does not know was made by C code.
    """
    outermost = frame
    while outermost.f_back is not None:
        outermost = outermost.f_back
    return outermost.f_code is _BOOTSTRAP
