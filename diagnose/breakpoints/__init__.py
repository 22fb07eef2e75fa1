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

Inside, each imports only those above it: ``calls`` (how a call is told of), ``messages`` (between a
forked child and its parent), ``conditions`` (which calls are hits), ``register`` (the breakpoints
that are set), ``stacks`` (where each thread stands), ``places`` (the function that is meant),
``settings`` (checked arguments), ``blocked`` (callers that stand, and the news), ``hooking`` (the
hook on the function), ``hits`` (the log), ``lines`` (a forked child's side), ``stops`` (serves a
call, in the caller's thread), ``forks`` (the parent's side), ``workers`` (threads and tasks that
are started), ``waits`` (for hits, and how it is told that none came), ``session`` (one entering,
and its undoing), ``breakpoint`` and ``doing`` (for tests). ``schedules`` runs threads in all
interleavings, with hooks of the same kind.
"""

from __future__ import annotations

from diagnose.breakpoints.breakpoint import AsyncBreakpoint, Breakpoint
from diagnose.breakpoints.calls import Call
from diagnose.breakpoints.doing import do
from diagnose.breakpoints.schedules import ScheduleReport, explore

__all__ = ["AsyncBreakpoint", "Breakpoint", "Call", "ScheduleReport", "do", "explore"]
