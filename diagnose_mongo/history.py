"""The history of specs: a record of each edit, by whatever means.

:mod:`diagnose_mongo.changes` records what it does. Edits that are made in another way (in a shell
of MongoDB, say) are noticed by the process that does the fleet's chores, and by the next edit
that would hide them; they are recorded as made by hand.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from diagnose.errors import StoreError
from diagnose_mongo import documents
from diagnose_mongo.store import (
    HistoryStore,
    SpecDocuments,
    digest_of,
    is_about_content,
    is_refused,
    link_to,
    new_record_id,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from diagnose_mongo.store import Link, SpecCollection

__all__ = ["HistoryRecord", "Recorder", "Trail", "difference", "history"]

log = logging.getLogger(__name__)

_NOTICED_AT_ONCE = 20
_REMOVAL_TAKES_AT_MOST = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class HistoryRecord:
    """One edit of a spec, or what was noticed of one.

    Attributes:
        spec_id: the ``_id`` of the spec.
        action: ``add``, ``change`` or ``remove``.
        by: the user, as a rule ``user@host``; None: not known.
        via: the means, see :data:`diagnose_mongo.changes.Via`.
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


def history(
    collection: SpecCollection | Link, spec_id: object = None, limit: int = 100
) -> list[HistoryRecord]:
    """What was changed, the latest first.

    Args:
        collection: of specs.
        spec_id: the ``_id`` or ``id`` of a spec, which may be gone; None: of all.
        limit: so many changes at most.

    Raises:
        StoreError: the server could not be asked.
    """
    return [
        HistoryRecord(
            each["spec"],
            each["action"],
            each.get("by"),
            each["via"],
            each["at"],
            each.get("version"),
            tuple(each.get("difference", ())),
            each.get("failed"),
        )
        for each in HistoryStore(link_to(collection)).read(spec_id, limit)
    ]


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is different between two documents, a field each, but for what diagnose keeps itself.

    Returns:
        For each, the dotted path as ``field``, and ``old`` and ``new``, of which one may be
        missing.
    """
    old, new = dict(_leaves(before)), dict(_leaves(after))
    found = []
    for field in [*old, *(field for field in new if field not in old)]:
        if field in old and field in new and documents.are_same(old[field], new[field]):
            continue
        each: dict[str, Any] = {"field": field}
        each |= {"old": old[field]} if field in old else {}
        each |= {"new": new[field]} if field in new else {}
        found.append(each)
    return found


class Recorder:
    """Writes the records of edits. Thread-safe.

    Args:
        link: to the collections.
    """

    def __init__(self, link: Link) -> None:
        self._records = HistoryStore(link)
        self._specs = SpecDocuments(link)

    def note_edit(
        self, action: str, before: Mapping[str, Any] | None, after: Mapping[str, Any]
    ) -> None:
        """Record what was just done; if it can't be, the process with the lease makes up for it.

        Args:
            action: ``add`` or ``change``.
            before: the document as it was.
            after: the document as it was written, with the marker of the edit.
        """
        record = _marked_record(action, before, after)
        if record is None:
            return
        try:
            self._records.note(record)
        except StoreError as exc:
            log.warning("spec %r was written, but not its history (yet): %s", record["spec"], exc)

    def note_removal(self, before: Mapping[str, Any], by: str, via: str) -> Any:
        """Record a removal that is about to be done; the record's ``_id``.

        Afterwards nothing in the database would tell its author.

        Raises:
            StoreError: it could not be written.
        """
        record = _record(
            new_record_id(), "remove", before[documents.ID], before, None, by=by, via=via
        )
        self._records.note(record)
        return record[documents.ID]

    def note_failure(self, record_id: Any, reason: str) -> None:
        """Say of a removal that nothing came of it.

        Raises:
            StoreError: it could not be written.
        """
        self._records.note_failure(record_id, reason)

    def last_of_all(self) -> list[dict[str, Any]]:
        """Of the last record about each spec: ``spec``, ``action``, ``content``.

        Raises:
            StoreError: the server could not be asked.
        """
        return self._records.last_of_all()

    def notice(self, raw_id: Any, now: datetime | None = None) -> bool:
        """Record what became of a spec, if it is not; whether that could be decided yet.

        Args:
            raw_id: its ``_id``.
            now: by the server's clock, aware; without it, a removal that is under way stays open.

        Raises:
            StoreError: the server could not be asked.
        """
        # In this order: an record of a change that is made between the two is found by its marker.
        last = self._records.last(raw_id)
        document = self._specs.read(raw_id)
        is_removed = last is None or last["action"] == "remove"
        before = None if last is None or is_removed else last["after"]
        if document is None:
            if last is not None and not is_removed:
                self._records.note(_hand_record("remove", raw_id, last, before, None))
            return True
        if last is not None and _is_same_version(last, document):
            if not is_removed:
                if last["content"] == digest_of(document):
                    return True
            elif last["via"] != "hand":
                # A process is about to remove it, or was, and died.
                at = last["at"].replace(tzinfo=UTC)
                if now is None or now - at < _REMOVAL_TAKES_AT_MOST:
                    return False
                self._records.note_failure(last[documents.ID], "the spec was not removed")
                return self.notice(raw_id, now)
        action = "add" if is_removed else "change"
        record = _marked_record(action, before, document)
        if record is not None:
            there = self._records.find(record[documents.ID])
            if there is None:
                self._records.note(record)
                return True
            is_last = last is not None and there[documents.ID] == last[documents.ID]
            if last is None or (there["at"] >= last["at"] and not is_last):
                return True
            # Changed without another version; or one from before is back, from a backup, say.
        self._records.note(_hand_record(action, raw_id, last, before, document))
        return True

    def notice_before(self, raw_id: Any) -> None:
        """Record an edit by hand that is about to be hidden by one of ours.

        Raises:
            StoreError: the server could not be reached.
        """
        try:
            self.notice(raw_id)
        except StoreError as exc:
            if not (is_refused(exc) or is_about_content(exc)):
                raise


class Trail:
    """Notices edits that are not recorded; for the process that does the fleet's chores.

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
        recorder = Recorder(link)
        if self._seen is None:
            self._seen = {
                documents.key_of(each["spec"]): (each["spec"], None, each["content"])
                for each in recorder.last_of_all()
                if each["action"] != "remove"
            }
        seen = self._seen
        there = {documents.key_of(raw_id): (raw_id, document) for raw_id, document in found}
        left = _NOTICED_AT_ONCE
        for key, (raw_id, document) in there.items():
            _, known, content = seen.get(key, (None, None, None))
            if document is known or not isinstance(document, dict):
                continue
            if content is None or digest_of(document) != content:
                if not left:
                    continue
                left -= 1
                if not self._notice(recorder, raw_id, now):
                    continue
                content = digest_of(document)
            seen[key] = raw_id, document, content
        for key in [key for key in seen if key not in there][:left]:
            if self._notice(recorder, seen[key][0], now):
                del seen[key]

    @staticmethod
    def _notice(recorder: Recorder, raw_id: Any, now: datetime) -> bool:
        try:
            return recorder.notice(raw_id, now)
        except StoreError as exc:
            if not is_about_content(exc):
                raise
            log.warning("a change of the spec %r can't be recorded: %s", raw_id, exc)
            return True


def _record(
    record_id: Any,
    action: str,
    raw_id: Any,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    *,
    by: str | None,
    via: str,
) -> dict[str, Any]:
    document = after or before or {}
    record: dict[str, Any] = {
        documents.ID: record_id,
        "spec": raw_id,
        "action": action,
        "by": by,
        "via": via,
        "version": document.get(documents.VERSION),
        "difference": difference(before or {}, after or {}),
        "after": None if after is None else _own(after),
        "content": None if after is None else digest_of(after),
    }
    if isinstance(name := document.get("id"), str):
        record["name"] = name
    return record


def _marked_record(
    action: str, before: Mapping[str, Any] | None, after: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The record of a version, as its marker says; None: there is none, or it is of another."""
    marker = after.get(documents.CHANGED)
    if not isinstance(marker, Mapping) or not isinstance(marker.get("via"), str):
        return None
    if marker.get("id") is None or marker.get("version") != after.get(documents.VERSION):
        return None
    by = marker.get("by")
    record = _record(
        marker["id"],
        action,
        after[documents.ID],
        before,
        after,
        by=by if isinstance(by, str) else None,
        via=marker["via"],
    )
    record["at"] = after[documents.VERSION]
    return record


def _hand_record(
    action: str,
    raw_id: Any,
    last: Mapping[str, Any] | None,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> dict[str, Any]:
    # The same for each process that notices it, so that it is recorded once.
    follows = (
        None if last is None else hashlib.sha256(repr(last[documents.ID]).encode()).hexdigest()
    )
    record_id = {
        "spec": raw_id,
        "follows": follows,
        "content": None if after is None else digest_of(after),
    }
    return _record(record_id, action, raw_id, before, after, by=None, via="hand")


def _is_same_version(record: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    return documents.are_same(record.get("version"), document.get(documents.VERSION))


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
