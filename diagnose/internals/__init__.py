"""Events inside a function: ``end``, with the frame and every local still there.

Three ways, one interface: :mod:`~diagnose.internals.monitoring` (``sys.monitoring``,
3.12 and later), :mod:`~diagnose.internals.injection` (calls written into the byte code,
3.11), and :mod:`~diagnose.internals.tracing` (a hunter tracer per call) where neither can
be armed.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Protocol

from diagnose.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import CodeType, FunctionType

    Fire = Callable[[Mapping[str, Any]], object]

__all__ = ["Watch", "watch"]

log = logging.getLogger(__name__)


class Watch(Protocol):
    """A copy of a function that reports when it is about to return.

    Attributes:
        original: to be called in the function's place.
        sees_errors: whether exceptions are reported too. Mostly they need not be: the
            trampoline finds the dead frame in the exception's traceback.
        coverage: None, or what to tell the user about the way of watching.
    """

    original: FunctionType
    sees_errors: bool
    coverage: str | None

    def arm(self, fire: Fire) -> None:
        """Call ``fire`` with the frame's locals at each ``end``, from now on."""

    def disarm(self) -> None:
        """Report nothing more, and cost nothing in calls that begin from now on."""


def watch(function: FunctionType, code: CodeType) -> Watch:
    """Choose a way to see the ends of ``function``, whose own code is ``code``.

    Raises:
        ProbeError: code ``end-unavailable``: there is none on this interpreter just now.
    """
    if sys.version_info >= (3, 12):
        from diagnose.internals import monitoring as first  # noqa: PLC0415
    else:
        from diagnose.internals import injection as first  # noqa: PLC0415
    try:
        return first.make(function, code)
    except ProbeError as error:
        log.warning("%r can't be watched inside: %s; falling back to a tracer", function, error)
        from diagnose.internals import tracing  # noqa: PLC0415

        return tracing.make(function, code)
