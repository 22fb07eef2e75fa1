"""Changes of specs that leave a trail: who did what, when, and what was different then.

::

    specs = client["diagnose"]["specs"]
    made = add(specs, {"target": "shop.cart.Cart.checkout", "instrument": {…}, "lifespan": 10})
    change(specs, made.spec_id, {"when": "len(self.items) > 100"})
    remove(specs, made.spec_id)
    for entry in history(specs, made.spec_id):
        print(entry.at, entry.by, entry.action, entry.difference)

A spec is checked before it is written, and its ``lastmodified`` is the server's time. Entries go
into the collection ``history`` beside the specs, which is only ever added to. Changes that are
made in another way are noticed by the process that does the fleet's chores, and are recorded as
made by hand.
"""

from __future__ import annotations

import copy
import getpass
import hashlib
import logging
import os
import random
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from diagnose import specs
from diagnose.errors import SpecError, StoreError
from diagnose_mongo import documents
from diagnose_mongo.store import (
    HistoryStore,
    Link,
    RolloutStore,
    content_of,
    is_about_content,
    is_refused,
    new_entry_id,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Sequence

    from diagnose_mongo.store import SpecCollection

__all__ = [
    "Entry",
    "Trail",
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

log = logging.getLogger(__name__)

Via = Literal["library", "command", "page", "canary", "hand"]

_KEPT_BY_DIAGNOSE = documents.WRITTEN | {documents.ID, documents.VERSION, "stage"}
_TRIES = 10
_NOTICED_AT_ONCE = 20
_REMOVAL_TAKES_AT_MOST = timedelta(minutes=1)
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


@dataclass(frozen=True, slots=True)
class Entry:
    """One change of a spec.

    Attributes:
        spec_id: the ``_id`` of the spec.
        action: ``add``, ``change`` or ``remove``.
        by: who it was, as a rule ``user@host``; None: nobody knows.
        via: what with.
        at: when, by the server's clock, naive, in UTC. Of what was done by hand: when it was
            noticed.
        version: the ``lastmodified`` that it made, or that was removed.
        difference: for each field that was different after it, the dotted path as ``field``,
            and ``old`` and ``new``, of which one is missing where the field was.
        failed: why nothing came of it; None: it was done.
    """

    spec_id: Any
    action: str
    by: str | None
    via: str
    at: datetime
    version: Any
    difference: tuple[Mapping[str, Any], ...]
    failed: str | None = None


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
        by: who does it; None: :func:`who`.
        via: what with.

    Raises:
        SpecError: the document is no spec, or there is one with its ``_id`` (``spec-exists``).
            Nothing was written.
        StoreError: the server could not be asked.
    """
    link, by = _link(collection), by or who()
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
    store = HistoryStore(link)
    after = store.add(made, by, via)
    if after is None:
        raise SpecError(
            f"there is a spec {made[documents.ID]!r} in {link.collection.full_name!r} already; "
            "change that one, or give this one another _id",
            code="spec-exists",
        )
    _note(store, _marked_entry("add", None, after))
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
        by: who does it; None: :func:`who`.
        via: what with.

    Raises:
        SpecError: there is no such spec (``spec-not-found``), it has another version than
            expected (``version-moved``), or would be no spec any more. Nothing was written.
        StoreError: the server could not be asked.
    """
    link, by = _link(collection), by or who()
    if kept := sorted({path.partition(".")[0] for path in (*fields, *unset)} & _KEPT_BY_DIAGNOSE):
        raise SpecError(
            f"{', '.join(kept)}: kept by diagnose, and can't be changed", code="reserved-field"
        )
    store = HistoryStore(link)
    for _ in range(_TRIES):
        before = _found(link, spec_id)
        _expect(before, spec_id, expected_version)
        made = copy.deepcopy(before)
        for path, value in fields.items():
            _set(made, path, value)
        for path in unset:
            _unset(made, path)
        _check(made)
        _notice_before(store, before[documents.ID])
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
            _note(store, _marked_entry("change", before, after))
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
        by: who does it; None: :func:`who`.
        via: what with.

    Raises:
        SpecError: there is no such spec (``spec-not-found``), or it has another version than
            expected (``version-moved``).
        StoreError: the server could not be asked.
    """
    link, by = _link(collection), by or who()
    store = HistoryStore(link)
    for _ in range(_TRIES):
        before = _found(link, spec_id)
        _expect(before, spec_id, expected_version)
        raw_id, version = before[documents.ID], before.get(documents.VERSION)
        _notice_before(store, raw_id)
        entry = _entry(new_entry_id(), "remove", raw_id, before, None, by=by, via=via)
        # Before it is done: afterwards nothing in the database would tell who did it.
        store.note(entry)
        try:
            if store.remove(raw_id, version):
                return
        except StoreError as exc:
            if is_refused(exc):
                store.note_failure(entry[documents.ID], exc.message)
            raise
        store.note_failure(entry[documents.ID], "the spec was changed meanwhile")
    raise StoreError(f"the spec {spec_id!r} changes all the time: try again")


def history(
    collection: SpecCollection | Link, spec_id: object = None, limit: int = 100
) -> list[Entry]:
    """What was changed, the latest first.

    Args:
        collection: of specs.
        spec_id: the ``_id`` or ``id`` of a spec, which may be gone; None: of all.
        limit: so many changes at most.

    Raises:
        StoreError: the server could not be asked.
    """
    return [
        Entry(
            each["spec"],
            each["action"],
            each.get("by"),
            each["via"],
            each["at"],
            each.get("version"),
            tuple(each.get("difference", ())),
            each.get("failed"),
        )
        for each in HistoryStore(_link(collection)).read(spec_id, limit)
    ]


def who() -> str:
    """Who runs this process: ``user@host``."""
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


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is different between two documents, a field each, but for what diagnose keeps itself.

    Returns:
        For each, the dotted path as ``field``, and ``old`` and ``new``, of which one may be
        missing.
    """
    old, new = dict(_leaves(before)), dict(_leaves(after))
    found = []
    for field in [*old, *(field for field in new if field not in old)]:
        if field in old and field in new and _are_same(old[field], new[field]):
            continue
        each: dict[str, Any] = {"field": field}
        each |= {"old": old[field]} if field in old else {}
        each |= {"new": new[field]} if field in new else {}
        found.append(each)
    return found


class Trail:
    """Notices changes that nobody has recorded; for the process that does the fleet's chores.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[Any, Any, str | None]] | None = None

    def forget(self) -> None:
        """Begin anew: others may have done this meanwhile."""
        self._seen = None

    def follow(self, link: Link, found: Sequence[tuple[Any, Any]], now: datetime) -> None:
        """Look at what is there now, and record what is not recorded yet; of very much, some.

        Args:
            link: to the collections.
            found: of each spec the ``_id`` and document, as last read.
            now: by the server's clock, aware.

        Raises:
            StoreError: the server could not be asked.
        """
        store = HistoryStore(link)
        if self._seen is None:
            self._seen = {
                documents.key_of(each["spec"]): (each["spec"], None, each["content"])
                for each in store.last_of_all()
                if each["action"] != "remove"
            }
        seen = self._seen
        there = {documents.key_of(raw_id): (raw_id, document) for raw_id, document in found}
        budget = _NOTICED_AT_ONCE
        for key, (raw_id, document) in there.items():
            _, known, content = seen.get(key, (None, None, None))
            if document is known or not isinstance(document, dict):
                continue
            if content is None or content_of(document) != content:
                if not budget:
                    continue
                budget -= 1
                if not self._notice(store, raw_id, now):
                    continue
                content = content_of(document)
            seen[key] = raw_id, document, content
        for key in [key for key in seen if key not in there][:budget]:
            if self._notice(store, seen[key][0], now):
                del seen[key]

    @staticmethod
    def _notice(store: HistoryStore, raw_id: Any, now: datetime) -> bool:
        try:
            return _notice(store, raw_id, now)
        except StoreError as exc:
            if not is_about_content(exc):
                raise
            log.warning("a change of the spec %r can't be recorded: %s", raw_id, exc)
            return True


# --- entries ------------------------------------------------------------------------------------


def _notice(store: HistoryStore, raw_id: Any, now: datetime | None = None) -> bool:
    """Record what became of a spec, if it is not; whether that could be decided yet."""
    # In this order: an entry of a change that is made between the two is found by its marker.
    last = store.last(raw_id)
    document = store.spec(raw_id)
    is_removed = last is None or last["action"] == "remove"
    before = None if last is None or is_removed else last["after"]
    if document is None:
        if last is not None and not is_removed:
            store.note(_hand_entry("remove", raw_id, last, before, None))
        return True
    if last is not None and _is_same_version(last, document):
        if not is_removed:
            if last["content"] == content_of(document):
                return True
        elif last["via"] != "hand":
            # Somebody is about to remove it, or was, and died.
            at = last["at"].replace(tzinfo=UTC)
            if now is None or now - at < _REMOVAL_TAKES_AT_MOST:
                return False
            store.note_failure(last[documents.ID], "the spec was not removed")
            return _notice(store, raw_id, now)
    action = "add" if is_removed else "change"
    entry = _marked_entry(action, before, document)
    if entry is not None:
        there = store.find(entry[documents.ID])
        if there is None:
            store.note(entry)
            return True
        is_last = last is not None and there[documents.ID] == last[documents.ID]
        if last is None or (there["at"] >= last["at"] and not is_last):
            return True
        # Changed without another version; or one from before is back, from a backup, say.
    store.note(_hand_entry(action, raw_id, last, before, document))
    return True


def _notice_before(store: HistoryStore, raw_id: Any) -> None:
    """Record a change by hand that is about to be hidden by one of ours."""
    try:
        _notice(store, raw_id)
    except StoreError as exc:
        if not (is_refused(exc) or is_about_content(exc)):
            raise


def _note(store: HistoryStore, entry: Mapping[str, Any] | None) -> None:
    """Record what was just done; if it can't be, whoever does the chores makes up for it."""
    if entry is None:
        return
    try:
        store.note(entry)
    except StoreError as exc:
        log.warning("spec %r was written, but not its history (yet): %s", entry["spec"], exc)


def _entry(
    entry_id: Any,
    action: str,
    raw_id: Any,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    *,
    by: str | None,
    via: str,
) -> dict[str, Any]:
    document = after or before or {}
    entry: dict[str, Any] = {
        documents.ID: entry_id,
        "spec": raw_id,
        "action": action,
        "by": by,
        "via": via,
        "version": document.get(documents.VERSION),
        "difference": difference(before or {}, after or {}),
        "after": None if after is None else _own(after),
        "content": None if after is None else content_of(after),
    }
    if isinstance(name := document.get("id"), str):
        entry["name"] = name
    return entry


def _marked_entry(
    action: str, before: Mapping[str, Any] | None, after: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The entry of a version, as its marker says; None: there is none, or it is of another."""
    marker = after.get(documents.CHANGED)
    if not isinstance(marker, Mapping) or not isinstance(marker.get("via"), str):
        return None
    if marker.get("id") is None or marker.get("version") != after.get(documents.VERSION):
        return None
    by = marker.get("by")
    entry = _entry(
        marker["id"],
        action,
        after[documents.ID],
        before,
        after,
        by=by if isinstance(by, str) else None,
        via=marker["via"],
    )
    entry["at"] = after[documents.VERSION]
    return entry


def _hand_entry(
    action: str,
    raw_id: Any,
    last: Mapping[str, Any] | None,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> dict[str, Any]:
    # The same whoever notices it, so that it is recorded once.
    follows = (
        None if last is None else hashlib.sha256(repr(last[documents.ID]).encode()).hexdigest()
    )
    entry_id = {
        "spec": raw_id,
        "follows": follows,
        "content": None if after is None else content_of(after),
    }
    return _entry(entry_id, action, raw_id, before, after, by=None, via="hand")


def _is_same_version(entry: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    return documents.version_of(entry.get("version")) == documents.version_of(
        document.get(documents.VERSION)
    )


# --- documents ----------------------------------------------------------------------------------


def _link(collection: SpecCollection | Link) -> Link:
    return collection if isinstance(collection, Link) else Link(collection)


def _found(link: Link, spec_id: object) -> dict[str, Any]:
    found = RolloutStore(link).spec(spec_id)
    if found is None:
        raise SpecError(
            f"there is no spec {spec_id!r} in {link.collection.full_name!r}; `diagnose ls` lists "
            "those that are there",
            code="spec-not-found",
        )
    return found


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


def _own(document: Mapping[str, Any]) -> dict[str, Any]:
    """A spec without what processes and the history have written into it."""
    return {name: value for name, value in document.items() if name not in documents.WRITTEN}


def _leaves(document: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in document.items():
        if not path and name in {*documents.WRITTEN, documents.ID, documents.VERSION}:
            continue
        if isinstance(value, Mapping) and value:
            found += _leaves(value, f"{path}{name}.")
        else:
            found.append((f"{path}{name}", value))
    return found


def _are_same(one: object, other: object) -> bool:
    return specs.content_of(one) == specs.content_of(other)
