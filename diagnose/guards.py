"""Guards: how often an instrument may fire, checked before anything is captured.

A hit that is turned away costs a comparison or two. Nothing here takes a lock on the way:
tokens are handed out by an iterator, whose ``next`` is one atomic C call, so that N tokens
make exactly N hits however many threads ask. Without the GIL :func:`itertools.repeat` gives out
too many, or goes on for ever; there a :class:`itertools.count`, which is atomic, is cut off.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from dataclasses import dataclass
from itertools import chain, count, repeat, takewhile
from typing import TYPE_CHECKING

from diagnose.errors import InstrumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Allotment", "Limits", "Rate", "hit_tokens"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a user may set, per instrument and process.

    Attributes:
        rate: hits a second at most (below 1: one hit in ``1 / rate`` seconds); None: any.
        sample: the share of hits to take, above 0 and up to 1; None: all.
        hits: how many hits altogether; then the instrument is done; None: any.
        fleet_hits: how many hits in all processes together; what asks for them is the
            manager's business. In a process without a fleet it is the same as ``hits``.

    Raises:
        InstrumentError: code ``bad-limit``: one of them makes no sense.
    """

    rate: float | None = None
    sample: float | None = None
    hits: int | None = None
    fleet_hits: int | None = None

    def __post_init__(self) -> None:
        for name, value, fits, wanted in (
            ("rate", self.rate, _is_positive, "a number of hits a second above 0"),
            ("sample", self.sample, _is_share, "a share above 0 and up to 1"),
            ("hits", self.hits, _is_count, "a whole number of hits from 1 on"),
            ("fleet_hits", self.fleet_hits, _is_count, "a whole number of hits from 1 on"),
        ):
            if value is not None and not fits(value):
                message = f"limits.{name} is {value!r}; it has to be {wanted}, or be left out"
                raise InstrumentError(message, code="bad-limit")

    def over(self, defaults: Limits) -> Limits:
        """These limits, and the defaults where nothing is set."""
        return Limits(
            defaults.rate if self.rate is None else self.rate,
            defaults.sample if self.sample is None else self.sample,
            defaults.hits if self.hits is None else self.hits,
            defaults.fleet_hits if self.fleet_hits is None else self.fleet_hits,
        )


def _is_positive(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and value > 0
        and math.isfinite(value)
    )


def _is_share(value: object) -> bool:
    return _is_positive(value) and value <= 1  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class Rate:
    """So many hits in each window of a second (or of ``1 / rate`` seconds below one a second).

    A handler asks ``clock() >= until``, and if so :meth:`roll`; then it takes one of
    ``tokens``. The first hit opens the first window.

    Args:
        rate: hits a second.
        clock: seconds, monotonic.
    """

    __slots__ = ("_clock", "_lock", "_size", "_window", "tokens", "until")

    def __init__(self, rate: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._size = max(1, int(rate))
        self._window = self._size / rate
        self._clock = clock
        self._lock = threading.Lock()
        self.tokens: Iterator[int] = repeat(1, 0)
        self.until = -math.inf

    def roll(self) -> None:
        """Open the next window; of several threads that come for it, one does."""
        # A handler holds no lock, so nothing can be waited for here but another roll();
        # who does not get the lock finds the window open, or is turned away once.
        if self._lock.acquire(blocking=False):
            try:
                now = self._clock()
                if now >= self.until:
                    self.tokens = _rate_tokens(self._size)
                    self.until = now + self._window
            finally:
                self._lock.release()


class Allotment(list[None]):
    """Hits that an instrument may make, one item each; somebody else adds more now and then.

    Taking one is ``pop``, one atomic C call, so that N items make exactly N hits.
    """

    # It is a constant of a code object.
    __hash__ = object.__hash__  # type: ignore[assignment]

    def grant(self, hits: int) -> None:
        """Allow so many more."""
        self.extend([None] * hits)

    def revoke(self) -> int:
        """Allow none any more; how many were not used."""
        unused = 0
        try:
            while True:
                self.pop()
                unused += 1
        except IndexError:
            return unused


if getattr(sys, "_is_gil_enabled", lambda: True)():

    def _rate_tokens(size: int) -> Iterator[int]:
        """So many true tokens."""
        return repeat(1, size)

    def hit_tokens(hits: int) -> Iterator[int]:
        """One token for each hit: a true one, and 0 for the last."""
        return chain(repeat(1, hits - 1), (0,))

else:  # each takes twice as long

    def _rate_tokens(size: int) -> Iterator[int]:
        """So many true tokens."""
        return takewhile((0).__gt__, count(-size))

    def hit_tokens(hits: int) -> Iterator[int]:
        """One token for each hit: a true one, and 0 for the last."""
        return takewhile((0).__ge__, count(1 - hits))
