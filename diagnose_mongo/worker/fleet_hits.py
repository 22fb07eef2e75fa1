"""The hits that this process may make of budgets for the whole fleet.

A process takes small blocks from the server's budget and hands them to its instruments; what
has none makes no hit. Blocks grow while they are used up quickly, and what is left at the end
is given back. See :mod:`diagnose_mongo.store.fleet_hits` for why there are never too many.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diagnose.errors import StoreError
from diagnose.guards import Allotment
from diagnose_mongo.store import is_answer

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from diagnose_mongo.store import FleetHitsStore

__all__ = ["Allotments", "Holding"]

_BLOCKS_OF_BUDGET = 20
"""A block is never more than one part in so many of the whole budget."""

SOON_SECONDS = 0.5
"""When to look again after a block was used up."""

_GIVE_BACK_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class Holding:
    """What one instrument of this process has of one budget.

    Attributes:
        budget: its ``_id``.
        size: of the whole budget.
        allotment: what the instrument takes hits from.
        block: how many hits are taken at once.
        is_over: there is nothing left, anywhere.
        is_known: the budget was there already.
    """

    budget: Mapping[str, object]
    size: int
    allotment: Allotment = field(default_factory=Allotment)
    block: int = 1
    is_over: bool = False
    is_known: bool = False


class Allotments:
    """The holdings of one process, by the keys of their specs. Not thread-safe."""

    def __init__(self) -> None:
        self._holdings: dict[Hashable, Holding] = {}

    def get(self, key: Hashable, budget: Mapping[str, object], size: int) -> Holding:
        """The holding of a version of a spec; a new one for a new version."""
        holding = self._holdings.get(key)
        if holding is None or holding.budget != budget:
            # What was left of the version before is not given back: its budget is over.
            holding = self._holdings[key] = Holding(budget, size)
        return holding

    def refill(self, store: FleetHitsStore, process_id: str, keys: set[Hashable]) -> float | None:
        """Take new blocks where they are used up.

        Args:
            store: of the budgets.
            process_id: of this process.
            keys: of the specs that are installed; what others have is given back.

        Returns:
            In how many seconds to do so again, if one had run dry; None: at the usual time.

        Raises:
            StoreError: the server could not be asked.
        """
        for key in self._holdings.keys() - keys:
            _give_back(store, process_id, self._holdings.pop(key), _GIVE_BACK_SECONDS)
        got_more, problem = False, None
        for holding in self._holdings.values():
            unused = len(holding.allotment)
            if holding.is_over or unused > holding.block // 2:
                continue
            if unused == 0:
                holding.block = min(2 * holding.block, max(1, holding.size // _BLOCKS_OF_BUDGET))
            # Those that it still has stay its own: they may be used before the answer is here.
            try:
                taken = store.take(
                    holding.budget,
                    holding.size,
                    process_id,
                    unused=unused,
                    wanted=holding.block,
                    is_first=not holding.is_known,
                )
            except StoreError as exc:
                # The budgets of other specs may be in order.
                if not is_answer(exc):
                    raise
                problem = exc
                continue
            holding.is_known = True
            holding.allotment.grant(taken.hits)
            holding.is_over = taken.is_over and not holding.allotment
            got_more = got_more or (unused == 0 and taken.hits > 0)
        if problem is not None:
            raise problem
        return SOON_SECONDS if got_more else None

    def over(self) -> set[Hashable]:
        """Keys of the specs whose budget is used up."""
        return {key for key, holding in self._holdings.items() if holding.is_over}

    def close(self, store: FleetHitsStore, process_id: str, timeout: float) -> None:
        """Give everything back.

        Raises:
            StoreError: it could not be given back.
        """
        holdings, self._holdings = self._holdings, {}
        for holding in holdings.values():
            _give_back(store, process_id, holding, timeout)

    def after_fork_in_child(self) -> None:
        """Have nothing: it is the parent's."""
        for holding in self._holdings.values():
            holding.allotment.clear()
            holding.block, holding.is_over = 1, False


def _give_back(store: FleetHitsStore, process_id: str, holding: Holding, timeout: float) -> None:
    unused = holding.allotment.revoke()
    if not holding.is_over:
        store.give_back(holding.budget, process_id, unused, timeout)
