"""Containers that can be constants of a code object, which have to be hashable.

Woven code and handlers hold them so: what is in them changes while the code stays.
"""

from __future__ import annotations

from typing import TypeVar

__all__ = ["ConstantList", "ConstantSet"]

T = TypeVar("T")


class ConstantList(list[T]):
    """A list that is hashed by what it is, not by what it holds."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class ConstantSet(set[T]):
    """A set that is hashed by what it is, not by what it holds."""

    __hash__ = object.__hash__  # type: ignore[assignment]
