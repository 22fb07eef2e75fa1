"""Attributes of others' classes and modules that are replaced while anything is probed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Exchange"]


class Exchange:
    """One attribute, and what stands in its place from :meth:`begin` to :meth:`end`.

    What somebody else put there meanwhile stays. Not for two threads at once; an interrupt may come
    at any time: the next call does what is left.

    Args:
        owner: a class or module.
        name: of a function in it; if there is none, nothing is done.
        make: of what was there, what stands for it.
    """

    def __init__(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        self._owner, self._name, self._make = owner, name, make
        self._exchanged: tuple[Any, Any] | None = None
        """How it is done now, and how it was done before."""

    def begin(self) -> None:
        """Put ours in its place; idempotent."""
        now = vars(self._owner).get(self._name)
        if self._exchanged is None:
            if now is None:
                return
            self._exchanged = self._make(now), now
        ours, before = self._exchanged
        if now is before:
            setattr(self._owner, self._name, ours)

    def end(self) -> None:
        """Put back what was there; idempotent."""
        if self._exchanged is None:
            return
        ours, before = self._exchanged
        if vars(self._owner).get(self._name) is ours:
            setattr(self._owner, self._name, before)
        self._exchanged = None
