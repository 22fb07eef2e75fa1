"""Edits, history and control: what each call of their stores writes and answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import bson
import pytest
from bson import ObjectId

from diagnose.errors import StoreError
from diagnose_mongo.store import (
    Control,
    ControlStore,
    FleetHitsStore,
    HistoryStore,
    Link,
    ProcessStore,
    SpecDocuments,
    digest_of,
)

DAY = timedelta(days=1)


@pytest.fixture
def link(database):
    return Link(database["specs"])


def server_now(database):
    return database.command("hello")["localTime"]


# --- edits of specs -----------------------------------------------------------------------------


def spec(**fields):
    return {"_id": "a", "target": "$x", "instrument": {"type": "log", "value": "$y"}} | fields


def test_adding_a_spec_gives_it_a_version_and_says_who_did_it(link, database):
    began = server_now(database)
    made = SpecDocuments(link).add(spec(), by="ann", via="command")
    assert made == database["specs"].find_one()
    changed = made.pop("changed")
    version = made.pop("lastmodified")
    assert made == spec()  # texts with a dollar as they are
    assert began <= version <= server_now(database)
    assert isinstance(changed.pop("id"), ObjectId)
    assert changed == {"by": "ann", "via": "command", "version": version}


def test_a_spec_that_is_there_is_not_added_again(link, database):
    store = SpecDocuments(link)
    made = store.add(spec(), by="ann", via="command")
    assert store.add(spec(target="b"), by="bob", via="command") is None
    assert database["specs"].find_one() == made


def test_a_change_sets_and_removes_fields_of_the_version_that_is_there(link, database):
    store = SpecDocuments(link)
    made = store.add(spec(when="x", comment="c"), by="ann", via="command")
    database["specs"].update_one(
        {}, {"$set": {"applied": {"p": 1}, "counts": {"x": 1}, "changed.more": 1}}
    )
    version = made["lastmodified"]
    fields = {"instrument": {"type": "$z"}, "limits": {"rate": 1}}
    now = store.change("a", version, fields, ["when", "comment"], by="bob", via="$via")
    there = database["specs"].find_one()
    assert (there.pop("applied"), there.pop("counts")) == ({"p": 1}, {"x": 1})
    assert now == there  # without what processes have written
    assert now["lastmodified"] > version
    changed = now.pop("changed")
    assert changed.pop("id") != made["changed"]["id"]
    assert changed == {"by": "bob", "via": "$via", "version": now.pop("lastmodified")}
    assert now == spec(instrument={"type": "$z"}, limits={"rate": 1})
    assert store.change("a", version, fields, [], by="cat", via="x") is None
    assert store.change("b", version, fields, [], by="cat", via="x") is None


def test_a_change_may_only_set_or_only_remove(link):
    store = SpecDocuments(link)
    version = store.add(spec(when="x"), by="ann", via="x")["lastmodified"]
    now = store.change("a", version, {}, ["when"], by="ann", via="x")
    assert "when" not in now
    now = store.change("a", now["lastmodified"], {"when": "y"}, [], by="ann", via="x")
    assert now["when"] == "y"


def test_a_spec_without_a_version_is_changed_and_removed_as_one_of_the_version_none(link, database):
    store = SpecDocuments(link)
    database["specs"].insert_many([spec(), spec(_id="b")])
    assert store.change("a", None, {"when": "y"}, [], by="ann", via="x")["lastmodified"]
    assert store.remove("b", None)
    assert not store.remove("a", None)


def test_a_version_is_removed_once(link, database):
    store = SpecDocuments(link)
    version = store.add(spec(), by="ann", via="x")["lastmodified"]
    assert not store.remove("a", version - DAY)
    assert store.remove("a", version) is True
    assert store.remove("a", version) is False
    assert database["specs"].find_one() is None


@pytest.mark.parametrize(("ahead", "is_carried_on"), [(500, True), (5_000, False), (-1, False)])
def test_a_change_within_the_same_moment_is_a_version_of_its_own(
    link, database, ahead, is_carried_on
):
    store = SpecDocuments(link)
    database["specs"].insert_one(spec())
    for _ in range(20):  # a machine that does other things may take longer than the moment
        begun = server_now(database)
        version = begun + timedelta(milliseconds=ahead)
        database["specs"].update_one({}, {"$set": {"lastmodified": version}})
        now = store.change("a", version, {"when": "y"}, [], by="ann", via="x")["lastmodified"]
        if not is_carried_on or server_now(database) < version:
            break
    if is_carried_on:
        assert now == version + timedelta(milliseconds=1)
    else:
        assert begun <= now <= server_now(database)


def test_a_spec_is_read_without_what_processes_have_written(link, database):
    database["specs"].insert_one(spec(applied={"p": 1}, counts={"x": 1}))
    assert SpecDocuments(link).read("a") == spec()
    assert SpecDocuments(link).read("b") is None
    whole = database["specs"].find_one()
    assert SpecDocuments(link).read("a", with_outcomes=True) == whole
    assert SpecDocuments(link).read("b", with_outcomes=True) is None


# --- history ---------------------------------------------------------------------------


def entry(number, spec="a", **fields):
    at = datetime(2026, 11, 23, 12, 0)
    return {
        "_id": number, "spec": spec, "name": f"name of {spec}", "at": at, "action": "change",
        "content": f"c{number}", "after": {"x": "$x"}, "difference": [{"field": "f"}],
    } | fields  # fmt: skip


def test_an_entry_is_written_once_and_as_it_is(link, database):
    store = HistoryStore(link)
    assert store.note(entry(1)) is True
    assert store.note(entry(1, spec="other")) is False
    assert store.find(1) == entry(1) == database["history"].find_one()
    assert store.find(2) is None


def test_an_entry_without_a_time_has_that_of_the_server(link, database):
    store = HistoryStore(link)
    without = entry(1)
    del without["at"]
    before = server_now(database)
    store.note(without)
    found = store.find(1)
    assert before <= found.pop("at") <= server_now(database)
    assert found == without


def nested(levels):
    value = 1
    for _ in range(levels):
        value = {"x": value}
    return value


def with_size(size):
    text = "x" * (size - len(bson.encode(entry(1, after={"x": ""}))))
    made = entry(1, after={"x": text})
    assert len(bson.encode(made)) == size
    return made


@pytest.mark.parametrize(
    ("made", "is_large"),
    [
        (entry(1, after=nested(59)), False),
        (entry(1, after=nested(60)), True),
        (entry(1, after=[[nested(57)]]), False),
        (entry(1, after=[[nested(58)]]), True),
        (entry(1, difference=[{"new": [nested(56), 1]}]), False),
        (entry(1, difference=[{"new": [nested(57), 1]}]), True),
        (entry(1, after={"x": nested(57) | {"y": {}}}), False),
        (with_size(1_000_000), False),
        (with_size(1_000_001), True),
    ],
)
def test_of_an_entry_that_is_too_large_the_content_is_left_out(link, made, is_large):
    store = HistoryStore(link)
    store.note(made)
    wanted = made | {"after": None, "difference": [], "is_large": True} if is_large else made
    assert store.find(1) == wanted


def test_a_removal_that_failed_says_why_and_is_no_last_entry(link):
    store = HistoryStore(link)
    store.note(entry(1))
    store.note(entry(2, action="remove", at=entry(1)["at"] + DAY))
    assert store.last("a") == store.find(2)
    store.note_failure(2, "refused \ud800")
    assert store.find(2)["failed"] == "refused ?"
    assert store.last("a") == entry(1)
    assert store.last("b") is None
    assert store.last_of_all() == [{"spec": "a", "action": "change", "content": "c1"}]


def test_the_latest_is_the_last_and_of_the_same_millisecond_the_one_with_the_last_id(link):
    store = HistoryStore(link)
    for made in (
        entry(3), entry(1), entry(2), entry(0, at=entry(1)["at"] + DAY), entry(9, spec="b"),
        entry(8, spec="b", action="add"),
    ):  # fmt: skip
        store.note(made)
    assert [each["_id"] for each in store.read("a", 10)] == [0, 3, 2, 1]
    assert [each["_id"] for each in store.read("name of a", 2)] == [0, 3]
    assert [each["_id"] for each in store.read(None, 10)] == [0, 9, 8, 3, 2, 1]
    assert store.read("c", 10) == []
    assert all("after" not in each for each in store.read(None, 10))
    assert store.last("a")["_id"] == 0
    assert sorted(store.last_of_all(), key=lambda each: each["spec"]) == [
        {"spec": "a", "action": "change", "content": "c0"},
        {"spec": "b", "action": "change", "content": "c9"},
    ]


@pytest.mark.parametrize("name", ["applied", "counts", "changed"])
def test_what_is_written_by_the_fleet_is_not_part_of_the_content(name):
    assert digest_of(spec(**{name: 1})) == digest_of(spec())
    assert digest_of(spec(target="other")) != digest_of(spec())
    assert len(digest_of(spec())) == 24


# --- control ------------------------------------------------------------------------------------

ENDS = datetime(2026, 11, 23, 12, 0)


@pytest.mark.parametrize(
    ("ends", "is_free"),
    [
        (None, True),
        (ENDS, True),
        (ENDS - DAY, True),
        (ENDS + timedelta(milliseconds=1), False),
        (ENDS + DAY, False),
        (ENDS + DAY + timedelta(milliseconds=1), True),  # nobody takes one for so long
    ],
)
def test_a_lease_is_free_when_it_has_ended_or_can_not_be_true(ends, is_free):
    assert Control(lease_ends=ends).has_free_lease(ENDS.replace(tzinfo=UTC)) is is_free


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0.001, 0.001), (5, 5.0), (1e9 - 1, 1e9 - 1), (1e9, 0.0), (0, 0.0), (-1, 0.0), (True, 0.0),
        ("5", 0.0), (None, 0.0), (float("nan"), 0.0),
    ],
)  # fmt: skip
def test_seconds_are_taken_if_they_make_sense(value, seconds):
    fleet = {"_id": "fleet", "period": value, "heartbeat": value}
    found = Control.of([fleet, {"_id": "lease", "processes": value}])
    assert (found.period, found.heartbeat, found.processes) == (seconds, seconds, int(seconds))


@pytest.mark.parametrize(
    ("fleet", "paused"),
    [
        ({}, None),
        ({"paused": False, "by": "ann"}, None),
        ({"paused": True}, "all probes of the fleet are paused"),
        ({"paused": True, "by": "ann"}, "all probes of the fleet are paused by ann"),
        ({"paused": True, "reason": "r"}, "all probes of the fleet are paused: r"),
        ({"paused": True, "by": "ann", "reason": "r"}, "all probes of the fleet are paused by ann: r"),
        ({"paused": True, "by": 5, "reason": 5}, "all probes of the fleet are paused"),
    ],
)  # fmt: skip
def test_a_pause_says_who_and_why(fleet, paused):
    assert Control.of([{"_id": "fleet", **fleet}, {"_id": "x", "paused": True}]).paused == paused


def test_what_the_lease_says_is_understood():
    moments = {"ends": ENDS.replace(tzinfo=UTC), "renewed": ENDS, "buried": ENDS - DAY}
    found = Control.of(
        [{"_id": "lease", "holder": "p", "processes": 7, "bounded": True, **moments}]
    )
    assert found == Control(
        processes=7,
        is_bounded=True,
        holder="p",
        lease_ends=ENDS,
        renewed=ENDS,
        buried=ENDS - DAY,
    )
    nonsense = {"holder": 5, "bounded": 1, "ends": "x", "renewed": 5, "buried": []}
    assert Control.of([{"_id": "lease", **nonsense}]) == Control()


def test_what_holds_for_the_fleet_is_set_and_taken_out(link, database):
    controls = ControlStore(link)
    before = server_now(database)
    controls.set({"paused": True, "by": "ann", "period": 3})
    assert controls.read() == Control(paused="all probes of the fleet are paused by ann", period=3)
    controls.set({"paused": None, "by": None})
    assert controls.read() == Control(period=3)
    fleet = database["control"].find_one()
    assert before <= fleet.pop("at") <= server_now(database)
    assert fleet == {"_id": "fleet", "period": 3}


def test_a_lease_is_taken_renewed_and_given_back(link, database):
    controls = ControlStore(link)
    before = server_now(database)
    assert controls.take_lease("$one", 60) is True
    (first,) = database["control"].find()
    assert first["holder"] == "$one"
    assert before <= first["renewed"] == first["since"] <= server_now(database)
    assert first["ends"] - first["renewed"] == timedelta(seconds=60)
    assert controls.take_lease("two", 60) is False
    assert controls.take_lease("$one", 90) is True
    (second,) = database["control"].find()
    assert second["ends"] - second["renewed"] == timedelta(seconds=90)
    controls.drop_lease("two", 5)
    assert controls.read().holder == "$one"
    controls.drop_lease("$one", 5)
    assert controls.read().holder is None
    assert controls.take_lease("two", 60) is True


def test_a_lease_that_goes_on_is_held_since_it_was_taken(link, database):
    controls = ControlStore(link)
    controls.take_lease("one", 60)
    long_ago = datetime(2026, 1, 1)
    database["control"].update_one({}, {"$set": {"since": long_ago}})
    controls.take_lease("one", 60)
    assert database["control"].find_one()["since"] == long_ago
    database["control"].update_one({}, {"$set": {"ends": long_ago}})
    controls.take_lease("two", 60)
    assert database["control"].find_one()["since"] > long_ago


@pytest.mark.parametrize(
    ("ends_in", "is_taken"), [(-60, True), (60, False), (86_000, False), (87_000, True)]
)
def test_another_takes_a_lease_that_has_ended_or_can_not_be_true(link, database, ends_in, is_taken):
    ends = server_now(database) + timedelta(seconds=ends_in)
    database["control"].insert_one({"_id": "lease", "holder": "one", "ends": ends})
    assert ControlStore(link).take_lease("two", 60) is is_taken
    assert ControlStore(link).read().holder == ("two" if is_taken else "one")


def test_only_who_has_the_lease_says_how_large_the_fleet_is_and_buries_the_dead(link, database):
    controls = ControlStore(link)
    controls.take_lease("one", 60)
    controls.note_size("two", 5, is_bounded=True)
    assert controls.note_burial("two") is False
    found = controls.read()
    assert (found.processes, found.is_bounded, found.buried) == (0, False, None)
    before = server_now(database)
    controls.note_size("one", 5, is_bounded=True)
    assert controls.note_burial("one") is True
    found = controls.read()
    assert (found.processes, found.is_bounded) == (5, True)
    assert before <= found.buried <= server_now(database)


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda link: HistoryStore(link).find({"$bad": 1j}), "reading the history"),
        (lambda link: SpecDocuments(link).change("a", 1j, {}, [], by="", via=""), "changing the spec 'a'"),
        (lambda link: SpecDocuments(link).remove("a", 1j), "removing the spec 'a'"),
        (lambda link: ControlStore(link).set({"x": 1j}), "changing what holds for the whole fleet"),
        (lambda link: ProcessStore(link).beat("p", {"x": 1j}, 5), "saying that this process lives"),
        (lambda link: FleetHitsStore(link).give_back({"x": 1j}, "p", 1, 5), "giving fleet hits back"),
    ],
)  # fmt: skip
def test_what_the_driver_can_not_do_is_told_with_what_was_tried_and_where(link, call, words):
    with pytest.raises(StoreError) as caught:
        call(link)
    assert str(caught.value).startswith(words)
    assert f"'{link.collection.full_name}'" in str(caught.value)
    assert isinstance(caught.value.__cause__, bson.errors.InvalidDocument)
