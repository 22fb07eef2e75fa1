"""Counters without a lock: tokens that turn hits away before anything is captured, and tallies.

A hit that is turned away costs a comparison or two. Tokens are handed out by an iterator, whose
``next`` is one atomic C call, so that N tokens make exactly N hits however many threads ask.
Without the GIL :func:`itertools.repeat` gives out too many, or goes on for ever; there a
:class:`itertools.count`, which is atomic, is cut off.
"""

from __future__ import annotations

import math
import operator
import sys
import threading
import time
from itertools import chain, count, repeat, takewhile
from typing import TYPE_CHECKING

from diagnose.constants import ConstantList

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Allotment", "Rate", "Tally", "hit_tokens"]


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
        # The only contender is another roll(); the loser finds the new window open, or its hit is
        # rejected once.
        if self._lock.acquire(blocking=False):
            try:
                now = self._clock()
                if now >= self.until:
                    self.tokens = _rate_tokens(self._size)
                    self.until = now + self._window
            finally:
                self._lock.release()


class Allotment(ConstantList[None]):
    """Hits that an instrument may make, one item each; its manager adds more now and then.

    Taking one is ``pop``, one atomic C call, so that N items make exactly N hits.
    """

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


class Tally:
    """A counter that threads increment concurrently without a lock.

    ``add``, or the ``next`` of ``ones``, increments it: one C call, atomic, which makes no object.
    """

    __slots__ = ("add", "ones")

    def __init__(self) -> None:
        self.ones: Iterator[object] = _ones()
        self.add: Callable[[], object] = self.ones.__next__

    @property
    def value(self) -> int:
        """How often it was incremented."""
        return _taken(self.ones)


if getattr(sys, "_is_gil_enabled", lambda: True)():

    def _rate_tokens(size: int) -> Iterator[int]:
        """So many true tokens."""
        return repeat(1, size)

    def hit_tokens(hits: int) -> Iterator[int]:
        """One token for each hit: a true one, and 0 for the last."""
        return chain(repeat(1, hits - 1), (0,))

    def _ones() -> Iterator[object]:
        return repeat(None, sys.maxsize)

    def _taken(ones: Iterator[object]) -> int:
        # What is left of it can be read, and nobody lives to see its end.
        return sys.maxsize - operator.length_hint(ones)

else:  # tokens take twice as long; a `repeat` would lose some increments, and a `count` loses none

    def _rate_tokens(size: int) -> Iterator[int]:
        """So many true tokens."""
        return takewhile((0).__gt__, count(-size))

    def hit_tokens(hits: int) -> Iterator[int]:
        """One token for each hit: a true one, and 0 for the last."""
        return takewhile((0).__ge__, count(1 - hits))

    def _ones() -> Iterator[object]:
        return count()

    def _taken(ones: Iterator[object]) -> int:
        # It shows itself: "count(3)".
        return int(repr(ones)[len("count(") : -1])
