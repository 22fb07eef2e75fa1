"""`do`: run something in a thread up to a point, look around, let it end."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from diagnose.breakpoints.breakpoint import Breakpoint, Nowhere

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType, TracebackType
    from typing import Self

    from diagnose.breakpoints.conditions import Condition
    from diagnose.breakpoints.workers import Started

__all__ = ["do"]


class do:  # noqa: N801 - a sentence begins with it
    """Run a function in a thread of its own up to a point.

    It is used by ``with``::

        with do(archive.restore, "a.txt").until("shop.archive.S3Archive.unarchive") as restoring:
            assert archive.state == "restoring"  # it stands before unarchive
        assert restoring.results == ["done"]

    On entering, the thread is started, and it is waited for until it stands at the point; on
    leaving it goes on, and its end is waited for. Its exception is raised then.

    Each of the methods and properties that say where (:meth:`until`, :meth:`beyond`,
    :meth:`error_on`, :attr:`returns`, :attr:`errors`, :meth:`where`, :attr:`once`) gives a new
    ``do``; where and how the one that it is asked of runs stays as it was. Each can be entered
    again and again, by one thread at a time.

    Attributes:
        results: what the function returned, of each run, in their order; of a run that ended by
            the error that :meth:`error_on` made, that error. The ``do`` that was given the
            function has those of all that were made from it: after ``with doing.until(…):`` look
            at ``doing.results``.
        breakpoint: the :class:`Breakpoint` of the run that was entered last, in the same way.

    Args:
        func: any callable. None: nothing is started, and entering waits for nothing: the test, or
            threads of its own, call the target.
        args, kwargs: what it is called with.
    """

    def __init__(self, func: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> None:
        self._func, self._args, self._kwargs = func, args, kwargs
        self._target: Any = None
        self._event = "call"
        self._conditions: list[Condition] = []
        self._error: BaseException | type[BaseException] | None = None
        self._timeout = 10.0
        self.results: list[Any] = []
        self.breakpoint: Breakpoint | None = None
        self._first: do = self
        self._is_once = self._is_entered = False
        self._thread: Started | None = None

    def _with(self, **changes: Any) -> Self:
        made = copy.copy(self)
        made.results, made.breakpoint, made._is_entered = [], None, False
        vars(made).update({f"_{name}": value for name, value in changes.items()})
        return made

    def _at(self, target: object, name: str | float | None, **changes: Any) -> Self:
        if isinstance(name, str):
            target = (target, name)
        elif name is not None:
            changes["timeout"] = name
        return self._with(target=target, **changes)

    # --- where ---

    def until(
        self, target: object, name: str | float | None = None, *, timeout: float | None = None
    ) -> Self:
        """Up to the call of ``target``.

        Args:
            target: a path, a function, a pair, or an object.
            name: of the object's attribute; a number counts as ``timeout``.
            timeout: see :meth:`within`.
        """
        return self._at(target, name, event="call", error=None, **_given(timeout=timeout))

    def beyond(
        self, target: object, name: str | float | None = None, *, timeout: float | None = None
    ) -> Self:
        """Past ``target``: up to where it has returned or raised. Arguments: see :meth:`until`."""
        return self._at(target, name, event="leave", error=None, **_given(timeout=timeout))

    def error_on(
        self,
        target: object,
        exception: BaseException | type[BaseException] = RuntimeError,
        timeout: float | None = None,
    ) -> Self:
        """Let the call of ``target`` raise ``exception``; nobody is held."""
        return self._with(target=target, event="call", error=exception, **_given(timeout=timeout))

    @property
    def returns(self) -> Self:
        """Not at the call of the target, but where it has returned."""
        return self._with(event="return", **self._needs_target("returns"))

    @property
    def errors(self) -> Self:
        """Not at the call of the target, but where it has raised."""
        return self._with(event="error", **self._needs_target("errors"))

    def where(self, condition: Condition | Sequence[Condition]) -> Self:
        """Only at calls that meet ``condition``; see :class:`Breakpoint`."""
        several = condition if isinstance(condition, (list, tuple)) else [condition]
        return self._with(conditions=list(several), **self._needs_target("where"))

    @property
    def once(self) -> Self:
        """Only at the first of these calls; those after it pass."""
        return self._with(is_once=True, **self._needs_target("once"))

    def within(self, timeout: float) -> Self:
        """With so many seconds for each thing that is waited for, in place of 10."""
        return self._with(timeout=timeout)

    def _needs_target(self, name: str) -> dict[str, Any]:
        if self._target is None:
            message = f"do(…).{name} says more about a point: first until(), beyond() or error_on()"
            raise TypeError(message)
        return {}

    # --- with ---

    def __enter__(self) -> Self:
        if self._is_entered:
            message = "this do is entered already; make another one for another thread"
            raise RuntimeError(message)
        made = self._make()
        made.__enter__()
        self.breakpoint = self._first.breakpoint = made
        self._is_entered = True
        try:
            if self._func is not None:
                self._thread = made.start_thread(self._func, *self._args, **self._kwargs)
                if self._target is not None:
                    made.wait()
        except BaseException as error:
            self._is_entered = False
            made.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _make(self) -> Breakpoint:
        if self._target is None:
            return Nowhere(self._timeout)
        condition = self._conditions or None
        if self._error is None:
            made = Breakpoint(self._target, self._event, condition, self._timeout)
        else:
            made = Breakpoint.error(
                self._error, self._target, self._event, condition, self._timeout
            )
        made.hits_at_most = 1 if self._is_once else None
        made.only_workers = self._func is not None
        return made

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        made, self._is_entered = self.breakpoint, False
        if made is None:
            raise AssertionError
        made.__exit__(kind, error, trace)
        thread, self._thread = self._thread, None
        if thread is not None and thread.has_ended:
            result = thread.result if thread.raised is None else thread.raised
            self.results.append(result)
            if self._first is not self:
                self._first.results.append(result)

    def release(self) -> None:
        """Let the thread go on; see :meth:`Breakpoint.release`."""
        if self.breakpoint is not None:
            self.breakpoint.release()

    @property
    def stackframe(self) -> FrameType | None:
        """The frame in which the thread stands, or None."""
        return None if self.breakpoint is None else self.breakpoint.stackframe


def _given(**changes: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in changes.items() if value is not None}
