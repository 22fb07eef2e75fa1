"""``end`` by ``sys.monitoring`` (PEP 669): local events on one code object.

``PY_RETURN`` is armed on the copy's own code object only, so no other function, and no
callee of this one, pays anything. Exceptions need no event: before 3.15 ``PY_UNWIND`` is
global, and the frame is at hand in the exception's traceback.
"""

from __future__ import annotations

import sys
from sys import _getframe
from typing import TYPE_CHECKING

from diagnose.errors import ProbeError
from diagnose.trampoline import copy_function

if TYPE_CHECKING:
    from types import CodeType, FunctionType

    from diagnose.internals import Fire, Watch

__all__ = ["make"]

if sys.version_info >= (3, 12):
    # Code objects compare by content, which is slow and wrong here; a watch keeps its
    # code alive, so the id stands for it.
    _fires: dict[int, Fire] = {}
    _armed: set[int] = set()
    _monitoring = sys.monitoring
    # 3 and 4 belong to nobody; the others have a meaning for debuggers, coverage,
    # profilers and optimizers, and are taken only if those are not there.
    _CANDIDATES = (4, 3, 5, 2, 1, 0)
    _tool: int | None = None

    def _on_return(code: CodeType, _offset: int, _value: object) -> None:
        fire = _fires.get(id(code))
        if fire is not None:
            fire(_getframe(1).f_locals)

    def _find_tool() -> int:
        if _tool is not None:
            return _tool
        for candidate in _CANDIDATES:
            if _monitoring.get_tool(candidate) is None:
                return candidate
        names = [_monitoring.get_tool(candidate) for candidate in range(6)]
        message = (
            f"all six tool ids of sys.monitoring are in use ({names}); stop one of those tools"
        )
        raise ProbeError(message, code="end-unavailable")

    def _acquire_tool() -> int:
        global _tool  # noqa: PLW0603
        tool = _find_tool()
        if _tool is None:
            _monitoring.use_tool_id(tool, "diagnose")
            _tool = tool
            _monitoring.register_callback(tool, _monitoring.events.PY_RETURN, _on_return)
        return tool

    def _release_tool() -> None:
        global _tool  # noqa: PLW0603
        if _tool is not None and not _armed:
            _monitoring.register_callback(_tool, _monitoring.events.PY_RETURN, None)
            _monitoring.free_tool_id(_tool)
            _tool = None

    class MonitoringWatch:
        """See :class:`diagnose.internals.Watch`."""

        sees_errors = False
        coverage: str | None = None

        def __init__(self, function: FunctionType, code: CodeType) -> None:
            self.original = copy_function(function, code.replace())

        def arm(self, fire: Fire) -> None:
            """Raises ProbeError when no tool id is free."""
            code = self.original.__code__
            tool = _acquire_tool()
            _fires[id(code)] = fire
            if id(code) not in _armed:
                _armed.add(id(code))
                _monitoring.set_local_events(tool, code, _monitoring.events.PY_RETURN)

        def disarm(self) -> None:
            code = self.original.__code__
            if id(code) in _armed and _tool is not None:
                _monitoring.set_local_events(_tool, code, 0)
            _armed.discard(id(code))
            _fires.pop(id(code), None)
            _release_tool()

    def make(function: FunctionType, code: CodeType) -> Watch:
        """Make a watch; raises ProbeError when no tool id is free."""
        _find_tool()
        return MonitoringWatch(function, code)
