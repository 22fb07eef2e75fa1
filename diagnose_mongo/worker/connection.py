"""A process's way to the collections: its link, the stores over it, and the server's clock."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from diagnose_mongo.store import fleet_stores, spec_store

if TYPE_CHECKING:
    from diagnose_mongo.store import Link, ServerClock

__all__ = ["Connection"]


class Connection:
    """Opens a client of its own in a forked child, when that first needs one.

    Args:
        link: to the collection of specs.

    Attributes:
        specs: the store of the specs.
        fleet: the stores of the collections beside; None: there are none (mongomock).
        is_usable: there is an open client, of this process.
    """

    def __init__(self, link: Link) -> None:
        self._lock = threading.Lock()
        self._link = link
        self._clock: ServerClock | None = None
        self._use(link)

    def _use(self, link: Link) -> None:
        self._link, self.is_usable = link, True
        self.specs, self.fleet = spec_store(link), fleet_stores(link)

    def link(self) -> Link:
        """The link, opened if this process has none that is open. Thread-safe."""
        with self._lock:
            if not self.is_usable:
                self._use(self._link.reopened())
            return self._link

    def read_clock(self) -> None:
        """Read the server's clock.

        Raises:
            StoreError: the server could not be asked.
        """
        self._clock = self._link.clock() or self._clock

    def now(self) -> datetime:
        """The server's time, as last read; this machine's until MongoDB was reached."""
        return datetime.now(UTC) if self._clock is None else self._clock.now()

    def close(self) -> None:
        """Close the client, if it is not the program's. :meth:`link` opens another."""
        if self.is_usable:
            self._link.close()
            self.is_usable = not self._link.is_owned

    def after_fork_in_child(self) -> None:
        """Leave the client to the parent."""
        self._lock = threading.Lock()
        self.is_usable = False
