"""Call trees: what one call of a function called, how often, and how long that took.

:class:`CallTree` is the result. A :class:`~diagnose.calltrees.collector.Collector` builds it
while the call runs, from what ``calltrees.monitoring`` (``sys.monitoring``, 3.12 and later) or
``calltrees.profiling`` (``sys.setprofile``, 3.11) report.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from diagnose.calltrees.collector import is_ours
from diagnose.calltrees.tree import CallTree, Node

# Now: at the first hit it would be imported in the program's thread.
if sys.version_info >= (3, 12):
    from diagnose.calltrees import monitoring as _way
else:
    from diagnose.calltrees import profiling as _way

if TYPE_CHECKING:
    from diagnose.calltrees.collector import Collector, Options

__all__ = ["CallTree", "Node", "begin", "is_ours"]


def begin(options: Options, frame: Any) -> Collector | None:
    """Begin to collect what the call in ``frame`` calls in this thread.

    Returns:
        What is to be finished when the call is over; None where the thread has one already.

    Raises:
        ProbeError: nothing can watch calls just now.
    """
    return _way.begin(options, frame)
