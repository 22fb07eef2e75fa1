"""Real servers that fork: each worker is a process of its own in the fleet.

Once with a manager that the application starts, once under ``diagnose run`` with no line of it
changed. Servers get a socket that listens already, so a request can be made at once.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from waiting import wait_for_documents, wait_until

from diagnose_mongo.installation import install
from diagnose_mongo.store import Link
from diagnose_mongo.worker.manager import MongoInstrumentManager

FOLDER = Path(__file__).parent
PERIOD, HEARTBEAT = 0.1, 0.2

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="prefork servers fork")


def needs(library):
    return pytest.mark.skipif(
        importlib.util.find_spec(library) is None, reason=f"{library} is not installed"
    )


@pytest.fixture
def specs(database):
    install(Link(database["specs"]))
    return database["specs"]


def count_prices(specs):
    specs.insert_one(
        {
            "_id": "a",
            "target": "served_shop.price",
            "instrument": {"type": "incr", "name": "n", "value": "1"},
            "select": {"service": "served"},
            "lifespan": 10,
            "lastmodified": datetime.now(UTC),
        }
    )


@pytest.fixture(params=["in code", "diagnose run"])
def way(request):
    """Who starts the manager."""
    return request.param


@pytest.fixture(scope="module")
def bytecode(tmp_path_factory):
    """Where the servers leave it: so that only the first of them takes its time."""
    return str(tmp_path_factory.mktemp("bytecode"))


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """A folder that is Celery's broker."""
    return str(tmp_path_factory.mktemp("broker"))


@pytest.fixture
def launch(specs, mongo_server, way, tmp_path, bytecode, broker):
    """Starts a program, which may not outlive the test."""
    started = []

    def launch(*command, **options):
        environment = os.environ | {
            "DIAGNOSE_MONGODB_URI": mongo_server.uri,
            "DIAGNOSE_DATABASE": specs.database.name,
            "DIAGNOSE_PERIOD": str(PERIOD),
            "DIAGNOSE_HEARTBEAT": str(HEARTBEAT),
            "DIAGNOSE_SERVICE": "served",
            "SHOP_BROKER_FOLDER": broker,
            "PYTHONPATH": str(FOLDER.parents[1]),
            "PYTHONPYCACHEPREFIX": bytecode,
            "PYTHONDONTWRITEBYTECODE": "",
        }
        if way == "in code":
            environment["SHOP_STARTS_ITS_MANAGER"] = "1"
        else:
            command = (sys.executable, "-m", "diagnose_mongo.autostart", "--", *command)
        with (tmp_path / "log").open("ab") as log:
            program = subprocess.Popen(
                command,
                cwd=FOLDER,
                env=environment,
                stderr=log,
                start_new_session=True,
                **{"stdin": subprocess.DEVNULL, "stdout": log} | options,
            )
        started.append(program)
        return program

    yield launch
    for program in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        for stream in (program.stdin, program.stdout):
            if stream is not None:
                stream.close()
    print((tmp_path / "log").read_text())  # pytest shows it with a failure


def pid_of(process_id):
    return int(process_id.rsplit("-", 2)[1])


def applied_by(found):
    """The pids with an entry."""
    return {pid_of(each) for each in found["a"].get("applied", {})}


def wait_for_hits(specs, expected):
    """Until each process has told of exactly so many hits; those that are not named, of none."""

    def is_so(found):
        hits = {
            pid_of(each): sum(figures["hits"] for figures in process["specs"])
            for each, process in found.items()
        }
        return {pid: number for pid, number in hits.items() if number} == expected

    wait_for_documents(specs.database["processes"], is_so)


def assert_none_is_left(specs, *, but=()):
    assert applied_by({"a": specs.find_one()}) <= {*but}
    left = {pid_of(each["_id"]) for each in specs.database["processes"].find()}
    assert left <= {*but}


def wait_until_tidied(specs):
    """What ended without a word is removed by whoever lives, and by the TTL index."""
    with MongoInstrumentManager(
        specs, process_id="witness", service="another", period=PERIOD, heartbeat=HEARTBEAT
    ):
        wait_for_documents(specs, lambda found: not found["a"].get("applied"))
        wait_for_documents(specs.database["processes"], lambda found: found.keys() <= {"witness"})


class Served:
    """A server of HTTP with two workers, whose answers are the pids that gave them."""

    def __init__(self, launch, *command):
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        fd = self.socket.fileno()
        command = [part.format(fd=fd) for part in command]
        self.program = launch(sys.executable, "-m", *command, pass_fds=[fd])

    def ask(self):
        connection = http.client.HTTPConnection(*self.socket.getsockname(), timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            return int(connection.getresponse().read())

    def answers_of_all(self, workers):
        """Ask until each of the workers has answered; how often each did."""
        answers = Counter()
        wait_until(lambda: answers.update([self.ask()]) or len(answers) == workers)
        return answers

    def end(self):
        self.program.send_signal(signal.SIGTERM)
        status = self.program.wait(30)
        self.socket.close()
        return status


def check_workers(served, specs, *, master):
    """They are there, they are probed, and one that is killed is replaced; returns that one."""
    workers = {*served.answers_of_all(2)}
    masters = {served.program.pid} if master else set()
    # Now, so that each answer from here on is a hit.
    count_prices(specs)
    wait_for_documents(specs, lambda found: applied_by(found) == workers | masters)
    wait_for_hits(specs, dict(served.answers_of_all(2)))
    killed = min(workers)
    os.kill(killed, signal.SIGKILL)
    found = wait_for_documents(
        specs,
        lambda found: (
            killed not in applied_by(found) and len(applied_by(found)) == len(workers | masters)
        ),
    )
    assert workers - {killed} < applied_by(found)
    return killed


@needs("gunicorn")
@pytest.mark.parametrize("options", ["", "--threads=2 --preload"])
def test_gunicorn(launch, specs, way, options):
    served = Served(
        launch,
        "gunicorn",
        "served_shop:make_wsgi()",
        "--bind=fd://{fd}",
        "--workers=2",
        "--no-control-socket",
        *options.split(),
    )
    killed = check_workers(served, specs, master=way == "diagnose run" or "--preload" in options)
    assert served.end() == 0
    assert_none_is_left(specs, but={killed})


@needs("uvicorn")
def test_uvicorn(launch, specs, way):
    served = Served(launch, "uvicorn", "served_shop:asgi", "--fd={fd}", "--workers=2")
    killed = check_workers(served, specs, master=way == "diagnose run")
    assert served.end() in {0, -signal.SIGTERM}
    if way == "in code":
        assert_none_is_left(specs, but={killed})
    else:
        wait_until_tidied(specs)


@pytest.fixture
def celery(launch, specs, way):
    """A worker with two children that are all in the fleet: the program, and the children."""
    count_prices(specs)
    program = launch(
        *(sys.executable, "-m", "celery", "-A", "served_celery", "worker"),
        *("--pool=prefork", "--concurrency=2", "--without-gossip", "--without-mingle"),
    )
    everybody = 2 if way == "in code" else 3
    found = wait_for_documents(specs, lambda found: len(applied_by(found)) == everybody)
    return program, applied_by(found) - {program.pid}


@needs("celery")
def test_celery(celery, specs, way, broker, monkeypatch):
    program, workers = celery
    monkeypatch.setenv("SHOP_BROKER_FOLDER", broker)
    monkeypatch.syspath_prepend(FOLDER)
    import served_celery

    for _ in range(2):
        served_celery.price.delay()
    wait_for_hits(specs, dict.fromkeys(workers, 1))
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 0
    if way == "in code":
        assert_none_is_left(specs)
    else:
        # Celery ends its children without what Python does at its end.
        assert program.pid not in applied_by({"a": specs.find_one()})
        wait_until_tidied(specs)


@needs("celery")
def test_a_killed_child_of_celery_is_replaced(celery, specs):
    # Not the same test: with this broker celery may wait for ever at its end for what the killed
    # child had locked, with or without us.
    program, workers = celery
    killed = min(workers)
    os.kill(killed, signal.SIGKILL)
    found = wait_for_documents(
        specs,
        lambda found: (
            killed not in applied_by(found) and len(applied_by(found) - {program.pid}) == 2
        ),
    )
    assert workers - {killed} < applied_by(found)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(launch, specs, method):
    count_prices(specs)
    program = launch(
        *(sys.executable, "served_shop.py", method),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask():
        program.stdin.write("\n")
        program.stdin.flush()
        return [int(program.stdout.readline()) for _ in range(2)]

    found = wait_for_documents(specs, lambda found: len(applied_by(found)) == 3)
    children = applied_by(found) - {program.pid}
    for _ in range(3):
        assert {*ask()} == children
    wait_for_hits(specs, dict.fromkeys(children, 3))
    program.stdin.close()
    assert program.wait(30) == 0
    assert_none_is_left(specs)
