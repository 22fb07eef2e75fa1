"""The collection of specs: what its stores read, write and leave alone."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import bson
import mongomock
import pymongo
import pytest
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import ReadPreference, WriteConcern
from pymongo.errors import InvalidOperation
from pymongo.read_concern import ReadConcern

from diagnose.errors import SpecError, StoreError
from diagnose_mongo import documents
from diagnose_mongo.store import (
    Inspector,
    Link,
    SpecDocuments,
    SpecStore,
    TidyingStore,
    Undecodable,
    link_to,
    spec_store,
)
from diagnose_mongo.store import change_stream as stream
from diagnose_mongo.store.link import short

DAY = timedelta(days=1)
VERSION = datetime(2026, 11, 23, 12, 0)


@pytest.fixture
def specs(database):
    return database["specs"]


@pytest.fixture
def store(specs):
    return SpecStore(Link(specs))


@pytest.fixture
def tidying(specs):
    return TidyingStore(Link(specs))


def mocked():
    return mongomock.MongoClient()["d"]["specs"]


def entry(state="installed", version=VERSION, **more):
    return {"lm": version, "state": state, "err": None} | more


def lives(database, *process_ids, seconds=60):
    now = database.command("hello")["localTime"]
    for process_id in process_ids:
        database["processes"].insert_one(
            {"_id": process_id, "expires": now + timedelta(seconds=seconds)}
        )


def broken(spec_id="bad", field="x"):
    """As a client may have written it: bytes in the old form, with another length inside."""
    made = {"_id": spec_id, "lastmodified": VERSION} | {field: bson.Binary(b"XXXX", 2)}
    raw, inside = bson.encode(made), b"\x04\x00\x00\x00XXXX"
    assert raw.count(inside) == 1
    return RawBSONDocument(raw.replace(inside, b"\x09\x00\x00\x00XXXX"))


# --- reading ------------------------------------------------------------------------------------


def test_a_look_has_every_version_and_what_holds_for_the_fleet(store, specs, database):
    specs.insert_many([{"_id": 1, "lastmodified": VERSION, "x": 1}, {"_id": 2}, {"_id": {"a": 1}}])
    database["control"].insert_many(
        [{"_id": "fleet", "period": 5}, {"_id": "lease", "holder": "p"}, {"_id": "more", "x": 1}]
    )
    versions, control = store.look()
    assert versions == [(1, VERSION), (2, None), ({"a": 1}, None)]
    assert versions == store.versions()
    assert (control.period, control.holder) == (5.0, "p")
    assert store.look() == (versions, control)
    specs.delete_one({"_id": 2})
    assert store.look()[0] == [(1, VERSION), ({"a": 1}, None)]
    database["control"].update_one({"_id": "fleet"}, {"$set": {"paused": True}})
    assert store.look()[1].paused


def test_a_look_in_a_collection_of_another_name_asks_the_control_beside_it(database):
    database["control"].insert_one({"_id": "fleet", "period": 5})
    database["mine_control"].insert_one({"_id": "fleet", "period": 7})
    assert SpecStore(Link(database["mine"])).look()[1].period == 7.0


def deep(levels):
    value = 1
    for _ in range(levels):
        value = {"x": value}
    return value


def test_an_id_of_too_many_levels_is_left_out_and_told_once(store, specs, caplog):
    specs.insert_many([{"_id": deep(100)}, {"_id": deep(101)}, {"_id": "a"}])
    for _ in range(2):
        assert {str(raw_id) for raw_id, _ in store.versions()} == {"a", str(deep(100))}
    assert caplog.text.count("is left out, for its _id has too many levels") == 1


def test_specs_are_fetched_without_what_processes_have_written(store, specs):
    whole = {"_id": "a", "lastmodified": VERSION, "x": 1, "z": {"y": 2}, "w": 3}
    specs.insert_many([whole | {"applied": {"p": 1}, "counts": {}}, {"_id": "b"}, {"_id": "c"}])
    assert store.fetch(["a", "b", "nowhere"]) == [("a", whole), ("b", {"_id": "b"})]
    assert store.fetch(["a"], ["x", "z"]) == [("a", {"_id": "a", "x": 1, "z": {"y": 2}})]
    for odd in ("a.b", "$x", ""):  # of these none can be asked for
        assert store.fetch(["a"], ["x", odd]) == [("a", whole)]
    assert store.fetch([]) == []


def test_very_many_are_fetched_in_parts(store, specs):
    specs.insert_many([{"_id": i} for i in range(2_001)])
    assert [raw_id for raw_id, _ in store.fetch(range(2_001))] == list(range(2_001))


def test_mongomock_gives_whole_documents_and_holds_nothing_for_the_fleet():
    collection = mocked()
    collection.insert_one({"_id": "a", "x": 1, "applied": {"p": 1}, "lastmodified": VERSION})
    store = spec_store(link_to(collection))
    assert store.look()[0] == [("a", VERSION)]
    assert store.look()[1].period == 0.0
    assert store.fetch(["a"], ["lastmodified"]) == [
        ("a", {"_id": "a", "x": 1, "lastmodified": VERSION})
    ]


def test_the_entries_of_a_process_are_found_in_all_specs(store, specs):
    specs.insert_many(
        [
            {"_id": "a", "applied": {"me": entry(), "other": entry("done")}},
            {"_id": "b", "applied": {"other": entry()}},
            {"_id": "c", "applied": [{"me": entry()}]},
            {"_id": "d", "applied": None},
            {"_id": True, "applied": {"me": entry("error")}},
        ]
    )
    assert store.entries("me") == {"a": entry(), documents.key_of(True): entry("error")}


# --- documents that can't be decoded ------------------------------------------------------------


@pytest.mark.parametrize("field", ["x", "lastmodified"])
def test_a_document_that_can_not_be_decoded_is_read_as_such_and_others_as_they_are(
    store, specs, field, caplog
):
    specs.insert_many([{"_id": 1, "lastmodified": VERSION}, broken("bad", field), {"_id": 2}])
    versions = store.look()[0]
    wanted = VERSION if field == "x" else "can't be decoded"
    assert dict(versions) == {1: VERSION, "bad": wanted, 2: None}
    assert dict(store.versions()) == dict(versions)
    found = dict(store.fetch([1, "bad", 2]))
    assert found[1] == {"_id": 1, "lastmodified": VERSION}
    assert found[2] == {"_id": 2}
    assert isinstance(found["bad"], Undecodable)
    assert found["bad"].reason
    assert caplog.text == ""


def test_what_holds_for_the_fleet_is_read_beside_a_document_that_can_not_be(store, specs, database):
    specs.insert_one(broken("bad", "lastmodified"))
    database["control"].insert_one({"_id": "fleet", "period": 5})
    versions, control = store.look()
    assert versions == [("bad", "can't be decoded")]
    assert control.period == 5.0


def test_an_id_that_can_not_be_decoded_is_told_once_and_others_are_read(store, specs, caplog):
    specs.insert_many([{"_id": 1, "lastmodified": VERSION}, broken(field="_id")])
    for _ in range(2):
        assert store.versions() == [(1, VERSION)]
    assert caplog.text.count("is left out, for its _id can't be decoded: ") == 1


# --- writing ------------------------------------------------------------------------------------


def applied(specs, spec_id="a"):
    return specs.find_one({"_id": spec_id})["applied"]


def test_entries_are_written_and_erased_beside_those_of_others(store, specs):
    specs.insert_many(
        [{"_id": i, "applied": {"other": 1, "me": 0}} for i in "abc"] + [{"_id": "d"}]
    )
    refused = store.write("me", [("a", entry()), ("d", entry("done"))], erased=["b", "nowhere"])
    assert refused == []
    assert applied(specs) == {"other": 1, "me": entry()}
    assert applied(specs, "b") == {"other": 1}
    assert applied(specs, "c") == {"other": 1, "me": 0}
    assert applied(specs, "d") == {"me": entry("done")}
    assert store.write("me", []) == []


@pytest.mark.parametrize(("room", "is_written"), [(3, True), (2, False), (0, False), (None, True)])
def test_an_entry_is_written_only_where_there_is_room(store, specs, room, is_written):
    specs.insert_many(
        [
            {"_id": "a", "applied": {"one": 1, "two": 2}},
            {"_id": "mine", "applied": {"one": 1, "two": 2, "me": 3}},
            {"_id": "empty"},
        ]
    )
    store.write("me", [(each, entry()) for each in ("a", "mine", "empty")], room=room)
    assert ("me" in applied(specs)) is is_written
    assert applied(specs, "mine")["me"] == entry()
    assert ("applied" in specs.find_one({"_id": "empty"})) is (room != 0)


@pytest.mark.parametrize("odd", [None, "x", 5, [1], [{"a": 1}], []])
def test_an_applied_that_is_no_document_becomes_one(store, specs, odd):
    specs.insert_many([{"_id": "a", "applied": odd}, {"_id": "b", "applied": {"x": 1}}])
    assert store.write("me", [("a", entry()), ("b", entry())]) == []
    assert applied(specs) == {"me": entry()}
    assert applied(specs, "b") == {"x": 1, "me": entry()}


def test_a_document_that_takes_no_entry_is_told_with_the_reason(store, specs):
    room = 16 * 2**20 - len(bson.encode({"_id": "large", "x": ""}))
    specs.insert_many([{"_id": "a"}, {"_id": "large", "x": "x" * room}, {"_id": "strict", "s": 1}])
    specs.database.command(
        "collMod", "specs", validator={"$or": [{"s": {"$exists": False}}, {"applied": None}]}
    )
    refused = store.write("me", [(each, entry()) for each in ("large", "a", "strict")])
    assert [each.raw_id for each in refused] == ["large", "strict"]
    assert all(each.is_lasting and each.reason for each in refused)
    assert applied(specs) == {"me": entry()}


# --- for the whole fleet ------------------------------------------------------------------------


def test_entries_of_the_dead_are_counted_and_removed(tidying, specs, database):
    lives(database, "p1", "p2")
    lives(database, "dead", seconds=-1)
    specs.insert_many(
        [
            {"_id": "a", "applied": {"p1": 1, "dead": 1, "gone": 1}},
            {"_id": "b", "applied": {"p1": 1, "p2": 1}},
            {"_id": "c", "applied": {"gone": 1, "not an id": 1}},
            {"_id": "d", "applied": [1]},
            {"_id": "e", "applied": None},
            {"_id": "f"},
        ]
    )
    assert tidying.remove_entries_of_dead() == 3
    assert [each.get("applied") for each in specs.find().sort("_id")] == [
        {"p1": 1}, {"p1": 1, "p2": 1}, {"not an id": 1}, [1], None, None
    ]  # fmt: skip
    assert tidying.remove_entries_of_dead() == 0


def test_very_many_entries_of_the_dead_are_removed(tidying, specs, database):
    lives(database, "p0")
    specs.insert_one({"_id": "a", "applied": {f"p{i}": 1 for i in range(1_002)}})
    assert tidying.remove_entries_of_dead() == 1_001
    assert applied(specs) == {"p0": 1}


def test_of_very_many_entries_a_sample_and_some_failures_stay(tidying, specs):
    fine = {f"p{i}": entry() for i in range(5)}
    failed = {f"q{i}": entry("error", err="e") for i in range(5)}
    without = {"r": {"lm": VERSION}}
    specs.insert_many(
        [
            {"_id": "a", "applied": fine | failed | without},
            {"_id": "full", "applied": {"p4": entry(), "p3": entry(), "p2": 5}},
            {"_id": "one more", "applied": {"p4": entry(), "p3": entry(), "p2": 5, "p1": 6}},
            {"_id": "odd", "applied": [1, 2, 3, 4]},
        ]
    )
    tidying.bound_entries(["p1", "q4"], 1)
    assert applied(specs) == {name: (fine | failed)[name] for name in ("p1", "q4", "q0")}
    assert len(applied(specs, "full")) == 3
    assert applied(specs, "one more") == {"p1": 6}
    assert applied(specs, "odd") == [1, 2, 3, 4]


def test_counts_are_written_into_the_version_that_they_are_of(tidying, specs):
    specs.insert_many([{"_id": i, "lastmodified": VERSION, "counts": {"x": 1}} for i in "abc"])
    tidying.note_counts([("a", VERSION, {"done": 2}), ("b", VERSION - DAY, {"done": 3})])
    tidying.note_counts([])
    assert [each["counts"] for each in specs.find().sort("_id")] == [
        {"done": 2},
        {"x": 1},
        {"x": 1},
    ]


@pytest.mark.parametrize("percent", [None, 20.0])
def test_a_stage_is_a_new_version_that_says_what_it_came_from(specs, percent):
    store = SpecDocuments(Link(specs))
    before = {"_id": "a", "lastmodified": VERSION, "stage": {"name": "x", "left over": 1}}
    specs.insert_one(before)
    stage = {"name": "taken back", "reason": "$why", "began": VERSION - DAY, "percent": percent}
    assert store.set_stage("a", VERSION - DAY, by="p", **stage) is False
    assert specs.find_one() == before
    assert store.set_stage("a", VERSION, by="$p", **stage) is True
    found = specs.find_one()
    assert found["lastmodified"] > VERSION
    assert (found["changed"]["by"], found["changed"]["via"]) == ("$p", "canary")
    if percent is None:
        del stage["percent"]
    assert found["stage"] == stage | {"version": found["lastmodified"]}


# --- looks of people ----------------------------------------------------------------------------


def test_a_server_says_what_it_is(specs):
    found = Inspector(Link(specs)).server()
    assert re.fullmatch(r"\d+\.\d+\.\d+", found.version)
    assert found.replica_set == specs.database.command("hello")["setName"]
    assert 0 < found.round_trip < 30
    assert abs(found.ahead) < 1 + found.round_trip


def test_indexes_validators_and_rights_are_told(specs, database):
    inspector = Inspector(Link(specs))
    assert inspector.indexes("specs") is None
    specs.insert_one({"_id": "a"})
    assert inspector.indexes("specs") == {"_id_"}
    database["history"].create_index("at")
    assert inspector.indexes("history") == {"_id_", "at_1"}
    assert inspector.has_validator() is False
    database.command("collMod", "specs", validator={"_id": {"$exists": True}})
    assert inspector.has_validator() is True
    assert inspector.may("specs", write=True) is True
    assert inspector.may("history", write=False) is True
    assert specs.find_one() == {"_id": "a"}


def test_a_spec_is_found_by_all_that_people_may_call_it(specs):
    store = SpecDocuments(Link(specs))
    made = ObjectId()
    specs.insert_many(
        [
            *[{"_id": each} for each in ("a", made, 5, -5, "9", 9, 2**63 - 1)],
            {"_id": 7, "id": "named"},
            {"_id": 8, "id": "a"},
        ]
    )
    found = {
        text: store.raw_id(text)
        for text in ("a", str(made), "5", "-5", "named", "9", str(2**63 - 1))
    }
    assert found == {
        "a": "a", str(made): made, "5": 5, "-5": -5, "named": 7, "9": "9",
        str(2**63 - 1): 2**63 - 1,
    }  # fmt: skip
    for text in ("nowhere", str(ObjectId()), "6", str(2**63), "--5", "5.0"):
        assert store.raw_id(text) is None


def test_a_spec_is_found_by_its_id_or_its_name_and_read_without_entries(specs):
    store = SpecDocuments(Link(specs))
    specs.insert_many(
        [
            {"_id": "a", "applied": {"p": 1}, "x": 1},
            {"_id": 5, "id": "named"},
            {"_id": 6, "id": "a"},
        ]
    )
    assert store.found("a") == {"_id": "a", "x": 1}
    assert store.found("named") == {"_id": 5, "id": "named"}
    with pytest.raises(SpecError, match="there is no spec 'c' in ") as caught:
        store.found("c")
    assert caught.value.code == "spec-not-found"


def test_specs_are_listed_with_how_many_processes_are_in_which_state(specs):
    specs.insert_many(
        [
            {
                "_id": "a",
                "lastmodified": VERSION,
                "acts": "a field of somebody's",
                "applied": {
                    "p0": entry(), "p1": entry(), "p2": entry("error"), "p3": {"lm": VERSION},
                    "p4": entry("done", VERSION - DAY),
                },
            },
            {"_id": 1, "lastmodified": VERSION + DAY, "applied": {"p": entry("done", VERSION + DAY, acts=True)}},
            {"_id": "counted", "applied": {"p": entry()}, "counts": {"done": 9}, "x": 1},
            {"_id": "odd", "lastmodified": VERSION - DAY, "applied": [1], "counts": 5},
        ]
    )  # fmt: skip
    assert Inspector(Link(specs)).specs() == [
        {"_id": 1, "lastmodified": VERSION + DAY, "acts": True, "states": {"done": 1}},
        {"_id": "a", "lastmodified": VERSION, "states": {"installed": 3, "error": 1, "behind": 1}},
        {"_id": "odd", "lastmodified": VERSION - DAY, "states": {}},
        {"_id": "counted", "x": 1, "states": {"done": 9}},
    ]


# --- the link -----------------------------------------------------------------------------------


def test_the_clock_of_the_server_goes_on_by_itself(database, specs):
    clock = Link(specs).clock()
    before = clock.now()
    server = database.command("hello")["localTime"].replace(tzinfo=UTC)
    assert abs(before - server) < timedelta(seconds=5)
    assert before <= clock.now() <= before + timedelta(seconds=30)
    assert link_to(mocked()).clock() is None


def test_a_forked_child_has_the_same_collection_with_a_client_of_its_own(specs, database):
    options = {
        "write_concern": WriteConcern(w=1, j=True),
        "read_concern": ReadConcern("majority"),
        "read_preference": ReadPreference.SECONDARY_PREFERRED,
    }
    link = Link(database.get_collection("specs", **options), timeout=3.5)
    own = link.reopened()
    try:
        assert own.collection.database.client is not database.client
        assert own.collection.full_name == specs.full_name
        assert {name: getattr(own.collection, name) for name in options} == options
        assert (own.is_owned, own.timeout, link.is_owned) == (True, 3.5, False)
        own.collection.insert_one({"_id": "a"})
        assert specs.find_one() == {"_id": "a"}
    finally:
        own.close()
    link.close()  # the client is the application's
    assert specs.find_one() == {"_id": "a"}
    with pytest.raises(InvalidOperation):
        own.collection.find_one()
    mock = link_to(mocked())
    assert mock.reopened() is mock
    assert link_to(mock) is mock


# --- change streams -----------------------------------------------------------------------------


def test_changes_of_specs_are_followed_and_entries_are_not(specs, monkeypatch):
    monkeypatch.setattr(stream, "_AWAIT_MS", 100)
    specs.insert_one({"_id": "a", "lastmodified": VERSION})
    looks = []
    following = stream.follow(Link(specs), lambda: bool(looks) and looks.pop())
    next(following)  # it is open
    specs.update_one({"_id": "a"}, {"$set": {"applied": {"me": 1}}})
    specs.update_one({"_id": "a"}, {"$set": {"lastmodified": VERSION + DAY}})
    specs.insert_one({"_id": "b"})
    specs.replace_one({"_id": "b"}, {"_id": "b", "x": 1})
    specs.update_one({"_id": "a"}, {"$unset": {"applied": ""}})
    specs.delete_one({"_id": "b"})
    for _ in range(4):
        next(following)
    looks += [True, False, False, False]  # it is over at the fourth
    assert list(following) == []


def test_what_can_not_be_followed_is_told():
    with pymongo.MongoClient("mongodb://127.0.0.1:1", serverSelectionTimeoutMS=1) as client:
        specs = client["d"]["specs"]
        with pytest.raises(StoreError, match=r"collection 'd\.specs' failed: .*a replica set"):
            next(stream.follow(Link(specs), lambda: False))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x" * 300, "x" * 300),
        ("x" * 301, "x" * 297 + "..."),
        ("no server (configured timeouts: 1 s), Timeout: 5s", "no server"),
        ("no server, Timeout: 5s, Topology", "no server"),
    ],
)
def test_an_error_of_the_driver_is_told_in_a_line(text, shown):
    assert short(ValueError(text)) == shown
