"""Schedules: threads run in all interleavings of the points that they pass, to find a wrong one.

Inside: ``exploring`` (which schedules are run), ``turns`` (one run of one), ``points`` (where its
threads stop), ``locks`` (that a schedule knows of), ``names`` (of objects, in its story).
"""

from __future__ import annotations

from diagnose.breakpoints.schedules.exploring import ScheduleReport, explore

__all__ = ["ScheduleReport", "explore"]
