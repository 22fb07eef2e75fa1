"""Reports calls by a profile function of one thread: for CPython 3.11.

``sys.setprofile``, and not hunter: that one enters itself as ``f_trace`` of each frame, and a
debugger or tracer that the thread has would see no more of those.
"""

from __future__ import annotations

import opcode
import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any

from diagnose.calltrees.callbacks import contained
from diagnose.calltrees.collector import Collector
from diagnose.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from diagnose.calltrees.collector import Options

__all__ = ["begin"]


_OURS = frozenset({"call", "return"})
_RESUME = opcode.opmap["RESUME"]
# Taken now: one of them may itself be probed.
_getprofile, _setprofile = sys.getprofile, sys.setprofile


class ProfiledCollector(Collector):
    """See :class:`Collector`; ended in its own thread."""

    def __init__(self, options: Options, frame: Any) -> None:
        super().__init__(options, frame)
        self._first: dict[int, int] = {}
        self._ended = False
        self.callback = contained(self._note, self.fail)
        self.callback.collector = self

    def _note(self, frame: Any, event: str, _arg: object) -> None:
        """Take note of an event in the thread."""
        if event not in _OURS:
            return
        if self._ended:
            self._leave_thread()
            return
        code = frame.f_code
        if not self.wants(code, frame.f_globals.get("__name__")):
            return
        if event == "call":
            # A generator that goes on is past its first RESUME.
            if id(code) not in self._first:
                self._first[id(code)] = _begin(code)
            is_new = frame.f_lasti <= self._first[id(code)]
            self.enter(code, frame, is_new=is_new)
        else:
            self.leave(code, frame)

    def _leave_thread(self) -> None:
        # The program may have set one of its own meanwhile.
        if _getprofile() is self.callback:
            _install(None)  # if not now, then at the next event

    def end(self) -> None:
        """See :meth:`Collector.end`."""
        if not self._ended:
            self._ended = True
            self._leave_thread()
        super().end()

    def abandon(self) -> None:
        """See :meth:`Collector.abandon`; the next event ends it."""
        self._ended = True


def _begin(code: Any) -> int:
    """Where the first RESUME of a code object stands."""
    raw = code.co_code
    return next((at for at in range(0, len(raw), 2) if raw[at] == _RESUME), 0)


def begin(options: Options, frame: Any) -> Collector | None:
    """See :func:`diagnose.calltrees.begin`."""
    there = _getprofile()
    if there is not None:
        if type(there) is FunctionType and type(vars(there).get("collector")) is ProfiledCollector:
            return None
        message = (
            f"another profiler is active in this thread ({there!r:.100}), and CPython "
            "3.11 has room for one; end it, or take an event 'return' with 'hotspots'"
        )
        raise ProbeError(message, code="calltree-unavailable")
    collector = ProfiledCollector(options, frame)
    return collector if _install(collector.callback) else None


def _install(function: Callable[..., object] | None) -> bool:
    """Set the thread's profile function, unless another thread is setting its own just now.

    CPython 3.11 has one flag for all threads, and raises where it can't wait.
    """
    try:
        _setprofile(function)
    except RuntimeError:
        return False
    return True
