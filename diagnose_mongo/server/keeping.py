"""The program's side of the process that keeps its mongod: starts it, asks it, ends it.

See :mod:`diagnose_mongo.server.keeper` for the other side, and for what can be asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from diagnose.errors import ServerError
from diagnose_mongo.server import keeper

__all__ = ["KeeperProcess"]

_REPLY_SECONDS = 60.0


class KeeperProcess:
    """A keeper that runs. For one thread at a time; in a forked child nothing but its messages.

    Raises:
        ServerError: it did not start.

    Attributes:
        directory: temporary; it goes with the keeper.
    """

    def __init__(self) -> None:
        self._owner_pid = os.getpid()
        self._requests, self._received = 0, b""
        self.directory: Path | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(self._owner_pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # Ctrl-C in a terminal goes to the whole foreground group: the program, which shuts
            # down in its own order, must find its MongoDB still there.
            start_new_session=True,
        )
        try:
            self.directory = Path(self._read_reply()["directory"])
        except BaseException:
            # Also on Ctrl-C: a caller that got no keeper has nothing to end.
            self.end()
            raise

    @property
    def pid(self) -> int:
        """Of the keeper itself."""
        return self._process.pid

    def is_mine(self) -> bool:
        """Whether it is this process's, and not that of its parent."""
        return self._owner_pid == os.getpid()

    def ask(self, what: str, **arguments: object) -> dict[str, Any]:
        """Have it do something, and wait for its reply.

        Raises:
            ServerError: it is gone, does not answer, or is another process's.
        """
        if not self.is_mine():
            raise ServerError(
                f"this LocalServer belongs to process {self._owner_pid}; "
                f"process {os.getpid()}, its fork, can only use its uri"
            )
        assert self._process.stdin is not None
        self._requests += 1
        request = {"do": what, "id": self._requests, **arguments}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except OSError as exc:
            raise self._is_gone() from exc
        return self._read_reply()

    def end(self) -> None:
        """End it, its mongod, and its directory."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        # Closing the pipe would be enough, were it not for children that this process forked:
        # they hold it too.
        with contextlib.suppress(OSError):
            process.stdin.write(b'{"do": "end"}\n')
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(_REPLY_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self.directory is not None:
            # Nothing is left to remove, unless the keeper was killed.
            shutil.rmtree(self.directory, ignore_errors=True)

    def _read_reply(self) -> dict[str, Any]:
        while True:
            reply: dict[str, Any] = json.loads(self._read_line())
            # An earlier request may have been left by Ctrl-C before its reply was read.
            if reply["id"] == self._requests:
                return reply

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + _REPLY_SECONDS
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        while b"\n" not in self._received:
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the process that keeps mongod (pid {self.pid}) did not answer "
                    f"within {_REPLY_SECONDS:g} s; call stop() and start again"
                )
            received = self._process.stdout.read(65536)
            if not received:
                raise self._is_gone()
            self._received += received
        line, self._received = self._received.split(b"\n", 1)
        return line

    def _is_gone(self) -> ServerError:
        return ServerError(
            f"the process that kept mongod (pid {self.pid}) is gone, and mongod with "
            "it; call stop() and start again"
        )
