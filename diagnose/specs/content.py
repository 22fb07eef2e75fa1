"""Whether two documents have the same content, whatever is in them."""

from __future__ import annotations

from datetime import datetime

__all__ = ["content_of"]

_OUTCOMES = frozenset({"applied", "counts"})
_DEEPEST = 20
_MOST_NODES = 5_000


def content_of(document: object) -> object:
    """A value that is equal for documents of equal content, ``applied`` left out.

    It finds edits whose author forgot ``lastmodified``. It compares types too (``1`` is not
    ``True``) and can be compared whatever the document holds.
    """
    try:
        if isinstance(document, dict):
            document = {key: value for key, value in list(document.items()) if key not in _OUTCOMES}
        return _Freezer().freeze(document)
    except Exception:  # noqa: BLE001 - a dict of a class of its own may do anything
        return id(document)


class _Freezer:
    """Turns a document into nested tuples; what is beyond the budget counts by its type only."""

    def __init__(self) -> None:
        self._budget = _MOST_NODES

    def freeze(self, value: object, depth: int = 0) -> object:
        kind = type(value)
        self._budget -= 1
        # Only a dict in a program can be as deep or large, or contain itself.
        if depth > _DEEPEST or self._budget < 0:
            return kind
        if isinstance(value, dict):
            return kind, tuple(
                (self.freeze(key, depth + 1), self.freeze(item, depth + 1))
                for key, item in list(value.items())
            )
        if isinstance(value, (list, tuple)):
            return kind, tuple(self.freeze(item, depth + 1) for item in list(value))
        if kind in {str, bytes, int, bool, datetime, type(None)}:
            return kind, value
        try:
            # Numbers that are not equal to themselves, and whatever else a document may hold.
            return kind, repr(value)
        except Exception:  # noqa: BLE001 - the repr of anything at all
            return kind, id(value)
