"""The calls below one call, and the events that a hunter query selects in it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from diagnose import calltrees
from diagnose.calltrees import CallTree
from diagnose.calltrees.collector import Options
from diagnose.errors import InstrumentError
from diagnose.handlers import Span
from diagnose.instruments.log import LogInstrument
from diagnose.interrupts import belongs_to_program
from diagnose.limits import Limits
from diagnose.reentrancy import BUSY

if TYPE_CHECKING:
    from collections.abc import Callable

    from diagnose.handlers import Plan, Watch

__all__ = ["CallTreeInstrument", "SpanInstrument"]


class SpanInstrument(LogInstrument):
    """Watches from the begin of a call to its end, and writes what it saw.

    ``when`` and the limits are decided at the begin, before anything is watched. At most one
    call a second is, unless ``limits`` says otherwise.
    """

    default_limits: ClassVar[Limits] = Limits(rate=1)
    longest_seconds: ClassVar[float | None] = 0.5
    made: ClassVar[str]
    """What expressions call the thing that was made of a call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.acts:
            message = (
                f"{type(self).__name__} watches a whole call, and can't act on it; leave out 'acts'"
            )
            raise InstrumentError(message)
        if self.event != "return":
            message = (
                f"{type(self).__name__} watches a whole call: its event has to be 'return', not "
                f"{self.event!r}"
            )
            raise InstrumentError(message, code="unknown-event")

    def plan(
        self,
        probe: Any,
        fail: Callable[[BaseException], bool],
        done: Callable[[], None],
        watch: Watch | None = None,
    ) -> Plan:
        """See :meth:`Instrument.plan`."""
        running = _Running(self.begin, fail)
        span = Span(running.begin, running.finish, self.made, running.abandon)
        return replace(super().plan(probe, fail, done, watch), span=span)

    def begin(self, frame: Any) -> Any:
        """Begin to watch the call of ``frame``; None: not this one.

        Returns:
            An object with ``is_last``, which is for others to set; ``end()``, called in the thread
            of the call; ``abandon()``, called from any thread instead; ``made``, what it has seen;
            and ``error``, what went wrong meanwhile, or None.
        """
        raise NotImplementedError


class _Running:
    """The calls that are being watched for one handler.

    No lock: a signal handler, or a child of a fork, may come here in the middle. What is done
    to the set is one atomic call each time.
    """

    __slots__ = ("_begin", "_calls", "_fail", "_is_over")

    def __init__(self, begin: Callable[[Any], Any], fail: Callable[[Any], object]) -> None:
        self._begin = begin
        self._fail = fail
        self._calls: set[Any] = set()
        self._is_over = False

    def begin(self, frame: Any) -> Any:
        call = None
        with _Served(self._fail):
            call = self._begin(frame)
        if call is not None:
            self._calls.add(call)
            if self._is_over:  # it was abandoned meanwhile
                self.abandon()
                return None
        return call

    def finish(self, call: Any) -> object:
        # Probes are silent: what is called here holds locks that a begin would wait for.
        ident = threading.get_ident()
        is_outermost = ident not in BUSY
        try:
            BUSY.add(ident)
            self._calls.discard(call)
            is_ended = False
            try:
                with _Served(self._fail):
                    call.end()
                    is_ended = True
            finally:
                if not is_ended:
                    with _Served(self._fail):
                        call.abandon()
            if call.error is not None:
                self._fail(call.error)
            return call.made
        finally:
            if is_outermost:
                BUSY.discard(ident)

    def abandon(self) -> None:
        self._is_over = True
        while self._calls:
            try:
                call = self._calls.pop()
            except KeyError:  # it came to its end, or another thread was first
                return
            with _Served(self._fail):
                call.abandon()


class _Served:
    """A context that no error leaves but the program's; others are told of."""

    __slots__ = ("_fail",)

    def __init__(self, fail: Callable[[Any], object]) -> None:
        self._fail = fail

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if error is None or belongs_to_program(error):
            return False
        self._fail(error)
        return True


class CallTreeInstrument(SpanInstrument):
    """Writes which functions a call called, how often, and how long that took, as a tree.

    The value is an expression in which ``tree`` is a :class:`~diagnose.calltrees.CallTree`
    (``tree.data()`` is nested dicts). Only Python functions are seen, and only those that the
    call's own thread runs. While a call is watched, what it calls is some microseconds a call
    slower.

    Args:
        depth: how many levels of calls.
        min_ms: branches that took less in all, in milliseconds, are left out.
        modules: names of modules or packages; only their functions are shown. None: all.

    Raises:
        InstrumentError: one of them makes no sense.
    """

    made = "tree"
    MAX_CHARS = 20_000

    def __init__(
        self,
        name: str,
        value: str = "tree",
        *args: Any,
        depth: Any = 10,
        min_ms: Any = 0.0,
        modules: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, value, *args, **kwargs)
        given: list[Any] = [modules] if isinstance(modules, str) else list(modules or ())
        for field, value_, fits, wanted in (
            ("depth", depth, isinstance(depth, int) and 1 <= depth <= _DEEPEST, "1 to 100 levels"),
            ("min_ms", min_ms, isinstance(min_ms, int | float) and min_ms >= 0, "milliseconds"),
            ("modules", modules, all(isinstance(each, str) for each in given), "names of modules"),
        ):
            if not fits or isinstance(value_, bool):
                message = f"a call tree's {field} is {value_!r:.200}; it has to be {wanted}"
                raise InstrumentError(message, code="wrong-type")
        self.options = Options(depth, min_ms / 1e3, tuple(given))

    def begin(self, frame: Any) -> Any:
        """See :meth:`SpanInstrument.begin`."""
        return calltrees.begin(self.options, frame)

    def emit(self, name: str, value: Any, tags: Any) -> None:
        """Write the tree, on lines of its own."""
        text = f"\n{value}" if isinstance(value, CallTree) else value
        super().emit(name, text, tags)


_DEEPEST = 100
