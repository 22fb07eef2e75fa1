"""The log of a breakpoint: how many calls got to it, which were hits, and which conditions held."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diagnose.breakpoints.calls import said
from diagnose.errors import BreakpointError

if TYPE_CHECKING:
    from diagnose.breakpoints.blocked import Monitor
    from diagnose.breakpoints.calls import Call
    from diagnose.breakpoints.conditions import Conditions
    from diagnose.breakpoints.settings import Settings

__all__ = ["Log"]

_SEEN_AT_MOST = 1_000


class Log:
    """The calls that got to a breakpoint since it was entered. Thread-safe.

    Attributes:
        conditions: to be met.
        calls: how many calls got to the event.
        hits: how many of them met the condition.
        seen: the first thousand.
        latest: the latest hit.
        broken: the first error that a condition raised.
    """

    def __init__(self, settings: Settings, conditions: Conditions, monitor: Monitor) -> None:
        self._settings = settings
        self._monitor = monitor
        self.conditions = conditions
        self.calls = 0
        self.hits = 0
        self.seen: list[Call] = []
        self.latest: Call | None = None
        self.broken: BreakpointError | None = None
        self._raised: dict[int, BaseException] = {}

    def count(self) -> int:
        """Count a call; returns its number."""
        with self._monitor.lock:
            self.calls += 1
            return self.calls

    def judge(self, call: Call) -> None:
        """Say of a call whether it is a hit; one whose conditions raise is none."""
        try:
            call.is_hit = self.conditions.meet(call)
        except Exception as error:  # noqa: BLE001 - the test's predicate
            with self._monitor.lock:
                if self.broken is None:
                    message = (
                        f"the condition of {self._settings!r} raised {said(error)}, for {call}"
                    )
                    self.broken = BreakpointError(message)
                    self.broken.__cause__ = error

    def note(self, call: Call) -> None:
        """Take note of a call; after the last hit there is to be, it is none."""
        with self._monitor.lock:
            if len(self.seen) < _SEEN_AT_MOST:
                self.seen.append(call)
            most = self._settings.hits_at_most
            if most is not None and self.hits >= most:
                call.is_hit = False
            if call.is_hit:
                self.hits += 1
                self.latest = call

    def note_child(self, met: list[bool], broken: str | None) -> None:
        """Take note of what became of the conditions in a forked child."""
        with self._monitor.lock:
            for number, is_met in enumerate(met):
                self.conditions.met[number] |= is_met
            if broken is not None and self.broken is None:
                self.broken = BreakpointError(broken)

    def note_raised(self, error: BaseException) -> None:
        """Take note of what the breakpoint itself raised in a caller."""
        self._raised[id(error)] = error

    def is_meant(self, error: BaseException) -> bool:
        """Whether the breakpoint raised an exception itself, or stopped where it is raised."""
        if self._raised.get(id(error)) is error:
            return True
        return self._settings.event == "error" and any(
            call.is_hit and call.exception is error for call in self.seen
        )
