"""The collection of processes: which ones live, where, and what their probes cost.

Each process has a small document, which it renews now and then. What is not renewed in time
counts as dead from the moment in ``expires`` on, by the server's clock; a TTL index removes it
some time later.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from pymongo import ReturnDocument

from diagnose_mongo import documents

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diagnose_mongo.store.link import Link

__all__ = ["IS_ALIVE", "Beat", "ProcessStore"]

# `$ifNull` keeps it from the index on `expires`: heartbeats move documents ahead in that, and a
# query that goes along it meets some of them twice. Nearly all documents are of processes that live.
IS_ALIVE = {"$expr": {"$gt": [{"$ifNull": ["$expires", None]}, "$$NOW"]}}
"""What a query asks of a process's document, for those that live."""


class Beat(NamedTuple):
    """What the server answers to a sign of life.

    Attributes:
        before: the run that gave the last one, if that was good until now; None: under this id
            nobody lived.
        expires: until when this one is good; by the server's clock, naive.
    """

    before: str | None
    expires: datetime | None


class ProcessStore:
    """Writes one process's document, and reads those of all. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        # A sign of life that a failover takes back is followed by the next one.
        self._collection = link.beside("processes", is_for_good=False)

    def beat(self, process_id: str, content: Mapping[str, Any], ttl: float, run: str = "") -> Beat:
        """Say that a process lives.

        Args:
            process_id: its id.
            content: the rest of its document.
            ttl: seconds that this is good for.
            run: tells apart processes that use the same id.

        Raises:
            StoreError: it could not be written.
        """
        moments = {
            "at": "$$NOW",
            "expires": {"$add": ["$$NOW", int(ttl * 1000)]},
            "since": {"$ifNull": ["$since", "$$NOW"]},
            "run": {"$literal": run},
            "before": {"$cond": [{"$gt": ["$expires", "$$NOW"]}, "$run", None]},
        }
        # Literally: names of specs may begin with a dollar.
        literal = {name: {"$literal": value} for name, value in content.items()}
        with self._link.talking("saying that this process lives"):
            found: dict[str, Any] | None = self._collection.find_one_and_update(
                {documents.ID: process_id},
                [{"$set": {**literal, **moments}}],
                {"before": 1, "expires": 1},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        before, expires = (found or {}).get("before"), (found or {}).get("expires")
        return Beat(
            before if isinstance(before, str) else None,
            expires.replace(tzinfo=None) if isinstance(expires, datetime) else None,
        )

    def leave(self, process_id: str, timeout: float) -> None:
        """Remove a process's document: it ends.

        Raises:
            StoreError: it could not be removed in ``timeout`` seconds.
        """
        with self._link.talking("removing this process", timeout):
            self._collection.delete_one({documents.ID: process_id})

    def remove_dead(self) -> None:
        """Remove the documents of those that do not live, where no TTL index does it.

        Raises:
            StoreError: they could not be removed.
        """
        with self._link.talking("removing dead processes"):
            self._collection.delete_many({"$nor": [IS_ALIVE]})

    def living(self) -> set[str]:
        """The ids of all that live.

        Raises:
            StoreError: the server could not be asked.
        """
        with self._link.talking("reading which processes live"):
            found = [
                each[documents.ID] for each in self._collection.find(IS_ALIVE, {documents.ID: 1})
            ]
        return {process_id for process_id in found if isinstance(process_id, str)}

    def count(self) -> int:
        """How many live.

        Raises:
            StoreError: the server could not be asked.
        """
        with self._link.talking("counting the processes that live"):
            return self._collection.count_documents(IS_ALIVE)

    def all(self) -> list[dict[str, Any]]:
        """The documents of all that live, in the order of their ids; with ``age`` in seconds.

        Raises:
            StoreError: the server could not be asked.
        """
        age = {"$divide": [{"$subtract": ["$$NOW", "$at"]}, 1000]}
        with self._link.talking("reading which processes live"):
            return list(
                self._collection.aggregate(
                    [{"$match": IS_ALIVE}, {"$sort": {documents.ID: 1}}, {"$set": {"age": age}}]
                )
            )
