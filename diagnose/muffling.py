"""Warnings that serving a hit gives rise to are shown to nobody.

Not to the program, whose ``catch_warnings(record=True)``, ``showwarning``, log and standard error
they would land in; nor do they count as shown, so that its own same warning still is.

While any function is probed, another function stands in the place of ``warnings._showwarnmsg``.
That is what ``warnings.warn`` and C code call once the filters let a warning through, and what
none of the documented ways to redirect warnings replaces. (An entry of ``warnings.filters`` would
be seen, and overruled by ``simplefilter``.) Under the filter ``error`` a warning is an exception
before it comes here: the instrument's.

What is left to the program: a warning of its signal handler that runs amid a hit, and a
``ResourceWarning`` about an object (``source``), since the collector finds the program's objects
amid a hit too. What is not undone: a module in which a warning came up has a
``__warningregistry__``, which may be empty; and the mark in one that was handed to
``warn_explicit``.
"""

from __future__ import annotations

import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

from diagnose.exchange import Exchange
from diagnose.interrupts import is_signal_handler
from diagnose.reentrancy import BUSY, quietly

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["begin", "end"]

# Taken now: one of them may itself be probed, and then its module has a stand-in for it.
_ident, _getframe = threading.get_ident, sys._getframe
_warns_of_resource = ResourceWarning


def _muffled(before: Callable[[warnings.WarningMessage], Any]) -> Callable[..., Any]:
    def _showwarnmsg(message: warnings.WarningMessage) -> Any:
        if _ident() not in BUSY or not _is_from_hit(message):
            return before(message)
        _forget(message)
        return None

    return _showwarnmsg


_exchange = Exchange(warnings, "_showwarnmsg", _muffled)
begin, end = _exchange.begin, _exchange.end


def _is_from_hit(message: warnings.WarningMessage) -> bool:
    """Whether it came up in what serves a hit, and not in a signal handler of the program."""
    if message.source is not None and issubclass(message.category, _warns_of_resource):
        return False
    frame: FrameType | None = _getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<probe ") or code is quietly.__code__:
            return True
        if is_signal_handler(frame):
            return False
        frame = frame.f_back
    return False  # the quiet state of a thread of ours, or of who attaches


def _forget(message: warnings.WarningMessage) -> None:
    """Take away the marks that say that it was shown: they were made just now."""
    text, category = str(message.message), message.category
    frame: FrameType | None = _getframe(2)
    while frame is not None:
        registry = frame.f_globals.get("__warningregistry__")
        if type(registry) is dict and frame.f_code.co_filename == message.filename:
            for key in ((text, category, message.lineno), (text, category, 0), (text, category)):
                registry.pop(key, None)
        frame = frame.f_back
