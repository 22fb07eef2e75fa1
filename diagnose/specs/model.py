"""What a spec says: which instrument goes on which function, where, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from diagnose.errors import SpecError
from diagnose.fields import FIELDS, LABELS
from diagnose.status import State
from diagnose.wording import suggest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from diagnose.limits import Limits

__all__ = [
    "DEFAULT_LIFESPAN",
    "FAILED_STATES",
    "PERCENT_MODULUS",
    "Canary",
    "Select",
    "Spec",
    "Stage",
    "percent_factors",
    "process_share",
]

DEFAULT_LIFESPAN = timedelta(minutes=FIELDS["lifespan"].default)
"""For a spec without ``lifespan``: what nobody thought about must not stay for ever."""

PERCENT_MODULUS = 2**31 - 1
"""A prime: see :func:`percent_factors`."""

FAILED_STATES = frozenset({State.ERROR, State.DRIFTED, State.SUSPENDED})
"""The states that need somebody's attention."""

_CLOCKS_DIFFER = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Select:
    """Which processes a spec is meant for: all its conditions must hold.

    Attributes:
        patterns: for a label's name, the patterns of which one must match it. A pattern is
            a literal or a glob (``web*``); case counts.
        percent: of the processes that match, about so many; None for all of them.
    """

    patterns: Mapping[str, tuple[str, ...]]
    percent: float | None = None

    def matches(self, spec_id: object, labels: Mapping[str, str], process_id: str) -> bool:
        """Whether the process with these labels and this id is meant.

        The choice by ``percent`` is stable: it hangs on the two ids alone, and a larger
        percentage takes the processes of a smaller one and more.

        Raises:
            SpecError: a label is asked for that neither diagnose nor this process has.
                Guessing would put the instrument on processes that nobody chose.
        """
        for name, patterns in self.patterns.items():
            if name not in labels and name not in LABELS:
                raise SpecError(
                    f"select.{name} names no label of this process, so the spec is not applied"
                    f"{suggest(name, {*LABELS, *labels, 'percent'})}; labels here: "
                    f"{', '.join(sorted(labels)) or 'none'}",
                    code="unknown-label",
                )
            label = labels.get(name)
            if label is None or not any(_fits(label, pattern) for pattern in patterns):
                return False
        if self.percent is None:
            return True
        factor, shift = percent_factors(spec_id)
        place = (factor * process_share(process_id) + shift) % PERCENT_MODULUS
        return place < self.percent / 100 * PERCENT_MODULUS


class Stage(StrEnum):
    """How far a spec with a canary has come; the words of its field ``stage.name``."""

    CANARY = "canary"
    """On a few processes only."""
    EVERYWHERE = "everywhere"
    """All was well on the few."""
    TAKEN_BACK = "taken back"
    """All was not well: it is nowhere."""


@dataclass(frozen=True, slots=True)
class Canary:
    """Let a spec begin on a few processes, and go on from there by itself.

    Attributes:
        percent: of the processes that it is meant for.
        time: after which it goes to all of them.
        max_cost: the share of one core that it may cost in a process; None: any.
        max_errors: in how many processes it may fail.
    """

    percent: float
    time: timedelta
    max_cost: float | None
    max_errors: int


@dataclass(frozen=True, slots=True)
class Spec:
    """One spec, checked: every field has the type that it says.

    Attributes:
        id: what the spec is called: its key in ``specs``, or its ``_id``.
        target: dotted path of the function.
        instrument_type: a key of the manager's ``instrument_classes``.
        name: what the instrument calls its values; the spec's id if it was not given.
        value: the expression that is evaluated.
        event: ``call``, ``return``, ``end`` or ``line:N``; the instrument checks it.
        custom: handed to the instrument as it is; ``tags`` in it is an expression.
        extra: further fields that the instrument's class asks for by name.
        when: the condition, an expression, or None.
        limits: how often it may fire in one process.
        lifespan: from ``lastmodified`` on; None until the spec is removed.
        lastmodified: the version of the spec, aware, in UTC.
        enabled: False keeps it from being applied.
        select: which processes it is for just now; None for all.
        is_dry_run: it is to be checked in each process, and installed in none.
        canary: how it is to begin; None: everywhere at once.
        stage: how far it has come since; None without a canary.
        reason: why it is at that stage, if there is something to say.
        began: what its lifespan counts from, aware, in UTC: as a rule ``lastmodified``.
        fingerprints: of the code that it was written against, one for each Python version;
            none if any code will do. See :mod:`diagnose.targets.fingerprints`.
        warnings: what in the document has no effect, one sentence each.
    """

    id: object
    target: str
    instrument_type: str
    name: str
    value: str
    event: str
    custom: Mapping[str, Any]
    extra: Mapping[str, Any]
    when: str | None
    limits: Limits
    lifespan: timedelta | None
    lastmodified: datetime
    enabled: bool
    select: Select | None
    is_dry_run: bool
    canary: Canary | None
    stage: Stage | None
    reason: str | None
    began: datetime
    fingerprints: tuple[str, ...]
    warnings: tuple[str, ...]

    def selects(self, labels: Mapping[str, str], process_id: str) -> bool:
        """Whether the process with these labels and this id is meant.

        Raises:
            SpecError: see :meth:`Select.matches`.
        """
        return self.select is None or self.select.matches(self.id, labels, process_id)

    def remaining(self, now: datetime) -> timedelta | None:
        """How long the spec is to live from ``now`` (aware) on; None without an end.

        Zero or less: it is over. Never more than the lifespan, also when ``lastmodified``
        came from a clock that is ahead of ``now``.
        """
        if self.lifespan is None:
            return None
        return min(self.lifespan, self.lifespan - (now - self.began))

    def warnings_at(self, now: datetime) -> tuple[str, ...]:
        """The warnings, and one more if ``lastmodified`` is in the future at ``now`` (aware)."""
        ahead = self.lastmodified - now
        if ahead <= _CLOCKS_DIFFER:
            return self.warnings
        return (
            *self.warnings,
            (
                f"lastmodified is {ahead.total_seconds():.0f} s in the future; set it with the "
                "server's clock: {$currentDate: {lastmodified: true}}"
            ),
        )


def _fits(label: str, pattern: str) -> bool:
    return label == pattern or fnmatchcase(label, pattern)


def percent_factors(spec_id: object) -> tuple[int, int]:
    """A spec's universal hash: spreads processes evenly, independently of other specs.

    ``(factor * process_share(process_id) + shift) % PERCENT_MODULUS`` is where the process
    stands for the spec. It is no more than arithmetic, so that a database can reckon it too.
    (Universal hashing: J. L. Carter and M. N. Wegman, 1979.)
    """
    import hashlib  # noqa: PLC0415 - OpenSSL takes 2 ms; import diagnose is to be quick

    digest = hashlib.blake2b(f"{spec_id}".encode(errors="surrogatepass"), digest_size=16).digest()
    factor = 1 + int.from_bytes(digest[:8], "big") % (PERCENT_MODULUS - 1)
    return factor, int.from_bytes(digest[8:], "big") % PERCENT_MODULUS


def process_share(process_id: str) -> int:
    """A number that is as good as random, from 0 to ``PERCENT_MODULUS - 1``, for each process."""
    import hashlib  # noqa: PLC0415 - OpenSSL takes 2 ms; import diagnose is to be quick

    digest = hashlib.blake2b(process_id.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % PERCENT_MODULUS
