"""The manager of one process in a fleet: specs come from MongoDB, outcomes go back into them.

Every period it asks the collection for the versions of all specs (one covered index query),
reads those that changed, applies them, and writes ``applied.<process id>`` where its outcome
changed; now and then it says that it lives. When MongoDB is down everything that is armed stays
as it is, lifespans end on time, and attempts to reach it again come ever more rarely.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
from typing import TYPE_CHECKING, Any, Self

from diagnose.errors import SpecError
from diagnose.managers import (
    CPU_BUDGET,
    MOST_PER_FUNCTION,
    MOST_PER_PROCESS,
    InstrumentManager,
)
from diagnose_mongo import bounds, documents
from diagnose_mongo.store import Undecodable, link_to
from diagnose_mongo.worker import program
from diagnose_mongo.worker.identity import Identity
from diagnose_mongo.worker.polling import Poller, phase_of
from diagnose_mongo.worker.session import Poll, Session
from diagnose_mongo.worker.switches import switched_off
from diagnose_mongo.worker.watching import Watcher

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from datetime import datetime

    from diagnose.expressions import Policy
    from diagnose.records import Record
    from diagnose.specs import Spec
    from diagnose.tokens import Allotment
    from diagnose_mongo.store import Link, SpecCollection

__all__ = ["MongoInstrumentManager"]

log = logging.getLogger(__name__)

_WAIT_FOR_POLL_SECONDS = 1.0
# A process that forks only to become another program should leave no trace in the fleet.
_FORK_SETTLES_SECONDS = 0.1


class MongoInstrumentManager(InstrumentManager):
    """Applies the specs of a MongoDB collection to this process, again and again.

    Start it once, where the program starts::

        manager = MongoInstrumentManager(client["diagnose"]["specs"], service="web")
        manager.start()

    Thread-safe. Forked children go on by themselves: each with an id, a client and threads of
    its own, and with everything armed that was armed in the parent.

    :attr:`specs` mirrors the collection, without ``applied``, by ``_id``; don't change it.

    Args:
        collection: of spec documents. Its client is used as it is, with limits on how long a
            call may take; children of a fork make one of their own from its settings.
        process_id: the key in ``applied``, unique in the fleet; characters that can't be in
            one become ``_``. Without it: host, pid and the time of the start.
        period: seconds between two polls.
        service: label for ``select.service``; without it the variable ``DIAGNOSE_SERVICE``.
        env: label for ``select.env``; without it ``DIAGNOSE_ENV``.
        version: label for ``select.version``; without it ``DIAGNOSE_VERSION``.
        labels: further ones, and ``host`` if it is not to be the machine's name. See
            :data:`diagnose_mongo.worker.identity.LABEL_VARIABLES` for what else labels come from.
        expression_policy: what expressions in specs may do, and so every user that can write
            to the collection, in every process: ``"python"`` is everything.
        cpu_budget: the share of one core that all probes of this process may cost; above it
            the costliest are suspended for a time. None: no limit.
        most_per_function: how many specs may be armed on one function; one more is the error
            ``too-many``, and takes the place of the next that goes. None: any number.
        most_per_process: how many specs may be armed at once; likewise.
        heartbeat: seconds between two times that the process says that it lives; a process that
            misses three counts as dead.
        watch: follow a change stream too, which takes a connection of its own: changes come
            within milliseconds. Where there is none, polls do.
        bounded_above: in a fleet of more processes than this, not each has an entry of its own
            in ``applied``: failures do (the first 200), and a sample. Each spec has ``counts``.
        gives_way: to a manager that the program starts without this: it stops then, or does
            not start at all. For one that was put into a program from outside.

    Attributes:
        period: as given; of effect when polling starts.
        heartbeat: as given.
        gives_way: as given.
    """

    def __init__(
        self,
        collection: SpecCollection | Link,
        *,
        process_id: str | None = None,
        period: float = 10.0,
        service: str | None = None,
        env: str | None = None,
        version: str | None = None,
        labels: Mapping[str, str] | None = None,
        expression_policy: Policy = "restricted",
        cpu_budget: float | None = CPU_BUDGET,
        most_per_function: int | None = MOST_PER_FUNCTION,
        most_per_process: int | None = MOST_PER_PROCESS,
        heartbeat: float = bounds.HEARTBEAT_SECONDS,
        watch: bool = False,
        bounded_above: int = bounds.BOUNDED_ABOVE,
        gives_way: bool = False,
    ) -> None:
        self._identity = Identity.make(
            process_id, {"service": service, "env": env, "version": version, **(labels or {})}
        )
        super().__init__(
            self._identity.process_id,
            expression_policy=expression_policy,
            labels=self._identity.labels,
            cpu_budget=cpu_budget,
            most_per_function=most_per_function,
            most_per_process=most_per_process,
        )
        if process_id is not None and process_id != self.process_id:
            log.warning(
                "process id %r is written as %r: field names take [A-Za-z0-9_-] only",
                process_id,
                self.process_id,
            )
        self.period = _checked_seconds("period", period)
        self.heartbeat = _checked_seconds("heartbeat", heartbeat)
        self.gives_way = gives_way
        self._session = Session(
            link_to(collection), self._identity, self.specs, bounded_above=bounded_above
        )
        has_stream = self._session.connection.fleet is not None
        self._watcher = Watcher(self._wake) if watch and has_stream else None
        self._poller: Poller | None = None
        self._stopping = threading.Event()
        program.enrol(self)

    # --- what programs call ---

    @property
    def is_running(self) -> bool:
        """Whether it polls in the background."""
        return self._poller is not None

    def start(self) -> None:
        """Start polling in the background, and stop when the program ends.

        Returns at once, whether MongoDB is there or not. Idempotent.
        """
        with program.starting(self) as may_start:
            if not may_start:
                return
            with self._lock:
                if self._poller is not None:
                    return
                self._stopping = threading.Event()
                self._start_polling()
            atexit.register(self.stop)

    def stop(self) -> None:
        """Take off all that this manager has put on, stop polling, erase its entries.

        Waits for MongoDB for a moment only; entries that it could not erase by then stay.
        :meth:`start` starts again. Idempotent.
        """
        atexit.unregister(self.stop)
        with self._lock:
            self._stopping.set()
            poller, self._poller = self._poller, None
        if poller is not None:
            poller.stop()
        super().stop()
        if self._watcher is not None:
            self._watcher.stop()
        if self._session.can_leave():
            # A poll that is under way would write again what is removed here.
            waited = self._turn.acquire(timeout=_WAIT_FOR_POLL_SECONDS)
            try:
                self._session.leave(self._lock)
            finally:
                if waited:
                    self._turn.release()
        with self._lock:
            self._session.close()
        self._session.connection.close()

    def apply(self) -> None:
        """Poll once, now: read what changed, apply it, write the outcomes.

        Never raises for what a spec holds or because MongoDB is down. Takes seconds if it is.
        """
        self._poll(None)

    def apply_in_background(self, period: float = 60) -> None:
        """Poll every ``period`` seconds: :meth:`start` by the name that other managers have."""
        self.period = _checked_seconds("period", period)
        with self._lock:
            poller = self._poller
            if poller is not None:
                poller.stop()
                self._start_polling()
        if poller is None:
            self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def now(self) -> datetime:
        """The server's time, as last read; this machine's until MongoDB was reached."""
        return self._session.connection.now()

    # --- polling ---

    def _start_polling(self, *, settle: float = 0.0) -> None:
        stopping = self._stopping
        self._poller = Poller(
            lambda: self._poll(stopping),
            period=self.period,
            phase=phase_of(self.process_id, self.period),
            settle=settle,
        )
        self._poller.start()
        if self._watcher is not None:
            self._watcher.start(self._session.connection.link)

    def _poll(self, stopping: threading.Event | None) -> float | None:
        """One poll; returns when the next one is wanted, in seconds, if that is before its time."""
        with self._turn:
            poll = Poll(
                self._records,
                self._lock,
                self.labels,
                self.period,
                self.heartbeat,
                self.now,
                stopping,
            )
            if poll.is_over():
                return None
            is_read = self._session.read(poll)
            # Also without MongoDB: lifespans end, the off switch works, errors are found.
            self._apply(stopping)
            return self._session.report(poll, is_read=is_read)

    # --- what the base class asks ---

    def parse(self, key: Hashable, document: Any) -> Spec:
        """See :class:`diagnose.records.Process`."""
        if isinstance(document, Undecodable):
            raise SpecError(
                f"the document can't be decoded: {document.reason}; replace it by a valid one",
                code="undecodable",
            )
        return super().parse(documents.name_of(key, document), document)

    def _allotment(self, record: Record, spec: Spec) -> Allotment | None:
        size = spec.limits.fleet_hits
        return None if size is None else self._session.allotment(record.key, size)

    def _switched_off(self) -> str | None:
        return switched_off() or self._session.steering.control.paused

    def _wake(self) -> None:
        poller = self._poller
        if poller is not None:
            poller.wake()

    def _has_entry(self, document: Any) -> bool:
        return True  # documents come without entries; the session compares now and then

    def _record_entry(self, key: Hashable, document: Any, entry: dict[str, Any] | None) -> None:
        self._session.entries.put(key, entry)

    # --- fork ---

    def _after_fork_in_child(self) -> None:
        super()._after_fork_in_child()
        self._identity = self._identity.for_child()
        self.process_id = self._identity.process_id
        self._session.after_fork_in_child(self._identity)
        if self._watcher is not None:
            self._watcher = Watcher(self._wake)
        # The event may have been in use in a thread that is no more.
        is_stopping = self._stopping.is_set()
        self._stopping = threading.Event()
        if is_stopping:
            self._stopping.set()

    def resume_in_child(self) -> None:
        """Go on polling in a forked child, if the parent did. For the program's fork hook."""
        if self._poller is not None:
            self._start_polling(settle=_FORK_SETTLES_SECONDS)


def _checked_seconds(name: str, seconds: float) -> float:
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name} must be a number of seconds above 0, such as 10, not {seconds!r}")
    return float(seconds)
