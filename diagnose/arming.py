"""Puts a spec's instrument on its function: now, or as soon as its module is imported."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from diagnose import handlers, imports, probes, registry, sites, targets
from diagnose.bytecode import lines
from diagnose.bytecode.containment import drop
from diagnose.errors import ProbeError, TargetDriftedError, TargetKindError
from diagnose.originals import own_code
from diagnose.reentrancy import Quiet

if TYPE_CHECKING:
    from collections.abc import Callable

    from diagnose.instruments import Instrument
    from diagnose.probes import Arrival, Changes, FunctionProbe
    from diagnose.specs import Spec
    from diagnose.targets import Target

__all__ = ["TOO_MANY", "Appointment", "Armed", "Places", "arm", "check", "locate", "rehearse"]

TOO_MANY = "too-many"


@dataclass(frozen=True, slots=True, eq=False)
class Armed:
    """An instrument that is on a function, or on its way there."""

    probe: FunctionProbe
    instrument: Instrument
    target: Target
    arrival: Arrival


class Places:
    """How many instruments of one manager there may be, and on which functions they are.

    Thread-safe; guarded by `registry.lock`, across which a fork waits.

    Args:
        most_per_function: on one function; None: any number.
        most_per_process: in all; None: any number.

    Attributes:
        most_per_function: as given; what is there already may stay.
        most_per_process: likewise.
    """

    def __init__(self, most_per_function: int | None, most_per_process: int | None) -> None:
        self.most_per_function = most_per_function
        self.most_per_process = most_per_process
        self._subjects: dict[str, object] = {}
        self._counts: Counter[int] = Counter()

    def take(self, slot: str, target: Target) -> None:
        """Take a place on a function, in exchange for the one that the slot has.

        Raises:
            ProbeError: there is none; the slot keeps what it has.
        """
        with Quiet(), registry.lock:
            if slot in self._subjects:
                if self._subjects[slot] is target.subject:
                    return
            elif self.is_full():
                raise _too_many(f"{self.most_per_process} specs are armed", "most_per_process")
            if self.is_full(target.subject):
                about = f"{self.most_per_function} specs are armed on {target.path!r}"
                raise _too_many(about, "most_per_function")
            self.leave(slot)
            self._subjects[slot] = target.subject
            self._counts[id(target.subject)] += 1

    def leave(self, slot: str) -> None:
        """Give back the place of a slot, if it has one."""
        with Quiet(), registry.lock:
            if slot in self._subjects:
                subject = id(self._subjects.pop(slot))
                self._counts[subject] -= 1
                if not self._counts[subject]:
                    del self._counts[subject]

    def is_full(self, subject: object = None) -> bool:
        """Whether there is no place on a function, or, without one, in the process."""
        if subject is not None and self.most_per_function is not None:
            return self._counts[id(subject)] >= self.most_per_function
        return self.most_per_process is not None and len(self._subjects) >= self.most_per_process


def _too_many(about: str, limit: str) -> ProbeError:
    message = (
        f"{about} in this process, and its {limit} allows no more; take some of them off, set "
        f"enabled: false on some, or let the application raise {limit}: as soon as one goes, "
        "this one takes its place"
    )
    return ProbeError(message, code=TOO_MANY)


def locate(spec: Spec) -> Target:
    """Find where a spec's instrument belongs.

    Mostly what its path leads to. But where that only wraps a function which is probed under
    this path already (another tool has put a decorator over it meanwhile), the function: it
    sees the calls that the wrapper lets through, and those that go around it.

    Raises:
        TargetError: see :func:`diagnose.targets.resolve`.
    """
    target = targets.resolve(spec.target, import_modules=False)
    probe = probes.active_probes.get(spec.target)
    held = None if probe is None else probe.resolved
    return held if held is not None and target.wraps(held.subject) else target


def check(spec: Spec, target: Target) -> None:
    """See that a target's code is the code that the spec was written against, if it says so.

    Raises:
        TargetDriftedError: it is not.
    """
    if not spec.fingerprints:
        return
    wanted = " or ".join(map(repr, spec.fingerprints))
    about = f"the code of {spec.target!r} is not the code that the spec was written against"
    try:
        found = targets.fingerprint(target)
    except TargetKindError as error:
        raise TargetDriftedError(
            f"{about}: here it is a {type(target.subject).__name__} without Python code, and the "
            f"spec's fingerprint is {wanted}; name the function behind it, or take fingerprint out"
        ) from error
    version, digest, line = found.split("-")
    given = [one.split("-") for one in spec.fingerprints]
    same = [one for one in given if one[:2] == [version, digest]]
    # Where in the file it stands matters only to who counts lines from the top of the file.
    counts_lines = spec.event.startswith("line:") and not spec.event.startswith("line:+")
    if same and (not counts_lines or any(one[2] == line for one in same)):
        return
    where = f"its fingerprint is {found!r} here ({target.location}) and {wanted} in the spec"
    if same:
        advice = f"it is the same, but in another place: change {spec.event!r}, and fingerprint"
    elif all(one[0] != version for one in given):
        advice = (
            f"the spec has none for Python {version}, which compiles to code of its own: look at "
            "the function, and make fingerprint a list with this one added"
        )
    else:
        advice = "look at the function; if it is still what you mean, set fingerprint to that one"
    raise TargetDriftedError(f"{about}: {where}; {advice}")


def arm(
    spec: Spec,
    slot: str,
    instrument: Instrument,
    lifespan: timedelta | None,
    target: Target,
    *,
    changes: Changes,
) -> Armed:
    """Put an instrument on a target that was located and checked, with the changes.

    Imports nothing. See :meth:`diagnose.probes.Arrival.check` for what comes of it in the end.

    Raises:
        DiagnoseError: it can't be armed there.
    """
    probe = probes.attach_to(spec.target)
    arrival = changes.attach(probe, slot, instrument, lifespan=lifespan, target=target)
    return Armed(probe, instrument, target, arrival)


def rehearse(spec: Spec, instrument: Instrument, target: Target) -> dict[str, object]:
    """Do all of :func:`arm` that can fail, and leave the function as it is.

    Returns:
        What was found: ``function``, ``file``, ``line`` (of its first line), ``kind``,
        ``coverage``, ``fingerprint`` and ``lines`` (those that an event ``line:N`` can be on,
        the nearest to N of them if there are many); where there is no Python code, less.

    Raises:
        DiagnoseError: it could not be armed there.
    """
    check(spec, target)
    site = sites.site_of(target, inside=probes.looks_inside(instrument))
    probe = probes.FunctionProbe(spec.target)
    plan = instrument.plan(probe, drop, _ignore)
    scope = site.scope(spec.event, instrument.mgr.global_namespace)
    # Code objects take no part in garbage collection: this breaks the cycle.
    handlers.disarm(handlers.write(plan, scope, f"<probe {instrument.name}>"))
    found: dict[str, object] = {"kind": target.kind.value, "coverage": site.coverage}
    body = target.body
    if body is None:
        return {"function": repr(target.subject)[:200], **found}
    code = own_code(body.__code__)
    return {
        "function": f"{body.__module__}.{body.__qualname__}",
        "file": code.co_filename,
        "line": code.co_firstlineno,
        **found,
        "fingerprint": targets.fingerprint(target),
        "lines": lines.probeable(code, spec.event),
    }


def _ignore() -> None:
    return None


class Appointment:
    """An instrument that waits for a module, and is armed before anybody can use that.

    All that may run the program's code or take long is done before: the instrument is made.
    What is left is done in a thread of :mod:`diagnose.imports` while the import waits for it.
    It takes `registry.lock` and no other of ours: not the manager's, which may be held
    while it waits for anything. So the manager may wait for that thread, but not the other
    way round.

    Args:
        spec: it must stay as it is until the appointment is cancelled.
        slot: under which key the instrument goes on the probe.
        instrument: one that is armed nowhere.
        lifespan: of the instrument, from now on.
        places: where it takes one, once it knows its function.
        module: the one that has to be imported, as far as one can tell now. Others on the
            path are watched, too.
        kept: called, in another thread, when there is something new to :meth:`take`.
    """

    def __init__(
        self,
        spec: Spec,
        slot: str,
        instrument: Instrument,
        lifespan: timedelta | None,
        *,
        places: Places,
        module: str | None,
        kept: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._slot = slot
        self._instrument = instrument
        self._ends_at = None if lifespan is None else time.monotonic() + lifespan.total_seconds()
        self._places = places
        self._module = module
        self._kept = kept
        # Guarded by registry.lock, across which a fork waits: a child finds them whole.
        self._is_over = False
        self._result: Armed | Exception | None = None
        self._watch = imports.Watch(targets.module_names(spec.target), self._arrived)
        self._watch.start()

    def take(self) -> Armed | None:
        """What has come of it; None while it waits.

        Raises:
            Exception: what arming has raised.
        """
        with Quiet(), registry.lock:
            if isinstance(self._result, Exception):
                raise self._result
            return self._result

    def cancel(self) -> Armed | None:
        """Let nothing happen from now on; what is armed already stays and is returned."""
        with Quiet(), registry.lock:
            self._is_over = True
        self._watch.close()
        return self._result if isinstance(self._result, Armed) else None

    def keep(self) -> bool:
        """Arm the instrument if its target is there by now; whether there is news."""
        with Quiet(), registry.lock:
            if self._is_over:
                return False
            target = targets.find(self._spec.target)
            lifespan = None
            if self._ends_at is not None:
                lifespan = timedelta(seconds=self._ends_at - time.monotonic())
            if target is None or (lifespan is not None and lifespan <= timedelta()):
                return False
            self._is_over = True
            try:
                check(self._spec, target)
                self._places.take(self._slot, target)
                with probes.Changes() as changes:
                    armed = arm(
                        self._spec,
                        self._slot,
                        self._instrument,
                        lifespan,
                        target,
                        changes=changes,
                    )
                armed.arrival.check()
                self._result = armed
            except Exception as exc:  # noqa: BLE001 - the manager says what became of its spec
                self._result = exc
        self._watch.close()
        return True

    def _arrived(self, module: str) -> None:
        # Where the module is there and the target is not, the manager finds out why.
        if self.keep() or module == self._module:
            self._kept()
