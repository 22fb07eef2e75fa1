"""Managers: they bring what runs in a process in line with a set of specs.

A manager looks at its :attr:`~InstrumentManager.specs`, parses what is new or changed, puts
instruments on functions or takes them off, and says in each spec's ``applied`` what came of
it. Running :meth:`~InstrumentManager.apply` again changes nothing where nothing changed.
"""

from __future__ import annotations

import datetime
import inspect
import itertools
import logging
import math
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Hashable, MutableMapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diagnose import probes, specs
from diagnose.errors import DiagnoseError, TargetNotImportedError
from diagnose.instruments import HistogramInstrument, IncrementInstrument, LogInstrument
from diagnose.specs import Spec, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diagnose.expressions import Policy
    from diagnose.instruments import Instrument
    from diagnose.probes import FunctionProbe
    from diagnose.sinks import Sink

__all__ = ["InstrumentManager", "mag"]

log = logging.getLogger(__name__)

_BUILT_IN_ARGUMENTS = frozenset(
    {"self", "name", "value", "event", "expires", "custom", "mgr", "when", "policy"}
)
_LONGEST_SKIP = 32
_FORK_WAIT_SECONDS = 1.0

_serials = itertools.count(1)
_managers: weakref.WeakValueDictionary[int, InstrumentManager] = weakref.WeakValueDictionary()


def mag(x: float) -> int:
    """The power of ten of a number: 3 for 1234, 0 for 1 to 9.99; -1 for 0 and less.

    Use it in tags, to group values by their size.
    """
    return int(math.log10(x)) if x > 0 else -1


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What an ``applied`` entry says, but for its time and version."""

    state: State
    err: str | None = None
    code: str | None = None
    warnings: tuple[str, ...] = ()


class _Record:
    """What a manager knows of one spec.

    Attributes:
        content: the document's fingerprint; another one is another version.
        spec: None while the document is no valid spec.
        probe, instrument: what is armed for it, if anything is.
        outcome: None if the spec is not meant for this process.
        final: the outcome that nothing but a new version changes (a hit failed, its time is
            over), or None.
        told: whether ``applied`` says so already.
        skip, skipped: how many times to apply before a failed attempt is made again, and how
            many have passed: what keeps failing is tried ever more rarely.
        awaited: the module that has to be imported first.
    """

    __slots__ = (
        "awaited",
        "content",
        "error",
        "final",
        "instrument",
        "outcome",
        "probe",
        "skip",
        "skipped",
        "spec",
        "told",
    )

    def __init__(self, content: object, before: _Record | None) -> None:
        self.content = content
        self.spec: Spec | None = None
        # The old version goes on until the new one is in place.
        self.probe: FunctionProbe | None = before.probe if before else None
        self.instrument: Instrument | None = before.instrument if before else None
        self.outcome: _Outcome | None = None
        self.final: _Outcome | None = None
        self.error: Exception | None = None
        self.told = False
        self.skip = self.skipped = 0
        self.awaited: str | None = None
