"""One entering of a breakpoint: its parts put together, put on, and undone whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diagnose.breakpoints import forks
from diagnose.breakpoints.blocked import Gate, TaskGate
from diagnose.breakpoints.hooking import Hooking
from diagnose.breakpoints.register import entered
from diagnose.breakpoints.stops import Stop
from diagnose.breakpoints.waits import Waits
from diagnose.breakpoints.workers import Workers

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from diagnose.breakpoints.calls import Call
    from diagnose.breakpoints.settings import Settings

__all__ = ["Session"]


class Session:
    """A breakpoint from its entering to its end.

    Attributes:
        stop: serves calls.
        workers: the threads and tasks that it started.
        waits: of the test.

    Args:
        settings: the breakpoint's.
        loop: the event loop of the test, if that is a task.
    """

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._settings = settings
        self._is_for_tasks = loop is not None
        self._hooking = Hooking(settings.target, settings.event)
        self.stop = Stop(settings, loop)
        self.workers = Workers(settings, self.stop.monitor.announce, self.stop.log.is_meant)
        self.waits = Waits(settings, self.stop, self.workers)

    def __repr__(self) -> str:
        return repr(self._settings)

    @property
    def is_on(self) -> bool:
        """Whether it was put on, and not undone since."""
        return self._hooking.is_on

    def put_on(self) -> None:
        """Begin to stop calls.

        Raises:
            DiagnoseError: there is no such function, or event in it; all is as it was.
        """
        if not self._settings.has_target:
            return
        hooking, stop = self._hooking, self.stop
        try:
            hooking.find()
            stop.name = hooking.name
            stop.takes_tasks = self._is_for_tasks and hooking.is_awaited
            stop.log.conditions.signature = hooking.signature
            hooking.put_on(stop.reach, awaits=stop.takes_tasks)
            entered.add(self)
            forks.watch(stop, self.workers.forget)
        except BaseException:
            self.take_off()
            raise

    def take_off(self) -> None:
        """Undo everything, and let everybody go; idempotent."""
        try:
            self._undo()
        except BaseException:
            # An interrupt (Ctrl-C) in the middle of it.
            self._undo()
            raise
        finally:
            self.end_quiet()

    def _undo(self) -> None:
        entered.discard(self)
        try:
            self._hooking.take_off()
        finally:
            self.stop.blocked.open()
            forks.forget(self.stop)

    def end_quiet(self) -> None:
        """End what an interrupt may have kept from ending in the thread that entered it."""
        self._hooking.end_quiet()

    def told(self) -> tuple[Sequence[Call], Sequence[str]]:
        """See :class:`~diagnose.breakpoints.register.Entered`."""
        held = self.stop.blocked.held
        threads = [call for call, gate in held if isinstance(gate, Gate)]
        tasks = [f"{call}: stands" for call, gate in held if isinstance(gate, TaskGate)]
        return threads, [*tasks, *self.workers.tasks]
