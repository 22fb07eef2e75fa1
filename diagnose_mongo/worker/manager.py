"""The manager of one process in a fleet: specs come from MongoDB, outcomes go back into them.

Every period it asks the collection for the versions of all specs (one covered index query),
reads those that changed, applies them, and writes ``applied.<process id>`` where its outcome
changed; now and then it says that it lives. When MongoDB is down everything that is armed stays
as it is, lifespans end on time, and attempts to reach it again come ever more rarely.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import random
import secrets
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Self

from diagnose.errors import SpecError, StoreError
from diagnose.managers import (
    CPU_BUDGET,
    MOST_PER_FUNCTION,
    MOST_PER_PROCESS,
    InstrumentManager,
)
from diagnose.outcomes import UNTOLD
from diagnose.specs import FIELDS
from diagnose.threads import without_signals
from diagnose_mongo import bounds, documents
from diagnose_mongo.janitor.chores import Chores
from diagnose_mongo.store import (
    Control,
    FleetHitsStore,
    ProcessStore,
    Undecodable,
    fleet_hits_id,
    fleet_stores,
    is_answer,
    is_refused,
    link_to,
    spec_store,
)
from diagnose_mongo.worker import heartbeats
from diagnose_mongo.worker.entries import Entries
from diagnose_mongo.worker.fleet_hits import Allotments
from diagnose_mongo.worker.identity import Identity
from diagnose_mongo.worker.polling import Poller, phase_of
from diagnose_mongo.worker.watching import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping
    from datetime import datetime

    from diagnose.expressions import Policy
    from diagnose.guards import Allotment
    from diagnose.outcomes import Record
    from diagnose.specs import Spec
    from diagnose_mongo.store import Link, ServerClock, SpecCollection

__all__ = ["DISABLED_VARIABLE", "DISABLE_FILE_VARIABLE", "MongoInstrumentManager"]

log = logging.getLogger(__name__)

DISABLED_VARIABLE = "DIAGNOSE_DISABLED"
"""Set to anything but ``0``, ``false``, ``no`` or ``off``, it keeps every spec from being armed."""

DISABLE_FILE_VARIABLE = "DIAGNOSE_DISABLE_FILE"
"""Names a file; as long as that exists, no spec is armed."""

_OFF = frozenset({"", "0", "false", "no", "off"})
_POLLS_PER_FULL_POLL = 60
# To look for its entries, a process has the server go through those of all: 10 ms of a core for
# 50 specs of 10,000 processes. Not more than about three a second, whatever the fleet.
_PROCESSES_PER_LOOK_BACK = 2_000
_LONGEST_BACK_OFF_SECONDS = 60.0
_FAREWELL_SECONDS = 2.0
# A process that forks only to become another program should leave no trace in the fleet.
_FORK_SETTLES_SECONDS = 0.1
# Whoever changes one spec is likely to change it again, or another.
_BRISK_SECONDS = 60.0
_BRISK_POLLS_PER_PERIOD = 5
_BRISK_POLLS_PER_SECOND = 1_000
_SHORTEST_BRISK_PERIOD = 1.0

_managers: weakref.WeakValueDictionary[int, MongoInstrumentManager] = weakref.WeakValueDictionary()

# Whether the program has started a manager itself. The lock is held while one starts.
has_one_of_its_own = False
_starts = threading.Lock()
_is_following = False
_LAST_PRIORITY = -1000  # of multiprocessing's finalizers


class MongoInstrumentManager(InstrumentManager):
    """Applies the specs of a MongoDB collection to this process, again and again.

    Start it once, where the program starts::

        manager = MongoInstrumentManager(client["diagnose"]["specs"], service="web")
        manager.start()

    Thread-safe. Forked children go on by themselves: each with an id, a client and threads of
    its own, and with everything armed that was armed in the parent.

    :attr:`specs` mirrors the collection, without ``applied``, by ``_id``; don't change it.

    Args:
        collection: of spec documents. Its client is used as it is, with limits on how long a
            call may take; children of a fork make one of their own from its settings.
        process_id: the key in ``applied``, unique in the fleet; characters that can't be in
            one become ``_``. Without it: host, pid and the time of the start.
        period: seconds between two polls.
        service: label for ``select.service``; without it the variable ``DIAGNOSE_SERVICE``.
        env: label for ``select.env``; without it ``DIAGNOSE_ENV``.
        version: label for ``select.version``; without it ``DIAGNOSE_VERSION``.
        labels: further ones, and ``host`` if it is not to be the machine's name. See
            :data:`diagnose_mongo.worker.identity.LABEL_VARIABLES` for what else labels come from.
        expression_policy: what expressions in specs may do. Whoever can write to the
            collection can do that in every process: ``"python"`` is everything.
        cpu_budget: the share of one core that all probes of this process may cost; above it
            the costliest are suspended for a time. None: no limit.
        most_per_function: how many specs may be armed on one function; one more is the error
            ``too-many``, and takes the place of the next that goes. None: any number.
        most_per_process: how many specs may be armed at once; likewise.
        heartbeat: seconds between two times that the process says that it lives; who missed
            three counts as dead.
        watch: follow a change stream too, which takes a connection of its own: changes come
            within milliseconds. Where there is none, polls do.
        bounded_above: in a fleet of more processes than this, not each has an entry of its own
            in ``applied``: failures do (the first 200), and a sample. Each spec has ``counts``.
        gives_way: to a manager that the program starts without this: it stops then, or does
            not start at all. For one that was put into a program from outside.

    Attributes:
        period: as given; of effect when polling starts.
        heartbeat: as given.
    """

    def __init__(
        self,
        collection: SpecCollection | Link,
        *,
        process_id: str | None = None,
        period: float = 10.0,
        service: str | None = None,
        env: str | None = None,
        version: str | None = None,
        labels: Mapping[str, str] | None = None,
        expression_policy: Policy = "restricted",
        cpu_budget: float | None = CPU_BUDGET,
        most_per_function: int | None = MOST_PER_FUNCTION,
        most_per_process: int | None = MOST_PER_PROCESS,
        heartbeat: float = bounds.HEARTBEAT_SECONDS,
        watch: bool = False,
        bounded_above: int = bounds.BOUNDED_ABOVE,
        gives_way: bool = False,
    ) -> None:
        self._identity = Identity.make(
            process_id, {"service": service, "env": env, "version": version, **(labels or {})}
        )
        super().__init__(
            self._identity.process_id,
            expression_policy=expression_policy,
            labels=self._identity.labels,
            cpu_budget=cpu_budget,
            most_per_function=most_per_function,
            most_per_process=most_per_process,
        )
        if process_id is not None and process_id != self.process_id:
            log.warning(
                "process id %r is written as %r: field names take [A-Za-z0-9_-] only",
                process_id,
                self.process_id,
            )
        self.period = _checked_seconds("period", period)
        self.heartbeat = _checked_seconds("heartbeat", heartbeat)
        self._bounded_above = bounded_above
        self._gives_way = gives_way
        self._link = link_to(collection)
        self._link_is_stale = False
        self._open()
        self._allotments = Allotments()
        self._chores = Chores(self.process_id, bounded_above)
        self._watcher = Watcher(self._wake) if watch and self._processes is not None else None
        self._control = Control()
        self._failing: set[str] = set()
        self._may_steer = True
        self._run = secrets.token_hex(8)
        self._is_alone = True
        self._poller: Poller | None = None
        self._stopping = threading.Event()
        self._clock: ServerClock | None = None
        self._polls = 0
        self._raw_ids: dict[Hashable, Any] = {}
        self._versions: dict[Hashable, object] = {}
        self._seen: list[tuple[Any, object]] | None = None
        self._entries = Entries()
        self._complaints: set[tuple[Hashable, str]] = set()
        self._down_since: float | None = None
        self._retry_at = self._beat_at = self._brisk_until = 0.0
        self._rest_until = 0.0
        self._has_beaten = False
        self._retell_in: int | None = None
        _managers[id(self)] = self

    def _open(self) -> None:
        """Set up what talks to the collections, anew in a forked child."""
        self._store = spec_store(self._link)
        fleet = fleet_stores(self._link)
        self._processes = None if fleet is None else fleet.processes
        self._controls = None if fleet is None else fleet.controls
        self._budgets = None if fleet is None else fleet.hits

    # --- what programs call ---

    def start(self) -> None:
        """Start polling in the background, and stop when the program ends.

        Returns at once, whether MongoDB is there or not. Idempotent.
        """
        with _starts:
            if not self._may_start():
                return
            with self._lock:
                if self._poller is not None:
                    return
                self._stopping = threading.Event()
                self._start_polling()
        atexit.register(self.stop)
        _follow_multiprocessing()

    def stop(self) -> None:
        """Take off all that this manager has put on, stop polling, erase its entries.

        Waits for MongoDB for a moment only; entries that it could not erase by then stay.
        :meth:`start` starts again. Idempotent.
        """
        atexit.unregister(self.stop)
        with self._lock:
            self._stopping.set()
            poller, self._poller = self._poller, None
        if poller is not None:
            poller.stop()
        super().stop()
        if self._watcher is not None:
            self._watcher.stop()
        if self._down_since is None and not self._link_is_stale:
            # A poll that is under way would write again what is removed here.
            waited = self._turn.acquire(timeout=_FAREWELL_SECONDS / 2)
            try:
                self._say_good_bye()
            finally:
                if waited:
                    self._turn.release()
        with self._lock:
            self._forget()
            self.specs.clear()
        if not self._link_is_stale:
            self._link.close()
            self._link_is_stale = self._link.is_owned

    def _say_good_bye(self) -> None:
        # All of it together may not take longer.
        with contextlib.suppress(StoreError), self._link.talking("leaving", _FAREWELL_SECONDS):
            self._write(timeout=_FAREWELL_SECONDS)
            processes, controls, budgets = self._processes, self._controls, self._budgets
            if processes is None or controls is None or budgets is None or not self._has_beaten:
                return
            self._allotments.close(budgets, self.process_id, _FAREWELL_SECONDS)
            self._chores.close(controls, _FAREWELL_SECONDS)
            processes.leave(self.process_id, _FAREWELL_SECONDS)

    def apply(self) -> None:
        """Poll once, now: read what changed, apply it, write the outcomes.

        Never raises for what a spec holds or because MongoDB is down. Takes seconds if it is.
        """
        self._poll(None)

    def apply_in_background(self, period: float = 60) -> None:
        """Poll every ``period`` seconds: :meth:`start` by the name that other managers have."""
        self.period = _checked_seconds("period", period)
        with self._lock:
            poller = self._poller
            if poller is not None:
                poller.stop()
                self._start_polling()
        if poller is None:
            self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def now(self) -> datetime:
        """The server's time, as last read; this machine's until MongoDB was reached."""
        return super().now() if self._clock is None else self._clock.now()

    def _may_start(self) -> bool:
        """Whether no manager has precedence; those over which this one has it stop."""
        global has_one_of_its_own  # noqa: PLW0603 - of the program
        if self._gives_way:
            return not has_one_of_its_own
        has_one_of_its_own = True
        for ref in _managers.valuerefs():
            each = ref()
            if each is not None and each._gives_way and each._poller is not None:
                log.info("%r gives way to %r", each, self)
                # It says good-bye to the server, which may take a while.
                with without_signals():
                    threading.Thread(target=each.stop, name="diagnose-stop", daemon=True).start()
        return True

    # --- polling ---

    def _start_polling(self, *, settle: float = 0.0) -> None:
        stopping = self._stopping
        self._poller = Poller(
            lambda: self._poll(stopping),
            period=self.period,
            phase=phase_of(self.process_id, self.period),
            settle=settle,
        )
        self._poller.start()
        if self._watcher is not None:
            self._watcher.start(self._link)

    def _poll(self, stopping: threading.Event | None) -> float | None:
        """One poll; returns when the next one is wanted, in seconds, if that is before its time."""
        with self._turn:
            if _is_set(stopping):
                return None
            # A program that calls apply() wants an answer; the background keeps to its plan.
            now = time.monotonic()
            is_time = stopping is None or now >= max(self._retry_at, self._rest_until)
            is_reached = is_time and self._is_reached(lambda: self._read(stopping), stopping)
            # Also without MongoDB: lifespans end, the off switch works, errors are found.
            self._apply(stopping)
            soon = [self._brisk_seconds()]
            if is_reached and self._is_reached(
                lambda: soon.append(self._report(stopping)), stopping
            ):
                self._note_recovery()
            if self._down_since is not None:
                return self._retry_at - time.monotonic()
            return min((each for each in soon if each is not None), default=None)

    def _brisk_seconds(self) -> float | None:
        """When to look again, just after something was changed."""
        if time.monotonic() >= self._brisk_until or self._control.period:
            return None
        # No faster than one server can answer a large fleet.
        return max(
            _SHORTEST_BRISK_PERIOD,
            self.period / _BRISK_POLLS_PER_PERIOD,
            self._control.processes / _BRISK_POLLS_PER_SECOND,
        )

    def _read(self, stopping: threading.Event | None) -> None:
        if self._link_is_stale:
            self._link = self._link.reopened()
            self._link_is_stale = False
            self._open()
        store = self._store
        is_full = self._polls % _POLLS_PER_FULL_POLL == 0
        if is_full:
            store.look_for_index()
            self._may_steer = True
        versions = self._look()
        self._entries.look(self._control)
        if versions == self._seen and not is_full and not self._entries.are_lost:
            self._polls += 1
            return
        found = {
            documents.key_of(raw_id): (raw_id, documents.version_of(lastmodified))
            for raw_id, lastmodified in versions
        }
        changed = [
            raw_id
            for key, (raw_id, version) in found.items()
            if self._versions.get(key, self) != version
            or (is_full and not isinstance(self.specs[key], dict))
        ]
        read = store.fetch(changed) if changed else []
        if is_full and len(changed) < len(found):
            seen = {documents.key_of(raw_id) for raw_id in changed}
            others = [raw_id for key, (raw_id, _) in found.items() if key not in seen]
            read += store.fetch(others, self._fields())
        entries = store.entries(self.process_id) if self._looks_back(is_full=is_full) else None
        if read or is_full:
            self._clock = self._link.clock() or self._clock
        if self._polls and any(self._versions.get(key) != found[key][1] for key in found):
            self._brisk_until = time.monotonic() + _BRISK_SECONDS
        with self._lock:
            if _is_set(stopping):
                return
            self._polls += 1
            for key in [key for key in self.specs if key not in found]:
                del self.specs[key]
                self._entries.forget(key)
                for known in (self._versions, self._raw_ids):
                    known.pop(key, None)
            for raw_id, document in read:
                key = documents.key_of(raw_id)
                self.specs[key] = document
                self._raw_ids[key] = raw_id
                self._versions[key] = (
                    found[key][1]
                    if isinstance(document, Undecodable)
                    else documents.version_of(document.get(documents.VERSION))
                )
            if entries is not None:
                self._believe(entries)
            # What another node of the server had not got yet is asked for again.
            is_whole = all(
                self._versions.get(key) == version for key, (_, version) in found.items()
            )
            self._seen = versions if is_whole else None

    def _fields(self) -> set[str]:
        """All fields that specs have, as far as is known here."""
        known = (each for each in self.specs.values() if isinstance(each, dict))
        return set(FIELDS).union(*known) - {documents.APPLIED, documents.COUNTS}

    def _looks_back(self, *, is_full: bool) -> bool:
        """Whether to see which entries of this process the collection has."""
        if not is_full:
            return self._entries.are_lost
        if self._polls == 0:
            # A new process can't have entries, unless its id was given by somebody.
            return self._identity.given is not None
        seldom = 1 + self._control.processes // _PROCESSES_PER_LOOK_BACK
        return self._entries.are_lost or (self._polls // _POLLS_PER_FULL_POLL) % seldom == 0

    def _look(self) -> list[tuple[Any, object]]:
        """The versions of all specs; what holds for the whole fleet is taken note of."""
        if not self._may_steer:
            return self._store.versions()
        what = "what steers the whole fleet can't be read"
        try:
            versions, control = self._store.look()
        except StoreError as exc:
            if not is_answer(exc):
                raise
            # Not before the specs could be read: it may be that they are what is refused.
            versions, control = self._store.versions(), Control()
            self._may_steer = not is_refused(exc)
            self._note_failure(what, exc)
        else:
            self._failing.discard(what)
        before, self._control = self._control, control
        if before.is_bounded and not control.is_bounded:
            # All processes have an entry again; not all of them write it at once.
            self._retell_in = random.randrange(_POLLS_PER_FULL_POLL)
        self._rest_until = 0.0
        if control.period > self.period:
            # The background comes at its own times; so this is some way short of the period.
            self._rest_until = time.monotonic() + control.period - self.period / 2
        return versions

    def _besides(self, what: str, talk: Callable[[], None]) -> None:
        """Do something that is not needed for specs to be applied.

        This user may lack the right, or somebody put nonsense into that collection; only that
        the server can't be reached is for the poll to know.
        """
        try:
            talk()
        except StoreError as exc:
            if not is_answer(exc):
                raise
            self._note_failure(what, exc)
        except Exception as exc:  # noqa: BLE001 - nonsense in a document, or a defect of ours
            self._note_failure(what, exc)
        else:
            self._failing.discard(what)

    def _note_failure(self, what: str, error: Exception) -> None:
        if what not in self._failing:
            self._failing.add(what)
            trace = None if isinstance(error, StoreError) else error
            log.warning("%s; the specs are applied all the same: %s", what, error, exc_info=trace)

    # --- reporting ---

    def _report(self, stopping: threading.Event | None) -> float | None:
        """Tell what there is to tell; returns when to do so again, if that is soon."""
        processes, budgets, controls = self._processes, self._budgets, self._controls
        soon: list[float | None] = []
        if self._retell_in is not None:
            self._retell()
        if self._control.is_bounded and self._entries.due:
            self._beat_at = 0.0  # there it is told, if nowhere else
        if processes is not None and time.monotonic() >= self._beat_at:
            # Before entries are written: an entry of nobody who lives is removed.
            self._besides("this process can't be listed", lambda: self._beat(processes))
        if budgets is not None and not _is_set(stopping):
            # Before entries too: what says that it is installed can fire.
            self._besides(
                "the fleet's budgets can't be used",
                lambda: soon.append(self._refill(budgets)),
            )
        if _is_set(stopping):
            return None
        self._write()
        if controls is not None and self._has_beaten and not _is_set(stopping):
            self._besides("the fleet's chores can't be done", self._do_chores)
        if self._entries.are_lost or self._entries.is_in_doubt:
            soon.append(0.0)
        return min((each for each in soon if each is not None), default=None)

    def _retell(self) -> None:
        """Count down to telling all outcomes again."""
        if self._retell_in:
            self._retell_in -= 1
            return
        self._retell_in = None
        with self._lock:
            self._entries.written.clear()  # some of it was removed
            for record in self._records.values():
                record.told = UNTOLD

    def _beat(self, processes: ProcessStore) -> None:
        seconds = max(self.heartbeat, self.period, self._control.heartbeat, self._control.period)
        with self._lock:
            told = [
                (self._raw_ids[key], self.specs[key].get(documents.VERSION), record)
                for key, record in self._records.items()
                if record.outcome is not None and isinstance(self.specs.get(key), dict)
            ]
            content = heartbeats.content(self.process_id, self.labels, self.period, told)
        before, expires = processes.beat(
            self.process_id, content, seconds * bounds.TTL_HEARTBEATS, self._run
        )
        entries = self._entries
        if self._has_beaten and before is None:
            entries.is_in_doubt = True
        elif expires is not None:
            entries.note_life(expires, seconds)
        # Another one lived, or stopped, under its id.
        entries.are_lost = self._has_beaten and before not in {None, self._run}
        if entries.are_lost and self._is_alone:
            self._is_alone = False
            log.warning(
                "another manager uses the process id %r: they overwrite each other's entries; "
                "give each an id of its own, or none at all",
                self.process_id,
            )
        self._has_beaten = True
        self._beat_at = time.monotonic() + seconds - self.period / 2

    def _refill(self, budgets: FleetHitsStore) -> float | None:
        with self._lock:
            keys = {key for key, record in self._records.items() if record.instrument is not None}
        soon = self._allotments.refill(budgets, self.process_id, keys)
        for key in self._allotments.over():
            record = self._records.get(key)
            if record is not None and (instrument := record.instrument) is not None:
                instrument.status.state = "done"
        return soon

    def _do_chores(self) -> None:
        with self._lock:
            known = [(self._raw_ids[key], document) for key, document in self.specs.items()]
        self._chores.do(
            self._link,
            self._control,
            self.now(),
            heartbeat=self.heartbeat,
            period=self.period,
            specs=known,
        )

    def _believe(self, entries: dict[Any, Any]) -> None:
        """Take what the collection has for what was written; what differs is told again."""
        changed = self._entries.believe(entries)
        for key, record in self._records.items():
            if key in changed:
                record.told = UNTOLD

    def _write(self, timeout: float | None = None) -> None:
        is_bounded, processes = self._control.is_bounded, self._control.processes
        is_told = not is_bounded or bounds.is_sampled(self.process_id, processes)
        with self._lock:
            batch = self._entries.batch(self._raw_ids.keys(), is_told=is_told)
            raw_ids = {key: self._raw_ids[key] for key in batch.due}
        refusals = self._store.write(
            self.process_id,
            [(raw_ids[key], entry) for key, entry in batch.entries.items()],
            erased=[raw_ids[key] for key in batch.erased],
            room=None if is_told else bounds.SAMPLE + bounds.FAILURES,
            timeout=timeout,
        )
        open_keys = set()
        for raw_id, reason, is_lasting in refusals:
            key = documents.key_of(raw_id)
            if not is_lasting:
                open_keys.add(key)
            if (complaint := (key, reason)) not in self._complaints:
                self._complaints.add(complaint)
                log.warning("the spec %r takes no entry of this process: %s", raw_id, reason)
        with self._lock:
            self._entries.settle(batch, open_keys)

    # --- outages ---

    def _is_reached(self, talk: Callable[[], None], stopping: threading.Event | None) -> bool:
        """Whether MongoDB did what it was asked for; if not, when to ask again is decided."""
        if _is_set(stopping):
            return False
        try:
            talk()
        except StoreError as exc:
            if _is_set(stopping):
                return False  # stop() did not wait for this, and closed the client
            if self._down_since is None:
                log.warning("no specs from MongoDB for now; probes stay as they are: %s", exc)
        except Exception:
            # A defect of ours, or a driver's error that the store does not know.
            if self._down_since is None:
                log.exception("polling failed; probes stay as they are, and it goes on")
        else:
            return True
        self._note_outage()
        return False

    def _note_outage(self) -> None:
        now = time.monotonic()
        if self._down_since is None:
            self._down_since = now
        # Full jitter, so that a fleet does not come back all at once; growing slowly, so that
        # a short outage is over within two periods.
        longest = min(_LONGEST_BACK_OFF_SECONDS, self.period + (now - self._down_since) / 20)
        self._retry_at = now + random.uniform(0, longest)

    def _note_recovery(self) -> None:
        if self._down_since is not None:
            seconds = time.monotonic() - self._down_since
            log.warning("specs come from MongoDB again, after %.0f s", seconds)
            self._down_since = None

    # --- what the base class asks ---

    def _parse(self, key: Hashable, document: Any) -> Spec:
        if isinstance(document, Undecodable):
            raise SpecError(
                f"the document can't be decoded: {document.reason}; replace it by a valid one",
                code="undecodable",
            )
        return super()._parse(documents.name_of(key, document), document)

    def _allotment(self, record: Record, spec: Spec) -> Allotment | None:
        size = spec.limits.fleet_hits
        if size is None or self._budgets is None:
            return None
        version = self.specs[record.key].get(documents.VERSION)
        budget = fleet_hits_id(self._raw_ids[record.key], version)
        return self._allotments.get(record.key, budget, size).allotment

    def _switched_off(self) -> str | None:
        value = os.environ.get(DISABLED_VARIABLE, "")
        if value.strip().lower() not in _OFF:
            return f"switched off in this process: {DISABLED_VARIABLE}={value}"
        file = os.environ.get(DISABLE_FILE_VARIABLE)
        if file and os.path.exists(file):  # noqa: PTH110 - Path.exists may raise
            return (
                f"switched off on this machine: the file {file} of {DISABLE_FILE_VARIABLE} exists"
            )
        return self._control.paused

    def _wake(self) -> None:
        poller = self._poller
        if poller is not None:
            poller.wake()

    def _has_entry(self, document: Any) -> bool:
        return True  # documents come without entries; `_believe` compares now and then

    def _record_entry(self, key: Hashable, document: Any, entry: dict[str, Any] | None) -> None:
        self._entries.put(key, entry)

    # --- fork ---

    def _forget(self) -> None:
        self._polls = 0
        self._seen = None
        self._down_since = None
        self._retry_at = self._beat_at = self._brisk_until = self._rest_until = 0.0
        self._has_beaten = False
        for known in (self._versions, self._raw_ids, self._entries):
            known.clear()

    def _after_fork_in_child(self) -> None:
        super()._after_fork_in_child()
        self._identity = self._identity.for_child()
        self._run = secrets.token_hex(8)
        self.process_id = self._identity.process_id
        self._forget()
        self._allotments.after_fork_in_child()
        self._chores = Chores(self.process_id, self._bounded_above)
        if self._watcher is not None:
            self._watcher = Watcher(self._wake)
        self._link_is_stale = True
        # The event may have been in use in a thread that is no more.
        is_stopping = self._stopping.is_set()
        self._stopping = threading.Event()
        if is_stopping:
            self._stopping.set()

    def _resume_in_child(self) -> None:
        if self._poller is not None:
            self._start_polling(settle=_FORK_SETTLES_SECONDS)


def _checked_seconds(name: str, seconds: float) -> float:
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name} must be a number of seconds above 0, such as 10, not {seconds!r}")
    return float(seconds)


def _is_set(stopping: threading.Event | None) -> bool:
    return stopping is not None and stopping.is_set()


def _follow_multiprocessing() -> None:
    """See to it that managers stop in multiprocessing's children.

    Those end by ``os._exit``, so not with what `atexit` knows, but with multiprocessing's own
    finalizers. They begin by forgetting these, and then do what is to be done after a fork.
    """
    global _is_following  # noqa: PLW0603 - of the program, children included
    util = sys.modules.get("multiprocessing.util")
    if util is not None and hasattr(util, "register_after_fork") and not _is_following:
        _is_following = True
        _stop_with_finalizers(_stop_all)
        util.register_after_fork(_stop_all, _stop_with_finalizers)


def _stop_with_finalizers(stop: Callable[[], None]) -> None:
    util = sys.modules["multiprocessing.util"]
    util.Finalize(None, stop, exitpriority=_LAST_PRIORITY)


def _stop_all() -> None:
    for ref in _managers.valuerefs():
        manager = ref()
        if manager is not None and manager._poller is not None:
            manager.stop()


def _after_fork_in_child() -> None:
    global _starts  # noqa: PLW0603 - of this process
    _starts = threading.Lock()
    _follow_multiprocessing()
    for ref in _managers.valuerefs():
        manager = ref()
        if manager is not None:
            try:
                manager._resume_in_child()
            except Exception:
                log.exception("%r could not take up polling in a forked child", manager)


# Registered after the driver's own hook, which the import of the store has registered: that one
# resets the driver's locks, and no thread may use the driver meanwhile.
os.register_at_fork(after_in_child=_after_fork_in_child)
