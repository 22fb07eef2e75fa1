"""The demo's worker processes, as seen from the process that started them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from typing import Any, Self

from diagnose_mongo.demo import DemoError
from diagnose_mongo.server import URI_VARIABLE

__all__ = ["Fleet", "Worker"]

_STOP_SECONDS = 10.0
_KEPT_LINES = 100
_LAST_WORDS_BYTES = 1_500


class Worker:
    """One worker process; see :mod:`.worker` for what it does.

    Attributes:
        name: what the demo calls it.
        pid: its process id.
        said: its latest answer; empty before the first.
        log_lines: the latest lines that its log instruments wrote.
        logged: how many there were.
        exit_code: once it has ended.
    """

    def __init__(self, name: str, uri: str, database: str, statsd_port: int) -> None:
        self.name = name
        self.said: dict[str, Any] = {}
        self.log_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.logged = 0
        self.exit_code: int | None = None
        self._asked = 1  # the first answer comes unasked
        self._answered = 0
        # It has no name in any directory, so nothing is left of it, whatever happens.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        command = [sys.executable, "-u", "-m", "diagnose_mongo.demo.worker"]
        self._process = subprocess.Popen(
            [*command, name, database, str(statsd_port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            # Not an argument: everybody can see those, and a URI may hold a password.
            env=os.environ | {URI_VARIABLE: uri},
            # Ctrl-C goes to all processes of a terminal, but these are ended in good order.
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name=f"reads {name}", daemon=True)
        self._reader.start()

    @property
    def has_answered(self) -> bool:
        """Whether what was asked is answered in ``said``."""
        return self._answered >= self._asked

    def ask(self) -> None:
        """Ask which of its functions don't have their original code now."""
        assert self._process.stdin is not None
        self._asked += 1
        with contextlib.suppress(OSError):  # check() says why it is gone
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def check(self) -> None:
        """Make sure that it is still there.

        Raises:
            DemoError: it is not; the message has the last of what it said.
        """
        if self._process.poll() is not None:
            raise DemoError(
                f"worker {self.name} (pid {self.pid}) ended with code "
                f"{self._process.returncode}. It wrote last:\n{self.last_words() or 'nothing'}"
            )

    def terminate(self) -> None:
        """Ask it to end, as a service is asked; it takes its probes back before."""
        self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, and end it the hard way if that takes longer."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.exit_code = self._process.wait()
        self._reader.join()
        for file in (self._process.stdin, self._process.stdout, self._stderr):
            assert file is not None
            with contextlib.suppress(OSError):  # a question that it did not live to read
                file.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip("\n")
            if text.startswith("{"):
                self.said = {**self.said, **json.loads(text)}
                self._answered += 1
            else:
                self.log_lines.append(text)
                self.logged += 1

    def last_words(self) -> str:
        """The end of what it wrote to its standard error; empty if that is nothing."""
        # The file's position is the worker's too, as it has inherited it: it is left alone.
        size = os.fstat(self._stderr.fileno()).st_size
        start = max(0, size - _LAST_WORDS_BYTES)
        return os.pread(self._stderr.fileno(), size - start, start).decode(errors="replace").strip()


class Fleet:
    """All workers. A context manager: leaving it ends them.

    Args:
        names: one for each worker.
        uri: their MongoDB.
        database: where their specs are.
        statsd_port: where their metrics go.

    Attributes:
        workers: in the order of their names.
    """

    def __init__(self, names: list[str], uri: str, database: str, statsd_port: int) -> None:
        self.workers: list[Worker] = []
        try:
            for name in names:
                self.workers.append(Worker(name, uri, database, statsd_port))
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def have_answered(self) -> bool:
        """Whether every worker has answered what it was asked."""
        return all(worker.has_answered for worker in self.workers)

    @property
    def replaced(self) -> dict[str, list[str]]:
        """By worker, the functions that did not have their original code at its last answer."""
        return {worker.name: worker.said["replaced"] for worker in self.workers}

    def ask(self) -> None:
        """Ask every worker which of its functions don't have their original code now."""
        for worker in self.workers:
            worker.ask()

    def check(self) -> None:
        """Make sure that all are still there.

        Raises:
            DemoError: one is not.
        """
        for worker in self.workers:
            worker.check()

    def last_words(self) -> str:
        """What the workers wrote last to their standard error."""
        return "\n".join(
            f"Worker {worker.name} wrote last:\n{words}"
            for worker in self.workers
            if (words := worker.last_words())
        )

    def stop(self) -> None:
        """End all workers; what they said at the end is there afterwards. Idempotent."""
        running = [worker for worker in self.workers if worker.exit_code is None]
        for worker in running:
            worker.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in running:
            worker.wait(max(0.0, deadline - time.monotonic()))
