"""The collection that steers a fleet: what holds for all, and the lease of its chores."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from pymongo.errors import DuplicateKeyError

from diagnose_mongo import documents

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from diagnose_mongo.store.link import Link

__all__ = ["IDS", "Control", "ControlStore"]

IDS = _FLEET, _LEASE = "fleet", "lease"
"""Of the documents that there are: another one is nobody's."""

_LONGEST_SECONDS = 1e9
_LONGEST_LEASE = timedelta(days=1)
_LONG_AGO = datetime(1970, 1, 1)  # noqa: DTZ001 - as BSON has it


@dataclass(frozen=True, slots=True)
class Control:
    """What holds for the whole fleet, and the lease of its chores.

    Attributes:
        paused: why nothing is to be armed anywhere; None: it may be.
        period: seconds between two polls at least; 0: as each process was told.
        heartbeat: seconds between two heartbeats at least.
        processes: how many live, as counted last by the holder of the lease; 0: not yet.
        is_bounded: there are so many that ``applied`` holds failures and a sample only.
        holder: the process that does the chores, or did.
        lease_ends: when somebody else may take them over; by the server's clock, naive.
        renewed: when it was taken or renewed last; by the server's clock, naive.
        buried: when what dead processes left was removed last, just before it was looked which
            processes live; by the server's clock, naive.
    """

    paused: str | None = None
    period: float = 0.0
    heartbeat: float = 0.0
    processes: int = 0
    is_bounded: bool = False
    holder: str | None = None
    lease_ends: datetime | None = None
    renewed: datetime | None = None
    buried: datetime | None = None

    def has_free_lease(self, now: datetime) -> bool:
        """Whether anybody may take the lease; ``now`` is aware, by the server's clock."""
        if self.lease_ends is None:
            return True
        left = self.lease_ends.replace(tzinfo=UTC) - now
        return not timedelta() < left <= _LONGEST_LEASE

    @classmethod
    def of(cls, found: Iterable[Mapping[str, Any]]) -> Self:
        """What the documents of the collection say; nonsense in them says nothing."""
        by_id = {each[documents.ID]: each for each in found}
        fleet, lease = by_id.get(_FLEET, {}), by_id.get(_LEASE, {})
        holder = lease.get("holder")
        return cls(
            paused=_reason(fleet) if fleet.get("paused") else None,
            period=_seconds(fleet.get("period")),
            heartbeat=_seconds(fleet.get("heartbeat")),
            processes=int(_seconds(lease.get("processes"))),
            is_bounded=lease.get("bounded") is True,
            holder=holder if isinstance(holder, str) else None,
            lease_ends=_moment(lease.get("ends")),
            renewed=_moment(lease.get("renewed")),
            buried=_moment(lease.get("buried")),
        )


class ControlStore:
    """Reads and writes what steers the fleet. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._collection = link.beside("control")

    def read(self) -> Control:
        """All of it.

        Raises:
            StoreError: the server could not be asked.
        """
        with self._link.talking("reading what holds for the whole fleet"):
            both = {documents.ID: {"$in": list(IDS)}}
            return Control.of(self._collection.find(both))

    def set(self, changes: Mapping[str, Any]) -> None:
        """Change what holds for the fleet; None takes a field out.

        Raises:
            StoreError: it could not be written.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        gone = {name: "" for name, value in changes.items() if value is None}
        update: dict[str, Any] = {"$currentDate": {"at": True}}
        if given:
            update["$set"] = given
        if gone:
            update["$unset"] = gone
        with self._link.talking("changing what holds for the whole fleet"):
            self._collection.update_one({documents.ID: _FLEET}, update, upsert=True)

    # --- the lease ---

    def take_lease(self, holder: str, seconds: float) -> bool:
        """Take the lease of the chores, or renew it; whether ``holder`` has it now.

        The server's clock alone decides.

        Raises:
            StoreError: the server could not be asked.
        """
        may_take = {
            documents.ID: _LEASE,
            "$or": [
                {"holder": holder},
                {"$expr": {"$not": {"$gt": ["$ends", "$$NOW"]}}},
                # Nobody takes one for so long: a server's clock was wrong.
                {
                    "$expr": {
                        "$gt": [
                            "$ends",
                            {"$add": ["$$NOW", _LONGEST_LEASE // timedelta(milliseconds=1)]},
                        ]
                    }
                },
            ],
        }
        taken = {
            "holder": {"$literal": holder},
            "ends": {"$add": ["$$NOW", int(seconds * 1000)]},
            "renewed": "$$NOW",
            # How long it has been held; what the one before did not finish is begun anew.
            "since": {"$cond": [{"$eq": ["$holder", {"$literal": holder}]}, "$since", "$$NOW"]},
        }
        with self._link.talking("taking the lease of the fleet's chores"):
            if self._collection.update_one(may_take, [{"$set": taken}]).matched_count:
                return True
            # It is another's, or there is none yet (an upsert can't ask for the server's time).
            try:
                made = self._collection.update_one(
                    {documents.ID: _LEASE}, {"$setOnInsert": {"ends": _LONG_AGO}}, upsert=True
                )
            except DuplicateKeyError:
                return False  # another process made it just now
            if made.upserted_id is None:
                return False
            return bool(self._collection.update_one(may_take, [{"$set": taken}]).matched_count)

    def note_size(self, holder: str, processes: int, *, is_bounded: bool) -> None:
        """Say how large the fleet is, if ``holder`` still has the lease.

        Raises:
            StoreError: it could not be written.
        """
        with self._link.talking("saying how large the fleet is"):
            self._collection.update_one(
                {documents.ID: _LEASE, "holder": holder},
                {"$set": {"processes": processes, "bounded": is_bounded}},
            )

    def note_burial(self, holder: str) -> bool:
        """Say that entries of the dead will be removed from now on; whether ``holder`` may.

        Raises:
            StoreError: it could not be written.
        """
        with self._link.talking("saying that entries of the dead are removed"):
            noted = self._collection.update_one(
                {documents.ID: _LEASE, "holder": holder}, [{"$set": {"buried": "$$NOW"}}]
            )
            return bool(noted.matched_count)

    def drop_lease(self, holder: str, timeout: float) -> None:
        """Let somebody else take the lease at once.

        Raises:
            StoreError: it could not be written in ``timeout`` seconds.
        """
        with self._link.talking("giving back the lease of the fleet's chores", timeout):
            self._collection.update_one(
                {documents.ID: _LEASE, "holder": holder},
                [{"$set": {"ends": "$$NOW", "holder": None}}],
            )


def _seconds(value: object) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < _LONGEST_SECONDS else 0.0  # type: ignore[arg-type,operator]


def _moment(value: object) -> datetime | None:
    return value.replace(tzinfo=None) if isinstance(value, datetime) else None


def _reason(fleet: Mapping[str, Any]) -> str:
    by = f" by {fleet['by']}" if isinstance(fleet.get("by"), str) else ""
    why = f": {fleet['reason']}" if isinstance(fleet.get("reason"), str) else ""
    return f"all probes of the fleet are paused{by}{why}"
