"""What people ask of the collections: looks at a server and at specs, for the command."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from diagnose.errors import StoreError
from diagnose_mongo import documents
from diagnose_mongo.store.link import is_refused

if TYPE_CHECKING:
    from diagnose_mongo.store.link import Link

__all__ = ["Inspector", "ServerFacts"]

_NOTHING: dict[str, Any] = {"$nor": [{}]}


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself.

    Attributes:
        version: of MongoDB.
        replica_set: its name; None: it is of none.
        round_trip: seconds.
        ahead: by how many seconds its clock is ahead of this machine's.
    """

    version: str
    replica_set: str | None
    round_trip: float
    ahead: float


class Inspector:
    """Reads what people want to know. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._specs = link.collection

    def server(self) -> ServerFacts:
        """Facts about the server.

        Raises:
            StoreError: it could not be asked.
        """
        database = self._specs.database
        with self._link.talking("reaching MongoDB"):
            database.command("ping")  # connects
            before, began = datetime.now(UTC), time.monotonic()
            hello = database.command("hello")
            took = time.monotonic() - began
            version = database.command("buildInfo")["version"]
        local_time = hello["localTime"].replace(tzinfo=UTC)
        ahead = (local_time - before).total_seconds() - took / 2
        return ServerFacts(version, hello.get("setName"), took, ahead)

    def indexes(self, name: str) -> set[str] | None:
        """The names of a collection's indexes; None: the collection is not there.

        Args:
            name: ``specs``, or that of a collection beside it.

        Raises:
            StoreError: the server could not be asked.
        """
        collection = self._collection(name)
        with self._link.talking("reading indexes"):
            return set(collection.index_information()) or None

    def has_validator(self) -> bool:
        """Whether the collection of specs refuses what can be no spec.

        Raises:
            StoreError: the server could not be asked.
        """
        with self._link.talking("reading the validator"):
            found = self._specs.database.list_collections(filter={"name": self._specs.name})
            return any(each["options"].get("validator") for each in found)

    def may(self, name: str, *, write: bool) -> bool:
        """Whether this user may read a collection, or change it; nothing is changed.

        Raises:
            StoreError: the server could not be asked.
        """
        collection = self._collection(name)
        try:
            with self._link.talking("trying what this user may do"):
                if write:
                    # The server looks at the rights before it looks for a document.
                    collection.update_one(_NOTHING, {"$set": {"x": 1}})
                else:
                    collection.find_one(_NOTHING)
        except StoreError as exc:
            if is_refused(exc):
                return False
            raise
        return True

    def _collection(self, name: str) -> Any:
        return self._specs if name == documents.COLLECTION else self._link.beside(name)

    def specs(self) -> list[dict[str, Any]]:
        """All specs, the last changed first, with ``states`` and ``acts`` in place of ``applied``.

        ``states`` says how many entries there are in each state, or is what ``counts`` says where
        not every process has one. Entries about another version count as ``behind``. ``acts`` is
        there if an entry says that the spec's instrument may change what the program does.

        Raises:
            StoreError: the server could not be asked.
        """
        is_current = {"$eq": ["$entry.v.lm", f"${documents.VERSION}"]}
        is_document = {"$eq": [{"$type": f"${documents.APPLIED}"}, "object"]}
        entries = {
            "$cond": [is_document, {"$objectToArray": f"${documents.APPLIED}"}, []],
        }
        counting: list[dict[str, Any]] = [
            {"$project": {documents.VERSION: 1, "entry": entries}},
            {"$unwind": "$entry"},
            {
                "$project": {
                    "state": {"$cond": [is_current, "$entry.v.state", "behind"]},
                    "acts": "$entry.v.acts",
                }
            },
            {
                "$group": {
                    "_id": {"id": "$_id", "state": {"$ifNull": ["$state", "installed"]}},
                    "count": {"$sum": 1},
                    "acts": {"$max": "$acts"},
                }
            },
        ]
        with self._link.talking("reading all specs"):
            found = list(self._specs.find({}, {documents.APPLIED: 0}).sort(documents.VERSION, -1))
            counted = list(self._specs.aggregate(counting))
        states: dict[Any, dict[str, int]] = {}
        acting = set()
        for each in counted:
            key = documents.key_of(each["_id"]["id"])
            if each["acts"] is True:
                acting.add(key)
            states.setdefault(key, {})[str(each["_id"]["state"])] = each["count"]
        for document in found:
            counts = document.pop(documents.COUNTS, None)
            key = documents.key_of(document[documents.ID])
            told = states.get(key, {})
            document.pop("acts", None)
            if key in acting:
                document["acts"] = True
            document["states"] = counts if isinstance(counts, dict) else told
        return found
