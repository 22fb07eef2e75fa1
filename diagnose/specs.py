"""What a spec document says, checked: which instrument goes on which function, for how long.

A spec comes as a plain mapping, from a MongoDB collection or from a dict in the program.
:func:`parse` turns it into a :class:`Spec`, or says what is wrong with it and what to do;
it touches no function, imports nothing and never changes the document. What has no effect
is named in :attr:`Spec.warnings`: nothing in a document is ignored in silence.
"""

from __future__ import annotations

import contextlib
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from diagnose.errors import SpecError
from diagnose.limits import Limits
from diagnose.targets.fingerprints import FORM

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

__all__ = [
    "DEFAULT_LIFESPAN",
    "FAILED_STATES",
    "FIELDS",
    "LABELS",
    "PERCENT_MODULUS",
    "Canary",
    "Select",
    "Spec",
    "Stage",
    "State",
    "fingerprint",
    "parse",
    "percent_factors",
    "process_share",
]

DEFAULT_LIFESPAN = timedelta(minutes=10)
"""For a spec without ``lifespan``: what nobody thought about must not stay for ever."""

LONGEST_LIFESPAN = timedelta(days=3660)
"""More is a mistake in the number; ``lifespan: null`` says "until removed"."""

PERCENT_MODULUS = 2**31 - 1
"""A prime: see :func:`percent_factors`."""

LABELS = ("service", "env", "host", "version")
"""The labels that a process may always be selected by; an application can add its own."""

FIELDS = (
    "_id",
    "id",
    "target",
    "instrument",
    "lifespan",
    "lastmodified",
    "applied",
    "counts",
    "when",
    "enabled",
    "select",
    "limits",
    "fingerprint",
    "validate",
    "canary",
    "stage",
    "changed",
    "created_by",
    "comment",
)
"""What a spec document may have in it; another field is a mistake in a name."""

_OUTCOMES = frozenset({"applied", "counts"})
_INSTRUMENT_FIELDS = ("type", "name", "value", "event", "custom")
_CLOCKS_DIFFER = timedelta(minutes=1)
_ANY_RATE = 1e9
_WARNINGS_AT_MOST = 10
_FREEZE_DEPTH = 20
_FREEZE_NODES = 5_000


class State(StrEnum):
    """What has become of a spec in one process; the words of an ``applied`` entry."""

    PENDING = "pending"
    """The target's module is not imported yet; applied when it is."""
    INSTALLED = "installed"
    EMITTING = "emitting"
    """Installed, and it fired at least once."""
    ERROR = "error"
    DONE = "done"
    """It reached its hit limit."""
    EXPIRED = "expired"
    SUSPENDED = "suspended"
    """It cost more than its CPU budget; it is tried again later."""
    DRIFTED = "drifted"
    """The code is not the code that the spec was written against."""
    DISABLED = "disabled"
    VALIDATED = "validated"
    """It would have been installed, had it not been a dry run."""


FAILED_STATES = frozenset({State.ERROR, State.DRIFTED, State.SUSPENDED})
"""The states that somebody should look at."""


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
                    f"{_hint(name, {*LABELS, *labels, 'percent'})}; labels here: "
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


def parse(
    spec_id: object,
    document: object,
    *,
    instrument_types: Mapping[str, Collection[str]] | None,
    default_values: Mapping[str, str | None] = MappingProxyType({}),
) -> Spec:
    """Check a document and return what it says.

    Args:
        spec_id: what the spec is called.
        document: the mapping; anything else is an error of this spec.
        instrument_types: for each type that ``instrument.type`` may name, the fields of
            ``instrument`` that its class accepts beyond the usual ones. None: who asks applies
            no specs, and takes every type and field of ``instrument``.
        default_values: for some of them, the expression that is taken if there is no ``value``.

    Raises:
        SpecError: with a code for each kind of mistake, and a message that has the field's
            path, the value, and what to write.
    """
    if spec_id is None or spec_id == "":
        raise SpecError(
            f"the spec has no usable id ({_shown(spec_id)}); give it an _id such as 'cart-latency'",
            code="id-missing",
        )
    if not isinstance(document, Mapping):
        raise SpecError(
            "a spec must be a document with the fields target, instrument, lifespan and "
            f"lastmodified, not {_shown_with_type(document)}",
            code="not-a-document",
        )
    whole = _Section(document)
    instrument, limits = whole.section("instrument"), whole.section("limits")
    target = _target(whole)
    instrument_type = _instrument_type(instrument, instrument_types)
    accepted = frozenset(
        instrument.document if instrument_types is None else instrument_types[instrument_type]
    )
    default = "" if instrument_types is None else default_values.get(instrument_type)
    custom = instrument.section("custom")
    custom.get("tags", _TEXT)
    rate, sample, hits, fleet_hits = (limits.get(name, kind) for name, kind in _LIMITS.items())
    extra = {name: instrument.document[name] for name in accepted if name in instrument.document}
    warnings = [
        *whole.unknown(FIELDS),
        *instrument.unknown((*_INSTRUMENT_FIELDS, *accepted)),
        *limits.unknown(tuple(_LIMITS)),
    ]
    if "lifespan" not in document:
        warnings.append(
            f"lifespan is missing: {DEFAULT_LIFESPAN.total_seconds() / 60:g} minutes are taken; "
            "set it (in minutes; null for until the spec is removed)"
        )
    lastmodified = _lastmodified(document)
    canary, stage, began, reason = _canary(whole, lastmodified)
    return Spec(
        id=spec_id,
        target=target,
        instrument_type=instrument_type,
        name=instrument.get("name", _TEXT, str(spec_id)),
        value=instrument.get(
            "value", _EXPRESSION, default, required="missing-value" if default is None else None
        ),
        event=instrument.get("event", _TEXT, "return"),
        custom=dict(custom.document),
        extra=extra,
        when=whole.get("when", _EXPRESSION),
        limits=Limits(rate, sample, hits, fleet_hits),
        lifespan=_lifespan(document),
        lastmodified=lastmodified,
        enabled=whole.get("enabled", _FLAG, True),
        select=_select(whole.section("select"), canary if stage is Stage.CANARY else None),
        is_dry_run=whole.get("validate", _FLAG, False),
        canary=canary,
        stage=stage,
        reason=reason,
        began=began,
        fingerprints=_fingerprints(whole),
        warnings=_limited(warnings),
    )


def fingerprint(document: object) -> object:
    """A value that is equal for documents of equal content, ``applied`` left out.

    It finds edits whose author forgot ``lastmodified``. It compares types too (``1`` is not
    ``True``) and can be compared whatever the document holds.
    """
    try:
        if isinstance(document, dict):
            document = {key: value for key, value in list(document.items()) if key not in _OUTCOMES}
        return _Freezer().freeze(document)
    except Exception:  # noqa: BLE001 - a dict of a class of its own may do anything
        return id(document)


class _Kind(NamedTuple):
    wanted: str
    admits: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_TEXT = _Kind("a text", lambda v: isinstance(v, str))
_EXPRESSION = _Kind("an expression in a text, such as 'elapsed'", lambda v: isinstance(v, str))
_FLAG = _Kind("true or false", lambda v: isinstance(v, bool))
_DOCUMENT = _Kind("a document", lambda v: isinstance(v, Mapping))
_PATTERNS = _Kind(
    "a text or a list of texts",
    lambda v: (
        isinstance(v, str)
        or (isinstance(v, (list, tuple)) and all(isinstance(item, str) for item in v))
    ),
)
_PERCENT = _Kind("a number from 0 to 100", lambda v: _is_number(v) and 0 <= v <= 100)  # noqa: PLR2004
_NUMBER = _Kind(
    "a whole number, 0 or more", lambda v: _is_number(v) and isinstance(v, int) and v >= 0
)
_SHARE = _Kind("a share of one core, such as 0.01", lambda v: _is_number(v) and 0 < v < math.inf)
_MINUTES = _Kind(
    "a number of minutes above 0", lambda v: _is_number(v) and 0 < v <= _LONGEST_CANARY_MINUTES
)
_CANARY_MINUTES = 5
_LONGEST_CANARY_MINUTES = 60 * 24 * 30
_COUNT = _Kind("a whole number above 0", lambda v: _is_number(v) and isinstance(v, int) and v > 0)
_LIMITS = {
    "rate": _Kind("a number above 0 (per second)", lambda v: _is_number(v) and 0 < v <= _ANY_RATE),
    "sample": _Kind("a number above 0, up to 1", lambda v: _is_number(v) and 0 < v <= 1),
    "hits": _COUNT,
    "fleet_hits": _COUNT,
}


class _Section:
    """A document within the spec, and where it is: reads fields and complains with the path."""

    def __init__(self, document: Mapping[Any, Any], path: str = "") -> None:
        self.document = document
        self._path = path

    def get(
        self, name: str, kind: _Kind, default: Any = None, *, required: str | None = None
    ) -> Any:
        """The field's value; null counts as left out. ``required`` is the code if it is."""
        value = self.document.get(name)
        if value is None:
            if required is not None:
                raise SpecError(
                    f"{self._path}{name} is missing; it must be {kind.wanted}", code=required
                )
            return default
        if not kind.admits(value):
            raise SpecError(
                f"{self._path}{name} must be {kind.wanted}, not {_shown_with_type(value)}",
                code="wrong-type",
            )
        return value

    def section(self, name: str) -> _Section:
        return _Section(self.get(name, _DOCUMENT, {}), f"{self._path}{name}.")

    def unknown(self, known: tuple[str, ...]) -> Iterator[str]:
        for name in self.document:
            if name not in known:
                # A key of a dict in a program may be anything.
                shown = name if isinstance(name, str) else _shown(name)
                yield (
                    f"{self._path}{_short(shown)} is not a known field: ignored"
                    f"{_hint(shown, known)}"
                )


def _target(whole: _Section) -> str:
    target = whole.document.get("target")
    if target is None or target == "":
        raise SpecError(
            "target is missing; it must be the dotted path of a function, such as "
            "'shop.cart.Cart.checkout'",
            code="missing-target",
        )
    if not isinstance(target, str):
        raise SpecError(
            "target must be the dotted path of a function in a text, such as "
            f"'shop.cart.Cart.checkout', not {_shown_with_type(target)}",
            code="target-type",
        )
    return target


def _instrument_type(instrument: _Section, known: Mapping[str, Collection[str]] | None) -> str:
    types = ", ".join(sorted(known or ("log", "hist", "incr")))
    if not instrument.document:
        raise SpecError(
            "instrument is missing; it must be a document with type, name and value, such as "
            "{type: 'hist', name: 'cart.checkout', value: 'elapsed'}",
            code="missing-instrument",
        )
    name: str = instrument.get(
        "type", _Kind(f"one of {types}", lambda v: isinstance(v, str)), required="missing-type"
    )
    if known is not None and name not in known:
        raise SpecError(
            f"instrument.type {_shown(name)} is not known here{_hint(name, known)}; "
            f"use one of {types}, or add the class to the manager's instrument_classes",
            code="unknown-type",
        )
    return name


def _lifespan(document: Mapping[Any, Any]) -> timedelta | None:
    if "lifespan" not in document:
        return DEFAULT_LIFESPAN
    minutes = document["lifespan"]
    if minutes is None:
        return None
    longest = LONGEST_LIFESPAN.total_seconds() / 60
    if not _is_number(minutes) or not 0 <= minutes <= longest:
        raise SpecError(
            f"lifespan must be a number of minutes from 0 to {longest:.0f}, or null for until "
            f"the spec is removed, not {_shown_with_type(minutes)}",
            code="bad-lifespan",
        )
    return timedelta(minutes=minutes)


def _lastmodified(document: Mapping[Any, Any]) -> datetime:
    moment = document.get("lastmodified")
    if moment is None:
        raise SpecError(
            "lastmodified is missing; set it at each change, with "
            "{$currentDate: {lastmodified: true}} in an update or new Date() in mongosh: "
            "it is the version of the spec, and its lifespan counts from it",
            code="lastmodified-missing",
        )
    if (aware := _moment(moment)) is not None:
        return aware
    raise SpecError(
        "lastmodified must be a date between the years 1 and 9999 (new Date() in mongosh, a "
        f"datetime in Python), not {_shown_with_type(moment)}",
        code="wrong-type",
    )


def _moment(value: object) -> datetime | None:
    """A date, aware, in UTC; None if it is none."""
    # An aware date may be out of range in UTC, and a tzinfo may raise anything.
    with contextlib.suppress(Exception):
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return None


def _select(section: _Section, canary: Canary | None) -> Select | None:
    if not section.document and canary is None:
        return None
    patterns: dict[str, tuple[str, ...]] = {}
    for name in section.document:
        if name != "percent" and (value := section.get(name, _PATTERNS)) is not None:
            patterns[str(name)] = (value,) if isinstance(value, str) else tuple(value)
    percent = section.get("percent", _PERCENT)
    if canary is not None:
        percent = canary.percent * (1 if percent is None else percent / 100)
    return Select(patterns, percent)


def _canary(
    whole: _Section, lastmodified: datetime
) -> tuple[Canary | None, Stage | None, datetime, str | None]:
    """The canary; how far it has come; since when the spec is there; why it is at that stage.

    What ``stage`` says about another version holds no more: whoever changes a spec begins anew.
    """
    section = whole.section("canary")
    if not section.document:
        return None, None, lastmodified, None
    canary = Canary(
        percent=section.get("percent", _PERCENT, required="missing-percent"),
        time=timedelta(minutes=section.get("for", _MINUTES, _CANARY_MINUTES)),
        max_cost=section.get("max_cost", _SHARE),
        max_errors=section.get("max_errors", _NUMBER, 0),
    )
    stage = whole.document.get("stage")
    if not isinstance(stage, Mapping) or _moment(stage.get("version")) != lastmodified:
        return canary, Stage.CANARY, lastmodified, None
    name = Stage.CANARY
    with contextlib.suppress(ValueError):
        name = Stage(stage.get("name"))  # type: ignore[arg-type]
    if _PERCENT.admits(percent := stage.get("percent")):
        canary = replace(canary, percent=float(percent))  # type: ignore[arg-type]
    reason = text if isinstance(text := stage.get("reason"), str) else None
    return canary, name, _moment(stage.get("began")) or lastmodified, reason


def _fingerprints(whole: _Section) -> tuple[str, ...]:
    given = whole.get("fingerprint", _PATTERNS, ())
    texts = (given,) if isinstance(given, str) else tuple(given)
    for text in texts:
        if not FORM.fullmatch(text):
            raise SpecError(
                f"fingerprint {_shown(text)} is none; it must look like '3.11-0f3a9c52d7be-42', "
                "or be a list of such texts, one for each Python version: take it from the error "
                "of a spec that has another one, or from diagnose.targets.fingerprint",
                code="bad-fingerprint",
            )
    return texts


def _fits(label: str, pattern: str) -> bool:
    return label == pattern or fnmatchcase(label, pattern)


def percent_factors(spec_id: object) -> tuple[int, int]:
    """A factor and a shift, which spread processes evenly, for each spec in another way.

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


def _limited(warnings: list[str]) -> tuple[str, ...]:
    if len(warnings) <= _WARNINGS_AT_MOST:
        return tuple(warnings)
    more = len(warnings) - _WARNINGS_AT_MOST
    return (*warnings[:_WARNINGS_AT_MOST], f"and {more} more")


def _hint(name: str, known: Collection[str]) -> str:
    import difflib  # noqa: PLC0415 - for an error only; import diagnose is to be quick

    near = difflib.get_close_matches(name[:80], known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _shown(value: object) -> str:
    try:
        return _short(reprlib.repr(value))
    except Exception:  # noqa: BLE001 - the repr of anything at all
        return f"<{type(value).__name__}>"


def _shown_with_type(value: object) -> str:
    return f"{_shown(value)} ({type(value).__name__})"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004


class _Freezer:
    """Turns a document into nested tuples; what is beyond the budget counts by its type only."""

    def __init__(self) -> None:
        self._budget = _FREEZE_NODES

    def freeze(self, value: object, depth: int = 0) -> object:
        kind = type(value)
        self._budget -= 1
        # Only a dict in a program can be as deep or large, or contain itself.
        if depth > _FREEZE_DEPTH or self._budget < 0:
            return kind
        if isinstance(value, dict):
            return kind, tuple(
                (self.freeze(key, depth + 1), self.freeze(item, depth + 1))
                for key, item in list(value.items())
            )
        if isinstance(value, (list, tuple)):
            return kind, tuple(self.freeze(item, depth + 1) for item in list(value))
        if kind in {str, bytes, int, bool, datetime, type(None)}:
            return kind, value
        try:
            # Numbers that are not equal to themselves, and whatever else a document may hold.
            return kind, repr(value)
        except Exception:  # noqa: BLE001 - the repr of anything at all
            return kind, id(value)
