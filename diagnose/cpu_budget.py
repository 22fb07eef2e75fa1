"""The CPU budget: what the instruments of a manager may cost in this process, all together.

Once a second each instrument's cost is reckoned: its hits, times what a hit took in a sample
of them, in time that its thread computed (on a busy machine a hit takes longer, and costs no
more). While the sum is above the budget, the costliest instruments are suspended: their
functions get their code back as if the probes were not there. They are tried again later; each
time that one is suspended anew, its pause doubles.

A hit that holds up the program for longer than :data:`LONGEST_SECONDS` is a matter of its
instrument alone; see :class:`Meter`.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import math
import signal
import sys
import threading
import time
from _thread import _count as _other_threads  # those of `threading` are counted under its lock
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

try:
    from resource import RUSAGE_THREAD, getrusage
except ImportError:  # neither Linux nor FreeBSD

    def _switches() -> tuple[int, int]:
        return 0, 0

else:

    def _switches() -> tuple[int, int]:
        usage = getrusage(RUSAGE_THREAD)
        return usage.ru_nvcsw, usage.ru_nivcsw


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diagnose.clockwork import Clockwork

__all__ = ["LONGEST_SECONDS", "Budget", "LongHit", "Meter", "Pause"]

log = logging.getLogger(__name__)

LONGEST_SECONDS = 0.05
"""What serving one hit may take, unless the instrument's class says otherwise."""

PERIOD_SECONDS = 1.0
FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 600.0
MOST_RESUMED_AT_ONCE = 20

# What a hit costs where it is not measured: a metric's clock reads and its append, a rejection.
# Figures of benchmarks/README.md, rounded up.
QUICK_HIT_SECONDS = 200e-9
REJECTED_HIT_SECONDS = 120e-9

_SAMPLED_HITS = 8

SUSPICIOUS_HITS = 100
"""How many hits are measured in full after a long one, and make it forgiven if they are short."""

STRIKES = 2
UNSURE_STRIKES = 4

# Taken now: one of them may itself be probed, and then its module has a stand-in for it.
_thread_time, _process_time, _ident = time.thread_time, time.process_time, threading.get_ident
_garbage = gc.get_stats


def _clock_seconds() -> float:
    """What two readings of the thread's clock, one after the other, are apart: a system call."""
    readings = [_thread_time() for _ in range(20)]
    return min(after - before for before, after in itertools.pairwise(readings))


_CLOCK_SECONDS = _clock_seconds()


class _Pending(list[None]):
    """A list that can be a constant of a code object."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class Reading(NamedTuple):
    """What clocks and counters say in a thread, or how far they went on between two times.

    Attributes:
        thread: seconds in which this thread had a processor.
        process: seconds in which threads of this process had one, together.
        waits: how often this thread gave its processor up, to wait for something.
        losses: how often it was taken from it.
        collections: how often all garbage was collected.
    """

    thread: float
    process: float
    waits: int
    losses: int
    collections: int

    def since(self, before: Reading) -> Reading:
        """How far they went on."""
        return Reading(
            self.thread - before.thread,
            self.process - before.process,
            self.waits - before.waits,
            self.losses - before.losses,
            self.collections - before.collections,
        )


def _read() -> Reading:
    waits, losses = _switches()
    collections = _garbage()[-1]["collections"]
    return Reading(_thread_time(), _process_time(), waits, losses, collections)


def blame(seconds: float, passed: Reading, interval: float) -> tuple[float, bool]:
    """For how much of a hit's time it is itself to blame, and whether that is sure.

    It is for what its thread computed, and for what it waited, in a system call or for a lock;
    but not where it waited for a processor, or for the interpreter while other threads computed.
    A thread that waits for the interpreter wakes up at each switch interval, so that the number of
    waits says how much of the others' time can have been in the way.

    Args:
        seconds: how long it took.
        passed: how far clocks and counters went on meanwhile, in its thread.
        interval: of the interpreter's switches between threads.
    """
    waited = max(seconds - passed.thread, 0.0)
    if passed.losses and not passed.waits:
        return passed.thread, not passed.collections
    others = max(passed.process - passed.thread, 0.0)
    if passed.waits:
        others = min(others, passed.waits * interval)
    # How long it did without the processor that was taken from it, nobody says.
    return passed.thread + max(waited - others, 0.0), not (passed.losses or passed.collections)


def _may_have_served_signals() -> bool:
    """Whether a handler of the program for signals can have run here, in the middle of a hit."""
    return _ident() == threading.main_thread().ident and any(
        callable(handler) and handler is not signal.default_int_handler
        for handler in map(signal.getsignal, signal.valid_signals())
    )


class LongHit(NamedTuple):
    """A hit that held up the program for too long.

    Attributes:
        seconds: for how long it is itself to blame; all of its time if nothing is known.
        is_known: whether it was measured in full.
        is_sure: whether nothing else can have held it up that is not reckoned.
    """

    seconds: float
    is_known: bool = False
    is_sure: bool = False


class Meter:
    """Is told how long hits of one instrument took; see :class:`diagnose.handlers.Watch`.

    It reckons what they cost from a sample, and judges those that held up the program. Of a hit
    nothing but its time is known at first: the process may have got no processor, or another
    thread had the interpreter. So after the first long one the instrument pauses, and then hits
    are measured in full. One that is found to be itself to blame for a long time (see
    :func:`blame`) is a strike, unless the :class:`Pause` after it was disturbed for as long.
    With the second strike the instrument is at its end; with the fourth where there is doubt: its
    thread lost the processor, all garbage was collected meanwhile (which may be the program's),
    or the program has a handler for some signal, which may have run in the middle of the hit.
    After :data:`SUSPICIOUS_HITS` that were short all is forgiven.

    What nobody can tell: a hit that sleeps from one in which the process was stopped (by
    ``SIGSTOP``, a debugger, ``docker pause``); one that computes from one in which a handler for
    a signal computed.

    Args:
        longest_seconds: what a hit may take.
        too_slow: called, in the program's thread, with one that took longer.
    """

    __slots__ = (
        "_count", "_seconds", "_strikes", "_suspicious", "longest_seconds", "pending", "too_slow",
    )  # fmt: skip

    def __init__(self, longest_seconds: float, too_slow: Callable[[LongHit], None]) -> None:
        self.longest_seconds = longest_seconds
        self.too_slow = too_slow
        self.pending: list[None] = _Pending()
        self._count = 0.0
        self._seconds = 0.0
        self._suspicious = 0
        self._strikes = 0

    def begin(self) -> object:
        """What :meth:`note` wants to know of a hit that begins now."""
        if self._suspicious > 0:
            self._suspicious -= 1
            before = _read()
            return before.thread, before
        return _thread_time(), None

    def note(self, seconds: float, begun: object) -> None:
        """Take note of a hit that took so long, and was measured from its begin if `begun`."""
        before: Reading | None = None
        if begun:
            began: float
            began, before = begun  # type: ignore[misc]
            self._count += 1
            self._seconds += max(_thread_time() - began - _CLOCK_SECONDS, 0.0)
            if self.pending:
                with contextlib.suppress(IndexError):  # another thread was first
                    self.pending.pop()
        if seconds > self.longest_seconds:
            if before is None:
                self._wonder(seconds)
            else:
                self._judge(seconds, _read().since(before))
        elif before is not None and self._suspicious <= 0:
            self._strikes = 0

    def _wonder(self, seconds: float) -> None:
        """Suspect a long hit of which nothing else is known."""
        self._measure_all()
        # Each of the other threads may have had the interpreter once, and as long as that.
        if seconds > self.longest_seconds + _other_threads() * sys.getswitchinterval():
            self.too_slow(LongHit(seconds))

    def _judge(self, seconds: float, passed: Reading) -> None:
        own, is_sure = blame(seconds, passed, sys.getswitchinterval())
        if own > self.longest_seconds:
            self._measure_all()
            is_sure = is_sure and not _may_have_served_signals()
            self.too_slow(LongHit(own, is_known=True, is_sure=is_sure))

    def _measure_all(self) -> None:
        self._suspicious = SUSPICIOUS_HITS
        self.pending.extend([None] * (SUSPICIOUS_HITS - len(self.pending)))

    def is_last(self, hit: LongHit, late: float) -> bool:
        """Whether there are to be no more hits after this one.

        Args:
            hit: what `too_slow` was called with; each may be asked for once.
            late: see :class:`Pause`; the hit may have been held up as long by the same.
        """
        if hit.seconds - late <= self.longest_seconds:
            return False
        if not hit.is_known:
            self._strikes = max(self._strikes, 1)
            return False
        self._strikes += 1
        return self._strikes >= (STRIKES if hit.is_sure else UNSURE_STRIKES)

    def sample(self) -> float | None:
        """What a hit cost that it was told of, in CPU seconds on average; it asks for more.

        None: there were none.
        """
        mean = self._seconds / self._count if self._count else None
        # The past counts for less and less.
        self._count, self._seconds = self._count / 2, self._seconds / 2
        self.pending.extend([None] * (_SAMPLED_HITS - len(self.pending)))
        return mean


class Pause:
    """A second in which an instrument does nothing, and which is measured itself.

    A thread that does nothing but wake up ten times says how long threads of this process are
    held up just now: by others that have the processor (a container at its quota, a busy
    machine) or the interpreter.

    Args:
        timers: in whose thread.
        ended: called there at the end, with how many seconds it woke up too late at worst.
        clock: seconds, monotonic.
    """

    SECONDS = 1.0
    TICKS = 10

    def __init__(
        self,
        timers: Clockwork,
        ended: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timers = timers
        self._ended = ended
        self._clock = clock
        self._left = self.TICKS
        self._late = 0.0
        self._wait()

    def _wait(self) -> None:
        seconds = self.SECONDS / self.TICKS
        self._due = self._clock() + seconds
        self._timers.after(seconds, self._wake_up)

    def _wake_up(self) -> None:
        self._late = max(self._late, self._clock() - self._due)
        self._left -= 1
        if self._left:
            self._wait()
        else:
            self._ended(self._late)


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
    share: float = 0.0
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
        if passed <= 0:
            return
        running = [account for account in accounts if account.resume_at is None]
        for account in running:
            self._reckon(account, passed, now)
        most = math.inf if self.share is None else self.share
        total = sum(account.share for account in running)
        is_too_much = total > most
        for account in sorted(running, key=lambda each: each.share, reverse=True):
            if total <= most:
                break
            total -= account.share
            self._suspend(account, passed, now)
        if not is_too_much:
            self._resume(accounts, total, most, now)

    def _reckon(self, account: _Account, passed: float, now: float) -> None:
        item = account.item
        hits, rejected = item.count()
        before_hits, before_rejected = account.counted
        account.counted = hits, rejected
        mean = item.meter.sample() if item.meter is not None else None
        if mean is not None:
            account.per_hit = mean
        account.hits = hits - before_hits
        cost = account.hits * account.per_hit
        account.share = (cost + (rejected - before_rejected) * REJECTED_HIT_SECONDS) / passed
        item.note_cost(account.share)
        if account.pause and now - account.resumed_at > 2 * account.pause:
            account.pause = 0.0  # it behaved for long enough

    def _resume(self, accounts: Sequence[_Account], total: float, most: float, now: float) -> None:
        """Try those again whose pause is over: as many as fit in, by what they cost before.

        One of them in any case: it may cost less by now. What does not fit has to wait for
        another look, for if all came back at once, all would have to go again.
        """
        due = [each for each in accounts if each.resume_at is not None and now >= each.resume_at]
        due.sort(key=lambda each: each.share)
        for number, account in enumerate(due[:MOST_RESUMED_AT_ONCE]):
            total += account.share
            if number and total > most:
                return
            account.resume_at, account.resumed_at = None, now
            account.counted = account.item.count()
            account.item.resume()

    def _suspend(self, account: _Account, passed: float, now: float) -> None:
        account.pause = min(max(2 * account.pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        account.resume_at = now + account.pause
        account.item.note_cost(0.0)
        account.item.suspend(
            f"it cost {account.share:.1%} of a core ({account.hits / passed:,.0f} hits a second, "
            f"{account.per_hit * 1e6:.3g} µs each), and all probes of this process may cost "
            f"{self.share:.1%}; it is suspended for {account.pause:.0f} s and then tried again: "
            "set limits.rate, limits.sample or when, or raise the manager's cpu_budget"
        )
