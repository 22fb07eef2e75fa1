"""How far a spec has come over the fleet: in one answer, reckoned by the server.

::

    found = rollout(client["diagnose"]["specs"], "cart-latency")
    print(found)             # cart-latency: complete: 12 of 12 processes (10 emitting, 2 installed)
    found.is_complete        # True
    found.failures           # [] or [Failure(code="target-not-found", count=3, examples=[...])]
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diagnose import specs
from diagnose.errors import SpecError, StoreError
from diagnose.specs import FAILED_STATES
from diagnose_mongo import documents
from diagnose_mongo.store import ControlStore, RolloutStore, SpecDocuments, link_to

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from diagnose_mongo.store import Link, SpecCollection

__all__ = ["Failure", "Rollout", "rollout", "wait_for_rollout"]

_OPEN = ("waiting", "behind", "pending")
_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Failure:
    """Processes in which a spec failed in the same way.

    Attributes:
        code: the kind of error.
        count: in how many processes.
        examples: some of them: ``process`` (its id) and ``err`` (what went wrong and what to do).
    """

    code: str
    count: int
    examples: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Rollout:
    """How far one version of a spec has come, over all processes that live and are meant.

    Attributes:
        spec_id: what the spec is called.
        version: its ``lastmodified``, naive, in UTC.
        stage: how far a canary has come; None without one.
        counts: how many processes there are in each state: those of
            :class:`~diagnose.specs.State`, ``waiting`` (it has said nothing yet) and
            ``behind`` (it has another version).
        gone: how many entries there are of processes that do not live any more.
        failures: those in an error, by its code, the most frequent first.
        error: why the document is no valid spec, if it is none.
        paused: why nothing is armed in the whole fleet just now; None: it is.
        acts: whether its instrument may change what the program does, as one process at least says.
    """

    spec_id: object
    version: object
    stage: str | None
    counts: Mapping[str, int]
    gone: int
    failures: tuple[Failure, ...]
    error: str | None = None
    paused: str | None = None
    acts: bool = False

    @property
    def processes(self) -> int:
        """How many processes live and are meant."""
        return sum(self.counts.values())

    @property
    def failed(self) -> int:
        """In how many it failed."""
        return sum(self.counts.get(state, 0) for state in FAILED_STATES)

    @property
    def told(self) -> int:
        """How many processes have said what became of this version."""
        return self.processes - sum(self.counts.get(state, 0) for state in _OPEN)

    @property
    def is_settled(self) -> bool:
        """Whether every process has said what became of this version."""
        return self.processes > 0 and self.told == self.processes

    @property
    def is_complete(self) -> bool:
        """Whether every process has this version, and it failed in none."""
        return self.is_settled and not self.failed

    @property
    def state(self) -> str:
        """``complete``, ``failed``, ``under way``, or ``nobody`` if no process is meant."""
        if not self.processes:
            return "nobody"
        if not self.is_settled:
            return "under way"
        return "failed" if self.failed else "complete"

    @property
    def summary(self) -> str:
        """The rollout in a line, without the name of the spec."""
        if not self.processes:
            return "no process that lives is meant"
        noun = "process" if self.processes == 1 else "processes"
        parts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return f"{self.state}: {self.told} of {self.processes} {noun} ({parts})"

    def __str__(self) -> str:
        return f"{self.spec_id}: {self.summary}"


def rollout(collection: SpecCollection | Link, spec_id: object) -> Rollout:
    """How far a spec has come.

    Args:
        collection: of the specs.
        spec_id: its ``_id``, or its field ``id``.

    Raises:
        SpecError: there is no such spec (code ``spec-not-found``).
        StoreError: the server could not be asked.
    """
    link = link_to(collection)
    store = RolloutStore(link)
    for _ in range(_TRIES):
        document = SpecDocuments(link).found(spec_id)
        raw_id, version = document[documents.ID], document.get(documents.VERSION)
        name = documents.name_of(documents.key_of(raw_id), document)
        error, select, stage = None, None, None
        try:
            spec = specs.parse(name, document, instrument_types=None)
        except SpecError as exc:
            # Its processes say so, all of them.
            error = exc.message
            if document.keys() == {documents.ID}:
                error = "the document can't be decoded; replace it by a valid one"
        else:
            select, stage = spec.select, None if spec.stage is None else spec.stage.value
        control = ControlStore(link).read()
        rows = store.count(raw_id, version, name, select, of_processes=control.is_bounded)
        if rows is not None:
            found = _rollout(name, version, stage, rows)
            return replace(found, error=error, paused=control.paused)
        # It was changed between the two looks.
    raise StoreError(f"the spec {spec_id!r} changes all the time: ask again")


_TRIES = 5


def _rollout(
    name: object, version: object, stage: str | None, rows: list[dict[str, Any]]
) -> Rollout:
    counts: dict[str, int] = {}
    failures = []
    for row in rows:
        counts[row["state"]] = counts.get(row["state"], 0) + row["count"]
        if row["state"] in FAILED_STATES:
            code = row["code"] or row["state"]
            failures.append(Failure(str(code), row["count"], tuple(row["examples"])))
    gone = counts.pop("gone", 0)
    ordered = dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))
    failures.sort(key=lambda each: (-each.count, each.code))
    acts = any(row["acts"] for row in rows)
    return Rollout(name, version, stage, ordered, gone, tuple(failures), acts=acts)


def wait_for_rollout(
    collection: SpecCollection | Link,
    spec_id: object,
    timeout: float = 60.0,
    *,
    progress: Callable[[Rollout], object] | None = None,
) -> Rollout:
    """Wait until every process has said what became of a spec.

    Args:
        collection: of the specs.
        spec_id: its ``_id``, or its field ``id``.
        timeout: seconds.
        progress: called with each look at it.

    Returns:
        How far it has come: :attr:`Rollout.is_settled` is false if the time was not enough.

    Raises:
        SpecError: there is no such spec (code ``spec-not-found``).
        StoreError: the server could not be asked.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = rollout(collection, spec_id)
        if progress is not None:
            progress(found)
        left = deadline - time.monotonic()
        if found.is_settled or left <= 0:
            return found
        time.sleep(min(_POLL_SECONDS, left))
