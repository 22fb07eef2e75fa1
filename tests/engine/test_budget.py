from __future__ import annotations

import gc
import os
import signal
import threading
import time
import types

import pytest
from stage import DEADLINE_SECONDS, attached, in_thread, timers_ran
from waiting import in_child, wait_until

from diagnose import LogInstrument, attach_to, attachments, probes
from diagnose import cpu_budget as budgets
from diagnose.cpu_budget import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    MOST_RESUMED_AT_ONCE,
    STRIKES,
    SUSPICIOUS_HITS,
    UNSURE_STRIKES,
    Budget,
    LongHit,
    Meter,
    Pause,
    Reading,
    blame,
)
from diagnose.instruments import Instrument, ProbeTestInstrument
from diagnose.managers import InstrumentManager


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


def test_one_look_suspends_as_many_as_cost_too_much(monkeypatch):
    budget, clock = make()
    items = [Item() for _ in range(10)]
    for item in items:
        budget.add(item)
    for number, item in enumerate(items):
        item.hits += 1000 * 2**number  # 0.02 % to 10 %
    second(budget, clock)
    # 1.28 % and less remain; 2.56 % and more are above 2 % each.
    assert [item.armed for item in items] == [True] * 6 + [False] * 4


def test_those_whose_pause_is_over_come_back_as_far_as_they_fit_in():
    budget, clock = make()
    items = [Item() for _ in range(8)]
    for item in items:
        budget.add(item)
    for item in items[:6]:
        item.hits += 40_000  # 0.8 %
    for item in items[6:]:
        item.hits += 200_000  # 4 %
    second(budget, clock)
    assert [item.armed for item in items] == [False] * 4 + [True] * 2 + [False] * 2

    def armed():
        return sum(item.armed for item in items[:6]), sum(item.armed for item in items[6:])

    while armed() == (2, 0):
        for item in items[:6]:
            item.hits += 40_000 * item.armed
        second(budget, clock)
    # 1.6 % are in use. One is tried in any case, and costs what it did before.
    assert armed() == (3, 0)
    for item in items[:6]:
        item.hits += 40_000 * item.armed
    second(budget, clock)
    assert armed() == (2, 0)
    # Now they cost nothing, and all come back, the cheap ones first.
    second(budget, clock)
    assert armed() == (4, 0)
    for _ in range(40):
        second(budget, clock)
    assert armed() == (6, 2)


def test_of_those_that_are_due_the_cheapest_come_first():
    budget, clock = make()
    items = [Item() for _ in range(3)]
    for item in items:
        budget.add(item)
    for item, hits in zip(items, (400_000, 150_000, 120_000), strict=True):
        item.hits += hits  # 8 %, 3 % and 2.4 %
    second(budget, clock)
    order = []
    while len(order) < len(items):
        second(budget, clock)
        order += [item for item in items if item.armed and item not in order]
    assert order == items[::-1]


def test_not_too_many_come_back_at_once():
    budget, clock = make()
    items = [Item() for _ in range(3 * MOST_RESUMED_AT_ONCE)]
    for item in items:
        budget.add(item)
        item.hits += 10_000
    big = Item()
    budget.add(big)
    budget.share = 0.0
    second(budget, clock)
    budget.share = 1.0
    before = 0
    while before < len(items):
        second(budget, clock)
        now = sum(item.armed for item in items)
        assert now - before <= MOST_RESUMED_AT_ONCE
        before = now


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


class Now:
    """The clocks and counters of one thread, as a test sets them."""

    def __init__(self, monkeypatch):
        self.thread = self.process = 100.0
        self.waits = self.losses = self.collections = 0
        self.others = 0
        self.handles_signals = False
        monkeypatch.setattr(budgets, "_thread_time", lambda: self.thread)
        monkeypatch.setattr(budgets, "_CLOCK_SECONDS", 0.0)
        monkeypatch.setattr(budgets, "_read", self.read)
        monkeypatch.setattr(budgets, "_other_threads", lambda: self.others)
        monkeypatch.setattr(budgets, "_may_have_served_signals", lambda: self.handles_signals)

    def read(self):
        return Reading(self.thread, self.process, self.waits, self.losses, self.collections)

    def hit(self, meter, seconds, computed=0.0, *, others=0.0, waits=0, losses=0, collections=0):
        """One as handlers make them: measured if the meter wants that."""
        begun = meter.begin() if meter.pending else None
        self.thread += computed
        self.process += computed + others
        self.waits += waits
        self.losses += losses
        self.collections += collections
        if begun or seconds > meter.longest_seconds:
            meter.note(seconds, begun)


@pytest.fixture
def now(monkeypatch):
    return Now(monkeypatch)


class Judged(Meter):
    """A meter that keeps its verdicts."""

    def __init__(self, longest_seconds=0.05):
        super().__init__(longest_seconds, self.judge)
        self.verdicts = []
        self.late = 0.0

    def judge(self, hit):
        self.verdicts.append((hit.seconds, self.is_last(hit, self.late)))

    __slots__ = ("late", "verdicts")


def test_the_cost_of_a_hit_is_measured_on_a_sample_of_them(now):
    budget, clock = make()
    meter = Judged(1.0)
    item = Item(meter)
    budget.add(item)
    asked = len(meter.pending)
    assert 1 <= asked <= 20
    for _ in range(asked):
        now.hit(meter, 0.5, 0.001)
    assert not meter.pending
    now.hit(meter, 0.5, 0.1)
    item.hits += 15  # of 1 ms: 1.5 %
    second(budget, clock)
    assert item.armed
    item.hits += 25
    second(budget, clock)
    assert "1e+03 µs each" in item.reasons[0]


def test_what_reading_the_clock_takes_is_not_the_instruments_cost(now, monkeypatch):
    monkeypatch.setattr(budgets, "_CLOCK_SECONDS", 0.0004)
    meter = Judged(1.0)
    meter.sample()
    now.hit(meter, 0.5, 0.001)
    assert meter.sample() == pytest.approx(0.0006)


def test_time_without_the_processor_costs_nothing(stage):
    # A hit that waits for 20 ms, as it would for a processor, and computes next to nothing.
    class Waiting(Instrument):
        def emit(self, name, value, tags):
            time.sleep(0.02)

    def work(x):
        return x

    with attached(stage.place(work), Waiting("n", "x")) as probe:
        (attachment,) = probe._attachments.values()
        assert attachment.meter.sample() is None
        for _ in range(8):
            work(1)
        assert attachment.meter.pending == []
        assert 0 < attachment.meter.sample() < 0.01


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
    timers_ran()
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
    timers_ran()
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


@pytest.fixture
def sure(monkeypatch):
    """The program has no handlers for signals, and nothing is taken from its threads."""
    read = budgets._read
    monkeypatch.setattr(budgets, "_read", lambda: read()._replace(losses=0, collections=0))
    monkeypatch.setattr(budgets, "_may_have_served_signals", lambda: False)


@pytest.fixture
def end_pause(monkeypatch):
    """Ends the pause that there is, which was undisturbed."""
    pauses = []

    class Never(Pause):
        def __init__(self, timers, ended):
            pauses.append(ended)

    def end(late=0.0):
        wait_until(lambda: pauses)  # it begins in the timers' thread
        (ended,) = pauses
        pauses.clear()
        ended(late)

    monkeypatch.setattr(attachments, "Pause", Never)
    yield end
    assert pauses == []


@pytest.mark.usefixtures("sure")
def test_a_hit_that_takes_too_long_is_the_last_but_for_one_more_try(stage, caplog, end_pause):
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
    work(0.001)
    work(0.2)
    began = time.perf_counter()
    work(1000)
    assert time.perf_counter() - began < 100
    first = entry()
    assert (first["state"], first["code"]) == ("suspended", "too-slow")
    assert "one hit took 2" in first["err"]
    assert "in 1 s tried again" in first["err"]
    end_pause()
    assert work.__code__ is not code
    work(0.2)
    assert entry()["state"] == "suspended"
    end_pause()
    second = entry()
    assert (second["state"], second["code"]) == ("error", "too-slow")
    assert "change the spec" in second["err"]
    assert [each.levelname for each in caplog.records] == ["WARNING", "ERROR"]
    assert "one hit took 2" in caplog.text
    manager.stop()


@pytest.mark.usefixtures("sure")
def test_a_long_hit_does_not_count_where_threads_are_held_up_as_long(stage, end_pause):
    def work(x):
        return x

    instrument = Slow("n", "x")
    with attached(stage.place(work), instrument):
        for _ in range(5):
            work(0.2)
            assert instrument.status.state == "suspended"
            end_pause(late=1.0)
            assert instrument.status.state == "emitting"
        for late in (0.01, 0.01):
            work(0.2)
            end_pause(late)
        assert instrument.status.state == "error"
    timers_ran()


def test_what_is_taken_off_in_the_pause_after_a_long_hit_stays_off(stage, end_pause):
    def work(x):
        return x

    code = work.__code__
    instrument = Slow("n", "x")
    with attached(stage.place(work), instrument):
        work(0.2)
    assert instrument.status.state == "stopped"
    end_pause()
    timers_ran()
    assert instrument.status.state == "stopped"
    assert work.__code__ is code


def test_a_pause_says_how_late_it_woke_up_at_worst():
    clock, late, due = Clock(), [], []
    timers = types.SimpleNamespace(after=lambda seconds, callback: due.append((seconds, callback)))
    Pause(timers, late.append, clock)
    for lateness in (0.0, 0.03, *[0.01] * (Pause.TICKS - 2)):
        assert late == []
        ((seconds, callback),) = due
        due.clear()
        clock.now += seconds + lateness
        callback()
    assert due == []
    assert late == [pytest.approx(0.03)]
    assert clock.now >= Pause.SECONDS


def test_an_instrument_comes_back_after_its_pause(stage, monkeypatch):
    monkeypatch.setattr(Pause, "SECONDS", 0.05)

    def work(x):
        return x

    instrument = Slow("n", "x")
    with attached(stage.place(work), instrument):
        work(0.1)
        wait_until(lambda: instrument.status.state == "emitting")
        hits = instrument.status.hits
        work(0)
        assert instrument.status.hits == hits + 1
    timers_ran()


def test_what_is_taken_off_while_it_proves_too_slow_does_not_come_back(
    stage, monkeypatch, end_pause
):
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
    attachment.too_slow(LongHit(1.0))
    end_pause()
    assert subject.__code__ is code


@pytest.mark.usefixtures("sure")
def test_a_slow_hit_among_many_fast_ones_is_forgiven(stage, end_pause):
    def work(x):
        return x

    instrument = Slow("n", "x")
    with attached(stage.place(work), instrument):
        for _ in range(3):
            work(0.2)
            assert instrument.status.state == "suspended"
            end_pause()
            for _ in range(SUSPICIOUS_HITS):
                work(0)
        assert instrument.status.state == "emitting"
        for _ in range(2):
            work(0.2)
            end_pause()
        assert (instrument.status.state, instrument.status.code) == ("error", "too-slow")
    timers_ran()


def test_a_process_that_gets_little_processor_keeps_its_instruments(stage):
    # In a child that has to leave most of a processor to another one.
    class Busy(Instrument):
        def emit(self, name, value, tags):
            until = time.thread_time() + 0.02
            while time.thread_time() < until:
                pass

    def work(x):
        return x

    instrument = Busy("n", "x")

    def starve():
        processor = min(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processor})
        hog = os.fork()
        if hog == 0:
            while True:
                pass
        try:
            os.nice(12)
            Pause.SECONDS = 0.3
            with attached(stage.place(work), instrument):
                long_hits = 0
                deadline = time.monotonic() + DEADLINE_SECONDS
                while long_hits < 4:
                    assert time.monotonic() < deadline
                    wait_until(lambda: instrument.status.state != "suspended")
                    began = time.perf_counter()
                    work(1)
                    long_hits += time.perf_counter() - began > instrument.longest_seconds
                wait_until(lambda: instrument.status.state != "suspended")
                return instrument.status.state
        finally:
            os.kill(hog, signal.SIGKILL)
            os.waitpid(hog, 0)

    assert in_child(starve) == "emitting"


# --- who is to blame for a long hit -----------------------------------------------------------

SWITCH = 0.005


@pytest.mark.parametrize(
    ("words", "seconds", "passed", "own", "is_sure"),
    [
        ("it computed", 0.06, (0.06, 0.06, 0, 0, 0), 0.06, True),
        ("it slept", 0.06, (0.0, 0.0, 1, 0, 0), 0.06, True),
        ("it slept while others computed", 0.2, (0.0, 0.2, 1, 0, 0), 0.195, True),
        ("others had the interpreter", 0.06, (0.005, 0.06, 11, 0, 0), 0.005, True),
        ("others had the processor", 0.06, (0.005, 0.005, 0, 1, 0), 0.005, True),
        ("both", 0.06, (0.005, 0.03, 5, 2, 0), 0.035, False),
        ("it computed, and lost the processor", 0.09, (0.06, 0.06, 0, 3, 0), 0.06, True),
        ("garbage was collected", 0.06, (0.06, 0.06, 0, 0, 1), 0.06, False),
        ("there are no counters", 0.06, (0.005, 0.05, 0, 0, 0), 0.015, True),
    ],
)
def test_a_hit_is_to_blame_for_what_it_computed_and_waited_for(
    words, seconds, passed, own, is_sure
):
    blamed, sure = blame(seconds, Reading(*passed), SWITCH)
    assert (round(blamed, 6), sure) == (own, is_sure), words


def test_a_reading_is_of_this_thread_and_of_the_process():
    before = budgets._read()
    time.sleep(0.03)
    slept = budgets._read().since(before)
    assert slept.thread < 0.03
    assert slept.waits >= 1
    before = budgets._read()
    while budgets._read().since(before).thread < 0.005:
        pass
    assert in_thread(lambda: budgets._read().thread) < budgets._read().thread
    gc.collect()
    passed = budgets._read().since(before)
    assert passed.process >= passed.thread >= 0.005
    assert passed.collections >= 1


def test_the_first_long_hit_makes_the_meter_suspicious_and_the_second_is_the_last(now):
    meter = Judged()
    now.hit(meter, 0.06)
    assert meter.verdicts == [(0.06, False)]
    now.hit(meter, 0.06, waits=1)
    assert meter.verdicts[1:] == [(0.06, True)]


def test_long_hits_that_are_not_to_blame_do_not_count(now):
    meter = Judged()
    now.hit(meter, 0.06)
    for _ in range(3):
        now.hit(meter, 0.06, 0.001, others=0.06, waits=13)
        now.hit(meter, 0.06, 0.001, losses=1)
    assert len(meter.verdicts) == 1


@pytest.mark.parametrize("doubt", ["losses", "collections", "signals"])
def test_where_there_is_doubt_it_takes_more_of_them(now, doubt):
    meter = Judged()
    now.handles_signals = doubt == "signals"
    more = {} if doubt == "signals" else {doubt: 1}
    for _ in range(UNSURE_STRIKES):
        now.hit(meter, 0.06, waits=1, **more)
    assert [is_last for _, is_last in meter.verdicts] == [False, False, False, True]
    assert STRIKES < UNSURE_STRIKES


def test_a_long_hit_is_no_strike_where_all_were_held_up(now):
    meter = Judged()
    meter.late = 0.02
    for _ in range(5):
        now.hit(meter, 0.06, waits=1)
    meter.late = 0.005
    for _ in range(2):
        now.hit(meter, 0.06, waits=1)
    assert [is_last for _, is_last in meter.verdicts] == [False] * 6 + [True]


def test_short_hits_make_long_ones_forgotten(now):
    meter = Judged()
    for _ in range(3):
        now.hit(meter, 0.06, waits=1)
        for _ in range(SUSPICIOUS_HITS):
            assert meter.pending
            now.hit(meter, 0.001)
        assert not meter.pending
    assert [is_last for _, is_last in meter.verdicts] == [False] * 3


def test_forgiven_strikes_do_not_count_any_more(now):
    meter = Judged()
    for _ in range(2):
        for _ in range(UNSURE_STRIKES - 1):
            now.hit(meter, 0.06, waits=1, losses=1)
        for _ in range(SUSPICIOUS_HITS):
            now.hit(meter, 0.001)
    assert not any(is_last for _, is_last in meter.verdicts)
    assert len(meter.verdicts) == 2 * (UNSURE_STRIKES - 1)


def test_each_strike_makes_the_meter_suspicious_anew(now):
    meter = Judged()
    now.hit(meter, 0.06)
    for _ in range(SUSPICIOUS_HITS - 10):
        now.hit(meter, 0.001)
    now.hit(meter, 0.06, waits=1, losses=1)
    for _ in range(SUSPICIOUS_HITS - 10):
        now.hit(meter, 0.001)
    now.hit(meter, 0.06, waits=1, losses=1)
    now.hit(meter, 0.06, waits=1, losses=1)
    assert [is_last for _, is_last in meter.verdicts] == [False, False, False, True]


def test_waiting_for_other_threads_makes_only_suspicious(now):
    meter = Judged()
    now.others = 20  # each may have had the interpreter for 5 ms
    now.hit(meter, 0.1)
    assert meter.verdicts == []
    now.hit(meter, 0.1, 0.001, others=0.1, waits=20)
    assert meter.verdicts == []
    # Not suspended yet: with the first one that is known to be at fault it only has to pause.
    now.hit(meter, 0.1, 0.1)
    assert meter.verdicts == [(0.1, False)]
    now.hit(meter, 0.1, 0.1)
    assert meter.verdicts[1:] == [(0.1, True)]


def test_threads_are_counted_without_a_lock():
    done = threading.Event()
    before = budgets._other_threads()
    others = [threading.Thread(target=done.wait) for _ in range(3)]
    for each in others:
        each.start()
    try:
        with threading._active_limbo_lock:
            assert budgets._other_threads() == before + 3
    finally:
        done.set()
        for each in others:
            each.join()


def test_only_the_main_thread_of_a_program_with_handlers_may_have_served_a_signal(monkeypatch):
    handlers = dict.fromkeys(signal.valid_signals(), signal.SIG_DFL)
    handlers[signal.SIGINT] = signal.default_int_handler
    monkeypatch.setattr(signal, "getsignal", handlers.__getitem__)
    assert not budgets._may_have_served_signals()
    handlers[signal.SIGALRM] = lambda *_: None
    assert budgets._may_have_served_signals()
    assert not in_thread(budgets._may_have_served_signals)


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
