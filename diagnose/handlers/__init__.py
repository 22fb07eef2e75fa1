"""Writes the function that serves one instrument's hits on one function.

The code of a probed function calls one handler per instrument. The instrument's expressions
are written into the handler itself, so a hit costs one call: no look-up of code, no dict of
locals, no loop. The names that the expressions use become the handler's parameters, or are
fetched by it where they come from elsewhere:

- names of the call: parameters, and those of ``weaving.ENTRY_NAMES`` / ``EXIT_NAMES``; for
  ``end`` and lines, the frame's variables;
- for a function that stands before another (``functools.wraps``), the parameters of that
  other one, bound from ``args`` and ``kwargs``; entries of ``**kwargs``;
- the manager's ``global_namespace``, the function's module globals, builtins.

What a handler guarantees: it raises nothing but what belongs to the program
(:mod:`diagnose.interrupts`); while it runs user code, no probe fires in its thread; once it is
disarmed it does nothing, also for calls that are already on their way out.

Inside: ``plans`` (what to do, where), ``binding`` (where names come from),
``names`` (mappings of the call's names), ``templates`` and ``writing`` (how).
"""

from __future__ import annotations

from diagnose.handlers.plans import (
    Act,
    Append,
    Delivery,
    Emit,
    Fire,
    Plan,
    Scope,
    Span,
    Watch,
)
from diagnose.handlers.writing import disarm, text, write

__all__ = [
    "Act",
    "Append",
    "Delivery",
    "Emit",
    "Fire",
    "Plan",
    "Scope",
    "Span",
    "Watch",
    "disarm",
    "text",
    "write",
]
