"""How a process bears it when MongoDB does not answer, or refuses a part of what is asked."""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING

from diagnose.errors import StoreError
from diagnose_mongo.store import is_answer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BackOff", "Outage", "SideTasks"]

log = logging.getLogger(__name__)

_LONGEST_WAIT_SECONDS = 60.0
# A short outage is over within two periods; after ten minutes attempts come twice a minute.
_GROWTH = 1 / 20


class BackOff:
    """How long to wait after each failure in a row: ever longer, up to a minute, and at random.

    The whole wait is random (full jitter), so that a fleet does not come back all at once.

    Args:
        growth: by how many seconds the longest wait grows for each second of failing.
    """

    def __init__(self, growth: float) -> None:
        self._growth = growth
        self._failing_since: float | None = None

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt failed."""
        return self._failing_since is not None

    def wait(self, longest_at_first: float) -> float:
        """Note a failure; how many seconds to wait before the next attempt."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        longest = longest_at_first + (now - self._failing_since) * self._growth
        return random.uniform(0, min(_LONGEST_WAIT_SECONDS, longest))

    def end(self) -> float | None:
        """Note a success; how many seconds it had been failing, if it had."""
        since, self._failing_since = self._failing_since, None
        return None if since is None else time.monotonic() - since


class Outage:
    """Whether MongoDB is reached, and when to try again. For one thread at a time."""

    def __init__(self) -> None:
        self._back_off = BackOff(_GROWTH)
        self._retry_at = 0.0

    @property
    def is_on(self) -> bool:
        """Whether MongoDB was not reached, last time."""
        return self._back_off.is_failing

    def retry_in(self) -> float:
        """In how many seconds to try again; less than 0: it is time."""
        return self._retry_at - time.monotonic()

    def reaches(self, talk: Callable[[], None], period: float, is_over: Callable[[], bool]) -> bool:
        """Whether ``talk`` got what it asked MongoDB for; if not, it is decided when to retry.

        Args:
            talk: raises StoreError if MongoDB does not answer.
            period: seconds between two polls.
            is_over: whether it does not matter any more: the client may be closed.
        """
        if is_over():
            return False
        try:
            talk()
        except StoreError as exc:
            if is_over():
                return False
            if not self.is_on:
                log.warning("no specs from MongoDB for now; probes stay as they are: %s", exc)
        except Exception:
            # A defect of ours, or a driver's error that the store does not know.
            if not self.is_on:
                log.exception("polling failed; probes stay as they are, and it goes on")
        else:
            return True
        self.note(period)
        return False

    def note(self, period: float) -> None:
        """Note that MongoDB was not reached."""
        self._retry_at = time.monotonic() + self._back_off.wait(period)

    def end(self) -> None:
        """Note that all was read and written again."""
        if (seconds := self._back_off.end()) is not None:
            log.warning("specs come from MongoDB again, after %.0f s", seconds)


class SideTasks:
    """What a process does beside applying specs, which is applied all the same if these fail.

    This user may lack a right, or somebody put nonsense into another collection: that is logged
    once, until it works again. Only that the server can't be reached is for the poll to know.
    """

    def __init__(self) -> None:
        self.failing: set[str] = set()

    def do(self, failure: str, talk: Callable[[], None]) -> None:
        """Do one of them.

        Args:
            failure: what can't be done, for people, if it fails.
            talk: does it.

        Raises:
            StoreError: the server did not answer.
        """
        try:
            talk()
        except StoreError as exc:
            if not is_answer(exc):
                raise
            self.note_failure(failure, exc)
        except Exception as exc:  # noqa: BLE001 - nonsense in a document, or a defect of ours
            self.note_failure(failure, exc)
        else:
            self.failing.discard(failure)

    def note_failure(self, failure: str, error: Exception) -> None:
        """Note, and log once, what one of them raised."""
        if failure not in self.failing:
            self.failing.add(failure)
            trace = None if isinstance(error, StoreError) else error
            log.warning(
                "%s; the specs are applied all the same: %s", failure, error, exc_info=trace
            )
