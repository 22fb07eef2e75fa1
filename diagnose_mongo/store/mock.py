"""mongomock's collections, for tests of a single thread that need no server.

They have no bulk writes, no raw documents and no server clock, and only the specs are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diagnose_mongo import documents
from diagnose_mongo.store.control import Control
from diagnose_mongo.store.link import Link
from diagnose_mongo.store.specs import SpecStore

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from diagnose_mongo.store.link import ServerClock, SpecCollection
    from diagnose_mongo.store.specs import Undecodable

__all__ = ["MockLink", "MockSpecStore", "is_mock"]


def is_mock(collection: object) -> bool:
    """Whether it is one of mongomock's."""
    return type(collection).__module__.startswith("mongomock")


class MockLink(Link):
    """A link to a collection of mongomock's."""

    @staticmethod
    def _prepared(collection: SpecCollection) -> SpecCollection:
        return collection

    def clock(self) -> ServerClock | None:
        """None: there is no server to ask."""
        return None

    def reopened(self) -> Link:
        """The same: a forked child has a copy."""
        return self


class MockSpecStore(SpecStore):
    """Reads and writes specs with the little that mongomock can do."""

    def look(self) -> tuple[list[tuple[Any, object]], Control]:
        """The versions of all specs; nothing steers a fleet."""
        return self.versions(), Control()

    def look_for_index(self) -> None:
        """There is nothing that an index would make faster."""

    def fetch(
        self, raw_ids: Sequence[Any], fields: Collection[str] | None = None
    ) -> list[tuple[Any, dict[str, Any] | Undecodable]]:
        """The specs with these ids, whole: asked for fields, mongomock changes their order."""
        return super().fetch(raw_ids)

    def _look(self, more: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(self._collection.find({}, {documents.ID: 1, documents.VERSION: 1}))

    def _fetch_some(
        self, raw_ids: list[Any], fields: Mapping[str, int]
    ) -> list[tuple[Any, dict[str, Any] | Undecodable]]:
        found = self._collection.find({documents.ID: {"$in": raw_ids}}, fields)
        return [(document[documents.ID], document) for document in found]

    def _update(self, updates: Sequence[tuple[Any, Any]]) -> dict[int, tuple[int | None, str]]:
        for query, update in updates:
            self._collection.update_one(query, update)
        return {}
