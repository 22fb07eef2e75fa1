"""What one process has to write into specs, what it has written, and whether that is still there."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from diagnose_mongo import bounds, documents

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping
    from contextlib import AbstractContextManager
    from datetime import datetime

    from diagnose_mongo.store import Control, SpecStore
    from diagnose_mongo.worker.heartbeats import Life

__all__ = ["Entries"]

log = logging.getLogger(__name__)

# A restored database is older than what a lagging node of the server has.
_OLDER_SERVER = timedelta(minutes=1)


class _Batch(NamedTuple):
    """What is to be written in one go.

    Attributes:
        due: all that is settled by it.
        entries: those of them to be written, by key.
        erased: the keys of those to be erased.
    """

    due: dict[Hashable, dict[str, Any] | None]
    entries: dict[Hashable, dict[str, Any]]
    erased: list[Hashable]


class Entries:
    """A process's entries, by the keys of their specs. Not thread-safe: its user has a lock.

    Args:
        process_id: whose.

    Attributes:
        due: what has to be told; None: the entry has to go.
        written: what the collection has, as far as is known; without the time of each.
        are_lost: some of that may be gone, and has to be looked for.
        is_in_doubt: that is to be decided by what steers the fleet.
    """

    def __init__(self, process_id: str) -> None:
        self._process_id = process_id
        self._complaints: set[tuple[Hashable, str]] = set()
        self.due: dict[Hashable, dict[str, Any] | None] = {}
        self.written: dict[Hashable, dict[str, Any]] = {}
        self.are_lost = self.is_in_doubt = False
        self._safe_until: datetime | None = None
        self._renewed: datetime | None = None

    def forget(self, key: Hashable) -> None:
        """Leave out a spec that is gone."""
        self.due.pop(key, None)
        self.written.pop(key, None)

    def put(self, key: Hashable, entry: Mapping[str, Any] | None) -> None:
        """Have an entry written with the next batch; None: erased."""
        # As it will be read back, so that what was written can be compared with what is there.
        self.due[key] = None if entry is None else documents.entry_document(entry)

    # --- writing ---

    def write(
        self,
        store: SpecStore,
        raw_ids: Mapping[Hashable, Any],
        control: Control,
        lock: AbstractContextManager[object],
        timeout: float | None = None,
    ) -> None:
        """Write what is due, as far as this process has entries in a fleet of this size.

        Args:
            store: of the specs.
            raw_ids: of each spec that there is the ``_id``.
            control: what holds for the fleet.
            lock: taken while this object or ``raw_ids`` is looked at, not while it is written.
            timeout: seconds, if not the usual.

        Raises:
            StoreError: the server did not answer; it all stays due.
        """
        is_told = not control.is_bounded or bounds.is_sampled(self._process_id, control.processes)
        with lock:
            batch = self._batch(raw_ids.keys(), is_told=is_told)
            ids = {key: raw_ids[key] for key in batch.due}
        refusals = store.write(
            self._process_id,
            [(ids[key], entry) for key, entry in batch.entries.items()],
            erased=[ids[key] for key in batch.erased],
            room=None if is_told else bounds.SAMPLE + bounds.FAILURES,
            timeout=timeout,
        )
        still_due = set()
        for raw_id, reason, is_lasting in refusals:
            key = documents.key_of(raw_id)
            if not is_lasting:
                still_due.add(key)
            if (complaint := (key, reason)) not in self._complaints:
                self._complaints.add(complaint)
                log.warning("the spec %r takes no entry of this process: %s", raw_id, reason)
        with lock:
            self._settle(batch, still_due)

    def _batch(self, known: Collection[Hashable], *, is_told: bool) -> _Batch:
        found = _Batch({key: entry for key, entry in self.due.items() if key in known}, {}, [])
        for key, entry in found.due.items():
            if entry is None or not (is_told or entry["err"] is not None):
                if key in self.written:
                    found.erased.append(key)
            elif self.written.get(key) != _without_time(entry):
                found.entries[key] = entry
        return found

    def _settle(self, batch: _Batch, still_due: Collection[Hashable]) -> None:
        for key, entry in batch.due.items():
            if key not in still_due and self.due.get(key) is entry:
                self.due.pop(key, None)
        for key, told in batch.entries.items():
            if key not in still_due:
                self.written[key] = _without_time(told)
        for key in batch.erased:
            if key not in still_due:
                self.written.pop(key, None)

    def believe(self, entries: Mapping[Hashable, Any]) -> set[Hashable]:
        """Take what the collection has for what was written; the keys of what differs."""
        truth = {key: _without_time(entry) for key, entry in entries.items()}
        before, self.written = self.written, truth
        self.are_lost = False
        return {key for key in before.keys() | truth.keys() if before.get(key) != truth.get(key)}

    # --- is it still there? ---

    def note_life(self, life: Life, heartbeat: float) -> None:
        """Note what a heartbeat told: what the dead leave is removed, and ids may be shared.

        Args:
            life: what it told.
            heartbeat: seconds until the next one.
        """
        if life.had_gap:
            self.is_in_doubt = True
        elif life.expires is not None:
            # To look which processes are dead, and to remove what they left, takes some time.
            self._safe_until = life.expires - timedelta(seconds=2 * heartbeat)
        self.are_lost = life.is_shared

    def look(self, control: Control) -> None:
        """See by what steers the fleet whether entries may have been removed."""
        renewed, buried = control.renewed, control.buried
        if self._renewed is not None and (
            renewed is None or renewed < self._renewed - _OLDER_SERVER
        ):
            self.are_lost = True  # the database is one of an earlier time, or another one
        self._renewed = renewed
        if self.is_in_doubt:
            # It counted as dead for a while. What the dead leave is removed sometimes.
            is_safe = renewed is not None and (
                buried is None or (self._safe_until is not None and buried < self._safe_until)
            )
            self.are_lost |= not is_safe
            self.is_in_doubt = False


def _without_time(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {name: value for name, value in entry.items() if name != "at"}
