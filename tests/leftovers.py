"""Which functions the library gave other code: what must be undone when a test is over."""

from __future__ import annotations

import os
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diagnose.errors

if TYPE_CHECKING:
    from types import CodeType, FunctionType

_LIBRARY = str(Path(diagnose.errors.__file__).parent) + os.sep
originals: dict[int, tuple[weakref.ref[FunctionType], CodeType]] = {}


def _note_swaps(event: str, arguments: tuple[Any, ...]) -> None:
    # CPython announces each ``function.__code__ = …`` before it happens. So this needs no help
    # from the library that it watches, and sees what a half-failed start did as well.
    if event != "object.__setattr__" or arguments[1] != "__code__":
        return
    function = arguments[0]
    by = sys._getframe(1).f_globals.get("__name__", "")
    if by.partition(".")[0] != "diagnose" or _made_by_the_library(function):
        return
    noted = originals.get(id(function))
    if noted is None or noted[0]() is not function:
        originals[id(function)] = (weakref.ref(function), function.__code__)


def _made_by_the_library(function: FunctionType) -> bool:
    """Handlers and stand-ins have no user whose code it would be."""
    filename = function.__code__.co_filename
    if filename.startswith(("<probe ", "<diagnose")):
        return True
    return filename.startswith(_LIBRARY) and "<locals>" in function.__qualname__


sys.addaudithook(_note_swaps)


def changed_functions() -> dict[FunctionType, CodeType]:
    alive = ((ref(), original) for ref, original in list(originals.values()))
    return {
        function: original
        for function, original in alive
        if function is not None and function.__code__ is not original
    }
