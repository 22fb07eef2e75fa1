"""The fields of a spec's document: one table, of which all else is made.

The parser, the limits, the validator of the collection, the command's options and the table in
``docs/document.md`` take types, bounds, defaults, error codes and words from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

__all__ = [
    "FIELDS",
    "LABELS",
    "LONGEST_LIFESPAN",
    "Field",
    "Kind",
    "inside",
    "names_in",
    "table",
]

LABELS = ("service", "env", "host", "version")
"""The labels that a process may always be selected by; an application can add its own."""

LONGEST_LIFESPAN = 3660 * 24 * 60
"""In minutes. More is a mistake in the number; ``lifespan: null`` says "until removed"."""

Base = Literal["any", "text", "texts", "number", "whole", "flag", "document", "date"]

_SCHEMAS: dict[Base, dict[str, Any]] = {
    "any": {},
    "text": {"bsonType": ["string"]},
    "texts": {"bsonType": ["string", "array"], "items": {"bsonType": "string"}},
    "number": {"bsonType": ["int", "long", "double"]},
    "whole": {"bsonType": ["int", "long"]},
    "flag": {"bsonType": ["bool"]},
    "document": {"bsonType": ["object"]},
    "date": {"bsonType": ["date"]},
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a field's value may be.

    Attributes:
        wanted: that, in words.
        base: its type. ``texts`` is a text or a list of texts, ``whole`` a whole number.
        above: a number has to be greater.
        least: a number may not be less.
        most: a number may not be greater.
    """

    wanted: str
    base: Base = "any"
    above: float | None = None
    least: float | None = None
    most: float | None = None

    def admits(self, value: object) -> bool:
        """Whether a value is one."""
        match self.base:
            case "any":
                return True
            case "text":
                return isinstance(value, str)
            case "texts":
                return isinstance(value, str) or (
                    isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
                )
            case "flag":
                return isinstance(value, bool)
            case "document":
                return isinstance(value, Mapping)
            case "date":
                return isinstance(value, datetime)
        kinds = int if self.base == "whole" else (int, float)
        return (
            isinstance(value, kinds)
            and not isinstance(value, bool)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and value - value == 0  # neither infinite nor no number
        )

    def schema(self) -> dict[str, Any]:
        """The same as a JSON schema, in MongoDB's dialect."""
        schema = dict(_SCHEMAS[self.base])
        if self.above is not None:
            schema |= {"minimum": self.above, "exclusiveMinimum": True}
        if self.least is not None:
            schema["minimum"] = self.least
        if self.most is not None:
            schema["maximum"] = self.most
        return schema


@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    Attributes:
        path: with dots, as in MongoDB.
        kind: what it may be.
        help: what it is for, in one line.
        default: what is taken if it is left out or null.
        missing: the code of the error if it is; None: it may be left out.
        code: of the error if its value is not of its kind.
        is_ours: diagnose writes it, no user does.
        default_words: what is taken, where that is no value.
    """

    path: str
    kind: Kind
    help: str
    default: Any = None
    missing: str | None = None
    code: str = "wrong-type"
    is_ours: bool = False
    default_words: str = ""

    @property
    def is_required(self) -> bool:
        """Whether nothing can be taken if it is left out."""
        return self.missing is not None and not self.default_words

    def schema(self) -> dict[str, Any]:
        """What it may be, and what those in it may be, as a JSON schema in MongoDB's dialect."""
        schema = self.kind.schema()
        if not self.is_required and "bsonType" in schema:
            schema["bsonType"] = [*schema["bsonType"], "null"]
        elif self.kind.base == "text":
            schema["minLength"] = 1
        return schema | inside(self.path)


_TEXT = Kind("a text", "text")
_EXPRESSION = Kind("an expression in a text, such as 'elapsed'", "text")
_FLAG = Kind("true or false", "flag")
_DOCUMENT = Kind("a document", "document")
_TEXTS = Kind("a text or a list of texts", "texts")
_PERCENT = Kind("a number from 0 to 100", "number", least=0, most=100)
_HITS = Kind("a whole number above 0", "whole", least=1)
_MONTH = 60 * 24 * 30

_TABLE = (
    Field("_id", Kind("any value"), "what the spec is called"),
    Field("id", Kind("any value"), "what it is called, if not by its _id"),
    Field(
        "target",
        Kind("the dotted path of a function in a text, such as 'shop.cart.Cart.checkout'", "text"),
        "the dotted path of a function, method or property",
        missing="missing-target",
        code="target-type",
    ),
    Field(
        "instrument",
        Kind(
            "a document with type, name and value, such as "
            "{type: 'hist', name: 'cart.checkout', value: 'elapsed'}",
            "document",
        ),
        "what is measured there, and what becomes of it",
        missing="missing-instrument",
    ),
    Field(
        "instrument.type",
        _TEXT,
        "what becomes of the value: log, hist, incr, calltree, hunter, or one of the application's",
        missing="missing-type",
    ),
    Field("instrument.name", _TEXT, "what the values are called", default_words="the spec's id"),
    Field(
        "instrument.value",
        _EXPRESSION,
        "the expression to record, such as elapsed or 'len(items)'",
        missing="missing-value",
        default_words="that of the instrument's class, if it has one",
    ),
    Field(
        "instrument.event",
        _TEXT,
        "when: call, return, end, line:N or line:+K",
        default="return",
    ),
    Field("instrument.custom", _DOCUMENT, "what the instrument's class understands"),
    Field("instrument.custom.tags", _EXPRESSION, "an expression whose value is a dict of tags"),
    Field(
        "lifespan",
        Kind(
            f"a number of minutes from 0 to {LONGEST_LIFESPAN}, or null for until the spec is "
            "removed",
            "number",
            least=0,
            most=LONGEST_LIFESPAN,
        ),
        "for how long after lastmodified, in minutes; null: until the spec is removed",
        default=10,
        code="bad-lifespan",
    ),
    Field(
        "lastmodified",
        Kind(
            "a date between the years 1 and 9999 (new Date() in mongosh, a datetime in Python)",
            "date",
        ),
        "the version of the spec: a date that is set with each change",
        missing="lastmodified-missing",
    ),
    Field("when", _EXPRESSION, "a condition: an expression that is checked first"),
    Field("enabled", _FLAG, "false takes the probe off and keeps the document", default=True),
    Field("limits", _DOCUMENT, "how often it may fire"),
    Field(
        "limits.rate",
        Kind("a number above 0 (per second)", "number", above=0, most=1e9),
        "so many hits a second at most, in each process",
        default_words="100 for log, 1 for calltree and hunter",
    ),
    Field(
        "limits.sample",
        Kind("a number above 0, up to 1", "number", above=0, most=1),
        "the share of hits to take, such as 0.1",
        default_words="all",
    ),
    Field(
        "limits.hits", _HITS, "so many hits in each process, then it is done", default_words="any"
    ),
    Field(
        "limits.fleet_hits",
        _HITS,
        "so many hits in all processes together",
        default_words="any",
    ),
    Field("select", _DOCUMENT, "which processes it is for", default_words="all"),
    *(
        Field(f"select.{label}", _TEXTS, f"processes of this {label}: values, or patterns with *")
        for label in LABELS
    ),
    Field("select.percent", _PERCENT, "a stable share of the processes", default_words="all"),
    Field(
        "validate",
        _FLAG,
        "true: a dry run: each process says what it found, and arms nothing",
        default=False,
    ),
    Field("canary", _DOCUMENT, "begin on a few processes; it goes to all when all was well"),
    Field("canary.percent", _PERCENT, "on so many of them it begins", missing="missing-percent"),
    Field(
        "canary.for",
        Kind("a number of minutes above 0", "number", above=0, most=_MONTH),
        "in minutes: after which it goes to all",
        default=5,
    ),
    Field(
        "canary.max_cost",
        Kind("a share of one core, such as 0.01", "number", above=0, most=1000),
        "the share of one core that it may cost in a process",
        default_words="any",
    ),
    Field(
        "canary.max_errors",
        Kind("a whole number, 0 or more", "whole", least=0),
        "in how many processes it may fail",
        default=0,
    ),
    Field(
        "fingerprint",
        _TEXTS,
        "of the code that the spec is about; where the function has other code, nothing is armed",
        code="bad-fingerprint",
    ),
    Field("created_by", Kind("any value"), "for people"),
    Field("comment", Kind("any value"), "for people"),
    Field("applied", Kind("a document", "document"), "an entry of each process", is_ours=True),
    Field("stage", Kind("any value"), "how far its canary has come", is_ours=True),
    Field(
        "counts", Kind("any value"), "how many processes say what, in a large fleet", is_ours=True
    ),
    Field("changed", Kind("any value"), "who changed it last, and how", is_ours=True),
)

FIELDS: dict[str, Field] = {each.path: each for each in _TABLE}
"""By path. A field of another name is a mistake in a name."""


def names_in(path: str) -> tuple[str, ...]:
    """The names that a document may have in it; ``""``: the whole spec."""
    before = f"{path}." if path else ""
    inside = (each[len(before) :] for each in FIELDS if each.startswith(before))
    return tuple(name for name in inside if "." not in name)


def inside(path: str) -> dict[str, Any]:
    """The part of a JSON schema that is about the fields in a document; ``""``: the whole spec."""
    fields = [FIELDS[f"{path}.{name}" if path else name] for name in names_in(path)]
    schemas = {each.path.rpartition(".")[2]: each.schema() for each in fields}
    properties = {name: schema for name, schema in schemas.items() if schema}
    required = [each.path.rpartition(".")[2] for each in fields if each.is_required]
    return {
        **({"required": required} if required else {}),
        **({"properties": properties} if properties else {}),
    }


def table() -> str:
    """The table in Markdown."""
    rows = ["| field | type | if left out | meaning | code of the error |", "|---|---|---|---|---|"]
    for each in _TABLE:
        if each.is_required:
            default = f"the error `{each.missing}`"
        elif each.default is not None:
            default = f"`{str(each.default).lower()}`"
        else:
            default = each.default_words
        code = "" if each.kind.base == "any" or each.is_ours else f"`{each.code}`"
        words = "written by diagnose: " if each.is_ours else ""
        rows.append(
            f"| `{each.path}` | {each.kind.wanted} | {default} | {words}{each.help} | {code} |"
        )
    return "\n".join(rows)
