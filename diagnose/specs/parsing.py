"""Checks a document, and says what is wrong with it and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diagnose.errors import SpecError
from diagnose.fields import FIELDS, LABELS, Kind, names_in
from diagnose.limits import Limits
from diagnose.specs.model import DEFAULT_LIFESPAN, Canary, Select, Spec, Stage
from diagnose.targets.fingerprints import FORM
from diagnose.wording import shortened, shown, shown_with_type, suggest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["parse"]

_WARNINGS_AT_MOST = 10
_PATTERNS = FIELDS[f"select.{LABELS[0]}"].kind


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
            ``instrument`` that its class accepts beyond the usual ones. None: the caller applies
            no specs, and takes every type and field of ``instrument``.
        default_values: for some of them, the expression that is taken if there is no ``value``.

    Raises:
        SpecError: with a code for each kind of mistake, and a message that has the field's
            path, the value, and what to write.
    """
    if spec_id is None or spec_id == "":
        raise SpecError(
            f"the spec has no usable id ({shown(spec_id)}); give it an _id such as 'cart-latency'",
            code="id-missing",
        )
    if not isinstance(document, Mapping):
        raise SpecError(
            "a spec must be a document with the fields target, instrument, lifespan and "
            f"lastmodified, not {shown_with_type(document)}",
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
    custom.get("tags")
    extra = {name: instrument.document[name] for name in accepted if name in instrument.document}
    warnings = [
        *whole.unknown(),
        *instrument.unknown(accepted),
        *limits.unknown(),
        *whole.section("canary").unknown(),
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
        name=instrument.get("name", str(spec_id)),
        value=instrument.get("value", default),
        event=instrument.get("event"),
        custom=dict(custom.document),
        extra=extra,
        when=whole.get("when"),
        limits=Limits(**{name: limits.get(name) for name in names_in("limits")}),
        lifespan=_lifespan(whole),
        lastmodified=lastmodified,
        enabled=whole.get("enabled"),
        select=_select(whole.section("select"), canary if stage is Stage.CANARY else None),
        is_dry_run=whole.get("validate"),
        canary=canary,
        stage=stage,
        reason=reason,
        began=began,
        fingerprints=_fingerprints(whole),
        warnings=_limited(warnings),
    )


class _Section:
    """A document within the spec, and where it is: reads fields and complains with the path."""

    def __init__(self, document: Mapping[Any, Any], path: str = "") -> None:
        self.document = document
        self._path = path

    def get(self, name: str, default: Any = None) -> Any:
        """The field's value, if it is of its kind; null counts as left out."""
        field = FIELDS[f"{self._path}{name}"]
        value = self.document.get(name)
        if value is None:
            if default is None:
                default = field.default
            if default is None and field.missing is not None:
                raise SpecError(
                    f"{field.path} is missing; it must be {field.kind.wanted}", code=field.missing
                )
            return default
        self.check(name, value, field.kind, field.code)
        return value

    def check(self, name: str, value: object, kind: Kind, code: str) -> None:
        if not kind.admits(value):
            raise SpecError(
                f"{self._path}{shortened(name)} must be {kind.wanted}, not {shown_with_type(value)}",
                code=code,
            )

    def section(self, name: str) -> _Section:
        return _Section(self.get(name, {}), f"{self._path}{name}.")

    def unknown(self, more: Collection[str] = ()) -> Iterator[str]:
        known = (*names_in(self._path[:-1]), *more)
        for name in self.document:
            if name not in known:
                # A key of a dict in a program may be anything.
                text = name if isinstance(name, str) else shown(name)
                yield (
                    f"{self._path}{shortened(text)} is not a known field: ignored{suggest(text, known)}"
                )


def _target(whole: _Section) -> str:
    if whole.document.get("target") == "":
        return str(_Section({}).get("target"))
    return str(whole.get("target"))


def _instrument_type(instrument: _Section, known: Mapping[str, Collection[str]] | None) -> str:
    types = ", ".join(sorted(known or ("log", "hist", "incr")))
    if not instrument.document:
        _Section({}).get("instrument")
    if instrument.document.get("type") is None or instrument.document["type"] == "":
        raise SpecError(
            f"instrument.type is missing; it must be one of {types}",
            code=FIELDS["instrument.type"].missing or "",
        )
    name: str = instrument.get("type")
    if known is not None and name not in known:
        raise SpecError(
            f"instrument.type {shown(name)} is not known here{suggest(name, known)}; "
            f"use one of {types}, or add the class to the manager's instrument_classes",
            code="unknown-type",
        )
    return name


def _lifespan(whole: _Section) -> timedelta | None:
    if "lifespan" in whole.document and whole.document["lifespan"] is None:
        return None
    return timedelta(minutes=whole.get("lifespan"))


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
        f"lastmodified must be {FIELDS['lastmodified'].kind.wanted}, not {shown_with_type(moment)}",
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
        if name != "percent" and (value := section.document[name]) is not None:
            section.check(str(name), value, _PATTERNS, "wrong-type")
            patterns[str(name)] = (value,) if isinstance(value, str) else tuple(value)
    percent = section.get("percent")
    if canary is not None:
        percent = canary.percent * (1 if percent is None else percent / 100)
    return Select(patterns, percent)


def _canary(
    whole: _Section, lastmodified: datetime
) -> tuple[Canary | None, Stage | None, datetime, str | None]:
    """The canary; how far it has come; since when the spec is there; why it is at that stage.

    What ``stage`` says about another version holds no more: a changed spec begins anew.
    """
    section = whole.section("canary")
    if whole.document.get("canary") is None:
        return None, None, lastmodified, None
    canary = Canary(
        percent=section.get("percent"),
        time=timedelta(minutes=section.get("for")),
        max_cost=section.get("max_cost"),
        max_errors=section.get("max_errors"),
    )
    stage = whole.document.get("stage")
    if not isinstance(stage, Mapping) or _moment(stage.get("version")) != lastmodified:
        return canary, Stage.CANARY, lastmodified, None
    name = Stage.CANARY
    with contextlib.suppress(ValueError):
        name = Stage(stage.get("name"))  # type: ignore[arg-type]
    if FIELDS["canary.percent"].kind.admits(percent := stage.get("percent")):
        canary = replace(canary, percent=float(percent))  # type: ignore[arg-type]
    reason = text if isinstance(text := stage.get("reason"), str) else None
    return canary, name, _moment(stage.get("began")) or lastmodified, reason


def _fingerprints(whole: _Section) -> tuple[str, ...]:
    given = whole.get("fingerprint", ())
    texts = (given,) if isinstance(given, str) else tuple(given)
    for text in texts:
        if not FORM.fullmatch(text):
            raise SpecError(
                f"fingerprint {shown(text)} is none; it must look like '3.11-0f3a9c52d7be-42', "
                "or be a list of such texts, one for each Python version: take it from the error "
                "of a spec that has another one, or from diagnose.targets.fingerprint",
                code="bad-fingerprint",
            )
    return texts


def _limited(warnings: list[str]) -> tuple[str, ...]:
    if len(warnings) <= _WARNINGS_AT_MOST:
        return tuple(warnings)
    more = len(warnings) - _WARNINGS_AT_MOST
    return (*warnings[:_WARNINGS_AT_MOST], f"and {more} more")
