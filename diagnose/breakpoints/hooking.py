"""The hook on a breakpoint's function: found, put on, taken off again."""

from __future__ import annotations

import inspect
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

from diagnose.breakpoints import places
from diagnose.breakpoints.blocked import PASSES
from diagnose.bytecode.weaving import Hook, Parameters
from diagnose.reentrancy import BUSY
from diagnose.registry import Hooked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType, FunctionType

__all__ = ["Hooking", "Reach"]

_getframe, _ident = sys._getframe, threading.get_ident
_AWAITED = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Reach(Protocol):
    """Serves a call that got to the event, in its thread; the function raises what it raises."""

    def __call__(
        self,
        args: tuple[Any, ...],
        kwargs: Any,
        frame: FrameType,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> Awaitable[None]:
        """The result is awaited where the hook was put on so."""


class Hooking:
    """Has every call of a target that gets to an event served.

    Made anew for each time that it is put on. It is used by one thread; an interrupt may come at
    any moment, and then :meth:`take_off` finds all there is to undo.
    """

    def __init__(self, target: Any, event: str) -> None:
        self._target, self._event = target, event
        self._place: places.Place | None = None
        self._hooked: Hooked | None = None
        self._quiet_in: int | None = None  # this thread, if no instrument was at work there

    @property
    def is_on(self) -> bool:
        """Whether it was put on, and not taken off since."""
        return self._hooked is not None

    def _function(self) -> FunctionType | None:
        return None if self._place is None else self._place.function(self._event)

    @property
    def is_awaited(self) -> bool:
        """Whether the function is a coroutine function."""
        function = self._function()
        return function is not None and bool(function.__code__.co_flags & _AWAITED)

    @property
    def namespace(self) -> dict[str, Any]:
        """That of the function's module; empty: it has none, or is not found."""
        function = self._function()
        return {} if function is None else function.__globals__

    @property
    def name(self) -> str:
        """The function's; empty: it is not found."""
        return "" if self._place is None else self._place.target.name

    @property
    def signature(self) -> inspect.Signature | None:
        """The function's, if it has one that can be read."""
        return None if self._place is None else self._place.signature(self._event)

    def find(self) -> None:
        """Find the function, or put one there.

        Raises:
            DiagnoseError: there is no such function.
        """
        ident = _ident()
        self._quiet_in = None if ident in BUSY else ident
        # It is kept before it does anything, so that an interrupt at any moment finds it.
        self._place = places.place_of(self._target)
        self._place.put_on()

    def put_on(self, reach: Reach, *, awaits: bool = False) -> None:
        """Put the hook on the function that was found.

        Args:
            reach: serves the calls.
            awaits: have the function, a coroutine's, await what that returns.

        Raises:
            DiagnoseError: there is no such event in it.
        """
        if self._place is None:
            raise AssertionError
        event = {"error": "return", "leave": "return"}.get(self._event, self._event)
        handler, names = self._handler(event, reach)
        hook = Hook(handler, names, may_raise=True, awaits=awaits)
        self._hooked = Hooked(self._place.target, event, hook)
        self._hooked.put_on()

    def take_off(self) -> None:
        """Put back what was there before; idempotent."""
        try:
            if self._hooked is not None:
                self._hooked.take_off()
                self._hooked = None
        finally:
            if self._place is not None:
                self._place.undo()
                self._place = None

    def end_quiet(self) -> None:
        """An interrupt may have kept a ``Quiet`` of this thread from ending."""
        if self._quiet_in is not None:
            BUSY.discard(self._quiet_in)

    def _handler(self, event: str, reach: Reach) -> tuple[Callable[..., object], tuple[str, ...]]:
        """The handler of an event, and the names of its arguments."""
        if event == "call":

            def at_call(args: Any, kwargs: Any) -> object:
                return reach(args, kwargs, _getframe(1))

            return at_call, ("args", "kwargs")
        if event == "return":
            which = self._event

            def at_end(args: Any, kwargs: Any, result: Any, exception: Any) -> object:
                if which != "leave" and (exception is None) is not (which == "return"):
                    return PASSES
                return reach(args, kwargs, _getframe(1), result, exception)

            return at_end, ("args", "kwargs", "result", "exception")

        def inside() -> object:
            frame = _getframe(1)
            return reach(*_arguments(frame), frame)

        return inside, ()


def _arguments(frame: FrameType) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments, from the frame's variables as they are now; a deleted one is None."""
    parameters, variables = Parameters.of(frame.f_code), frame.f_locals
    args = tuple(variables.get(name) for name in parameters.positional)
    kwargs = {name: variables.get(name) for name in parameters.keyword_only}
    if parameters.star is not None:
        args += tuple(variables.get(parameters.star) or ())
    if parameters.double_star is not None:
        kwargs.update(variables.get(parameters.double_star) or {})
    return args, kwargs
