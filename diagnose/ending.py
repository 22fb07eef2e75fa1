"""What this library does at the end of the program, in one order.

Before the interpreter takes the program apart, so that it comes apart as if nothing had been there;
and behind what the program itself has registered with :mod:`atexit` since this was imported.
Children of multiprocessing end by ``os._exit``, so not with what `atexit` knows, but with finalizers
of their own; they begin by forgetting their parent's.
"""

from __future__ import annotations

import atexit
import sys
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING

from diagnose import forking

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Layer", "register"]


class Layer(IntEnum):
    """In the order in which they end."""

    MANAGERS = 0
    """They apply no more."""
    CALL_TREES = 1
    PROBES = 2
    """They are taken off, and what is still to be told is told."""


_registered: list[tuple[Layer, Callable[[], object]]] = []
_LAST_PRIORITY = -2000  # behind those who say good-bye to a server
_is_following = False


def register(layer: Layer, function: Callable[[], object]) -> None:
    """Have a function called at the end of the program, whatever others raise then."""
    _registered.append((layer, function))
    _registered.sort(key=lambda each: each[0])


def _end() -> None:
    # Whatever happens here (an interrupt from the keyboard, a hook of the application's) is not
    # to be seen: the program has done all that it had to do.
    for _, function in _registered:
        with suppress(BaseException):
            function()


def _follow_multiprocessing() -> None:
    global _is_following  # noqa: PLW0603 - of the program, children included
    with suppress(Exception):  # this is somebody else's module
        util = sys.modules.get("multiprocessing.util")
        if util is not None and hasattr(util, "register_after_fork") and not _is_following:
            _is_following = True
            util.register_after_fork(_end, _end_with_finalizers)


def _end_with_finalizers(end: Callable[[], None]) -> None:
    sys.modules["multiprocessing.util"].Finalize(None, end, exitpriority=_LAST_PRIORITY)


atexit.register(_end)
forking.register(forking.Layer.PROGRAM, before=_follow_multiprocessing)
