"""The trail of changes: specs are written so that who did it can be told, and it is kept.

A change of a spec is one atomic update, which also leaves a small marker in it: ``changed``,
with the ``_id`` of the entry in the collection ``history`` that is written next. So whoever
finds a marker without its entry can make up for it. Before a spec is removed the entry is
written; if nothing came of it, the entry says so in ``failed``. Nothing else in an entry is ever
changed, and none is removed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from bson import ObjectId, encode
from bson.errors import BSONError
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, WriteError

from diagnose_mongo import documents
from diagnose_mongo.store.link import is_refused

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from diagnose.errors import StoreError
    from diagnose_mongo.store.link import Link

__all__ = ["HistoryStore", "content_of", "is_about_content", "mark", "new_entry_id"]

_OUTCOMES = {documents.APPLIED: 0, documents.COUNTS: 0}
_LARGEST_BYTES = 1_000_000
_DEEPEST = 60
_CHANGES_IN_A_MOMENT_MS = 1_000
# What one process does within a millisecond has ids in the order in which it was done.
_LATEST_FIRST = [("at", -1), (documents.ID, -1)]

# Two changes within the same millisecond are two versions all the same. A date further in the
# future was set by somebody's clock, and is not carried on.
_NEW_VERSION = {
    "$cond": [
        {
            "$and": [
                {"$gte": [f"${documents.VERSION}", "$$NOW"]},
                {"$lt": [f"${documents.VERSION}", {"$add": ["$$NOW", _CHANGES_IN_A_MOMENT_MS]}]},
            ]
        },
        {"$add": [f"${documents.VERSION}", 1]},
        "$$NOW",
    ]
}


class HistoryStore:
    """Writes specs and their history. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._specs = link.collection
        self._history = link.beside("history")

    # --- specs ---

    def add(self, document: Mapping[str, Any], by: str, via: str) -> dict[str, Any] | None:
        """Put in a spec; it as it is then, or None if there is one with this ``_id``.

        Raises:
            StoreError: it could not be written.
        """
        update: list[dict[str, Any]] = [
            {"$replaceWith": {"$literal": dict(document)}},
            *mark(by, via),
        ]
        with self._link.talking(f"adding the spec {document[documents.ID]!r}"):
            try:
                # An insert can't ask for the server's time; an update that finds nothing can.
                return self._specs.find_one_and_update(
                    {documents.ID: {"$eq": document[documents.ID]}, "$nor": [{}]},
                    update,
                    upsert=True,
                    return_document=ReturnDocument.AFTER,
                )
            except DuplicateKeyError:
                return None

    def change(
        self,
        raw_id: Any,
        version: object,
        fields: Mapping[str, Any],
        gone: Collection[str],
        *,
        by: str,
        via: str,
    ) -> dict[str, Any] | None:
        """Change a spec; it as it is then, or None if ``version`` is not there any more.

        Args:
            raw_id: its ``_id``.
            version: its ``lastmodified``.
            fields: whole fields of the document, by name.
            gone: names of fields that are to be taken out.
            by: who does it.
            via: what with.

        Raises:
            StoreError: it could not be written.
        """
        update: list[dict[str, Any]] = [{"$unset": sorted(gone)}] if gone else []
        if fields:
            update.append({"$set": {name: {"$literal": value} for name, value in fields.items()}})
        update += mark(by, via)
        with self._link.talking(f"changing the spec {raw_id!r}"):
            return self._specs.find_one_and_update(
                self._this(raw_id, version),
                update,
                projection=_OUTCOMES,
                return_document=ReturnDocument.AFTER,
            )

    def remove(self, raw_id: Any, version: object) -> bool:
        """Remove a version of a spec; whether it was there.

        Raises:
            StoreError: the server could not be asked.
        """
        with self._link.talking(f"removing the spec {raw_id!r}"):
            return bool(self._specs.delete_one(self._this(raw_id, version)).deleted_count)

    @staticmethod
    def _this(raw_id: Any, version: object) -> dict[str, Any]:
        # Asked for null, a query finds a field that is not there too: as it should be here.
        return {documents.ID: {"$eq": raw_id}, documents.VERSION: {"$eq": version}}

    def spec(self, raw_id: Any) -> dict[str, Any] | None:
        """The spec with this ``_id``, without what processes have written into it.

        Raises:
            StoreError: the server could not be asked.
        """
        with self._link.talking("reading a spec"):
            return self._specs.find_one({documents.ID: {"$eq": raw_id}}, _OUTCOMES)

    # --- entries ---

    def note(self, entry: Mapping[str, Any]) -> bool:
        """Write an entry, if there is none with its ``_id``; whether it was written now.

        Args:
            entry: without ``at`` the server's time is taken. Of what is very large, ``after``
                and ``difference`` are left out.

        Raises:
            StoreError: it could not be written.
        """
        kept = dict(entry)
        if not _is_modest(kept):
            kept |= {"after": None, "difference": [], "is_large": True}
        made = {"$mergeObjects": [{"at": "$$NOW"}, {"$literal": kept}]}
        is_there = {"$ne": [{"$type": "$at"}, "missing"]}
        with self._link.talking("writing the history"):
            result = self._history.update_one(
                {documents.ID: {"$eq": entry[documents.ID]}},
                [{"$replaceWith": {"$cond": [is_there, "$$ROOT", made]}}],
                upsert=True,
            )
        return result.upserted_id is not None

    def note_failure(self, entry_id: Any, reason: str) -> None:
        """Say of a removal that nothing came of it.

        Raises:
            StoreError: it could not be written.
        """
        with self._link.talking("writing the history"):
            self._history.update_one(
                {documents.ID: {"$eq": entry_id}}, {"$set": {"failed": documents.text(reason)}}
            )

    def find(self, entry_id: Any) -> dict[str, Any] | None:
        """The entry with this ``_id``.

        Raises:
            StoreError: the server could not be asked.
        """
        with self._link.talking("reading the history"):
            return self._history.find_one({documents.ID: {"$eq": entry_id}})

    def last(self, raw_id: Any) -> dict[str, Any] | None:
        """The last entry about a spec.

        Raises:
            StoreError: the server could not be asked.
        """
        query = {"spec": {"$eq": raw_id}, "failed": {"$exists": False}}
        with self._link.talking("reading the history"):
            return next(self._history.find(query).sort(_LATEST_FIRST).limit(1), None)

    def last_of_all(self) -> list[dict[str, Any]]:
        """Of the last entry about each spec: ``spec``, ``action``, ``content``.

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
        """Entries, the newest first.

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


def mark(by: str, via: str) -> list[dict[str, Any]]:
    """The stages of an update that make a new version, and say who did it."""
    marker = {
        "id": ObjectId(),
        "by": {"$literal": documents.text(by)},
        "via": {"$literal": via},
        "version": f"${documents.VERSION}",
    }
    return [
        {"$set": {documents.VERSION: _NEW_VERSION}},
        # Anew: what somebody else put there must not stay.
        {"$unset": documents.CHANGED},
        {"$set": {documents.CHANGED: marker}},
    ]


def content_of(document: Mapping[str, Any]) -> str:
    """A short text that is equal for equal content, whoever wrote it."""
    own = {name: value for name, value in document.items() if name not in documents.WRITTEN}
    return hashlib.blake2b(encode(own), digest_size=12).hexdigest()


def is_about_content(error: StoreError) -> bool:
    """Whether it was one document that could not be read or written, and not the server."""
    return isinstance(error.__cause__, (BSONError, WriteError)) and not is_refused(error)


def new_entry_id() -> ObjectId:
    """The ``_id`` of an entry."""
    return ObjectId()


def _is_modest(entry: Mapping[str, Any]) -> bool:
    return _depth(entry) <= _DEEPEST and len(encode(entry)) <= _LARGEST_BYTES


def _depth(value: Any, so_far: int = 0) -> int:
    if so_far > _DEEPEST or not isinstance(value, (dict, list)):
        return so_far
    items = value.values() if isinstance(value, dict) else value
    return max((_depth(item, so_far + 1) for item in items), default=so_far + 1)
