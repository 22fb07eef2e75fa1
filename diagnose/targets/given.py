"""Targets that are at hand as objects, so that no path has to be looked up."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from diagnose.errors import TargetKindError
from diagnose.targets.search import Target, TargetKind, innermost

__all__ = ["path_of", "target_of"]


def path_of(function: Any) -> str:
    """Where a function says that it is: its module and its name in there, as far as it says so."""
    home = getattr(function, "__objclass__", function)  # of a method that is written in C
    module = getattr(home, "__module__", None)
    return f"{module}.{function.__qualname__}" if module else str(function.__qualname__)


def target_of(given: Any) -> Target:
    """The target of a function, or of the one in a static, class or bound method or a property.

    Raises:
        TargetKindError: it has no Python function in it.
    """
    function = given.fget if isinstance(given, property) else given
    function = getattr(function, "__func__", function)
    if type(function) is not FunctionType:  # a wrapper may claim to be one
        message = f"{given!r:.200} has no Python function in it that an instrument can be put on"
        raise TargetKindError(message)
    path, name = path_of(function), function.__name__
    inner, count = innermost(function)
    return Target(path, None, name, TargetKind.FUNCTION, function, function, (), inner, count)
