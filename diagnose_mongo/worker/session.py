"""What a process has with its fleet from its first poll to its farewell, in the order of a poll.

A poll reads what changed (:meth:`Session.read`); then the manager applies it; then the process
says what came of it (:meth:`Session.report`). Each part knows one thing: where the collections
are, which specs there are, what has to be told, whether the process lives, whether MongoDB does.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diagnose.errors import StoreError
from diagnose.records import UNTOLD
from diagnose.status import State
from diagnose_mongo.janitor.chores import Chores
from diagnose_mongo.store import fleet_hits_id
from diagnose_mongo.worker import heartbeats
from diagnose_mongo.worker.connection import Connection
from diagnose_mongo.worker.entries import Entries
from diagnose_mongo.worker.fleet_hits import FleetHits
from diagnose_mongo.worker.heartbeats import Heart
from diagnose_mongo.worker.mirror import Mirror
from diagnose_mongo.worker.outages import Outage, SideTasks
from diagnose_mongo.worker.pace import Pace
from diagnose_mongo.worker.steering import Steering

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Hashable, Iterable, Mapping
    from contextlib import AbstractContextManager
    from datetime import datetime

    from diagnose.records import Record
    from diagnose.tokens import Allotment
    from diagnose_mongo.store import FleetStores, Link
    from diagnose_mongo.worker.identity import Identity

__all__ = ["Poll", "Session"]

_POLLS_PER_FULL_POLL = 60
# To look for its entries, a process has the server go through those of all: 10 ms of a core for
# 50 specs of 10,000 processes. Not more than about three a second, whatever the fleet.
_PROCESSES_PER_LOOK_BACK = 2_000
_FAREWELL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Poll:
    """One poll, and what it is made for.

    Attributes:
        records: what the process knows of each spec, by key.
        lock: guards ``records``, and the dict of specs.
        labels: what specs select the process by.
        period: seconds between two polls.
        heartbeat: seconds between two heartbeats.
        now: the time that lifespans are counted in.
        stopping: set when the background that makes it ends; None: the program makes it.
    """

    records: Mapping[Hashable, Record]
    lock: AbstractContextManager[object]
    labels: Mapping[str, str]
    period: float
    heartbeat: float
    now: Callable[[], datetime]
    stopping: threading.Event | None = None

    def is_over(self) -> bool:
        """Whether it is of no use any more."""
        return self.stopping is not None and self.stopping.is_set()


class Session:
    """Talks to the fleet for one process. For one thread at a time, but for :attr:`connection`.

    Args:
        link: to the collection of specs.
        identity: of the process.
        specs: is kept like the collection.
        bounded_above: see :data:`diagnose_mongo.bounds.BOUNDED_ABOVE`.

    Attributes:
        connection: the way to the collections.
        mirror: which specs there are.
        entries: what is to be told of them, and what was.
        heart: whether it was said that the process lives.
        hits: what its instruments have of fleet hits.
        steering: what holds for the whole fleet.
        outage: whether MongoDB is reached.
        side_tasks: what can be done without.
    """

    def __init__(
        self, link: Link, identity: Identity, specs: dict[Hashable, Any], *, bounded_above: int
    ) -> None:
        self.connection = Connection(link)
        self.hits = FleetHits()
        self.side_tasks = SideTasks()
        self.steering = Steering(self.side_tasks)
        self.mirror = Mirror(specs)
        self._bounded_above = bounded_above
        self._begin(identity)

    def _begin(self, identity: Identity) -> None:
        self._identity = identity
        self._polls = 0
        self._retell_in: int | None = None
        self.mirror = Mirror(self.mirror.specs)
        self.entries = Entries(identity.process_id)
        self.heart = Heart()
        self.outage = Outage()
        self._pace = Pace()
        self._chores = Chores(identity.process_id, self._bounded_above)

    # --- reading ---

    def read(self, poll: Poll) -> bool:
        """Read what changed, if it is time for that; whether the specs are as on the server."""
        # A program that calls apply() wants an answer; the background keeps to its plan.
        if poll.stopping is not None and (self.outage.retry_in() > 0 or self._pace.is_resting()):
            return False
        return self.outage.reaches(lambda: self._read(poll), poll.period, poll.is_over)

    def _read(self, poll: Poll) -> None:
        self.connection.link()
        store, mirror, entries = self.connection.specs, self.mirror, self.entries
        is_full = self._polls % _POLLS_PER_FULL_POLL == 0
        if is_full:
            store.look_for_index()
            self.steering.try_again()
        was_bounded = self.steering.control.is_bounded
        versions = self.steering.look(store)
        control = self.steering.control
        if was_bounded and not control.is_bounded:
            # All processes have an entry again; not all of them write it at once.
            self._retell_in = random.randrange(_POLLS_PER_FULL_POLL)
        self._pace.rest(control, poll.period)
        entries.look(control)
        if mirror.is_like(versions) and not is_full and not entries.are_lost:
            self._polls += 1
            return
        reading = mirror.read(store, versions, is_full=is_full)
        process_id = self._identity.process_id
        there = store.entries(process_id) if self._looks_back(is_full=is_full) else None
        if reading.documents or is_full:
            self.connection.read_clock()
        if self._polls and reading.has_news:
            self._pace.quicken()
        with poll.lock:
            if poll.is_over():
                return
            self._polls += 1
            for key in mirror.take(reading):
                entries.forget(key)
            if there is not None:
                _tell_again(poll.records, entries.believe(there))

    def _looks_back(self, *, is_full: bool) -> bool:
        """Whether to see which entries of this process the collection has."""
        if not is_full:
            return self.entries.are_lost
        if self._polls == 0:
            # A new process can't have entries, unless its id was given by somebody.
            return self._identity.given is not None
        seldom = 1 + self.steering.control.processes // _PROCESSES_PER_LOOK_BACK
        return self.entries.are_lost or (self._polls // _POLLS_PER_FULL_POLL) % seldom == 0

    # --- reporting ---

    def report(self, poll: Poll, *, is_read: bool) -> float | None:
        """Tell what there is to tell, if MongoDB was reached for reading.

        Returns:
            In how many seconds to poll again, if that is before its regular time.
        """
        soon = [self._pace.next_in(self.steering.control, poll.period)]
        if is_read and self.outage.reaches(
            lambda: soon.append(self._report(poll)), poll.period, poll.is_over
        ):
            self.outage.end()
        return self.outage.retry_in() if self.outage.is_on else _first(soon)

    def _report(self, poll: Poll) -> float | None:
        fleet, control = self.connection.fleet, self.steering.control
        soon: list[float | None] = []
        self._retell(poll)
        if control.is_bounded and self.entries.due:
            self.heart.hurry()  # there it is told, if nowhere else
        if fleet is not None and self.heart.is_due():
            # Before entries are written: an entry of a process that does not live is removed.
            self.side_tasks.do("this process can't be listed", lambda: self._beat(poll, fleet))
        if fleet is not None and not poll.is_over():
            # Before entries too: what says that it is installed can fire.
            self.side_tasks.do(
                "fleet hits can't be taken", lambda: soon.append(self._refill(poll, fleet))
            )
        if poll.is_over():
            return None
        store, raw_ids = self.connection.specs, self.mirror.raw_ids
        self.entries.write(store, raw_ids, control, poll.lock)
        if fleet is not None and self.heart.has_beaten and not poll.is_over():
            self.side_tasks.do("the fleet's chores can't be done", lambda: self._do_chores(poll))
        if self.entries.are_lost or self.entries.is_in_doubt:
            soon.append(0.0)
        return _first(soon)

    def _retell(self, poll: Poll) -> None:
        """Count down to telling all outcomes again, since some of the entries were removed."""
        if self._retell_in:
            self._retell_in -= 1
        elif self._retell_in is not None:
            self._retell_in = None
            with poll.lock:
                self.entries.written.clear()
                _tell_again(poll.records, poll.records.keys())

    def _beat(self, poll: Poll, fleet: FleetStores) -> None:
        control, mirror = self.steering.control, self.mirror
        seconds = max(poll.heartbeat, poll.period, control.heartbeat, control.period)
        with poll.lock:
            applied = [
                (mirror.raw_ids[key], mirror.version(key), record)
                for key, record in poll.records.items()
                if record.outcome is not None and isinstance(mirror.specs.get(key), dict)
            ]
            told = heartbeats.content(self._identity.process_id, poll.labels, poll.period, applied)
        life = self.heart.beat(fleet.processes, self._identity.process_id, told, seconds)
        self.entries.note_life(life, seconds)

    def _refill(self, poll: Poll, fleet: FleetStores) -> float | None:
        with poll.lock:
            keys = {key for key, record in poll.records.items() if record.instrument is not None}
        soon = self.hits.refill(fleet.hits, self._identity.process_id, keys)
        for key in self.hits.over():
            record = poll.records.get(key)
            if record is not None and (instrument := record.instrument) is not None:
                instrument.status.become(State.DONE)
        return soon

    def _do_chores(self, poll: Poll) -> None:
        with poll.lock:
            specs = self.mirror.by_raw_id()
        self._chores.do(
            self.connection.link(),
            self.steering.control,
            poll.now(),
            heartbeat=poll.heartbeat,
            period=poll.period,
            specs=specs,
        )

    def allotment(self, key: Hashable, size: int) -> Allotment | None:
        """What an instrument takes its hits from; None: there are no fleet hits (mongomock).

        Args:
            key: of its spec.
            size: how many hits the whole fleet may make.
        """
        if self.connection.fleet is None:
            return None
        hits_id = fleet_hits_id(self.mirror.raw_ids[key], self.mirror.version(key))
        return self.hits.share(key, hits_id, size).allotment

    # --- the end, and another beginning ---

    def can_leave(self) -> bool:
        """Whether there is a server to say good-bye to."""
        return self.connection.is_usable and not self.outage.is_on

    def leave(self, lock: AbstractContextManager[object]) -> None:
        """Erase what is due to be erased, and whatever else there is of this process.

        Takes two seconds at most: what could not be done by then stays.
        """
        connection = self.connection
        # All of it together may not take longer.
        with (
            contextlib.suppress(StoreError),
            connection.link().talking("leaving", _FAREWELL_SECONDS),
        ):
            self.entries.write(
                connection.specs,
                self.mirror.raw_ids,
                self.steering.control,
                lock,
                timeout=_FAREWELL_SECONDS,
            )
            fleet, process_id = connection.fleet, self._identity.process_id
            if fleet is None or not self.heart.has_beaten:
                return
            self.hits.close(fleet.hits, process_id, _FAREWELL_SECONDS)
            self._chores.close(fleet.controls, _FAREWELL_SECONDS)
            fleet.processes.leave(process_id, _FAREWELL_SECONDS)

    def close(self) -> None:
        """Be as before the first poll. The lock is held: a poll may be under way."""
        self._begin(self._identity)
        self.mirror.specs.clear()

    def after_fork_in_child(self, identity: Identity) -> None:
        """Be the session of another process, before its first poll."""
        self._begin(identity)
        self.hits.after_fork_in_child()
        self.connection.after_fork_in_child()


def _tell_again(records: Mapping[Hashable, Record], keys: Iterable[Hashable]) -> None:
    for key in keys:
        if (record := records.get(key)) is not None:
            record.told = UNTOLD


def _first(moments: Iterable[float | None]) -> float | None:
    return min((each for each in moments if each is not None), default=None)
