"""Fleet hits: how many hits a whole fleet may make, a number from which processes take blocks.

There is a document for each version of each spec: how many hits are ``left``, and in ``held``
how many each process has. What was taken and is not given back counts as used, so that there are never
more hits than were allowed, whichever process dies when.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from diagnose_mongo import documents

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from diagnose_mongo.store.link import Link

__all__ = ["FleetHitsStore", "Taken", "fleet_hits_id"]

_KEPT_MS = 3_600_000


class Taken(NamedTuple):
    """What came of asking for hits.

    Attributes:
        hits: how many may be made, in addition.
        is_over: there are none left, and nobody else can give any back.
    """

    hits: int
    is_over: bool


class FleetHitsStore:
    """Takes fleet hits, and gives them back. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._collection = link.beside("budgets")

    def take(
        self,
        hits_id: Mapping[str, object],
        size: int,
        process_id: str,
        *,
        unused: int,
        wanted: int,
        is_first: bool,
    ) -> Taken:
        """Take a block of hits.

        Args:
            hits_id: of which version of which spec, see :func:`fleet_hits_id`.
            size: how many the whole fleet may make.
            process_id: of the process that takes them.
            unused: of those taken before, how many were not used yet.
            wanted: how many more there should be.
            is_first: True if this process never took any of these, so a missing document may be
                made. A process that took some, and does not find the document, gets no more:
                nobody knows how many are left.

        Raises:
            StoreError: the server could not be asked. Hits that it handed out without this
                process hearing of it are lost.
        """
        mine = f"held.{process_id}"
        # Whatever somebody put there: what is no number of hits is none.
        is_some = {"$and": [{"$isNumber": "$left"}, {"$gt": ["$left", 0]}]}
        left = {"$cond": [is_some, {"$min": ["$left", size]}, 0]}
        held = {"$cond": [{"$eq": [{"$type": "$held"}, "object"]}, "$held", {}]}
        update: list[dict[str, Any]] = [
            {"$set": {"left": {"$toLong": left}, "held": held}},
            {"$set": {"took": {"$min": ["$left", wanted]}}},
            {
                "$set": {
                    "left": {"$subtract": ["$left", "$took"]},
                    mine: {"$add": [unused, "$took"]},
                }
            },
            {
                "$set": {
                    "held": {
                        "$arrayToObject": {
                            "$filter": {
                                "input": {"$objectToArray": "$held"},
                                "cond": {"$gt": ["$$this.v", 0]},
                            }
                        }
                    }
                }
            },
        ]
        with self._link.talking("taking fleet hits"):
            found = self._find_and_update(hits_id, update)
            if found is None and is_first:
                self._make(hits_id, size)
                found = self._find_and_update(hits_id, update)
        if found is None:
            return Taken(0, is_over=True)
        return Taken(int(found["took"]), is_over=found["left"] <= 0 and not found["held"])

    def _find_and_update(
        self, hits_id: Mapping[str, object], update: list[dict[str, Any]]
    ) -> dict[str, Any] | None:
        return self._collection.find_one_and_update(
            {documents.ID: hits_id}, update, return_document=ReturnDocument.AFTER
        )

    def _make(self, hits_id: Mapping[str, object], size: int) -> None:
        # Another process may make it just now.
        with contextlib.suppress(DuplicateKeyError):
            self._collection.update_one(
                {documents.ID: hits_id},
                {
                    "$setOnInsert": {"left": size, "of": size, "held": {}},
                    "$currentDate": {"at": True},
                },
                upsert=True,
            )

    def give_back(
        self, hits_id: Mapping[str, object], process_id: str, unused: int, timeout: float
    ) -> None:
        """Give hits back that were taken and not used; the process takes no more.

        Raises:
            StoreError: it could not be written in ``timeout`` seconds; then they are lost.
        """
        with self._link.talking("giving fleet hits back", timeout):
            # Once only: a second time there is nothing under this name.
            self._collection.update_one(
                {documents.ID: hits_id, f"held.{process_id}": {"$exists": True}},
                {"$inc": {"left": unused}, "$unset": {f"held.{process_id}": ""}},
            )

    def tidy(self, versions: Sequence[tuple[Any, object]], living: AbstractSet[str]) -> None:
        """Remove those of specs' former versions, and what dead processes held.

        Args:
            versions: of each spec the ``_id`` and ``lastmodified``, just read.
            living: ids of the processes that live.

        Raises:
            StoreError: it could not be written.
        """
        current = {documents.key_of(fleet_hits_id(*each)) for each in versions}
        # A document may be younger than what was read of the specs; an old one is not.
        is_old = {"$gt": [{"$subtract": ["$$NOW", _KEPT_MS]}, "$at"]}
        with self._link.talking("tidying fleet hits"):
            found = self._collection.aggregate([{"$project": {"held": 1, "is_old": is_old}}])
            for each in list(found):
                this, held = {documents.ID: {"$eq": each[documents.ID]}}, each.get("held")
                if each["is_old"] and documents.key_of(each[documents.ID]) not in current:
                    self._collection.delete_one(this)
                elif isinstance(held, dict) and (dead := held.keys() - living):
                    paths = {f"held.{name}": "" for name in dead if documents.is_process_id(name)}
                    if paths:
                        self._collection.update_one(this, {"$unset": paths})


def fleet_hits_id(raw_id: object, lastmodified: object) -> dict[str, object]:
    """The ``_id`` of the document with the fleet hits of one version of a spec."""
    return {"spec": raw_id, "version": lastmodified}
