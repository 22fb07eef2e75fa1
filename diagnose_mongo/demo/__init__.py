"""A fleet of processes picks up probes from a real MongoDB: ``python -m diagnose_mongo.demo``.

Read :mod:`.worker` for what a program does to be probed, :mod:`.specs` for what an operator
does, and :mod:`.story` for what happens then.
"""

from __future__ import annotations

from diagnose.errors import DiagnoseError

__all__ = ["DemoError"]


class DemoError(DiagnoseError, RuntimeError):
    """What the demo shows did not happen, or not in time."""

    code = "demo"
