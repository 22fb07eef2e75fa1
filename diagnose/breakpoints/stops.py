"""What a breakpoint does when its target is called: it counts, and holds the caller or raises.

Everything here runs in the threads, and event loops, of the program under test.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

from diagnose.breakpoints import forks, places
from diagnose.breakpoints.conditions import Call, Conditions, said
from diagnose.breakpoints.stacks import entered, note_where
from diagnose.bytecode.containment import LOST
from diagnose.bytecode.weaving import Hook, Parameters
from diagnose.errors import BreakpointError, BreakpointTimeoutError
from diagnose.probes import Hooked
from diagnose.reentrancy import BUSY, Quiet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence
    from types import FrameType

    from diagnose.breakpoints.conditions import Condition

__all__ = ["EVENTS", "Stops", "check_seconds", "tell"]

EVENTS = ("call", "return", "error", "end", "line:N", "line:+K")
"""Before the function's body; when it has returned; when it has raised; just before either, with
its variables; before a line runs."""

_SEEN_AT_MOST = 1_000
_SHOWN_AT_MOST = 10
_getframe, _ident = sys._getframe, threading.get_ident
_active: dict[int, threading.Thread] = threading._active  # type: ignore[attr-defined]
_BOOTSTRAP = threading.Thread._bootstrap.__code__  # type: ignore[attr-defined]


class Opens(Protocol):
    """What holds a call, wherever it stands."""

    def open(self) -> None:
        """Let it go; without waiting for anything."""


class Gate:
    """Where a thread waits, until somebody opens it."""

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
    """Where a task waits, on its own event loop."""

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


_PASSES = _Passes()


class Stops:
    """The part of a breakpoint that both kinds of it have: what was seen, and who stands there.

    Thread-safe. Args: see :class:`diagnose.breakpoints.Breakpoint`.
    """

    def __init__(
        self,
        target: str | tuple[object, str] | Callable[..., object],
        event: str,
        condition: Condition | Sequence[Condition],
        timeout: float,
        fire: Callable[[Call], object] | Callable[[], object] | None,
    ) -> None:
        places.check(target)
        _check_event(event)
        check_seconds(timeout)
        Conditions(condition, None)
        fire = _taking_a_call(fire)
        self.target = target
        self.event = event
        self.timeout = timeout
        self._condition = condition
        self._fire = fire
        # It is entered itself, not the condition: that has an `__enter__` in Python, in which an
        # interrupt may come when it holds the lock already, and nobody would release it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._version = 0
        self._listeners: list[Callable[[], None]] = []
        self._place: places.Place | None = None
        self._hooked: Hooked | None = None
        self._enterer: int | None = None  # the thread, if no instrument was at work there
        self._takes_tasks = False
        self.hits_at_most: int | None = None
        self._reset()

    def _reset(self) -> None:
        self.calls = 0
        self.hits = 0
        self.seen: list[Call] = []
        self._latest: Call | None = None
        self._standing: list[tuple[Call, Opens]] = []
        self._is_open = False
        self._next_passes = False
        self._waited_for = 0
        self._raised: dict[int, BaseException] = {}
        self._broken: BreakpointError | None = None
        self._line: forks.Line | None = None  # to the breakpoint in the parent, if this is a child

    def __repr__(self) -> str:
        return f"{type(self).__name__}({places.describe(self.target)!r}, event={self.event!r})"

    @property
    def stackframe(self) -> FrameType | None:
        """The frame of the function whose call stands here; of several, the latest. Else None."""
        with self._lock:
            return self._standing[-1][0].frame if self._standing else None

    @property
    def standing(self) -> list[Call]:
        """The calls that stand here now, in the order in which they came."""
        with self._lock:
            return [call for call, _ in self._standing]

    def release(self) -> None:
        """Let all who stand here go on; if nobody does, let the next one pass who would.

        So it does not matter which of the two comes first.
        """
        # What is used to tell of it may itself be the target.
        with Quiet(), self._lock:
            standing = self._let_go()
            if not standing:
                self._next_passes = True

    def _let_go(self) -> int:
        standing, self._standing = self._standing, []
        for _, gate in standing:
            gate.open()
        self._tell_all()
        return len(standing)

    def _tell_all(self) -> None:
        self._version += 1
        self._changed.notify_all()
        for listener in self._listeners:
            listener()

    # --- on and off ---

    def _check_unused(self) -> None:
        if self._hooked is not None:
            message = f"{self!r} is in use already; make another one"
            raise RuntimeError(message)

    def _put_on(self, *, takes_tasks: bool) -> None:
        self._check_unused()
        self._reset()
        ident = _ident()
        self._enterer = None if ident in BUSY else ident
        # Each is kept before it does anything, so that an interrupt at any moment finds it.
        try:
            place = self._place = places.place_of(self.target)
            place.put_on()
            function = place.function(self.event)
            is_awaited = function is not None and bool(
                function.__code__.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR)
            )
            self._takes_tasks = takes_tasks and is_awaited
            self._conditions = Conditions(self._condition, place.signature(self.event))
            self._name = place.target.name
            event = {"error": "return", "leave": "return"}.get(self.event, self.event)
            self._hooked = Hooked(place.target, event, self._hook(event))
            self._hooked.put_on()
            entered.add(self)
            forks.watch(self)
        except BaseException:
            self._take_off()
            raise

    def _take_off(self) -> None:
        """Undo everything, and let everybody go; idempotent."""
        try:
            self._undo()
        except BaseException:
            # An interrupt (Ctrl-C) in the middle of it.
            self._undo()
            raise
        finally:
            self._end_quiet()

    def _end_quiet(self) -> None:
        """An interrupt may have kept a ``Quiet`` from ending."""
        if self._enterer is not None:
            BUSY.discard(self._enterer)

    def _undo(self) -> None:
        entered.discard(self)
        try:
            if self._hooked is not None:
                self._hooked.take_off()
                self._hooked = None
        finally:
            try:
                if self._place is not None:
                    self._place.undo()
                    self._place = None
            finally:
                with self._lock:
                    self._is_open = True
                    self._let_go()
                forks.forget(self)

    def _hook(self, event: str) -> Hook:
        names: tuple[str, ...] = ()
        handler: Callable[..., object]
        if event == "call":
            names = ("args", "kwargs")

            def at_call(args: Any, kwargs: Any) -> object:
                return self._reach(args, kwargs, _getframe(1))

            handler = at_call
        elif event == "return":
            names = ("args", "kwargs", "result", "exception")

            def at_end(args: Any, kwargs: Any, result: Any, exception: Any) -> object:
                if self.event != "leave" and (exception is None) is not (self.event == "return"):
                    return _PASSES
                return self._reach(args, kwargs, _getframe(1), result, exception)

            handler = at_end
        else:

            def inside() -> object:
                frame = _getframe(1)
                return self._reach(*_arguments(frame), frame)

            handler = inside
        return Hook(handler, names, may_raise=True, awaits=self._takes_tasks)

    # --- in the thread of the caller ---

    def _reach(
        self,
        args: tuple[Any, ...],
        kwargs: Any,
        frame: FrameType,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> Awaitable[None]:
        """Serve a call that got here; what it raises is raised by the function."""
        ident = _ident()
        if ident in BUSY or self._is_closing():
            return _PASSES
        if ident not in _active and _is_between(frame):
            return _PASSES
        # What is called from here may itself be the target.
        with Quiet():
            # They may be lost where there was no room for a call, at the recursion limit.
            kwargs = dict(kwargs) if kwargs is not LOST else {}
            call = Call(
                self._name,
                args=args,
                kwargs=kwargs,
                thread=threading.current_thread(),
                result=result,
                exception=exception,
            )
            gate = self._note(call, frame)
            if gate is None and call.is_hit and self._fire is not None:
                self._call_fire(self._fire, call, frame)
        if isinstance(gate, TaskGate):
            return self._hold_task(call, gate)
        if gate is not None:
            self._hold(call, gate)
        return _PASSES

    def _note(self, call: Call, frame: FrameType) -> Gate | TaskGate | forks.FarGate | None:
        """Take note of a call; returns where it has to stand, if it has to."""
        line = self._line
        call.number = self._count() if line is None else line.ask("count") or 0
        if not call.number:
            return None  # in a child that nobody waits for
        try:
            call.is_hit = self._conditions.meet(call)
        except Exception as error:  # noqa: BLE001 - the test's predicate
            self._note_broken(call, error)
        stops = call.is_hit and self._fire is None
        if line is not None:
            return self._note_in_child(line, call, frame, stops=stops)
        gate: Gate | TaskGate | None = None
        if stops:
            # A coroutine may be driven without a loop, by its ``send``.
            is_task = self._takes_tasks and asyncio._get_running_loop() is not None
            gate = TaskGate() if is_task else Gate()
        return gate if self._admit(call, gate, frame) else None

    def _count(self) -> int:
        with self._lock:
            self.calls += 1
            return self.calls

    def _admit(self, call: Call, gate: Opens | None, frame: FrameType | None) -> bool:
        """Take note of a call whose conditions were looked at; returns whether it has to stand."""
        with self._lock:
            if len(self.seen) < _SEEN_AT_MOST:
                self.seen.append(call)
            if self.hits_at_most is not None and self.hits >= self.hits_at_most:
                call.is_hit, gate = False, None
            if call.is_hit:
                self.hits += 1
                self._latest = call
            if gate is not None:
                if self._is_open or self._next_passes:
                    self._next_passes, gate = False, None
                else:
                    call.frame = frame
                    self._standing.append((call, gate))
            self._tell_all()
        return gate is not None

    # --- children that were forked, see forks.py ---

    def _note_in_child(
        self, line: forks.Line, call: Call, frame: FrameType, *, stops: bool
    ) -> forks.FarGate | None:
        """In the child: the parent takes note of it."""
        broken = None if self._broken is None else str(self._broken)
        gate = line.admit(call, self._conditions.met, broken, stops=stops)
        if gate is not None:
            with self._lock:
                call.frame = frame
                self._standing.append((call, gate))
        return gate

    def _note_child(self, met: list[bool], broken: str | None) -> None:
        """In the parent: what became of the conditions in a child."""
        with self._lock:
            for number, is_met in enumerate(met):
                self._conditions.met[number] |= is_met
            if broken is not None and self._broken is None:
                self._broken = BreakpointError(broken)

    def _begin_in_child(self, line: forks.Line) -> None:
        """In a child that was just forked: of all threads it has only this one."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._standing, self._listeners = [], []
        self._line = line
        self._is_open = not line.is_open  # then nobody could release them

    # --- standing ---

    def _is_closing(self) -> bool:
        return self._is_open

    def _call_fire(self, fire: Callable[[Call], object], call: Call, frame: FrameType) -> None:
        call.frame = frame
        try:
            fire(call)
        except BaseException as error:
            self._raised[id(error)] = error
            raise
        finally:
            call.frame = None

    def _hold(self, call: Call, gate: Gate | forks.FarGate) -> None:
        try:
            self._check_hold()
            if not gate.wait(self.timeout):
                self._give_up(call, gate)
        finally:
            self._leave(call, gate)

    def _check_hold(self) -> None:
        """Raise if the caller must not be held."""

    async def _hold_task(self, call: Call, gate: TaskGate) -> None:
        try:
            if not await gate.wait(self.timeout):
                self._give_up(call, gate)
        finally:
            self._leave(call, gate)

    def _give_up(self, call: Call, gate: Opens) -> None:
        with self._lock:
            if (call, gate) not in self._standing:
                return  # it was let go in the very last moment
        message = (
            f"{call} stood at {self!r} for {self.timeout:g} s, and nobody called release(); call "
            "it, give the breakpoint a longer timeout, or a condition that this call does not "
            "meet (condition=0: only the first call stops)"
        )
        error = BreakpointTimeoutError(message)
        note_where(error)
        raise error

    def _leave(self, call: Call, gate: Opens) -> None:
        call.frame = None
        with Quiet(), self._lock:
            if (call, gate) in self._standing:
                self._standing.remove((call, gate))
                self._tell_all()

    def _note_broken(self, call: Call, error: Exception) -> None:
        with self._lock:
            if self._broken is None:
                message = f"the condition of {self!r} raised {said(error)}, for {call}"
                self._broken = BreakpointError(message)
                self._broken.__cause__ = error

    # --- what there is to say ---

    def told(self) -> tuple[Sequence[Call], Sequence[str]]:
        """For :mod:`diagnose.breakpoints.stacks`: no lock, it may be asked in a signal handler."""
        standing = list(self._standing)
        threads = [call for call, gate in standing if isinstance(gate, Gate)]
        tasks = [f"{call}: stands" for call, gate in standing if isinstance(gate, TaskGate)]
        return threads, tasks

    def _story(self) -> str:
        """What happened instead."""
        if not self.calls:
            text = "it was not called at all"
            if isinstance(self.target, tuple):
                text += (
                    " through that attribute (a bound method or another reference that was made "
                    "before is not stopped: name the function by its path for that)"
                )
        else:
            calls = "1 call" if self.calls == 1 else f"{self.calls} calls"
            text = f"{calls} got there"
            for call in self.seen[:_SHOWN_AT_MOST]:
                text += f"\n  {call.number}. {call}{' (a hit)' if call.is_hit else ''}"
            if self.calls > _SHOWN_AT_MOST:
                text += f"\n  … and {self.calls - _SHOWN_AT_MOST} more"
            if self._conditions.has_numbers:
                text += "\n(condition= counts calls from 0)"
        return text

    def _check_met(self) -> None:
        if self._line is not None:
            return  # that is the parent's
        if self._broken is not None:
            raise self._broken
        if unmet := self._conditions.unmet:
            what = (
                f"{places.describe(self.target)} at {self.event!r}: expected {' and '.join(unmet)}"
            )
            raise BreakpointError(f"{what}; {self._story()}{self._others()}")

    def _others(self) -> str:
        return ""


def _arguments(frame: FrameType) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments, from the frame's variables as they are now; a deleted one is None."""
    parameters, variables = Parameters.of(frame.f_code), frame.f_locals
    args = tuple(variables.get(name) for name in parameters.positional)
    kwargs = {name: variables.get(name) for name in parameters.keyword_only}
    if parameters.star is not None:
        args += tuple(variables.get(parameters.star) or ())
    if parameters.double_star is not None:
        kwargs.update(variables.get(parameters.double_star) or {})
    return args, kwargs


def _is_between(frame: FrameType) -> bool:
    """Whether a thread is about to begin, so that its ``start()`` still waits for it, or has ended.

    Another one that :mod:`threading` does not know was made by C code.
    """
    outermost = frame
    while outermost.f_back is not None:
        outermost = outermost.f_back
    return outermost.f_code is _BOOTSTRAP


def _taking_a_call(fire: Any) -> Callable[[Call], object] | None:
    """What is to be done at a hit, as a function of the call; it may also be one of nothing."""
    if fire is None:
        return None
    if not callable(fire):
        message = f"fire {fire!r:.100} can't be called; give a function that takes the call"
        raise TypeError(message)
    try:
        inspect.signature(fire).bind()
    except (TypeError, ValueError):  # it needs an argument, or does not say
        return fire  # type: ignore[no-any-return]
    try:
        inspect.signature(fire).bind(None)
    except TypeError:
        return lambda _: fire()
    return fire  # type: ignore[no-any-return]


def _check_event(event: object) -> None:
    if event in {"call", "return", "error", "end", "leave"}:
        return
    if isinstance(event, str) and event.startswith("line:"):
        number = event.removeprefix("line:").removeprefix("+")
        if number.isdecimal():
            return
    message = f"event {event!r:.100} is none of {', '.join(map(repr, EVENTS))}"
    raise ValueError(message)


def check_seconds(timeout: object) -> None:
    """Say what is wrong with something that can be no timeout.

    Raises:
        ValueError: it is no number above 0.
    """
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not 0 < timeout < threading.TIMEOUT_MAX:  # type: ignore[operator]
        message = f"timeout {timeout!r:.100} is no number of seconds above 0"
        raise ValueError(message)
