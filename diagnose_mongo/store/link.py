"""One client and one database: how long a call may take, and what its errors come out as."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import pymongo
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.write_concern import WriteConcern

from diagnose.errors import StoreError
from diagnose_mongo import documents

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ANYTHING",
    "CALL_SECONDS",
    "Link",
    "ServerClock",
    "SpecCollection",
    "is_answer",
    "is_refused",
    "short",
]

SpecCollection: TypeAlias = Collection[dict[str, Any]]

CALL_SECONDS = 5.0
"""What one call to the server may take, finding it included, unless it is said otherwise."""

_CLOSE_SECONDS = 0.5
_LONGEST_REASON = 300
_NOT_ALLOWED = frozenset({13, 18, 8000})  # Unauthorized, AuthenticationFailed, Atlas' own

# Decodes whatever a server can hold: dates beyond Python's years, text that is no UTF-8, UUIDs
# of any age. Dates come naive, in UTC, whatever the application's client is set to.
ANYTHING: CodecOptions[dict[str, Any]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="replace",
)


@dataclass(frozen=True, slots=True)
class ServerClock:
    """The server's clock as read once, carried on by the monotonic clock of this process."""

    ahead_of_monotonic: float

    def now(self) -> datetime:
        """The server's time, aware, in UTC; right to about half a round trip."""
        return datetime.fromtimestamp(time.monotonic() + self.ahead_of_monotonic, UTC)


class Link:
    """The client of a collection of specs, and the collections beside it.

    Args:
        collection: of specs.
        owned: close the client with the link.
        timeout: seconds for one call, finding a server included.

    Raises:
        TypeError: it is no such collection.

    Attributes:
        collection: of specs.
        is_owned: whether the client goes with the link.
        timeout: as given.
    """

    def __init__(
        self, collection: SpecCollection, *, owned: bool = False, timeout: float = CALL_SECONDS
    ) -> None:
        self.is_owned = owned
        self.timeout = timeout
        self.collection = self._prepared(collection)

    @staticmethod
    def _prepared(collection: SpecCollection) -> SpecCollection:
        if not isinstance(collection, Collection):
            raise TypeError(
                "collection must be a Collection of pymongo (not of its asynchronous half), such "
                f"as client['diagnose']['specs'], not {type(collection).__name__}"
            )
        return collection.with_options(codec_options=ANYTHING)

    def beside(self, name: str, *, is_for_good: bool = True) -> SpecCollection:
        """Another collection of this fleet, in the same database.

        Args:
            name: of the collection.
            is_for_good: what is written is acknowledged by a majority, so that no failover
                takes it back; otherwise by the primary alone, which takes no time.
        """
        return self.collection.database.get_collection(
            documents.beside(self.collection.name, name),
            codec_options=ANYTHING,
            write_concern=WriteConcern("majority" if is_for_good else 1),
        )

    def clock(self) -> ServerClock | None:
        """The server's clock; None where there is no server to ask (mongomock).

        Raises:
            StoreError: the server could not be asked.
        """
        with self.talking("reading the server's clock"):
            before = time.monotonic()
            answer = self.collection.database.command("hello", codec_options=ANYTHING)
            middle = (before + time.monotonic()) / 2
        local_time: datetime = answer["localTime"]
        return ServerClock(local_time.replace(tzinfo=UTC).timestamp() - middle)

    def reopened(self) -> Link:
        """A link to the same collection with a client of its own, for a forked child.

        A ``MongoClient`` is not to be used on both sides of a fork: the driver warns, and
        connections would be shared. There is no public way to make another from the same
        settings (a URI lacks options given as arguments, and secrets); ``_duplicate`` is what
        the driver itself uses for that. Where it is missing, the application's client serves,
        as it does for the rest of the application.
        """
        duplicate = getattr(self.collection.database.client, "_duplicate", None)
        if duplicate is None:
            return self
        database = duplicate(connect=False).get_database(self.collection.database.name)
        collection = database.get_collection(
            self.collection.name,
            read_preference=self.collection.read_preference,
            write_concern=self.collection.write_concern,
            read_concern=self.collection.read_concern,
        )
        return Link(collection, owned=True, timeout=self.timeout)

    def close(self) -> None:
        """Close the client, if it is the link's own. Idempotent."""
        if self.is_owned:
            # The driver says good-bye to the server, and would look for one that is down.
            with contextlib.suppress(PyMongoError), pymongo.timeout(_CLOSE_SECONDS):
                self.collection.database.client.close()

    @contextlib.contextmanager
    def talking(self, what: str, timeout: float | None = None) -> Iterator[None]:
        """Limits the time that the driver takes, and translates its errors.

        Raises:
            StoreError: what the driver raised.
        """
        try:
            with pymongo.timeout(self.timeout if timeout is None else timeout):
                yield
        except (PyMongoError, BSONError) as exc:
            raise StoreError(
                f"{what} in the collection {self.collection.full_name!r} failed: {short(exc)}; "
                "check that MongoDB runs and that this user may read and update the collection"
            ) from exc


def connect(uri: str, database: str, collection: str) -> Link:
    """A link with a small client of its own; returns at once, connected or not.

    Raises:
        StoreError: the URI is none.
    """
    try:
        client: MongoClient[dict[str, Any]] = MongoClient(
            uri,
            appname="diagnose",
            connect=False,
            maxPoolSize=2,
            serverSelectionTimeoutMS=int(CALL_SECONDS * 1000),
            connectTimeoutMS=int(CALL_SECONDS * 1000),
        )
    except (PyMongoError, ValueError) as exc:
        # Not the URI itself: it may hold a password.
        raise StoreError(
            f"the URI of MongoDB can't be used: {short(exc)}; it should look like "
            "mongodb://127.0.0.1:27017",
            code="store-uri",
        ) from exc
    return Link(client[database][collection], owned=True)


def is_refused(error: StoreError) -> bool:
    """Whether the server refused, since this user may not do that."""
    cause = error.__cause__
    return isinstance(cause, OperationFailure) and cause.code in _NOT_ALLOWED


def is_answer(error: StoreError) -> bool:
    """Whether the server is there, and said no to what it was asked for."""
    return isinstance(error.__cause__, OperationFailure)


def short(what: object) -> str:
    """An error of the driver's in a line."""
    # What it appends to say that no server was found fills half a screen.
    text = str(what).partition(" (configured timeouts")[0].partition(", Timeout: ")[0]
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 3]}..."
