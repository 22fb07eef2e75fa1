"""Changes of specs that leave a trail: the author, the time, and what was different then.

::

    specs = client["diagnose"]["specs"]
    made = add(specs, {"target": "shop.cart.Cart.checkout", "instrument": {…}, "lifespan": 10})
    change(specs, made.spec_id, {"when": "len(self.items) > 100"})
    remove(specs, made.spec_id)
    for entry in history(specs, made.spec_id):
        print(entry.at, entry.by, entry.action, entry.difference)

A spec is checked before it is written, and its ``lastmodified`` is the server's time. Each edit is
recorded in the collection ``history`` beside the specs, which is only ever added to: see
:mod:`diagnose_mongo.history`.
"""

from __future__ import annotations

import copy
import getpass
import os
import random
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from diagnose import specs
from diagnose.errors import SpecError, StoreError
from diagnose_mongo import documents
from diagnose_mongo.history import HistoryRecord as Entry
from diagnose_mongo.history import Recorder, difference, history
from diagnose_mongo.store import SpecDocuments, is_refused, link_to

if TYPE_CHECKING:
    from collections.abc import Collection

    from diagnose_mongo.store import Link, SpecCollection

__all__ = [
    "Entry",
    "Via",
    "Written",
    "add",
    "change",
    "difference",
    "history",
    "new_id",
    "remove",
    "who",
]

Via = Literal["library", "command", "page", "canary", "hand"]

_KEPT_BY_DIAGNOSE = documents.WRITTEN | {documents.ID, documents.VERSION, "stage"}
_TRIES = 10
_LETTERS = "bcdfghjkmnpqrstvwxz23456789"
_LONGEST_ID = 40


@dataclass(frozen=True, slots=True)
class Written:
    """A spec as it was written.

    Attributes:
        spec_id: its ``_id``.
        version: its ``lastmodified``, naive, in UTC.
    """

    spec_id: Any
    version: datetime


def add(
    collection: SpecCollection | Link,
    document: Mapping[str, Any],
    *,
    by: str | None = None,
    via: Via = "library",
) -> Written:
    """Put in a spec.

    Args:
        collection: of specs.
        document: the spec. Without an ``_id`` it gets one made of the target's name; without
            ``created_by``, ``by``. Any ``lastmodified`` is replaced by the server's time.
        by: the author; None: :func:`who`.
        via: the means.

    Raises:
        SpecError: the document is no spec, or there is one with its ``_id`` (``spec-exists``).
            Nothing was written.
        StoreError: the server could not be asked.
    """
    link, by = link_to(collection), by or who()
    made = {name: value for name, value in document.items() if name != documents.VERSION}
    if given := sorted(documents.WRITTEN & made.keys()):
        raise SpecError(
            f"{', '.join(given)}: written by diagnose; leave it out of a new spec",
            code="reserved-field",
        )
    if documents.ID not in made:
        made = {documents.ID: new_id(str(made.get("target", ""))), **made}
    made.setdefault("created_by", by)
    _check(made)
    after = SpecDocuments(link).add(made, by, via)
    if after is None:
        raise SpecError(
            f"there is a spec {made[documents.ID]!r} in {link.collection.full_name!r} already; "
            "change that one, or give this one another _id",
            code="spec-exists",
        )
    Recorder(link).note_edit("add", None, after)
    return Written(after[documents.ID], after[documents.VERSION])


def change(
    collection: SpecCollection | Link,
    spec_id: object,
    fields: Mapping[str, Any],
    *,
    unset: Collection[str] = (),
    expected_version: datetime | None = None,
    by: str | None = None,
    via: Via = "library",
) -> Written:
    """Change a spec, which makes a new version of it, also if no field gets another value.

    Args:
        collection: of specs.
        spec_id: its ``_id``, or its field ``id``.
        fields: new values by dotted path, such as ``{"limits.rate": 5, "lifespan": None}``.
        unset: dotted paths of fields that are to be taken out.
        expected_version: change this version and no other; None: whichever is there.
        by: the author; None: :func:`who`.
        via: the means.

    Raises:
        SpecError: there is no such spec (``spec-not-found``), it has another version than
            expected (``version-moved``), or would be no spec any more. Nothing was written.
        StoreError: the server could not be asked.
    """
    link, by = link_to(collection), by or who()
    if kept := sorted({path.partition(".")[0] for path in (*fields, *unset)} & _KEPT_BY_DIAGNOSE):
        raise SpecError(
            f"{', '.join(kept)}: kept by diagnose, and can't be changed", code="reserved-field"
        )
    store, recorder = SpecDocuments(link), Recorder(link)
    for _ in range(_TRIES):
        before = store.found(spec_id)
        _expect(before, spec_id, expected_version)
        made = copy.deepcopy(before)
        for path, value in fields.items():
            _set(made, path, value)
        for path in unset:
            _unset(made, path)
        _check(made)
        recorder.notice_before(before[documents.ID])
        names = {path.partition(".")[0] for path in (*fields, *unset)}
        after = store.change(
            before[documents.ID],
            before.get(documents.VERSION),
            {name: made[name] for name in names if name in made},
            {name for name in names if name not in made},
            by=by,
            via=via,
        )
        if after is not None:
            recorder.note_edit("change", before, after)
            return Written(after[documents.ID], after[documents.VERSION])
        # Somebody else was faster: look at what is there now.
    raise StoreError(f"the spec {spec_id!r} changes all the time: try again")


def remove(
    collection: SpecCollection | Link,
    spec_id: object,
    *,
    expected_version: datetime | None = None,
    by: str | None = None,
    via: Via = "library",
) -> None:
    """Remove a spec: every process takes its probe off.

    Args:
        collection: of specs.
        spec_id: its ``_id``, or its field ``id``.
        expected_version: remove this version and no other; None: whichever is there.
        by: the author; None: :func:`who`.
        via: the means.

    Raises:
        SpecError: there is no such spec (``spec-not-found``), or it has another version than
            expected (``version-moved``).
        StoreError: the server could not be asked.
    """
    link, by = link_to(collection), by or who()
    store, recorder = SpecDocuments(link), Recorder(link)
    for _ in range(_TRIES):
        before = store.found(spec_id)
        _expect(before, spec_id, expected_version)
        raw_id, version = before[documents.ID], before.get(documents.VERSION)
        recorder.notice_before(raw_id)
        record_id = recorder.note_removal(before, by, via)
        try:
            if store.remove(raw_id, version):
                return
        except StoreError as exc:
            if is_refused(exc):
                recorder.note_failure(record_id, exc.message)
            raise
        recorder.note_failure(record_id, "the spec was changed meanwhile")
    raise StoreError(f"the spec {spec_id!r} changes all the time: try again")


def who() -> str:
    """The user that runs this process: ``user@host``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # in a container a user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def new_id(target: str) -> str:
    """An ``_id`` for a spec: the end of the target's path, and a few random characters."""
    names = re.sub(r"[^A-Za-z0-9_.]", "", target).split(".")[-2:]
    words = [word for name in names for word in name.strip("_").split("_") if word]
    name = "-".join(words)[:_LONGEST_ID].strip("-").lower() or "spec"
    return f"{name}-{''.join(random.choices(_LETTERS, k=4))}"


# --- documents ----------------------------------------------------------------------------------


def _expect(document: Mapping[str, Any], spec_id: object, version: datetime | None) -> None:
    if version is None:
        return
    if version.tzinfo is not None:
        version = version.astimezone(UTC).replace(tzinfo=None)
    there = document.get(documents.VERSION)
    if there != version:
        marker = document.get(documents.CHANGED)
        by = f" by {marker['by']}" if isinstance(marker, Mapping) and marker.get("by") else ""
        raise SpecError(
            f"the spec {spec_id!r} was changed{by}: its version is {there}, not {version}; look at "
            "it again",
            code="version-moved",
        )


def _check(document: Mapping[str, Any]) -> None:
    raw_id = document[documents.ID]
    name = documents.name_of(documents.key_of(raw_id), document) if raw_id is not None else None
    specs.parse(name, {**document, documents.VERSION: datetime.now(UTC)}, instrument_types=None)


def _set(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split(".")
    inner = document
    for parent in parents:
        if not isinstance(inner.get(parent), dict):
            inner[parent] = {}
        inner = inner[parent]
    inner[name] = value


def _unset(document: dict[str, Any], path: str) -> None:
    *parents, name = path.split(".")
    inner: Any = document
    for parent in parents:
        inner = inner.get(parent) if isinstance(inner, dict) else None
    if isinstance(inner, dict):
        inner.pop(name, None)
