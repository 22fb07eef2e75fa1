"""Lines of source files, for texts.

One function, since a look at a line happens in the program's thread and must do no harm there:
``linecache`` warns of modules that do not say who loaded them (3.15), which is an error where
warnings are, and who did may raise anything.
"""

from __future__ import annotations

import linecache
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["source_line"]


def source_line(file: str, number: int, module: Mapping[str, object] | None = None) -> str:
    """The text of a line, without white space around it; empty where it can't be had.

    Never raises an ``Exception`` and never warns. The first look at a file reads it.

    Args:
        file: as code objects name it.
        number: the first line is 1.
        module: the globals of the code, where lines of what was not loaded from a file of its
            own (from an archive, say) are found through the module's loader.
    """
    spec = None if module is None else module.get("__spec__")
    known = None
    # Of the program's own globals, no more than what linecache does not warn of.
    if type(spec) is ModuleSpec and spec.loader is not None:
        known = {"__name__": spec.name, "__spec__": spec, "__loader__": spec.loader}
    try:
        return linecache.getline(file, number, known).strip()
    except Exception:  # noqa: BLE001  (loaders are the program's, and this is for a text only)
        return ""
