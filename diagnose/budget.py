"""The CPU budget: what the instruments of a manager may cost in this process, all together.

Once a second each instrument's cost is reckoned: its hits, times what a hit took in a sample
of them. While the sum is above the budget, the costliest instrument is suspended: its function
gets its code back as if the probe were not there. It is tried again later; each time that it
is suspended anew, the pause doubles.

A hit that takes longer than :data:`LONGEST_SECONDS` is a matter of its instrument alone, which
is taken off at once.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from diagnose.clockwork import Clockwork

__all__ = ["LONGEST_SECONDS", "Budget", "Meter"]

log = logging.getLogger(__name__)

LONGEST_SECONDS = 0.05
"""What serving one hit may take, unless the instrument's class says otherwise."""

PERIOD_SECONDS = 1.0
FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 600.0

# What a hit costs where it is not measured: a metric's clock reads and its append, a rejection.
# Figures of benchmarks/README.md, rounded up.
QUICK_HIT_SECONDS = 200e-9
REJECTED_HIT_SECONDS = 120e-9

_SAMPLED_HITS = 8


class _Pending(list[None]):
    """A list that can be a constant of a code object."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class Meter:
    """Is told how long hits of one instrument took; see :class:`diagnose.handlers.Watch`.

    Args:
        longest_seconds: what a hit may take.
        too_slow: called, in the program's thread, with the seconds of one that took longer.
    """

    __slots__ = ("_count", "_seconds", "longest_seconds", "pending", "too_slow")

    def __init__(self, longest_seconds: float, too_slow: Callable[[float], None]) -> None:
        self.longest_seconds = longest_seconds
        self.too_slow = too_slow
        self.pending: list[None] = _Pending()
        self._count = 0
        self._seconds = 0.0

    def note(self, seconds: float, cpu_seconds: float | None = None) -> None:
        """Take note of a hit that took so long."""
        if self.pending:
            try:
                self.pending.pop()
            except IndexError:  # another thread was first
                return
            self._count += 1
            self._seconds += seconds
        if seconds > self.longest_seconds:
            # A thread that waits for the interpreter's lock is not slow.
            others = threading.active_count() - 1
            if seconds > self.longest_seconds + others * sys.getswitchinterval():
                self.too_slow(seconds)

    def sample(self) -> float | None:
        """The mean of the hits that were told of; it asks for more. None: there were none."""
        mean = self._seconds / self._count if self._count else None
        # The past counts for less and less.
        self._count, self._seconds = self._count / 2, self._seconds / 2  # type: ignore[assignment]
        self.pending.extend([None] * (_SAMPLED_HITS - len(self.pending)))
        return mean


class Metered(Protocol):
    """What has a cost: an instrument on a function.

    Attributes:
        meter: what measures its hits, if anything does.
        armed: whether it is in place.
    """

    meter: Meter | None
    armed: bool

    def count(self) -> tuple[int, int]:
        """How many hits there were, and how many were turned away."""

    def suspend(self, reason: str) -> None:
        """Be as if it were not there, until :meth:`resume`."""

    def resume(self) -> None:
        """Be in place again."""

    def note_cost(self, share: float) -> None:
        """Take note of what it cost lately, as a share of one core."""


@dataclass(slots=True, eq=False)
class _Account:
    item: Metered
    counted: tuple[int, int]
    per_hit: float = QUICK_HIT_SECONDS
    cost: float = 0.0
    hits: int = 0
    pause: float = 0.0
    resume_at: float | None = None
    resumed_at: float = 0.0


class Budget:
    """Holds the cost of instruments below a share of one core.

    Thread-safe. Costs nothing while there are no instruments, and once a second some
    microseconds for each while there are.

    Args:
        share: of one core, such as 0.02; None: no limit.
        timers: what calls once a second.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        share: float | None,
        timers: Clockwork,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.share = share
        self._timers = timers
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: dict[int, _Account] = {}
        self._looked_at: float | None = None
        self._scheduled = False

    def add(self, item: Metered) -> None:
        """Count an instrument's cost from now on."""
        with self._lock:
            self._accounts[id(item)] = _Account(item, item.count())
            if item.meter is not None:
                item.meter.sample()
            if self._scheduled:
                return
            self._scheduled = True
            self._looked_at = self._clock()
        self._timers.after(PERIOD_SECONDS, self._run)

    def discard(self, item: Metered) -> None:
        """Forget an instrument."""
        with self._lock:
            self._accounts.pop(id(item), None)

    def after_fork_in_child(self) -> None:
        """Make a lock that nobody holds."""
        self._lock = threading.Lock()

    def _run(self) -> None:
        try:
            self.look()
        finally:
            with self._lock:
                self._scheduled = bool(self._accounts)
            if self._scheduled:
                self._timers.after(PERIOD_SECONDS, self._run)

    def look(self) -> None:
        """Reckon the costs since the last time; suspend and resume what is to be."""
        now = self._clock()
        with self._lock:
            accounts = list(self._accounts.values())
            passed = now - (self._looked_at if self._looked_at is not None else now)
            self._looked_at = now
        for account in accounts:
            self._reckon(account, now)
            if passed > 0:
                account.item.note_cost(account.cost / passed)
        if self.share is None or passed <= 0:
            return
        total = sum(account.cost for account in accounts) / passed
        if total > self.share:
            worst = max(accounts, key=lambda account: account.cost)
            self._suspend(worst, worst.cost / passed, passed, now)

    def _reckon(self, account: _Account, now: float) -> None:
        item = account.item
        if account.resume_at is not None:
            account.cost = 0.0
            if now >= account.resume_at:
                account.resume_at, account.resumed_at = None, now
                account.counted = item.count()
                item.resume()
            return
        hits, rejected = item.count()
        before_hits, before_rejected = account.counted
        account.counted = hits, rejected
        mean = item.meter.sample() if item.meter is not None else None
        if mean is not None:
            account.per_hit = mean
        account.hits = hits - before_hits
        account.cost = (
            account.hits * account.per_hit + (rejected - before_rejected) * REJECTED_HIT_SECONDS
        )
        if account.pause and now - account.resumed_at > 2 * account.pause:
            account.pause = 0.0  # it behaved for long enough

    def _suspend(self, account: _Account, share: float, passed: float, now: float) -> None:
        account.pause = min(max(2 * account.pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        account.resume_at = now + account.pause
        account.item.suspend(
            f"it cost {share:.1%} of a core ({account.hits / passed:,.0f} hits a second, "
            f"{account.per_hit * 1e6:.3g} µs each), and all probes of this process may cost "
            f"{self.share:.1%}; it is suspended for {account.pause:.0f} s and then tried again: "
            "set limits.rate, limits.sample or when, or raise the manager's cpu_budget"
        )
