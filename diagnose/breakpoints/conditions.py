"""Which calls stop at a breakpoint, and what is told of those that were seen."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from diagnose.reentrancy import Quiet
from diagnose.source_lines import source_line

if TYPE_CHECKING:
    import threading
    from types import FrameType

    from diagnose.breakpoints.forks import ChildThread

__all__ = ["Call", "Condition", "Conditions"]

Condition: TypeAlias = "Callable[..., object] | int | None"
"""A predicate over a call's arguments, the number of a call (the first is 0), or None: any."""

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 60


def shown(value: object) -> str:
    """A short text for any object, also for one whose ``__repr__`` fails, or calls the target."""
    try:
        with Quiet():
            return _shorten.repr(value)
    except Exception as error:  # noqa: BLE001 - an object of the program under test
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def said(error: BaseException) -> str:
    """An exception's class and text, also of one whose ``__str__`` fails."""
    try:
        with Quiet():
            return f"{type(error).__name__}: {error}"
    except Exception as other:  # noqa: BLE001 - of the program under test
        return f"{type(error).__name__}, whose str raises {type(other).__name__}"


@dataclass(eq=False)
class Call:
    """A call of a breakpoint's target, as it got to the breakpoint.

    Attributes:
        name: of the function.
        args: positional arguments, those given by keyword included; a method's first is ``self``.
        kwargs: keyword-only ones, and those of ``**``.
        thread: that it was made in; of one in a forked child: its ``name`` and ``pid``. From there
            come plain values (numbers, texts, containers of these) as they are; of others, texts.
        number: it was the so-manyth since the breakpoint was entered; the first is 1 (whereas
            ``condition`` counts from 0, as positions do).
        is_hit: the condition was met.
        frame: the function's, while the call stands at the breakpoint; else None.
        result: for ``event="return"``: what is being returned.
        exception: for ``event="error"``: what is being raised.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    thread: threading.Thread | ChildThread
    number: int = 0
    is_hit: bool = False
    frame: FrameType | None = field(default=None, repr=False)
    result: Any = None
    exception: BaseException | None = None

    def __str__(self) -> str:
        given = [shown(each) for each in self.args]
        given += [f"{name}={shown(each)}" for name, each in self.kwargs.items()]
        text = f"{self.name}({', '.join(given)}) in {self.thread.name!r}"
        if self.exception is not None:
            return f"{text}, raising {shown(self.exception)}"
        return text if self.result is None else f"{text}, returning {shown(self.result)}"


class Conditions:
    """All that is to be met at a breakpoint, each of them by some call."""

    def __init__(
        self, given: Condition | Sequence[Condition], signature: inspect.Signature | None
    ) -> None:
        several = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
        self._each: list[Condition] = list(given) if several else [given]  # type: ignore[arg-type,list-item]
        self._signature = signature
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
        if names and self._signature is not None:
            bound = self._signature.bind(*call.args, **call.kwargs)
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
        """What was not met yet, in words."""
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
