"""The fleet when servers and networks fail: nothing is lost, nothing gets into the application."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time

import pymongo
import pytest
from bson import encode
from proxy import Proxy
from replica import ReplicaSet
from waiting import wait_until
from workers import Application, make_worker, spec, state

from diagnose_mongo.server import LocalServer
from diagnose_mongo.store import ProcessStore

log = logging.getLogger(__name__)


@pytest.fixture
def proxy(mongo_server, database):
    with Proxy(mongo_server.port) as made:
        yield made


@pytest.fixture
def worker(proxy, specs, shop):
    """Makes workers that reach the server through the proxy."""
    with contextlib.ExitStack() as stack:

        def make(process_id="me", uri=proxy.uri, patience=700, **options):
            client = stack.enter_context(
                pymongo.MongoClient(
                    uri,
                    serverSelectionTimeoutMS=patience,
                    connectTimeoutMS=patience,
                    heartbeatFrequencyMS=500,
                )
            )
            collection = client[specs.database.name]["specs"]
            manager = make_worker(collection, process_id, **options)
            stack.callback(manager.stop)
            return manager

        yield make


@pytest.fixture
def fail(mongo_server):
    """Sets fail points, and takes them back."""
    with pymongo.MongoClient(mongo_server.uri) as client:

        def set_one(name, **data):
            mode = "alwaysOn"
            client.admin.command(
                "configureFailPoint", name, mode=mode, **({"data": data} if data else {})
            )

        def heal():
            for name in ("failCommand", "failAllUpdates"):
                client.admin.command("configureFailPoint", name, mode="off")

        set_one.heal = heal
        yield set_one
        heal()


def poll(manager):
    manager._session.heart.hurry()
    manager.apply()


# --- outages ----------------------------------------------------------------------------------


@pytest.fixture(params=["killed", "stopped", "refused", "stalled", "locked"])
def outage(request, mongo_server, proxy):
    """Begins and ends an outage of one kind."""
    pid = mongo_server.pid
    with pymongo.MongoClient(mongo_server.uri) as admin:
        begin, end = {
            "killed": (mongo_server.kill, mongo_server.restart),
            "stopped": (
                lambda: os.kill(pid, signal.SIGSTOP),
                lambda: os.kill(pid, signal.SIGCONT),
            ),
            "refused": (proxy.refuse, proxy.heal),
            "stalled": (proxy.stall, proxy.heal),
            # Reads are answered, writes wait: as with a file system that takes no more.
            "locked": (
                lambda: admin.admin.command("fsync", lock=True),
                lambda: admin.admin.command("fsyncUnlock"),
            ),
        }[request.param]
        ended = []

        def end_once():
            if not ended:
                ended.append(end())

        yield begin, end_once
        end_once()


def test_an_outage_of_any_kind_loses_nothing_and_keeps_no_probe(
    worker, specs, shop, outage, caplog
):
    begin, end = outage
    originals = shop.double.__code__, shop.halve.__code__
    specs.insert_many(
        [
            spec("a"),
            spec("fails", instrument={"type": "seen", "name": "n", "value": "1 / (x - 5)"}),
            spec("short", target="probed_shop.halve", lifespan=0.04),
        ]
    )
    specs.update_many({}, {"$currentDate": {"lastmodified": True}})
    manager = worker()
    with Application(shop):
        manager.start()
        wait_until(lambda: state(specs, "a") == "emitting" and state(specs, "short"))
        armed = shop.halve.__code__
        began = time.monotonic()
        begin()
        assert shop.double(5) == 10  # and nobody can be told that it failed
        wait_until(lambda: manager._session.outage.is_on)
        assert armed is not originals[1]
        wait_until(lambda: shop.halve.__code__ is originals[1])
        assert time.monotonic() - began < 10
        end()
        wait_until(lambda: state(specs, "fails") == "error" and state(specs, "short") == "expired")
        assert state(specs, "a") == "emitting"
        wait_until(lambda: ProcessStore(manager._session.connection.link()).living() == {"me"})
        stopped = time.monotonic()
        manager.stop()
        assert time.monotonic() - stopped < 5
    assert shop.double.__code__ is originals[0]
    assert specs.database["processes"].count_documents({}) == 0
    assert "polling failed" not in caplog.text


def test_who_was_away_for_long_is_dead_meanwhile_and_has_all_its_entries_after_it(
    worker, specs, shop, proxy, mongo_server, monkeypatch
):
    # Those would find it too, minutes later.
    monkeypatch.setattr("diagnose_mongo.worker.session._POLLS_PER_FULL_POLL", 10**6)
    specs.insert_one(spec())
    away, here = worker("away"), worker("here", mongo_server.uri)
    away.start()
    here.start()
    wait_until(lambda: state(specs, "a", "away") and state(specs, "a", "here"))
    proxy.stall()
    # Its document stays: without an index nobody removes it.
    wait_until(lambda: state(specs, "a", "away") is None)
    assert ProcessStore(here._session.connection.link()).living() == {"here"}
    proxy.heal()
    wait_until(lambda: state(specs, "a", "away") == "installed")


@pytest.mark.parametrize("size", [0, 1, 150, 600])
def test_a_connection_that_is_cut_in_mid_reply_is_made_anew(worker, specs, shop, proxy, size):
    specs.insert_many([spec("a"), spec("b", limits={"fleet_hits": 20})])
    manager = worker()
    with Application(shop):
        for i in range(2):
            manager.apply()
            proxy.cut_after(size)
            manager._session.heart.hurry()
            specs.insert_one(spec(f"more-{i}", target="probed_shop.halve"))
            manager.apply()
            proxy.heal()
            wait_until(lambda i=i: manager.apply() or state(specs, f"more-{i}") == "installed")
        wait_until(lambda: manager.apply() or state(specs, "b") == "done")
        assert manager._records["b"].status.hits <= 20
        manager.stop()
    assert specs.find_one({"_id": "a"})["applied"] == {}


def test_slow_replies_slow_down_nobody(worker, specs, shop, proxy):
    original = shop.double.__code__
    specs.insert_one(spec())
    specs.create_index([("_id", 1), ("lastmodified", 1)], name="diagnose_poll")
    manager = worker(None, timeout=5.0, patience=5000)
    with Application(shop) as bare:
        wait_until(lambda: bare.calls > 500)
    with Application(shop) as slowed:
        proxy.delay = 2.0
        manager.start()
        wait_until(lambda: shop.double.__code__ is not original)
        began = time.monotonic()
        manager.stop()
        took = time.monotonic() - began
    log.info("bare %.2f ms, probed %.2f ms", bare.slowest * 1000, slowed.slowest * 1000)
    assert took < 5
    assert not manager._records


# --- refusals ---------------------------------------------------------------------------------

COMMANDS = ["update", "findAndModify", "aggregate", "find", "delete"]
WRITES = ["update", "findAndModify", "delete"]


@pytest.mark.parametrize(
    ("code", "commands"),
    [
        (14031, WRITES),  # OutOfDiskSpace
        (10107, WRITES),  # NotWritablePrimary
        (11600, COMMANDS),  # InterruptedAtShutdown
        (50, COMMANDS),  # MaxTimeMSExpired
        (8000, WRITES),  # AtlasError: over its quota
        (64, WRITES),  # WriteConcernFailed
        (1, COMMANDS),  # InternalError
    ],
)
def test_what_a_server_refuses_for_now_is_told_later(worker, specs, shop, fail, code, commands):
    specs.insert_one(spec())
    manager = worker()
    manager.apply()
    with Application(shop):
        fail("failCommand", errorCode=code, failCommands=commands)
        wait_until(lambda: manager._records["a"].status.hits)
        for _ in range(3):
            poll(manager)
        fail.heal()
        assert state(specs) == "installed"
        # The driver looks for a primary no more often than each half second.
        wait_until(lambda: manager.apply() or state(specs) == "emitting")


def test_an_entry_that_is_refused_for_a_passing_reason_is_written_later(
    worker, specs, shop, fail, caplog
):
    specs.insert_one(spec())
    manager = worker()
    fail("failAllUpdates")
    manager.apply()
    manager.apply()
    assert state(specs) is None
    fail.heal()
    manager.apply()
    assert state(specs) == "installed"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 120 MB, where this user may make one."""
    made = tmp_path / "small"
    made.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120m", "none", str(made)]
    if (
        sys.platform != "linux"
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("only root can make a small file system on Linux")
    yield made
    subprocess.run(["umount", "-l", str(made)], check=True)


def test_what_a_full_disk_takes_no_more_is_told_when_there_is_room(shop, small_disk):
    with LocalServer(dbpath=small_disk / "db") as server, pymongo.MongoClient(server.uri) as client:
        specs = client["full"]["specs"]
        names = [f"s{i}" for i in range(30)]
        specs.insert_many([spec(name, target=f"probed_shop.{name * 50}") for name in names])
        manager = make_worker(specs, heartbeat=60)
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 65536)
        with pytest.raises(pymongo.errors.PyMongoError):
            for _ in range(2000):
                client["full"]["junk"].insert_one({"x": os.urandom(60_000)})
        for _ in range(3):
            poll(manager)
        # There is no room for a new collection; what goes into the old one is written.
        assert "processes" not in client["full"].list_collection_names()
        filler.unlink()
        told = {"applied.me.state": "error"}
        wait_until(lambda: poll(manager) or specs.count_documents(told) == len(names))
        assert ProcessStore(manager._session.connection.link()).living() == {"me"}
        manager.stop()


def test_an_entry_that_a_document_has_no_room_for_is_refused_and_said(worker, specs, shop, caplog):
    full = spec("full", applied={f"p{i}": {"err": "x" * 1000} for i in range(15_000)}, rest="")
    full["rest"] = "x" * (2**24 - len(encode(full)) - 50)
    specs.insert_one(full)
    specs.insert_one(spec("a"))
    manager = worker(heartbeat=60)
    for _ in range(3):
        manager.apply()
    assert state(specs, "a") == "installed"
    assert state(specs, "full") is None
    said = [each for each in caplog.messages if "'full' takes no entry" in each]
    assert len(said) == 1
    assert "larger" in said[0] or "large" in said[0]


# --- failover ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replica_set():
    with ReplicaSet() as made:
        yield made


@pytest.mark.parametrize("how", ["stepDown", "SIGKILL"])
def test_a_failover_takes_nothing_back(replica_set, worker, shop, how):
    primary = replica_set.primary()
    # As an application may have set it for its own.
    uri = f"{replica_set.uri}&w=1&retryWrites=true"
    with pymongo.MongoClient(replica_set.uri) as client:
        database = client["failover"]
        client.drop_database("failover")
        specs = database["specs"]
        specs.insert_many([spec(f"s{i}") for i in range(20)])
        with pymongo.MongoClient(uri, serverSelectionTimeoutMS=300) as own, Application(shop):
            # It is not to count as dead on a busy machine: the janitor would remove entries.
            manager = make_worker(own["failover"]["specs"], timeout=2.0, heartbeat=10)
            manager.apply()
            specs.update_many(
                {}, {"$set": {"comment": "x"}, "$currentDate": {"lastmodified": True}}
            )
            if how == "stepDown":
                with contextlib.suppress(pymongo.errors.AutoReconnect):
                    client.admin.command("replSetStepDown", 10, secondaryCatchUpPeriodSecs=2)
            else:
                manager.apply()
                primary.kill()
            acknowledged = dict(manager._session.entries.written)
            wait_until(lambda: replica_set.primary() not in {None, primary})
            found = {each["_id"]: each["applied"]["me"] for each in specs.find()}
            for key, entry in acknowledged.items():
                assert {name: found[key][name] for name in entry} == entry
            wait_until(lambda: manager.apply() or not manager._session.outage.is_on)
            wait_until(
                lambda: (
                    manager.apply()
                    or all(
                        each["applied"]["me"]["lm"] == each["lastmodified"] for each in specs.find()
                    )
                )
            )
            manager.stop()
        assert database["processes"].count_documents({}) == 0
    if how == "SIGKILL":
        primary.start()
    # The next test begins with a whole set.
    wait_until(lambda: replica_set.primary() is not None)


# --- what was restored ------------------------------------------------------------------------


def copy(database):
    return {
        name: list(database[name].find()) for name in ("specs", "processes", "control", "budgets")
    }


def put_back(database, documents):
    for name, each in documents.items():
        database[name].delete_many({})
        if each:
            database[name].insert_many(each)


def test_a_database_that_is_dropped_and_restored_to_what_it_was_is_right_again(worker, specs, shop):
    original = shop.double.__code__
    database = specs.database
    specs.insert_many([spec("a"), spec("b"), spec("gone", target="probed_shop.halve")])
    one, two = worker("one", heartbeat=60), worker("two", heartbeat=60)
    for manager in (one, two):
        manager.apply()
    before = copy(database)

    change = {"$set": {"comment": "new"}, "$currentDate": {"lastmodified": True}}
    specs.update_one({"_id": "a"}, change)
    specs.delete_one({"_id": "gone"})
    specs.insert_one(spec("new", target="probed_shop.halve"))
    shop.double(1)
    for manager in (one, two):
        manager.apply()
    assert state(specs, "b", "one") == "emitting"

    database.client.drop_database(database.name)
    for manager in (one, two):
        manager.apply()
    assert shop.double.__code__ is original

    put_back(database, before)
    shop.double(1)
    for manager in (one, two):
        manager._session._polls = 0  # the next one is a full poll
        manager.apply()
        manager.apply()
    found = {each["_id"]: each for each in specs.find()}
    assert set(found) == {"a", "b", "gone"}
    for each in found.values():
        assert set(each["applied"]) == {"one", "two"}
        for entry in each["applied"].values():
            assert (entry["lm"], entry["state"]) == (each["lastmodified"], "installed")


def test_specs_that_are_put_back_under_a_running_fleet_are_right_after_a_full_poll(
    worker, specs, shop
):
    database = specs.database
    specs.insert_many([spec("a"), spec("b", limits={"fleet_hits": 1000})])
    manager = worker(heartbeat=60)
    manager.apply()
    before = copy(database)
    specs.update_one({"_id": "a"}, {"$currentDate": {"lastmodified": True}})
    shop.double(1)
    manager.apply()
    assert state(specs, "a") == state(specs, "b") == "installed" or state(specs, "b") == "emitting"
    put_back(database, before)
    manager._session._polls = 0
    manager._session.heart.hurry()
    manager.apply()
    manager.apply()
    for each in specs.find():
        assert each["applied"]["me"]["lm"] == each["lastmodified"]
    assert state(specs, "b") == "emitting"
    assert ProcessStore(manager._session.connection.link()).living() == {"me"}


def test_a_budget_that_was_dropped_under_a_process_gives_it_no_more(worker, specs, shop):
    specs.insert_one(spec(limits={"fleet_hits": 40}))
    manager = worker()
    for _ in range(30):
        manager.apply()
        shop.double(1)
    used = manager._records["a"].status.hits
    assert 0 < used < 40
    assert specs.database["budgets"].delete_many({}).deleted_count == 1
    for _ in range(60):
        manager.apply()
        shop.double(1)
    assert manager._records["a"].status.hits <= 40
    assert state(specs) == "done"
