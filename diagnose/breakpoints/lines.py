"""A forked child's side of a breakpoint: the line to its parent, and where its callers stand."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

from diagnose.breakpoints.messages import framed, take, told_of
from diagnose.reentrancy import Quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diagnose.breakpoints.calls import Call

__all__ = ["FORKING", "FarGate", "Line"]

log = logging.getLogger(__name__)

FORKING = threading.RLock()
"""Held during a fork, and wherever sockets are made that a child must not have."""

_ANSWER_SECONDS = 30.0
"""A parent that does not answer for so long (it is stopped in a debugger) lets the child pass."""


class Line:
    """A forked child's line to the breakpoint in its parent; thread-safe.

    Args:
        end: of the socket; None: there is none, and nobody stops.
    """

    def __init__(self, end: socket.socket | None) -> None:
        self._lock = threading.Lock()
        self._end = end
        if end is not None:
            # Not the breakpoint's: where that is short, a slow machine would let calls pass.
            end.settimeout(_ANSWER_SECONDS)

    @property
    def is_open(self) -> bool:
        """Whether anybody may be at the other end."""
        return self._end is not None

    def ask(self, *message: object, give: socket.socket | None = None) -> Any:
        """Send a message, maybe with a socket; returns the answer, or None if the line is lost."""
        with self._lock:
            if self._end is None:
                return None
            try:
                return self._ask(self._end, framed(message), give)
            except (OSError, EOFError):
                self._close()
                return None
            except BaseException:  # such as KeyboardInterrupt: the answer would be the next one's
                self._close()
                raise

    @staticmethod
    def _ask(end: socket.socket, data: bytes, give: socket.socket | None) -> Any:
        sent = 0 if give is None else socket.send_fds(end, [data], [give.fileno()])
        end.sendall(data[sent:])
        buffer = bytearray()
        while (answer := take(buffer)) is None:
            received = end.recv(4096)
            if not received:
                raise EOFError
            buffer += received
        return answer

    def admit(
        self, call: Call, met: Sequence[bool], broken: str | None, *, stops: bool
    ) -> FarGate | None:
        """Tell of a call; returns where it has to stand, if it has to.

        The parent has the last word on ``call.is_hit``.
        """
        told = told_of(call)
        here = there = None
        try:
            with FORKING:  # a child of this one must not have these too
                if stops:
                    here, there = socket.socketpair()
                answer = self.ask("reached", told, list(met), broken, give=there)
                if there is not None:
                    there.close()
        except OSError as error:  # no sockets are left
            log.warning("a call in a forked child passes a breakpoint: %s", error)
            answer = None
        call.is_hit, stands = answer or (False, False)
        if here is not None and stands:
            return FarGate(self, call.number, here)
        if here is not None:
            here.close()
        return None

    def close(self) -> None:
        """Give it up; idempotent."""
        with self._lock:
            self._close()

    def discard(self) -> None:
        """Close it in a child of the child, where some other thread may have had the lock."""
        self._close()

    def _close(self) -> None:
        if self._end is not None:
            self._end.close()
            self._end = None


class FarGate:
    """Where a thread of a forked child waits, until the parent opens it, or is gone."""

    def __init__(self, line: Line, number: int, end: socket.socket) -> None:
        self._line = line
        self._number = number
        self._end = end

    def open(self) -> None:
        """From within the child."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def discard(self) -> None:
        """Close it in a child of the child."""
        self._end.close()

    def wait(self, seconds: float) -> bool:
        """Whether it was opened in time."""
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        stood: Any = True
        try:
            is_opened = bool(poll.poll(seconds * 1000))
        finally:
            with Quiet():
                stood = self._line.ask("left", self._number)
                self._end.close()
        # It may have been let go in the very last moment, and a lost line lets go too.
        return is_opened or not stood
