"""The events that a hunter query selects during one call."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from diagnose.calltrees.collector import is_ours
from diagnose.errors import (
    ExpressionNotAdmittedError,
    ExpressionSyntaxError,
    InstrumentError,
    ProbeError,
)
from diagnose.instruments.calltree import SpanInstrument

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HunterInstrument"]


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
        return _Hunt(self.query, self.max_events)

    def emit(self, name: str, value: Any, tags: Mapping[str, Any]) -> None:
        """Write the events, on lines of their own."""
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = "".join(f"\n{each}" for each in value)
        super().emit(name, value, tags)


class _Hunt:
    """One call that is traced."""

    def __init__(self, query: Any, most: int) -> None:
        self.is_last = False
        self.events: list[str] = []
        self._most = most
        self._query = query
        self._ended = False
        self._tracer = self.tracer_class()(threading_support=False)
        self._tracer.trace(self._note)

    @staticmethod
    def tracer_class() -> Any:
        """Hunter's; it is imported by whoever hunts."""
        import hunter  # noqa: PLC0415

        return hunter.Tracer

    def _note(self, event: Any) -> None:
        if self._ended or len(self.events) >= self._most:
            self._tracer.stop()
        elif not is_ours(event.filename) and self._query(event):
            source = event.source.rstrip()
            self.events.append(f"{event.module}:{event.lineno:<5} {event.kind:9} {source}")

    def finish(self) -> list[str]:
        """End tracing; what was selected."""
        self._ended = True
        self._tracer.stop()
        return self.events

    def abandon(self) -> None:
        """End tracing, from any thread: at the next event."""
        self._ended = True


def _parsed(query: object) -> Any:
    import hunter  # noqa: PLC0415

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
