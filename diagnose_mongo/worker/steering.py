"""What holds for the whole fleet, as it was read with the last poll."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diagnose.errors import StoreError
from diagnose_mongo.store import Control, is_answer, is_refused

if TYPE_CHECKING:
    from diagnose_mongo.store import SpecStore
    from diagnose_mongo.worker.outages import SideTasks

__all__ = ["Steering"]

_FAILURE = "what steers the whole fleet can't be read"


class Steering:
    """Reads it in the same query as the versions of all specs.

    Args:
        side_tasks: where it is said if it can't be read.

    Attributes:
        control: as last read.
    """

    def __init__(self, side_tasks: SideTasks) -> None:
        self.control = Control()
        self._side_tasks = side_tasks
        self._may_read = True

    def try_again(self) -> None:
        """Ask for it again: this user may have got the right meanwhile."""
        self._may_read = True

    def look(self, store: SpecStore) -> list[tuple[Any, object]]:
        """The versions of all specs.

        Raises:
            StoreError: the server could not be asked, or refused the specs themselves.
        """
        if not self._may_read:
            return store.versions()
        try:
            versions, control = store.look()
        except StoreError as exc:
            if not is_answer(exc):
                raise
            # Not before the specs could be read: it may be that they are what is refused.
            versions, control = store.versions(), Control()
            self._may_read = not is_refused(exc)
            self._side_tasks.note_failure(_FAILURE, exc)
        else:
            self._side_tasks.failing.discard(_FAILURE)
        self.control = control
        return versions
