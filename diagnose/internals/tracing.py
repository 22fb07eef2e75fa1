"""``end`` by a hunter tracer around each call: the last resort.

It works for plain functions where neither monitoring nor injection can be armed. It is
slow (the tracer sees every line of the call and of what it calls), and the call has one
visible frame more; the probe's status says so.
"""

from __future__ import annotations

import inspect
from functools import wraps
from typing import TYPE_CHECKING, Any

import hunter

from diagnose.errors import ProbeError
from diagnose.trampoline import copy_function

if TYPE_CHECKING:
    from types import CodeType, FunctionType

    from diagnose.internals import Fire, Watch

__all__ = ["make"]

_KINDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class TracingWatch:
    """See :class:`diagnose.internals.Watch`."""

    sees_errors = True
    coverage: str | None = (
        "watched inside by a tracer: calls are tens of times slower while it is armed"
    )

    def __init__(self, function: FunctionType, code: CodeType) -> None:
        self._fire: Fire | None = None
        body = copy_function(function, code.replace())
        watched = body.__code__

        def at_return(event: Any) -> None:
            fire = self._fire
            if fire is not None:
                fire(event.locals)

        def traced(*args: Any, **kwargs: Any) -> Any:
            if self._fire is None:
                return body(*args, **kwargs)
            only = hunter.When(
                lambda event: event.kind == "return" and event.code is watched, at_return
            )
            with hunter.trace(only, threading_support=False):
                return body(*args, **kwargs)

        original: Any = wraps(body)(traced)
        self.original: FunctionType = original

    def arm(self, fire: Fire) -> None:
        self._fire = fire

    def disarm(self) -> None:
        self._fire = None


def make(function: FunctionType, code: CodeType) -> Watch:
    """Make a watch; raises ProbeError for generators and coroutines."""
    if code.co_flags & _KINDS:
        message = (
            f"the inside of {function!r} can't be watched: a tracer serves plain functions only; "
            "use the event 'return'"
        )
        raise ProbeError(message, code="end-unavailable")
    return TracingWatch(function, code)
