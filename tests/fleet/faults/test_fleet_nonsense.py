"""The fleet when its collections hold nonsense: it is that document's problem alone."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from datetime import datetime

import nonsense
import pymongo
import pytest
from bson.datetime_ms import DatetimeMS
from proxy import Proxy
from pymongo.errors import OperationFailure, WriteError
from waiting import wait_until
from workers import make_worker, poll, spec, state

from diagnose_mongo.rollouts import rollout
from diagnose_mongo.store import (
    ControlStore,
    Link,
    ProcessStore,
    TidyingStore,
    fleet_hits_id,
)
from diagnose_mongo.store.link import ANYTHING

log = logging.getLogger(__name__)

GOOD = [f"good-{i}" for i in range(50)]


def test_of_a_thousand_malformed_documents_each_has_its_error_and_the_good_ones_are_applied(
    worker, specs, shop, caplog
):
    bad = list(nonsense.specs("probed_shop.double"))
    specs.insert_many([document for _, _, document in bad])
    specs.insert_many([spec(name) for name in GOOD])
    manager = worker()
    began = time.monotonic()
    poll(manager)
    took = time.monotonic() - began
    began = time.monotonic()
    poll(manager)
    log.info("%d documents: %.2f s, and then %.3f s", len(bad), took, time.monotonic() - began)
    assert {state(specs, name) for name in GOOD} == {"installed"}
    pipeline = [{"$project": {"entry": "$applied.me"}}]
    told = {
        each["_id"]: each.get("entry") for each in specs.with_options(ANYTHING).aggregate(pipeline)
    }
    states = {}
    for field, kind, _ in bad:
        entry = told[f"{field}: {kind}"] or {}
        states.setdefault(entry.get("state"), []).append((field, kind, entry.get("code")))
        if entry.get("state") == "error":
            assert entry["err"]
            assert entry["code"]
    counts = {name: len(each) for name, each in states.items()}
    assert counts["error"] >= 1000, counts
    # Some of it is no nonsense there: a text as a label, any stage without a canary.
    assert counts.keys() == {"error", "installed", None}
    assert {field.partition(".")[0] for field, _, _ in states[None]} == {"select"}
    assert not [m for m in caplog.messages if "polling failed" in m or "for now" in m]
    assert ProcessStore(Link(specs)).living() == {"me"}


def test_an_odd_id_keeps_no_other_spec_from_being_applied_and_is_said(worker, specs, shop, caplog):
    taken = []
    for kind, document in nonsense.ids("probed_shop.double"):
        try:
            specs.insert_one(document)
        except (WriteError, OperationFailure):
            continue  # the server takes no such id
        taken.append(kind)
    specs.insert_one(spec())
    manager = worker()
    for _ in range(3):
        poll(manager)
    assert state(specs) == "installed"
    applied = specs.count_documents({"applied.me.state": "installed"})
    left_out = [each for each in caplog.messages if "is left out" in each]
    assert len(taken) >= 20
    assert applied + len(left_out) == len(taken) + 1, left_out
    assert not [m for m in caplog.messages if "for now" in m]


def test_a_rollout_of_nonsense_says_that_it_failed(worker, specs, shop):
    kinds = [
        (field, kind, document)
        for field, kind, document in nonsense.specs("probed_shop.double")
        if field == "lastmodified"
    ]
    specs.insert_many([document for _, _, document in kinds])
    manager = worker()
    poll(manager)
    for field, kind, _ in kinds:
        if kind in {"far", "long ago"}:
            continue  # a date beyond what Python has is one
        found = rollout(specs, f"{field}: {kind}")
        assert (kind, found.counts) == (kind, {"error": 1})


def grow(specs, fields):
    # The cache of the tests' server is small, and may have to be written out first.
    with contextlib.suppress(WriteError):
        return specs.update_one({"_id": GOOD[0]}, {"$set": fields})


def test_a_poll_costs_the_same_beside_a_document_of_15_mb(specs, shop, mongo_server):
    with Proxy(mongo_server.port) as proxy, pymongo.MongoClient(proxy.uri) as client:
        specs.insert_many([spec(name) for name in GOOD])
        manager = make_worker(client[specs.database.name]["specs"], timeout=10.0, heartbeat=60)
        try:
            manager.apply()
            manager.apply()

            def cost():
                before, began = proxy.replied, time.perf_counter()
                for _ in range(20):
                    manager.apply()
                return (proxy.replied - before) / 20, (time.perf_counter() - began) / 20 * 1000

            small = cost()
            for start in range(0, 15_000, 1_000):
                entries = {
                    f"applied.p{i}": {"lm": None, "err": "x" * 950}
                    for i in range(start, start + 1_000)
                }
                wait_until(functools.partial(grow, specs, entries))
            large = cost()
            log.info("bytes and ms of a poll: %s; beside 15 MB: %s", small, large)
            assert large[0] < 1.5 * small[0] < 10_000
            # Its own entry still fits, and the dead ones can be removed.
            specs.update_one({"_id": GOOD[0]}, {"$currentDate": {"lastmodified": True}})
            manager.apply()
            assert state(specs, GOOD[0]) == "installed"
            assert rollout(specs, GOOD[0]).gone == 15_000
            began = time.perf_counter()
            removed = TidyingStore(manager._session.connection.link()).remove_entries_of_dead()
            log.info("%d entries removed in %.1f s", removed, time.perf_counter() - began)
            assert set(specs.find_one({"_id": GOOD[0]})["applied"]) == {"me"}
        finally:
            manager.stop()


def test_entries_under_names_that_no_process_has_do_not_stop_the_janitor(worker, specs, shop):
    odd = {"a.b": {"state": {"x": 1}}, "$x": 5, "": None, "dead": {"state": "installed"}}
    specs.insert_one(spec(canary={"percent": 100, "for": 10}, applied=odd))
    manager = worker()
    poll(manager)
    assert TidyingStore(manager._session.connection.link()).remove_entries_of_dead() == 1
    assert "dead" not in specs.find_one()["applied"]
    assert "?" in rollout(specs, "a").counts or rollout(specs, "a").counts == {"installed": 1}
    assert not manager._session.side_tasks.failing


@pytest.mark.parametrize(
    "control",
    [
        {"_id": "lease", "ends": "tomorrow", "holder": 5, "processes": "many"},
        {"_id": "lease", "ends": DatetimeMS(2**62), "holder": "dead"},
        {"_id": "lease", "ends": datetime(2099, 1, 1), "holder": "dead"},
        {"_id": "lease", "ends": [1], "holder": {"$gt": ""}, "bounded": "yes"},
        {"_id": "lease"},
        {"_id": {"a": [1]}, "paused": True},
        {"_id": "fleet", "paused": {"a": 1}, "period": float("nan"), "heartbeat": [1]},
        nonsense.RawBSONDocument(
            nonsense.raw(
                nonsense.element("_id", "fleet"), b"\5x\0" + nonsense.RAW["undecodable"][1]
            )
        ),
        {"_id": "fleet", "x": nonsense.deep(177)},
    ],
)
def test_nonsense_that_steers_the_fleet_stops_nothing(worker, specs, shop, control, caplog):
    specs.database["control"].insert_one(control)
    specs.insert_one(spec())
    manager = worker()
    for _ in range(3):
        poll(manager)
    assert state(specs) in {"installed", "disabled"}
    assert specs.database["processes"].count_documents({}) == 1
    assert ControlStore(Link(specs))._collection.find_one({"_id": "lease"}, {"holder": 1}) == {
        "_id": "lease",
        "holder": "me",
    }
    assert not [m for m in caplog.messages if "for now" in m or "polling failed" in m]


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"left": None, "held": None},
        {"left": "many", "held": []},
        {"left": float("nan"), "held": {"a.b": 3, "": 2}},
        {"left": -7, "held": {"me": "x"}},
        {"left": 10**12, "held": {}},
    ],
)
def test_nonsense_in_a_budget_gives_no_hits_away_and_harms_no_other(
    worker, specs, shop, budget, caplog
):
    specs.insert_many([spec(limits={"fleet_hits": 10}), spec("b", limits={"fleet_hits": 10})])
    version = specs.find_one({"_id": "a"})["lastmodified"]
    specs.database["budgets"].insert_one({"_id": fleet_hits_id("a", version), **budget})
    specs.database["budgets"].insert_one({"_id": 5, "held": 3})
    manager = worker()
    manager._session._chores._held_since = -1000.0
    for _ in range(40):
        poll(manager)
        shop.double(1)
    assert manager._records["a"].status.hits <= 10
    assert manager._records["b"].status.hits == 10
    assert not [m for m in caplog.messages if "for now" in m or "polling failed" in m]


def test_nonsense_among_the_processes_harms_nobody(worker, specs, shop, caplog):
    odd = [{"_id": {"a": [1]}, "expires": datetime(2099, 1, 1)}, {"_id": 7, "expires": "x"}]
    specs.database["processes"].insert_many([*odd, {"_id": "x", "specs": 5, "labels": 3}])
    specs.insert_one(spec(canary={"percent": 100, "for": 10}, select={"service": ["*"]}))
    manager = worker(service="web")
    manager._session._chores._held_since = -1000.0
    for _ in range(3):
        poll(manager)
    assert state(specs) == "installed"
    assert not manager._session.side_tasks.failing, caplog.text
