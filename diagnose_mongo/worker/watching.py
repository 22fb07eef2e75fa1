"""Follows a change stream, so that changes come at once; polls go on all the same."""

from __future__ import annotations

import logging
import random
import threading
from typing import TYPE_CHECKING

from diagnose.errors import StoreError
from diagnose.threads import without_signals
from diagnose_mongo.store import follow
from diagnose_mongo.worker.outages import BackOff

if TYPE_CHECKING:
    from collections.abc import Callable

    from diagnose_mongo.store import Link

__all__ = ["Watcher"]

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 5.0
_AGAIN_GROWTH = 1.0
_SPREAD_SECONDS = 0.1


class Watcher:
    """Calls ``changed`` soon after any spec was changed, in a daemon thread of its own.

    Where there is no change stream (no replica set, no right to it, no server) it says so once,
    and tries again now and then.

    Attributes:
        is_following: there is a stream, and no change is missed.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.is_following = False
        self._stopping = threading.Event()

    def start(self, link: Callable[[], Link]) -> None:
        """Start following; returns at once.

        Args:
            link: gives the link to the collection, open in this process.
        """
        self._stopping = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(link, self._stopping), name="diagnose-watch", daemon=True
        )
        with without_signals():
            thread.start()

    def stop(self) -> None:
        """Follow no more. Waits for nothing; idempotent."""
        self._stopping.set()

    def _run(self, link: Callable[[], Link], stopping: threading.Event) -> None:
        here, back_off, is_told = link(), BackOff(_AGAIN_GROWTH), False
        while not stopping.is_set():
            try:
                for _ in follow(here, stopping.is_set):
                    self.is_following = True
                    back_off.end()
                    # Not all processes of a fleet in the same millisecond.
                    if not stopping.wait(random.uniform(0, _SPREAD_SECONDS)):
                        self._changed()
            except StoreError as exc:
                if not is_told and not stopping.is_set():
                    log.warning("changes are found by polling only, for now: %s", exc)
                is_told = True
            except Exception:
                log.exception("following changes failed; polls find them")
            self.is_following = False
            stopping.wait(back_off.wait(_AGAIN_SECONDS))
