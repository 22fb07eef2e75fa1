"""The events that a hunter query selects during one call."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from diagnose.calltrees.callbacks import contained
from diagnose.calltrees.collector import is_ours
from diagnose.errors import (
    ExpressionNotAdmittedError,
    ExpressionSyntaxError,
    InstrumentError,
    ProbeError,
)
from diagnose.instruments.calltree import SpanInstrument
from diagnose.interrupts import belongs_to_program

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HunterInstrument"]

# Taken now: one of them may itself be probed.
_gettrace, _settrace = sys.gettrace, sys.settrace


class HunterInstrument(SpanInstrument):
    """Writes the events that a query of hunter selects while one call runs, a line for each.

    The query is Python, such as ``"Q(module_startswith='shop', kind='call')"``, with the names of
    hunter (https://python-hunter.readthedocs.io) and nothing else; so it needs the policy
    ``"python"``, which a spec gets only where the application gives it. While the call runs, all
    of its thread is traced: it is tens of times slower.

    The value is an expression in which ``events`` is a list of texts.

    Args:
        query: selects events; its actions are run too.
        max_events: after so many, the rest of the call is not traced.

    Raises:
        ExpressionNotAdmittedError: the policy is another one.
        ExpressionSyntaxError: the query is none.
        InstrumentError: code ``not-installed``: hunter is not, which the extra ``hunter`` brings.
    """

    made = "events"
    MAX_CHARS = 100_000

    def __init__(
        self,
        name: str,
        value: str = "events",
        *args: Any,
        query: Any = "Q(kind='call')",
        max_events: Any = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, value, *args, **kwargs)
        if self.policy != "python":
            message = (
                "a hunter query runs any Python, which the policy for specs does not admit; only "
                "the application can: expression_policy='python'"
            )
            raise ExpressionNotAdmittedError(message)
        if not isinstance(max_events, int) or isinstance(max_events, bool) or max_events < 1:
            message = f"max_events is {max_events!r:.200}; it has to be a whole number from 1 on"
            raise InstrumentError(message, code="wrong-type")
        self.query = _parsed(query)
        self.max_events = max_events

    def begin(self, frame: Any) -> Any:
        """See :meth:`SpanInstrument.begin`."""
        if sys.gettrace() is not None:
            if isinstance(sys.gettrace(), _Hunt.tracer_class()):
                return None  # a hunt within a hunt
            message = (
                f"another tracer is active in this thread ({sys.gettrace()!r:.100}): a debugger, or "
                "coverage; it would be switched off for the call"
            )
            raise ProbeError(message, code="hunter-unavailable")
        return _Hunt(self.query, self.max_events, frame)

    def emit(self, name: str, value: Any, tags: Mapping[str, Any]) -> None:
        """Write the events, on lines of their own."""
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = "".join(f"\n{each}" for each in value)
        super().emit(name, value, tags)


class _Hunt:
    """One call that is traced."""

    def __init__(self, query: Any, most: int, frame: Any) -> None:
        self.is_last = False
        self.error: BaseException | None = None
        self.made: list[str] = []
        self._theirs: BaseException | None = None  # what is raised when the call ends
        self._most = most
        self._query = query
        self._frame = frame
        self._ended = False
        self._tracer = self.tracer_class()(threading_support=False)
        # It would print what comes out of its callback, and go on: nothing does.
        self._tracer.trace(contained(self._note, self._fail, belongs=_is_kept))

    @staticmethod
    def tracer_class() -> Any:
        """Hunter's."""
        return _hunter().Tracer

    def _note(self, event: Any) -> None:
        if self._ended or len(self.made) >= self._most:
            self._leave_thread()
        elif not is_ours(event.filename) and self._query(event):
            source = event.source.rstrip()
            self.made.append(f"{event.module}:{event.lineno:<5} {event.kind:9} {source}")

    def _fail(self, error: BaseException) -> None:
        self._ended = True
        if belongs_to_program(error):
            self._theirs = error
        else:
            self.error = error

    def _leave_thread(self) -> None:
        # Not by its `stop`: that takes off whatever is there, also what the program has set
        # meanwhile. And so does one that was stopped, at the next line of a frame it has seen.
        if _gettrace() is self._tracer:
            _settrace(None)

    def end(self) -> None:
        """End tracing, in the thread of the call."""
        self._ended = True
        frame, self._frame = self._frame, None
        if frame is not None and frame.f_trace is self._tracer:
            frame.f_trace = None
        self._leave_thread()
        if self._theirs is not None:
            raise self._theirs

    def abandon(self) -> None:
        """End tracing, from any thread: at the next event."""
        self._ended = True


def _is_kept(_error: BaseException) -> bool:
    """Nothing is raised at once."""
    return False


def _hunter() -> Any:
    """The package, which comes with an extra: where it is installed, each start of Python pays."""
    try:
        import hunter  # noqa: PLC0415
    except ImportError as error:
        message = (
            f"an instrument of type 'hunter' needs the package hunter ({error}): "
            "pip install 'diagnose-mongo[hunter]'"
        )
        raise InstrumentError(message, code="not-installed") from error
    return hunter


def _parsed(query: object) -> Any:
    hunter = _hunter()
    if not isinstance(query, str):
        message = f"a hunter query has to be text, not {query!r:.200}"
        raise ExpressionSyntaxError(message)
    names = {name: getattr(hunter, name) for name in hunter.__all__}
    try:
        found = eval(query, {"__builtins__": {}}, names)  # noqa: S307  (the policy is "python")
    except Exception as error:
        message = (
            f"the hunter query {query!r:.200} can't be used: {type(error).__name__}: {error}; write "
            "one such as \"Q(module_startswith='shop', kind='call')\""
        )
        raise ExpressionSyntaxError(message) from error
    if not callable(found):
        message = (
            f"the hunter query {query!r:.200} is a {type(found).__name__}, which selects nothing"
        )
        raise ExpressionSyntaxError(message)
    return found
