"""Where threads that take turns stop, and what is said of it."""

from __future__ import annotations

import reprlib
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

from diagnose.breakpoints import stops
from diagnose.breakpoints.locks import RUNNERS
from diagnose.breakpoints.stacks import short
from diagnose.reentrancy import BUSY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

__all__ = ["Names", "Point", "Told", "name_of", "plain"]

_ident = threading.get_ident

Told: TypeAlias = tuple[str, tuple[str, int] | None]
"""What is said of a point that a thread came to, and the file and line that show where."""


class Point(stops.Stops):
    """A point at which the threads of a run stop; others pass."""

    def __init__(self, target: str | tuple[object, str], event: str) -> None:
        super().__init__(target, event, None, 1.0, None)

    @property
    def namespace(self) -> dict[str, Any]:
        """The namespace of its function's module; empty while it is not put on."""
        function = self._place.function(self.event) if self._place is not None else None
        return {} if function is None else function.__globals__

    def put_on(self) -> None:
        """Begin to stop threads.

        Raises:
            DiagnoseError: there is no such function, or event in it.
        """
        self._put_on(takes_tasks=False)

    def take_off(self) -> None:
        """Put back what was there before; idempotent."""
        self._take_off()

    def _reach(
        self,
        args: tuple[Any, ...],
        kwargs: Any,
        frame: FrameType,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> Awaitable[None]:
        ident = _ident()
        runner = RUNNERS.get(ident)
        if runner is not None and ident not in BUSY:
            self.calls += 1  # the threads take turns
            runner.stop_at(self._told(runner.names, args, kwargs, frame, result, exception))
        return stops._PASSES

    def _told(  # noqa: PLR0917 - what a hook gets
        self,
        names: Names,
        args: tuple[Any, ...],
        kwargs: Any,
        frame: FrameType,
        result: Any,
        exception: BaseException | None,
    ) -> Told:
        """What is said of it, and the file and line that show where."""
        name = self._name
        if self.event.startswith("line:"):
            return f"a line of {name}()", (frame.f_code.co_filename, frame.f_lineno)
        back = frame.f_back
        caller = None if back is None else (back.f_code.co_filename, back.f_lineno)
        if self.event == "call":
            given = [names.shown(each) for each in args]
            if isinstance(kwargs, dict):
                given += [f"{key}={names.shown(each)}" for key, each in kwargs.items()]
            return f"the call {name}({', '.join(given)})", caller
        if self.event == "end":
            return f"the end of {name}()", caller
        if exception is not None:
            return f"{name}() raising {type(exception).__name__}", caller
        return f"{name}() returning {names.shown(result)}", caller


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
    """What a callable is called, and where it is."""
    name = plain(getattr(function, "__qualname__", type(function).__qualname__))
    code = getattr(function, "__code__", None)
    return name if code is None else f"{name} ({short(code.co_filename)}:{code.co_firstlineno})"
