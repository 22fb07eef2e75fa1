"""Single spec documents: the one place that reads one, and the one that edits one.

An edit is one atomic update, which makes a new version and leaves a marker in the document:
``changed``, with the author of that version and the ``_id`` of its record in the history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bson import ObjectId
from bson.errors import BSONError
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from diagnose.errors import SpecError
from diagnose_mongo import documents

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from diagnose_mongo.store.link import Link

__all__ = ["SpecDocuments"]

_OUTCOMES = {documents.APPLIED: 0, documents.COUNTS: 0}
_EDITS_IN_A_MOMENT_MS = 1_000

# Two edits within the same millisecond are two versions all the same. A date further in the
# future was set by somebody's clock, and is not carried on.
_NEW_VERSION = {
    "$cond": [
        {
            "$and": [
                {"$gte": [f"${documents.VERSION}", "$$NOW"]},
                {"$lt": [f"${documents.VERSION}", {"$add": ["$$NOW", _EDITS_IN_A_MOMENT_MS]}]},
            ]
        },
        {"$add": [f"${documents.VERSION}", 1]},
        "$$NOW",
    ]
}


class SpecDocuments:
    """Reads and edits the documents of specs, one at a time. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._specs = link.collection

    # --- reading ---

    def raw_id(self, text: str) -> Any:
        """The ``_id`` of the spec that people mean by a text; None: there is none.

        Raises:
            StoreError: the server could not be asked.
        """
        queries: list[dict[str, Any]] = [{documents.ID: text}, {"id": text}]
        if ObjectId.is_valid(text):
            queries.append({documents.ID: ObjectId(text)})
        if text.removeprefix("-").isdecimal() and abs(int(text)) < 2**63:
            queries.append({documents.ID: int(text)})
        with self._link.talking("reading a spec"):
            for query in queries:
                found = self._specs.find_one(query, {documents.ID: 1})
                if found is not None:
                    return found[documents.ID]
        return None

    def found(self, spec_id: object) -> dict[str, Any]:
        """The document with this ``_id``, or with this ``id``, without ``applied``.

        One that can't be decoded has its ``_id`` only.

        Raises:
            SpecError: there is none (code ``spec-not-found``).
            StoreError: the server could not be asked.
        """
        with self._link.talking("reading a spec"):
            for query in ({documents.ID: spec_id}, {"id": spec_id}):
                try:
                    found = self._specs.find_one(query, {documents.APPLIED: 0})
                except BSONError:
                    found = self._specs.find_one(query, {documents.ID: 1})
                if found is not None:
                    return found
        raise SpecError(
            f"there is no spec {spec_id!r} in {self._specs.full_name!r}; `diagnose ls` lists "
            "those that are there",
            code="spec-not-found",
        )

    def read(self, raw_id: Any, *, with_outcomes: bool = False) -> dict[str, Any] | None:
        """The spec with this ``_id``; None: there is none.

        Args:
            raw_id: its ``_id``.
            with_outcomes: with what processes have written into it, which may be much.

        Raises:
            StoreError: the server could not be asked.
        """
        with self._link.talking("reading a spec"):
            return self._specs.find_one(
                {documents.ID: {"$eq": raw_id}}, None if with_outcomes else _OUTCOMES
            )

    # --- editing ---

    def add(self, document: Mapping[str, Any], by: str, via: str) -> dict[str, Any] | None:
        """Put in a spec; it as it is then, or None if there is one with this ``_id``.

        Raises:
            StoreError: it could not be written.
        """
        update: list[dict[str, Any]] = [
            {"$replaceWith": {"$literal": dict(document)}},
            *_mark(by, via),
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
            by: its author.
            via: the means, see :data:`diagnose_mongo.changes.Via`.

        Raises:
            StoreError: it could not be written.
        """
        update: list[dict[str, Any]] = [{"$unset": sorted(gone)}] if gone else []
        if fields:
            update.append({"$set": {name: {"$literal": value} for name, value in fields.items()}})
        update += _mark(by, via)
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

    def set_stage(
        self,
        raw_id: Any,
        version: object,
        *,
        name: str,
        reason: str,
        began: datetime,
        percent: float | None,
        by: str,
    ) -> bool:
        """Move a canary on, which makes a new version; whether that of ``version`` was there still.

        Raises:
            StoreError: the server could not be asked.
        """
        stage: dict[str, Any] = {
            "name": name,
            "reason": {"$literal": reason},
            "began": began,
            "version": f"${documents.VERSION}",
        }
        if percent is not None:
            stage["percent"] = percent
        # Anew: fields of the stage before must not stay.
        update: list[dict[str, Any]] = [
            *_mark(by, "canary"),
            {"$unset": "stage"},
            {"$set": {"stage": stage}},
        ]
        with self._link.talking("moving a canary on"):
            result = self._specs.update_one(
                {documents.ID: raw_id, documents.VERSION: version}, update
            )
        return bool(result.modified_count)


def _mark(by: str, via: str) -> list[dict[str, Any]]:
    """The stages of an update that make a new version, and name its author."""
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
