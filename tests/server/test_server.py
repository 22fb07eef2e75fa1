from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pymongo
import pytest

from diagnose.errors import ServerError
from diagnose_mongo.server import (
    URI_VARIABLE,
    ExternalServer,
    LocalServer,
    find_mongod,
    server,
)
from diagnose_mongo.server import local as server_module

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"),
    reason="these tests wait for processes through pidfds (Linux)",
)


class Watch:
    """Tells when a process that is not our child has ended; opened while it still runs."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def wait(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        assert poll.poll(SECONDS * 1000), "the process did not end"

    def ended(self) -> bool:
        return bool(select.select([self._fd], [], [], 0)[0])

    def __del__(self) -> None:
        os.close(self._fd)


class Program:
    """A Python process that uses a LocalServer, with what it says about it on one line."""

    PRELUDE = """
import json, os, signal, sys, threading
from diagnose_mongo.server import LocalServer

def say(local):
    pids = [local.pid, local._keeper.pid]
    print(json.dumps({"pids": pids, "directory": str(local._keeper.directory), "uri": local.uri}))
    sys.stdout.flush()

"""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PRELUDE + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        line = self.process.stdout.readline()
        assert line, "the program ended before its server ran"
        said = json.loads(line)
        self.uri = said["uri"]
        self.directory = Path(said["directory"])
        self.watches = [Watch(pid) for pid in said["pids"]]
        assert self.directory.is_dir()

    def nothing_is_left(self) -> bool:
        for watch in self.watches:
            watch.wait()
        return not self.directory.exists()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def no_mongod_around(monkeypatch, tmp_path):
    monkeypatch.delenv(URI_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(server_module, "_WHEEL", "a-wheel-that-nobody-has")


@pytest.fixture
def script(tmp_path):
    """Makes an executable that stands for a mongod."""

    def make(text: str, name: str = "mongod") -> Path:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


# --- a server that works ----------------------------------------------------------------------


def test_a_local_server_is_a_primary_that_takes_majority_writes_and_change_streams(database):
    assert database.client.admin.command("hello")["isWritablePrimary"]
    things = database["things"].with_options(write_concern=pymongo.WriteConcern("majority"))
    things.insert_one({"_id": 0})
    with things.watch() as changes:
        things.insert_one({"_id": 1})
        assert next(changes)["documentKey"] == {"_id": 1}


def test_a_local_server_listens_on_the_loopback_address_alone(mongo_server):
    with socket.create_connection(("127.0.0.1", mongo_server.port), SECONDS):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", mongo_server.port), SECONDS)


def test_test_commands_are_on_when_asked_for_and_ttl_runs_each_second(database):
    asked = {"getParameter": 1, "enableTestCommands": 1, "ttlMonitorSleepSecs": 1}
    answer = database.client.admin.command(asked)
    assert answer["enableTestCommands"]
    assert answer["ttlMonitorSleepSecs"] == 1


def test_a_killed_server_comes_back_on_the_same_port_with_its_data():
    with LocalServer() as local:
        uri, first_pid = local.uri, local.pid
        with pymongo.MongoClient(uri) as client:
            client.test.things.insert_one({"_id": "kept"}, comment="acknowledged and journaled")
        watch = Watch(first_pid)
        local.kill()
        assert watch.ended()
        assert local.pid is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", local.port), SECONDS)
        local.restart()
        assert local.uri == uri
        assert local.pid not in (None, first_pid)
        with pymongo.MongoClient(uri) as client:
            assert client.admin.command("hello")["isWritablePrimary"]
            assert client.test.things.find_one() == {"_id": "kept"}


def test_a_stopped_server_leaves_no_process_and_no_directory_and_stops_twice():
    local = LocalServer()
    local.start()
    watches = [Watch(local.pid), Watch(local._keeper.pid)]
    directory = local._keeper.directory
    assert directory.is_dir()
    local.start()
    assert not watches[0].ended(), "starting what runs does nothing"
    local.stop()
    assert all(watch.ended() for watch in watches)
    assert not directory.exists()
    local.stop()
    assert local.pid is None


def test_data_in_a_directory_of_ones_own_outlive_the_server_and_keep_its_address(tmp_path):
    with server(dbpath=tmp_path / "data") as local:
        uri = local.uri
        with pymongo.MongoClient(uri) as client:
            client.test.things.insert_one({"_id": "kept"})
    with server(dbpath=tmp_path / "data") as local:
        assert local.uri == uri
        with pymongo.MongoClient(uri) as client:
            assert client.test.things.find_one() == {"_id": "kept"}


def test_a_port_that_is_taken_is_passed_over(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = iter([taken, taken, server_module._pick_port()])
        monkeypatch.setattr(server_module, "_pick_port", lambda: next(ports))
        with LocalServer() as local:
            assert local.port != taken
            assert local.pid is not None


def test_a_port_that_was_asked_for_and_is_taken_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(ServerError, match=rf"127\.0\.0\.1:{taken}, it is taken"):
            LocalServer(port=taken).start()


def test_ports_are_none_that_the_system_gives_to_clients():
    assert all(20000 <= server_module._pick_port() < 32768 for _ in range(50))


# --- the server ends with the program ---------------------------------------------------------

WAIT = """
local = LocalServer()
local.start()
say(local)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["", "sys.exit(3)"], ids=["by itself", "with an error code"])
def test_the_server_is_stopped_when_a_program_exits(end):
    code = """
import atexit
atexit.register(lambda: print(local.pid))  # the last to be called
"""
    with Program(code + WAIT + end) as program:
        program.process.stdin.close()
        assert program.process.stdout.readline() == "None\n"
        assert all(watch.ended() for watch in program.watches)
        assert program.nothing_is_left()


def test_the_server_ends_with_a_program_that_ends_without_clean_up():
    with Program(WAIT + "os._exit(0)") as program:
        program.process.stdin.close()
        assert program.nothing_is_left()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_server_ends_with_a_program_that_is_ended_by(signum):
    with Program("sys.stderr = open(os.devnull, 'w')" + WAIT) as program:
        assert not program.watches[0].ended()
        program.process.send_signal(signum)
        assert program.nothing_is_left()


def test_the_server_ends_with_a_killed_program_whose_forked_child_lives_on():
    code = """
local = LocalServer()
local.start()
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
say(local)
sys.stdin.read()
"""
    with Program(code) as program:
        program.process.kill()
        assert program.nothing_is_left()


def test_the_server_outlives_the_thread_that_started_it():
    with LocalServer() as local:
        local.stop()
        thread = threading.Thread(target=local.start)
        thread.start()
        thread.join()
        with pymongo.MongoClient(local.uri) as client:
            assert client.admin.command("hello")["isWritablePrimary"]


def test_ctrl_c_in_the_terminal_leaves_the_server_to_the_program():
    code = """
import pymongo
local = LocalServer()
local.start()
try:
    say(local)
    sys.stdin.read()
except KeyboardInterrupt:
    print(pymongo.MongoClient(local.uri).admin.command("hello")["isWritablePrimary"])
"""
    with Program(code) as program:
        os.killpg(program.process.pid, signal.SIGINT)
        assert program.process.stdout.readline() == "True\n"
        assert program.nothing_is_left()


def test_ctrl_c_while_the_server_starts_leaves_nothing(script, monkeypatch):
    local = LocalServer(mongod=script("#!/bin/sh\nexec sleep 600\n"))
    left = []

    def ctrl_c(_log, _port):
        left.extend([Watch(local.pid), Watch(local._keeper.pid), local._keeper.directory])
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "_check_running", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        local.start()
    mongod, keeper, directory = left
    assert mongod.ended()
    assert keeper.ended()
    assert not directory.exists()
    assert local.pid is None


def test_a_forked_child_that_exits_does_not_stop_the_server_nor_can_it():
    code = """
from diagnose.errors import ServerError
local = LocalServer()
local.start()
child = os.fork()
if child == 0:
    try:
        local.kill()
    except ServerError:
        local.stop()
        sys.exit(7)  # with everything that runs at exit
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
say(local)
sys.stdin.read()
"""
    with Program(code) as program:
        with pymongo.MongoClient(program.uri) as client:
            assert client.admin.command("hello")["isWritablePrimary"]
        program.process.stdin.close()
        assert program.nothing_is_left()


def test_when_the_keeper_is_killed_the_server_ends_too_and_stop_removes_the_directory():
    local = LocalServer()
    local.start()
    try:
        watch, directory = Watch(local.pid), local._keeper.directory
        os.kill(local._keeper.pid, signal.SIGKILL)
        watch.wait()
        with pytest.raises(ServerError, match=r"is gone.*call stop\(\) and start again"):
            local.restart()
    finally:
        local.stop()
    assert not directory.exists()
    with local:
        assert local.pid is not None


# --- errors -----------------------------------------------------------------------------------


def test_a_server_that_dies_at_start_is_an_error_with_the_end_of_its_log(script):
    dying = script("#!/bin/sh\necho 'libssl.so.3: cannot open shared object file' >&2\nexit 127\n")
    with pytest.raises(ServerError) as caught:
        LocalServer(mongod=dying).start()
    for part in (str(dying), "code 127", "libssl.so.3: cannot open", "docker compose up -d"):
        assert part in str(caught.value)
    assert caught.value.code == "server"


def test_a_server_that_does_not_listen_in_time_is_an_error(script):
    silent = script("#!/bin/sh\necho 'still thinking'\nexec sleep 600\n")
    began = time.monotonic()
    with pytest.raises(ServerError, match=r"within 0\.2 s(.|\n)*still thinking"):
        LocalServer(mongod=silent, start_seconds=0.2).start()
    assert time.monotonic() - began < SECONDS


def test_a_binary_that_can_not_run_is_an_error(tmp_path):
    with pytest.raises(ServerError, match=r"FileNotFoundError.*docker compose up -d"):
        LocalServer(mongod=tmp_path / "nothing").start()


def test_a_server_that_was_not_started_says_so():
    local = LocalServer()
    with pytest.raises(ServerError, match=r"call start\(\)"):
        local.uri
    with pytest.raises(ServerError, match=r"can't kill .* call start\(\)"):
        local.kill()
    assert local.pid is None


# --- where it looks ---------------------------------------------------------------------------


def test_a_given_uri_is_used_before_the_one_in_the_environment(monkeypatch):
    monkeypatch.setenv(URI_VARIABLE, "mongodb://from-environment")
    with server("mongodb://given") as found:
        assert found == ExternalServer("mongodb://given", "given")
    with server() as found:
        assert found == ExternalServer("mongodb://from-environment", URI_VARIABLE)


def test_a_uri_of_another_kind_is_an_error_that_shows_no_password(monkeypatch):
    monkeypatch.setenv(URI_VARIABLE, "https://user:secret@host")
    with pytest.raises(ServerError, match=f"{URI_VARIABLE}.*must start with") as caught, server():
        pass
    assert "secret" not in str(caught.value)


def test_a_mongod_on_path_is_found_before_the_wheel(monkeypatch, script):
    mine = script("#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(mine.parent))
    assert find_mongod() == mine


def test_no_mongod_anywhere_is_an_error_that_says_how_to_get_one(no_mongod_around):
    with pytest.raises(ServerError) as caught, server():
        pass
    for part in (
        URI_VARIABLE,
        "PATH",
        "docker compose up -d",
        "pip install 'diagnose-mongo[demo]'",
    ):
        assert part in str(caught.value)
