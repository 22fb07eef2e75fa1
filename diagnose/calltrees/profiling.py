"""Reports calls by hunter, as a profiler of one thread: for CPython 3.11."""

from __future__ import annotations

import opcode
import sys
from typing import TYPE_CHECKING, Any

import hunter

from diagnose.calltrees.collector import Collector
from diagnose.errors import ProbeError

if TYPE_CHECKING:
    from diagnose.calltrees.collector import Options
    from diagnose.calltrees.tree import CallTree

__all__ = ["begin"]


_RESUME = opcode.opmap["RESUME"]


class ProfiledCollector(Collector):
    """See :class:`Collector`; ended in its own thread."""

    def __init__(self, options: Options, frame: Any) -> None:
        super().__init__(options, frame)
        self._first: dict[int, int] = {}
        self._ended = False
        self._tracer = hunter.Tracer(threading_support=False, profiling_mode=True)
        self._tracer.trace(self._note)

    def _note(self, event: Any) -> None:
        if self._ended:
            self._tracer.stop()
            return
        code = event.code
        if event.builtin or not self.wants(code, event.module):
            return
        if event.kind == "call":
            # A generator that goes on is past its first RESUME.
            if id(code) not in self._first:
                self._first[id(code)] = _begin(code)
            is_new = event.frame.f_lasti <= self._first[id(code)]
            self.enter(code, event.frame, is_new=is_new)
        elif event.kind == "return":
            self.leave(code, event.frame)

    def finish(self) -> CallTree:
        """See :meth:`Collector.finish`."""
        if not self._ended:
            self._ended = True
            self._tracer.stop()
        return self.tree()

    def abandon(self) -> None:
        """See :meth:`Collector.abandon`; the next event ends it."""
        self._ended = True


def _begin(code: Any) -> int:
    """Where the first RESUME of a code object stands."""
    raw = code.co_code
    return next((at for at in range(0, len(raw), 2) if raw[at] == _RESUME), 0)


def begin(options: Options, frame: Any) -> Collector | None:
    """See :func:`diagnose.calltrees.begin`."""
    if sys.getprofile() is not None:
        if isinstance(sys.getprofile(), hunter.Tracer):
            return None
        message = (
            f"another profiler is active in this thread ({sys.getprofile()!r:.100}), and CPython "
            "3.11 has room for one; end it, or take an event 'return' with 'hotspots'"
        )
        raise ProbeError(message, code="calltree-unavailable")
    return ProfiledCollector(options, frame)
