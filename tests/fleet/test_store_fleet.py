"""Processes, fleet hits and rollouts: what each call of their stores writes and answers."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from diagnose.specs import Select, percent_factors, process_share
from diagnose_mongo.store import FleetHitsStore, Link, ProcessStore, RolloutStore, fleet_hits_id

DAY = timedelta(days=1)
VERSION = datetime(2026, 11, 23, 12, 0)


@pytest.fixture
def link(database):
    return Link(database["specs"])


def server_now(database):
    return database.command("hello")["localTime"]


# --- processes ----------------------------------------------------------------------------------


def test_a_sign_of_life_is_good_for_its_time_and_says_who_gave_the_one_before(link, database):
    processes = ProcessStore(link)
    before = server_now(database)
    beat = processes.beat("p", {"labels": {"env": "$prod"}}, 1.5, "run 1")
    (first,) = database["processes"].find()
    assert before <= first["at"] == first["since"] <= server_now(database)
    assert beat == (None, first["expires"])
    assert first["expires"] - first["at"] == timedelta(seconds=1.5)
    assert (first["labels"], first["run"]) == ({"env": "$prod"}, "run 1")
    assert processes.beat("p", {"x": 1}, 60, "$run 2").before == "run 1"
    assert processes.beat("p", {}, 60).before == "$run 2"
    (last,) = database["processes"].find()
    assert last["since"] == first["since"]
    assert (last["labels"], last["x"], last["run"]) == ({"env": "$prod"}, 1, "")
    database["processes"].update_one({}, {"$set": {"expires": before}})
    assert processes.beat("p", {}, 60).before is None


def test_the_living_are_listed_and_the_dead_are_not(link, database):
    processes = ProcessStore(link)
    for process_id in ("b", "a", "dead", "gone"):
        processes.beat(process_id, {}, 60)
    now = server_now(database)
    database["processes"].update_one({"_id": "dead"}, {"$set": {"expires": now}})
    database["processes"].update_one({"_id": "a"}, {"$set": {"at": now - timedelta(seconds=90)}})
    database["processes"].insert_many([{"_id": "never"}, {"_id": 5, "expires": now + DAY}])
    processes.leave("gone", 5)
    assert processes.living() == {"a", "b"}
    assert processes.count() == 3
    listed = processes.all()
    assert [each["_id"] for each in listed] == [5, "a", "b"]
    assert 89 < listed[1]["age"] < 150
    assert -1 < listed[2]["age"] < 60
    processes.remove_dead()
    assert {each["_id"] for each in database["processes"].find()} == {5, "a", "b"}


# --- budgets ------------------------------------------------------------------------------------

THIS = fleet_hits_id("a", VERSION)


def budget(database, **fields):
    made = {"_id": THIS, "left": 10, "held": {}, "at": server_now(database)} | fields
    database["budgets"].insert_one(made)


def take(link, wanted, process_id="p", unused=0, *, is_first=False, size=10):
    store = FleetHitsStore(link)
    return store.take(
        THIS, size, process_id, unused=unused, wanted=wanted, is_first=is_first
    )  # fmt: skip


def test_a_budget_is_made_by_the_first_and_what_it_took_is_held(link, database):
    before = server_now(database)
    assert take(link, 4, is_first=True) == (4, False)
    found = database["budgets"].find_one()
    assert before <= found.pop("at") <= server_now(database)
    assert found == {
        "_id": {"spec": "a", "version": VERSION}, "of": 10, "left": 6, "held": {"p": 4}, "took": 4
    }  # fmt: skip
    assert take(link, 9, "q", is_first=True) == (6, False)
    assert take(link, 9, "q", unused=1) == (0, False)
    assert database["budgets"].find_one()["held"] == {"p": 4, "q": 1}


def test_a_budget_that_is_not_there_any_more_is_over(link, database):
    assert take(link, 4) == (0, True)
    assert database["budgets"].find_one() is None


@pytest.mark.parametrize(
    ("left", "held", "is_over"),
    [(0, {}, True), (1, {}, False), (0, {"q": 1}, False), (0, {"q": 0}, True), (-1, {}, True)],
)
def test_a_budget_is_over_when_nothing_is_left_and_nobody_can_give_any_back(
    link, database, left, held, is_over
):
    budget(database, left=left, held=held)
    assert take(link, 0) == (0, is_over)


@pytest.mark.parametrize(
    ("left", "taken"),
    [(3, 3), (10, 10), (11, 10), (3.0, 3), (-5, 0), ("x", 0), (None, 0), ([5], 0)],
)
def test_no_more_is_taken_than_a_budget_can_have(link, database, left, taken):
    budget(database, left=left)
    assert take(link, 20).hits == taken
    assert database["budgets"].find_one()["left"] == 0


@pytest.mark.parametrize("held", ["x", None, 5, [1]])
def test_nonsense_about_who_holds_hits_is_put_right(link, database, held):
    budget(database, held=held)
    assert take(link, 4) == (4, False)
    assert database["budgets"].find_one()["held"] == {"p": 4}


def test_what_is_given_back_is_there_for_others_and_only_once(link, database):
    store = FleetHitsStore(link)
    take(link, 4, is_first=True)
    store.give_back(THIS, "q", 3, 5)
    assert database["budgets"].find_one()["left"] == 6
    store.give_back(THIS, "p", 3, 5)
    store.give_back(THIS, "p", 3, 5)
    found = database["budgets"].find_one()
    assert (found["left"], found["held"]) == (9, {})


def test_tidying_removes_old_budgets_of_former_versions_and_what_the_dead_held(link, database):
    hour = timedelta(hours=1)
    now = server_now(database)
    for version, at in ((VERSION - DAY, now - hour), (VERSION - 2 * DAY, now - hour / 2)):
        database["budgets"].insert_one({"_id": fleet_hits_id("a", version), "at": at, "held": {}})
    budget(database, at=now - DAY, held={"p": 1, "dead": 2, "not an id": 3})
    database["budgets"].insert_one({"_id": "odd", "at": now, "held": 5})
    FleetHitsStore(link).tidy([("a", VERSION)], {"p"})
    found = {str(each["_id"]): each["held"] for each in database["budgets"].find()}
    assert found == {
        str(fleet_hits_id("a", VERSION - 2 * DAY)): {},
        str(THIS): {"p": 1, "not an id": 3},
        "odd": 5,
    }


# --- rollouts -----------------------------------------------------------------------------------

LABELS = {"service": "web", "env": "prod"}


def lives(database, process_id, *specs, seconds=60, **labels):
    database["processes"].insert_one(
        {
            "_id": process_id,
            "expires": server_now(database) + timedelta(seconds=seconds),
            "labels": LABELS | labels,
            "share": process_share(process_id),
            "specs": list(specs),
        }
    )


def figures(state, spec_id="a", version=VERSION, **more):
    return {"id": spec_id, "lm": version, "state": state, "hits": 0, "cost": 0.0} | more


def entry(state, version=VERSION, **more):
    return {"lm": version, "state": state, "err": None} | more


def counted(link, select=None, *, of_processes=False, version=VERSION, raw_id="a"):
    store = RolloutStore(link)
    rows = store.count(raw_id, version, "a", select, of_processes=of_processes)
    if rows is None:
        return None
    return {(row["state"], row["code"]): row for row in rows}


def counts(rows):
    return {place: row["count"] for place, row in rows.items()}


@pytest.fixture(params=[False, True], ids=["entries", "processes"])
def told(request, link, database):
    """What processes have said of a spec, in its entries or in their own documents."""
    said = {
        "p0": entry("installed"),
        "p1": entry("installed", acts=True),
        "p2": entry("error", code="x", err="it is broken"),
        "p3": entry("error", code="y", err="this too"),
        "p4": entry("error", code="x", err="it is broken"),
        "p5": entry("installed", version=VERSION - DAY, code="old"),
        "p6": {"lm": VERSION, "err": None},
        "dead": entry("error", code="x"),
    }
    applied = {} if request.param else {"applied": said}
    database["specs"].insert_one({"_id": "a", "lastmodified": VERSION} | applied)
    for process_id, each in said.items():
        mine = [{"id": "other", "lm": VERSION, "state": "done"}]
        if request.param:
            mine.append({"id": "a"} | each)
        lives(database, process_id, *mine, seconds=-60 if process_id == "dead" else 60)
    lives(database, "waits")
    return request.param


def test_processes_are_counted_by_what_they_say(told, link):
    rows = counted(link, of_processes=told)
    gone = {} if told else {("gone", None): 1}
    assert counts(rows) == gone | {
        ("installed", None): 3,
        ("error", "x"): 2,
        ("error", "y"): 1,
        ("behind", None): 1,
        ("waiting", None): 1,
    }
    assert [place for place, row in rows.items() if row["acts"]] == [("installed", None)]
    examples = rows["error", "x"]["examples"]
    assert sorted(each["process"] for each in examples) == ["p2", "p4"]
    assert {each["err"] for each in examples} == {"it is broken"}


def test_three_examples_are_given_of_each_kind(link, database):
    said = {f"p{i}": entry("error", code="x", err="e") for i in range(5)}
    database["specs"].insert_one({"_id": "a", "lastmodified": VERSION, "applied": said})
    for process_id in said:
        lives(database, process_id)
    (row,) = counted(link).values()
    assert (row["count"], len(row["examples"])) == (5, 3)


def test_those_for_whom_a_spec_is_not_meant_are_not_waited_for(told, link):
    rows = counted(link, Select({"env": ("nowhere",)}), of_processes=told)
    assert ("waiting", None) not in rows
    assert ("behind", None) not in rows
    assert counts(rows)["installed", None] == 3


@pytest.mark.parametrize("version", [VERSION + DAY, VERSION - DAY])
def test_of_a_version_that_is_not_there_nothing_is_said(told, link, version):
    assert counted(link, of_processes=told, version=version) is None
    assert counted(link, of_processes=told, raw_id="b") is None


@pytest.mark.parametrize("version", [None, "x", 5])
def test_entries_about_what_is_no_date_are_about_the_version_that_is_none(link, database, version):
    said = {"p0": entry("error", version=version, code="wrong-type")}
    database["specs"].insert_one({"_id": "a", "lastmodified": version, "applied": said})
    lives(database, "p0", figures("error", version=version, code="wrong-type"))
    for of_processes in (False, True):
        assert counts(counted(link, of_processes=of_processes, version=version)) == {
            ("error", "wrong-type"): 1
        }


@pytest.mark.parametrize("applied", [None, "x", [1], 5])
def test_an_applied_that_is_no_document_holds_no_entries(link, database, applied):
    database["specs"].insert_one({"_id": "a", "lastmodified": VERSION, "applied": applied})
    lives(database, "p0")
    assert counts(counted(link)) == {("waiting", None): 1}


def test_a_spec_for_whom_nobody_lives_has_no_rows(link, database):
    database["specs"].insert_one({"_id": "a", "lastmodified": VERSION})
    for of_processes in (False, True):
        assert counted(link, of_processes=of_processes) == {}


def test_every_version_of_every_spec_is_counted_in_one_pass(link, database):
    lives(database, "p0", figures("installed"), figures("error", "b"))
    lives(database, "p1", figures("installed"), figures("done", "a", VERSION - DAY))
    lives(database, "p2", figures("emitting"), {"id": "b"})
    lives(database, "dead", figures("installed"), seconds=-60)
    found = {(each[0], each[1]): each[2] for each in RolloutStore(link).count_all()}
    assert found == {
        ("a", VERSION): {"installed": 2, "emitting": 1},
        ("a", VERSION - DAY): {"done": 1},
        ("b", VERSION): {"error": 1},
        ("b", None): {"?": 1},
    }


@pytest.mark.parametrize(
    ("patterns", "ids"),
    [
        ({}, "012"),
        ({"env": ("prod",)}, "01"),
        ({"env": ("test", "nowhere")}, "2"),
        ({"env": ("pr?d", "t*")}, "012"),
        ({"env": ("prod",), "service": ("api",)}, "1"),
        ({"env": ("PROD",)}, ""),
        ({"env": ("$labels.env",)}, ""),
        ({"zone": ("*",)}, ""),
        ({"env": ()}, ""),
    ],
)
def test_those_are_meant_whose_labels_match(link, database, patterns, ids):
    lives(database, "0")
    lives(database, "1", service="api")
    lives(database, "2", env="test")
    lives(database, "dead", seconds=-60)
    assert RolloutStore(link).meant("a", Select(patterns)) == len(ids)
    assert RolloutStore(link).meant("a", None) == 3


def test_those_are_meant_who_are_among_the_percent(link, database):
    names = [f"p{i}" for i in range(40)]
    for name in names:
        lives(database, name)
    store = RolloutStore(link)
    for percent in (0, 30, 100):
        meant = [name for name in names if Select({}, percent).matches("a", LABELS, name)]
        assert store.meant("a", Select({}, percent)) == len(meant)
    # At the very place of a process: it is not among those, and among any more.
    factor, shift = percent_factors("a")
    places = sorted((factor * process_share(name) + shift) % (2**31 - 1) for name in names)
    percent = places[3] / (2**31 - 1) * 100
    assert store.meant("a", Select({}, percent * (1 - 1e-12))) == 3
    assert store.meant("a", Select({}, percent * (1 + 1e-9))) == 4


def test_costs_are_added_up_over_those_who_live(link, database):
    lives(database, "p0", figures("x", hits=5, cost=0.25, suppressed={"rate": 2, "hits": 1}))
    lives(database, "p1", figures("x", hits=7, cost=0.75, suppressed={"rate": 3}))
    lives(database, "p2", figures("x", version=VERSION - DAY, hits=1, cost=2.0))
    lives(database, "p3", figures("x", "b", hits=100))
    lives(database, "dead", figures("x", hits=1000), seconds=-60)
    assert RolloutStore(link).costs("a", VERSION) == {
        "hits": 12,
        "cost": 0.75,
        "mean_cost": 0.5,
        "suppressed": {"rate": 5, "hits": 1},
    }
    assert RolloutStore(link).costs("a") == {
        "hits": 13,
        "cost": 2.0,
        "mean_cost": 1.0,
        "suppressed": {"rate": 5, "hits": 1},
    }
    nothing = {"hits": 0, "cost": 0.0, "mean_cost": 0.0, "suppressed": {}}
    assert RolloutStore(link).costs("c") == nothing
