"""A call at a breakpoint: its arguments and thread, and how it is shown in messages."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diagnose.reentrancy import Quiet

if TYPE_CHECKING:
    import threading
    from types import FrameType

__all__ = ["Call", "ChildThread", "said", "shown"]

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


@dataclass(frozen=True, slots=True)
class ChildThread:
    """The thread of a forked child that made a call, as its parent knows it.

    Attributes:
        pid: of the child.
        thread_name: of its thread.
    """

    pid: int
    thread_name: str

    @property
    def name(self) -> str:
        """Both, in words."""
        return f"{self.thread_name} of process {self.pid}"


@dataclass(eq=False)
class Call:
    """A call of a breakpoint's target, as it got to the breakpoint.

    Attributes:
        name: of the function.
        args: positional arguments, those given by keyword included; a method's first is ``self``.
        kwargs: keyword-only ones, and those of ``**``.
        thread: that it was made in; of one in a forked child: its ``name`` and ``pid``. From there
            come plain values (numbers, texts, containers of these) as they are; of others, texts.
        number: its place among the calls since the breakpoint was entered; the first is 1 (whereas
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
