"""What is tidied in the specs for the whole fleet: entries of the dead, and of very many.

The process that does the fleet's chores does this; see :mod:`diagnose_mongo.janitor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo import UpdateOne

from diagnose_mongo import documents
from diagnose_mongo.store.processes import IS_ALIVE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from diagnose_mongo.store.link import Link

__all__ = ["TidyingStore"]

_APPLIED_IS_A_DOCUMENT = {documents.APPLIED: {"$type": "object", "$not": {"$type": "array"}}}
_ENTRIES_PER_UPDATE = 500
_SECONDS = 30.0


class TidyingStore:
    """Removes entries from specs, and counts them. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._collection = link.collection

    def remove_entries_of_dead(self) -> int:
        """Remove entries of processes that do not live; how many there were.

        Raises:
            StoreError: the server could not be asked.
        """
        keys = {"$map": {"input": {"$objectToArray": f"${documents.APPLIED}"}, "in": "$$this.k"}}
        pipeline: list[dict[str, Any]] = [
            {"$match": _APPLIED_IS_A_DOCUMENT},
            {"$project": {"keys": keys}},
            {
                "$lookup": {
                    "from": self._link.beside("processes").name,
                    "pipeline": [{"$match": IS_ALIVE}, {"$project": {documents.ID: 1}}],
                    "as": "living",
                }
            },
            {"$project": {"dead": {"$setDifference": ["$keys", f"$living.{documents.ID}"]}}},
            {"$match": {"dead": {"$ne": []}}},
        ]
        removed = 0
        with self._link.talking("removing entries of dead processes", _SECONDS):
            for each in list(self._collection.aggregate(pipeline)):
                # Another name has been put there by hand.
                dead = [name for name in each["dead"] if documents.is_process_id(name)]
                removed += len(dead)
                for start in range(0, len(dead), _ENTRIES_PER_UPDATE):
                    some = dead[start : start + _ENTRIES_PER_UPDATE]
                    paths = {documents.entry_path(process_id): "" for process_id in some}
                    self._collection.update_one(
                        {documents.ID: each[documents.ID]}, {"$unset": paths}
                    )
        return removed

    def bound_entries(self, sample: Collection[str], failures: int) -> None:
        """Leave in each spec the entries of some processes, and so many of those that failed.

        Args:
            sample: the processes.
            failures: how many of the others.

        Raises:
            StoreError: the server could not be asked.
        """
        entries = {"$objectToArray": f"${documents.APPLIED}"}
        is_sampled = {"$in": ["$$this.k", {"$literal": list(sample)}]}
        failed = {
            "$filter": {
                "input": entries,
                "cond": {
                    "$and": [
                        {"$not": [is_sampled]},
                        {"$ne": [{"$ifNull": ["$$this.v.err", None]}, None]},
                    ]
                },
            }
        }
        sampled = {"$filter": {"input": entries, "cond": is_sampled}}
        kept = {"$concatArrays": [sampled, {"$slice": [failed, failures]}]}
        too_many = {"$expr": {"$gt": [{"$size": entries}, len(sample) + failures]}}
        with self._link.talking("leaving some entries only", _SECONDS):
            self._collection.update_many(
                {"$and": [_APPLIED_IS_A_DOCUMENT, too_many]},
                [{"$set": {documents.APPLIED: {"$arrayToObject": kept}}}],
            )

    def note_counts(self, counts: Sequence[tuple[Any, object, Mapping[str, int]]]) -> None:
        """Write how many processes there are in each state into specs.

        Args:
            counts: of each the ``_id``, its ``lastmodified`` and the counts.

        Raises:
            StoreError: the server could not be asked.
        """
        if not counts:
            return
        with self._link.talking("writing counts into specs", _SECONDS):
            self._collection.bulk_write(
                [
                    UpdateOne(
                        {documents.ID: raw_id, documents.VERSION: version},
                        {"$set": {documents.COUNTS: dict(states)}},
                    )
                    for raw_id, version, states in counts
                ],
                ordered=False,
            )
