"""Heartbeats: a process says that it lives, and what its probes do and cost."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import time
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from diagnose.specs import process_share
from diagnose_mongo import bounds, documents

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from diagnose.records import Record
    from diagnose_mongo.store import ProcessStore

__all__ = ["Heart", "Life", "content"]

log = logging.getLogger(__name__)

_SPECS_AT_MOST = 200
_LONGEST_ERROR = 300


class Life(NamedTuple):
    """What the answer to a heartbeat says of the time since the one before.

    Attributes:
        expires: until when the process counts as living; by the server's clock, naive.
        had_gap: it counted as dead meanwhile.
        is_shared: another manager lived under the same id meanwhile.
    """

    expires: datetime | None
    had_gap: bool
    is_shared: bool


class Heart:
    """When the next heartbeat is due, and what the last ones told. For one thread at a time.

    Attributes:
        has_beaten: whether there is a document of this process, as far as is known here.
    """

    def __init__(self) -> None:
        self.has_beaten = False
        self._due_at = 0.0
        # Tells apart managers that use the same id.
        self._run = secrets.token_hex(8)
        self._is_alone = True

    def is_due(self) -> bool:
        """Whether it is time for a heartbeat."""
        return time.monotonic() >= self._due_at

    def hurry(self) -> None:
        """Have the next one made with the next poll."""
        self._due_at = 0.0

    def beat(
        self, processes: ProcessStore, process_id: str, told: Mapping[str, Any], seconds: float
    ) -> Life:
        """Say that the process lives.

        Args:
            processes: where it is said.
            process_id: of this process.
            told: see :func:`content`.
            seconds: until the next heartbeat.

        Raises:
            StoreError: it could not be said.
        """
        before, expires = processes.beat(
            process_id, told, seconds * bounds.TTL_HEARTBEATS, self._run
        )
        had_beaten, self.has_beaten = self.has_beaten, True
        # A poll may come a little early.
        self._due_at = time.monotonic() + seconds - told["period"] / 2
        is_shared = had_beaten and before not in {None, self._run}
        if is_shared and self._is_alone:
            self._is_alone = False
            log.warning(
                "another manager uses the process id %r: they overwrite each other's entries; "
                "give each an id of its own, or none at all",
                process_id,
            )
        return Life(expires, had_gap=had_beaten and before is None, is_shared=is_shared)


def content(
    process_id: str,
    labels: Mapping[str, str],
    period: float,
    records: Iterable[tuple[Any, object, Record]],
) -> dict[str, Any]:
    """A process's document, but for its moments.

    Args:
        process_id: of this process.
        labels: what specs select it by.
        period: seconds between its polls.
        records: for each spec that is meant for it, the ``_id``, ``lastmodified`` and what is
            known of it.
    """
    figures = [_figures(*each) for each in records]
    # Of very many, those that did most.
    figures.sort(key=lambda each: -each["hits"])
    return {
        "labels": {_field(name): value for name, value in labels.items()},
        "share": process_share(process_id),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "diagnose": _version(),
        "period": period,
        "specs": figures[:_SPECS_AT_MOST],
    }


def _figures(raw_id: Any, version: object, record: Record) -> dict[str, Any]:
    outcome, status = record.outcome, record.status
    found: dict[str, Any] = {
        "id": documents.small(raw_id),
        "lm": documents.small(version),
        "hits": 0,
        "cost": 0.0,
    }
    if outcome is not None:
        found["state"] = outcome.state.value
        if outcome.code is not None:
            found["code"] = outcome.code
        if outcome.err is not None:
            found["err"] = documents.text(outcome.err, _LONGEST_ERROR)
        if outcome.acts:
            found["acts"] = True
    if status is not None:
        found["hits"] = status.hits
        if record.instrument is not None:
            found["cost"] = round(status.cost, 9)
        if suppressed := dict(status.suppressed):
            found["suppressed"] = suppressed
    return found


def _field(name: str) -> str:
    """A label's name as that of a field."""
    return name.replace(".", "_").replace("$", "_").replace("\0", "_") or "_"


@cache
def _version() -> str:
    # Reading the metadata of a distribution takes a millisecond: not at each heartbeat.
    try:
        return metadata.version("diagnose-mongo")
    except metadata.PackageNotFoundError:  # it runs from its source
        return "unknown"
