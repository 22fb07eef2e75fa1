"""What there is to wait for at a breakpoint, and what is said when it does not come."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from diagnose.breakpoints import places
from diagnose.breakpoints.conditions import describe, is_whole, said
from diagnose.breakpoints.stacks import note_where
from diagnose.breakpoints.stops import Stops, check_seconds
from diagnose.errors import BreakpointError, BreakpointTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from diagnose.breakpoints.conditions import Call
    from diagnose.breakpoints.forks import Line
    from diagnose.breakpoints.workers import Started, StartedTask

__all__ = ["LOOK_SECONDS", "Goal", "Waits", "seconds_of"]

LOOK_SECONDS = 0.02
"""State that no breakpoint announces (a file, a queue) is looked at so often."""


class Goal(NamedTuple):
    """What is waited for.

    Attributes:
        is_reached: whether it has come.
        text: what it is, in words.
        looks: it may come without anything happening at the breakpoint.
    """

    is_reached: Callable[[], object]
    text: str
    looks: bool = False


def seconds_of(timeout: float | None, usual: float) -> float:
    """A timeout in seconds, or the usual one.

    Raises:
        ValueError: it is none.
    """
    if timeout is None:
        return usual
    check_seconds(timeout)
    return timeout


class Waits(Stops):
    """The part of a breakpoint that its test uses, as far as it is the same for both kinds."""

    only_workers = False
    """Whether nobody calls the target but those who were started here."""

    _workers: list[Started | StartedTask]

    def _reset(self) -> None:
        super()._reset()
        self._workers = []
        self._late: list[str] = []

    def _begin_in_child(self, line: Line) -> None:
        super()._begin_in_child(line)
        self._workers = []  # they run in the parent

    def _note_end(self) -> None:
        with self._lock:
            self._tell_all()

    # --- goals ---

    def _goal_of(self, hits: int | None) -> Goal:
        what = f"{places.describe(self.target)} at {self.event!r}: expected "
        if hits is None:
            wanted = " and ".join(self._conditions.unmet) or "another hit"
            return Goal(self._has_news, what + wanted)
        if not is_whole(hits, at_least=1):
            message = f"hits {hits!r:.100} is no number of hits, which are 1 or more"
            raise ValueError(message)
        wanted = "1 hit" if hits == 1 else f"{hits} hits"
        return Goal(lambda: self.hits >= hits, what + wanted)

    def _has_news(self) -> bool:
        return bool(self._standing) or self.hits > self._waited_for

    def _state_of(self, condition: Callable[[], object] | int) -> Goal:
        what = f"{places.describe(self.target)} at {self.event!r}: expected "
        if callable(condition):
            text = what + describe(condition).removeprefix("a call for which ")
            return Goal(condition, text, looks=True)
        if not is_whole(condition, at_least=1):
            message = (
                f"condition {condition!r:.100} is neither a function without parameters nor a "
                "number of calls"
            )
            raise TypeError(message)
        return Goal(lambda: self.calls >= condition, f"{what}{condition} calls")

    def _is_reached(self, goal: Goal) -> bool:
        if goal.is_reached():
            return True
        if self._broken is not None:
            raise self._broken
        if self._workers and all(each.has_ended for each in self._workers):
            if goal.is_reached():  # just before they ended
                return True
            self._raise_theirs()
            if self.only_workers:
                raise BreakpointError(f"{goal.text}; {self._story()}{self._others()}")
        return False

    def _too_late(self, goal: Goal, seconds: float) -> BreakpointTimeoutError:
        message = f"{goal.text}, within {seconds:g} s; {self._story()}{self._others()}"
        error = BreakpointTimeoutError(message)
        note_where(error)
        return error

    def _waited(self) -> Call:
        with self._lock:
            self._waited_for = self.hits
            if self._latest is None:
                raise AssertionError
            return self._latest

    # --- what those who were started did ---

    def _theirs(self) -> BaseException | None:
        """What one of them raised that nobody knows of yet."""
        for each in self._workers:
            error = each.raised
            # As with any thread: SystemExit ends it, and nothing else.
            is_end = isinstance(error, SystemExit)
            if error is not None and not (is_end or each.is_seen or self._is_ours(error)):
                return error
        return None

    def _is_ours(self, error: BaseException) -> bool:
        if self._raised.get(id(error)) is error:
            return True
        # Who stops where it raises knows of it.
        return self.event == "error" and any(
            call.is_hit and call.exception is error for call in self.seen
        )

    def _raise_theirs(self) -> None:
        error = self._theirs()
        if error is None:
            return
        for each in self._workers:
            if each.raised is error:
                each.is_seen = True
                error.add_note(f"raised by {each.name!r}, which {self!r} started")
        raise error

    def _raise_late(self, seconds: float) -> None:
        late = self._late or [each.whereabouts for each in self._workers if not each.has_ended]
        if late:
            hint = "; it stands at this breakpoint: release() it" if self._standing else ""
            message = f"{self!r}: not ended after {seconds:g} s: {', '.join(late)}{hint}"
            error = BreakpointTimeoutError(message)
            note_where(error)
            raise error

    def _others(self) -> str:
        each = "".join(f"\n  {each.whereabouts}" for each in self._workers)
        return f"\nstarted by it:{each}" if each else ""

    def _judge(self, error: BaseException | None) -> None:
        """At the end: raise what went wrong, or note it on the error that there is already."""
        try:
            self._raise_late(self.timeout)
            self._raise_theirs()
            if error is None:
                self._check_met()
        except BaseException as other:
            if error is None:
                raise
            if other is not error:
                notes = getattr(other, "__notes__", [])
                error.add_note("\n".join([f"{said(other)}", *notes]))
