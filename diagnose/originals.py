"""What stands behind the things that probes put in place: a function's own code, a callable.

Woven code and stand-ins say it themselves, so nothing has to be looked up, locked or forgotten, and
copies of them are known, too.
"""

from __future__ import annotations

from types import CodeType
from typing import Any

from diagnose.introspection import read_mro

__all__ = ["StandIn", "marked", "own_code", "seen_through"]


class _Own:
    """Stands last among the constants of code that was woven, and hides what it was made of.

    Hidden, since tools look for the code of inner functions there.
    """

    __slots__ = ("code",)

    def __init__(self, code: CodeType) -> None:
        self.code = code


def marked(woven: CodeType, own: CodeType) -> CodeType:
    """Let ``woven`` know what it was made of."""
    return woven.replace(co_consts=(*woven.co_consts, _Own(own_code(own))))


def own_code(value: Any) -> Any:
    """The function's own code, if ``value`` is code with probes in it; else ``value``."""
    if type(value) is CodeType and value.co_consts:
        last = value.co_consts[-1]
        if type(last) is _Own:
            return last.code
    return value


class StandIn:
    """Base of what stands for a callable that has no code; the callable is in its slot."""

    __slots__ = ("_found",)


_read_found: Any = StandIn.__dict__["_found"].__get__


def seen_through(value: object) -> object:
    """What a stand-in stands for; any other value as it is. Runs no code of the program."""
    return _read_found(value) if any(each is StandIn for each in read_mro(type(value))) else value
