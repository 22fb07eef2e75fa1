from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import threading
import warnings
from datetime import UTC, datetime

import modules
import pymongo
import pytest
from waiting import in_child, wait_for_documents, wait_until

import diagnose_mongo
from diagnose import probes
from diagnose_mongo.worker.manager import MongoInstrumentManager

PERIOD = 0.05


@pytest.fixture
def manager(specs, shop):
    with MongoInstrumentManager(specs, process_id="parent", period=PERIOD) as made:
        yield made


spec = functools.partial(modules.spec, kind="log")


def has_entry(process_id, spec_id="a"):
    return lambda found: process_id in found[spec_id].get("applied", {})


class Child:
    """A forked child that goes on until it is told to end: a worker of a prefork server."""

    def __init__(self, work=lambda: None):
        until, self._write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                os.close(self._write)
                warnings.simplefilter("error")
                # As in pyproject.toml; since 3.15 fork raises it, where it is an error.
                warnings.filterwarnings(
                    "ignore", "This process .* is multi-thr", DeprecationWarning
                )
                work()
                os.read(until, 1)
                os._exit(0)
            os._exit(1)
        os.close(until)

    def end(self, signum=None):
        if signum is None:
            os.write(self._write, b".")  # closing would not do: later children hold it too
        else:
            os.kill(self.pid, signum)
        os.close(self._write)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def ids_of_children(found, spec_id="a"):
    return {p for p in found[spec_id].get("applied", {}) if p != "parent"}


def test_each_child_polls_as_itself_and_the_parent_goes_on(specs, manager):
    specs.insert_one(spec("a"))
    wait_for_documents(specs, has_entry("parent"))
    children = [Child() for _ in range(3)]
    try:
        found = wait_for_documents(specs, lambda found: len(ids_of_children(found)) == 3)
        assert {p.split("-")[1] for p in ids_of_children(found)} == {str(c.pid) for c in children}
        specs.insert_one(spec("b"))
        everybody = {*found["a"]["applied"]}
        wait_for_documents(specs, lambda found: set(found["b"].get("applied", {})) == everybody)
    finally:
        assert [child.end() for child in children] == [0, 0, 0]


def test_a_child_keeps_what_is_armed_without_a_gap(specs, manager, shop):
    specs.insert_one(spec("a"))
    wait_for_documents(specs, has_entry("parent"))
    armed = shop.double.__code__

    def child():
        assert shop.double.__code__ is armed
        (instrument,) = probes.active_probes["probed_shop.double"].instruments.values()
        with pymongo.MongoClient(f"mongodb://{address}/?directConnection=true") as client:
            collection = client[specs.database.name]["specs"]
            wait_for_documents(collection, has_entry(manager.process_id))
            assert shop.double.__code__ is armed
            assert list(probes.active_probes["probed_shop.double"].instruments.values()) == [
                instrument
            ]
            collection.delete_one({"_id": "a"})
            wait_for_documents(collection, lambda found: not found)
            manager.apply()
        assert shop.double.__code__ is not armed
        return manager.process_id

    address = "{}:{}".format(*specs.database.client.address)
    process_id = in_child(child)
    assert process_id.startswith("parent-")


def test_a_child_uses_a_client_of_its_own_and_nothing_warns(specs, manager):
    specs.insert_one(spec("a"))
    wait_for_documents(specs, has_entry("parent"))
    seen = manager._session.connection.specs

    def check():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            manager.apply()
        assert manager._session.connection.specs is not seen
        assert manager._session.connection.link().is_owned
        assert not [w for w in caught if "fork" in str(w.message)]
        return "fine"

    assert in_child(check) == "fine"
    assert manager._session.connection.specs is seen


def test_a_manager_with_a_client_of_its_own_is_followed_too(specs, shop, mongo_server):
    specs.insert_one(spec("a"))
    manager = diagnose_mongo.start(
        mongo_server.uri, specs.database.name, process_id="parent", period=PERIOD
    )
    child = Child()
    try:
        wait_for_documents(specs, lambda found: len(ids_of_children(found)) == 1)
        wait_for_documents(specs, has_entry("parent"))
    finally:
        child.end()
        manager.stop()


def test_a_grandchild_is_a_process_of_its_own(specs, manager):
    specs.insert_one(spec("a"))
    grandchildren = []

    def work():
        grandchildren.append(Child())

    child = Child(work)
    try:
        found = wait_for_documents(specs, lambda found: len(ids_of_children(found)) == 2)
        assert all(p.count("-") == 2 for p in ids_of_children(found))
    finally:
        child.end()  # with it ends the pipe that its own child waits at


def test_a_child_may_stop_and_its_parent_does_not_notice(specs, manager, shop):
    specs.insert_one(spec("a"))
    wait_for_documents(specs, has_entry("parent"))

    def child():
        manager.apply()
        manager.stop()
        assert not probes.active_probes

    in_child(child)
    assert set(specs.find_one()["applied"]) == {"parent"}
    assert "probed_shop.double" in probes.active_probes


def test_a_child_that_is_killed_affects_no_other(specs, manager):
    specs.insert_one(spec("a"))
    children = [Child() for _ in range(2)]
    wait_for_documents(specs, lambda found: len(ids_of_children(found)) == 2)
    assert children[0].end(signal.SIGKILL) == -signal.SIGKILL
    specs.insert_one(spec("b"))
    found = wait_for_documents(specs, lambda found: len(ids_of_children(found, "b")) == 1)
    assert "parent" in wait_for_documents(specs, has_entry("parent", "b"))["b"]["applied"]
    (left,) = ids_of_children(found, "b")
    assert left.split("-")[1] == str(children[1].pid)
    children[1].end()


def test_a_child_that_ends_at_once_loses_nothing_and_leaves_nothing(specs, manager):
    specs.insert_one(spec("a"))
    wait_for_documents(specs, has_entry("parent"))
    for _ in range(5):
        assert in_child(lambda: "done") == "done"
    # preexec_fn: the hooks of a fork run, and then the child is another program.
    subprocess.run(["/bin/true"], preexec_fn=lambda: None, check=True)
    manager.apply()
    assert set(specs.find_one()["applied"]) == {"parent"}


def test_children_of_multiprocessing_are_followed(specs, manager):
    specs.insert_one(spec("a"))
    context = multiprocessing.get_context("fork")
    go_on = context.Event()
    process = context.Process(target=go_on.wait)
    process.start()
    found = wait_for_documents(specs, lambda found: len(ids_of_children(found)) == 1)
    assert str(process.pid) in next(iter(ids_of_children(found)))
    go_on.set()
    process.join()
    assert process.exitcode == 0


def test_a_child_watches_with_a_client_of_its_own(specs, shop, caplog):
    with MongoInstrumentManager(specs, process_id="parent", period=PERIOD, watch=True) as manager:
        wait_until(lambda: manager._watcher.is_following)

        def child():
            warnings.simplefilter("error")
            wait_until(lambda: manager._watcher.is_following)
            assert not [r for r in caplog.records if "following changes failed" in r.message]
            return "fine"

        assert in_child(child) == "fine"


def test_a_manager_that_was_not_started_is_not_started_in_a_child(specs, shop):
    manager = MongoInstrumentManager(specs)
    before = threading.active_count()

    def child():
        assert threading.active_count() <= before
        assert not manager.is_running
        return manager.process_id

    assert in_child(child) != manager.process_id


def test_a_stopped_manager_stays_stopped_in_a_child(specs, manager):
    manager.stop()

    def child():
        assert not manager.is_running
        assert manager._stopping.is_set()

    in_child(child)


def test_a_fork_is_possible_at_any_moment_of_a_poll(specs, manager):
    """The parent polls without a pause meanwhile, in the driver or holding its locks."""
    specs.insert_many([spec(f"s{i}") for i in range(5)])
    stop = threading.Event()

    def poll():
        number = 0
        with pymongo.MongoClient(*specs.database.client.address) as client:
            collection = client[specs.database.name]["specs"]
            while not stop.is_set():
                number += 1
                collection.update_one(
                    {"_id": f"s{number % 5}"},
                    {
                        "$set": {
                            "instrument.value": f"x + {number}",
                            "lastmodified": datetime.now(UTC),
                        }
                    },
                )
                manager.apply()

    thread = threading.Thread(target=poll)
    thread.start()

    def child():
        manager.apply()
        probed = len(probes.active_probes["probed_shop.double"].instruments)
        manager.stop()
        assert not probes.active_probes
        return probed

    try:
        for _ in range(10):
            assert in_child(child) == "5"
    finally:
        stop.set()
        thread.join()


def test_a_process_may_fork_while_its_mongodb_does_not_answer(shop):
    manager = diagnose_mongo.start("mongodb://127.0.0.1:1", period=PERIOD)
    child = Child()
    assert child.end() == 0
    manager.stop()
