"""Histograms and counters: numbers into a bounded buffer, drained in the background.

A hit appends to a deque and is done. One thread empties the deques ten times a second,
groups what it finds by tags and hands it to the manager's sinks; a sink can be slow or
broken without any probed call noticing. When more comes than a buffer holds between two
drains, the oldest values are lost, and a warning on the status says so.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from datetime import timedelta
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any, ClassVar

from diagnose.clockwork import Clockwork
from diagnose.handlers import Quiet, quietly
from diagnose.instruments.base import Instrument

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diagnose.sinks import Sink

    Tags = tuple[tuple[str, str], ...]

__all__ = ["HistogramInstrument", "IncrementInstrument"]

log = logging.getLogger(__name__)

DRAIN_SECONDS = 0.1
BUFFERED_VALUES = 1 << 18

_clockwork = Clockwork("diagnose-metrics")


class _Drain:
    """The set of instruments whose buffers are emptied in the background."""

    def __init__(self) -> None:
        self._instruments: set[_Metric] = set()
        self._lock = threading.Lock()
        self._scheduled = False
        self._process = os.getpid()

    def add(self, instrument: _Metric) -> None:
        with self._lock:
            self._instruments.add(instrument)
            if self._scheduled:
                return
            self._scheduled = True
        self._schedule()

    def _schedule(self) -> None:
        process = self._process
        _clockwork.after(DRAIN_SECONDS, lambda: self._run(process))

    def discard(self, instrument: _Metric) -> None:
        with self._lock:
            self._instruments.discard(instrument)

    def _run(self, process: int) -> None:
        if process != self._process:
            return  # a timer that a forked child has from its parent
        with self._lock:
            due = list(self._instruments)
        for instrument in due:
            instrument.flush()
        with self._lock:
            self._scheduled = bool(self._instruments)
            if not self._scheduled:
                return
        self._schedule()

    def after_fork_in_child(self) -> None:
        # The parent sends what was in the buffers. A lock may have been held by a thread
        # that does not exist here, and the fork may have come in the middle of a run.
        self._lock = threading.Lock()
        self._scheduled = False
        self._process = os.getpid()
        for instrument in list(self._instruments):
            instrument.forget()
            self.add(instrument)


_drain = _Drain()
os.register_at_fork(after_in_child=_drain.after_fork_in_child)


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


class _Metric(Instrument):
    quick: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._buffer: deque[Any] = deque(maxlen=BUFFERED_VALUES)
        # Reentrant, for a sink may take off the instrument whose values it is handed.
        self._flushing = threading.RLock()
        self._overflowed = False
        self._broken: set[int] = set()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Values that were lost, and sinks that are missing or broken."""
        found = []
        if not self.sinks:
            found.append(
                "no metric sink is configured in this process: hits are counted, values are "
                "dropped; the application has to put one into manager.sinks"
            )
        if self._broken:
            found.append("a metric sink raised, see the application's log: values are missing")
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
        self._buffer.append((as_number(value), freeze(tags)))

    def _deliver(self, tags: str, constants: dict[str, object]) -> str:
        if getattr(self.emit, "__func__", None) is not _Metric.emit:
            return super()._deliver(tags, constants)
        if not self.status.attachments:
            # Calls that were inside when it was taken off may have appended since.
            self._buffer.clear()
        constants["append"] = self._buffer.append
        constants["number"] = as_number
        if tags == "{}":
            return "C·append(E·number)"
        constants["freeze"] = freeze
        return f"C·append((E·number, C·freeze({tags})))"

    def attached(self) -> None:
        """Begin to be drained."""
        _drain.add(self)

    def detached(self) -> None:
        """Send what is left, and be drained no more."""
        _drain.discard(self)
        self.flush()

    def forget(self) -> None:
        """In a forked child: what is buffered is the parent's."""
        self._buffer.clear()
        self._flushing = threading.RLock()

    def flush(self) -> None:
        """Empty the buffer into the sinks now. Sinks' errors are logged, not raised."""
        with self._flushing, Quiet():
            buffer = self._buffer
            count = len(buffer)
            if count == 0:
                return
            self._overflowed |= count == buffer.maxlen
            # Hits go on appending at the other end meanwhile; theirs stay.
            values = list(starmap(buffer.popleft, repeat((), count)))
            self.status.drained += count
            plain = [value for value in values if type(value) is not tuple]
            groups: dict[Tags, list[float]] = {(): plain} if plain else {}
            if len(plain) != count:
                for value in values:
                    if type(value) is tuple:
                        groups.setdefault(value[1], []).append(value[0])
            for sink in self.sinks:
                self._send(sink, groups)

    def _send(self, sink: Sink, groups: Mapping[Tags, Sequence[float]]) -> None:
        try:
            for tags, values in groups.items():
                self._send_group(sink, values, dict(tags))
        except Exception:
            if id(sink) not in self._broken:
                self._broken.add(id(sink))
                log.exception("sink %r failed for %r; values are lost", sink, self)
        else:
            self._broken.discard(id(sink))

    def _send_group(self, sink: Sink, values: Sequence[float], tags: Mapping[str, str]) -> None:
        raise NotImplementedError


class HistogramInstrument(_Metric):
    """Sends every value to the sinks as a sample of a distribution.

    The value has to be a number (a ``timedelta`` counts in seconds); anything else is an
    error of the instrument.
    """

    def _send_group(self, sink: Sink, values: Sequence[float], tags: Mapping[str, str]) -> None:
        sink.histogram(self.name, values, tags)


class IncrementInstrument(_Metric):
    """Adds every value to a counter; values of one drain are summed before they are sent."""

    def _send_group(self, sink: Sink, values: Sequence[float], tags: Mapping[str, str]) -> None:
        sink.counter(self.name, sum(values), tags)
