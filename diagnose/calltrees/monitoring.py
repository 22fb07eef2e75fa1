"""Reports calls by ``sys.monitoring`` (PEP 669, CPython 3.12 and later).

A tool id is held while something is collected, and given back then. The events are those of
all threads (there is no other way to see functions that are not known yet); what a function is
not wanted for is switched off at its first event.
"""

from __future__ import annotations

import os
import sys
import threading
from sys import _getframe
from typing import TYPE_CHECKING, Any

from diagnose.calltrees.collector import Collector
from diagnose.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

    from diagnose.calltrees.collector import Options
    from diagnose.calltrees.tree import CallTree

__all__ = ["begin"]

if sys.version_info >= (3, 12):
    _monitoring = sys.monitoring
    _events = _monitoring.events
    # 3 and 4 belong to nobody; the others have a meaning for debuggers, coverage, profilers
    # and optimizers, and are taken only if those are not there.
    _CANDIDATES = (4, 3, 5, 2, 1, 0)
    _WATCHED = (
        _events.PY_START
        | _events.PY_RESUME
        | _events.PY_THROW
        | _events.PY_RETURN
        | _events.PY_YIELD
        | _events.PY_UNWIND
    )
    _ident = threading.get_ident
    # Reentrant, for the collection of garbage runs code of anybody's while it is held.
    _lock = threading.RLock()
    _tool: int | None = None
    _collectors: dict[int, MonitoredCollector] = {}

    class MonitoredCollector(Collector):
        """See :class:`Collector`; ended by whatever ends its instrument."""

        def __init__(self, options: Options, frame: Any) -> None:
            super().__init__(options, frame)
            self._thread = _ident()

        def finish(self) -> CallTree:
            """See :meth:`Collector.finish`."""
            self.abandon()
            return self.tree()

        def abandon(self) -> None:
            """See :meth:`Collector.abandon`; its thread may just now be telling it something."""
            with _lock:
                if _collectors.get(self._thread) is self:
                    del _collectors[self._thread]
                    if not _collectors:
                        _release()

    def _after_fork_in_child() -> None:
        # Of the threads, only the one that forked is here.
        global _lock  # noqa: PLW0603
        _lock = threading.RLock()
        for thread in [each for each in _collectors if each != _ident()]:
            del _collectors[thread]
        if not _collectors:
            _release()

    os.register_at_fork(after_in_child=_after_fork_in_child)

    def begin(options: Options, frame: Any) -> Collector | None:
        """See :func:`diagnose.calltrees.begin`."""
        with _lock:
            thread = _ident()
            if thread in _collectors:
                return None
            _acquire()
            collector = _collectors[thread] = MonitoredCollector(options, frame)
        # What an earlier one did not want may be wanted by this one.
        _monitoring.restart_events()
        return collector

    def _acquire() -> None:
        global _tool  # noqa: PLW0603
        if _tool is not None:
            return
        for candidate in _CANDIDATES:
            if _monitoring.get_tool(candidate) is None:
                _monitoring.use_tool_id(candidate, "diagnose")
                break
        else:
            names = [_monitoring.get_tool(candidate) for candidate in range(6)]
            message = f"all six tool ids of sys.monitoring are in use ({names}); stop one of them"
            raise ProbeError(message, code="calltree-unavailable")
        _tool = candidate
        for event, callback in _CALLBACKS.items():
            _monitoring.register_callback(_tool, event, callback)
        _monitoring.set_events(_tool, _WATCHED)

    def _release() -> None:
        global _tool  # noqa: PLW0603
        if _tool is None:
            return
        _monitoring.set_events(_tool, 0)
        for event in _CALLBACKS:
            _monitoring.register_callback(_tool, event, None)
        _monitoring.free_tool_id(_tool)
        _tool = None

    def _enter(code: CodeType, _offset: int, *, is_new: bool) -> Any:
        frame = _getframe(2)
        collector = _collectors.get(_ident())
        if collector is None:
            return None
        if not collector.wants(code, frame.f_globals.get("__name__")):
            # Others that run may want it, so it is switched off for one alone.
            return _monitoring.DISABLE if len(_collectors) == 1 else None
        collector.enter(code, frame, is_new=is_new)
        return None

    def _on_start(code: CodeType, offset: int) -> Any:
        return _enter(code, offset, is_new=True)

    def _on_resume(code: CodeType, offset: int) -> Any:
        return _enter(code, offset, is_new=False)

    def _on_throw(code: CodeType, offset: int, _error: BaseException) -> Any:
        _enter(code, offset, is_new=False)  # can't be switched off

    def _leave(code: CodeType) -> Any:
        frame = _getframe(2)
        collector = _collectors.get(_ident())
        if collector is None:
            return None
        if not collector.wants(code, frame.f_globals.get("__name__")):
            return _monitoring.DISABLE if len(_collectors) == 1 else None
        collector.leave(code, frame)
        return None

    def _on_return(code: CodeType, _offset: int, _value: object) -> Any:
        return _leave(code)

    def _on_unwind(code: CodeType, _offset: int, _error: BaseException) -> Any:
        _leave(code)  # can't be switched off

    _CALLBACKS: dict[int, Callable[..., object]] = {
        _events.PY_START: _on_start,
        _events.PY_RESUME: _on_resume,
        _events.PY_THROW: _on_throw,
        _events.PY_RETURN: _on_return,
        _events.PY_YIELD: _on_return,
        _events.PY_UNWIND: _on_unwind,
    }
