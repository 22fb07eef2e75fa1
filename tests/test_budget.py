from __future__ import annotations

import threading
import time
import types

import pytest
from stage import Stage, attached, timers_ran

from diagnose import LogInstrument, attach_to, probes
from diagnose.budget import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Budget, Meter
from diagnose.instruments import Instrument, ProbeTestInstrument
from diagnose.managers import InstrumentManager


@pytest.fixture
def stage():
    with Stage() as stage:
        yield stage


class Timers:
    """Does nothing by itself: a test says when."""

    def after(self, seconds, callback):
        return None


class Item:
    def __init__(self, meter=None):
        self.meter = meter
        self.armed = True
        self.hits = self.rejected = 0
        self.reasons = []

    def count(self):
        return self.hits, self.rejected

    def suspend(self, reason):
        self.armed = False
        self.reasons.append(reason)

    def note_cost(self, share):
        self.cost = share

    def resume(self):
        self.armed = True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def make(share=0.02):
    clock = Clock()
    budget = Budget(share, Timers(), clock)
    return budget, clock


def second(budget, clock):
    clock.now += 1.0
    budget.look()


def test_what_costs_less_than_the_budget_stays():
    budget, clock = make()
    item = Item()
    budget.add(item)
    item.hits += 50_000  # of 200 ns: 1 %
    second(budget, clock)
    assert item.reasons == []


def test_the_costliest_is_suspended_and_tried_again_with_longer_pauses():
    budget, clock = make()
    cheap, costly = Item(), Item()
    budget.add(cheap)
    budget.add(costly)
    pauses = []
    for _ in range(9):
        cheap.hits += 40_000
        costly.hits += 200_000
        second(budget, clock)
        assert cheap.armed
        assert not costly.armed
        began = clock.now
        while not costly.armed:
            second(budget, clock)
        pauses.append(clock.now - began)
    assert pauses[:4] == [10, 20, 40, 80]
    assert pauses[0] == FIRST_PAUSE_SECONDS
    assert max(pauses) == LONGEST_PAUSE_SECONDS
    assert cheap.reasons == []
    assert "4.0% of a core (200,000 hits a second, 0.2 µs each)" in costly.reasons[0]
    assert "limits.rate" in costly.reasons[0]


def test_who_behaves_for_long_enough_begins_anew():
    budget, clock = make()
    item = Item()
    budget.add(item)
    for _ in range(2):
        item.hits += 200_000
        second(budget, clock)
        while not item.armed:
            second(budget, clock)
    for _ in range(50):
        second(budget, clock)
    item.hits += 200_000
    second(budget, clock)
    assert "suspended for 10 s" in item.reasons[-1]


def test_the_cost_of_a_hit_is_measured_on_a_sample():
    budget, clock = make()
    meter = Meter(1.0, lambda seconds: None)
    item = Item(meter)
    budget.add(item)
    asked = len(meter.pending)
    assert 1 <= asked <= 20
    for _ in range(asked):
        meter.note(0.001)
    assert not meter.pending
    item.hits += 15  # of 1 ms: 1.5 %
    second(budget, clock)
    assert item.armed
    item.hits += 25
    second(budget, clock)
    assert "1e+03 µs each" in item.reasons[0]


def test_rejected_hits_cost_something_too():
    budget, clock = make()
    item = Item()
    budget.add(item)
    item.rejected += 1_000_000
    second(budget, clock)
    assert not item.armed


def test_without_a_share_nothing_is_suspended():
    budget, clock = make(None)
    item = Item()
    budget.add(item)
    item.hits += 10**9
    second(budget, clock)
    assert item.armed


def test_who_is_gone_costs_nothing():
    budget, clock = make()
    item = Item()
    budget.add(item)
    budget.discard(item)
    item.hits += 10**9
    second(budget, clock)
    assert item.armed


# --- with probes ------------------------------------------------------------------------------


def document(target, **more):
    from datetime import UTC, datetime

    instrument = {"type": "hist", "name": "n", "value": "elapsed"} | more.pop("instrument", {})
    return {
        "target": target,
        "instrument": instrument,
        "lifespan": 10,
        "lastmodified": datetime.now(UTC),
        **more,
    }


def test_a_spec_that_costs_too_much_is_suspended_and_comes_back(stage):
    def work(x):
        return x

    path = stage.place(work)
    code = work.__code__
    manager = InstrumentManager("me")
    clock = Clock()
    manager.budget = Budget(0.02, Timers(), clock)
    manager.specs["hot"] = document(path)
    manager.apply()
    assert work.__code__ is not code
    for _ in range(20_000):
        work(1)
    instrument = next(iter(probes.active_probes[path].instruments.values()))
    instrument.flush()
    clock.now += 0.01
    manager.budget.look()
    # As if it were not there.
    assert work.__code__ is code
    manager.apply()
    entry = manager.specs["hot"]["applied"]["me"]
    assert (entry["state"], entry["code"]) == ("suspended", "cpu-budget")
    assert "hits a second" in entry["err"]
    hits = instrument.status.hits
    work(1)
    clock.now += FIRST_PAUSE_SECONDS
    manager.budget.look()
    assert work.__code__ is not code
    work(1)
    instrument.flush()
    assert instrument.status.hits == hits + 1
    manager.apply()
    entry = manager.specs["hot"]["applied"]["me"]
    assert (entry["state"], entry["err"]) == ("emitting", None)
    manager.stop()
    assert work.__code__ is code
    clock.now += FIRST_PAUSE_SECONDS
    manager.budget.look()
    assert work.__code__ is code


def test_a_suspended_spec_that_is_removed_or_expires_does_not_come_back(stage):
    def work(x):
        return x

    path = stage.place(work)
    code = work.__code__
    manager = InstrumentManager("me")
    clock = Clock()
    manager.budget = Budget(0.02, Timers(), clock)
    manager.specs["hot"] = document(path)
    manager.apply()
    (account,) = manager.budget._accounts.values()
    account.item.suspend("why")
    assert work.__code__ is code
    del manager.specs["hot"]
    manager.apply()
    account.item.resume()
    assert work.__code__ is code
    assert probes.active_probes == {}


def test_instruments_made_in_code_have_no_budget(stage):
    def work(x):
        return x

    path = stage.place(work)
    with attached(path, ProbeTestInstrument("n", "x")) as probe:
        assert all(each.budget is None for each in probe.instruments.values())


class Slow(Instrument):
    def emit(self, name, value, tags):
        time.sleep(value)


def test_a_hit_that_takes_too_long_is_the_last_but_for_one_more_try(stage, caplog):
    def work(x):
        return x

    code = work.__code__
    manager = InstrumentManager("me")
    manager.instrument_classes["slow"] = Slow
    path = stage.place(work)
    manager.specs["s"] = document(path, instrument={"type": "slow", "value": "x"})

    def entry():
        timers_ran()
        assert work.__code__ is code
        manager.apply()
        return manager.specs["s"]["applied"]["me"]

    manager.apply()
    (account,) = manager.budget._accounts.values()
    work(0.001)
    work(0.2)
    began = time.perf_counter()
    work(1000)
    assert time.perf_counter() - began < 100
    first = entry()
    assert (first["state"], first["code"]) == ("suspended", "too-slow")
    assert "one hit took 2" in first["err"]
    assert "tried once more after 1 s" in first["err"]
    account.item.resume()
    assert work.__code__ is not code
    work(0.2)
    second = entry()
    assert (second["state"], second["code"]) == ("error", "too-slow")
    assert "change the spec" in second["err"]
    account.item.resume()
    assert work.__code__ is code
    assert "one hit took 2" in caplog.text
    manager.stop()


def test_what_is_taken_off_while_it_proves_too_slow_does_not_come_back(stage, monkeypatch):
    def subject():
        return 1

    code = subject.__code__
    probe = attach_to(stage.place(subject))
    probe.attach("k", LogInstrument("n", "1"))
    (attachment,) = probe._attachments.values()
    disarm = type(attachment)._disarm

    def disarm_and_lose(self):
        result = disarm(self)
        probe.detach("k")  # by another thread, between two steps of this one
        return result

    monkeypatch.setattr(type(attachment), "_disarm", disarm_and_lose)
    attachment.too_slow(1.0)
    attachment.resume()
    assert subject.__code__ is code


def test_a_slow_hit_among_many_fast_ones_is_forgiven(stage):
    def work(x):
        return x

    path = stage.place(work)
    probe = attach_to(path)
    instrument = Slow("n", "x")
    probe.attach("k", instrument)
    (attachment,) = probe._attachments.values()
    for _ in range(3):
        work(0.2)
        assert instrument.status.state == "suspended"
        attachment.resume()
        for _ in range(200):
            work(0)
    assert instrument.status.state == "emitting"
    work(0.2)
    attachment.resume()
    work(0.2)
    assert (instrument.status.state, instrument.status.code) == ("error", "too-slow")
    timers_ran()
    probe.detach("k")


def test_waiting_for_other_threads_is_not_slow():
    told = []
    meter = Meter(0.05, told.append)
    done = threading.Event()
    others = [threading.Thread(target=done.wait) for _ in range(20)]
    for each in others:
        each.start()
    try:
        meter.note(0.1)
        assert told == []
        meter.note(0.5)
        assert told == [0.5]
    finally:
        done.set()
        for each in others:
            each.join()


def test_who_sets_no_limit_may_take_any_time(stage):
    class Patient(Slow):
        longest_seconds = None

    def work(x):
        return x

    path = stage.place(work)
    with attached(path, Patient("n", "x")) as probe:
        work(0.1)
        (instrument,) = probe.instruments.values()
        assert instrument.status.state == "emitting"
    assert LogInstrument.longest_seconds is not None


def test_a_sample_is_taken_while_hits_come_from_several_threads(stage):
    def work(x):
        return x

    path = stage.place(work)
    probe = attach_to(path)
    seen = types.SimpleNamespace(count=0)

    class Quick(Instrument):
        def emit(self, name, value, tags):
            seen.count += 1

    probe.attach("k", Quick("n", "x"))
    meter = probe._attachments["k"].meter
    assert meter.sample() is None
    threads = [threading.Thread(target=lambda: [work(1) for _ in range(1000)]) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert 0 < meter.sample() < 0.05
    probe.detach("k")
