from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
import types
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import ClassVar

import bson
import mongomock
import pymongo
import pytest
from bson.raw_bson import RawBSONDocument
from modules import spec
from waiting import wait_for_documents, wait_until

import diagnose_mongo
from diagnose import probes
from diagnose.errors import StoreError
from diagnose.instruments import ProbeTestInstrument
from diagnose_mongo import documents, store
from diagnose_mongo.worker.manager import MongoInstrumentManager
from diagnose_mongo.worker.polling import Poller, phase_of


class Seen(ProbeTestInstrument):
    results_by_name: ClassVar[dict[str, list]] = {}

    def emit(self, name, value, tags):
        self.results_by_name.setdefault(name, []).append(value)


def seen(name="n"):
    return Seen.results_by_name.get(name, [])


@pytest.fixture(autouse=True)
def nothing_is_seen():
    Seen.results_by_name = {}


@pytest.fixture(params=["mongomock", "mongod"])
def specs(request):
    """A collection; what can be done with both kinds is tested with both."""
    if request.param == "mongomock":
        return mongomock.MongoClient()["diagnose"]["specs"]
    return request.getfixturevalue("database")["specs"]


@pytest.fixture
def real(database):
    return database["specs"]


@pytest.fixture
def manage(shop):
    made = []

    def make(collection, process_id="me", **options):
        manager = MongoInstrumentManager(collection, process_id=process_id, **options)
        manager.instrument_classes["seen"] = Seen
        made.append(manager)
        return manager

    yield make
    for manager in made:
        manager.stop()


def entry(collection, spec_id="a", process_id="me"):
    return collection.find_one({"_id": spec_id})["applied"][process_id]


# --- what works with both kinds of collection ---------------------------------------------------


def test_a_spec_is_read_applied_and_reported(specs, manage, shop):
    manager = manage(specs)
    specs.insert_one(spec())
    manager.apply()
    shop.double(4)
    assert seen() == [8]
    found = entry(specs)
    assert found["state"] == "installed"
    assert found["err"] is None
    assert found["lm"] == specs.find_one()["lastmodified"]
    assert abs(found["at"] - datetime.now(UTC).replace(tzinfo=None)) < timedelta(minutes=1)
    manager.apply()
    assert entry(specs)["state"] == "emitting"


def test_a_changed_spec_is_applied_and_a_removed_one_taken_off(specs, manage, shop):
    manager, original = manage(specs), shop.double.__code__
    specs.insert_one(spec())
    manager.apply()
    specs.update_one(
        {"_id": "a"},
        {
            "$set": {
                "instrument.value": "result + 1",
                "lastmodified": datetime.now(UTC) + timedelta(seconds=1),
            }
        },
    )
    manager.apply()
    assert entry(specs)["lm"] == specs.find_one()["lastmodified"]
    shop.double(1)
    assert seen() == [3]
    specs.delete_one({"_id": "a"})
    manager.apply()
    assert shop.double.__code__ is original


def test_nothing_is_read_or_written_where_nothing_changed(specs, manage, monkeypatch):
    manager = manage(specs)
    specs.insert_many([spec(str(i)) for i in range(3)])
    manager.apply()
    fetched, written = [], []
    inner = manager._session.connection.specs
    fetch, write = inner.fetch, inner._update
    monkeypatch.setattr(inner, "fetch", lambda ids: fetched.append(ids) or fetch(ids))
    monkeypatch.setattr(inner, "_update", lambda ups: written.append(ups) or write(ups))
    for _ in range(3):
        manager.apply()
    assert (fetched, written) == ([], [])
    specs.update_one({"_id": "1"}, {"$set": {"lastmodified": datetime(2020, 1, 1)}})
    manager.apply()
    assert fetched == [["1"]]
    assert len(written) == 1
    assert [query for query, _ in written[0]] == [{"_id": "1"}]


def test_every_sixtieth_poll_finds_edits_whose_author_forgot_lastmodified(specs, manage, shop):
    manager = manage(specs)
    specs.insert_one(spec())
    manager.apply()
    specs.update_one({"_id": "a"}, {"$set": {"instrument.value": "result + 1"}})
    for _ in range(59):
        manager.apply()
    shop.double(1)
    assert seen() == [2]
    manager.apply()
    shop.double(1)
    assert seen() == [2, 3]


def test_every_sixtieth_poll_writes_entries_again_that_somebody_lost(specs, manage):
    manager = manage(specs)
    specs.insert_many([spec("a"), spec("b")])
    manager.apply()
    specs.update_one({"_id": "a"}, {"$unset": {"applied": ""}})
    specs.update_one({"_id": "b"}, {"$set": {"applied.me.state": "nonsense"}})
    for _ in range(60):
        manager.apply()
    assert entry(specs, "a")["state"] == "installed"
    assert entry(specs, "b")["state"] == "installed"


def test_entries_of_other_processes_stay(specs, manage):
    specs.insert_one(spec(applied={"other": {"state": "emitting"}}))
    first, second = manage(specs, "first"), manage(specs, "second")
    first.apply()
    second.apply()
    first.stop()
    assert set(specs.find_one()["applied"]) == {"other", "second"}


def test_stop_takes_everything_back_and_start_begins_anew(specs, manage, shop):
    manager, original = manage(specs), shop.double.__code__
    specs.insert_one(spec())
    manager.apply()
    manager.stop()
    assert shop.double.__code__ is original
    assert specs.find_one()["applied"] == {}
    assert manager.specs == {}
    manager.stop()
    manager.apply()
    assert entry(specs)["state"] == "installed"


def test_what_an_earlier_process_of_the_same_name_left_is_brought_in_line(specs, manage):
    old = {"lm": None, "err": "old", "state": "error", "at": datetime(2020, 1, 1)}
    specs.insert_many(
        [
            spec("a", applied={"me": old}),
            spec("b", applied={"me": old}, select={"service": "another"}),
        ]
    )
    manage(specs).apply()
    assert entry(specs, "a")["state"] == "installed"
    assert specs.find_one({"_id": "b"})["applied"] == {}


def test_a_spec_for_other_processes_leaves_no_entry(specs, manage):
    specs.insert_many([spec("a", select={"service": "api"}), spec("b", select={"env": "te*"})])
    manage(specs, service="web", env="test").apply()
    assert "applied" not in specs.find_one({"_id": "a"})
    assert entry(specs, "b")["state"] == "installed"


def test_the_labels_are_those_of_the_program_or_the_environment(specs, manage, monkeypatch):
    monkeypatch.setenv("DIAGNOSE_VERSION", "1.2")
    manager = manage(specs, labels={"region": "eu"})
    assert manager.labels["version"] == "1.2"
    specs.insert_one(spec(select={"region": "eu", "version": ["1.1", "1.2"]}))
    manager.apply()
    assert entry(specs)["state"] == "installed"


def test_expressions_of_a_store_are_restricted_unless_the_program_says_otherwise(specs, manage):
    specs.insert_one(spec(value="x.__class__"))
    manage(specs, "careful").apply()
    manage(specs, "free", expression_policy="python").apply()
    assert entry(specs, process_id="careful")["code"] == "expression-not-admitted"
    assert entry(specs, process_id="free")["state"] == "installed"


def test_a_process_id_with_dots_and_dollars_becomes_a_field_name(specs, manage, caplog):
    specs.insert_one(spec())
    manager = manage(specs, "$web.1")
    manager.apply()
    assert manager.process_id == "_web_1"
    assert entry(specs, process_id="_web_1")["state"] == "installed"
    assert "'$web.1' is written as '_web_1'" in caplog.text


@pytest.mark.parametrize(
    "spec_id",
    [5, bson.Int64(2**40), True, 1.5, bson.ObjectId(b"twelve bytes"), b"x", "a.b$c"],
    ids=repr,
)
def test_an_id_of_any_type_works(specs, manage, shop, spec_id):
    made = spec(spec_id)
    del made["instrument"]["name"]
    specs.insert_one(made)
    manager = manage(specs)
    manager.apply()
    assert entry(specs, spec_id)["state"] == "installed"
    manager.stop()
    assert specs.find_one()["applied"] == {}


def test_an_id_may_be_a_document(real, manage, shop):
    test_an_id_of_any_type_works(real, manage, shop, {"region": "eu", "n": [1]})


def test_a_spec_is_called_by_its_field_id_if_it_has_one(specs, manage, shop):
    made = spec(bson.ObjectId(), id="cart-latency")
    del made["instrument"]["name"]
    specs.insert_one(made)
    manage(specs).apply()
    shop.double(1)
    assert seen("cart-latency") == [2]


def test_a_document_that_came_without_an_id_works(specs, manage):
    made = spec()
    del made["_id"]
    specs.insert_one(made)
    manage(specs).apply()
    assert specs.find_one()["applied"]["me"]["state"] == "installed"


BAD = [
    ({}, "missing-target"),
    ({"target": "probed_shop.doubel"}, "target-not-found"),
    ({"target": "probed_shop.double", "instrument": 5}, "wrong-type"),
    (spec(instrument={"type": "nope", "value": "1"}), "unknown-type"),
    (spec(lastmodified="yesterday"), "wrong-type"),
    (spec(lastmodified=None), "lastmodified-missing"),
    (spec(lifespan=float("nan")), "bad-lifespan"),
    (spec(lifespan=bson.Int64(2**62)), "bad-lifespan"),
    (spec(target="probed_shop"), "target-is-module"),
    (spec(target="os"), "target-is-module"),
    (spec(value="x ="), "expression-syntax"),
    (spec(target="?!"), "target-"),
]


def test_each_bad_spec_gets_its_own_entry_once_and_good_ones_are_applied(specs, manage):
    for i, (bad, _) in enumerate(BAD):
        specs.insert_one(bad | {"_id": f"bad{i}"})
    for i in range(5):
        specs.insert_one(spec(f"good{i}"))
    manager = manage(specs)
    manager.apply()
    for i, (_, code) in enumerate(BAD):
        found = entry(specs, f"bad{i}")
        if i == 1:
            assert found["code"] == "missing-instrument"
            continue
        assert found["state"] == "error", found
        assert found["code"].startswith(code), found
        assert found["err"]
    assert all(entry(specs, f"good{i}")["state"] == "installed" for i in range(5))
    before = repr(list(specs.find()))
    for _ in range(3):
        manager.apply()
    assert repr(list(specs.find())) == before


@pytest.mark.parametrize("applied", [None, 5, [], [{"me": 1}], "x"])
def test_an_applied_that_is_no_document_is_made_one(real, manage, applied):
    real.insert_many([spec("a", applied=applied), spec("b")])
    first, second = manage(real, "first"), manage(real, "second")
    first.apply()
    second.apply()
    for spec_id in "ab":
        assert entry(real, spec_id, "first")["state"] == "installed"
        assert entry(real, spec_id, "second")["state"] == "installed"


def test_an_error_at_run_time_reaches_the_document(specs, manage, shop):
    specs.insert_one(spec(value="1 / 0"))
    manager = manage(specs)
    manager.apply()
    shop.double(1)
    manager.apply()
    found = entry(specs)
    assert (found["state"], found["code"]) == ("error", "runtime-error")
    assert "ZeroDivisionError" in found["err"]


def test_a_text_that_is_no_unicode_does_not_keep_entries_from_being_written(specs, manage, shop):
    class Odd(Seen):
        def emit(self, name, value, tags):
            raise ValueError("\ud800" + "x" * 10_000)

    manager = manage(specs)
    manager.handle_error = lambda *_: None  # what is logged could not be handed on by xdist
    manager.instrument_classes["odd"] = Odd
    specs.insert_many([spec("a", instrument={"type": "odd", "value": "x"}), spec("b")])
    manager.apply()
    shop.double(1)
    manager.apply()
    before = entry(specs, "a")
    for _ in range(60):  # a poll that compares all is among them
        manager.apply()
    assert entry(specs, "a") == before
    assert "ValueError" in entry(specs, "a")["err"]
    assert len(entry(specs, "a")["err"]) <= 2000
    assert entry(specs, "b")["state"] == "emitting"


# --- switched off -------------------------------------------------------------------------------


def test_the_variable_disarms_everything_while_it_is_set(specs, manage, shop, monkeypatch):
    original = shop.double.__code__
    specs.insert_one(spec())
    manager = manage(specs)
    manager.apply()
    monkeypatch.setenv("DIAGNOSE_DISABLED", "1")
    manager.apply()
    assert shop.double.__code__ is original
    found = entry(specs)
    assert found["state"] == "disabled"
    assert "DIAGNOSE_DISABLED" in found["warnings"][0]
    monkeypatch.setenv("DIAGNOSE_DISABLED", "0")
    manager.apply()
    assert entry(specs)["state"] == "installed"


def test_a_file_disarms_everything_while_it_exists(specs, manage, shop, monkeypatch, tmp_path):
    off = tmp_path / "off"
    monkeypatch.setenv("DIAGNOSE_DISABLE_FILE", str(off))
    specs.insert_one(spec())
    manager = manage(specs)
    manager.apply()
    shop.double(1)
    off.touch()
    manager.apply()
    shop.double(2)
    off.unlink()
    manager.apply()
    shop.double(3)
    assert seen() == [2, 6]


# --- what takes a real server -------------------------------------------------------------------


def test_a_poll_reads_no_documents_where_nothing_changed(real, manage):
    real.insert_many([spec(str(i), applied={f"p{n}": {} for n in range(50)}) for i in range(20)])
    manager = manage(real)
    manager.apply()
    real.database.command("profile", 2)
    manager.apply()
    real.database.command("profile", 0)
    own = list(real.database["system.profile"].find({"ns": real.full_name}))
    assert [each["command"].get("aggregate") for each in own] == ["specs"]
    assert own[0]["docsExamined"] <= 1  # the lease of the chores
    assert 20 <= own[0]["keysExamined"] <= 22  # the two documents that steer the fleet


def test_an_index_that_was_dropped_is_made_again(real, manage, caplog):
    manager = manage(real)
    real.insert_one(spec("a"))
    manager.apply()
    real.drop_index(documents.POLL_INDEX)
    real.insert_one(spec("b"))
    manager.apply()
    manager.apply()
    assert entry(real, "b")["state"] == "installed"
    assert documents.POLL_INDEX in real.index_information()
    assert not caplog.text


def test_an_index_that_may_not_be_made_is_done_without(real, manage, caplog, mongo_server):
    real.insert_one(spec())
    with pymongo.MongoClient(mongo_server.uri) as admin:
        admin.admin.command(
            "configureFailPoint",
            "failCommand",
            mode="alwaysOn",
            data={"failCommands": ["createIndexes"], "errorCode": 13, "appName": "no-index"},
        )
        try:
            with pymongo.MongoClient(mongo_server.uri, appname="no-index") as client:
                manager = manage(client[real.database.name]["specs"])
                for _ in range(61):
                    manager.apply()
                assert entry(real)["state"] == "installed"
                manager.stop()
        finally:
            admin.admin.command("configureFailPoint", "failCommand", mode="off")
    assert caplog.text.count("polls read whole documents") == 1


def test_dates_beyond_pythons_years_are_that_specs_error(real, manage):
    far = bson.datetime_ms.DatetimeMS(10**16)
    real.insert_many([spec("a", lastmodified=far), spec("b", comment=far), spec("c")])
    manage(real).apply()
    assert real.count_documents({"applied.me.state": "installed"}) == 2
    raw = real.with_options(
        codec_options=bson.CodecOptions(datetime_conversion=bson.DatetimeConversion.DATETIME_AUTO)
    ).find_one({"_id": "a"})
    assert raw["applied"]["me"]["code"] == "wrong-type"
    assert raw["applied"]["me"]["lm"] == far


def with_bytes(document, before, after):
    """The document as BSON with some bytes in it replaced: what a broken client may send."""
    raw = bson.encode(document)
    assert raw.count(before) == 1
    return RawBSONDocument(raw.replace(before, after))


def test_text_that_is_no_utf8_does_not_keep_other_specs_from_being_read(real, manage):
    real.insert_one(with_bytes(spec("a", comment="XXXX"), b"XXXX", b"\xff\xfe\xfd\xfc"))
    real.insert_one(with_bytes(spec("b", YYYY=1), b"YYYY", b"\xff\xfe\xfd\xfc"))
    real.insert_one(spec("c"))
    manage(real).apply()
    assert real.count_documents({"applied.me.state": "installed"}) == 3


def test_a_document_that_the_driver_can_not_decode_is_that_specs_error(real, manage, monkeypatch):
    real.insert_many([spec("a"), spec("b", comment="undecodable")])

    def decode(raw, options):
        if b"undecodable" in raw:
            raise bson.errors.InvalidBSON("what is this")
        return bson.decode(raw, options)

    monkeypatch.setattr(store.specs, "decode", decode)
    manager = manage(real)
    manager.apply()
    assert entry(real, "a")["state"] == "installed"
    found = entry(real, "b")
    assert (found["state"], found["code"]) == ("error", "undecodable")
    assert "what is this" in found["err"]
    before = list(real.find())
    manager.apply()
    assert list(real.find()) == before


def test_a_document_that_takes_no_entry_is_logged_once_and_blocks_no_other(real, manage, caplog):
    room = 16 * 2**20 - len(bson.encode(spec("b", comment="")))
    real.insert_many([spec("a"), spec("b", comment="x" * (room - 50)), spec("c")])
    manager = manage(real)
    for _ in range(61):
        manager.apply()
    assert entry(real, "a")["state"] == entry(real, "c")["state"] == "installed"
    assert "applied" not in real.find_one({"_id": "b"}, {"comment": 0})
    assert caplog.text.count("the spec 'b' takes no entry") == 1


def test_a_validator_that_refuses_entries_blocks_no_other(real, manage, caplog):
    real.insert_many([spec("a"), spec("b", strict=True)])
    real.database.command(
        "collMod",
        "specs",
        validator={"$or": [{"strict": {"$exists": False}}, {"applied": {"$exists": False}}]},
    )
    manager = manage(real)
    manager.apply()
    manager.apply()
    assert entry(real, "a")["state"] == "installed"
    assert caplog.text.count("the spec 'b' takes no entry") == 1


def test_times_are_those_of_the_server(real, manage, monkeypatch):
    real.insert_one(spec())
    real.update_one({"_id": "a"}, {"$currentDate": {"lastmodified": True}})
    manager = manage(real)

    class Ahead(datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + timedelta(hours=5)

    with monkeypatch.context() as patch:
        patch.setattr("diagnose.managers.datetime.datetime", Ahead)
        manager.apply()
    found = entry(real)
    assert found["state"] == "installed"
    assert abs(found["at"] - found["lm"]) < timedelta(minutes=1)


def test_a_client_that_makes_aware_dates_works_too(real, manage, mongo_server):
    zone = timezone(timedelta(hours=9))
    with pymongo.MongoClient(mongo_server.uri, tz_aware=True, tzinfo=zone) as client:
        manager = manage(client[real.database.name]["specs"])
        real.insert_one(spec())
        manager.apply()
        assert entry(real)["lm"] == real.find_one()["lastmodified"]
        manager.stop()


def test_a_thousand_specs_are_applied_in_a_few_round_trips(real, manage):
    real.insert_many([spec(f"s{i}", target=f"probed_shop.no{i}") for i in range(1500)])
    manage(real).apply()
    assert real.count_documents({"applied.me.code": "target-not-found"}) == 1500


# --- in the background --------------------------------------------------------------------------


def test_started_it_polls_by_itself_and_stop_ends_that(real, manage, shop):
    manager = manage(real, period=0.05)
    manager.start()
    manager.start()
    real.insert_one(spec())
    wait_for_documents(real, lambda found: "me" in found["a"].get("applied", {}))
    shop.double(1)
    wait_for_documents(real, lambda found: found["a"]["applied"]["me"]["state"] == "emitting")
    manager.stop()
    assert real.find_one()["applied"] == {}
    assert not probes.active_probes
    names = [thread.name for thread in threading.enumerate()]
    assert "APScheduler" not in names
    wait_until(lambda: "diagnose-poll" not in [thread.name for thread in threading.enumerate()])


def test_it_can_be_started_again(real, manage):
    manager = manage(real, period=0.05)
    real.insert_one(spec())
    for _ in range(2):
        with manager:
            wait_for_documents(real, lambda found: "me" in found["a"].get("applied", {}))
        assert real.find_one()["applied"] == {}


def test_apply_in_background_starts_it_with_that_period(real, manage):
    manager = manage(real, period=3600)
    manager.start()
    manager.apply_in_background(0.05)
    assert manager.period == 0.05
    real.insert_one(spec())
    wait_for_documents(real, lambda found: "me" in found["a"].get("applied", {}))


def test_what_is_no_collection_is_refused(database):
    for wrong in (database, database.client, None, "specs"):
        with pytest.raises(TypeError, match="must be a Collection of pymongo"):
            MongoInstrumentManager(wrong)


@pytest.mark.parametrize("period", [0, -1, float("nan"), float("inf")])
def test_a_period_that_is_none_is_refused(real, period):
    with pytest.raises(ValueError, match="period must be"):
        MongoInstrumentManager(real, period=period)


def test_start_makes_a_manager_with_a_client_of_its_own(real, shop, mongo_server):
    manager = diagnose_mongo.start(
        mongo_server.uri, real.database.name, process_id="me", period=0.05, service="web"
    )
    for _ in range(2):
        real.replace_one({"_id": "a"}, spec(select={"service": "web"}, instrument=LOG), upsert=True)
        wait_for_documents(real, lambda found: "me" in found["a"].get("applied", {}))
        manager.stop()
        assert real.find_one()["applied"] == {}
        manager.start()
    manager.stop()


LOG = {"type": "log", "name": "n", "value": "result"}


def test_a_uri_that_is_none_is_refused_without_showing_it():
    with pytest.raises(StoreError) as caught:
        diagnose_mongo.start("mongo://user:secret@host")
    assert caught.value.code == "store-uri"
    assert "secret" not in str(caught.value)


SCRIPT = """
import sys, statistics, diagnose_mongo
manager = diagnose_mongo.start(sys.argv[1], sys.argv[2], process_id="script", period=0.05)
print("started", flush=True)
sys.stdin.readline()
"""


def test_a_program_that_ends_takes_its_entries_along(real, mongo_server):
    real.insert_one(spec(target="statistics.mean", instrument=LOG))
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, mongo_server.uri, real.database.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        wait_for_documents(real, lambda found: "script" in found["a"].get("applied", {}))
        _, errors = process.communicate("\n")
    assert (process.returncode, errors) == (0, "")
    assert real.find_one()["applied"] == {}


def test_a_program_ends_at_once_though_no_mongodb_is_there():
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, "mongodb://127.0.0.1:1", "x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout.readline() == "started\n"
        _, errors = process.communicate("\n")
    assert (process.returncode, errors) == (0, "")
    assert time.monotonic() - began < 5


def test_the_package_says_what_to_install_if_the_driver_is_missing():
    code = (
        "import sys; sys.modules['pymongo'] = None\n"
        "import diagnose_mongo\n"
        "try: diagnose_mongo.start()\n"
        "except ImportError as exc: print(exc)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    assert "pip install 'diagnose-mongo[mongo]'" in said


# --- when to poll -------------------------------------------------------------------------------


def test_processes_poll_at_different_moments_of_a_period():
    phases = sorted(phase_of(f"web-{i}-x", 10) for i in range(1000))
    assert phases == sorted(phase_of(f"web-{i}-x", 10) for i in range(1000))
    gaps = [b - a for a, b in zip([0, *phases], [*phases, 10], strict=True)]
    assert max(gaps) < 0.2


def test_a_poller_calls_one_at_a_time_and_goes_on_after_an_error(caplog):
    calls, running, overlaps = threading.Semaphore(0), threading.Lock(), []

    def poll():
        if not running.acquire(blocking=False):
            overlaps.append(1)
        calls.release()
        time.sleep(0.02)
        running.release()
        raise OSError("once more")

    poller = Poller(poll, period=0.01, phase=0.0)
    poller.start()
    for _ in range(5):
        assert calls.acquire(timeout=20)
    poller.stop()
    poller.stop()
    assert not overlaps
    assert "once more" in caplog.text
    assert "maximum number of running instances" not in caplog.text


def test_a_poll_may_ask_to_be_called_sooner():
    calls = threading.Semaphore(0)

    def poll():
        calls.release()
        return 0.01

    poller = Poller(poll, period=3600, phase=0.0)
    poller.start()
    for _ in range(5):
        assert calls.acquire(timeout=20)
    poller.stop()


def test_a_poller_that_is_woken_calls_once_more_and_keeps_to_its_plan():
    begun, go = threading.Semaphore(0), threading.Semaphore(0)

    def poll():
        begun.release()
        assert go.acquire(timeout=20)

    poller = Poller(poll, period=3600, phase=0.0)
    poller.start()
    assert begun.acquire(timeout=20)
    wait_until(lambda: poller._scheduler.get_job("poll").next_run_time > datetime.now(UTC))
    planned = poller._scheduler.get_job("poll").next_run_time
    for _ in range(5):
        poller.wake()
    go.release()
    assert begun.acquire(timeout=20)
    assert poller._executor._due.empty()  # while a call is under way they are one
    poller.wake()
    go.release(2)
    assert begun.acquire(timeout=20)
    assert poller._scheduler.get_job("poll").next_run_time == planned
    poller.stop()
    poller.wake()  # nobody listens


def test_polls_go_on_when_the_clock_is_set_back(monkeypatch):
    from apscheduler.schedulers import base

    shift = timedelta()

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + shift

    monkeypatch.setattr(base, "datetime", Clock)
    monkeypatch.setattr("diagnose_mongo.worker.polling.datetime", Clock)
    real_time = time.time
    monkeypatch.setattr(
        "diagnose_mongo.worker.polling.time",
        types.SimpleNamespace(
            time=lambda: real_time() + shift.total_seconds(), monotonic=time.monotonic
        ),
    )
    calls = threading.Semaphore(0)
    poller = Poller(calls.release, period=0.05, phase=0.0)
    poller.start()
    assert calls.acquire(timeout=20)
    shift = timedelta(hours=-1)
    for _ in range(3):
        assert calls.acquire(timeout=20)
    poller.stop()


def test_what_apscheduler_has_to_say_about_each_run_stays_out_of_the_log(real, manage, caplog):
    caplog.set_level(logging.INFO)
    manager = manage(real, period=0.02)
    real.insert_one(spec())
    with manager:
        wait_for_documents(real, lambda found: "me" in found["a"].get("applied", {}))
    assert not [r for r in caplog.records if not r.name.startswith("diagnose")]
    assert not re.search("job|scheduler", caplog.text, re.IGNORECASE)


def test_a_manager_that_was_never_started_goes_away(real):
    import gc
    import weakref

    manager = MongoInstrumentManager(real)
    ref = weakref.ref(manager)
    del manager
    gc.collect()
    assert ref() is None


def test_two_managers_with_made_up_ids_are_two_processes_to_the_fleet(real, manage):
    real.insert_one(spec())
    manager = manage(real, process_id=None)
    manager.apply()
    (process_id,) = real.find_one()["applied"]
    assert str(os.getpid()) in process_id


def test_applying_logs_no_warning_where_all_is_well(specs, manage, caplog):
    specs.insert_one(spec())
    manager = manage(specs)
    for _ in range(3):
        manager.apply()
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []
