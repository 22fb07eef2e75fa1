"""What has become of the specs in the fleet, told from the documents in MongoDB alone.

Every process keeps an entry of its own in each spec's ``applied``: which version it is about
(``lm``), the ``state``, and what went wrong (``err``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["WAITING", "SpecStatus", "read"]

WAITING = "waiting"
"""The state of a process that has not said anything about this version of the spec yet."""

_ORDER = (
    "emitting",
    "installed",
    "done",
    "expired",
    "disabled",
    "suspended",
    "drifted",
    "error",
    "pending",
    WAITING,
)


@dataclass(frozen=True, slots=True)
class SpecStatus:
    """One spec over all processes.

    Attributes:
        spec_id: what it is called.
        target: its function.
        states: how many processes are in each state.
        problems: by message, how many processes have it.
    """

    spec_id: str
    target: str
    states: Mapping[str, int]
    problems: Mapping[str, int]

    @property
    def processes(self) -> int:
        """How many processes it is about."""
        return sum(self.states.values())

    def is_everywhere(self, state: str) -> bool:
        """Whether all processes are in this state."""
        return self.states.get(state, 0) == self.processes

    def summary(self) -> str:
        """The states in words: ``2 emitting, 1 waiting``."""
        return ", ".join(f"{count} {state}" for state, count in self.states.items())


def read(documents: Iterable[Mapping[str, Any]], processes: int) -> list[SpecStatus]:
    """Sum up specs as they stand in the collection, for a fleet of so many processes."""
    return [_status(document, processes) for document in documents]


def _status(document: Mapping[str, Any], processes: int) -> SpecStatus:
    applied = document.get("applied")
    entries = applied.values() if isinstance(applied, dict) else ()
    version = document.get("lastmodified")
    current = [each for each in entries if isinstance(each, dict) and each.get("lm") == version]
    states = Counter(str(entry.get("state")) for entry in current)
    states[WAITING] = max(0, processes - len(current))
    # In a known order, and after those what only a later version knows.
    names = dict.fromkeys((*_ORDER, *sorted(states)))
    problems = Counter(str(entry["err"]) for entry in current if entry.get("err"))
    problems.update(f"warning: {text}" for entry in current for text in entry.get("warnings", ()))
    return SpecStatus(
        str(document["_id"]),
        str(document.get("target")),
        {state: states[state] for state in names if states[state]},
        problems,
    )
