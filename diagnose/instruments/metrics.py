"""Histograms and counters: numbers into a bounded buffer, drained in the background.

A hit appends to a deque and is done. One thread empties the deques ten times a second,
groups what it finds by tags and hands it to the manager's sinks; a sink can be slow or
broken, or hang, without any probed call noticing, nor a thread that takes an instrument off. When
more comes than a buffer holds between two drains, the oldest values are lost, and a warning on
the status says so.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from datetime import timedelta
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any

from diagnose import forking
from diagnose.clockwork import Clockwork
from diagnose.forking import Layer
from diagnose.handlers import Append
from diagnose.instruments.base import Instrument
from diagnose.reentrancy import Quiet, quietly

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from diagnose.bytecode.weaving import Hook
    from diagnose.handlers import Delivery
    from diagnose.sinks import Sink

    Tags = tuple[tuple[str, str], ...]

__all__ = ["HistogramInstrument", "IncrementInstrument"]

log = logging.getLogger(__name__)

DRAIN_SECONDS = 0.1
BUFFERED_VALUES = 1 << 18
SETTLE_SECONDS = 1.0
"""How long a thread that takes instruments off waits for sinks, at most. A sink that takes longer is
not waited for again until it has come to an end."""
HANGS_AFTER_SECONDS = 5.0

_clockwork = Clockwork("diagnose-metrics", Quiet)

# Taken now: they may themselves be probed, and then their modules have stand-ins for them.
_ident, _clock = threading.get_ident, time.monotonic
_schedule = _clockwork.after


class _Drain:
    """The set of instruments whose buffers are emptied in the background.

    Whatever a sink is handed it is handed in that one thread, and nobody else waits for a sink
    for longer than :data:`SETTLE_SECONDS`.
    """

    def __init__(self) -> None:
        self._instruments: set[_Metric] = set()
        self._turn: object = None
        # What instruments that were taken off have left: how many values, and what sends them.
        self._left: deque[tuple[int, Callable[[], None]]] = deque()
        self._is_stuck = False
        self._broken: dict[int, Sink] = {}
        self._entered: float | None = None

    def add(self, instrument: _Metric) -> None:
        """Empty its buffers from now on."""
        self._instruments.add(instrument)
        if self._turn is None:
            self._take_turns()

    def discard(self, instrument: _Metric) -> None:
        """Leave them alone."""
        self._instruments.discard(instrument)

    def _take_turns(self) -> None:
        # Of several that begin at once the last one goes on; and so ends, in a forked child,
        # what the parent began.
        turn = self._turn = object()
        _schedule(DRAIN_SECONDS, lambda: self._run(turn))

    def _run(self, turn: object) -> None:
        if turn is not self._turn:
            return
        try:
            for instrument in list(self._instruments):
                self.send(instrument, instrument.take())
        finally:
            self._turn = None
            if self._instruments:
                self._take_turns()

    def hand_over(self, instrument: _Metric) -> None:
        """Take what is in its buffers now, and send it soon."""
        values = instrument.take()
        if not values:
            return
        if self.is_here():  # a sink took the instrument off, or wants its values
            self.send(instrument, values)
            return
        self._left.append((len(values), lambda: self.send(instrument, values)))
        _schedule(0, self._send_left)

    def _send_left(self) -> None:
        if self._left:  # not so in a forked child: what the parent had left is the parent's
            try:
                self._left[0][1]()
            finally:
                self._left.popleft()

    def settle(self) -> None:
        """Wait until what was handed over is sent, for a short time at most."""
        # A thread that waited in vain has said so; until that is over no other one waits.
        if not self._left or self._is_stuck:
            return

        def settled() -> None:
            self._is_stuck = False

        if not _clockwork.settle(SETTLE_SECONDS, settled):
            self._is_stuck = True
            log.warning(
                "a metric sink has not come to an end within %g s: %d values of instruments that "
                "were taken off wait for it, and are lost if the program ends before it does",
                SETTLE_SECONDS,
                sum(count for count, _ in list(self._left)),
            )

    def is_here(self) -> bool:
        """Whether this is the drain's own thread."""
        thread = _clockwork.thread
        return thread is not None and thread.ident == _ident()

    @property
    def hangs(self) -> bool:
        """Whether a sink has not come to an end for a while."""
        entered = self._entered
        return entered is not None and _clock() - entered > HANGS_AFTER_SECONDS

    def send(self, instrument: _Metric, values: list[Any]) -> None:
        """Hand values to the sinks. What these raise is logged, once for each."""
        if not values:
            return
        plain = [value for value in values if type(value) is not tuple]
        groups: dict[Tags, list[float]] = {(): plain} if plain else {}
        for value in values if len(plain) != len(values) else ():
            if type(value) is tuple:
                groups.setdefault(value[1], []).append(value[0])
        for sink in list(instrument.sinks):
            self._entered = _clock()
            try:
                for tags, batch in groups.items():
                    instrument.send_group(sink, batch, dict(tags))
            except BaseException:
                instrument.broken.add(id(sink))
                if id(sink) not in self._broken:
                    self._broken[id(sink)] = sink
                    log.exception("sink %r failed for %r; values are lost", sink, instrument)
            else:
                if id(sink) in instrument.broken:
                    instrument.broken.discard(id(sink))
                    if not any(id(sink) in each.broken for each in list(self._instruments)):
                        self._broken.pop(id(sink), None)
            finally:
                self._entered = None

    def after_fork_in_child(self) -> None:
        """Begin anew: the parent sends what was in the buffers."""
        self._left, self._is_stuck, self._entered = deque(), False, None
        for instrument in list(self._instruments):
            instrument.forget()
        self._turn = None
        if self._instruments:
            self._take_turns()


_drain = _Drain()
forking.register(Layer.STATE, in_child=_drain.after_fork_in_child)


def settle() -> None:
    """Wait, for a second at most, until the sinks have what was left of what was taken off."""
    _drain.settle()


def as_number(value: Any) -> float:
    """Make a metric's value a float or int.

    Raises:
        TypeError: it is no number.
    """
    kind = type(value)
    if kind is float or kind is int:
        return value  # type: ignore[no-any-return]
    # All else may run code of its class; a handler calls this before it is quiet itself.
    return quietly(_made_number, value, kind)


def _made_number(value: Any, kind: type) -> float:
    if issubclass(kind, timedelta):
        return timedelta.total_seconds(value)
    if not issubclass(kind, str | bytes) and hasattr(kind, "__float__"):
        return int(value) if issubclass(kind, int) else float(value)
    message = (
        f"the value is {value!r:.100} ({kind.__name__}), and a metric needs a number; "
        'change `value`, or leave such calls out with `when` (such as "exception is None")'
    )
    raise TypeError(message)


def freeze(tags: Mapping[Any, Any]) -> Tags:
    """Make tags text at the hit, so that nothing they refer to is kept alive."""
    return tuple(sorted([(str(key), str(value)) for key, value in tags.items()]))


class _Buffer:
    """The values of the hits of one attachment, as long as anybody may append to it.

    Attributes:
        values: what was not drained yet.
    """

    __slots__ = ("_append", "_is_closed", "values")

    def __init__(self, values: deque[Any], append: Callable[[Any], None]) -> None:
        self.values = values
        # Handlers hold it, and nobody else: when they are gone, so is it.
        self._append = weakref.ref(append)
        self._is_closed = False

    @property
    def is_live(self) -> bool:
        """Whether what comes in from now on counts."""
        return not self._is_closed and self._append() is not None

    def close(self, append: object) -> None:
        """Let nothing count any more that comes in by this way."""
        self._is_closed = self._is_closed or self._append() is append


class _Metric(Instrument):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._emitted: deque[Any] = deque(maxlen=BUFFERED_VALUES)
        self._buffers: list[_Buffer] = []
        self._taking = threading.RLock()
        self._overflowed = False
        self.broken: set[int] = set()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Values that were lost, and sinks that are missing or broken."""
        found = []
        if not self.sinks:
            found.append(
                "no metric sink is configured in this process: hits are counted, values are "
                "dropped; the application has to put one into manager.sinks"
            )
        if self.broken:
            found.append("a metric sink raised, see the application's log: values are missing")
        if _drain.hangs:
            found.append(
                "a metric sink does not come to an end: values wait for it, and the oldest of "
                "them get lost"
            )
        if self._overflowed:
            found.append(
                f"more than {BUFFERED_VALUES} values came within {DRAIN_SECONDS} s: "
                "the oldest were dropped"
            )
        return tuple(found)

    def emit(self, name: str, value: Any, tags: Mapping[str, Any]) -> None:
        """Put one value into the buffer.

        Raises:
            TypeError: it is no number.
        """
        self._emitted.append((as_number(value), freeze(tags)))

    def _delivery(self) -> Delivery:
        if not self.status.attachments:
            # Calls that were inside when it was taken off may have emitted since.
            self._emitted.clear()
        if getattr(self.emit, "__func__", None) is not _Metric.emit:
            return super()._delivery()
        # A buffer of its own: what still appends when this attachment has ended (calls that are
        # inside, copies of the function's code) appends to what nobody reads any more.
        values: deque[Any] = deque(maxlen=BUFFERED_VALUES)
        append = values.append
        self._buffers.append(_Buffer(values, append))
        return Append(append, as_number, freeze)

    def attached(self) -> None:
        """Begin to be drained."""
        _drain.add(self)

    def disarmed(self, hook: Hook) -> None:
        """Let no more values come by a hook whose function appends to a buffer by itself."""
        if hook.quick is not None:
            for buffer in list(self._buffers):
                buffer.close(hook.quick[0])

    def detached(self) -> None:
        """Hand over what is left, and be drained no more."""
        _drain.discard(self)
        with Quiet():
            _drain.hand_over(self)

    def forget(self) -> None:
        """In a forked child: what is buffered is the parent's."""
        self._taking = threading.RLock()
        for values in self._sources():
            values.clear()

    def flush(self) -> None:
        """Bring what is buffered to the sinks, and wait for that for a second at most."""
        with Quiet():
            _drain.hand_over(self)
            _drain.settle()

    def _sources(self) -> list[deque[Any]]:
        return [self._emitted, *(buffer.values for buffer in list(self._buffers))]

    def take(self) -> list[Any]:
        """Empty the buffers; those that nothing comes in by any more are dropped."""
        taken: list[Any] = []
        with self._taking:
            dead = [buffer for buffer in self._buffers if not buffer.is_live]
            for values in self._sources():
                count = len(values)
                self._overflowed |= count == values.maxlen
                # Hits go on appending at the other end meanwhile; theirs stay.
                taken += starmap(values.popleft, repeat((), count))
                if values is not self._emitted:  # those were counted at the hit
                    self.status.drained += count
            for buffer in dead:
                self._buffers.remove(buffer)
        return taken

    def send_group(self, sink: Sink, values: Sequence[float], tags: Mapping[str, str]) -> None:
        """Hand a batch of values with the same tags to a sink."""
        raise NotImplementedError


class HistogramInstrument(_Metric):
    """Sends every value to the sinks as a sample of a distribution.

    The value has to be a number (a ``timedelta`` counts in seconds); anything else is an
    error of the instrument.
    """

    def send_group(self, sink: Sink, values: Sequence[float], tags: Mapping[str, str]) -> None:
        """See :class:`_Metric`."""
        sink.histogram(self.name, values, tags)


class IncrementInstrument(_Metric):
    """Adds every value to a counter; values of one drain are summed before they are sent."""

    def send_group(self, sink: Sink, values: Sequence[float], tags: Mapping[str, str]) -> None:
        """See :class:`_Metric`."""
        sink.counter(self.name, sum(values), tags)
