"""Reports calls by ``sys.monitoring`` (PEP 669, CPython 3.12 and later).

A tool id is held while something is collected, and given back then. The events are those of
all threads: there is no other way to see functions that are not known yet. None is switched off
where it is not wanted, since it could be switched on again for all tools alone, also for those
that have switched it off for themselves.
"""

from __future__ import annotations

import sys
import threading
from sys import _getframe
from typing import TYPE_CHECKING, Any

from diagnose import ending, forking
from diagnose.calltrees.callbacks import contained
from diagnose.calltrees.collector import Collector
from diagnose.errors import ProbeError
from diagnose.forking import Layer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

    from diagnose.calltrees.collector import Options

__all__ = ["begin"]

if sys.version_info >= (3, 12):
    _monitoring = sys.monitoring
    _events = _monitoring.events
    # While a tree is made the program may begin to use one itself, which must not fail. Those of
    # debuggers, coverage and profilers (0 to 2) are theirs; 5 is for optimizers, which do not exist.
    _CANDIDATES = (5, 3, 4)
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
    _is_over = False
    _collectors: dict[int, MonitoredCollector] = {}

    class MonitoredCollector(Collector):
        """See :class:`Collector`; ended by whatever ends its instrument."""

        def end(self) -> None:
            """See :meth:`Collector.end`."""
            self.abandon()
            super().end()

        def abandon(self) -> None:
            """See :meth:`Collector.abandon`; its thread may just now be telling it something."""
            with _lock:
                if _collectors.get(self.thread) is self:
                    del _collectors[self.thread]
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

    forking.register(Layer.STATE, in_child=_after_fork_in_child)

    def begin(options: Options, frame: Any) -> Collector | None:
        """See :func:`diagnose.calltrees.begin`."""
        with _lock:
            thread = _ident()
            if thread in _collectors or _is_over:
                return None
            collector = MonitoredCollector(options, frame)
            _acquire()
            _collectors[thread] = collector
        return collector

    def _end() -> None:
        """Watch nothing from now on: the process ends, maybe with a thread inside a watched call."""
        global _is_over  # noqa: PLW0603
        with _lock:
            _is_over = True
            _collectors.clear()
            _release()

    ending.register(ending.Layer.CALL_TREES, _end)

    def _acquire() -> None:
        global _tool  # noqa: PLW0603
        if _tool is not None:
            return
        for candidate in _CANDIDATES:
            if _monitoring.get_tool(candidate) is None:
                _monitoring.use_tool_id(candidate, _NAME)
                break
        else:
            names = [_monitoring.get_tool(candidate) for candidate in _CANDIDATES]
            held = f"the tool ids {_CANDIDATES} of sys.monitoring are in use ({names})"
            message = f"{held}; stop one of them"
            raise ProbeError(message, code="calltree-unavailable")
        _tool = candidate
        try:
            for event, callback in _CALLBACKS.items():
                _monitoring.register_callback(_tool, event, callback)
            _monitoring.set_events(_tool, _WATCHED)
        except BaseException:  # an interrupt, or an audit hook of the program
            _release()
            raise

    def _release() -> None:
        global _tool
        tool, _tool = _tool, None
        if tool is None or _monitoring.get_tool(tool) != _NAME:
            return
        try:
            _monitoring.set_events(tool, 0)
            for event in _CALLBACKS:
                _monitoring.register_callback(tool, event, None)
        finally:
            _monitoring.free_tool_id(tool)

    # What they need is bound: at the end of a process a module's globals may be gone before.

    def _entering(*, is_new: bool) -> Callable[..., object]:
        def enter(
            code: CodeType,
            _offset: int,
            _error: BaseException | None = None,
            collectors: dict[int, MonitoredCollector] = _collectors,
            ident: Callable[[], int] = _ident,
            getframe: Callable[[int], Any] = _getframe,
        ) -> None:
            collector = collectors.get(ident())
            if collector is not None:
                frame = getframe(2)
                if collector.wants(code, frame.f_globals.get("__name__")):
                    collector.enter(code, frame, is_new=is_new)

        entering: Callable[..., object] = contained(enter, _failed)
        return entering

    def _leave(
        code: CodeType,
        _offset: int,
        _value: object,
        collectors: dict[int, MonitoredCollector] = _collectors,
        ident: Callable[[], int] = _ident,
        getframe: Callable[[int], Any] = _getframe,
    ) -> None:
        collector = collectors.get(ident())
        if collector is not None:
            frame = getframe(2)
            if collector.wants(code, frame.f_globals.get("__name__")):
                collector.leave(code, frame)

    def _failed(error: BaseException) -> None:
        collector = _collectors.get(_ident())
        if collector is not None:
            collector.fail(error)

    _NAME = "diagnose"
    _CALLBACKS: dict[int, Callable[..., object]] = {
        _events.PY_START: _entering(is_new=True),
        _events.PY_RESUME: _entering(is_new=False),
        _events.PY_THROW: _entering(is_new=False),
        _events.PY_RETURN: contained(_leave, _failed),
        _events.PY_YIELD: contained(_leave, _failed),
        _events.PY_UNWIND: contained(_leave, _failed),
    }
