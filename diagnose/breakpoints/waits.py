"""Waits for hits and other events at a breakpoint, and tells what happened instead."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from diagnose.breakpoints.calls import said
from diagnose.breakpoints.conditions import describe, is_whole
from diagnose.breakpoints.settings import seconds_of
from diagnose.breakpoints.stacks import note_where
from diagnose.errors import BreakpointError, BreakpointTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from diagnose.breakpoints.calls import Call
    from diagnose.breakpoints.settings import Settings
    from diagnose.breakpoints.stops import Stop
    from diagnose.breakpoints.workers import Workers

__all__ = ["Goal", "Waits"]

_LOOK_SECONDS = 0.02
"""State that no breakpoint announces (a file, a queue) is looked at so often."""

_SHOWN_AT_MOST = 10
# Taken now: it may itself be the target, and then its module has a stand-in for it.
_monotonic = time.monotonic


class Goal(NamedTuple):
    """An event to wait for.

    Attributes:
        is_reached: whether it has come.
        text: it, in words.
        looks: it may come without anything happening at the breakpoint.
    """

    is_reached: Callable[[], object]
    text: str
    looks: bool = False


class Waits:
    """Waits of a test at a breakpoint, from its entering to its end."""

    def __init__(self, settings: Settings, stop: Stop, workers: Workers) -> None:
        self._settings = settings
        self._stop, self._log, self._workers = stop, stop.log, workers
        self._waited_for = 0

    # --- goals ---

    def for_hits(self, hits: int | None) -> Goal:
        """So many hits in all; None: one that was not waited for yet, or that stands.

        Raises:
            ValueError: it is no number of hits.
        """
        what = f"{self._settings.where}: expected "
        if hits is None:
            wanted = " and ".join(self._log.conditions.unmet) or "another hit"
            return Goal(self._has_news, what + wanted)
        if not is_whole(hits, at_least=1):
            message = f"hits {hits!r:.100} is no number of hits, which are 1 or more"
            raise ValueError(message)
        wanted = "1 hit" if hits == 1 else f"{hits} hits"
        return Goal(lambda: self._log.hits >= hits, what + wanted)

    def _has_news(self) -> bool:
        return bool(self._stop.blocked.held) or self._log.hits > self._waited_for

    def for_state(self, condition: Callable[[], object] | int) -> Goal:
        """That something is true, or so many calls.

        Raises:
            TypeError: it is neither.
        """
        what = f"{self._settings.where}: expected "
        if callable(condition):
            text = what + describe(condition).removeprefix("a call for which ")
            return Goal(condition, text, looks=True)
        if not is_whole(condition, at_least=1):
            message = (
                f"condition {condition!r:.100} is neither a function without parameters nor a "
                "number of calls"
            )
            raise TypeError(message)
        return Goal(lambda: self._log.calls >= condition, f"{what}{condition} calls")

    # --- waiting ---

    def wait(self, goal: Goal, timeout: float | None) -> None:
        """Wait in a thread; None: as long as the breakpoint's timeout says.

        Raises:
            BreakpointTimeoutError: it did not come.
            BreakpointError: it can't come any more.
            BaseException: what a condition or a worker raised.
        """
        seconds = seconds_of(timeout, self._settings.timeout)
        deadline = _monotonic() + seconds
        monitor = self._stop.monitor
        while True:
            version = monitor.version
            if self._is_reached(goal):
                return
            left = deadline - _monotonic()
            if left <= 0:
                raise self._too_late(goal, seconds)
            # What happened since it was looked is not waited for.
            monitor.wait(version, min(left, _LOOK_SECONDS) if goal.looks else left)

    async def wait_in_task(
        self, goal: Goal, timeout: float | None, happened: asyncio.Event
    ) -> None:
        """Wait in a task, as :meth:`wait` does in a thread.

        Args:
            goal: to wait for.
            timeout: in seconds; None: the breakpoint's.
            happened: is set at all news of the breakpoint.
        """
        seconds = seconds_of(timeout, self._settings.timeout)
        deadline = time.monotonic() + seconds
        while True:
            happened.clear()
            if self._is_reached(goal):
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._too_late(goal, seconds)
            try:
                async with asyncio.timeout(min(left, _LOOK_SECONDS) if goal.looks else left):
                    await happened.wait()
            except TimeoutError:
                pass

    def _is_reached(self, goal: Goal) -> bool:
        if goal.is_reached():
            return True
        if self._log.broken is not None:
            raise self._log.broken
        if self._workers.have_all_ended:
            if goal.is_reached():  # just before they ended
                return True
            self._workers.raise_theirs()
            if self._settings.only_workers:
                raise BreakpointError(f"{goal.text}; {self._story()}{self._workers.whereabouts}")
        return False

    def _too_late(self, goal: Goal, seconds: float) -> BreakpointTimeoutError:
        story = f"{self._story()}{self._workers.whereabouts}"
        error = BreakpointTimeoutError(f"{goal.text}, within {seconds:g} s; {story}")
        note_where(error)
        return error

    def latest(self) -> Call:
        """The latest hit; all until now count as waited for."""
        with self._stop.monitor.lock:
            self._waited_for = self._log.hits
            if self._log.latest is None:
                raise AssertionError
            return self._log.latest

    # --- at the end ---

    def check_workers(self, seconds: float) -> None:
        """Raise what a worker raised, or if one has not ended, for which it was waited so long.

        Raises:
            BreakpointTimeoutError: one has not ended.
            BaseException: what one raised.
        """
        stands = bool(self._stop.blocked.held)
        hint = "; it stands at this breakpoint: release() it" if stands else ""
        self._workers.raise_late(seconds, hint)
        self._workers.raise_theirs()

    def judge(self, error: BaseException | None) -> None:
        """At the end: raise what went wrong, or note it on the error that there is already."""
        try:
            self.check_workers(self._settings.timeout)
            if error is None:
                self._check_met()
        except BaseException as other:
            if error is None:
                raise
            if other is not error:
                notes = getattr(other, "__notes__", [])
                error.add_note("\n".join([f"{said(other)}", *notes]))

    def _check_met(self) -> None:
        if self._stop.line is not None or not self._settings.has_target:
            return  # in a forked child it is the parent's to say
        if self._log.broken is not None:
            raise self._log.broken
        if unmet := self._log.conditions.unmet:
            what = f"{self._settings.where}: expected {' and '.join(unmet)}"
            raise BreakpointError(f"{what}; {self._story()}{self._workers.whereabouts}")

    def _story(self) -> str:
        """The calls that came instead, in words."""
        log = self._log
        if not log.calls:
            text = "it was not called at all"
            if isinstance(self._settings.target, tuple):
                text += (
                    " through that attribute (a bound method or another reference that was made "
                    "before is not stopped: name the function by its path for that)"
                )
            return text
        calls = "1 call" if log.calls == 1 else f"{log.calls} calls"
        text = f"{calls} got there"
        for call in log.seen[:_SHOWN_AT_MOST]:
            text += f"\n  {call.number}. {call}{' (a hit)' if call.is_hit else ''}"
        if log.calls > _SHOWN_AT_MOST:
            text += f"\n  … and {log.calls - _SHOWN_AT_MOST} more"
        if log.conditions.has_numbers:
            text += "\n(condition= counts calls from 0)"
        return text
