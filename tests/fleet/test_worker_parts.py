"""The parts of a worker, each by itself: no server, and a clock that the test sets."""

from __future__ import annotations

import contextlib
import random
import types
from datetime import datetime

import pytest
from pymongo.errors import OperationFailure

from diagnose.errors import StoreError
from diagnose_mongo.store import Control, Undecodable
from diagnose_mongo.worker import heartbeats, outages, pace
from diagnose_mongo.worker.entries import Entries
from diagnose_mongo.worker.heartbeats import Heart, Life
from diagnose_mongo.worker.mirror import Mirror
from diagnose_mongo.worker.outages import BackOff, Outage, SideTasks
from diagnose_mongo.worker.pace import Pace
from diagnose_mongo.worker.steering import Steering
from diagnose_mongo.worker.switches import switched_off

OLD, NEW = datetime(2026, 1, 1), datetime(2026, 1, 2)


@pytest.fixture
def clock(monkeypatch):
    """Seconds, as all parts see them."""
    found = types.SimpleNamespace(now=1000.0)
    fake = types.SimpleNamespace(monotonic=lambda: found.now)
    for module in (heartbeats, outages, pace):
        monkeypatch.setattr(module, "time", fake)
    return found


def refused(code):
    error = StoreError("no")
    error.__cause__ = OperationFailure("no", code)
    return error


# --- outages ------------------------------------------------------------------------------------


def test_waits_grow_with_the_time_of_failing_and_begin_anew_after_a_success(clock, monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    back_off = BackOff(growth=1.0)
    waits = []
    for _ in range(6):
        waits.append(back_off.wait(5.0))
        clock.now += waits[-1]
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    assert back_off.is_failing
    assert back_off.end() == sum(waits)
    assert back_off.end() is None
    assert back_off.wait(5.0) == 5.0


def test_an_outage_is_told_once_and_so_is_its_end(clock, caplog):
    outage = Outage()

    def fails():
        raise StoreError("nobody answers")

    for _ in range(3):
        assert not outage.reaches(fails, 1.0, lambda: False)
    assert outage.is_on
    assert outage.retry_in() <= 2.0
    assert outage.reaches(lambda: None, 1.0, lambda: False)
    clock.now += 7
    outage.end()
    outage.end()
    assert not outage.is_on
    assert [r.message.partition(";")[0] for r in caplog.records] == [
        "no specs from MongoDB for now",
        "specs come from MongoDB again, after 7 s",
    ]


def test_what_fails_after_the_end_of_polling_is_no_outage(clock, caplog):
    outage, over = Outage(), [False]

    def fails():
        over[0] = True
        raise StoreError("the client is closed")

    assert not outage.reaches(fails, 1.0, lambda: over[0])
    assert not outage.reaches(lambda: pytest.fail("it was called"), 1.0, lambda: over[0])
    assert not outage.is_on
    assert not caplog.records


def test_a_side_task_that_is_refused_is_told_once_until_it_works(caplog):
    tasks = SideTasks()

    def fails():
        raise refused(13)

    for _ in range(2):
        tasks.do("it can't be done", fails)
    tasks.do("it can't be done", lambda: None)
    tasks.do("it can't be done", fails)
    assert len(caplog.records) == 2
    assert tasks.failing == {"it can't be done"}


def test_that_the_server_is_away_is_not_for_a_side_task_to_know():
    def fails():
        raise StoreError("nobody answers")

    with pytest.raises(StoreError):
        SideTasks().do("it can't be done", fails)


# --- pace ---------------------------------------------------------------------------------------


def test_after_a_change_polls_come_sooner_for_a_minute(clock):
    found = Pace()
    assert found.next_in(Control(), 10.0) is None
    found.quicken()
    assert found.next_in(Control(), 10.0) == 2.0
    assert found.next_in(Control(), 1.0) == 1.0
    assert found.next_in(Control(processes=50_000), 10.0) == 50.0
    assert found.next_in(Control(period=30.0), 10.0) is None
    clock.now += 60
    assert found.next_in(Control(), 10.0) is None


def test_a_fleet_that_is_told_to_rest_leaves_polls_out(clock):
    found = Pace()
    found.rest(Control(period=30.0), 10.0)
    assert found.is_resting()
    clock.now += 25
    assert not found.is_resting()
    found.rest(Control(period=30.0), 10.0)
    found.rest(Control(), 10.0)
    assert not found.is_resting()


# --- the mirror ---------------------------------------------------------------------------------


class FakeSpecs:
    """A store of specs; ``fetched`` has what was asked for."""

    def __init__(self, **documents):
        self.documents = {key: {"_id": key, **document} for key, document in documents.items()}
        self.fetched = []
        self.control = Control()

    def versions(self):
        return [(key, each.get("lastmodified")) for key, each in self.documents.items()]

    def look(self):
        if isinstance(self.control, Exception):
            raise self.control
        return self.versions(), self.control

    def fetch(self, raw_ids, fields=None):
        self.fetched.append(sorted(raw_ids))
        return [(each, self.documents[each]) for each in raw_ids]


def read(mirror, store, *, is_full=False):
    reading = mirror.read(store, store.versions(), is_full=is_full)
    return reading, mirror.take(reading)


def test_the_mirror_reads_what_has_another_version_only():
    store, specs = FakeSpecs(a={"lastmodified": OLD}, b={"lastmodified": OLD}), {}
    mirror = Mirror(specs)
    read(mirror, store)
    assert mirror.is_like(store.versions())
    store.documents["b"] = {"_id": "b", "lastmodified": NEW}
    assert not mirror.is_like(store.versions())
    reading, gone = read(mirror, store)
    assert (reading.has_news, gone, store.fetched) == (True, [], [["a", "b"], ["b"]])
    assert specs == store.documents
    del store.documents["a"]
    reading, gone = read(mirror, store)
    assert (reading.has_news, gone) == (False, ["a"])
    assert specs == store.documents
    assert mirror.raw_ids == {"b": "b"}


def test_a_full_reading_reads_the_others_too():
    store, specs = FakeSpecs(a={"lastmodified": OLD, "when": "x"}), {}
    mirror = Mirror(specs)
    read(mirror, store)
    store.documents["a"] = {"_id": "a", "lastmodified": OLD, "when": "y"}
    read(mirror, store)
    assert specs["a"]["when"] == "x"
    reading, _ = read(mirror, store, is_full=True)
    assert not reading.has_news
    assert specs["a"]["when"] == "y"


def test_what_another_node_has_not_got_yet_is_asked_for_again():
    store = FakeSpecs(a={"lastmodified": OLD})
    mirror = Mirror({})
    mirror.take(mirror.read(store, [("a", NEW)], is_full=False))
    assert not mirror.is_like([("a", NEW)])


def test_a_document_that_cannot_be_decoded_is_as_new_as_it_is_listed():
    store = FakeSpecs(a={"lastmodified": OLD})
    mirror = Mirror({})
    reading = mirror.read(store, store.versions(), is_full=False)
    mirror.take(reading._replace(documents=[("a", Undecodable("bad"))]))
    assert mirror.is_like(store.versions())


# --- steering -----------------------------------------------------------------------------------


def test_without_the_right_to_it_nothing_steers_until_it_is_tried_again():
    store, tasks = FakeSpecs(a={"lastmodified": OLD}), SideTasks()
    steering = Steering(tasks)
    store.control = Control(paused="why")
    assert steering.look(store) == store.versions()
    assert steering.control.paused == "why"
    store.control = refused(13)
    assert steering.look(store) == store.versions()
    assert steering.control.paused is None
    assert tasks.failing
    store.control = Control(paused="again")
    steering.look(store)
    assert steering.control.paused is None
    steering.try_again()
    steering.look(store)
    assert steering.control.paused == "again"
    assert not tasks.failing


# --- entries ------------------------------------------------------------------------------------


class Written:
    """A store that takes entries, but for those in ``refused``."""

    def __init__(self):
        self.calls = []
        self.refused = []

    def write(self, process_id, entries, *, erased, room, timeout):
        self.calls.append((dict(entries), list(erased), room))
        return self.refused


def entry(state="installed", err=None):
    return {"lm": OLD, "state": state, "err": err, "at": NEW}


def write(entries, store, control=Control()):  # noqa: B008 - frozen
    entries.write(store, {"a": "a", "b": "b"}, control, contextlib.nullcontext())


def test_an_entry_is_written_where_it_is_another_than_the_one_that_is_there():
    entries, store = Entries("me"), Written()
    entries.put("a", entry())
    write(entries, store)
    entries.put("a", entry() | {"at": OLD})
    write(entries, store)
    entries.put("a", None)
    entries.put("b", None)  # there never was one
    write(entries, store)
    assert [(sorted(written), erased) for written, erased, _ in store.calls] == [
        (["a"], []),
        ([], []),
        ([], ["a"]),
    ]
    assert not entries.due


def test_a_refusal_that_may_pass_leaves_the_entry_due_and_is_told_once(caplog):
    entries, store = Entries("me"), Written()
    store.refused = [("a", "not now", False)]
    for _ in range(2):
        entries.put("a", entry())
        write(entries, store)
    assert set(entries.due) == {"a"}
    assert len(caplog.records) == 1
    store.refused = [("a", "too large", True)]
    write(entries, store)
    assert not entries.due


def test_in_a_large_fleet_a_process_outside_of_the_sample_tells_failures_only():
    entries, store = Entries("me"), Written()
    entries.put("a", entry())
    entries.put("b", entry("error", "it failed"))
    write(entries, store, Control(processes=10**9, is_bounded=True))
    ((written, _, room),) = store.calls
    assert set(written) == {"b"}
    assert room is not None


def test_a_process_that_counted_as_dead_looks_for_its_entries():
    entries = Entries("me")
    entries.look(Control(renewed=OLD))
    entries.note_life(Life(NEW, had_gap=False, is_shared=False), 1.0)
    entries.look(Control(renewed=NEW, buried=OLD))
    assert not entries.are_lost
    entries.note_life(Life(None, had_gap=True, is_shared=False), 1.0)
    entries.look(Control(renewed=NEW, buried=OLD))  # they were removed before it was away
    assert not entries.are_lost
    entries.note_life(Life(None, had_gap=True, is_shared=False), 1.0)
    entries.look(Control(renewed=NEW, buried=NEW))
    assert entries.are_lost


def test_of_an_older_database_nothing_is_believed():
    entries = Entries("me")
    entries.look(Control(renewed=NEW))
    entries.look(Control(renewed=OLD))
    assert entries.are_lost


# --- heartbeats ---------------------------------------------------------------------------------


def test_a_heart_knows_what_happened_between_two_beats(clock, caplog):
    answers, runs = [(None, NEW)], []

    class Processes:
        def beat(self, process_id, told, ttl, run):
            runs.append(run)
            return answers.pop()

    heart = Heart()

    def beat():
        return heart.beat(Processes(), "me", {"period": 2.0}, 30.0)

    assert heart.is_due()
    assert beat() == Life(NEW, had_gap=False, is_shared=False)
    clock.now += 28.9
    assert not heart.is_due()
    clock.now += 0.1
    assert heart.is_due()
    answers.append((runs[0], NEW))
    assert beat() == Life(NEW, had_gap=False, is_shared=False)
    answers.append((None, NEW))
    assert beat() == Life(NEW, had_gap=True, is_shared=False)
    for _ in range(2):
        answers.append(("another run", NEW))
        assert beat() == Life(NEW, had_gap=False, is_shared=True)
    assert len(caplog.records) == 1
    assert len(set(runs)) == 1
    heart.hurry()
    assert heart.is_due()


# --- off switches -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "is_off"), [("1", True), ("yes", True), ("", False), ("0", False), (" Off ", False)]
)
def test_a_variable_switches_a_process_off(monkeypatch, value, is_off):
    monkeypatch.setenv("DIAGNOSE_DISABLED", value)
    monkeypatch.delenv("DIAGNOSE_DISABLE_FILE", raising=False)
    assert (switched_off() is not None) == is_off


def test_a_file_switches_a_machine_off(monkeypatch, tmp_path):
    monkeypatch.delenv("DIAGNOSE_DISABLED", raising=False)
    monkeypatch.setenv("DIAGNOSE_DISABLE_FILE", str(tmp_path / "off"))
    assert switched_off() is None
    (tmp_path / "off").touch()
    assert str(tmp_path / "off") in switched_off()
