"""The collection of specs in MongoDB: the only module that knows the driver.

Every failure of the driver comes out as a :class:`~diagnose.errors.StoreError`. A document
that can't be decoded, or can't take an entry, is that document's problem alone: the others
are read and written all the same.

Two kinds of collection work: pymongo's, and mongomock's for tests of a single thread, which
has no bulk writes, no raw documents and no server clock; see :attr:`SpecStore.is_real`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import pymongo
from bson import decode
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient, UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from diagnose.errors import StoreError
from diagnose_mongo import documents

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["SpecCollection", "SpecStore", "Undecodable", "connect", "initiate_replica_set"]

log = logging.getLogger(__name__)

SpecCollection: TypeAlias = Collection[dict[str, Any]]

_BAD_VALUE = 2  # what the server says to a hint that names no index
_ALREADY_INITIALIZED = 23
_PATH_NOT_VIABLE = 28
_PRIMARY_CHECK_SECONDS = 0.02
# Asked of an array, $type is about what is in it; but "array" is about itself.
_APPLIED_IS_NO_DOCUMENT = {
    "$or": [
        {documents.APPLIED: {"$not": {"$type": "object"}}},
        {documents.APPLIED: {"$type": "array"}},
    ]
}
_IDS_PER_FETCH = 1_000
_CALL_SECONDS = 5.0
_CLOSE_SECONDS = 0.5
_LONGEST_REASON = 300

# Decodes whatever a server can hold: dates beyond Python's years, text that is no UTF-8, UUIDs
# of any age. Dates come naive, in UTC, whatever the application's client is set to.
_ANYTHING: CodecOptions[dict[str, Any]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="replace",
)
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


@dataclass(frozen=True, slots=True)
class ServerClock:
    """The server's clock as read once, carried on by the monotonic clock of this process."""

    ahead_of_monotonic: float

    def now(self) -> datetime:
        """The server's time, aware, in UTC; right to about half a round trip."""
        return datetime.fromtimestamp(time.monotonic() + self.ahead_of_monotonic, UTC)


class SpecStore:
    """Reads specs from one collection, and writes one process's entries into them.

    Methods may be called from any thread. Each is given at most ``timeout`` seconds, however
    the client was set up.

    Args:
        collection: pymongo's or mongomock's.
        owned: close the client with the store.
        timeout: seconds for one call, finding a server included.

    Raises:
        TypeError: it is no such collection.

    Attributes:
        is_owned: whether the client goes with the store.
        is_real: whether it is pymongo's collection, with all that a server can do.
    """

    def __init__(
        self, collection: SpecCollection, *, owned: bool = False, timeout: float = _CALL_SECONDS
    ) -> None:
        self.is_owned = owned
        self._timeout = timeout
        self.is_real = isinstance(collection, Collection)
        if not self.is_real and not type(collection).__module__.startswith("mongomock"):
            raise TypeError(
                "collection must be a Collection of pymongo (not of its asynchronous half), such "
                f"as client['diagnose']['specs'], not {type(collection).__name__}"
            )
        self._collection = (
            collection.with_options(codec_options=_ANYTHING) if self.is_real else collection
        )
        self._use_index = False
        self._is_index_missed = False

    def prepare(self) -> None:
        """Make the index that polls use; without the right to do so, polls do without."""
        try:
            with self._talking("making an index"):
                self._collection.create_index(
                    [(documents.ID, 1), (documents.VERSION, 1)], name=documents.POLL_INDEX
                )
        except StoreError as exc:
            if not isinstance(exc.__cause__, OperationFailure):
                raise
            if not self._is_index_missed:
                self._is_index_missed = True
                log.warning(
                    "polls read whole documents, because the index %r can't be made: %s",
                    documents.POLL_INDEX,
                    exc,
                )
        else:
            self._use_index = True

    def versions(self) -> list[tuple[Any, object]]:
        """For every spec its ``_id`` and ``lastmodified``, from the index alone if there is one."""
        with self._talking("looking for changed specs"):
            query = {documents.ID: 1, documents.VERSION: 1}
            if self._use_index:
                try:
                    return self._pairs(self._collection.find({}, query).hint(documents.POLL_INDEX))
                except OperationFailure as exc:
                    if exc.code != _BAD_VALUE:
                        raise
                    self._use_index = False
                    log.warning("the index %r is gone: polls do without", documents.POLL_INDEX)
            return self._pairs(self._collection.find({}, query))

    @staticmethod
    def _pairs(found: Iterable[Mapping[str, Any]]) -> list[tuple[Any, object]]:
        return [(each[documents.ID], each.get(documents.VERSION)) for each in found]

    def fetch(self, raw_ids: Sequence[Any]) -> list[tuple[Any, dict[str, Any] | Undecodable]]:
        """The specs with these ids, without ``applied``; those that are gone are left out."""
        read: list[tuple[Any, dict[str, Any] | Undecodable]] = []
        for start in range(0, len(raw_ids), _IDS_PER_FETCH):
            with self._talking("reading changed specs"):
                read += self._fetch_some(list(raw_ids[start : start + _IDS_PER_FETCH]))
        return read

    def _fetch_some(self, raw_ids: list[Any]) -> list[tuple[Any, dict[str, Any] | Undecodable]]:
        wanted = {documents.ID: {"$in": raw_ids}}
        without_entries = {documents.APPLIED: 0}
        if not self.is_real:
            found = self._collection.find(wanted, without_entries)
            return [(document[documents.ID], document) for document in found]
        read: list[tuple[Any, dict[str, Any] | Undecodable]] = []
        reason = None
        raw = self._collection.with_options(codec_options=_RAW)
        for each in raw.find(wanted, without_entries):
            try:
                document = decode(each.raw, _ANYTHING)
            except (BSONError, ValueError, TypeError, OverflowError) as exc:
                reason = _short(exc)
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
        with self._talking("reading this process's entries"):
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
        timeout: float | None = None,
    ) -> list[tuple[Any, str]]:
        """Write and erase this process's entries, each in a document of its own.

        Args:
            process_id: whose.
            entries: pairs of a spec's ``_id`` and the entry.
            erased: the ``_id`` of each spec whose entry is to go.
            timeout: seconds, if not the usual.

        Returns:
            Pairs of an ``_id`` and why that document refused (too large, a validator). One
            that is gone does not refuse.
        """
        path = documents.entry_path(process_id)
        updates: list[tuple[Any, Any]] = [
            (raw_id, {"$set": {path: entry}}) for raw_id, entry in entries
        ]
        updates += [(raw_id, {"$unset": {path: ""}}) for raw_id in erased]
        if not updates:
            return []
        with self._talking("writing this process's entries", timeout):
            refusals = self._update(
                [({documents.ID: raw_id}, update) for raw_id, update in updates]
            )
            blocked = [i for i, (code, _) in refusals.items() if code == _PATH_NOT_VIABLE]
            if blocked:
                # `applied` is there and is no document (null, say). Another process may be
                # about to make it one just now: so this is done in two steps.
                self._update(
                    [
                        (
                            {documents.ID: updates[i][0], **_APPLIED_IS_NO_DOCUMENT},
                            {"$set": {documents.APPLIED: {}}},
                        )
                        for i in blocked
                    ]
                )
                again = self._update(
                    [({documents.ID: updates[i][0]}, updates[i][1]) for i in blocked]
                )
                for i in blocked:
                    del refusals[i]
                refusals |= {blocked[i]: refusal for i, refusal in again.items()}
        return [(updates[i][0], reason) for i, (_, reason) in refusals.items()]

    def _update(self, updates: Sequence[tuple[Any, Any]]) -> dict[int, tuple[int | None, str]]:
        """Update one document each; by index, code and text of those that were refused."""
        if not updates:
            return {}
        if not self.is_real:
            for query, update in updates:
                self._collection.update_one(query, update)
            return {}
        try:
            self._collection.bulk_write(
                [UpdateOne(query, update) for query, update in updates], ordered=False
            )
        except BulkWriteError as exc:
            errors = exc.details.get("writeErrors", [])
            if not errors:
                raise  # the writes were done, but not acknowledged as they should be
            return {each["index"]: (each.get("code"), _short(each["errmsg"])) for each in errors}
        return {}

    def clock(self) -> ServerClock | None:
        """The server's clock; None where there is no server to ask (mongomock)."""
        if not self.is_real:
            return None
        with self._talking("reading the server's clock"):
            before = time.monotonic()
            answer = self._collection.database.command("hello", codec_options=_ANYTHING)
            middle = (before + time.monotonic()) / 2
        local_time: datetime = answer["localTime"]
        return ServerClock(local_time.replace(tzinfo=UTC).timestamp() - middle)

    def reopened(self) -> SpecStore:
        """A store of the same collection with a client of its own, for a forked child.

        A ``MongoClient`` is not to be used on both sides of a fork: the driver warns, and
        connections would be shared. There is no public way to make another from the same
        settings (a URI lacks options given as arguments, and secrets); ``_duplicate`` is what
        the driver itself uses for that. Where it is missing, the application's client serves,
        as it does for the rest of the application.
        """
        duplicate = getattr(self._collection.database.client, "_duplicate", None)
        if not self.is_real or duplicate is None:
            return self
        database = duplicate(connect=False).get_database(self._collection.database.name)
        collection = database.get_collection(
            self._collection.name,
            read_preference=self._collection.read_preference,
            write_concern=self._collection.write_concern,
            read_concern=self._collection.read_concern,
        )
        store = SpecStore(collection, owned=True, timeout=self._timeout)
        store._use_index = self._use_index
        return store

    def close(self) -> None:
        """Close the client, if it is the store's own. Idempotent."""
        if self.is_owned:
            # The driver says good-bye to the server, and would look for one that is down.
            with contextlib.suppress(PyMongoError), pymongo.timeout(_CLOSE_SECONDS):
                self._collection.database.client.close()

    @contextlib.contextmanager
    def _talking(self, what: str, timeout: float | None = None) -> Iterator[None]:
        """Limits the time that the driver takes, and translates its errors."""
        try:
            with pymongo.timeout(self._timeout if timeout is None else timeout):
                yield
        except (PyMongoError, BSONError) as exc:
            raise StoreError(
                f"{what} in the collection {self._collection.full_name!r} failed: {_short(exc)}; "
                "check that MongoDB runs and that this user may read and update the collection"
            ) from exc


def connect(uri: str, database: str, collection: str) -> SpecStore:
    """A store with a small client of its own; returns at once, connected or not.

    Raises:
        StoreError: the URI is none.
    """
    try:
        client: MongoClient[dict[str, Any]] = MongoClient(
            uri,
            appname="diagnose",
            connect=False,
            maxPoolSize=2,
            serverSelectionTimeoutMS=int(_CALL_SECONDS * 1000),
            connectTimeoutMS=int(_CALL_SECONDS * 1000),
        )
    except (PyMongoError, ValueError) as exc:
        # Not the URI itself: it may hold a password.
        raise StoreError(
            f"the URI of MongoDB can't be used: {_short(exc)}; it should look like "
            "mongodb://127.0.0.1:27017",
            code="store-uri",
        ) from exc
    return SpecStore(client[database][collection], owned=True)


def initiate_replica_set(port: int, timeout: float) -> None:
    """Make the mongod on ``127.0.0.1:port`` a replica set of one, and wait until it is primary.

    Harmless on a server that is one already (its data directory was used before).

    Args:
        port: where the server listens; it was started with ``--replSet rs0``.
        timeout: seconds for all of it.

    Raises:
        StoreError: it was not primary in time, or refused.
    """
    address = f"127.0.0.1:{port}"
    config = {"_id": "rs0", "members": [{"_id": 0, "host": address}]}
    deadline = time.monotonic() + timeout
    problem = "it did not become primary"
    cause: Exception | None = None
    client: MongoClient[dict[str, Any]] = MongoClient(
        f"mongodb://{address}/?directConnection=true",
        serverSelectionTimeoutMS=max(1, int(timeout * 1000)),
    )
    with contextlib.closing(client):
        try:
            try:
                client.admin.command("replSetInitiate", config)
            except OperationFailure as exc:
                if exc.code != _ALREADY_INITIALIZED:
                    raise
            while time.monotonic() < deadline:
                if client.admin.command("hello")["isWritablePrimary"]:
                    return
                time.sleep(_PRIMARY_CHECK_SECONDS)
        except PyMongoError as exc:
            problem, cause = _short(exc), exc
    raise StoreError(
        f"the MongoDB on {address} is no replica set primary after {timeout:g} s: {problem}; "
        "look into its log, and check that nothing else uses the port"
    ) from cause


def _short(what: object) -> str:
    # What the driver appends to say that no server was found fills half a screen.
    text = str(what).partition(" (configured timeouts")[0].partition(", Timeout: ")[0]
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 3]}..."
