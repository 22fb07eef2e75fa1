"""The manager of one process in a fleet: specs come from MongoDB, outcomes go back into them.

Every period it asks the collection for the versions of all specs (one covered index query),
reads those that changed, applies them, and writes ``applied.<process id>`` where its outcome
changed. When MongoDB is down everything that is armed stays as it is, lifespans end on time,
and attempts to reach it again come ever more rarely.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import random
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Self

from diagnose.errors import SpecError, StoreError
from diagnose.managers import CPU_BUDGET, InstrumentManager
from diagnose.outcomes import UNTOLD
from diagnose_mongo import documents
from diagnose_mongo.identity import Identity
from diagnose_mongo.polling import Poller, phase_of
from diagnose_mongo.store import SpecStore, Undecodable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping
    from datetime import datetime

    from diagnose.expressions import Policy
    from diagnose.specs import Spec
    from diagnose_mongo.store import ServerClock, SpecCollection

__all__ = ["DISABLED_VARIABLE", "DISABLE_FILE_VARIABLE", "MongoInstrumentManager"]

log = logging.getLogger(__name__)

DISABLED_VARIABLE = "DIAGNOSE_DISABLED"
"""Set to anything but ``0``, ``false``, ``no`` or ``off``, it keeps every spec from being armed."""

DISABLE_FILE_VARIABLE = "DIAGNOSE_DISABLE_FILE"
"""Names a file; as long as that exists, no spec is armed."""

_OFF = frozenset({"", "0", "false", "no", "off"})
_POLLS_PER_FULL_POLL = 60
_LONGEST_BACK_OFF_SECONDS = 60.0
_FAREWELL_SECONDS = 2.0
# A process that forks only to become another program should leave no trace in the fleet.
_FORK_SETTLES_SECONDS = 0.1

_managers: weakref.WeakValueDictionary[int, MongoInstrumentManager] = weakref.WeakValueDictionary()


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
        labels: further ones, and ``host`` if it is not to be the machine's name.
        expression_policy: what expressions in specs may do. Whoever can write to the
            collection can do that in every process: ``"python"`` is everything.
        cpu_budget: the share of one core that all probes of this process may cost; above it
            the costliest is suspended for a time. None: no limit.

    Attributes:
        period: as given; of effect when polling starts.
    """

    def __init__(
        self,
        collection: SpecCollection | SpecStore,
        *,
        process_id: str | None = None,
        period: float = 10.0,
        service: str | None = None,
        env: str | None = None,
        version: str | None = None,
        labels: Mapping[str, str] | None = None,
        expression_policy: Policy = "restricted",
        cpu_budget: float | None = CPU_BUDGET,
    ) -> None:
        self._identity = Identity.make(
            process_id, {"service": service, "env": env, "version": version, **(labels or {})}
        )
        super().__init__(
            self._identity.process_id,
            expression_policy=expression_policy,
            labels=self._identity.labels,
            cpu_budget=cpu_budget,
        )
        if process_id is not None and process_id != self.process_id:
            log.warning(
                "process id %r is written as %r: field names take [A-Za-z0-9_-] only",
                process_id,
                self.process_id,
            )
        self.period = _checked_period(period)
        self._store = collection if isinstance(collection, SpecStore) else SpecStore(collection)
        self._store_is_stale = False
        self._poller: Poller | None = None
        self._stopping = threading.Event()
        self._clock: ServerClock | None = None
        self._polls = 0
        self._raw_ids: dict[Hashable, Any] = {}
        self._versions: dict[Hashable, object] = {}
        self._outbox: dict[Hashable, dict[str, Any] | None] = {}
        self._written: dict[Hashable, dict[str, Any]] = {}
        self._complaints: set[tuple[Hashable, str]] = set()
        self._down_since: float | None = None
        self._retry_at = 0.0
        _managers[id(self)] = self

    # --- what programs call ---

    def start(self) -> None:
        """Start polling in the background, and stop when the program ends.

        Returns at once, whether MongoDB is there or not. Idempotent.
        """
        with self._lock:
            if self._poller is not None:
                return
            self._stopping = threading.Event()
            self._start_polling()
        atexit.register(self.stop)

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
        if self._down_since is None:
            with contextlib.suppress(StoreError):
                self._write(timeout=_FAREWELL_SECONDS)
        with self._lock:
            self._forget()
            self.specs.clear()
        if not self._store_is_stale:
            self._store.close()
            self._store_is_stale = self._store.is_owned

    def apply(self) -> None:
        """Poll once, now: read what changed, apply it, write the outcomes.

        Never raises for what a spec holds or because MongoDB is down. Takes seconds if it is.
        """
        self._poll(None)

    def apply_in_background(self, period: float = 60) -> None:
        """Poll every ``period`` seconds: :meth:`start` by the name that other managers have."""
        self.period = _checked_period(period)
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

    def _poll(self, stopping: threading.Event | None) -> float | None:
        """One poll; returns when to try MongoDB again, in seconds, if that is before the next."""
        with self._turn:
            if _is_set(stopping):
                return None
            # A program that calls apply() wants an answer; the background keeps to its plan.
            is_time = stopping is None or time.monotonic() >= self._retry_at
            is_reached = is_time and self._is_reached(lambda: self._read(stopping), stopping)
            # Also without MongoDB: lifespans end, the off switch works, errors are found.
            self._apply(stopping)
            if is_reached and self._is_reached(self._write, stopping):
                self._note_recovery()
            return None if self._down_since is None else self._retry_at - time.monotonic()

    def _read(self, stopping: threading.Event | None) -> None:
        if self._store_is_stale:
            self._store = self._store.reopened()
            self._store_is_stale = False
        store = self._store
        is_full = self._polls % _POLLS_PER_FULL_POLL == 0
        if is_full:
            store.prepare()
        found = {
            documents.key_of(raw_id): (raw_id, documents.version_of(lastmodified))
            for raw_id, lastmodified in store.versions()
        }
        changed = [
            raw_id
            for key, (raw_id, version) in found.items()
            if is_full or key not in self._versions or self._versions[key] != version
        ]
        read = store.fetch(changed) if changed else []
        # A new process can't have entries, unless its id was given by somebody.
        has_past = self._polls > 0 or self._identity.given is not None
        entries = store.entries(self.process_id) if is_full and has_past else None
        if read or is_full:
            self._clock = store.clock() or self._clock
        with self._lock:
            if _is_set(stopping):
                return
            self._polls += 1
            for key in [key for key in self.specs if key not in found]:
                del self.specs[key]
                for known in (self._versions, self._raw_ids, self._outbox, self._written):
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

    def _believe(self, entries: dict[Any, Any]) -> None:
        """Take what the collection has for what was written; what differs is told again."""
        truth = {key: _without_time(entry) for key, entry in entries.items()}
        for key, record in self._records.items():
            if self._written.get(key) != truth.get(key):
                record.told = UNTOLD
        self._written = truth

    def _write(self, timeout: float | None = None) -> None:
        entries, erased = {}, []
        with self._lock:
            outbox = {key: entry for key, entry in self._outbox.items() if key in self._raw_ids}
            raw_ids = {key: self._raw_ids[key] for key in outbox}
            for key, entry in outbox.items():
                if entry is None and key in self._written:
                    erased.append(key)
                elif entry is not None and self._written.get(key) != _without_time(entry):
                    entries[key] = entry
        refusals = self._store.write(
            self.process_id,
            [(raw_ids[key], entry) for key, entry in entries.items()],
            erased=[raw_ids[key] for key in erased],
            timeout=timeout,
        )
        for raw_id, reason in refusals:
            if (complaint := (documents.key_of(raw_id), reason)) not in self._complaints:
                self._complaints.add(complaint)
                log.warning("the spec %r takes no entry of this process: %s", raw_id, reason)
        with self._lock:
            for key, entry in outbox.items():
                if self._outbox.get(key) is entry:
                    self._outbox.pop(key, None)
            self._written |= {key: _without_time(entry) for key, entry in entries.items()}
            for key in erased:
                self._written.pop(key, None)

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

    def _switched_off(self) -> str | None:
        value = os.environ.get(DISABLED_VARIABLE, "")
        if value.strip().lower() not in _OFF:
            return f"switched off in this process: {DISABLED_VARIABLE}={value}"
        file = os.environ.get(DISABLE_FILE_VARIABLE)
        if file and os.path.exists(file):  # noqa: PTH110 - Path.exists may raise
            return (
                f"switched off on this machine: the file {file} of {DISABLE_FILE_VARIABLE} exists"
            )
        return None

    def _wake(self) -> None:
        poller = self._poller
        if poller is not None:
            poller.wake()

    def _has_entry(self, document: Any) -> bool:
        return True  # documents come without entries; `_believe` compares now and then

    def _record_entry(self, key: Hashable, document: Any, entry: dict[str, Any] | None) -> None:
        # As it will be read back, so that what was written can be compared with what is there.
        self._outbox[key] = None if entry is None else documents.entry_document(entry)

    # --- fork ---

    def _forget(self) -> None:
        self._polls = 0
        self._down_since, self._retry_at = None, 0.0
        for known in (self._versions, self._raw_ids, self._outbox, self._written):
            known.clear()

    def _after_fork_in_child(self) -> None:
        super()._after_fork_in_child()
        self._identity = self._identity.for_child()
        self.process_id = self._identity.process_id
        self._forget()
        self._store_is_stale = True
        # The event may have been in use in a thread that is no more.
        is_stopping = self._stopping.is_set()
        self._stopping = threading.Event()
        if is_stopping:
            self._stopping.set()

    def _resume_in_child(self) -> None:
        if self._poller is not None:
            self._start_polling(settle=_FORK_SETTLES_SECONDS)


def _checked_period(period: float) -> float:
    if not 0 < period < math.inf:
        raise ValueError(f"period must be a number of seconds above 0, such as 10, not {period!r}")
    return float(period)


def _is_set(stopping: threading.Event | None) -> bool:
    return stopping is not None and stopping.is_set()


def _without_time(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {name: value for name, value in entry.items() if name != "at"}


def _after_fork_in_child() -> None:
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
