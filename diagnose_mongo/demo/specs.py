"""The specs that the demo puts into MongoDB, and how they look when a user types them.

They are plain documents. Whatever inserts them (pymongo, mongosh, an admin page) is all the
same to the fleet: it sees documents with a new ``lastmodified``.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

__all__ = ["BROKEN_AT_RUN_TIME", "CHANGE", "MISTAKES", "REMOVED", "THREE_KINDS", "stamped", "typed"]

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

BROKEN_AT_RUN_TIME = "docstring-length"
CHANGE: Document = {
    "$set": {"instrument.value": "len(result or '')"},
    "$currentDate": {"lastmodified": True},
}
REMOVED = "longest-function"

LIFESPAN_MINUTES = 10


def stamped(document: Document) -> Document:
    """The document as it is inserted: with its version, and the time it has to live."""
    return {**document, "lifespan": LIFESPAN_MINUTES, "lastmodified": datetime.now(UTC)}


def typed(call: str, *arguments: object) -> str:
    """The call as one would type it: ``specs.insert_one({"_id": …})``."""
    return f"{call}({', '.join(_literal(each, depth=0) for each in arguments)})"


def _literal(value: object, depth: int) -> str:
    if isinstance(value, datetime):
        return "datetime.now(UTC)"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict):
        return repr(value)
    items = [f"{_literal(key, 1)}: {_literal(each, depth + 1)}" for key, each in value.items()]
    # One field to a line, but for the two that every spec has at its end.
    if depth == 0 and "lastmodified" in value:
        items[-2:] = [", ".join(items[-2:])]
        return "{\n" + "".join(f"    {item},\n" for item in items) + "}"
    return f"{{{', '.join(items)}}}"
