"""Reads, changes and writes the byte code of CPython 3.11 to 3.15.

``assembly`` turns a code object into a list of instructions and back: jumps, the exception
table and the table of lines follow what is put between. ``emitter`` writes the few
instructions that calls need, in the form that each version wants. ``weaving`` puts the calls
of probes into a function's code.
"""

from __future__ import annotations

import sys

from diagnose.errors import ProbeError

OLDEST, NEWEST = (3, 11), (3, 15)
"""The versions of CPython whose byte code is known."""

_found = sys.implementation.name, sys.version_info[:2]
# Here, so that on another Python nothing of the engine is imported: its tables of instructions
# are not that one's. What operators use imports none of it, and works there.
if _found[0] != "cpython" or not OLDEST <= _found[1] <= NEWEST:
    raise ProbeError(
        "functions are probed by byte code of CPython "
        f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}, and this is "
        f"{_found[0]} {_found[1][0]}.{_found[1][1]} ({sys.executable}): run the program on one of "
        "those, or look for a newer diagnose-mongo",
        code="unsupported-python",
    )
