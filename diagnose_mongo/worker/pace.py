"""When a process looks for changes beside its regular polls."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diagnose_mongo.store import Control

__all__ = ["Pace"]

# A person who changes one spec is likely to change it again, or another.
_BRISK_SECONDS = 60.0
_BRISK_POLLS_PER_PERIOD = 5
_BRISK_POLLS_PER_SECOND = 1_000
_SHORTEST_BRISK_PERIOD = 1.0


class Pace:
    """Sooner for a while after a change, and later where the fleet is told so."""

    def __init__(self) -> None:
        self._brisk_until = self._rest_until = 0.0

    def quicken(self) -> None:
        """Look more often for a while: something was changed just now."""
        self._brisk_until = time.monotonic() + _BRISK_SECONDS

    def rest(self, control: Control, period: float) -> None:
        """Leave regular polls out, if the fleet's period is longer than this process's own."""
        self._rest_until = 0.0
        if control.period > period:
            # The background comes at its own times; so this is some way short of the period.
            self._rest_until = time.monotonic() + control.period - period / 2

    def is_resting(self) -> bool:
        """Whether this regular poll is to be left out."""
        return time.monotonic() < self._rest_until

    def next_in(self, control: Control, period: float) -> float | None:
        """In how many seconds to look, if that is before the next regular poll."""
        if time.monotonic() >= self._brisk_until or control.period:
            return None
        # No faster than one server can answer a large fleet.
        return max(
            _SHORTEST_BRISK_PERIOD,
            period / _BRISK_POLLS_PER_PERIOD,
            control.processes / _BRISK_POLLS_PER_SECOND,
        )
