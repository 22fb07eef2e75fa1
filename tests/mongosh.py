"""Runs what the documents show of mongosh: the few forms of JavaScript that they use."""

from __future__ import annotations

import re
from datetime import datetime

_WORDS = {"true": "True", "false": "False", "null": "None"}
_TOKENS = re.compile(
    r"""(?P<text>"[^"]*") | (?P<comment>//[^\n]*) | (?P<now>new\ Date\(\))
    | (?P<field>[$\w]+)(?=:\ ) | (?P<word>\b(?:true|false|null)\b)""",
    re.VERBOSE,
)


def value_of(text, **names):
    """The value of an expression such as ``{ a: new Date(), "b.c": null }``."""
    return eval(_as_python(text), names | {"ISODate": datetime.fromisoformat, "Date": datetime.now})


def run(text, database):
    """Run statements, each of which begins with ``db.``; what each has found."""
    statements = re.split(r"\n(?=db\.)", re.sub(r"(?m)^//.*\n", "", text).strip())
    return [value_of(each, db=_Database(database)) for each in statements]


def _as_python(text):
    def translated(match):
        kind, found = match.lastgroup, match[0]
        if kind == "field":
            return f'"{found}"'
        if kind == "word":
            return _WORDS[found]
        return {"comment": "", "now": "Date()"}.get(kind, found)

    # In parentheses: a statement goes over lines.
    return f"({_TOKENS.sub(translated, text).strip()})"


class _Database:
    def __init__(self, database):
        self._database = database

    def __getattr__(self, name):
        return _Collection(self._database[name])


class _Collection:
    def __init__(self, collection):
        self._collection = collection

    def insertOne(self, document):
        return self._collection.insert_one(document).inserted_id

    def updateOne(self, which, update, options):
        return self._collection.update_one(which, update, **options).upserted_id

    def find(self, which, fields):
        return list(self._collection.find(which, fields))

    def findOne(self, which):
        return _Found(self._collection.find_one(which))

    def aggregate(self, stages):
        return list(self._collection.aggregate(stages))


class _Found(dict):
    """A document, whose fields are attributes."""

    __getattr__ = dict.__getitem__
