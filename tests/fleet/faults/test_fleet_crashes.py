"""Processes of a fleet that are killed anywhere, tell the wrong time, or are not alone."""

from __future__ import annotations

import contextlib
import datetime
import mmap
import os
import signal
import sys
import threading
import time
import types

import pymongo
import pytest
from pymongo.monitoring import CommandListener
from waiting import in_child, wait_until
from workers import TTL_SECONDS, make_worker, poll, spec, state

from diagnose.instruments import ProbeTestInstrument
from diagnose_mongo.rollouts import rollout
from diagnose_mongo.store import ControlStore, Link, ProcessStore

WRITES = {"update", "insert", "delete", "findAndModify", "createIndexes"}
FLEET_HITS = 60


# --- killed between two writes ----------------------------------------------------------------


class Killer(CommandListener):
    """Ends this process by SIGKILL before or after its n-th write."""

    def __init__(self, last):
        self._left = last

    def _count(self, event):
        if event.command_name in WRITES:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def started(self, event):
        self._count(event)

    def succeeded(self, event):
        self._count(event)

    def failed(self, event):
        self._count(event)


class Counted(ProbeTestInstrument):
    """Counts hits where they outlive the process."""

    shared = mmap.mmap(-1, 8)

    def emit(self, name, value, tags):
        Counted.shared[:8] = (Counted.count() + 1).to_bytes(8, "little")

    @classmethod
    def count(cls):
        return int.from_bytes(cls.shared[:8], "little")


def live(uri, database, shop, last):
    """A process's life with all that it writes: entries, heartbeats, budgets, chores, a canary."""
    client = pymongo.MongoClient(uri, event_listeners=[Killer(last)])
    manager = make_worker(client[database]["specs"], f"p{last}", timeout=5.0)
    manager.instrument_classes["seen"] = Counted
    for _ in range(5):
        poll(manager)
        # The lease has been held for long: the dead had time to say that they live.
        manager._session._chores._held_since = manager._session._chores._turn_at = -1000.0
        manager._session._chores._turns = 0
        shop.double(1)
        shop.double(1)
    manager.stop()


def test_a_process_that_is_killed_between_any_two_writes_leaves_nothing_that_stays(
    specs, worker, shop, mongo_server
):
    Counted.shared[:8] = bytes(8)
    specs.insert_many(
        [
            spec("budget", limits={"fleet_hits": FLEET_HITS}),
            spec(
                "canary",
                target="probed_shop.halve",
                canary={"percent": 100, "for": 1e-6},
                lifespan=10,
            ),
            spec("wrong", target="probed_shop.hlave"),
        ]
    )
    killed = 0
    for last in range(200):
        # Each finds what the one before left, and a canary to be moved on.
        specs.update_one(
            {"_id": "canary"}, {"$unset": {"stage": ""}, "$currentDate": {"lastmodified": True}}
        )
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                live(mongo_server.uri, specs.database.name, shop, last)
                os._exit(0)
            os._exit(1)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        killed += 1
        canary = specs.find_one({"_id": "canary"})
        stage = canary.get("stage")
        if stage is not None:
            assert stage["version"] == canary["lastmodified"]
            assert set(stage) == {"name", "reason", "began", "version"}
    assert 20 < killed < 199
    assert Counted.count() <= FLEET_HITS

    survivor = worker("survivor", heartbeat=TTL_SECONDS / 3)
    survivor.instrument_classes["seen"] = Counted
    database = specs.database

    def is_tidy():
        shop.double(1)
        poll(survivor)
        return (
            all(set(each["applied"]) <= {"survivor"} for each in specs.find())
            and ProcessStore(survivor._session.connection.link()).living() == {"survivor"}
            and all(set(each["held"]) <= {"survivor"} for each in database["budgets"].find())
        )

    wait_until(is_tidy)
    assert ControlStore(survivor._session.connection.link()).read().holder == "survivor"
    for _ in range(2 * FLEET_HITS):
        shop.double(1)
        poll(survivor)
    assert Counted.count() <= FLEET_HITS
    wait_until(lambda: poll(survivor) or state(specs, "budget", "survivor") == "done")
    wait_until(lambda: poll(survivor) or rollout(specs, "wrong").counts == {"error": 1})


def test_dead_processes_are_not_listed_after_two_ttls_and_their_documents_go(
    worker, specs, shop, mongo_server
):
    def dies():
        client = pymongo.MongoClient(mongo_server.uri)
        manager = make_worker(client[specs.database.name]["specs"], "dead")
        manager.apply()
        os.kill(os.getpid(), signal.SIGKILL)

    specs.insert_one(spec())
    pid = os.fork()
    if pid == 0:
        dies()
    os.waitpid(pid, 0)
    died = time.monotonic()
    here = worker("here", heartbeat=TTL_SECONDS / 3)
    processes = ProcessStore(here._session.connection.link())
    assert "dead" in processes.living()
    wait_until(lambda: poll(here) or processes.living() == {"here"})
    assert time.monotonic() - died < 30
    wait_until(lambda: poll(here) or state(specs, "a", "dead") is None)
    wait_until(lambda: poll(here) or specs.database["processes"].count_documents({}) == 1)


# --- the wrong time ---------------------------------------------------------------------------


def shift_clock(seconds):
    """Put this process's wall clock forward, for all that asks it through Python."""
    real, real_time = datetime.datetime, time.time

    class Meta(type):
        def __instancecheck__(cls, other):
            return isinstance(other, real)

    class Shifted(real, metaclass=Meta):
        @classmethod
        def now(cls, tz=None):
            return real.now(tz) + datetime.timedelta(seconds=seconds)

    time.time = lambda: real_time() + seconds
    time.time_ns = lambda: int(time.time() * 1e9)
    for module in list(sys.modules.values()):
        if (getattr(module, "__name__", "") or "").partition(".")[0] not in {
            "diagnose",
            "diagnose_mongo",
            "apscheduler",
        }:
            continue
        for name, value in list(vars(module).items()):
            if value is real:
                setattr(module, name, Shifted)
            elif value is datetime:
                fake = types.ModuleType("datetime")
                fake.__dict__.update(vars(datetime), datetime=Shifted)
                setattr(module, name, fake)


@pytest.mark.parametrize("hours", [-1, 1])
@pytest.mark.parametrize("when", ["from the start on", "while it runs"])
def test_a_clock_that_is_an_hour_off_changes_no_lifespan(specs, shop, mongo_server, hours, when):
    specs.insert_many(
        [spec("long", lifespan=10), spec("short", target="probed_shop.halve", lifespan=0.12)]
    )
    original = shop.halve.__code__

    def child():
        if when == "from the start on":
            shift_clock(hours * 3600)
        client = pymongo.MongoClient(mongo_server.uri)
        own = client[specs.database.name]["specs"]
        manager = make_worker(own, timeout=5.0)
        own.update_many({}, {"$currentDate": {"lastmodified": True}})
        manager.start()
        wait_until(lambda: shop.halve.__code__ is not original)
        if when == "while it runs":
            shift_clock(hours * 3600)
        began = time.monotonic()
        wait_until(lambda: shop.halve.__code__ is original)
        assert time.monotonic() - began < 10
        shop.double(1)
        wait_until(lambda: state(own, "short") == "expired")
        wait_until(lambda: state(own, "long") == "emitting")
        (found,) = own.find({"_id": "long"})
        assert abs(found["applied"]["me"]["at"] - found["lastmodified"]) < datetime.timedelta(
            minutes=1
        )
        assert ProcessStore(manager._session.connection.link()).living() == {"me"}
        manager.stop()
        return "fine"

    assert in_child(child) == "fine"


# --- not alone --------------------------------------------------------------------------------


def test_two_managers_of_one_process_each_have_their_entries(worker, specs, shop):
    original = shop.double.__code__
    specs.insert_one(spec())
    one, two = worker(None), worker(None)
    assert one.process_id != two.process_id
    for manager in (one, two):
        poll(manager)
    assert set(specs.find_one()["applied"]) == {one.process_id, two.process_id}
    one.stop()
    assert set(specs.find_one()["applied"]) == {two.process_id}
    assert shop.double.__code__ is not original
    two.stop()


def test_two_managers_under_one_id_say_so_and_the_one_that_stays_has_its_entries(
    worker, specs, shop, caplog
):
    specs.insert_one(spec())
    one, two = worker("same"), worker("same")
    for _ in range(3):
        for manager in (one, two):
            poll(manager)
    said = [each for each in caplog.messages if "another manager uses the process id" in each]
    assert len(said) == 2  # one each, once
    one.stop()
    assert specs.find_one()["applied"] == {}
    poll(two)
    two.apply()
    assert state(specs, "a", "same") == "installed"
    assert ProcessStore(two._session.connection.link()).living() == {"same"}


def test_a_restart_under_the_same_id_is_nothing_to_speak_of(worker, specs, shop, caplog):
    specs.insert_one(spec())
    one = worker("same")
    poll(one)
    one._session.heart.has_beaten = False  # killed: it says nothing any more
    one._session.outage.note(1.0)
    one.stop()
    two = worker("same")
    for _ in range(3):
        poll(two)
    assert "another manager" not in caplog.text


def test_what_stops_during_a_poll_is_not_listed_again_by_it(worker, specs, shop, monkeypatch):
    specs.insert_one(spec())
    manager = worker()
    poll(manager)
    reached, go_on = threading.Event(), threading.Event()
    beat = manager._session.connection.fleet.processes.beat

    def slow(*args):
        reached.set()
        go_on.wait(30)
        return beat(*args)

    monkeypatch.setattr(manager._session.connection.fleet.processes, "beat", slow)
    manager._session.heart.hurry()
    manager.start()
    assert reached.wait(30)
    stopping = threading.Thread(target=manager.stop)
    stopping.start()
    assert manager._stopping.wait(30)
    go_on.set()
    stopping.join(30)
    assert specs.database["processes"].count_documents({}) == 0
    assert specs.find_one()["applied"] == {}


def test_a_lease_from_a_server_whose_clock_was_wrong_is_not_believed(specs):
    controls = ControlStore(Link(specs))
    assert controls.take_lease("dead", 1_000_000)
    assert controls.take_lease("other", 60)
    assert not controls.take_lease("dead", 60)
