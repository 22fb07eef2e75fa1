"""How specs and their ``applied`` entries look as documents: names and a pure mapping.

Everything here is about plain values; :mod:`diagnose_mongo.store` moves them.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from diagnose.specs import content_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "APPLIED",
    "CHANGED",
    "COLLECTION",
    "COUNTS",
    "ID",
    "POLL_INDEX",
    "VERSION",
    "WRITTEN",
    "are_same",
    "beside",
    "entry_document",
    "entry_path",
    "is_process_id",
    "is_shallow",
    "key_of",
    "name_of",
    "small",
    "text",
    "version_of",
]

COLLECTION = "specs"
"""The collection that :func:`diagnose_mongo.start` reads."""

ID = "_id"
VERSION = "lastmodified"
APPLIED = "applied"
COUNTS = "counts"
"""How many processes there are in each state, where not all of them have an entry."""
CHANGED = "changed"
"""The marker of the version that is there: its author, and its record in the history."""
WRITTEN = frozenset({APPLIED, COUNTS, CHANGED})
"""The fields that are no part of what a spec says."""

POLL_INDEX = "diagnose_poll"
"""The index on ``(_id, lastmodified)`` that answers a poll without reading documents."""

_LONGEST_TEXT = 2_000
_LONGEST_SMALL = 200
# A server takes documents of 180 levels, those of a command included.
_MOST_LEVELS = 100
_PROCESS_ID = re.compile(r"[A-Za-z0-9_-]+")


def beside(collection: str, name: str) -> str:
    """The name of another collection of the fleet whose specs are in ``collection``."""
    return name if collection == COLLECTION else f"{collection}_{name}"


def key_of(raw_id: Any) -> Hashable:
    """What a document with this ``_id`` is kept under in this process.

    Different ids of one collection have different keys, also where Python finds them equal
    (``1`` and ``true``) or can't hash them (``{_id: {region: "eu", n: 1}}``).
    """
    if isinstance(raw_id, Hashable) and not isinstance(raw_id, (bool, float)):
        try:
            hash(raw_id)
        except TypeError:
            pass  # an object that only looks hashable: it holds a list
        else:
            return raw_id
    return f"{type(raw_id).__name__}:{raw_id!r}"


def name_of(key: Hashable, document: Mapping[str, Any]) -> Hashable:
    """What people call the spec: its field ``id`` if it is a text, else its ``_id``."""
    name = document.get("id")
    return name if isinstance(name, str) and name else key


def version_of(lastmodified: object) -> object:
    """Something that compares equal only for equal versions, whatever the field holds."""
    return content_of(lastmodified)


def are_same(one: object, other: object) -> bool:
    """Whether two values of documents are equal, type by type (``1`` is not ``true``)."""
    return version_of(one) == version_of(other)


def small(value: Any) -> Any:
    """An ``_id`` or ``lastmodified`` as it is told elsewhere: as it is, or in short if it is large.

    It may be a document with more in it, or more levels, than fits there.
    """
    shown = repr(value)
    if len(shown) <= _LONGEST_SMALL:
        return value
    return text(value if isinstance(value, str) else shown, _LONGEST_SMALL)


def is_process_id(name: object) -> bool:
    """Whether this can be the id of a process; see :mod:`diagnose_mongo.worker.identity`."""
    return isinstance(name, str) and _PROCESS_ID.fullmatch(name) is not None


def is_shallow(value: object, levels: int = _MOST_LEVELS) -> bool:
    """Whether a value has no more levels of documents and arrays than a query of it can have."""
    if isinstance(value, dict):
        return levels > 0 and all(is_shallow(each, levels - 1) for each in value.values())
    if isinstance(value, list):
        return levels > 0 and all(is_shallow(each, levels - 1) for each in value)
    return True


def entry_path(process_id: str) -> str:
    """Where a process's entry is within a spec document."""
    return f"{APPLIED}.{process_id}"


def entry_document(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with texts that any document can hold: valid Unicode, of limited length."""
    return {
        name: small(value) if name == "lm" else _storable(value) for name, value in entry.items()
    }


def _storable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _storable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(item) for item in value]
    return text(value) if isinstance(value, str) else value


def text(value: str, longest: int = _LONGEST_TEXT) -> str:
    """A text that any document can hold: valid Unicode, of limited length."""
    if len(value) > longest:
        value = f"{value[: longest - 3]}..."
    # A lone surrogate can't be encoded, and would keep every other entry from being written.
    return value.encode("utf-8", "replace").decode("utf-8")
