"""Changes of specs and their history; on a real server."""

from __future__ import annotations

import getpass
import socket
import threading
from datetime import UTC, datetime, timedelta

import pytest
from bson import ObjectId
from pymongo.errors import OperationFailure
from waiting import wait_until

from diagnose.errors import SpecError, StoreError
from diagnose.instruments import ProbeTestInstrument
from diagnose_mongo import history as records
from diagnose_mongo.changes import add, change, difference, history, new_id, remove
from diagnose_mongo.store import HistoryStore, Link, SpecDocuments
from diagnose_mongo.worker.manager import MongoInstrumentManager


@pytest.fixture
def process(specs, shop):
    """Makes a manager that stands for a process; the first that applies does the chores."""
    made = []

    def make(process_id, **options):
        manager = MongoInstrumentManager(specs, process_id=process_id, **options)
        manager.instrument_classes["seen"] = ProbeTestInstrument
        made.append(manager)
        return manager

    yield make
    for manager in made:
        manager.stop()


def spec(spec_id="a", **fields):
    return {
        "_id": spec_id,
        "target": "probed_shop.double",
        "instrument": {"type": "seen", "name": "n", "value": "result"},
        "lifespan": 10,
    } | fields


def by_hand(spec_id="a", **fields):
    """As people insert it."""
    return spec(spec_id, lastmodified=datetime.now(UTC).replace(microsecond=0)) | fields


def told(specs, spec_id=None):
    """Of each change, the oldest first: action, via, by."""
    return [(e.action, e.via, e.by) for e in reversed(history(specs, spec_id))]


def fails_once(monkeypatch, name):
    """As if the process were killed just before it does that."""
    store = HistoryStore if name.startswith("note") else SpecDocuments
    whole = getattr(store, name)

    def fail(self, *arguments):
        monkeypatch.setattr(store, name, whole)
        raise StoreError("killed")

    monkeypatch.setattr(store, name, fail)


# --- through the library ------------------------------------------------------------------------


def test_what_is_added_changed_and_removed_is_recorded_with_the_difference(specs):
    made = add(specs, spec(), by="ann@box")
    document = specs.find_one()
    assert made.version == document["lastmodified"] == document["changed"]["version"]
    assert document["changed"]["by"] == document["created_by"] == "ann@box"
    assert abs(made.version.replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(seconds=30)
    changed = change(
        specs, "a", {"limits.rate": 5, "lifespan": None}, unset=["instrument.name"], by="bob@box"
    )
    document = specs.find_one()
    assert changed.version == document["lastmodified"] == document["changed"]["version"]
    assert changed.version > made.version
    assert (document["limits"], document["lifespan"]) == ({"rate": 5}, None)
    assert document["instrument"] == {"type": "seen", "value": "result"}
    remove(specs, "a", by="cat@box")
    assert specs.find_one() is None
    removed, then, first = history(specs, "a")
    assert [first.action, then.action, removed.action] == ["add", "change", "remove"]
    assert [first.by, then.by, removed.by] == ["ann@box", "bob@box", "cat@box"]
    assert {"field": "instrument.type", "new": "seen"} in first.difference
    assert then.difference == (
        {"field": "instrument.name", "old": "n"},
        {"field": "lifespan", "old": 10, "new": None},
        {"field": "limits.rate", "new": 5},
    )
    assert {"field": "limits.rate", "old": 5} in removed.difference
    assert (then.version, then.at, removed.version) == (changed.version,) * 3
    assert removed.at > then.at
    assert {e.via for e in history(specs)} == {"library"}


def test_who_it_was_is_found_out_if_nobody_says(specs):
    add(specs, spec())
    assert history(specs)[0].by == f"{getpass.getuser()}@{socket.gethostname()}"


def test_a_spec_without_an_id_gets_one_that_can_be_read(specs):
    document = spec()
    del document["_id"]
    made = add(specs, document | {"target": "shop.cart.Cart.check_out"})
    assert made.spec_id.startswith("cart-check-out-")
    assert specs.find_one()["_id"] == made.spec_id


@pytest.mark.parametrize(
    ("target", "begin"),
    [("a.b.__init__", "b-init-"), ("", "spec-"), ("é.ü", "spec-"), ("f" * 99, "f" * 40)],
)
def test_ids_are_short_and_plain_whatever_the_target(target, begin):
    found = new_id(target)
    assert found.startswith(begin)
    assert found.replace("-", "").isalnum()
    assert len(found) <= 45


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({"target": 5}, "target-type"),
        ({"lifespan": "x"}, "bad-lifespan"),
        ({"instrument": None}, "missing-instrument"),
        ({"applied": {}}, "reserved-field"),
        ({"_id": None}, "id-missing"),
    ],
)
def test_what_is_no_spec_is_not_written(specs, document, code):
    with pytest.raises(SpecError) as caught:
        add(specs, spec() | document)
    assert caught.value.code == code
    assert specs.find_one() is None
    assert history(specs) == []


def test_a_change_that_would_make_it_no_spec_is_not_written(specs):
    add(specs, spec())
    before = specs.find_one()
    with pytest.raises(SpecError, match="lifespan must be"):
        change(specs, "a", {"lifespan": -1})
    with pytest.raises(SpecError, match="target is missing"):
        change(specs, "a", {}, unset=["target"])
    with pytest.raises(SpecError, match="lastmodified, stage"):
        change(specs, "a", {"stage.name": "everywhere"}, unset=["lastmodified"])
    assert specs.find_one() == before
    assert len(history(specs)) == 1


def test_an_id_is_given_once(specs):
    add(specs, spec())
    with pytest.raises(SpecError, match=r"'a' in 'test_.*' already") as caught:
        add(specs, spec())
    assert caught.value.code == "spec-exists"
    assert len(history(specs)) == 1


def test_what_is_not_there_can_be_neither_changed_nor_removed(specs):
    for attempt in (lambda: change(specs, "x", {}), lambda: remove(specs, "x")):
        with pytest.raises(SpecError, match="no spec 'x'") as caught:
            attempt()
        assert caught.value.code == "spec-not-found"


def test_a_version_can_be_expected(specs):
    first = add(specs, spec())
    aware = first.version.replace(tzinfo=UTC)
    second = change(specs, "a", {"comment": "x"}, expected_version=aware, by="ann@box")
    for attempt in (
        lambda: change(specs, "a", {"comment": "y"}, expected_version=first.version),
        lambda: remove(specs, "a", expected_version=first.version),
    ):
        with pytest.raises(SpecError, match="changed by ann@box") as caught:
            attempt()
        assert caught.value.code == "version-moved"
    assert specs.find_one()["comment"] == "x"
    remove(specs, "a", expected_version=second.version)


def test_texts_and_ids_are_taken_as_they_are(specs):
    odd = {"region": "$eu"}
    add(specs, spec(odd, comment="$comment", select={"service": ["$where"]}), by="$by", via="page")
    add(specs, spec("$x"))
    change(specs, odd, {"comment": "$$NOW", "select": {"host": "$h"}}, by="$by")
    document = specs.find_one({"_id": odd})
    assert (document["comment"], document["select"]) == ("$$NOW", {"host": "$h"})
    assert document["changed"]["by"] == "$by"
    change(specs, "$x", {"comment": "y"})
    remove(specs, odd)
    remove(specs, "$x")
    assert [e.spec_id for e in history(specs)] == ["$x", odd, "$x", odd, "$x", odd]


def test_what_goes_by_a_name_is_found_by_it_also_when_it_is_gone(specs):
    add(specs, spec(ObjectId(), id="cart"))
    change(specs, "cart", {"lifespan": 5})
    remove(specs, "cart")
    assert len(history(specs, "cart")) == 3
    assert len(history(specs, limit=2)) == 2


def test_entries_of_processes_stay_out_of_it(specs):
    add(specs, spec())
    specs.update_one({"_id": "a"}, {"$set": {"applied": {"web": {"state": "x"}}, "counts": {}}})
    change(specs, "a", {"lifespan": 5})
    assert specs.find_one()["applied"] == {"web": {"state": "x"}}
    assert history(specs)[0].difference == ({"field": "lifespan", "old": 10, "new": 5},)


def test_every_change_is_a_version_of_its_own_however_soon_it_comes(specs):
    add(specs, spec())
    store = SpecDocuments(Link(specs))
    seen, version = set(), specs.find_one()["lastmodified"]
    for i in range(100):
        version = store.change("a", version, {"comment": str(i)}, (), by="ann", via="library")[
            "lastmodified"
        ]
        seen.add(version)
    assert len(seen) == 100


def test_of_many_changes_at_once_none_is_lost(specs):
    add(specs, spec())

    def work(name):
        for i in range(5):
            change(specs, "a", {f"labels.{name}{i}": i})

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(specs.find_one()["labels"]) == 15
    entries = history(specs)
    assert len({e.version for e in entries}) == len(entries) == 16
    assert all(len(e.difference) == 1 for e in entries[:-1])


def test_differences_are_about_the_fields_that_differ():
    before = {"_id": 1, "a": {"b": 1, "c": {}}, "l": [1], "n": 1, "applied": {"x": 1}}
    after = {"_id": 1, "a": {"b": 2, "c": {"d": None}}, "l": [1, 2], "n": True, "changed": {}}
    assert difference(before, before) == []
    assert difference(before, after) == [
        {"field": "a.b", "old": 1, "new": 2},
        {"field": "a.c", "old": {}},
        {"field": "l", "old": [1], "new": [1, 2]},
        {"field": "n", "old": 1, "new": True},
        {"field": "a.c.d", "new": None},
    ]


# --- by hand ------------------------------------------------------------------------------------


def test_what_is_done_by_hand_is_noticed_and_recorded_once(process, specs):
    web, other = process("web"), process("other")
    specs.insert_one(by_hand())
    web.apply()
    assert told(specs) == [("add", "hand", None)]
    specs.update_one(
        {"_id": "a"}, {"$set": {"lifespan": 7}, "$currentDate": {"lastmodified": True}}
    )
    web.apply()
    web.apply()
    assert history(specs)[0].difference == ({"field": "lifespan", "old": 10, "new": 7},)
    specs.delete_one({"_id": "a"})
    web.apply()
    web.apply()
    assert told(specs) == [(what, "hand", None) for what in ("add", "change", "remove")]
    # Who takes the chores over finds nothing new.
    web.stop()
    other.apply()
    assert len(history(specs)) == 3


def test_what_happened_while_nobody_looked_is_recorded_by_the_next(process, specs):
    web, other = process("web"), process("other")
    specs.insert_many([by_hand("a"), by_hand("b"), by_hand("c")])
    web.apply()
    web.stop()
    specs.delete_one({"_id": "a"})
    specs.update_one({"_id": "b"}, {"$set": {"comment": "x"}})
    other.apply()
    assert told(specs, "a")[1:] == [("remove", "hand", None)]
    # Without another version, too.
    assert told(specs, "b")[1:] == [("change", "hand", None)]
    assert told(specs, "c")[1:] == []


def test_two_that_notice_the_same_record_it_once(specs):
    specs.insert_one(by_hand())
    go = threading.Barrier(2)

    def look():
        recorder = records.Recorder(Link(specs))
        go.wait()
        recorder.notice("a")

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told(specs) == [("add", "hand", None)]


def test_what_the_library_did_is_not_taken_for_the_work_of_a_hand(process, specs):
    web = process("web")
    add(specs, spec())
    web.apply()
    change(specs, "a", {"lifespan": 5})
    web.apply()
    change(specs, "a", {"lifespan": 6})
    change(specs, "a", {"lifespan": 7})
    web.apply()
    remove(specs, "a")
    web.apply()
    add(specs, spec())
    web.apply()
    actions = ["add", "change", "change", "change", "remove", "add"]
    assert [each[:2] for each in told(specs)] == [(action, "library") for action in actions]


def test_a_change_by_hand_is_not_hidden_by_one_of_the_library(specs):
    specs.insert_one(by_hand())
    change(specs, "a", {"lifespan": 5}, by="ann")
    specs.update_one({"_id": "a"}, {"$set": {"comment": "quick"}})
    remove(specs, "a", by="ann")
    assert told(specs) == [
        ("add", "hand", None),
        ("change", "library", "ann"),
        ("change", "hand", None),
        ("remove", "library", "ann"),
    ]
    assert history(specs)[1].difference == ({"field": "comment", "new": "quick"},)


def test_the_same_by_hand_again_is_recorded_again(process, specs):
    web = process("web")
    document = by_hand()
    for _ in range(2):
        specs.insert_one(dict(document))
        web.apply()
        specs.delete_one({"_id": "a"})
        web.apply()
    assert [each[0] for each in told(specs)] == ["add", "remove"] * 2


def test_a_spec_that_is_back_at_what_it_was_is_the_work_of_a_hand(process, specs):
    web = process("web")
    add(specs, spec())
    old = specs.find_one()
    change(specs, "a", {"lifespan": 5})
    web.apply()
    # As when the collection is restored from a backup.
    specs.replace_one({"_id": "a"}, old)
    web.apply()
    assert told(specs)[-1] == ("change", "hand", None)
    assert history(specs)[0].difference == ({"field": "lifespan", "old": 5, "new": 10},)


def test_specs_of_any_kind_are_noticed(process, specs):
    web = process("web")
    specs.insert_many([{"_id": 7}, {"_id": {"n": "$x"}, "target": {"$y": 1}}, {"_id": None}])
    specs.insert_one({"_id": "big", "x": "y" * 2_000_000})
    deep = {}
    for _ in range(80):
        deep = {"d": deep}
    specs.insert_one({"_id": "deep", "x": deep})
    web.apply()
    assert len(history(specs)) == 5
    specs.update_one({"_id": "big"}, {"$set": {"x": "z" * 2_000_000}})
    change_count = specs.update_many({}, {"$set": {"comment": "x"}}).modified_count
    web._session._polls = 60
    web.apply()
    assert len(history(specs)) == 5 + change_count
    specs.delete_many({})
    web.apply()
    assert len(history(specs)) == 15
    assert not web._session.outage.is_on


def test_many_changes_do_not_hold_up_polls(process, specs, monkeypatch):
    monkeypatch.setattr(records, "_NOTICED_AT_ONCE", 5)
    web = process("web")
    specs.insert_many([by_hand(str(i), target=5) for i in range(12)])
    counts = []
    for _ in range(3):
        web.apply()
        counts.append(len(history(specs)))
    specs.delete_many({})
    for _ in range(3):
        web.apply()
        counts.append(len(history(specs)))
    assert counts == [5, 10, 12, 17, 22, 24]


# --- canaries -----------------------------------------------------------------------------------


def test_steps_of_a_canary_are_recorded_as_such(process, specs):
    web = process("web")
    add(specs, spec(canary={"percent": 100, "for": 0.0001}))

    def is_everywhere():
        web.apply()
        return specs.find_one().get("stage", {}).get("name") == "everywhere"

    wait_until(is_everywhere)
    web.apply()
    entry = history(specs)[0]
    assert (entry.action, entry.via, entry.by) == ("change", "canary", "web")
    assert entry.version == specs.find_one()["lastmodified"]
    assert {"field": "stage.name", "new": "everywhere"} in entry.difference


# --- crashes ------------------------------------------------------------------------------------


def test_a_crash_before_the_entry_is_made_up_for(process, specs, monkeypatch):
    web = process("web")
    fails_once(monkeypatch, "note")
    add(specs, spec(), by="ann", via="command")
    assert history(specs) == []
    web.apply()
    assert told(specs) == [("add", "command", "ann")]
    fails_once(monkeypatch, "note")
    change(specs, "a", {"lifespan": 5}, by="bob", via="page")
    web.apply()
    assert told(specs)[1:] == [("change", "page", "bob")]
    entry = history(specs)[0]
    assert entry.difference == ({"field": "lifespan", "old": 10, "new": 5},)
    assert entry.at == entry.version == specs.find_one()["lastmodified"]


def test_a_crash_before_the_entry_of_a_large_document_is_made_up_for(process, specs, monkeypatch):
    web = process("web")
    add(specs, spec(comment="x" * 2_000_000))
    fails_once(monkeypatch, "note")
    change(specs, "a", {"lifespan": 5}, by="bob")
    web.apply()
    assert told(specs)[1:] == [("change", "library", "bob")]


def test_a_crash_before_a_removal_is_found_out_later(process, specs, database, monkeypatch):
    web = process("web")
    add(specs, spec(), by="ann")
    web.apply()
    fails_once(monkeypatch, "remove")
    with pytest.raises(StoreError, match="killed"):
        remove(specs, "a", by="ann")
    web.stop()
    web.apply()
    # It may still be about to happen.
    assert history(specs)[0].failed is None
    database["history"].update_one(
        {"action": "remove"}, {"$set": {"at": datetime.now(UTC) - timedelta(minutes=2)}}
    )
    database["history"].update_one(
        {"action": "add"}, {"$set": {"at": datetime.now(UTC) - timedelta(minutes=3)}}
    )
    web.apply()
    assert history(specs)[0].failed == "the spec was not removed"
    specs.delete_one({"_id": "a"})
    web.apply()
    assert told(specs)[-1] == ("remove", "hand", None)


def test_a_removal_that_is_refused_says_so(specs, monkeypatch):
    add(specs, spec())

    def refuse(self, raw_id, version):
        raise StoreError("not allowed") from OperationFailure("not authorized", 13)

    monkeypatch.setattr(SpecDocuments, "remove", refuse)
    with pytest.raises(StoreError, match="not allowed"):
        remove(specs, "a")
    assert history(specs)[0].failed == "not allowed"
    assert specs.find_one() is not None


def test_a_marker_that_somebody_made_up_or_left_is_none(process, specs):
    web = process("web")
    for i, marker in enumerate([5, {}, {"id": 1}, {"id": None, "via": "x"}, {"id": 1, "via": 3}]):
        specs.insert_one(by_hand(str(i), changed=marker))
    web.apply()
    assert told(specs) == [("add", "hand", None)] * 5
