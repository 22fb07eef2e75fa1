"""The arguments of a breakpoint, checked where it is made rather than where it is entered."""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diagnose.breakpoints import places
from diagnose.breakpoints.conditions import Conditions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diagnose.breakpoints.calls import Call
    from diagnose.breakpoints.conditions import Condition

__all__ = ["EVENTS", "Settings", "check_event", "check_seconds", "seconds_of"]

EVENTS = ("call", "return", "error", "end", "line:N", "line:+K")
"""Before the function's body; when it has returned; when it has raised; just before either, with
its variables; before a line runs."""


@dataclass(eq=False, repr=False)
class Settings:
    """The arguments of a breakpoint; see :class:`diagnose.breakpoints.Breakpoint`.

    Attributes:
        kind: the breakpoint's class, by name.
        hits_at_most: calls after so many hits are none, and pass.
        only_workers: nobody calls the target but those that the breakpoint started.
        has_target: else it only starts threads, and waits for their end.
    """

    kind: str
    target: Any
    event: str = "call"
    condition: Condition | Sequence[Condition] = None
    timeout: float = 10.0
    fire: Callable[[Call], object] | None = None
    hits_at_most: int | None = None
    only_workers: bool = False
    has_target: bool = True

    @classmethod
    def checked(  # noqa: PLR0917 - as Breakpoint has them
        cls,
        kind: str,
        target: object,
        event: str,
        condition: Condition | Sequence[Condition],
        timeout: float,
        fire: Callable[[Call], object] | Callable[[], object] | None,
    ) -> Settings:
        """Settings of what a user gave.

        Raises:
            TargetKindError: the target is none.
            ValueError: the event or the timeout is none, or there is no condition.
            TypeError: a condition is none, or ``fire`` can't be called.
        """
        places.check(target)
        check_event(event)
        check_seconds(timeout)
        Conditions(condition)
        return cls(kind, target, event, condition, timeout, _taking_a_call(fire))

    def __repr__(self) -> str:
        if not self.has_target:
            return f"{self.kind}(…)"
        return f"{self.kind}({places.describe(self.target)!r}, event={self.event!r})"

    @property
    def where(self) -> str:
        """The target and the event, in words."""
        return f"{places.describe(self.target)} at {self.event!r}"


def _taking_a_call(fire: Any) -> Callable[[Call], object] | None:
    """A function of the call, also for a ``fire`` that takes no argument; None: there is none."""
    if fire is None:
        return None
    if not callable(fire):
        message = f"fire {fire!r:.100} can't be called; give a function that takes the call"
        raise TypeError(message)
    try:
        inspect.signature(fire).bind()
    except (TypeError, ValueError):  # it needs an argument, or does not say
        return fire  # type: ignore[no-any-return]
    try:
        inspect.signature(fire).bind(None)
    except TypeError:
        return lambda _: fire()
    return fire  # type: ignore[no-any-return]


def check_event(event: object) -> None:
    """Say what is wrong with something that can be no event.

    Raises:
        ValueError: it is none of :data:`EVENTS`.
    """
    if event in {"call", "return", "error", "end", "leave"}:
        return
    if isinstance(event, str) and event.startswith("line:"):
        number = event.removeprefix("line:").removeprefix("+")
        if number.isdecimal():
            return
    message = f"event {event!r:.100} is none of {', '.join(map(repr, EVENTS))}"
    raise ValueError(message)


def check_seconds(timeout: object) -> None:
    """Say what is wrong with something that can be no timeout.

    Raises:
        ValueError: it is no number above 0.
    """
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not 0 < timeout < threading.TIMEOUT_MAX:  # type: ignore[operator]
        message = f"timeout {timeout!r:.100} is no number of seconds above 0"
        raise ValueError(message)


def seconds_of(timeout: float | None, usual: float) -> float:
    """A timeout in seconds, or the usual one.

    Raises:
        ValueError: it is none.
    """
    if timeout is None:
        return usual
    check_seconds(timeout)
    return timeout
