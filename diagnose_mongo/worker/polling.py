"""When a process polls: an APScheduler interval, spread over the fleet, in daemon threads.

The scheduler decides when, one thread of its own does the work. Neither keeps the program
from ending, and APScheduler's messages about each run don't reach the program's log.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from apscheduler.executors.base import BaseExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from diagnose.threads import without_signals

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Poller", "phase_of"]

log = logging.getLogger(__name__)

FIRST_POLL_WITHIN_SECONDS = 1.0
_CLOCK_STEP_SECONDS = 1.0
_JOB = "poll"


def phase_of(process_id: str, period: float) -> float:
    """When within each period the process polls, in seconds; the same for the same id."""
    digest = hashlib.blake2b(process_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * period


class Poller:
    """Calls ``poll`` once each period in a thread of its own, never two at a time.

    The first call comes within a second (or within the period, if that is shorter); after it
    the calls come at the moments that are ``phase`` seconds into a period of the clock, so
    that processes that start together do not poll together. Calls that could not be made (a
    call took longer than the period, the machine slept) are not made up for.

    Args:
        poll: the work. It may return seconds after which it wants to be called, if that is
            before the next regular moment. What it raises is logged.
        period: seconds between two calls.
        phase: see :func:`phase_of`.
        settle: seconds before the first call, in addition.
    """

    def __init__(
        self,
        poll: Callable[[], float | None],
        *,
        period: float,
        phase: float,
        settle: float = 0.0,
    ) -> None:
        self._poll = poll
        self._period = period
        self._phase = phase
        self._settle = settle
        self._scheduler: _SteadyScheduler | None = None
        self._executor = _DaemonExecutor()

    def start(self) -> None:
        """Start polling; returns at once. To be called once."""
        scheduler = _SteadyScheduler(
            daemon=True,
            timezone=UTC,
            executors={"default": self._executor},
            logger=_quiet_logger(),
        )
        scheduler.add_job(
            self._poll,
            _PhasedInterval(self._period, self._phase),
            id=_JOB,
            misfire_grace_time=None,
            coalesce=True,
            max_instances=1,
            next_run_time=_in_seconds(
                self._settle
                + self._phase / self._period * min(self._period, FIRST_POLL_WITHIN_SECONDS)
            ),
        )
        self._scheduler = scheduler
        with without_signals():
            scheduler.start()

    def wake(self) -> None:
        """Call once more, now or after the call that is under way; the plan stays.

        Returns at once and takes no lock: for threads that must not wait. Several of these
        before the call are one.
        """
        self._executor.wake(self._poll)

    def stop(self) -> None:
        """Make no more calls. Does not wait for one that is under way; idempotent."""
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            scheduler.shutdown(wait=False)


class _PhasedInterval(IntervalTrigger):  # type: ignore[misc]
    """An interval that keeps to its moments, also after a run out of turn."""

    def __init__(self, period: float, phase: float) -> None:
        super().__init__(
            seconds=period,
            start_date=datetime.fromtimestamp(phase, UTC),
            timezone=UTC,
        )

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        # Counted from now: after a night asleep the base class would list every moment missed.
        moment: datetime = super().get_next_fire_time(None, now)
        earliest = now if previous is None else max(now, previous)
        while moment <= earliest:
            moment += self.interval
        return moment


class _SteadyScheduler(BackgroundScheduler):  # type: ignore[misc]
    """Keeps polling when the clock is set back, by whatever amount.

    APScheduler plans by the wall clock: without this, polls would stop until the clock has
    caught up.
    """

    def __init__(self, **options: Any) -> None:
        self._clock_difference = time.time() - time.monotonic()
        super().__init__(**options)

    def _process_jobs(self) -> Any:
        difference = time.time() - time.monotonic()
        stepped_back = self._clock_difference - difference > _CLOCK_STEP_SECONDS
        self._clock_difference = difference
        if stepped_back:
            for job in self.get_jobs():
                job.modify(next_run_time=_in_seconds(0))
        return super()._process_jobs()


class _OutOfTurn(NamedTuple):
    func: Callable[[], object]


class _DaemonExecutor(BaseExecutor):  # type: ignore[misc]
    """One daemon thread that runs the job.

    APScheduler's own thread pool is joined when the interpreter exits: a program could end no
    sooner than the driver gives up on a MongoDB that does not answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._due: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._is_woken = False

    def start(self, scheduler: Any, alias: str) -> None:
        super().start(scheduler, alias)
        with without_signals():
            threading.Thread(target=self._work, name="diagnose-poll", daemon=True).start()

    def shutdown(self, wait: bool = True) -> None:  # noqa: FBT001, FBT002 - APScheduler's signature
        self._due.put(None)

    def wake(self, poll: Callable[[], object]) -> None:
        if not self._is_woken:
            self._is_woken = True
            self._due.put(_OutOfTurn(poll))

    def _do_submit_job(self, job: Any, run_times: list[datetime]) -> None:
        self._due.put(job)

    def _work(self) -> None:
        while (job := self._due.get()) is not None:
            soon = None
            if type(job) is _OutOfTurn:
                self._is_woken = False
            try:
                soon = job.func()
            except Exception:
                log.exception("%r failed", job.func)
            if type(job) is _OutOfTurn:
                continue  # the scheduler knows nothing of it
            self._run_job_success(job.id, [])
            if soon is not None and (wanted := _in_seconds(soon)) < job.next_run_time:
                with contextlib.suppress(JobLookupError):  # stopped just now
                    job.modify(next_run_time=wanted)


def _in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _quiet_logger() -> logging.Logger:
    # "Run was skipped" and "scheduler started" are no events that a program wants to hear of.
    logger = logging.getLogger(f"{__name__}.scheduler")
    logger.setLevel(logging.ERROR)
    return logger
