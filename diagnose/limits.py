"""What a user may limit: how often an instrument may fire in a process, and in all of them.

And what has no limit, and is said of it wherever it is shown: that it acts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from diagnose.errors import InstrumentError

__all__ = ["ACTS", "Limits"]

ACTS = "it acts: it may change what the function is given, returns or raises"


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
