"""The off switches of a process and of its machine."""

from __future__ import annotations

import os

__all__ = ["DISABLED_VARIABLE", "DISABLE_FILE_VARIABLE", "switched_off"]

DISABLED_VARIABLE = "DIAGNOSE_DISABLED"
"""Set to anything but ``0``, ``false``, ``no`` or ``off``, it keeps every spec from being armed."""

DISABLE_FILE_VARIABLE = "DIAGNOSE_DISABLE_FILE"
"""Names a file; as long as that exists, no spec is armed."""

_NOT_DISABLED = frozenset({"", "0", "false", "no", "off"})


def switched_off() -> str | None:
    """Why nothing is to be armed in this process; None: it may be."""
    value = os.environ.get(DISABLED_VARIABLE, "")
    if value.strip().lower() not in _NOT_DISABLED:
        return f"switched off in this process: {DISABLED_VARIABLE}={value}"
    file = os.environ.get(DISABLE_FILE_VARIABLE)
    if file and os.path.exists(file):  # noqa: PTH110 - Path.exists may raise
        return f"switched off on this machine: the file {file} of {DISABLE_FILE_VARIABLE} exists"
    return None
