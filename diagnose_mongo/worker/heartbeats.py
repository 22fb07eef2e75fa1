"""What a process says of itself in its heartbeats: who it is, and what its probes do and cost."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from diagnose.specs import process_share
from diagnose_mongo import documents

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from diagnose.outcomes import Record

__all__ = ["content"]

_SPECS_AT_MOST = 200
_LONGEST_ERROR = 300


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
