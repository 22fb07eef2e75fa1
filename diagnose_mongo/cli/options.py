"""The options of the command: what all verbs take, and what makes a spec."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from cyclopts import Parameter

from diagnose.errors import StoreError
from diagnose.fields import FIELDS
from diagnose_mongo import documents, settings
from diagnose_mongo.cli import arguments
from diagnose_mongo.cli.output import Output

__all__ = ["COMMON", "DURATION", "INSTRUMENT", "Common", "Instrument", "Timeout", "UsageError"]

_NEED_A_VALUE = frozenset({"log", "hist", "incr"})


class UsageError(Exception):
    """The command was used in a wrong way."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """What every verb takes."""

    uri: Annotated[str | None, Parameter(env_var=settings.URI_VARIABLE)] = None
    "of MongoDB; without it, port 27017 of this machine."

    database: Annotated[str, Parameter(env_var=settings.DATABASE_VARIABLE)] = settings.DATABASE
    "the database with the specs."

    collection: str = documents.COLLECTION
    "the collection of specs."

    output: Annotated[Literal["text", "json"], Parameter(name=["--output", "-o"])] = "text"
    "for people, or for programs."

    @contextlib.contextmanager
    def link(self) -> Iterator[Any]:
        """A link to the specs, for as long as it is needed."""
        from diagnose_mongo.store import connect

        link = connect(self.uri or settings.LOCAL_URI, self.database, self.collection)
        try:
            yield link
        except StoreError as error:
            if self.uri is None:
                text = f"{error.message}; for another server give --uri, or set {settings.URI_VARIABLE}"
                raise StoreError(text, code=error.code) from error
            raise
        finally:
            link.close()

    def out(self) -> Output:
        """Where to write."""
        return Output(is_json=self.output == "json")


COMMON = Common()


def _seconds(_: object, tokens: Sequence[Any]) -> float:
    return arguments.seconds(tokens[0].value)


def _minutes(_: object, tokens: Sequence[Any]) -> float | None:
    text = tokens[0].value
    return None if text in {"none", "null", "forever"} else arguments.minutes(text)


def _canary(_: object, tokens: Sequence[Any]) -> Any:
    return arguments.canary(tokens[0].value)


def _duration(converter: Callable[[object, Sequence[Any]], float | None]) -> Parameter:
    return Parameter(converter=converter, n_tokens=1, accepts_keys=False, metavar="DURATION")


DURATION = _duration(_seconds)
"""An option in seconds."""

Timeout: TypeAlias = Annotated[float, DURATION]


def _help(path: str) -> Parameter:
    field = FIELDS[path]
    without = f"; without it, {field.default_words}" if field.default_words else ""
    return Parameter(help=f"{field.help}{without}.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Instrument:
    """What is to be attached, to whom, for how long."""

    value: Annotated[str | None, _help("instrument.value")] = None

    event: Annotated[str, _help("instrument.event")] = FIELDS["instrument.event"].default

    type: Annotated[str, _help("instrument.type")] = "log"

    name: Annotated[str | None, _help("instrument.name")] = None

    when: Annotated[str | None, _help("when")] = None

    tags: Annotated[str | None, _help("instrument.custom.tags")] = None

    lifespan: Annotated[float | None, _duration(_minutes)] = FIELDS["lifespan"].default
    "for how long: 90s, 10m, 2h, 1d; a plain number is minutes; forever."

    rate: Annotated[float | None, _help("limits.rate")] = None

    sample: Annotated[float | None, _help("limits.sample")] = None

    hits: Annotated[int | None, _help("limits.hits")] = None

    fleet_hits: Annotated[int | None, _help("limits.fleet_hits")] = None

    select: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    "which processes: service=web, env=prod, host='web1*', version=1.2, percent=10; repeatable."

    canary: Annotated[
        dict[str, Any] | None,
        Parameter(converter=_canary, n_tokens=1, accepts_keys=False, metavar="PERCENT"),
    ] = None
    "begin on so many of them, such as 5%, or 5%:10m; it goes to all when all was well."

    comment: Annotated[str | None, _help("comment")] = None

    def document(self, target: str, spec_id: str) -> dict[str, Any]:
        """The spec.

        Raises:
            UsageError: an option does not fit.
        """
        if self.value is None and self.type in _NEED_A_VALUE:
            raise UsageError(
                f"--value is missing: the expression that a {self.type} instrument records, such "
                "as --value elapsed"
            )
        try:
            chosen = arguments.select(self.select)
        except ValueError as exc:
            raise UsageError(f"--select {exc}") from exc
        given = {
            "type": self.type,
            "name": self.name or spec_id,
            "value": self.value,
            "event": self.event,
            "custom": {"tags": self.tags} if self.tags else None,
        }
        limits = {
            "rate": self.rate,
            "sample": self.sample,
            "hits": self.hits,
            "fleet_hits": self.fleet_hits,
        }
        document = {
            documents.ID: spec_id,
            "target": target,
            "instrument": _without_none(given),
            "when": self.when,
            "limits": _without_none(limits) or None,
            "select": chosen or None,
            "canary": self.canary,
            "comment": self.comment,
        }
        return {**_without_none(document), "lifespan": self.lifespan}


INSTRUMENT = Instrument()


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
