"""Metrics as lines of text."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["StreamSink", "counter_line", "histogram_line"]


class Writable(Protocol):
    """A text stream, as far as it is used here."""

    def write(self, text: str, /) -> object: ...


class StreamSink:
    """Writes one line for each batch to a text stream.

    The stream stays its owner's: it is neither flushed nor closed.

    Args:
        out: anything with ``write(text)``; None: what ``sys.stderr`` is at that time.

    Example:
        >>> import sys
        >>> sink = StreamSink(sys.stdout)
        >>> sink.histogram("cart.checkout", [0.25, 0.75], {"tier": "gold"})
        Metric (cart.checkout)[tags={'tier': 'gold'}] count=2 min=0.25 mean=0.5 max=0.75
        >>> sink.counter("cart.items", 3, {})
        Metric (cart.items)[tags={}] total=3
    """

    def __init__(self, out: Writable | None = None) -> None:
        self.out = out

    def histogram(self, name: str, values: Sequence[float], tags: Mapping[str, object]) -> None:
        """Write count, least, mean and greatest value."""
        self.write(histogram_line(name, values, tags) + "\n")

    def counter(self, name: str, total: float, tags: Mapping[str, object]) -> None:
        """Write what the counter has grown by."""
        self.write(counter_line(name, total, tags) + "\n")

    def write(self, text: str) -> int:
        """Write text as it is, so that the sink can serve as a `LogInstrument`'s ``out``."""
        # sys.stderr is None in a process without one (pythonw, some daemons).
        out = self.out if self.out is not None else sys.stderr
        if out is not None:
            out.write(text)
        return len(text)

    def close(self) -> None:
        """Do nothing: the stream is its owner's."""


def histogram_line(name: str, values: Sequence[float], tags: Mapping[str, object]) -> str:
    """Describe a batch of samples in one line, without a line end.

    What is not finite (or too large for a float) is counted apart, as ``not_finite``.
    """
    finite = [float(value) for value in values if is_finite(value)]
    line = f"{_head(name, tags)} count={len(finite)}"
    if finite:
        # Dividing first: the sum of finite floats may be infinite.
        mean = math.fsum(value / len(finite) for value in finite)
        line += f" min={min(finite):.6g} mean={mean:.6g} max={max(finite):.6g}"
    if len(finite) != len(values):
        line += f" not_finite={len(values) - len(finite)}"
    return line


def counter_line(name: str, total: float, tags: Mapping[str, object]) -> str:
    """Describe the growth of a counter in one line, without a line end."""
    return f"{_head(name, tags)} total={total}"


def is_finite(value: float) -> bool:
    """Whether a number is one that every backend takes: finite, and in a float's range."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond a float's range
        return False


def _head(name: str, tags: Mapping[str, object]) -> str:
    # The form of LogInstrument's lines, so that one pattern reads both.
    return f"Metric ({name})[tags={dict(tags)}]".replace("\n", "\\n")
