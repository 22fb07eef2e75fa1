"""Standard output, written to without the program's stream.

What is written to ``sys.stdout`` lies in its buffer together with the program's own text. If the
other end is closed or the disk full, that text gets lost with it, a write of the program's raises
what is ours, and the interpreter ends with status 120; whoever writes amid a write (in a signal
handler) destroys what was in the buffer; and who writes to a pipe that nobody reads waits. So
lines for the real standard output go straight to its file descriptor, from a thread of their own:
the program's text stays as it is, and its thread waits for nobody.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections import deque
from typing import TYPE_CHECKING

from diagnose import forking
from diagnose.clockwork import Clockwork
from diagnose.forking import Layer
from diagnose.reentrancy import Quiet

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["STANDARD_OUTPUT", "StandardOutput"]

MAX_LINES = 10_000
LINES_AT_ONCE = 100
IN_ORDER_SECONDS = 0.02
"""How long a line is waited for where the program's own text is not held in a buffer (a terminal,
``PYTHONUNBUFFERED``), so that it stands where it belongs."""
SETTLE_SECONDS = 1.0

_clockwork = Clockwork("diagnose-output", Quiet)

# Taken now: they may be probed, and then their modules have stand-ins for them.
_write, _poll, _mask = os.write, select.poll, signal.pthread_sigmask


class StandardOutput:
    """What ``sys.stdout`` is at the time, as a stream that never fails and hardly waits.

    Where a program has put something else in its place, that is written to, as it is. At most
    10,000 lines wait for their turn; more than that, and the oldest are lost.

    Attributes:
        lost: whether anything could not be written.
    """

    def __init__(self) -> None:
        self.lost = False
        self._lines: deque[tuple[TextIO, bytes]] = deque(maxlen=MAX_LINES)
        self._users: set[int] = set()
        self._is_stuck = self._is_asked = False
        self._known: TextIO | None = None
        self._keeps_order = False

    def write(self, text: str) -> int:
        """Write text; what a stream in the place of the real one raises is raised."""
        out = sys.stdout
        if out is not None and out is not sys.__stdout__:
            out.write(text)
        elif out is None or out.closed:
            self.lost = True
        else:
            self._hand_over(out, text.encode(out.encoding or "utf-8", "backslashreplace"))
        return len(text)

    def _hand_over(self, out: TextIO, line: bytes) -> None:
        self.lost |= len(self._lines) == MAX_LINES
        self._lines.append((out, line))
        if _clockwork.thread is None:
            self._work()
            return
        if not self._is_asked:
            self._is_asked = True
            _clockwork.soon(self._work_alone)
        if out is not self._known:
            # Once only: asking gives other threads the chance to take the interpreter.
            self._keeps_order = bool(getattr(out, "write_through", False)) or out.isatty()
            self._known = out
        if self._keeps_order and not self._is_stuck:
            self._wait(IN_ORDER_SECONDS)

    def begin(self, user: object) -> None:
        """Have a thread, for the sake of ``user``, until :meth:`end`."""
        if id(user) not in self._users:
            self._users.add(id(user))
            _clockwork.hold()

    def end(self, user: object) -> None:
        """Undo :meth:`begin`; idempotent."""
        if id(user) in self._users:
            self._users.discard(id(user))
            _clockwork.release()

    def settle(self) -> None:
        """Wait until all is written, for a second at most."""
        if not self._is_stuck:
            self._wait(SETTLE_SECONDS)

    def _wait(self, seconds: float) -> None:
        def done() -> None:
            self._is_stuck = False

        self._is_stuck = not _clockwork.settle(seconds, done)

    def _work_alone(self) -> None:
        # In this thread only: where the program has set it to its default, writing to a pipe
        # without a reader would end the process.
        _mask(signal.SIG_BLOCK, (signal.SIGPIPE,))
        self._work()

    def _work(self) -> None:
        self._is_asked = False  # first: what comes from now on may come too late
        pieces: list[bytes] = []
        before: TextIO | None = None
        while True:
            try:
                out, line = self._lines.popleft()
            except IndexError:
                break
            if pieces and (out is not before or len(pieces) == LINES_AT_ONCE):
                self._send(before, b"".join(pieces))
                pieces = []
            before = out
            pieces.append(line)
        if pieces:
            self._send(before, b"".join(pieces))

    def _send(self, out: TextIO | None, text: bytes) -> None:
        try:
            number = -1 if out is None else out.fileno()
            while text:
                try:
                    text = text[_write(number, text) :]
                except BlockingIOError:
                    poll = _poll()
                    poll.register(number, select.POLLOUT)
                    if not poll.poll(SETTLE_SECONDS * 1000):
                        raise
        except (OSError, ValueError):
            self.lost = True

    def after_fork_in_child(self) -> None:
        """Forget what is the parent's to write."""
        self._lines.clear()
        self._is_stuck = self._is_asked = False


STANDARD_OUTPUT = StandardOutput()

forking.register(Layer.STATE, in_child=STANDARD_OUTPUT.after_fork_in_child)
