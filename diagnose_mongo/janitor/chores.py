"""What the process that holds the lease does for the whole fleet, as long as it lives.

It counts the fleet, removes what dead processes left in the specs, tidies fleet hits, moves
canaries on, and notes edits that are not recorded. Each of these may be cut short
anywhere, and may be done twice: every step leaves things right.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from diagnose_mongo import bounds
from diagnose_mongo.history import Trail
from diagnose_mongo.janitor import canaries
from diagnose_mongo.store import (
    ControlStore,
    FleetHitsStore,
    ProcessStore,
    RolloutStore,
    SpecStore,
    TidyingStore,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from diagnose_mongo.store import Control, Link

__all__ = ["Chores"]

log = logging.getLogger(__name__)

_LEASE_HEARTBEATS = 2
_LEASE_PERIODS = 3
# Now and then all of it, though nobody died that this process knew.
_TURNS_PER_FULL_TURN = 10


class Chores:
    """The chores of the fleet, as one process does them when it is its turn. Not thread-safe.

    Args:
        process_id: this process.
        bounded_above: see :data:`diagnose_mongo.bounds.BOUNDED_ABOVE`.
    """

    def __init__(self, process_id: str, bounded_above: int) -> None:
        self._process_id = process_id
        self._bounded_above = bounded_above
        self._held_since: float | None = None
        self._renew_at = self._turn_at = 0.0
        self._turns = 0
        self._living: set[str] = set()
        self._trail = Trail()

    def do(
        self,
        link: Link,
        control: Control,
        now: datetime,
        *,
        heartbeat: float,
        period: float,
        specs: Sequence[tuple[Any, Any]],
    ) -> None:
        """Do what is due, if the lease is this process's or nobody's.

        Args:
            link: to the collections.
            control: as just read.
            now: by the server's clock, aware.
            heartbeat: seconds.
            period: seconds between two polls.
            specs: of each the ``_id`` and document.

        Raises:
            StoreError: the server could not be asked.
        """
        if control.holder != self._process_id and not control.has_free_lease(now):
            self._held_since = None
            return
        controls = ControlStore(link)
        moment = time.monotonic()
        if self._held_since is None or moment >= self._renew_at:
            lease = max(_LEASE_HEARTBEATS * heartbeat, _LEASE_PERIODS * period)
            if moment >= self._renew_at + lease * 2 / 3:
                self._held_since = None  # it ended: this process or the server was away
            if not controls.take_lease(self._process_id, lease):
                self._held_since = None
                return
            self._renew_at = moment + lease / 3
            if self._held_since is None:
                self._held_since, self._turn_at, self._turns = moment, moment, 0
                self._trail.forget()
        canaries.move_on(link, specs, now, self._process_id)
        if moment >= self._turn_at:
            self._turn_at = moment + heartbeat
            # A process that could not say that it lives, since the server was away, gets time for it.
            is_settled = moment - self._held_since >= heartbeat * bounds.TTL_HEARTBEATS
            self._take_turn(link, controls, control, is_settled=is_settled)
        # Last: this user may lack the right to the history.
        self._trail.follow(link, specs, now)

    def _take_turn(
        self, link: Link, controls: ControlStore, control: Control, *, is_settled: bool
    ) -> None:
        living = ProcessStore(link).living()
        is_bounded = self._is_bounded(len(living), control)
        if (len(living), is_bounded) != (control.processes, control.is_bounded):
            controls.note_size(self._process_id, len(living), is_bounded=is_bounded)
        store = TidyingStore(link)
        if is_bounded:
            # Also in the next turns: others may have written before they knew.
            sample = [each for each in living if bounds.is_sampled(each, len(living))]
            store.bound_entries(sample, bounds.FAILURES)
            store.note_counts(RolloutStore(link).count_all())
        if not is_settled:
            return
        if self._living - living or self._turns % _TURNS_PER_FULL_TURN == 0:
            # Before the dead are looked for: a process that comes back later asks for this.
            if not controls.note_burial(self._process_id):
                return
            ProcessStore(link).remove_dead()
            removed = store.remove_entries_of_dead()
            if removed:
                log.info("removed %d entries of processes that do not live any more", removed)
            FleetHitsStore(link).tidy(SpecStore(link).versions(), living)
        self._living = living
        self._turns += 1

    def _is_bounded(self, processes: int, control: Control) -> bool:
        # Not to and fro: it changes back only when there are clearly fewer.
        limit = self._bounded_above * (0.8 if control.is_bounded else 1.0)
        return processes > limit

    def close(self, controls: ControlStore, timeout: float) -> None:
        """Let another process do them at once.

        Raises:
            StoreError: the lease could not be given back.
        """
        if self._held_since is not None:
            self._held_since = None
            controls.drop_lease(self._process_id, timeout)
