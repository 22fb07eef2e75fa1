"""Debuggers step over what serves a hit, as over C.

pdb and all that is made of :mod:`bdb` ask that class whether to trace a frame that begins.
While any function is probed, it is told not to where the frame is ours, or was called by one
of ours. Breakpoints are still met there, and who was led by one into a function that an
instrument calls steps on in it.

Frames could be hidden for good, as those of stand-ins are (a code without ``RESUME``). But what
a handler calls would be entered all the same, profilers of 3.11 are told of the end of such a
frame and not of its begin, and what is raised in it is taken for an exception of the function.
"""

from __future__ import annotations

import bdb
import functools
from typing import TYPE_CHECKING, Any

from diagnose import bytecode
from diagnose.calltrees import is_ours
from diagnose.exchange import Exchange
from diagnose.originals import own_code

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["begin", "end"]

# What stands for a function without code is not seen as the caller of these.
_CALLED_BY_WOVEN = ("<probe ", bytecode.__file__.removesuffix("__init__.py"))


def _stepping_over(before: Any) -> Any:
    @functools.wraps(before)
    def dispatch_call(self: bdb.Bdb, frame: FrameType, arg: None) -> Any:
        if _serves_hit(frame) and not self.break_anywhere(frame):
            return None  # so a debugger says that the frame is not to be traced
        return before(self, frame, arg)

    return dispatch_call


_exchange = Exchange(bdb.Bdb, "dispatch_call", _stepping_over)
begin, end = _exchange.begin, _exchange.end


def _serves_hit(frame: FrameType) -> bool:
    """Whether a frame was called by code that a probe put into a function, or further down."""
    now: FrameType | None = frame
    while now is not None and now.f_trace is None:
        caller = now.f_back
        filename = now.f_code.co_filename
        if filename.startswith(_CALLED_BY_WOVEN):
            return True
        if is_ours(filename) and (_is_woven(now) or _is_woven(caller)):
            return True
        now = caller
    return False  # what called it is traced itself: that is where the debugger is


def _is_woven(frame: FrameType | None) -> bool:
    return frame is not None and own_code(frame.f_code) is not frame.f_code
