"""`explore`: run threads in all interleavings of the points that they pass, and find a wrong one."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from diagnose.breakpoints.calls import said
from diagnose.breakpoints.conditions import is_whole
from diagnose.breakpoints.places import describe
from diagnose.breakpoints.schedules.locks import MAKERS, replaced
from diagnose.breakpoints.schedules.names import name_of
from diagnose.breakpoints.schedules.points import Point
from diagnose.breakpoints.schedules.turns import Run, StuckError
from diagnose.breakpoints.settings import check_seconds
from diagnose.errors import BreakpointError, ScheduleError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ScheduleReport", "explore"]

_exploring = threading.Lock()


@dataclass(frozen=True, slots=True)
class ScheduleReport:
    """The outcome of the schedules that were run.

    Attributes:
        count: how many were run.
        failing: those with a wrong outcome, each as a string for ``explore(schedule=…)``; those
            with the fewest context switches first.
        is_complete: there are no others.
        seed: that the sample was taken with, where there are others.
    """

    count: int
    failing: tuple[str, ...]
    is_complete: bool
    seed: int

    def __str__(self) -> str:
        count = "1 schedule" if self.count == 1 else f"{self.count:,} schedules"
        rest = "all there are" if self.is_complete else f"not all there are, seed {self.seed}"
        return f"{len(self.failing):,} of {count} failed ({rest})"


def explore(
    make: Callable[[], Any],
    threads: Sequence[Callable[[Any], object]],
    points: Sequence[Any],
    check: Callable[[Any], object] | None = None,
    *,
    samples: int | None = 1_000,
    seed: int = 0,
    schedule: str | None = None,
    timeout: float = 5.0,
) -> ScheduleReport:
    """Run threads in all orders of the points that they pass.

    One thread runs at a time. At each point it stops, and another one may go on: a schedule says
    which, a letter for each step (``"ABBA"``). A step is what a thread does from its start, or a
    point, to the next point, to its end, or to a lock that another one holds. All schedules are
    run, those with the fewest preemptions first (a thread stops that could go on); each on a new
    subject::

        def check(account):
            assert account.balance == 120

        explore(
            make=lambda: Account(100),
            threads=[lambda account: account.deposit(10)] * 2,
            points=[("bank.Account.deposit", "line:+2")],
            check=check,
        )

    A schedule fails if ``check`` raises, a thread raises, or no thread can go on. Exceptions that
    a thread is meant to raise it has to catch itself.

    Locks that ``make`` and the threads make by :mod:`threading` (by name, or by a name imported
    into the module of a point, a thread, ``make`` or ``check``), and what is made of such locks
    (conditions, events, queues), are known: a thread that waits for one gives its turn away, a deadlock is
    seen at once, and its threads are ended. Of whatever else blocks a thread (locks that are older,
    sockets) it is only seen that the thread stands still, for 30 ms; of such threads two may run at
    once for a moment, and in a deadlock they are left behind, as daemons.

    Other threads of the program pass the points. One exploration runs at a time in a process.

    Args:
        make: makes what the threads work on.
        threads: two or three callables, which get that.
        points: where they stop: each a target as :class:`Breakpoint` takes it (a path or a pair),
            for its call, or a pair of such a target and an event.
        check: gets the subject when all threads have ended; raises if it is not as it should be.
        samples: how many schedules to run at most. If there are more, a half are those with the
            fewest preemptions, and the others are taken at random. None: all.
        seed: for that; the same one gives the same schedules.
        schedule: run only this one. Where it ends before the threads do, the last one goes on.
        timeout: seconds in which some thread has to come to a point or its end.

    Raises:
        ScheduleError: a schedule failed (an ``AssertionError``): the message has the shortest that
            did, step by step; its cause is what was raised, and its ``report`` has the others.
        BreakpointError: no thread ever came to one of the points, or another exploration runs.
        DiagnoseError: there is no such function, or event in it.
    """
    _check(threads, samples, schedule)
    check_seconds(timeout)
    places = [_point_of(each) for each in points]
    if not _exploring.acquire(blocking=False):
        message = "another exploration runs in this process; let it end first"
        raise BreakpointError(message)
    with ExitStack() as undo:
        undo.callback(_exploring.release)
        for each in places:
            each.put_on()
            undo.callback(each.take_off)
        functions = [make, *threads] if check is None else [make, check, *threads]
        spaces = [getattr(each, "__globals__", {}) for each in functions]
        undo.enter_context(replaced([*spaces, *(each.namespace for each in places)]))
        found = _Exploration(make, threads, check, timeout)
        if schedule is not None:
            found.play(schedule, schedule, None)
        else:
            found.search(samples, random.Random(seed))
        report = found.report(seed, schedule)
        if found.shortest is not None:
            error = ScheduleError(found.story(report))
            error.report = report
            cause = found.shortest.error
            raise error from None if isinstance(cause, StuckError) else cause
    unseen = [f"{describe(each.target)} at {each.event!r}" for each in places if not each.calls]
    if unseen and schedule is None:
        message = f"no thread came to {' nor to '.join(unseen)}; {report}"
        raise BreakpointError(message)
    return report


class _Failure(NamedTuple):
    schedule: str
    run: Run
    error: BaseException

    @property
    def length(self) -> tuple[int, int, str]:
        return _length(self.schedule)


def _length(schedule: str) -> tuple[int, int, str]:
    """A schedule's length: context switches, then steps."""
    switches = sum(one != other for one, other in itertools.pairwise(schedule))
    return switches, len(schedule), schedule


class _Exploration:
    """The tree of schedules, which becomes known while they are run.

    ``_open`` has the beginnings of schedules that were not run yet. A schedule that is run is a
    beginning with something after it; wherever another thread could have gone on after that
    beginning, there is a new beginning. So each schedule is run once.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        threads: Sequence[Callable[[Any], object]],
        check: Callable[[Any], object] | None,
        timeout: float,
    ) -> None:
        self._make, self._threads, self._check, self._timeout = make, threads, check, timeout
        self._open: list[tuple[int, int, str]] = [(0, 0, "")]
        self._count = 0
        self._failing: list[str] = []
        self._left: list[str] = []
        self.shortest: _Failure | None = None

    def search(self, samples: int | None, chance: random.Random) -> None:
        """Run them: those with the fewest preemptions first, then some others."""
        while self._open and (samples is None or self._count < samples):
            if samples is None or self._count < (samples + 1) // 2:
                preemptions, _, beginning = heapq.heappop(self._open)
                self.play(beginning, None, None, preemptions)
            else:
                # From now on its order does not matter; the last one is taken away quickly.
                index = chance.randrange(len(self._open))
                self._open[index], self._open[-1] = self._open[-1], self._open[index]
                preemptions, _, beginning = self._open.pop()
                self.play(beginning, None, chance, preemptions)
            if self._left:
                break  # what they hold, those of the next schedules would wait for

    def play(
        self, beginning: str, given: str | None, chance: random.Random | None, preemptions: int = 0
    ) -> None:
        """Run one schedule.

        Args:
            beginning: the letters of its first steps.
            given: the same, if a user wrote them; then nothing is noted of other schedules.
            chance: how to go on then; None: with the same thread while that can.
            preemptions: how often, in ``beginning``, a thread that could go on has to stop.
        """
        others: list[tuple[int, int, str]] = []
        so_far = ""

        def choose(able: list[str], last: str | None) -> str:
            nonlocal so_far, preemptions
            at = len(so_far)
            if at < len(beginning):
                letter = beginning[at]
                if letter not in able:
                    raise ScheduleError(_misfit(beginning, at, able, given))
            else:
                usual = last if last in able else able[0]
                letter = chance.choice(able) if chance is not None else usual or able[0]
                for other in able if given is None else ():
                    if other != letter:
                        cost = preemptions + (last in able and other != last)
                        others.append((cost, at + 1, so_far + other))
                preemptions += last in able and letter != last
            so_far += letter
            return letter

        MAKERS.add(threading.get_ident())
        try:
            subject = self._make()
        finally:
            MAKERS.discard(threading.get_ident())
        run = Run(subject, self._threads, self._timeout)
        error = self._outcome(run, subject, choose)
        if error is not None:
            self._note(_Failure(run.schedule, run, error))
        self._left = run.left
        self._count += 1
        for each in others:
            heapq.heappush(self._open, each)

    def _outcome(
        self, run: Run, subject: Any, choose: Callable[[list[str], str | None], str]
    ) -> BaseException | None:
        """The error of a schedule; None: all was well."""
        try:
            run.play(choose)
        except BaseException as error:
            if isinstance(error, StuckError) or any(each.raised is error for each in run.runners):
                return error
            raise
        try:
            if self._check is not None:
                self._check(subject)
        except Exception as error:  # noqa: BLE001 - of the program under test
            return error
        except BaseException as error:
            # What ends a test (pytest.fail in check does) is not ours to keep.
            error.add_note(f"in schedule {run.schedule!r} of diagnose.breakpoints.explore")
            raise
        return None

    def _note(self, failure: _Failure) -> None:
        self._failing.append(failure.schedule)
        if self.shortest is None or failure.length < self.shortest.length:
            self.shortest = failure

    def report(self, seed: int, schedule: str | None) -> ScheduleReport:
        """The report on all schedules."""
        failing = tuple(sorted(self._failing, key=_length))
        return ScheduleReport(self._count, failing, not self._open and schedule is None, seed)

    def story(self, report: ScheduleReport) -> str:
        """How the shortest one failed."""
        if self.shortest is None:
            raise AssertionError
        schedule, run, error = self.shortest
        lines = [f"{report}; the shortest of them:" if report.count > 1 else "the schedule failed:"]
        for letter, function in zip("ABC", self._threads, strict=False):
            lines.append(f"  thread {letter} is {name_of(function)}")
        lines += [f"  {at}. {step}" for at, step in enumerate(run.steps, 1)]
        if isinstance(error, StuckError):
            lines.append(f"  {error}")
        elif any(each.raised is error for each in run.runners):
            lines.append("  what it raised is the cause of this error")
        else:
            text = said(error).replace("\n", "\n    ")
            lines.append(f"  check raises {text}")
        if self._left:
            lines.append(
                f"the threads of the last one that was run can't be ended: {', '.join(self._left)} "
                "are left as they are, and no other schedules were run"
            )
        lines.append(f"to run this one alone: explore(…, schedule={schedule!r})")
        return "\n".join(lines)


def _misfit(schedule: str, at: int, able: list[str], given: str | None) -> str:
    they = " or ".join(able)
    if given is not None:
        return (
            f"schedule {schedule!r} does not fit these threads and points: in step {at + 1} "
            f"{schedule[at]} can't go on, only {they} can"
        )
    return (
        f"the threads do not always do the same: after {schedule[:at]!r}, {schedule[at]} could go "
        f"on once, and now only {they} can; make what they do independent of time, chance and what "
        "earlier schedules left"
    )


def _point_of(given: Any) -> Point:
    """A point; an event that is no event, or a target that is none, raises."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], (str, tuple)):  # noqa: PLR2004 - a pair
        return Point(*given)
    return Point(given, "call")


def _check(
    threads: Sequence[Callable[[Any], object]], samples: int | None, schedule: str | None
) -> None:
    if len(threads) not in {2, 3} or not all(callable(each) for each in threads):
        message = f"threads {threads!r:.200} are not two or three callables that take the subject"
        raise TypeError(message)
    if samples is not None and not is_whole(samples, at_least=1):
        message = f"samples {samples!r:.100} is no number of schedules, which are 1 or more"
        raise ValueError(message)
    if schedule is not None and not set(schedule) <= set("ABC"[: len(threads)]):
        letters = ", ".join("ABC"[: len(threads)])
        message = (
            f"schedule {schedule!r:.100} is not made of {letters} alone, which are the threads"
        )
        raise ValueError(message)
