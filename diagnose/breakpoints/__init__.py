"""Breakpoints, which make tests of concurrent code deterministic.

>>> import json
>>> with Breakpoint("json.loads") as bp:
...     thread = bp.start_thread(json.loads, "[1, 2]")
...     call = bp.wait()  # it stands before the body
...     bp.stackframe.f_locals["s"]
...     bp.release()
'[1, 2]'
>>> thread.result
[1, 2]

Inside: ``conditions`` (which calls stop), ``places`` (on which function), ``stops`` (what happens
in the thread of the caller), ``forks`` (when that is in a forked child), ``workers`` (what is
started), ``stacks`` (where each thread is), ``waits``, ``core`` and ``doing`` (what a test uses).
``schedules`` runs threads in all orders: ``points`` are where they stop, ``turns`` is one run,
``locks`` what it knows of who waits for whom.
"""

from __future__ import annotations

from diagnose.breakpoints.conditions import Call
from diagnose.breakpoints.core import AsyncBreakpoint, Breakpoint
from diagnose.breakpoints.doing import do
from diagnose.breakpoints.schedules import ScheduleReport, explore

__all__ = ["AsyncBreakpoint", "Breakpoint", "Call", "ScheduleReport", "do", "explore"]
