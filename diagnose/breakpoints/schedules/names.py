"""Names of objects and functions in the story of a schedule."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any

from diagnose.breakpoints.stacks import short

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Names", "name_of", "plain"]


class Names(reprlib.Repr):
    """Short texts for objects, for which none of their own code is run: that would be a step too.

    Objects of classes are numbered in the order in which a run meets them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self._known: dict[int, tuple[str, object]] = {}
        self._counts: dict[str, int] = {}

    def shown(self, value: object) -> str:
        """A short text."""
        return self.repr(value)

    def repr1(self, x: Any, level: int) -> str:
        """See :class:`reprlib.Repr`."""
        if type(x) in _PLAIN:
            return super().repr1(x, level)
        if (found := self._known.get(id(x))) is None:
            name = type(x).__name__
            if isinstance(x, type):
                return f"<class {x.__name__}>"
            number = self._counts[name] = self._counts.get(name, 0) + 1
            # The object is kept, since another one could get its id.
            found = self._known[id(x)] = f"<{name} {number}>", x
        return found[0]


_PLAIN = {type(None), bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset}


def plain(qualified: str) -> str:
    """A name without the functions that it is local to."""
    return qualified.rpartition("<locals>.")[2]


def name_of(function: Callable[..., object]) -> str:
    """A callable's name, and where it is."""
    name = plain(getattr(function, "__qualname__", type(function).__qualname__))
    code = getattr(function, "__code__", None)
    return name if code is None else f"{name} ({short(code.co_filename)}:{code.co_firstlineno})"
