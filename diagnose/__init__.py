"""Probes for running Python programs.

Attach instruments to any function of a live process, without editing or restarting it:

>>> import statistics, diagnose
>>> probe = diagnose.attach_to("statistics.mean")
>>> probe.instruments["mean"] = diagnose.LogInstrument("mean", "(data, result)")
>>> probe.start()
>>> statistics.mean([1, 2, 3])
Probe (mean)[tags={}] = ([1, 2, 3], 2)
2
>>> probe.stop()

PYTEST_DONT_REWRITE: a program may import this before pytest looks for the plugin beside it.
"""

from __future__ import annotations

from diagnose import ending, instruments, managers, probes  # noqa: F401 - ending: it acts
from diagnose.errors import DiagnoseError
from diagnose.instruments import (
    HistogramInstrument,
    IncrementInstrument,
    Instrument,
    LogInstrument,
    ProbeTestInstrument,
)
from diagnose.instruments.base import use_manager
from diagnose.managers import InstrumentManager
from diagnose.probes import FunctionProbe, attach_to, sensor

__all__ = [
    "DiagnoseError",
    "FunctionProbe",
    "HistogramInstrument",
    "IncrementInstrument",
    "Instrument",
    "InstrumentManager",
    "LogInstrument",
    "ProbeTestInstrument",
    "attach_to",
    "instruments",
    "manager",
    "managers",
    "probes",
    "sensor",
]

manager = InstrumentManager()
"""The manager of all instruments that are given none."""

use_manager(manager)
