"""The hits that this process may make of those of the whole fleet.

A process takes small blocks from the server and hands them to its instruments; an instrument
that has none makes no hit. Blocks grow while they are used up quickly, and what is left at the end
is given back. See :mod:`diagnose_mongo.store.fleet_hits` for why there are never too many.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diagnose.errors import StoreError
from diagnose.tokens import Allotment
from diagnose_mongo.store import is_answer

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from diagnose_mongo.store import FleetHitsStore

__all__ = ["FleetHits", "Share"]

_LEAST_BLOCKS = 20
"""A block is never more than one part in so many of all hits."""

SOON_SECONDS = 0.5
"""When to look again after a block was used up."""

_GIVE_BACK_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class Share:
    """What one instrument of this process has of the fleet hits of its spec.

    Attributes:
        hits_id: which these are, see :func:`diagnose_mongo.store.fleet_hits_id`.
        size: how many the whole fleet may make.
        allotment: what the instrument takes hits from.
        block: how many hits are taken at once.
        is_over: there is nothing left, anywhere.
        is_known: this process took some already, so they are on the server.
    """

    hits_id: Mapping[str, object]
    size: int
    allotment: Allotment = field(default_factory=Allotment)
    block: int = 1
    is_over: bool = False
    is_known: bool = False


class FleetHits:
    """The shares of one process, by the keys of their specs. Not thread-safe."""

    def __init__(self) -> None:
        self._shares: dict[Hashable, Share] = {}

    def share(self, key: Hashable, hits_id: Mapping[str, object], size: int) -> Share:
        """The share in the fleet hits of a version of a spec; a new one for a new version."""
        share = self._shares.get(key)
        if share is None or share.hits_id != hits_id:
            # What was left of the version before is not given back: that version is over.
            share = self._shares[key] = Share(hits_id, size)
        return share

    def refill(self, store: FleetHitsStore, process_id: str, keys: set[Hashable]) -> float | None:
        """Take new blocks where they are used up.

        Args:
            store: of the fleet hits.
            process_id: of this process.
            keys: of the specs that are installed; what others have is given back.

        Returns:
            In how many seconds to do so again, if one had run dry; None: at the usual time.

        Raises:
            StoreError: the server could not be asked.
        """
        for key in self._shares.keys() - keys:
            _give_back(store, process_id, self._shares.pop(key), _GIVE_BACK_SECONDS)
        got_more, problem = False, None
        for share in self._shares.values():
            unused = len(share.allotment)
            if share.is_over or unused > share.block // 2:
                continue
            if unused == 0:
                share.block = min(2 * share.block, max(1, share.size // _LEAST_BLOCKS))
            # Those that it still has stay its own: they may be used before the answer is here.
            try:
                taken = store.take(
                    share.hits_id,
                    share.size,
                    process_id,
                    unused=unused,
                    wanted=share.block,
                    is_first=not share.is_known,
                )
            except StoreError as exc:
                # Those of other specs may be in order.
                if not is_answer(exc):
                    raise
                problem = exc
                continue
            share.is_known = True
            share.allotment.grant(taken.hits)
            share.is_over = taken.is_over and not share.allotment
            got_more = got_more or (unused == 0 and taken.hits > 0)
        if problem is not None:
            raise problem
        return SOON_SECONDS if got_more else None

    def over(self) -> set[Hashable]:
        """Keys of the specs whose fleet hits are used up."""
        return {key for key, share in self._shares.items() if share.is_over}

    def close(self, store: FleetHitsStore, process_id: str, timeout: float) -> None:
        """Give everything back.

        Raises:
            StoreError: it could not be given back.
        """
        shares, self._shares = self._shares, {}
        for share in shares.values():
            _give_back(store, process_id, share, timeout)

    def after_fork_in_child(self) -> None:
        """Have nothing: it is the parent's."""
        for share in self._shares.values():
            share.allotment.clear()
            share.block, share.is_over = 1, False


def _give_back(store: FleetHitsStore, process_id: str, share: Share, timeout: float) -> None:
    unused = share.allotment.revoke()
    if not share.is_over:
        store.give_back(share.hits_id, process_id, unused, timeout)
