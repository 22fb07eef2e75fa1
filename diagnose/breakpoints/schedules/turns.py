"""A run of a few threads that take turns: a single one goes on at a time, from point to point."""

from __future__ import annotations

import queue
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diagnose.breakpoints.calls import said
from diagnose.breakpoints.schedules.locks import RUNNERS
from diagnose.breakpoints.schedules.names import Names, plain
from diagnose.breakpoints.stacks import innermost, place_of, short

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diagnose.breakpoints.schedules.locks import Lock, Told

__all__ = ["Run", "Runner", "Step", "StuckError"]

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
    """A thread's turn.

    Attributes:
        letter: of the thread.
        told: the point or end that it came to.
        place: the file and line where it stands.
        also: turns of others then, which had been blocked by something that no schedule knows of.
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
        # A daemon: a thread that never ends is told of, and must not keep the program from ending.
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
        """See :class:`~diagnose.breakpoints.schedules.locks.Waiter`."""
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
        if (line := innermost(self.ident)) is None:
            return "at its start"
        code = line[0].f_code
        return f"in {plain(code.co_qualname)}(), {place_of(code.co_filename, line[1])}"


class Run:
    """A few threads that take turns on one subject.

    Attributes:
        steps: the turns so far.
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
        self._known = set(threading.enumerate())
        self._blocked: set[Runner] = set()
        self.runners = [
            Runner(self, letter, function, subject)
            for letter, function in zip("ABC", functions, strict=False)
        ]
        self._known.update(self.runners)

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
        while self._is_helped(runner):
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

    def _is_helped(self, runner: Runner) -> bool:
        """Whether a thread that takes no turns has freed, or soon frees, what one waits for.

        Then the step goes on, however quick the other one was: each run is to have the same steps.
        """
        lock = runner.lock
        if lock is None or (isinstance(lock.owner, Runner) and lock.owner is not runner):
            return False
        until = _monotonic() + _PATIENCE_SECONDS
        while not lock.is_free:
            left = until - _monotonic()
            if left <= 0 or set(threading.enumerate()) <= self._known:
                return False
            try:
                self.events.get(timeout=left)
            except queue.Empty:
                continue
        return True

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
        holder = (
            f"thread {owner.letter} holds" if isinstance(owner, Runner) else "nobody of them holds"
        )
        name = self.names.shown(lock).replace("Lock", lock.kind, 1)
        return f"{name}, which {holder} (made in {plain(function)}, {short(file)}:{line})"

    def _told(self, runner: Runner) -> Told:
        """The point or end that a thread came to in its turn."""
        if runner.raised is not None:
            text = said(runner.raised).replace("\n", "\n     ")
            return f"raises {text}", _origin(runner.raised)
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


def _origin(error: BaseException) -> tuple[str, int] | None:
    """The file and line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
