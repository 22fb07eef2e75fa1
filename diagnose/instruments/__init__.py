"""What a probe carries: log lines, metrics, test recorders, and what users subclass."""

from __future__ import annotations

from diagnose.handlers.acting import Raise, Result
from diagnose.instruments.base import Instrument, Status
from diagnose.instruments.calltree import CallTreeInstrument
from diagnose.instruments.hunting import HunterInstrument
from diagnose.instruments.log import LogInstrument
from diagnose.instruments.metrics import HistogramInstrument, IncrementInstrument
from diagnose.instruments.recording import ProbeTestInstrument

__all__ = [
    "CallTreeInstrument",
    "HistogramInstrument",
    "HunterInstrument",
    "IncrementInstrument",
    "Instrument",
    "LogInstrument",
    "ProbeTestInstrument",
    "Raise",
    "Result",
    "Status",
]
