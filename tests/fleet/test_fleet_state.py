"""Liveness, rollouts, the janitor, budgets, canaries and the control document; on a real server.

Several managers in one process stand for several processes; `apply` is called by hand, so that
nothing hangs on time but what the server's clock says.
"""

from __future__ import annotations

import sys
import threading
import time
import types
from datetime import UTC, datetime, timedelta

import pytest
from modules import spec
from waiting import in_child, wait_until

from diagnose.errors import SpecError
from diagnose.instruments import ProbeTestInstrument
from diagnose.specs import Select, Stage, parse
from diagnose_mongo import bounds
from diagnose_mongo.installation import install
from diagnose_mongo.janitor import chores
from diagnose_mongo.janitor.canaries import decide
from diagnose_mongo.rollouts import rollout, wait_for_rollout
from diagnose_mongo.store import (
    ControlStore,
    FleetHitsStore,
    Link,
    ProcessStore,
    RolloutStore,
    SpecDocuments,
    SpecStore,
    fleet_hits_id,
)
from diagnose_mongo.worker import heartbeats
from diagnose_mongo.worker.manager import MongoInstrumentManager


@pytest.fixture
def process(specs, shop):
    """Makes a manager that stands for a process."""
    made = []

    def make(process_id, **options):
        options = {"heartbeat": 0.3, "period": 0.1} | options
        manager = MongoInstrumentManager(specs, process_id=process_id, **options)
        manager.instrument_classes["seen"] = ProbeTestInstrument
        made.append(manager)
        return manager

    make.all = made
    yield make
    for manager in made:
        manager.stop()


def change(specs, spec_id="a", **changes):
    """As people do it: with the server's clock."""
    specs.update_one({"_id": spec_id}, {"$set": changes, "$currentDate": {"lastmodified": True}})


def vanish(manager):
    """As if the process were killed: nothing is said any more."""
    manager._session.heart.has_beaten = False
    manager._session.outage.note(1.0)
    manager.stop()


def beat(manager):
    manager._session.heart.hurry()
    manager.apply()


def at_once(work, count):
    """Call ``work("p0")``, ``work("p1")`` … in a thread each, and wait for them."""
    threads = [threading.Thread(target=work, args=(f"p{i}",)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- liveness ---------------------------------------------------------------------------------


def test_a_process_is_listed_with_its_labels_and_its_figures(process, specs, shop, database):
    specs.insert_one(spec())
    web = process("web", service="shop", env="prod", version="1.2", labels={"team.a": "x"})
    web.apply()
    shop.double(2)
    beat(web)
    (found,) = database["processes"].find()
    assert found["_id"] == "web"
    labels = found["labels"]
    assert (labels["service"], labels["env"], labels["version"]) == ("shop", "prod", "1.2")
    assert labels["team_a"] == "x"
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["since"] < found["at"] < found["expires"]
    (figures,) = found["specs"]
    assert figures["id"] == "a"
    assert figures["lm"] == specs.find_one()["lastmodified"]
    assert (figures["state"], figures["hits"]) == ("emitting", 1)


def test_suppressed_hits_are_told_by_reason(process, specs, shop, database):
    specs.insert_one(spec(when="x > 5", limits={"hits": 1}))
    web = process("web")
    web.apply()
    for x in range(8):
        shop.double(x)
    beat(web)
    (figures,) = database["processes"].find_one()["specs"]
    assert figures["hits"] == 1
    assert figures["suppressed"]["condition"] == 6


def test_a_clean_exit_removes_the_process_at_once(process, specs, database):
    specs.insert_one(spec())
    web = process("web")
    web.apply()
    assert database["processes"].count_documents({}) == 1
    web.stop()
    assert database["processes"].count_documents({}) == 0
    assert specs.find_one()["applied"] == {}


def test_a_forked_child_is_listed_as_itself(process, database):
    web = process("web")
    web.apply()

    def child():
        web.apply()
        ids = {each["_id"] for each in ProcessStore(web._session.connection.link()).all()}
        assert ids == {"web", web.process_id}
        assert web.process_id.startswith("web-")
        web.stop()
        return "fine"

    assert in_child(child) == "fine"
    assert [each["_id"] for each in database["processes"].find()] == ["web"]


def test_who_is_not_heard_of_is_dead_by_the_clock_of_the_server(process, specs):
    web = process("web", heartbeat=0.05, period=0.01)
    web.apply()
    processes = ProcessStore(Link(specs))
    assert processes.living() == {"web"}
    wait_until(lambda: processes.living() == set())
    beat(web)
    assert processes.count() == 1


def test_specs_of_any_id_and_words_with_dollars_can_be_told(process, specs, database):
    odd = [spec(7), spec("$x"), spec({"region": "$eu"})]
    specs.insert_many(odd)
    web = process("web", service="$service")
    web.apply()
    found = database["processes"].find_one()
    assert found["labels"]["service"] == "$service"
    ids = [each["id"] for each in found["specs"]]
    assert [each["_id"] for each in odd] == sorted(
        ids, key=lambda i: [each["_id"] for each in odd].index(i)
    )


def test_those_who_say_that_they_live_meanwhile_are_counted_once(specs, database):
    install(Link(specs))
    processes = ProcessStore(Link(specs))
    for i in range(2000):
        processes.beat(f"p{i}", {"filler": "x" * 2000}, 60)
    stop = threading.Event()

    def beats():
        i = 0
        while not stop.is_set():
            processes.beat(f"p{i % 2000}", {}, 60 + i)
            i += 1

    threads = [threading.Thread(target=beats) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert [processes.count() for _ in range(30)] == [2000] * 30
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# --- rollouts ---------------------------------------------------------------------------------


def test_a_rollout_says_who_has_come_how_far(process, specs, shop):
    specs.insert_one(spec())
    managers = [process(f"web{i}") for i in range(4)]
    for manager in managers:
        manager.apply()
    found = rollout(specs, "a")
    assert found.counts == {"installed": 4}
    assert found.is_complete
    shop.double(1)
    managers[0].apply()
    change(specs, comment="another")
    managers[1].apply()
    found = rollout(specs, "a")
    assert found.counts == {"behind": 3, "installed": 1}
    assert not found.is_settled
    assert str(found) == "a: under way: 1 of 4 processes (3 behind, 1 installed)"
    for manager in managers:
        manager.apply()
    assert rollout(specs, "a").is_complete


def test_who_has_not_said_anything_yet_is_waited_for(process, specs):
    web = process("web")
    web.apply()
    specs.insert_one(spec())
    assert rollout(specs, "a").counts == {"waiting": 1}
    web.apply()
    assert rollout(specs, "a").counts == {"installed": 1}


def test_failures_are_grouped_by_code_with_examples(process, specs):
    specs.insert_one(spec(target="probed_shop.duoble"))
    for i in range(5):
        process(f"web{i}").apply()
    found = rollout(specs, "a")
    assert (found.is_settled, found.is_complete, found.failed) == (True, False, 5)
    (failure,) = found.failures
    assert failure.count == 5
    assert len(failure.examples) == 3
    assert "double" in failure.examples[0]["err"]
    assert failure.examples[0]["process"].startswith("web")


def test_what_waits_for_a_module_is_pending(process, specs):
    specs.insert_one(spec(target="xmlrpc.server.resolve_dotted_attribute"))
    process("web").apply()
    found = rollout(specs, "a")
    assert found.counts == {"pending": 1}
    assert not found.is_settled


def test_the_dead_are_gone_and_not_waited_for(process, specs, database):
    specs.insert_one(spec())
    managers = [process(f"web{i}") for i in range(3)]
    for manager in managers:
        manager.apply()
    vanish(managers[0])
    database["processes"].delete_one({"_id": "web0"})
    found = rollout(specs, "a")
    assert (found.counts, found.gone) == ({"installed": 2}, 1)
    assert found.is_complete


@pytest.mark.parametrize(
    "select",
    [
        {"service": "web"},
        {"service": ["we*", "x"]},
        {"service": ["a.c", "w?b"], "env": "p*"},
        {"env": "[a-p]rod"},
        {"host": "box$1"},
        {"service": "^web"},
        {"percent": 40},
        {"service": "web", "percent": 50},
        {"version": "1"},
        {"service": []},
    ],
)
def test_the_server_selects_as_the_processes_do(process, specs, select):
    for i in range(12):
        labels = {"service": ["web", "web\n", "api"][i % 3], "env": ["prod", "Prod"][i % 2]}
        process(f"p{i}", labels={"host": f"box${i % 2}"}, **labels).apply()
    specs.insert_one(spec(select=select))
    before = rollout(specs, "a")
    for manager in process.all:
        manager.apply()
    after = rollout(specs, "a")
    chosen = specs.find_one().get("applied", {})
    assert before.counts.get("waiting", 0) == after.counts.get("installed", 0) == len(chosen)
    assert after.processes == len(chosen)


def test_the_server_reckons_percents_as_python_does(specs):
    processes = ProcessStore(Link(specs))
    for i in range(300):
        processes.beat(f"p{i}", heartbeats.content(f"p{i}", {}, 1.0, []), 60)
    store = RolloutStore(Link(specs))
    for name in ("a", "cart-latency", 7):
        for percent in (0, 1, 33.3, 50, 99.9, 100):
            select = Select({}, percent)
            wanted = sum(select.matches(name, {}, f"p{i}") for i in range(300))
            assert store.meant(name, select) == wanted


def test_a_spec_that_is_none_is_still_counted(process, specs):
    specs.insert_one({"_id": "a", "target": 5})
    process("web").apply()
    found = rollout(specs, "a")
    assert found.counts == {"error": 1}
    assert "target" in found.error


def test_there_is_no_rollout_of_what_is_not_there(specs):
    with pytest.raises(SpecError, match="no spec 'x'") as caught:
        rollout(specs, "x")
    assert caught.value.code == "spec-not-found"


def test_one_can_wait_for_a_rollout(process, specs):
    web = process("web")
    web.apply()
    specs.insert_one(spec(id="by-name"))
    seen = []

    def progress(found):
        seen.append(found.counts)
        web.apply()

    assert wait_for_rollout(specs, "by-name", 30, progress=progress).is_complete
    assert seen == [{"waiting": 1}, {"installed": 1}]
    change(specs, lifespan=11)
    assert not wait_for_rollout(specs, "a", 0).is_settled


# --- the janitor ------------------------------------------------------------------------------


def test_entries_of_the_dead_are_removed_and_those_of_the_living_stay(process, specs, database):
    specs.insert_many([spec("a"), spec("b", target="probed_shop.halve")])
    dead, web = process("dead"), process("web", heartbeat=0.01, period=0.01)
    dead.apply()
    web.apply()
    vanish(dead)
    database["processes"].delete_one({"_id": "dead"})

    def is_clean():
        beat(web)
        return all(set(each["applied"]) == {"web"} for each in specs.find())

    wait_until(is_clean)


def test_one_does_the_chores_and_another_takes_over(process, specs):
    one, two = process("one", period=0.01, heartbeat=0.05), process("two", heartbeat=0.05)
    controls = ControlStore(Link(specs))
    one.apply()
    two.apply()
    assert controls.read().holder == "one"
    two.apply()
    assert controls.read().holder == "one"
    vanish(one)

    def two_has_it():
        two.apply()
        return controls.read().holder == "two"

    wait_until(two_has_it)


def test_the_lease_is_given_back_at_a_clean_exit(process, specs):
    one, two = process("one"), process("two")
    one.apply()
    one.stop()
    two.apply()
    assert ControlStore(Link(specs)).read().holder == "two"


def test_of_many_that_want_the_lease_one_gets_it(specs):
    controls = ControlStore(Link(specs))
    got, go = [], threading.Barrier(8)

    def take(name):
        go.wait()
        if controls.take_lease(name, 60):
            got.append(name)

    at_once(take, 8)
    assert len(got) == 1


def seconds_later(moment, seconds):
    return {"$set": {moment: datetime.now(UTC) + timedelta(seconds=seconds)}}


@pytest.fixture
def looks_back(process, specs, monkeypatch):
    """A process that counted as dead for a while, and how often it looked for its entries."""
    looked = []
    entries = SpecStore.entries

    def counted(store, process_id):
        looked.append(process_id)
        return entries(store, process_id)

    monkeypatch.setattr(SpecStore, "entries", counted)
    specs.insert_one(spec())
    web = process("web")
    beat(web)
    beat(web)
    looked.clear()
    return web, looked


def test_who_counted_as_dead_tells_again_what_was_removed(looks_back, specs, database):
    web, looked = looks_back
    database["processes"].delete_many({})
    # By whoever holds the lease, some time after it counted as dead.
    database["control"].update_one({"_id": "lease"}, seconds_later("buried", 100))
    specs.update_one({"_id": "a"}, {"$unset": {"applied.web": ""}})
    beat(web)
    web.apply()
    assert specs.find_one()["applied"]["web"]["state"] == "installed"
    assert looked == ["web"]


def test_after_an_outage_nobody_looks_for_entries_that_nobody_removed(looks_back, database):
    web, looked = looks_back
    before = database["specs"].find_one()
    # Entries were removed before: of others, since this one lived.
    database["control"].update_one({"_id": "lease"}, seconds_later("buried", 0))
    database["processes"].delete_many({})
    beat(web)
    web.apply()
    web.apply()
    assert looked == []
    assert database["specs"].find_one() == before


def test_an_older_database_makes_a_process_look_for_its_entries(looks_back, database):
    web, looked = looks_back
    # It was restored: the process lived then too, but had not told all yet.
    database["specs"].update_one({"_id": "a"}, {"$unset": {"applied.web": ""}})
    database["control"].update_one({"_id": "lease"}, seconds_later("renewed", -100))
    web.apply()
    assert looked == ["web"]
    web.apply()
    assert database["specs"].find_one()["applied"]["web"]["state"] == "installed"
    assert looked == ["web"]


def test_a_database_without_a_lease_makes_a_process_look_for_its_entries(looks_back, database):
    web, looked = looks_back
    database["control"].delete_many({})
    web.apply()
    assert looked == ["web"]


def test_a_lease_that_ended_is_held_anew(process, specs, database, monkeypatch):
    # After an outage all others seem to be dead, until they come back.
    specs.insert_one(spec())
    one, two = process("one", heartbeat=60.0), process("two", heartbeat=60.0)
    clock = [time.monotonic()]
    monkeypatch.setattr(chores, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    one.apply()
    two.apply()
    clock[0] += 190.0  # more than three heartbeats: it may remove what the dead left
    one.apply()
    clock[0] += 130.0  # more than the lease
    database["control"].update_one({"_id": "lease"}, seconds_later("ends", -1))
    database["processes"].delete_many({})
    beat(one)
    assert "two" in specs.find_one()["applied"]
    for _ in range(5):
        clock[0] += 50.0
        beat(one)
    assert "two" not in specs.find_one()["applied"]


# --- budgets ----------------------------------------------------------------------------------


def hits(manager, key="a"):
    return manager._records[key].status.hits


def call_until_over(managers, shop, calls=200):
    for _ in range(calls):
        for manager in managers:
            manager.apply()
        shop.double(1)


def test_a_fleet_makes_as_many_hits_as_its_budget_has(process, specs, shop):
    specs.insert_one(spec(limits={"fleet_hits": 100}))
    managers = [process(f"web{i}") for i in range(4)]
    call_until_over(managers, shop)
    assert sum(map(hits, managers)) == 100
    for manager in managers:
        manager.apply()
    assert rollout(specs, "a").counts == {"done": 4}


def test_without_a_lease_there_is_no_hit(process, specs, shop, database):
    specs.insert_one(spec(limits={"fleet_hits": 5}))
    web = process("web")
    web.apply()
    web._session.hits.after_fork_in_child()
    shop.double(1)
    assert hits(web) == 0
    assert web._records["a"].status.suppressed["fleet"] == 1


def test_what_was_not_used_goes_back_at_a_clean_exit(process, specs, shop):
    specs.insert_one(spec(limits={"fleet_hits": 60}))
    one, two = process("one"), process("two")
    one.apply()
    for _ in range(10):
        one.apply()
        shop.double(1)
    used = hits(one)
    one.stop()
    two.apply()
    call_until_over([two], shop)
    assert used + hits(two) == 60


def test_what_the_dead_held_is_lost_and_never_used_twice(process, specs, shop, database):
    specs.insert_one(spec(limits={"fleet_hits": 40}))
    one, two = process("one"), process("two", heartbeat=0.01, period=0.01)
    one.apply()
    one._session.hits._shares["a"].block = 2
    for _ in range(4):
        one.apply()
        shop.double(1)
    used, held = hits(one), len(one._session.hits._shares["a"].allotment)
    vanish(one)
    database["processes"].delete_one({"_id": "one"})
    two.apply()
    call_until_over([two], shop)
    assert used + hits(two) == 40 - held

    def is_done():
        beat(two)
        return rollout(specs, "a").counts == {"done": 1}

    wait_until(is_done)


def test_a_forked_child_has_no_hits_of_its_parents(process, specs, shop):
    specs.insert_one(spec(limits={"fleet_hits": 40}))
    web = process("web")
    web.apply()

    def child():
        assert not web._session.hits._shares["a"].allotment
        shop.double(1)
        assert web._records["a"].status.suppressed["fleet"] == 1
        return "fine"

    assert in_child(child) == "fine"


def test_hits_are_taken_once_however_many_take_them(specs):
    budget, taken = fleet_hits_id("a", None), []

    def take(name):
        store = FleetHitsStore(Link(specs))
        taken.extend(
            store.take(budget, 100, name, unused=0, wanted=3, is_first=True).hits for _ in range(30)
        )

    at_once(take, 6)
    assert sum(taken) == 100


# --- the control document ---------------------------------------------------------------------


def test_a_pause_takes_all_probes_off_within_a_poll(process, specs, shop):
    original = shop.double.__code__
    specs.insert_one(spec())
    web = process("web")
    web.apply()
    controls = ControlStore(Link(specs))
    controls.set({"paused": True, "by": "ann", "reason": "it is black friday"})
    web.apply()
    assert shop.double.__code__ is original
    entry = specs.find_one()["applied"]["web"]
    assert entry["state"] == "disabled"
    assert entry["warnings"] == ["all probes of the fleet are paused by ann: it is black friday"]
    controls.set({"paused": None})
    web.apply()
    assert specs.find_one()["applied"]["web"]["state"] == "installed"


def test_periods_can_be_stretched_for_all(process, specs):
    web = process("web")
    ControlStore(Link(specs)).set({"period": 60, "heartbeat": 300})
    web.apply()
    stopping = threading.Event()
    specs.insert_one(spec())
    web._poll(stopping)
    assert not web.specs
    web.apply()  # who asks gets an answer
    assert "a" in web.specs
    found = ProcessStore(Link(specs)).all()[0]
    assert found["expires"] - found["at"] == timedelta(seconds=900)


@pytest.mark.parametrize(
    "document", [{"paused": "x"}, {"period": "soon"}, {"period": -3}, {"heartbeat": True}]
)
def test_nonsense_in_the_control_document_does_no_harm(process, specs, database, document):
    database["control"].insert_one({"_id": "fleet", **document})
    specs.insert_one(spec())
    web = process("web")
    web.apply()
    assert "a" in web.specs


# --- dry runs ---------------------------------------------------------------------------------


def test_a_dry_run_says_what_is_there_and_arms_nothing(process, specs, shop):
    original = shop.double.__code__
    specs.insert_one(spec(validate=True))
    process("web").apply()
    entry = specs.find_one()["applied"]["web"]
    assert entry["state"] == "validated"
    assert shop.double.__code__ is original
    found = entry["found"]
    assert (found["file"], found["line"], found["kind"]) == ("probed_shop.py", 2, "function")
    assert found["lines"] == [3]
    assert found["fingerprint"].endswith("-2")
    assert rollout(specs, "a").is_complete


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"target": "probed_shop.duoble"}, "target-not-found"),
        ({"when": "y > 3"}, "expression-name"),
        (
            {"instrument": {"type": "seen", "name": "n", "value": "x", "event": "line:9"}},
            "line-without-code",
        ),
    ],
)
def test_a_dry_run_finds_what_would_fail(process, specs, changes, code):
    specs.insert_one(spec(validate=True, **changes))
    process("web").apply()
    entry = specs.find_one()["applied"]["web"]
    assert (entry["state"], entry["code"]) == ("error", code)


# --- canaries ---------------------------------------------------------------------------------


def canary(**changes):
    return {"percent": 30, "for": 0.0001} | changes


def run_until(managers, specs, is_so):
    def looked():
        for manager in managers:
            beat(manager)
        return is_so(specs.find_one())

    wait_until(looked)


def test_a_canary_begins_on_a_few_and_goes_everywhere_when_all_is_well(process, specs):
    managers = [process(f"web{i}", heartbeat=60) for i in range(10)]
    specs.insert_one(spec(canary=canary(**{"for": 10})))
    for manager in managers:
        manager.apply()
    document = specs.find_one()
    began, few = document["lastmodified"], len(document.get("applied", {}))
    assert few == sum(Select({}, 30).matches("a", {}, f"web{i}") for i in range(10))
    # Found without a new version by the next look at everything.
    specs.update_one({"_id": "a"}, {"$set": {"canary.for": 0.0001}})
    for manager in managers:
        manager._session._polls = 60
    run_until(managers, specs, lambda d: d.get("stage", {}).get("name") == "everywhere")
    for manager in managers:
        manager.apply()
    document = specs.find_one()
    assert len(document["applied"]) == 10
    assert "all was well" in document["stage"]["reason"]
    assert document["stage"]["version"] == document["lastmodified"] > began
    # Its lifespan goes on from where it was.
    assert managers[0]._records["a"].spec.began == began.replace(tzinfo=UTC)


def test_a_canary_that_fails_is_taken_back_everywhere(process, specs, shop):
    original = shop.double.__code__
    managers = [process(f"web{i}", heartbeat=60) for i in range(10)]
    specs.insert_one(spec(canary=canary(**{"for": 10}), target="probed_shop.duoble"))
    run_until(managers, specs, lambda d: d.get("stage", {}).get("name") == "taken back")
    for manager in managers:
        manager.apply()
    document = specs.find_one()
    assert "target-not-found" in document["stage"]["reason"]
    assert {each["state"] for each in document["applied"].values()} == {"disabled"}
    assert shop.double.__code__ is original
    assert document["stage"]["reason"] in document["applied"]["web1"]["warnings"]


def test_a_canary_among_a_few_processes_is_on_one_of_them_at_least():
    found = parse("a", spec(canary=canary(percent=4, **{"for": 20})), instrument_types=None)

    def after(seconds, rows=(), meant=3):
        now = found.lastmodified + timedelta(seconds=seconds)
        return decide(found, rows, {"cost": 0.0}, now, meant)

    assert after(1) is None  # others may not have been heard of yet
    assert after(31)[::2] == (Stage.CANARY, 8.0)
    assert after(31, meant=0) is None
    assert after(31, [{"state": "waiting", "code": None, "count": 1}]) is None


def test_a_canary_goes_everywhere_when_all_who_have_it_have_said_so():
    found = parse("a", spec(canary=canary(**{"for": 20})), instrument_types=None)

    def after(minutes, **counts):
        rows = [{"state": name, "code": None, "count": count} for name, count in counts.items()]
        now = found.lastmodified + timedelta(minutes=minutes)
        return decide(found, rows, {"cost": 0.0}, now, 10)

    assert after(21, installed=2).stage is Stage.EVERYWHERE
    assert after(21, emitting=1, pending=1, gone=1).stage is Stage.EVERYWHERE
    assert after(19, installed=2) is None
    assert after(21, installed=2, waiting=1) is None
    assert after(21, installed=2, behind=1) is None
    assert after(21, pending=2) is None


def test_a_step_is_made_only_on_the_version_that_was_looked_at(specs):
    specs.insert_one(spec(canary=canary()))
    store, version = SpecDocuments(Link(specs)), specs.find_one()["lastmodified"]
    words = {"reason": "x", "began": version, "by": "web"}
    assert store.set_stage("a", version, name="canary", percent=8.0, **words)
    assert not store.set_stage("a", version, name="everywhere", percent=None, **words)
    assert specs.find_one()["stage"]["name"] == "canary"


def test_a_canary_that_costs_too_much_is_taken_back(process, specs, database):
    web = process("web", heartbeat=60)
    specs.insert_one(spec(canary=canary(percent=100, max_cost=0.01, **{"for": 10})))
    web.apply()
    web._records["a"].status.cost = 0.03
    run_until([web], specs, lambda d: d.get("stage", {}).get("name") == "taken back")
    assert "3.00% of a core" in specs.find_one()["stage"]["reason"]


def test_what_a_canary_cost_before_it_was_changed_does_not_count(process, specs):
    web, chores = process("web", heartbeat=60), process("chores", heartbeat=60)
    specs.insert_one(spec(canary=canary(percent=100, max_cost=0.01, **{"for": 10})))
    chores.apply()
    web.apply()
    web._records["a"].status.cost = 0.03
    beat(web)
    change(specs, when="x > 100")
    # It has the new version, and did not say so yet.
    for _ in range(3):
        chores.apply()
    assert "stage" not in specs.find_one()


def test_who_changes_a_canary_begins_it_anew(process, specs):
    web = process("web", heartbeat=60)
    specs.insert_one(spec(canary=canary(percent=100)))
    run_until([web], specs, lambda d: d.get("stage", {}).get("name") == "everywhere")
    change(specs, canary={"percent": 0, "for": 10})
    web.apply()
    assert "a" in web.specs
    assert specs.find_one()["applied"] == {}


# --- very many processes ------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bounds, "SAMPLE", 3)
    monkeypatch.setattr(bounds, "FAILURES", 2)


def turn(managers):
    """Each process says that it lives and polls; the first one does the chores."""
    for manager in managers:
        manager._session._chores._turn_at = 0.0
        beat(manager)


@pytest.mark.usefixtures("small")
def test_in_a_large_fleet_a_sample_and_failures_have_entries_and_all_are_counted(process, specs):
    specs.insert_many([spec(), spec("bad", target="probed_shop.duoble")])
    managers = [process(f"web{i}", bounded_above=5, heartbeat=60) for i in range(5)]
    turn(managers)
    assert len(specs.find_one({"_id": "a"})["applied"]) == 5
    managers += [process(f"web{i}", bounded_above=5, heartbeat=60) for i in range(5, 30)]
    for _ in range(3):
        turn(managers)
    document = specs.find_one({"_id": "a"})
    sample = {f"web{i}" for i in range(30) if bounds.is_sampled(f"web{i}", 30)}
    assert set(document["applied"]) == sample
    assert document["counts"] == {"installed": 30}
    assert rollout(specs, "a").counts == {"installed": 30}
    bad = specs.find_one({"_id": "bad"})
    assert set(bad["applied"]) >= sample
    assert len(set(bad["applied"]) - sample) == 2  # of the failures, so many
    assert all(each["code"] == "target-not-found" for each in bad["applied"].values())
    assert bad["counts"] == {"error": 30}
    found = rollout(specs, "bad")
    assert (found.counts, found.is_settled) == ({"error": 30}, True)
    # What changes from now on is told in the same way.
    change(specs, "bad", target="probed_shop.halve")
    for _ in range(3):
        turn(managers)
    assert rollout(specs, "bad").counts == {"installed": 30}
    assert set(specs.find_one({"_id": "bad"})["applied"]) == sample


@pytest.mark.usefixtures("small")
def test_when_it_becomes_small_again_all_have_entries_again(process, specs, database):
    specs.insert_one(spec())
    managers = [process(f"web{i}", bounded_above=5, heartbeat=60) for i in range(12)]
    for _ in range(3):
        turn(managers)
    assert len(specs.find_one()["applied"]) < 12
    for manager in managers[4:]:
        manager.stop()
    for _ in range(2):
        turn(managers[:4])
    for manager in managers[:4]:
        manager._session._retell_in = 0
    for _ in range(2):
        turn(managers[:4])
    assert set(specs.find_one()["applied"]) == {f"web{i}" for i in range(4)}
