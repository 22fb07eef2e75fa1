"""What a class of instruments can be given, for those who make instruments of documents."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["USUAL_ARGUMENTS", "accepted_arguments", "default_value"]

USUAL_ARGUMENTS = frozenset(
    {"name", "value", "event", "expires", "custom", "mgr", "when", "limits", "policy"}
)
"""An instrument's arguments that every spec can set, and those that come from its manager."""


def accepted_arguments(made_by: Callable[..., Any]) -> frozenset[str]:
    """What can be given by name to a class, also through its bases' ``**kwargs``."""
    makers: list[Any] = [made_by]
    if isinstance(made_by, type):
        makers = [vars(cls)["__init__"] for cls in made_by.__mro__ if "__init__" in vars(cls)]
    names: set[str] = set()
    for maker in makers:
        try:
            parameters = inspect.signature(maker).parameters.values()
        except (TypeError, ValueError):  # it does not say
            return USUAL_ARGUMENTS
        names |= {p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    else:
        names |= USUAL_ARGUMENTS  # **kwargs to the end: made to take them
    return frozenset(names - {"self"})


def default_value(made_by: Callable[..., Any]) -> str | None:
    """The expression that a class evaluates if it is given none."""
    try:
        default = inspect.signature(made_by).parameters["value"].default
    except (KeyError, TypeError, ValueError):
        return None
    return default if isinstance(default, str) else None
