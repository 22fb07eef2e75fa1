"""A thread that does one thing now and then, until it is stopped."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from diagnose.threads import without_signals

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Background"]

log = logging.getLogger(__name__)


class Background(threading.Thread):
    """Calls ``work`` at once and then every ``period`` seconds.

    Args:
        name: of the thread, as a debugger shows it.
        work: what it raises is logged, and it goes on.
        period: seconds from one end to the next begin; it may be changed.

    Attributes:
        stopping: set when it is to end.
    """

    def __init__(self, name: str, work: Callable[[], object], period: float) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self.period = period
        self.renew_events()

    def renew_events(self) -> None:
        """Take events that nobody waits for, or holds the locks of."""
        self.stopping = threading.Event()
        self._due = threading.Event()

    def start(self) -> None:
        """Begin; no signal is delivered to it."""
        with without_signals():
            super().start()

    def stop(self) -> None:
        """End the loop; does not wait for it."""
        self.stopping.set()
        self._due.set()

    def wake(self) -> None:
        """Work once more at once, or as soon as the one that is running is over."""
        self._due.set()

    def run(self) -> None:
        """Work, wait, and so on."""
        while True:
            self._due.clear()
            try:
                self._work()
            except Exception:
                log.exception("%r failed; it goes on", self._work)
            if self.stopping.is_set() or (self._due.wait(self.period) and self.stopping.is_set()):
                return
