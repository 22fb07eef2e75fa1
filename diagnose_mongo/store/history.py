"""The collection of the history: a record of each edit of a spec.

The record of an edit is written right after it, with the ``_id`` that the marker in the spec
names (see :mod:`diagnose_mongo.store.editing`), so a marker without its record can be made up for.
The record of a removal is written before it; if nothing came of that, the record says so in
``failed``. Nothing else in a record is ever changed, and none is removed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from bson import ObjectId, encode
from bson.errors import BSONError
from pymongo.errors import WriteError

from diagnose_mongo import documents
from diagnose_mongo.store.link import is_refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diagnose.errors import StoreError
    from diagnose_mongo.store.link import Link

__all__ = ["HistoryStore", "digest_of", "is_about_content", "new_record_id"]

_LARGEST_BYTES = 1_000_000
_DEEPEST = 60
# What one process does within a millisecond has ids in the order in which it was done.
_LATEST_FIRST = [("at", -1), (documents.ID, -1)]


class HistoryStore:
    """Writes and reads records. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._history = link.beside("history")

    def note(self, record: Mapping[str, Any]) -> bool:
        """Write a record, if there is none with its ``_id``; whether it was written now.

        Args:
            record: without ``at`` the server's time is taken. Of what is very large, ``after``
                and ``difference`` are left out.

        Raises:
            StoreError: it could not be written.
        """
        kept = dict(record)
        if not _is_modest(kept):
            kept |= {"after": None, "difference": [], "is_large": True}
        made = {"$mergeObjects": [{"at": "$$NOW"}, {"$literal": kept}]}
        is_there = {"$ne": [{"$type": "$at"}, "missing"]}
        with self._link.talking("writing the history"):
            result = self._history.update_one(
                {documents.ID: {"$eq": record[documents.ID]}},
                [{"$replaceWith": {"$cond": [is_there, "$$ROOT", made]}}],
                upsert=True,
            )
        return result.upserted_id is not None

    def note_failure(self, record_id: Any, reason: str) -> None:
        """Say of a removal that nothing came of it.

        Raises:
            StoreError: it could not be written.
        """
        with self._link.talking("writing the history"):
            self._history.update_one(
                {documents.ID: {"$eq": record_id}}, {"$set": {"failed": documents.text(reason)}}
            )

    def find(self, record_id: Any) -> dict[str, Any] | None:
        """The record with this ``_id``.

        Raises:
            StoreError: the server could not be asked.
        """
        with self._link.talking("reading the history"):
            return self._history.find_one({documents.ID: {"$eq": record_id}})

    def last(self, raw_id: Any) -> dict[str, Any] | None:
        """The last record about a spec.

        Raises:
            StoreError: the server could not be asked.
        """
        query = {"spec": {"$eq": raw_id}, "failed": {"$exists": False}}
        with self._link.talking("reading the history"):
            return next(self._history.find(query).sort(_LATEST_FIRST).limit(1), None)

    def last_of_all(self) -> list[dict[str, Any]]:
        """Of the last record about each spec: ``spec``, ``action``, ``content``.

        Raises:
            StoreError: the server could not be asked.
        """
        pipeline: list[dict[str, Any]] = [
            {"$match": {"failed": {"$exists": False}}},
            {"$sort": {"spec": 1, "at": -1, documents.ID: -1}},
            {
                "$group": {
                    "_id": "$spec",
                    "action": {"$first": "$action"},
                    "content": {"$first": "$content"},
                }
            },
            {"$project": {"_id": 0, "spec": "$_id", "action": 1, "content": 1}},
        ]
        with self._link.talking("reading the history"):
            return list(self._history.aggregate(pipeline))

    def read(self, spec_id: object, limit: int) -> list[dict[str, Any]]:
        """Records, the newest first.

        Args:
            spec_id: the ``_id`` or ``id`` of a spec; None: of all.
            limit: so many at most.

        Raises:
            StoreError: the server could not be asked.
        """
        query: dict[str, Any] = {}
        if spec_id is not None:
            query = {"$or": [{"spec": {"$eq": spec_id}}, {"name": {"$eq": spec_id}}]}
        with self._link.talking("reading the history"):
            return list(self._history.find(query, {"after": 0}).sort(_LATEST_FIRST).limit(limit))


def digest_of(document: Mapping[str, Any]) -> str:
    """A short text that is equal for equal content of specs."""
    own = {name: value for name, value in document.items() if name not in documents.WRITTEN}
    return hashlib.blake2b(encode(own), digest_size=12).hexdigest()


def is_about_content(error: StoreError) -> bool:
    """Whether it was one document that could not be read or written, and not the server."""
    return isinstance(error.__cause__, (BSONError, WriteError)) and not is_refused(error)


def new_record_id() -> ObjectId:
    """The ``_id`` of a record."""
    return ObjectId()


def _is_modest(record: Mapping[str, Any]) -> bool:
    return _depth(record) <= _DEEPEST and len(encode(record)) <= _LARGEST_BYTES


def _depth(value: Any, so_far: int = 0) -> int:
    if so_far > _DEEPEST or not isinstance(value, (dict, list)):
        return so_far
    items = value.values() if isinstance(value, dict) else value
    return max((_depth(item, so_far + 1) for item in items), default=so_far + 1)
