"""Ctrl-C and its kin, noticed where the demo waits and nowhere else.

An exception that can come anywhere would come between the start of a process and the line
that notes that it has to be ended.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Interrupted", "StopSignals", "silence"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):  # noqa: N818 - no error, as with KeyboardInterrupt
    """A signal asked the demo to stop.

    Attributes:
        signal: which one.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}")


class StopSignals:
    """Takes note of the signals that ask to stop. A context manager, for the main thread.

    All but the first change nothing: what remains to be done then takes seconds at most.
    """

    def __init__(self) -> None:
        # Its put() may be called from a signal handler; that of queue.Queue may not.
        self._seen: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            # What is ignored stays so: nohup, and jobs in the background of a script.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            Interrupted: a signal came, now or since the last pause.
        """
        try:
            number = self._seen.get(timeout=seconds)
        except queue.Empty:
            return
        if number == signal.SIGHUP:
            silence()
        raise Interrupted(number)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._seen.put(number)


def silence() -> None:
    """Write no more: nobody reads it, and writing to a closed terminal or pipe fails."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.dup2(null, sys.stderr.fileno())
    os.close(null)
