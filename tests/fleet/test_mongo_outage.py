from __future__ import annotations

import functools
import os
import random
import signal
import threading
import time
import types

import modules
import pymongo
import pytest
from waiting import wait_for_documents, wait_until

import diagnose_mongo
from diagnose import probes
from diagnose.errors import StoreError
from diagnose_mongo.store import Link
from diagnose_mongo.worker import outages
from diagnose_mongo.worker.manager import MongoInstrumentManager

NOWHERE = "mongodb://127.0.0.1:1"


@pytest.fixture
def impatient(specs, mongo_server):
    """A store of the collection that gives up soon."""
    with pymongo.MongoClient(mongo_server.uri, serverSelectionTimeoutMS=200) as client:
        yield Link(client[specs.database.name]["specs"], timeout=0.2)


@pytest.fixture
def manager(impatient, shop):
    made = MongoInstrumentManager(impatient, process_id="me", period=0.05)
    yield made
    made.stop()


spec = functools.partial(modules.spec, kind="log")


def has_entry(spec_id="a", **parts):
    def is_so(found):
        entry = found[spec_id].get("applied", {}).get("me", {})
        return bool(entry) and all(entry[name] == value for name, value in parts.items())

    return is_so


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("diagnose")]


def test_start_neither_waits_for_mongodb_nor_raises(caplog, shop):
    began = time.monotonic()
    manager = diagnose_mongo.start(NOWHERE, period=0.05)
    assert time.monotonic() - began < 1
    assert shop.double(2) == 4
    manager.stop()
    assert time.monotonic() - began < 4


def test_apply_does_not_raise_without_mongodb(shop, caplog):
    with pymongo.MongoClient(NOWHERE, connect=False) as client:
        manager = MongoInstrumentManager(Link(client["x"]["specs"], timeout=0.05))
        for _ in range(3):
            manager.apply()
    assert len(lines(caplog)) == 1
    assert "probes stay as they are" in lines(caplog)[0]


def test_an_outage_leaves_all_as_it_is_and_everything_is_told_after_it(
    specs, manager, shop, mongo_server, caplog
):
    specs.insert_many([spec("a"), spec("b", lifespan=None, value="1 / (x - 5)")])
    manager.start()
    wait_for_documents(specs, has_entry("b", state="installed"))
    armed = shop.double.__code__

    mongo_server.kill()
    wait_until(lambda: lines(caplog))
    assert shop.double.__code__ is armed
    assert shop.double(5) == 10  # and with it b fails, which nobody can be told now
    wait_until(lambda: "emitting" in str(manager._session.entries.due))

    mongo_server.restart()
    found = wait_for_documents(specs, has_entry("b", state="error"))
    assert found["b"]["applied"]["me"]["code"] == "runtime-error"
    wait_for_documents(specs, has_entry("a", state="emitting"))
    specs.insert_one(spec("c"))
    wait_for_documents(specs, has_entry("c"))

    told = [line for line in lines(caplog) if "MongoDB" in line]
    assert len(told) == 2
    assert "no specs from MongoDB for now" in told[0]
    assert "specs come from MongoDB again, after" in told[1]


def test_lifespans_end_without_mongodb(specs, manager, shop, mongo_server):
    original = shop.double.__code__
    specs.insert_one(spec(lifespan=1.0 / 60))
    specs.update_one({"_id": "a"}, {"$currentDate": {"lastmodified": True}})
    manager.apply()
    assert shop.double.__code__ is not original
    mongo_server.kill()
    wait_until(lambda: shop.double.__code__ is original)
    manager.apply()
    mongo_server.restart()
    wait_until(lambda: manager.apply() or has_entry(state="expired")({"a": specs.find_one()}))


def test_the_off_switch_works_without_mongodb(specs, manager, shop, mongo_server, monkeypatch):
    original = shop.double.__code__
    specs.insert_one(spec())
    manager.start()
    wait_for_documents(specs, has_entry())
    mongo_server.kill()
    monkeypatch.setenv("DIAGNOSE_DISABLED", "1")
    wait_until(lambda: shop.double.__code__ is original)
    monkeypatch.delenv("DIAGNOSE_DISABLED")
    wait_until(lambda: shop.double.__code__ is not original)


@pytest.mark.parametrize("whose", ["the program's", "its own"])
def test_stop_does_not_wait_for_a_mongodb_that_is_down(specs, manager, shop, mongo_server, whose):
    specs.insert_one(spec())
    if whose == "its own":
        name = specs.database.name
        manager = diagnose_mongo.start(mongo_server.uri, name, process_id="me", period=0.05)
    else:
        manager.start()
    wait_for_documents(specs, has_entry())
    mongo_server.kill()
    began = time.monotonic()
    manager.stop()
    assert time.monotonic() - began < 5
    assert not probes.active_probes


@pytest.fixture
def frozen(mongo_server):
    """Freezes the server: connections stay, and nothing is answered."""
    pid = mongo_server.pid
    try:
        yield lambda: os.kill(pid, signal.SIGSTOP)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_mongodb_that_hangs_keeps_neither_polls_nor_stop(specs, shop, frozen, mongo_server):
    with pymongo.MongoClient(mongo_server.uri) as client:
        link = Link(client[specs.database.name]["specs"], timeout=0.3)
        manager = MongoInstrumentManager(link, process_id="me", period=0.05)
        specs.insert_one(spec())
        manager.start()
        wait_for_documents(specs, has_entry())
        frozen()
        wait_until(lambda: manager._session.outage.is_on)
        assert shop.double(3) == 6
        began = time.monotonic()
        manager.stop()
        assert time.monotonic() - began < 5
        assert not probes.active_probes


def test_what_is_written_at_stop_has_the_time_limit_of_stop(specs, shop, mongo_server):
    slow = {"blockConnection": True, "blockTimeMS": 600, "appName": "leaver"}
    with (
        pymongo.MongoClient(mongo_server.uri) as admin,
        pymongo.MongoClient(mongo_server.uri, appname="leaver") as client,
    ):
        # A poll would rather be made again than wait; at the end there is no other time.
        link = Link(client[specs.database.name]["specs"], timeout=0.3)
        manager = MongoInstrumentManager(link, process_id="me")
        specs.insert_one(spec())
        wait_until(lambda: manager.apply() or "applied" in specs.find_one())
        admin.admin.command(
            "configureFailPoint",
            "failCommand",
            mode={"times": 1},
            data={"failCommands": ["update"], **slow},
        )
        try:
            manager.stop()
        finally:
            admin.admin.command("configureFailPoint", "failCommand", mode="off")
    assert specs.find_one()["applied"] == {}


def test_a_write_that_fails_is_made_again(specs, manager, shop, monkeypatch, caplog):
    specs.insert_one(spec())
    store, fails = manager._session.connection.specs, [1]
    write = store.write

    def failing(*args, **kwargs):
        if fails:
            fails.pop()
            raise StoreError("the primary stepped down")
        return write(*args, **kwargs)

    monkeypatch.setattr(store, "write", failing)
    manager.apply()
    assert "applied" not in specs.find_one()
    manager.apply()
    assert specs.find_one()["applied"]["me"]["state"] == "installed"
    assert len(lines(caplog)) == 2


def test_a_defect_in_a_poll_is_logged_once_and_polls_go_on(specs, manager, monkeypatch, caplog):
    specs.insert_one(spec())
    calls = threading.Semaphore(0)

    def broken():
        calls.release()
        raise KeyError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(manager._session.connection.specs, "look", broken)
        manager.start()
        for _ in range(5):
            assert calls.acquire(timeout=30)
    wait_for_documents(specs, has_entry())
    assert caplog.text.count("Traceback") == 1


def test_a_user_without_the_right_to_write_is_told_once(specs, shop, mongo_server, caplog):
    with pymongo.MongoClient(mongo_server.uri) as admin:
        admin.admin.command(
            "configureFailPoint",
            "failCommand",
            mode="alwaysOn",
            data={
                "failCommands": ["update", "findAndModify"],
                "errorCode": 13,
                "appName": "reader",
            },
        )
        try:
            with pymongo.MongoClient(mongo_server.uri, appname="reader") as client:
                manager = MongoInstrumentManager(client[specs.database.name]["specs"])
                specs.insert_one(spec())
                for _ in range(3):
                    manager.apply()
                assert probes.active_probes
                manager.stop()
        finally:
            admin.admin.command("configureFailPoint", "failCommand", mode="off")
    assert len(lines(caplog)) == 2
    assert "this process can't be listed; the specs are applied all the same" in lines(caplog)[0]
    assert all("may read and update the collection" in line for line in lines(caplog))


def test_attempts_come_ever_more_rarely_and_at_random(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(outages, "time", types.SimpleNamespace(monotonic=lambda: now))
    longest = []
    monkeypatch.setattr(random, "uniform", lambda low, high: longest.append((low, high)) or high)
    outage = outages.Outage()
    for _ in range(50):
        outage.note(10.0)
        now += outage.retry_in()
    assert longest[0] == (0, 10.0)
    assert all(low == 0 for low, _ in longest)
    assert [high for _, high in longest] == sorted(high for _, high in longest)
    assert longest[-1] == (0, 60.0)
    # What the issue asks for: after an outage of ten seconds all is well within two periods.
    assert max(high for _, high in longest[:2]) < 20.0
