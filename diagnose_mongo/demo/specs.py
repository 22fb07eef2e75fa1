"""The specs that the demo puts into MongoDB, and how they look when a user types them.

They are plain documents. Whatever inserts them (pymongo, mongosh, an admin page) is all the
same to the fleet: it sees documents with a new ``lastmodified``.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

__all__ = [
    "CORRECTION",
    "FAILING",
    "FUNCTION_OF_REMOVED",
    "MISTAKES",
    "OWN_IN_MONGOSH",
    "OWN_IN_PYTHON",
    "REMOVED",
    "SERVICE",
    "THREE_KINDS",
    "stamped",
    "typed",
]

Document = dict[str, Any]

SERVICE = "diagnose_mongo.demo.workload"

THREE_KINDS: list[tuple[str, Document]] = [
    (
        "A histogram: how long does a method take?",
        {
            "_id": "parse-time",
            "target": f"{SERVICE}.SourceFile.parse",
            "instrument": {"type": "hist", "name": "parse.seconds", "value": "elapsed"},
        },
    ),
    (
        "A counter with tags, on a coroutine: what sizes of files does it get?",
        {
            "_id": "files-by-size",
            "target": f"{SERVICE}.Indexer.index",
            "instrument": {
                "type": "incr",
                "name": "files",
                "value": "1",
                "custom": {"tags": "{'size': file.size}"},
            },
        },
    ),
    (
        "A log of local variables: 'end' sees what a function knows just before it returns.",
        {
            "_id": "longest-function",
            "target": f"{SERVICE}.measure",
            "instrument": {
                "type": "log",
                "name": "longest",
                "value": "(source.name, longest, most_lines)",
                "event": "end",
            },
            "when": "most_lines > 100",
        },
    ),
]

MISTAKES: list[tuple[str, Document]] = [
    (
        "A target with a typo.",
        {
            "_id": "tokens",
            "target": f"{SERVICE}.SourceFile.tokenise",
            "instrument": {"type": "hist", "name": "tokens", "value": "result"},
        },
    ),
    (
        "A value that fails at run time: a function without a docstring gives None.",
        {
            "_id": "docstring-length",
            "target": f"{SERVICE}.docstring",
            "instrument": {"type": "hist", "name": "docstring.chars", "value": "len(result)"},
        },
    ),
]

FAILING = "docstring-length"
CORRECTION: Document = {
    "$set": {"instrument.value": "len(result or '')"},
    "$currentDate": {"lastmodified": True},
}

REMOVED = "longest-function"
FUNCTION_OF_REMOVED = "measure"

OWN_IN_MONGOSH = """\
mongosh '{uri}' --eval '
db.getSiblingDB("{database}").specs.insertOne({{
    _id: "mine", lastmodified: new Date(), lifespan: 10,
    target: "diagnose_mongo.demo.workload.SourceFile.read",
    instrument: {{type: "hist", name: "characters", value: "len(result)"}}}})'"""

OWN_IN_PYTHON = """\
{python} -c '
from datetime import UTC, datetime
from pymongo import MongoClient
specs = MongoClient("{uri}")["{database}"]["specs"]
specs.insert_one({{
    "_id": "mine", "lastmodified": datetime.now(UTC), "lifespan": 10,
    "target": "diagnose_mongo.demo.workload.SourceFile.read",
    "instrument": {{"type": "hist", "name": "characters", "value": "len(result)"}}}})'"""

LIFESPAN_MINUTES = 10

_WIDTH = 90


def stamped(document: Document) -> Document:
    """The document as it is inserted: with its version, and the time it has to live."""
    return {**document, "lifespan": LIFESPAN_MINUTES, "lastmodified": datetime.now(UTC)}


def typed(call: str, *arguments: object) -> str:
    """The call as one would type it: ``specs.insert_one({"_id": ...})``."""
    on_one_line = f"{call}({', '.join(_literal(each) for each in arguments)})"
    if len(on_one_line) <= _WIDTH:
        return on_one_line
    *before, last = arguments
    return f"{call}({', '.join([*map(_literal, before), _spread(last, '    ')])})"


def _spread(value: object, indent: str) -> str:
    """A document with a field to a line, and within those with fields to lines if need be."""
    if not isinstance(value, dict):
        return _literal(value)
    lines = []
    for key, each in value.items():
        line = f"{indent}{_literal(key)}: {_literal(each)},\n"
        if len(line) > _WIDTH:
            line = f"{indent}{_literal(key)}: {_spread(each, indent + '    ')},\n"
        lines.append(line)
    return f"{{\n{''.join(lines)}{indent[4:]}}}"


def _literal(value: object) -> str:
    if isinstance(value, datetime):
        return "datetime.now(UTC)"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(k)}: {_literal(v)}' for k, v in value.items())}}}"
    return repr(value)
