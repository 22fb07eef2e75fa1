"""The collection of specs: what a process reads from it, and the entries that it writes.

A document that can't be decoded, or can't take an entry, is that document's problem alone: the
others are read and written all the same.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bson import decode
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, OperationFailure
from pymongo.write_concern import WriteConcern

from diagnose.errors import StoreError
from diagnose_mongo import documents
from diagnose_mongo.store.control import IDS, Control
from diagnose_mongo.store.link import ANYTHING, is_refused, short

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence

    from diagnose_mongo.store.link import Link

__all__ = ["SpecStore", "Undecodable"]

log = logging.getLogger(__name__)

_BAD_VALUE = 2  # what the server says to a hint that names no index
_PATH_NOT_VIABLE = 28
# Refusals that are about one document, until it is another: its depth, a validator, its size.
_LASTING = frozenset({15, _PATH_NOT_VIABLE, 121, 10334, 17419, 17420})
_UNREADABLE = (BSONError, ValueError, TypeError, OverflowError)
# Asked of an array, $type is about what is in it; but "array" is about itself.
_APPLIED_IS_NO_DOCUMENT = {
    "$or": [
        {documents.APPLIED: {"$not": {"$type": "object"}}},
        {documents.APPLIED: {"$type": "array"}},
    ]
}
_CONTROL = "control of the fleet"  # no field of that name is asked for in specs
_IDS_PER_FETCH = 1_000

_RAW: CodecOptions[RawBSONDocument] = CodecOptions(
    document_class=RawBSONDocument,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="replace",
)


@dataclass(frozen=True, slots=True)
class Undecodable:
    """What stands in for a document whose bytes the driver can't read.

    Attributes:
        reason: the driver's words.
    """

    reason: str


def _can_be_projected(field: str) -> bool:
    return bool(field) and "." not in field and not field.startswith("$")


class Refusal(NamedTuple):
    """Why a document did not take an entry.

    Attributes:
        raw_id: its ``_id``.
        reason: the server's words.
        is_lasting: it is about this document; else another time it may be taken.
    """

    raw_id: Any
    reason: str
    is_lasting: bool


class SpecStore:
    """Reads specs, and writes one process's entries into them. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._collection = link.collection
        # For good, whatever the application is content with: no failover takes an entry back.
        self._entries = self._collection.with_options(write_concern=WriteConcern("majority"))
        self._missed: set[Hashable] = set()
        self._left_out: set[Hashable] = set()
        self._use_index = True
        self._is_index_missed = False
        self._looked: tuple[list[dict[str, Any]], list[tuple[Any, object]], Control] | None = None
        self._with_control = {
            "$unionWith": {
                "coll": documents.beside(link.collection.name, "control"),
                "pipeline": [
                    {"$match": {documents.ID: {"$in": list(IDS)}}},
                    {"$project": {_CONTROL: "$$ROOT"}},
                ],
            }
        }

    def versions(self) -> list[tuple[Any, object]]:
        """For every spec its ``_id`` and ``lastmodified``, from the index alone if there is one.

        Those whose ``_id`` is of no use are left out, which the log says once.

        Raises:
            StoreError: the server could not be asked.
        """
        return self._pairs(self._look([]))

    def look(self) -> tuple[list[tuple[Any, object]], Control]:
        """The same and what holds for the whole fleet, in one query: all that a poll asks.

        Raises:
            StoreError: the server could not be asked.
        """
        found = self._look([self._with_control])
        # Nearly always it is what it was.
        if self._looked is None or self._looked[0] != found:
            control = [each[_CONTROL] for each in found if _CONTROL in each]
            versions = self._pairs([each for each in found if _CONTROL not in each])
            self._looked = found, versions, Control.of(control)
        return self._looked[1:]

    def _look(self, more: list[dict[str, Any]]) -> list[dict[str, Any]]:
        pipeline = [{"$project": {documents.ID: 1, documents.VERSION: 1}}, *more]
        what = "looking for changed specs"
        # Each call has its own time: a server that is slow is no server that is away.
        if self._use_index:
            with self._link.talking(what):
                try:
                    return self._rows(pipeline, {"hint": documents.POLL_INDEX})
                except OperationFailure as exc:
                    if exc.code != _BAD_VALUE:
                        raise
            self._use_index = self._make_index()
        with self._link.talking(what):
            return self._rows(pipeline, {})

    def _rows(
        self, pipeline: list[dict[str, Any]], options: dict[str, Any]
    ) -> list[dict[str, Any]]:
        try:
            return list(self._collection.aggregate(pipeline, **options))
        except _UNREADABLE:
            # One of them can't be decoded; so each is by itself.
            return self._readable(pipeline, options)

    def _pairs(self, found: list[dict[str, Any]]) -> list[tuple[Any, object]]:
        for each in found:
            if not documents.is_shallow(each[documents.ID]):
                self._leave_out(each[documents.ID], "its _id has too many levels")
        return [
            (each[documents.ID], each.get(documents.VERSION))
            for each in found
            if documents.is_shallow(each[documents.ID])
        ]

    def look_for_index(self) -> None:
        """Use the index of polls again, which somebody may have made meanwhile."""
        self._use_index = True

    def _make_index(self) -> bool:
        """Make the index that polls use; whether it is there. Without the right, polls do without."""
        try:
            with self._link.talking("making an index"):
                self._collection.create_index(
                    [(documents.ID, 1), (documents.VERSION, 1)], name=documents.POLL_INDEX
                )
        except StoreError as exc:
            if not isinstance(exc.__cause__, OperationFailure):
                raise
            if not self._is_index_missed:
                self._is_index_missed = True
                advice = "run `diagnose install` once" if is_refused(exc) else exc
                log.warning(
                    "polls read whole documents, because the index %r can't be made here: %s",
                    documents.POLL_INDEX,
                    advice,
                )
            return False
        return True

    def _readable(
        self, pipeline: list[dict[str, Any]], options: dict[str, Any]
    ) -> list[dict[str, Any]]:
        raw = self._collection.with_options(codec_options=_RAW)

        def decoded(pipeline: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
            found, reason = [], None
            for each in raw.aggregate(pipeline, **options):
                try:
                    found.append(decode(each.raw, ANYTHING))
                except _UNREADABLE as exc:
                    reason = short(exc)
            return found, reason

        found, _ = decoded(pipeline)
        known = {documents.key_of(each[documents.ID]) for each in found if _CONTROL not in each}
        with_id, reason = decoded([{"$project": {documents.ID: 1}}])
        if reason is not None:
            self._leave_out("?", f"its _id can't be decoded: {reason}")
        return found + [
            {**each, documents.VERSION: "can't be decoded"}
            for each in with_id
            if documents.key_of(each[documents.ID]) not in known
        ]

    def _leave_out(self, raw_id: Any, reason: str) -> None:
        key = documents.key_of(raw_id)
        if key not in self._left_out:
            self._left_out.add(key)
            shown = documents.small(raw_id)
            log.warning("the spec %r is left out, for %s; give it another", shown, reason)

    def fetch(
        self, raw_ids: Sequence[Any], fields: Collection[str] | None = None
    ) -> list[tuple[Any, dict[str, Any] | Undecodable]]:
        """The specs with these ids, without ``applied``; those that are gone are left out.

        Args:
            raw_ids: their ``_id``.
            fields: only these; that is much cheaper for the server where ``applied`` is large.
        """
        wanted: dict[str, int] = {documents.APPLIED: 0, documents.COUNTS: 0}
        if fields is not None and all(map(_can_be_projected, fields)):
            wanted = {documents.ID: 1, **dict.fromkeys(fields, 1)}
        read: list[tuple[Any, dict[str, Any] | Undecodable]] = []
        for start in range(0, len(raw_ids), _IDS_PER_FETCH):
            with self._link.talking("reading changed specs"):
                some = list(raw_ids[start : start + _IDS_PER_FETCH])
                read += self._fetch_some(some, wanted)
        known = {documents.key_of(raw_id) for raw_id, _ in read}
        missing = {key: each for each in raw_ids if (key := documents.key_of(each)) not in known}
        for key in missing.keys() & self._missed:
            # It is listed each time, and can't be found: to ask for it, it would have to be
            # encoded as it was. Invalid UTF-8 and a field that is there twice get lost.
            self._leave_out(missing[key], "its _id can't be encoded as it is")
        self._missed = set(missing)
        return read

    def _fetch_some(
        self, raw_ids: list[Any], fields: Mapping[str, int]
    ) -> list[tuple[Any, dict[str, Any] | Undecodable]]:
        wanted = {documents.ID: {"$in": raw_ids}}
        read: list[tuple[Any, dict[str, Any] | Undecodable]] = []
        reason = None
        raw = self._collection.with_options(codec_options=_RAW)
        for each in raw.find(wanted, fields):
            try:
                document = decode(each.raw, ANYTHING)
            except _UNREADABLE as exc:
                reason = short(exc)
            else:
                read.append((document[documents.ID], document))
        if reason is not None:
            # Some have no readable id of their own: those that were asked for and are not
            # among the others, unless they were deleted meanwhile.
            known = {documents.key_of(raw_id) for raw_id, _ in read}
            missing = [raw_id for raw_id in raw_ids if documents.key_of(raw_id) not in known]
            there = self._collection.find({documents.ID: {"$in": missing}}, {documents.ID: 1})
            read.extend((each[documents.ID], Undecodable(reason)) for each in there)
        return read

    def entries(self, process_id: str) -> dict[Any, Any]:
        """By key, the entries that the collection has for this process. Reads every document."""
        path = documents.entry_path(process_id)
        with self._link.talking("reading this process's entries"):
            found = self._collection.find({path: {"$exists": True}}, {path: 1})
            return {
                documents.key_of(each[documents.ID]): each[documents.APPLIED][process_id]
                for each in found
                if isinstance(each[documents.APPLIED], dict)
            }

    def write(
        self,
        process_id: str,
        entries: Sequence[tuple[Any, Mapping[str, Any]]],
        *,
        erased: Sequence[Any] = (),
        room: int | None = None,
        timeout: float | None = None,
    ) -> list[Refusal]:
        """Write and erase this process's entries, each in a document of its own.

        Args:
            process_id: whose.
            entries: pairs of a spec's ``_id`` and the entry.
            erased: the ``_id`` of each spec whose entry is to go.
            room: write an entry only where there are fewer than so many of others; None: always.
            timeout: seconds, if not the usual.

        Returns:
            The documents that refused (too large, a validator). One that is gone does not.
        """
        path = documents.entry_path(process_id)
        has_room: dict[str, Any] = {}
        if room is not None:
            entries_there = {"$objectToArray": {"$ifNull": [f"${documents.APPLIED}", {}]}}
            is_small = {"$expr": {"$lt": [{"$size": entries_there}, room]}}
            has_room = {"$or": [{path: {"$exists": True}}, is_small]}
        updates: list[tuple[Any, Any]] = [
            ({documents.ID: raw_id, **has_room}, {"$set": {path: entry}})
            for raw_id, entry in entries
        ]
        updates += [({documents.ID: raw_id}, {"$unset": {path: ""}}) for raw_id in erased]
        if not updates:
            return []
        with self._link.talking("writing this process's entries", timeout):
            refusals = self._update(updates)
            blocked = [i for i, (code, _) in refusals.items() if code == _PATH_NOT_VIABLE]
            if blocked:
                # `applied` is there and is no document (null, say). Another process may be
                # about to make it one just now: so this is done in two steps.
                repair: dict[str, Any] = {"$set": {documents.APPLIED: {}}}
                self._update(
                    [({**updates[i][0], **_APPLIED_IS_NO_DOCUMENT}, repair) for i in blocked]
                )
                again = self._update([updates[i] for i in blocked])
                for i in blocked:
                    del refusals[i]
                refusals |= {blocked[i]: refusal for i, refusal in again.items()}
        return [
            Refusal(updates[i][0][documents.ID], reason, code in _LASTING)
            for i, (code, reason) in refusals.items()
        ]

    def _update(self, updates: Sequence[tuple[Any, Any]]) -> dict[int, tuple[int | None, str]]:
        """Update one document each; by index, code and text of those that were refused."""
        if not updates:
            return {}
        try:
            self._entries.bulk_write(
                [UpdateOne(query, update) for query, update in updates], ordered=False
            )
        except BulkWriteError as exc:
            errors = exc.details.get("writeErrors", [])
            if not errors:
                raise  # the writes were done, but not acknowledged as they should be
            return {each["index"]: (each.get("code"), short(each["errmsg"])) for each in errors}
        return {}
