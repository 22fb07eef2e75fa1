"""Managers: they bring what runs in a process in line with a set of specs.

A manager looks at its :attr:`~InstrumentManager.specs`, parses what is new or changed, puts
instruments on functions or takes them off, and says in each spec's ``applied`` what came of
it. Running :meth:`~InstrumentManager.apply` again changes nothing where nothing changed.
"""

from __future__ import annotations

import contextlib
import datetime  # noqa: ICN001 - the name that expressions know
import importlib
import itertools
import logging
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from diagnose import arming, ending, forking, imports, probes, registry, specs
from diagnose.clockwork import Background
from diagnose.cpu_budget import Budget
from diagnose.forking import Layer
from diagnose.instruments import (
    CallTreeInstrument,
    HistogramInstrument,
    HunterInstrument,
    IncrementInstrument,
    LogInstrument,
)
from diagnose.instruments.base import doing_nothing
from diagnose.instruments.signatures import USUAL_ARGUMENTS, accepted_arguments, default_value
from diagnose.records import UNTOLD, Outcome, Record, Turn, describe
from diagnose.status import State

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from diagnose.expressions import Policy
    from diagnose.instruments import Instrument
    from diagnose.sinks import Sink
    from diagnose.specs import Spec
    from diagnose.tokens import Allotment

__all__ = [
    "CPU_BUDGET",
    "MOST_PER_FUNCTION",
    "MOST_PER_PROCESS",
    "InstrumentManager",
    "mag",
    "manager",
]

log = logging.getLogger(__name__)

CPU_BUDGET = 0.02
"""The share of one core that the instruments of a manager may cost, unless it is given another."""

MOST_PER_FUNCTION = 20
"""How many specs of a manager may be armed on one function, unless it is given another number."""

MOST_PER_PROCESS = 200
"""How many specs of a manager may be armed at once, unless it is given another number."""

_FORK_WAIT_SECONDS = 1.0
_STOP_WAIT_SECONDS = 1.0


def mag(obj: Any, base: float = 10) -> int:
    """The magnitude of a number, or of a thing's length: its logarithm, cut off.

    Use it in tags, to group values by their size.

    >>> mag(1234), mag(9.9), mag(0.5), mag("ab" * 8, 2), mag([])
    (3, 0, 0, 4, -1)

    Args:
        obj: a number, or what has a length. -1 is the magnitude of 0 and less, of what is neither
            (such as None), and of what is not finite.
        base: above 1.
    """
    try:
        size = len(obj) if hasattr(type(obj), "__len__") else obj
        # A logarithm is rounded: of 243 to the base of 3 it is a little less than 5.
        return int(round(math.log(size, base), 12))
    except (TypeError, ValueError, OverflowError):
        if not base > 1:
            raise
        return -1


def __getattr__(name: str) -> Any:
    # Its home in 5.0.1. This library stands below that package, and works without it.
    if name != "MongoDBInstrumentManager":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        package = importlib.import_module("diagnose_mongo")
    except ModuleNotFoundError as exc:
        if exc.name != "diagnose_mongo":
            raise
        message = f"{name} is in diagnose_mongo: pip install 'diagnose-mongo[mongo]'"
        raise ImportError(message, name=exc.name) from exc
    return getattr(package, name)


class InstrumentManager:
    """Applies the specs in :attr:`specs` to this process.

    ``manager.specs["cart-latency"] = {"target": ..., "instrument": ..., ...}`` and
    ``manager.apply()`` is all there is to it; ``manager.apply_in_background()`` does the
    latter once a minute. Each spec then has ``applied[process_id]``, a dict of ``lm`` (the
    ``lastmodified`` that it is about), ``err``, ``state`` (see
    :class:`~diagnose.specs.State`), ``at`` (naive, UTC: when it became so), and where there
    is something to say, ``code``, ``warnings`` and ``acts`` (True: its instrument may change what
    the program does, see :meth:`Instrument.act <diagnose.instruments.Instrument.act>`).

    Thread-safe. A forked child keeps what is armed, gets a process id of its own (unless one
    was given) and goes on applying in the background if its parent did.

    Args:
        process_id: the key in ``applied``; without it, host name and pid.
        expression_policy: what the expressions in specs may do: ``"python"`` (everything) or
            ``"restricted"``. No spec can change it.
        labels: what specs may select this process by, besides ``host``.
        cpu_budget: the share of one core that the instruments of all its specs may cost
            together; above it the costliest are suspended for a time. None: no limit.
        most_per_function: how many of its specs may be armed on one function at once. One more
            is an error of its own (``too-many``), and takes the place of the next that goes.
            What is attached in code does not count. None: any number.
        most_per_process: how many of its specs may be armed at once; likewise.

    Attributes:
        specs: documents by id. They are changed in place; put in, replace or remove what you
            like at any time.
        process_id: this process's key in ``applied``.
        instrument_classes: by the ``type`` that specs name; add your own.
        global_namespace: names for all expressions, also under the restricted policy.
        sinks: where metrics go.
        labels: what specs may select this process by.
        expression_policy: as given; for instruments made from now on.
        budget: what they may cost; set its ``share`` at any time.
        places: how many there may be; set its ``most_per_function`` and ``most_per_process`` at
            any time.
    """

    def __init__(
        self,
        process_id: str | None = None,
        *,
        expression_policy: Policy = "python",
        labels: Mapping[str, str] | None = None,
        cpu_budget: float | None = CPU_BUDGET,
        most_per_function: int | None = MOST_PER_FUNCTION,
        most_per_process: int | None = MOST_PER_PROCESS,
    ) -> None:
        self.specs: dict[Any, Any] = {}
        self.process_id = process_id or _host_and_pid()
        self.expression_policy = expression_policy
        self.labels: dict[str, str] = {"host": os.uname().nodename, **(labels or {})}
        self.instrument_classes: dict[str, Callable[..., Any]] = {
            "log": LogInstrument,
            "hist": HistogramInstrument,
            "incr": IncrementInstrument,
            "calltree": CallTreeInstrument,
            "hunter": HunterInstrument,
        }
        self.global_namespace: dict[str, Any] = {
            "datetime": datetime,
            "mag": mag,
            "math": math,
            "time": time,
        }
        self.sinks: list[Sink] = []
        self.budget = Budget(cpu_budget, registry.timers)
        self.places = arming.Places(most_per_function, most_per_process)
        self._id_is_given = bool(process_id)
        self._serial = next(_serials)
        self._records: dict[Hashable, Record] = {}
        self._news: dict[Hashable, dict[str, Any]] = {}
        self._background: Background | None = None
        # `_turn`: one apply() after the other, overridden methods included. `_lock`: guards
        # the records while they change, and is never held while anybody waits for a network.
        # A fork waits for the latter only, so that its child finds the records whole.
        self._turn = threading.RLock()
        self._lock = threading.RLock()
        _managers[self._serial] = self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.process_id} with {len(self.specs)} specs>"

    # --- what programs call ---

    def apply(self) -> None:
        """Bring this process in line with :attr:`specs`.

        Never raises for what a spec holds: that becomes the spec's ``err``. Cheap when
        nothing changed; imports nothing. What waits for a module is armed when that is
        imported, without this; the next call says so.
        """
        thread = threading.current_thread()
        self._apply(thread.stopping if isinstance(thread, Background) else None)

    def apply_in_background(self, period: float = 60) -> None:
        """Call :meth:`apply` at once, and then every ``period`` seconds, in a daemon thread.

        Returns at once. Called again, it goes on with the new period.
        """
        self._stop_background()
        self._background = Background("diagnose-manager", self.apply, period)
        self._background.start()

    def stop(self) -> None:
        """Take off all that this manager has put on, and its entries; end the background.

        Other managers' instruments, and those attached in code, stay. :meth:`apply` puts
        everything on again. Idempotent.
        """
        self._stop_background()
        with self._lock:
            records, self._records = self._records, {}
            with probes.Changes() as changes:
                for record in records.values():
                    record.disarm(self.places, changes)
        # An apply() that is under way may still be telling; what takes longer is not waited for.
        waited = self._turn.acquire(timeout=_STOP_WAIT_SECONDS)
        try:
            for key, record in records.items():
                if record.outcome is not None and key in self.specs:
                    self._record_entry(key, self.specs[key], None)
        finally:
            if waited:
                self._turn.release()

    # --- what instruments ask, and subclasses may override ---

    @doing_nothing
    def get_tags(self) -> Mapping[str, object]:
        """Tags for every value of this manager's instruments."""
        return {}

    @doing_nothing
    def check_call(self, probe: Any, instrument: Any, *args: Any, **kwargs: Any) -> bool:
        """Whether this call of a probed function is to be served."""
        return True

    def handle_error(self, probe: Any = None, instrument: Any = None) -> None:
        """Called in the ``except`` block when an instrument failed; it is disarmed already."""
        target = getattr(probe, "target", None)
        text = getattr(getattr(instrument, "status", None), "error", None)
        message = "%r failed on %r, and is disarmed: %s"
        log.error(message, instrument, target, text, exc_info=True)  # noqa: LOG014

    def mark(self, id: Hashable, doc: Any, exception: bool = False) -> None:  # noqa: A002, FBT001, FBT002
        """Say in ``doc["applied"]`` what became of a spec in this process.

        :meth:`apply` calls it whenever that changes, one spec after the other. Override it to
        take the news elsewhere; what it raises is logged.

        Args:
            id: the spec's key in :attr:`specs`.
            doc: the spec's document.
            exception: whether applying failed; if so it is called in an ``except`` block.
        """
        entry = self._news.pop(id, None)
        if entry is None:
            error = sys.exception() if exception else None
            state = State.ERROR if exception else State.INSTALLED
            entry = self._entry(doc, Outcome(state, None if error is None else describe(error)))
        self._record_entry(id, doc, entry)

    def now(self) -> datetime.datetime:
        """The time that lifespans are counted in: aware, in UTC."""
        return datetime.datetime.now(datetime.UTC)

    # --- applying ---

    def _apply(self, unless: threading.Event | None = None) -> None:
        with self._turn:
            with self._lock:
                if unless is not None and unless.is_set():
                    return  # stopped while this call waited
                news = self._reconcile()
            for key, document, record in news:
                self._tell(key, document, record)

    def _reconcile(self) -> list[tuple[Hashable, Any, Record]]:
        """Do all that is to be done; return what there is to tell. The lock is held."""
        now, switched_off = self.now(), self._switched_off()
        documents = dict(self.specs)
        imports.stand_first()
        tried = []
        with probes.Changes() as changes:
            turn = Turn(self, now, switched_off, changes)
            for key in [key for key in self._records if key not in documents]:
                self._records.pop(key).disarm(self.places, changes)
            for key, document in documents.items():
                record = self._record(key, specs.content_of(document))
                tried.append((key, document, record, record.outcome))
                record.bring_up(document, turn)
        news = []
        with probes.Changes() as changes:
            turn = Turn(self, now, switched_off, changes)
            for key, document, record, before in tried:
                record.welcome(turn)
                if record.told is not document and not self._has_entry(document):
                    record.told = UNTOLD
                if record.told is UNTOLD or record.outcome != before:
                    record.told = document
                    news.append((key, document, record))
        return news

    def _record(self, key: Hashable, content: object) -> Record:
        record = self._records.get(key)
        if record is not None and record.content == content:
            return record
        serial = key if isinstance(key, str) else id(key)
        slot = f"{self._serial}:{serial}" if record is None else record.slot
        record = self._records[key] = Record(key, slot, content, record)
        return record

    # --- what records ask ---

    def waker(self) -> Callable[[], None]:
        """See :class:`diagnose.records.Process`."""
        ref = weakref.ref(self)

        def wake() -> None:
            manager = ref()
            if manager is not None:
                manager._wake()

        return wake

    def _wake(self) -> None:
        """Have the background apply soon; called from a thread that must not wait for it."""
        background = self._background
        if background is not None:
            background.wake()

    def make(self, record: Record, spec: Spec, remaining: datetime.timedelta | None) -> Instrument:
        """See :class:`diagnose.records.Process`."""
        made_by = self.instrument_classes[spec.instrument_type]
        expires = None
        if remaining is not None:
            expires = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + remaining
        arguments = {
            "name": spec.name,
            "value": spec.value,
            "event": spec.event,
            "expires": expires,
            "custom": spec.custom,
            "mgr": self,
            "when": spec.when,
            "limits": spec.limits,
            "policy": self.expression_policy,
        }
        accepted = accepted_arguments(made_by)
        given = {name: value for name, value in arguments.items() if name in accepted}
        instrument: Instrument = made_by(**given, **spec.extra)
        # A subclass may be older than an argument, and pass nothing on.
        for name in arguments.keys() - given.keys():
            setattr(instrument, name, arguments[name])
        instrument.budget = self.budget
        instrument.allotment = self._allotment(record, spec)
        return instrument

    def _allotment(self, record: Record, spec: Spec) -> Allotment | None:
        """What a spec's instrument takes its hits from, if the fleet has a budget of them."""
        return None

    def parse(self, key: Hashable, document: Any) -> Spec:
        """See :class:`diagnose.records.Process`."""
        types = {
            name: accepted_arguments(made_by) - USUAL_ARGUMENTS
            for name, made_by in self.instrument_classes.items()
        }
        values = {name: default_value(made) for name, made in self.instrument_classes.items()}
        return specs.parse(key, document, instrument_types=types, default_values=values)

    def _switched_off(self) -> str | None:
        """Why nothing is to be armed at all, or None."""
        return None

    # --- telling ---

    def _tell(self, key: Hashable, document: Any, record: Record) -> None:
        outcome, error = record.outcome, record.error
        try:
            if outcome is None:
                self._record_entry(key, document, None)
                return
            self._news[key] = self._entry(document, outcome)
            if outcome.err is None or error is None:
                self.mark(key, document, exception=outcome.err is not None)
                return
            try:
                raise error
            except Exception:  # noqa: BLE001 - for sys.exc_info() in an override
                self.mark(key, document, exception=True)
        except Exception:
            log.exception("the outcome of spec %r could not be told: %r", key, outcome)
        finally:
            self._news.pop(key, None)
            if error is not None:
                error.__traceback__ = None  # its frames hold on to the spec and more

    def _entry(self, document: Any, outcome: Outcome) -> dict[str, Any]:
        version = document.get("lastmodified") if isinstance(document, MutableMapping) else None
        entry: dict[str, Any] = {
            "lm": version,
            "err": outcome.err,
            "state": outcome.state.value,
            "at": self.now().replace(tzinfo=None),
        }
        if outcome.code is not None:
            entry["code"] = outcome.code
        if outcome.warnings:
            entry["warnings"] = list(outcome.warnings)
        if outcome.found is not None:
            entry["found"] = dict(outcome.found)
        if outcome.acts:
            entry["acts"] = True
        return entry

    def _has_entry(self, document: Any) -> bool:
        """Whether a document that took another's place brings this process's entry along."""
        applied = document.get("applied") if isinstance(document, MutableMapping) else None
        return isinstance(applied, MutableMapping) and self.process_id in applied

    def _record_entry(self, key: Hashable, document: Any, entry: dict[str, Any] | None) -> None:
        """Put this process's entry into the document; None takes it out."""
        if not isinstance(document, MutableMapping):
            if entry is not None:
                log.warning("spec %r: %s", key, entry["err"])
            return
        applied = document.get("applied")
        if isinstance(applied, MutableMapping):
            if entry is None:
                applied.pop(self.process_id, None)
            else:
                applied[self.process_id] = entry
        elif entry is not None:
            document["applied"] = {self.process_id: entry}

    # --- background and fork ---

    def _stop_background(self) -> None:
        background, self._background = self._background, None
        if background is not None:
            background.stop()

    def _after_fork_in_child(self) -> None:
        """Become another process: called in a forked child, before anything else runs in it."""
        if not self._id_is_given:
            self.process_id = _host_and_pid()
        for record in self._records.values():
            record.told = UNTOLD
        background = self._background
        if background is not None:
            # Should this very thread be it, its loop is to end.
            background.renew_events()
            background.stop()
            self.apply_in_background(background.period)


def _host_and_pid() -> str:
    return f"{os.uname().nodename}-{os.getpid()}"


# --- fork ---

_serials = itertools.count(1)
_managers: weakref.WeakValueDictionary[int, InstrumentManager] = weakref.WeakValueDictionary()
_held = threading.local()


def _all_managers() -> list[InstrumentManager]:
    return [manager for ref in _managers.valuerefs() if (manager := ref()) is not None]


def _before_fork() -> None:
    # Each lock is held across the fork, so that the child finds the records whole. Making an
    # instrument runs code of the application's; it must not keep the application from forking.
    _held.locks = [
        manager._lock
        for manager in _all_managers()
        if manager._lock.acquire(timeout=_FORK_WAIT_SECONDS)
    ]


def _after_fork_in_parent() -> None:
    for lock in _held.__dict__.pop("locks", ()):
        lock.release()


def _after_fork_in_child() -> None:
    _held.__dict__.pop("locks", None)
    for manager in _all_managers():
        manager._lock, manager._turn = threading.RLock(), threading.RLock()
        manager.budget.after_fork_in_child()
        try:
            manager._after_fork_in_child()
        except Exception:
            log.exception("%r could not take up its work in a forked child", manager)


forking.register(
    Layer.MANAGERS,
    before=_before_fork,
    in_parent=_after_fork_in_parent,
    in_child=_after_fork_in_child,
)


# --- the end of the program ---


def _end() -> None:
    """Apply no more, and keep no function: the probes are taken off by those who put them on."""
    for manager in _all_managers():
        with contextlib.suppress(Exception):
            manager._stop_background()
            manager._records = {}


ending.register(ending.Layer.MANAGERS, _end)


manager = InstrumentManager()
"""The manager of all instruments that are given none: ``diagnose.manager``."""
