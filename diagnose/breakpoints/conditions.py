"""Which calls are hits of a breakpoint."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from diagnose.breakpoints.calls import shown
from diagnose.source_lines import source_line

if TYPE_CHECKING:
    from diagnose.breakpoints.calls import Call

__all__ = ["Condition", "Conditions", "describe", "is_whole"]

Condition: TypeAlias = "Callable[..., object] | int | None"
"""A predicate over a call's arguments, the number of a call (the first is 0), or None: any."""


class Conditions:
    """All that is to be met at a breakpoint, each of them by some call.

    Attributes:
        met: for each whether a call has met it.
        signature: of the function, once that is found; predicates get arguments by its names.

    Raises:
        TypeError: a condition is none.
        ValueError: there is none.
    """

    def __init__(self, given: Condition | Sequence[Condition]) -> None:
        several = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
        self._each: list[Condition] = list(given) if several else [given]  # type: ignore[arg-type,list-item]
        self.signature: inspect.Signature | None = None
        if not self._each:
            message = "condition is an empty sequence, so no call could meet it; give None for any"
            raise ValueError(message)
        for one in self._each:
            _check(one)
        self.met = [False] * len(self._each)

    def meet(self, call: Call) -> bool:
        """Whether the call meets one of them, or more; those are noted as met.

        Raises:
            Exception: what a predicate raises.
        """
        found = [
            number
            for number, one in enumerate(self._each)
            if one is None or (self._holds(one, call) if callable(one) else one == call.number - 1)
        ]
        for number in found:
            self.met[number] = True
        return bool(found)

    def _holds(self, predicate: Callable[..., object], call: Call) -> bool:
        names = _names(predicate)
        if names and self.signature is not None:
            bound = self.signature.bind(*call.args, **call.kwargs)
            bound.apply_defaults()
            if names <= bound.arguments.keys():
                return bool(predicate(**{name: bound.arguments[name] for name in names}))
        return bool(predicate(*call.args, **call.kwargs))

    @property
    def has_numbers(self) -> bool:
        """Whether a call's number is among them."""
        return any(isinstance(one, int) for one in self._each)

    @property
    def unmet(self) -> list[str]:
        """The conditions that were not met yet, in words."""
        return [
            describe(one) for one, is_met in zip(self._each, self.met, strict=True) if not is_met
        ]


def _names(predicate: Callable[..., object]) -> set[str]:
    """The names of a predicate's parameters; empty: it takes a call's arguments as they come."""
    try:
        parameters = inspect.signature(predicate).parameters.values()
    except (TypeError, ValueError):
        return set()
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if any(each.kind not in plain for each in parameters):
        return set()
    return {each.name for each in parameters if each.default is inspect.Parameter.empty}


def is_whole(value: object, at_least: int) -> bool:
    """Whether it is a whole number, and no less than ``at_least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _check(one: object) -> None:
    if one is None or callable(one) or is_whole(one, at_least=0):
        return
    message = (
        f"condition {one!r:.100} is neither a predicate over the call's arguments, nor the "
        "number of a call (the first is 0), nor a sequence of these"
    )
    if isinstance(one, str):
        message += "; an event goes with a pair: Breakpoint((Cart, 'checkout'), 'return')"
    raise TypeError(message)


def describe(one: Condition) -> str:
    """A condition in words."""
    if one is None:
        return "any call"
    if isinstance(one, int):
        return f"call number {one}"
    code = getattr(one, "__code__", None)
    if code is None:
        return f"a call for which {shown(one)} is true"
    line = source_line(code.co_filename, code.co_firstlineno)
    where = f"{code.co_filename}:{code.co_firstlineno}"
    return f"a call for which {code.co_qualname} is true ({where}{': ' + line if line else ''})"
