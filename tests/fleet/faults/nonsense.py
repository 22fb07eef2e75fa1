"""Documents that are none: all kinds of BSON where it does not belong, made byte by byte."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

from bson import Int64, ObjectId, encode
from bson.binary import Binary
from bson.code import Code
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.raw_bson import RawBSONDocument
from bson.regex import Regex
from bson.timestamp import Timestamp


def deep(levels):
    document = {}
    for _ in range(levels):
        document = {"a": document}
    return document


def raw(*elements):
    body = b"".join(elements)
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def element(name, value):
    return encode({name: value})[4:-1]


VALUES = {
    "nan": float("nan"),
    "infinite": float("-inf"),
    "regex": Regex("a(", "i"),
    "code": Code("x"),
    "code with scope": Code("x", {"a": 1}),
    "dbref": DBRef("c", 1, "d"),
    "decimal": Decimal128("NaN"),
    "old binary": Binary(b"x" * 10, 2),
    "uuid": Binary(b"x" * 16, 4),
    "old uuid": Binary(b"x" * 16, 3),
    "no uuid": Binary(b"xx", 4),
    "timestamp": Timestamp(1, 1),
    "min": MinKey(),
    "max": MaxKey(),
    "far": DatetimeMS(2**62),
    "long ago": DatetimeMS(-(2**62)),
    "negative": -5,
    "long": Int64(2**62),
    "object id": ObjectId(b"x" * 12),
    "huge text": "x" * 50_000,
    "bell": "\a\0\n",
    "deep": deep(150),
    "as deep as it gets": deep(177),
    "operator": {"$gt": 1},
    "dotted": {"a.b": 1},
    "wide": {str(i): i for i in range(3_000)},
    "nested lists": [[[[1]]]],
}
# What no driver makes: type, and the bytes of the value.
RAW = {
    "invalid utf-8": (2, struct.pack("<i", 3) + b"\xff\xfe\0"),
    "symbol": (14, struct.pack("<i", 2) + b"s\0"),
    "undefined": (6, b""),
    "dbpointer": (12, struct.pack("<i", 2) + b"c\0" + b"o" * 12),
    "no dbref": (3, raw(element("$ref", 5), element("$id", 1))),
    "no dbref either": (3, raw(element("$ref", "c"), element("$id", 1), element("$db", 7))),
    "undecodable": (5, struct.pack("<i", 4) + b"\2" + struct.pack("<i", 99)),
    "the same field twice": (3, raw(element("a", 1), element("a", 2))),
    "invalid utf-8 as a name": (3, raw(b"\x10\xff\0" + struct.pack("<i", 1))),
    "invalid utf-8 as a pattern": (11, b"a\xff\0zz\0"),
}
FIELDS = (
    *("target", "instrument", "lifespan", "lastmodified", "when", "enabled", "limits", "select"),
    *("fingerprint", "canary", "stage", "validate", "applied", "id"),
    *("instrument.type", "instrument.value", "instrument.event", "instrument.custom"),
    *("limits.rate", "limits.sample", "limits.hits", "limits.fleet_hits"),
    *("select.service", "select.env", "select.host", "select.version", "select.percent"),
    *("canary.percent", "canary.for", "canary.max_errors", "canary.max_cost", "instrument.name"),
    "created_by",
)


def elements(name):
    """Every kind of value as an element of this name."""
    for kind, value in VALUES.items():
        yield kind, element(name, value)
    for kind, (code, value) in RAW.items():
        yield kind, bytes([code]) + name.encode() + b"\0" + value


def specs(target):
    """Specs with nonsense in one field each, and what that is."""
    whole = {
        "target": target,
        "instrument": {"type": "seen", "name": "n", "value": "result"},
        "lifespan": 10,
        "lastmodified": datetime.now(UTC),
        "limits": {"hits": 10_000},
        "select": {"percent": 100},
        "canary": {"percent": 100, "for": 10},
    }
    for field in FIELDS:
        outer, _, inner = field.partition(".")
        for kind, odd in elements(inner or outer):
            parts = [element("_id", f"{field}: {kind}")]
            for name, value in whole.items():
                if name != outer:
                    if name != "canary":
                        parts.append(element(name, value))
                elif inner:
                    rest = {key: each for key, each in value.items() if key != inner}
                    parts.append(b"\x03" + name.encode() + b"\0" + raw(encode(rest)[4:-1] + odd))
            if not inner:
                parts.append(odd)
            yield field, kind, RawBSONDocument(raw(*parts))


def ids(target):
    """Specs that are valid but for their ``_id``, as far as a server takes that."""
    for kind, odd in elements("_id"):
        rest = {
            "target": target,
            "instrument": {"type": "seen", "name": "n", "value": "result"},
            "lifespan": 10,
            "lastmodified": datetime.now(UTC),
        }
        yield kind, RawBSONDocument(raw(odd, encode(rest)[4:-1]))
