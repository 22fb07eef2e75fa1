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

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diagnose import instruments, managers, probes
    from diagnose.errors import DiagnoseError
    from diagnose.instruments import (
        HistogramInstrument,
        IncrementInstrument,
        Instrument,
        LogInstrument,
        ProbeTestInstrument,
    )
    from diagnose.managers import InstrumentManager, manager
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

_HOMES = {
    "DiagnoseError": "diagnose.errors",
    "InstrumentManager": "diagnose.managers",
    "manager": "diagnose.managers",
    **dict.fromkeys(("FunctionProbe", "attach_to", "sensor"), "diagnose.probes"),
}


def __getattr__(name: str) -> Any:
    # Not with this package: the command, `diagnose run` and the plugin for pytest need parts of
    # it in programs that probe nothing, and on Pythons whose byte code nobody knows yet.
    if name not in __all__ or name in ("instruments", "managers", "probes"):
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOMES.get(name, "diagnose.instruments"))
    globals()[name] = found = getattr(home, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
