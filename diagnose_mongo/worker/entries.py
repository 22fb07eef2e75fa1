"""What one process has to write into specs, what it has written, and whether that is still there."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from diagnose_mongo import documents

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping
    from datetime import datetime

    from diagnose_mongo.store import Control

__all__ = ["Batch", "Entries"]

# A restored database is older than what a lagging node of the server has.
_OLDER_SERVER = timedelta(minutes=1)


class Batch(NamedTuple):
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

    Attributes:
        due: what has to be told; None: the entry has to go.
        written: what the collection has, as far as is known; without the time of each.
        are_lost: some of that may be gone, and has to be looked for.
        is_in_doubt: that is to be decided by what steers the fleet.
    """

    def __init__(self) -> None:
        self.due: dict[Hashable, dict[str, Any] | None] = {}
        self.written: dict[Hashable, dict[str, Any]] = {}
        self.are_lost = self.is_in_doubt = False
        self._safe_until: datetime | None = None
        self._renewed: datetime | None = None

    def clear(self) -> None:
        """Begin anew: as another process, or after this one has left."""
        self.due.clear()
        self.written.clear()
        self.are_lost = self.is_in_doubt = False

    def forget(self, key: Hashable) -> None:
        """Leave out a spec that is gone."""
        self.due.pop(key, None)
        self.written.pop(key, None)

    def put(self, key: Hashable, entry: Mapping[str, Any] | None) -> None:
        """Have an entry written with the next batch; None: erased."""
        # As it will be read back, so that what was written can be compared with what is there.
        self.due[key] = None if entry is None else documents.entry_document(entry)

    # --- writing ---

    def batch(self, known: Collection[Hashable], *, is_told: bool) -> Batch:
        """What of ``due`` has to be written now.

        Args:
            known: the keys of the specs that there are.
            is_told: whether this process has entries; else it has those that say of a failure.
        """
        found = Batch({key: entry for key, entry in self.due.items() if key in known}, {}, [])
        for key, entry in found.due.items():
            if entry is None or not (is_told or entry["err"] is not None):
                if key in self.written:
                    found.erased.append(key)
            elif self.written.get(key) != _without_time(entry):
                found.entries[key] = entry
        return found

    def settle(self, batch: Batch, still_due: Collection[Hashable]) -> None:
        """Note that a batch was written, but for some keys."""
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

    def note_life(self, expires: datetime, heartbeat: float) -> None:
        """This process lived without a break, and will not count as dead before ``expires``."""
        # To look who counts as dead, and to remove what they left, takes some time.
        self._safe_until = expires - timedelta(seconds=2 * heartbeat)

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
