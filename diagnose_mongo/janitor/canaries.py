"""Canaries: specs that begin on a few processes and go on by themselves, or are taken back.

Every step is one change of the document, made only if the version is still the one that was
looked at. It makes a new version, which every process then finds by polling.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, NamedTuple

from diagnose import specs
from diagnose.errors import SpecError
from diagnose.specs import FAILED_STATES, Stage
from diagnose_mongo import documents
from diagnose_mongo.store import RolloutStore, SpecDocuments

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from typing import Any

    from diagnose.specs import Spec
    from diagnose_mongo.store import Link

__all__ = ["Step", "decide", "move_on"]

log = logging.getLogger(__name__)

_WELL = frozenset({"installed", "emitting", "done"})
_LATE = frozenset({"waiting", "behind"})
_WIDEN_BY = 2.0
_ALL = 100.0
_PATIENCE = timedelta(seconds=30)


class Step(NamedTuple):
    """A change of a canary's stage.

    Attributes:
        stage: where it goes.
        reason: why, for people.
        percent: of the processes, if it stays a canary.
    """

    stage: Stage
    reason: str
    percent: float | None = None


def decide(
    spec: Spec,
    rows: Iterable[Mapping[str, Any]],
    costs: Mapping[str, Any],
    now: datetime,
    meant: int,
) -> Step | None:
    """What is to be done with a canary; None: nothing yet.

    Args:
        spec: its stage is :attr:`Stage.CANARY`.
        rows: how far it has come, as ``RolloutStore.count`` says.
        costs: as ``RolloutStore.costs`` says.
        now: by the server's clock, aware.
        meant: how many processes it is meant for in the end.
    """
    canary = spec.canary
    if canary is None or spec.select is None:
        return None
    counts: dict[str, int] = {}
    codes = []
    for row in rows:
        counts[row["state"]] = counts.get(row["state"], 0) + row["count"]
        if row["state"] in FAILED_STATES:
            codes.append(str(row["code"]))
    failed = sum(counts.get(state, 0) for state in FAILED_STATES)
    if failed > canary.max_errors:
        return Step(
            Stage.TAKEN_BACK,
            f"the canary was taken back: it failed in {failed} processes "
            f"({', '.join(sorted(set(codes)))}), and max_errors is {canary.max_errors}",
        )
    if canary.max_cost is not None and costs["cost"] > canary.max_cost:
        return Step(
            Stage.TAKEN_BACK,
            f"the canary was taken back: it cost {costs['cost']:.2%} of a core in one process, "
            f"and max_cost is {canary.max_cost:.2%}",
        )
    is_anywhere = any(count for state, count in counts.items() if state != "gone")
    if not is_anywhere:
        is_time = now - spec.lastmodified >= min(_PATIENCE, canary.time / 10)
        if is_time and meant and canary.percent < _ALL:
            # In a small fleet a few percent may be nobody.
            return Step(
                Stage.CANARY,
                f"of {meant} processes none is among {canary.percent:g} percent",
                min(_ALL, max(canary.percent, 1.0) * _WIDEN_BY),
            )
        return None
    well = sum(counts.get(state, 0) for state in _WELL)
    # A process that has said nothing yet may have something to say; if it lives, it will within
    # a period.
    late = sum(counts.get(state, 0) for state in _LATE)
    if well and not late and now - spec.began >= canary.time:
        minutes = canary.time.total_seconds() / 60
        return Step(
            Stage.EVERYWHERE,
            f"after {minutes:g} minutes all was well in {well} processes: it goes to all",
        )
    return None


def move_on(link: Link, documents_by_id: Iterable[tuple[Any, Any]], now: datetime, by: str) -> None:
    """Look at all canaries, and move on those that are to be.

    Args:
        link: to the collections.
        documents_by_id: of all specs the ``_id`` and document, as last read.
        now: by the server's clock, aware.
        by: the process that does it, for the history.

    Raises:
        StoreError: the server could not be asked.
    """
    for raw_id, document in documents_by_id:
        if not isinstance(document, dict) or not document.get("canary"):
            continue
        name = documents.name_of(documents.key_of(raw_id), document)
        try:
            spec = specs.parse(name, document, instrument_types=None)
        except SpecError:
            continue  # each process says so in its entry
        if spec.enabled and spec.stage is Stage.CANARY:
            _move(link, raw_id, document[documents.VERSION], spec, now, by=by)


def _move(link: Link, raw_id: Any, version: object, spec: Spec, now: datetime, *, by: str) -> None:
    rollouts = RolloutStore(link)
    rows = rollouts.count(raw_id, version, spec.id, spec.select)
    if rows is None or spec.canary is None or spec.select is None:
        return  # it was changed just now
    percent = spec.select.percent or 0.0
    whole = replace(spec.select, percent=min(_ALL, percent / (spec.canary.percent or 1.0) * _ALL))
    step = decide(spec, rows, rollouts.costs(raw_id, version), now, rollouts.meant(spec.id, whole))
    if step is None:
        return
    began = spec.began.astimezone(UTC).replace(tzinfo=None)
    if SpecDocuments(link).set_stage(
        raw_id,
        version,
        name=step.stage.value,
        reason=step.reason,
        began=began,
        percent=step.percent,
        by=by,
    ):
        log.warning("spec %r: %s", spec.id, step.reason)
