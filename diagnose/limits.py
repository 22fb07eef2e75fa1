"""What a user may limit: how often an instrument may fire in a process, and in all of them.

And what has no limit, and is said of it wherever it is shown: that it acts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from diagnose.errors import InstrumentError
from diagnose.fields import FIELDS

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
        for each in dataclasses.fields(self):
            value, field = getattr(self, each.name), FIELDS[f"limits.{each.name}"]
            if value is not None and not field.kind.admits(value):
                message = (
                    f"{field.path} is {value!r}; it has to be {field.kind.wanted}, or be left out"
                )
                raise InstrumentError(message, code="bad-limit")

    def over(self, defaults: Limits) -> Limits:
        """These limits, and the defaults where nothing is set."""
        return Limits(
            defaults.rate if self.rate is None else self.rate,
            defaults.sample if self.sample is None else self.sample,
            defaults.hits if self.hits is None else self.hits,
            defaults.fleet_hits if self.fleet_hits is None else self.fleet_hits,
        )
