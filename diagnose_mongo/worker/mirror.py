"""The specs of the collection as a process has read them, and what is to be read anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from diagnose.fields import names_in
from diagnose_mongo import documents
from diagnose_mongo.store import Undecodable

if TYPE_CHECKING:
    from collections.abc import Hashable

    from diagnose_mongo.store import SpecStore

__all__ = ["Mirror", "Reading"]


class Reading(NamedTuple):
    """What was read in one go.

    Attributes:
        versions: of each spec the ``_id`` and ``lastmodified``, as the server listed them.
        found: the same by key, with what compares versions.
        documents: the specs that were read, by ``_id``.
        has_news: a spec is there in another version than was known.
    """

    versions: list[tuple[Any, object]]
    found: dict[Hashable, tuple[Any, object]]
    documents: list[tuple[Any, dict[str, Any] | Undecodable]]
    has_news: bool


class Mirror:
    """Keeps a dict of specs like the collection. Not thread-safe: its user has a lock.

    Args:
        specs: by key (see :func:`diagnose_mongo.documents.key_of`), changed in place.

    Attributes:
        specs: as given.
        raw_ids: the ``_id`` of each.
    """

    def __init__(self, specs: dict[Hashable, Any]) -> None:
        self.specs = specs
        self.raw_ids: dict[Hashable, Any] = {}
        self._versions: dict[Hashable, object] = {}
        self._listed: list[tuple[Any, object]] | None = None

    def is_like(self, versions: list[tuple[Any, object]]) -> bool:
        """Whether the server has what is here already."""
        return versions == self._listed

    def read(
        self, store: SpecStore, versions: list[tuple[Any, object]], *, is_full: bool
    ) -> Reading:
        """Read what is not here in the version that the server has; nothing is changed here.

        Args:
            store: of the specs.
            versions: as just listed.
            is_full: read the others too, which may have been changed without a new version.

        Raises:
            StoreError: the server could not be asked.
        """
        found = {
            documents.key_of(raw_id): (raw_id, documents.version_of(lastmodified))
            for raw_id, lastmodified in versions
        }
        moved = {key for key, (_, version) in found.items() if self._is_other(key, version)}
        changed = [
            raw_id
            for key, (raw_id, _) in found.items()
            if key in moved or (is_full and not isinstance(self.specs[key], dict))
        ]
        read = store.fetch(changed) if changed else []
        if is_full and len(changed) < len(found):
            seen = {documents.key_of(raw_id) for raw_id in changed}
            others = [raw_id for key, (raw_id, _) in found.items() if key not in seen]
            read += store.fetch(others, self._fields())
        return Reading(versions, found, read, has_news=bool(moved))

    def take(self, reading: Reading) -> list[Hashable]:
        """Be like what was read; the keys of the specs that are gone."""
        gone = [key for key in self.specs if key not in reading.found]
        for key in gone:
            for known in (self.specs, self._versions, self.raw_ids):
                known.pop(key, None)
        for raw_id, document in reading.documents:
            key = documents.key_of(raw_id)
            self.specs[key] = document
            self.raw_ids[key] = raw_id
            self._versions[key] = (
                reading.found[key][1]
                if isinstance(document, Undecodable)
                else documents.version_of(document.get(documents.VERSION))
            )
        # What another node of the server had not got yet is asked for again.
        is_whole = not any(
            self._is_other(key, version) for key, (_, version) in reading.found.items()
        )
        self._listed = reading.versions if is_whole else None
        return gone

    def adopt(self, raw_id: Any, document: dict[str, Any]) -> None:
        """Have a spec as if it had been read."""
        key = documents.key_of(raw_id)
        self.specs[key], self.raw_ids[key] = document, raw_id
        self._versions[key] = documents.version_of(document.get(documents.VERSION))

    def version(self, key: Hashable) -> object:
        """The ``lastmodified`` of a spec that is here and can be decoded."""
        return self.specs[key].get(documents.VERSION)

    def by_raw_id(self) -> list[tuple[Any, Any]]:
        """Of each spec the ``_id`` and the document."""
        return [(self.raw_ids[key], document) for key, document in self.specs.items()]

    def _is_other(self, key: Hashable, version: object) -> bool:
        return self._versions.get(key, self) != version

    def _fields(self) -> set[str]:
        """All fields that specs have, as far as is known here."""
        known = (each for each in self.specs.values() if isinstance(each, dict))
        return set(names_in("")).union(*known) - {documents.APPLIED, documents.COUNTS}
