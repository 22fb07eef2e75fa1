"""The process between a program and its local mongod: it ends with either, and cleans up.

:mod:`diagnose_mongo.server.local` starts this file by its path, as
``python -I -S keeper.py <pid of the program>``. So it imports nothing but the standard
library, and nothing imports it.

Why a process, and not ``PR_SET_PDEATHSIG`` on mongod itself: that signal comes when the
*thread* that forked ends, it must be asked for between fork and exec (``preexec_fn``, which
may deadlock in a program with threads), only Linux has it, and nobody would remove the
directory. The keeper has one thread, so here both objections fall, and mongod gets that
signal too, for the day that the keeper itself is killed.

It knows that the program is gone by either of two things: the pipe that carries the requests
ends (but children that the program forked hold it open too), or the program's pid is no longer
its parent (seen at once through a pidfd where there is one, else within half a second).

Requests and replies are JSON objects, one to a line: see :class:`Keeper`.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["DIRECTORY_PREFIX", "LOG_NAME", "Keeper", "main"]

DIRECTORY_PREFIX = "diagnose-mongod-"
LOG_NAME = "mongod.log"

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_ORDERLY_SECONDS = 20.0
_PARENT_CHECK_MILLISECONDS = 500


class Keeper:
    """Keeps one mongod.

    Requests, as ``{"do": ...}``:

    - ``start`` with ``argv``: start the server; its output goes to the end of the log.
    - ``status``: is it running.
    - ``kill``: SIGKILL, then wait until it is gone.
    - ``terminate``: SIGTERM, wait, SIGKILL if that took too long.
    - ``end``: no reply; end mongod, remove the directory, leave.

    Every reply has the request's ``id``, and ``pid`` (None when it is not running) and
    ``returncode`` (of the last run), or ``error``. The first line needs no request: it has
    the ``id`` 0 and the ``directory``, made for the data and the log.

    Args:
        parent: pid of the program that is to be outlived by a moment only.
    """

    def __init__(self, parent: int) -> None:
        self.parent = parent
        self.directory = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX))
        self.process: subprocess.Popen[bytes] | None = None
        self.orderly = False
        self._prctl = _load_prctl()

    def serve(self) -> None:
        """Answer requests until the program ends or closes the pipe."""
        poll = select.poll()
        poll.register(sys.stdin.fileno(), select.POLLIN)
        parent_fd = _open_pidfd(self.parent)
        timeout = _PARENT_CHECK_MILLISECONDS if parent_fd is None else None
        if parent_fd is not None:
            poll.register(parent_fd, select.POLLIN)
        buffer = b""
        self._reply({"id": 0, "directory": str(self.directory)})
        # Checked after the pidfd was opened: so it is the parent's, and no later process's.
        while os.getppid() == self.parent:
            ready = [fd for fd, _ in poll.poll(timeout)]
            if sys.stdin.fileno() not in ready:
                continue
            received = os.read(sys.stdin.fileno(), 65536)
            if not received:
                return
            *lines, buffer = (buffer + received).split(b"\n")
            for line in lines:
                request = json.loads(line)
                if request["do"] == "end":
                    return
                self._reply({"id": request["id"], **self._answer(request)})

    def close(self) -> None:
        """End mongod and remove the directory, whatever state they are in."""
        if self.orderly:
            self._terminate()
        else:
            # Its data goes the next moment: nothing is worth waiting for.
            self._kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            match request["do"]:
                case "start":
                    self.orderly = request["orderly"]
                    self._start(request["argv"])
                case "kill":
                    self._kill()
                case "terminate":
                    self._terminate()
            return self._status()
        except OSError as exc:
            return {"error": f"{type(exc).__name__}: {exc}"}

    def _status(self) -> dict[str, Any]:
        returncode = None if self.process is None else self.process.poll()
        running = self.process is not None and returncode is None
        return {
            "pid": self.process.pid if running and self.process is not None else None,
            "returncode": returncode,
        }

    def _start(self, argv: list[str]) -> None:
        with (self.directory / LOG_NAME).open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                preexec_fn=self._end_with_me,  # noqa: PLW1509 - this process has one thread
            )

    def _end_with_me(self) -> None:
        if self._prctl is not None:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def _kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _terminate(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(_ORDERLY_SECONDS)
            except subprocess.TimeoutExpired:
                self._kill()

    @staticmethod
    def _reply(message: dict[str, Any]) -> None:
        os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")


def _load_prctl() -> Any:
    if sys.platform != "linux":
        return None
    return ctypes.CDLL(None, use_errno=True).prctl


def _open_pidfd(pid: int) -> int | None:
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        # A kernel before 5.3, a sandbox that forbids it, or the program is gone already.
        return None


def _leave(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def main(argv: list[str]) -> int:
    """Keep a mongod for the program with the pid in ``argv[1]``, until either ends."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, _leave)
    keeper = Keeper(int(argv[1]))
    try:
        keeper.serve()
    except BrokenPipeError:
        pass  # the program ended while it was being answered
    finally:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        keeper.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
