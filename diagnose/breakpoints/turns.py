"""One run of a few threads that take turns: one goes on at a time, from point to point."""

from __future__ import annotations

import linecache
import os
import queue
import reprlib
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from diagnose.breakpoints import stops
from diagnose.breakpoints.locks import RUNNERS, is_inside
from diagnose.handlers import BUSY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import FrameType

    from diagnose.breakpoints.locks import Lock

__all__ = ["Point", "Run", "Runner", "Step", "StuckError", "name_of"]

_LOOK_SECONDS = 0.003
# How long a thread must be still to count as blocked by something that no schedule knows of (a
# lock of C code, a socket). Where the system says what a thread does, it is known to wait.
_PATIENCE_SECONDS = 0.03 if hasattr(time, "pthread_getcpuclockid") else 0.3
_UNWIND_SECONDS = 1.0
_STEPS_AT_MOST = 10_000

_READY, _RUNNING, _WAITING, _ENDED = "ready", "running", "waiting", "ended"
_ident, _monotonic = threading.get_ident, time.monotonic


class AbandonedError(BaseException):
    """Raised in a thread whose run is over, so that it leaves what it holds and ends."""


class StuckError(Exception):
    """No thread of a run can go on; the text says where they stand."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a thread did in one turn.

    Attributes:
        letter: of the thread.
        told: what it came to.
        place: the file and line where it stands.
        also: what others did then, who had been blocked by something that no schedule knows of.
    """

    letter: str
    told: str
    place: tuple[str, int] | None
    also: list[Step] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.letter} {self.told}"
        if self.place is not None:
            text += f", {place_of(*self.place)}"
        return "; then ".join([text, *map(str, self.also)])


Told: TypeAlias = tuple[str, tuple[str, int] | None]


class Point(stops.Stops):
    """A point at which the threads of a run stop; others pass."""

    def __init__(self, target: str | tuple[object, str], event: str) -> None:
        super().__init__(target, event, None, 1.0, None)

    @property
    def namespace(self) -> dict[str, Any]:
        """The namespace of its function's module; empty while it is not put on."""
        function = self._place.target.function if self._place is not None else None
        return {} if function is None else function.__globals__

    def put_on(self) -> None:
        """Begin to stop threads.

        Raises:
            DiagnoseError: there is no such function, or event in it.
        """
        self._put_on(takes_tasks=False)

    def take_off(self) -> None:
        """Put back what was there before; idempotent."""
        self._take_off()

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
        if isinstance(runner, Runner) and ident not in BUSY:
            self.calls += 1  # the threads take turns
            runner.stop_at(self._told(runner.names, args, kwargs, frame, result, exception))
        return stops._PASSES

    def _told(  # noqa: PLR0917 - what a hook gets
        self,
        names: Names,
        args: tuple[Any, ...],
        kwargs: Any,
        frame: FrameType,
        result: Any,
        exception: BaseException | None,
    ) -> Told:
        """What is said of it, and the file and line that show where."""
        name = self._name
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


class Names(reprlib.Repr):
    """Short texts for objects, for which none of their own code is run: that would be a step too.

    Objects of classes are numbered in the order in which a run meets them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self._known: dict[int, tuple[str, object]] = {}
        self._counts: dict[str, int] = {}

    def shown(self, value: object) -> str:
        """A short text."""
        return self.repr(value)

    def repr1(self, x: Any, level: int) -> str:
        """See :class:`reprlib.Repr`."""
        if type(x) in _PLAIN:
            return super().repr1(x, level)
        if (found := self._known.get(id(x))) is None:
            name = type(x).__name__
            if isinstance(x, type):
                return f"<class {x.__name__}>"
            number = self._counts[name] = self._counts.get(name, 0) + 1
            # The object is kept, since another one could get its id.
            found = self._known[id(x)] = f"<{name} {number}>", x
        return found[0]


_PLAIN = {type(None), bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset}


class Runner(threading.Thread):
    """A thread that takes turns.

    Attributes:
        letter: its name in a schedule.
        names: of objects in this run.
        raised: what its function raised.
        lock: that it waits for, or None.
    """

    def __init__(
        self, run: Run, letter: str, function: Callable[[Any], object], subject: object
    ) -> None:
        # A daemon: one that never ends is told of, and must not keep the program from ending.
        super().__init__(name=f"schedule:{letter}", daemon=True)
        self.letter = letter
        self.names = run.names
        self.raised: BaseException | None = None
        self.lock: Lock | None = None
        self.deadline: float | None = None
        self.state = _READY
        self.stopped_at: Told | None = None
        self.is_late = False
        self._run, self._function, self._subject = run, function, subject
        self._gate = threading.Lock()
        self._gate.acquire()
        self._clock: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its function has returned or raised."""
        return self.state == _ENDED

    @property
    def can_go_on(self) -> bool:
        """Whether there is something to do in a turn."""
        return self.state == _READY or (
            self.state == _WAITING and self.lock is not None and self.lock.is_free
        )

    def run(self) -> None:
        """Call the function, in turns."""
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(_ident())
        RUNNERS[_ident()] = self
        try:
            self._gate.acquire()
            if not self._run.is_over:
                self._function(self._subject)
        except AbandonedError:
            pass
        except BaseException as error:  # noqa: BLE001 - the run gets it
            self.raised = error
        finally:
            del RUNNERS[_ident()], self._function, self._subject
            self.state = _ENDED
            self.tell()

    def go_on(self) -> None:
        """Let it; called by the run."""
        self.state = _RUNNING
        self._gate.release()

    def tell(self) -> None:
        """Say to the run that something changed."""
        self._run.events.put(None)

    def stop_at(self, told: Told) -> None:
        """It came to a point."""
        self.stopped_at = told
        self._pause(_READY)

    def wait_for(self, lock: Lock, deadline: float | None) -> bool:
        """See :class:`~diagnose.breakpoints.locks.Waiter`."""
        self.lock, self.deadline, self.is_late = lock, deadline, False
        try:
            self._pause(_WAITING)
            return not self.is_late
        finally:
            self.lock = self.deadline = None

    def _pause(self, state: str) -> None:
        if not self._run.is_over:
            self.state = state
            self.tell()
            self._gate.acquire()
        self.check()

    def check(self) -> None:
        """Raise if it shall not go on."""
        if self._run.is_over:
            # Each time: some programs catch everything and try again.
            raise AbandonedError

    @property
    def position(self) -> object:
        """Something that stays equal only while the thread does nothing."""
        frame = sys._current_frames().get(self.ident or 0)
        busy: float = 0
        try:
            if self._clock is not None:
                busy = time.clock_gettime_ns(self._clock)
            if sys.platform == "linux":
                # Its letter: a thread that only gets no processor is no blocked one.
                stat = Path(f"/proc/self/task/{self.native_id}/stat").read_bytes()
                if stat.rpartition(b")")[2].split()[0] != b"S":
                    return object()
        except OSError:  # it has ended just now, or there is no /proc
            pass
        return (id(frame), frame and frame.f_lasti, busy)

    @property
    def whereabouts(self) -> str:
        """Where it stands, in words."""
        frame = sys._current_frames().get(self.ident or 0)
        while frame is not None and is_inside(frame.f_code.co_filename) and frame.f_back:
            frame = frame.f_back
        if frame is None or frame.f_code.co_filename == threading.__file__:
            return "at its start"
        return f"in {plain(frame.f_code.co_qualname)}(), {place_of(frame.f_code.co_filename, frame.f_lineno)}"


class Run:
    """A few threads that take turns on one subject.

    Attributes:
        steps: what was done.
        is_over: nobody shall go on any more.
        events: something is put there whenever a thread stops.
    """

    def __init__(
        self, subject: object, functions: Sequence[Callable[[Any], object]], timeout: float
    ) -> None:
        self.steps: list[Step] = []
        self.is_over = False
        self.events: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.names = Names()
        self._timeout = timeout
        self._current: Runner | None = None
        self._since = _monotonic()
        self._blocked: set[Runner] = set()
        self.runners = [
            Runner(self, letter, function, subject)
            for letter, function in zip("ABC", functions, strict=False)
        ]

    @property
    def schedule(self) -> str:
        """A letter for each step."""
        return "".join(each.letter for each in self.steps)

    def play(self, choose: Callable[[list[str], str | None], str]) -> None:
        """Run the threads to their ends.

        Args:
            choose: gets the letters of the threads that can go on, and of the one that did (None
                at first); returns the letter of the one that shall.

        Raises:
            StuckError: no thread can go on.
            BaseException: what a thread raised, or ``choose``.
        """
        try:
            for each in self.runners:
                each.start()
            self._since = _monotonic()
            while able := self._able():
                last = self._current.letter if self._current is not None else None
                letter = choose([each.letter for each in able], last)
                self._step(next(each for each in able if each.letter == letter))
        finally:
            self._end()

    def _step(self, runner: Runner) -> None:
        self._current = runner
        runner.go_on()
        self._settle(runner)
        self.steps.append(Step(runner.letter, *self._told(runner)))
        self._blocked.discard(runner)
        self._note_blocked()
        if runner.has_ended or runner.state == _READY:
            self._since = _monotonic()
        if runner.raised is not None:
            raise runner.raised
        if len(self.steps) >= _STEPS_AT_MOST:
            raise StuckError(f"there was no end after {_STEPS_AT_MOST:,} steps{self._standing()}")

    def _note_blocked(self) -> None:
        """Tell of those who went on without a turn; to be called when all stand."""
        for each in self.runners:
            if each in self._blocked and each.state != _RUNNING:
                self.steps[-1].also.append(Step(each.letter, *self._told(each)))
        self._blocked = {each for each in self.runners if each.state == _RUNNING}

    def _able(self) -> list[Runner]:
        """Those who can go on; waits for what takes time. Empty: all have ended."""
        while True:
            for each in self.runners:
                if each.raised is not None:
                    raise each.raised
            able = [each for each in self.runners if each.can_go_on]
            alive = [each for each in self.runners if not each.has_ended]
            if able or not alive:
                return able
            now = _monotonic()
            timed = [(each.deadline, each) for each in alive if each.deadline is not None]
            deadline = self._since + self._timeout
            if not timed and self._is_deadlock(alive):
                raise StuckError(f"it was a deadlock: nobody can go on{self._standing()}")
            if now >= deadline:
                text = f"nobody could go on for {self._timeout:g} s, which may be a deadlock"
                raise StuckError(text + self._standing())
            if timed:
                # Time passes only when nobody can do anything else, whatever the machine does.
                until, first = min(timed, key=lambda pair: pair[0])
                if now >= until:
                    first.is_late, first.state = True, _READY
                    continue
                deadline = min(deadline, until)
            try:
                self.events.get(timeout=deadline - now)
            except queue.Empty:
                continue
            self._settle(None)
            self._note_blocked()

    def _settle(self, runner: Runner | None) -> None:
        """Wait until all threads stand: at a point, at a lock, or blocked by something else."""
        still: dict[Runner, tuple[object, float]] = {}
        while moving := [each for each in self.runners if each.state == _RUNNING]:
            if _monotonic() - self._since >= self._timeout:
                text = f"nobody came to a point or to an end within {self._timeout:g} s"
                raise StuckError(text + self._standing())
            is_first = not still and runner in moving
            try:
                # Most steps are short: nobody looks at those.
                self.events.get(timeout=_PATIENCE_SECONDS if is_first else _LOOK_SECONDS)
            except queue.Empty:
                pass
            else:
                still.clear()  # what it did may have let another one go on
                continue
            now = _monotonic()
            for each in moving:
                position = each.position
                if each not in still or still[each][0] != position:
                    still[each] = position, now
            if all(now - since >= _PATIENCE_SECONDS for _, since in still.values()):
                return

    def _is_deadlock(self, alive: list[Runner]) -> bool:
        """Whether it is certain that nobody can ever go on."""
        owners = [each.lock.owner if each.lock is not None else None for each in alive]
        if all(isinstance(owner, Runner) for owner in owners) and all(
            owner is not each for owner, each in zip(owners, alive, strict=True)
        ):
            return True
        # Another thread of the program might still wake those who wait for a notification.
        others = set(threading.enumerate()) - {threading.current_thread(), *self.runners}
        others = {each for each in others if not each.name.startswith("diagnose-")}
        return not others and all(each.lock is not None for each in alive)

    def _standing(self) -> str:
        text = ""
        for each in self.runners:
            if each.has_ended:
                continue
            text += f"\n    {each.letter} is {each.whereabouts}"
            if each.lock is not None:
                text += f"; it waits for {self._lock_text(each.lock)}"
            elif each.can_go_on:
                text += "; it could go on"
        return text

    def _lock_text(self, lock: Lock) -> str:
        if lock.kind == "notification":
            return "a notification (of a condition, an event, a queue…)"
        file, line, function = lock.made_at
        owner = lock.owner
        who = (
            f"thread {owner.letter} holds" if isinstance(owner, Runner) else "nobody of them holds"
        )
        name = self.names.shown(lock).replace("Lock", lock.kind, 1)
        return f"{name}, which {who} (made in {plain(function)}, {short(file)}:{line})"

    def _told(self, runner: Runner) -> Told:
        """What a thread came to in its turn."""
        if runner.raised is not None:
            return f"raises {type(runner.raised).__name__}: {runner.raised}", None
        if runner.has_ended:
            return "ends", None
        if runner.lock is not None:
            return f"waits for {self._lock_text(runner.lock)}", None
        if runner.state != _READY or runner.stopped_at is None:
            return f"is blocked {runner.whereabouts}", None
        text, place = runner.stopped_at
        return f"comes to {text}", place

    def _end(self) -> None:
        """Let all threads end."""
        self.is_over = True
        started = [each for each in self.runners if each.ident is not None]
        for _ in range(2):  # one that was blocked may have come to a point just now
            for each in started:
                if each.state in {_READY, _WAITING}:
                    # One after the other, since it runs what the program does in such a case.
                    each.go_on()
                    each.join(_UNWIND_SECONDS)
            for each in started:
                each.join(_UNWIND_SECONDS if each.has_ended else _PATIENCE_SECONDS)

    @property
    def left(self) -> list[str]:
        """Threads that can't be ended."""
        return [each.name for each in self.runners if each.is_alive()]


def short(file: str) -> str:
    """A path, relative where that is shorter."""
    here = str(Path.cwd()) + os.sep
    return file.removeprefix(here)


def place_of(file: str, line: int) -> str:
    """File, line and its text."""
    text = linecache.getline(file, line).strip()
    return f"{short(file)}:{line}" + (f": {text}" if text else "")


def plain(qualified: str) -> str:
    """A name without the functions that it is local to."""
    return qualified.rpartition("<locals>.")[2]


def name_of(function: Callable[..., object]) -> str:
    """What a callable is called, and where it is."""
    name = plain(getattr(function, "__qualname__", type(function).__qualname__))
    code = getattr(function, "__code__", None)
    return name if code is None else f"{name} ({short(code.co_filename)}:{code.co_firstlineno})"
