from __future__ import annotations

import asyncio
import ctypes
import os
import random
import sys
import threading
import time
from datetime import timedelta

import pytest
from stage import DEADLINE_SECONDS, timers_ran
from waiting import wait_until

from diagnose import attach_to, expressions, reentrancy, sites, tokens
from diagnose.bytecode.weaving import Hook
from diagnose.instruments import HistogramInstrument, Instrument, ProbeTestInstrument
from diagnose.limits import Limits
from diagnose.managers import InstrumentManager

# How long each test hammers; `make proof` does it for longer.
SECONDS = float(os.environ.get("DIAGNOSE_TEST_SECONDS", "1.2"))


@pytest.fixture
def often():
    """Threads take turns as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Quiet(InstrumentManager):
    def handle_error(self, probe=None, instrument=None):
        """Errors are wanted here."""


def run_together(*workers, seconds=SECONDS):
    """Run each worker again and again in a thread of its own; how often each one ran."""
    stop, errors, counts = threading.Event(), [], [0] * len(workers)

    def loop(number, worker):
        try:
            while not stop.is_set():
                worker()
                counts[number] += 1
        except BaseException as error:
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=loop, args=each, daemon=True) for each in enumerate(workers)]
    for thread in threads:
        thread.start()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return counts


def shop_of(stage):
    def plain(x, y=2):
        z = x * y
        return z

    def failing(x):
        raise KeyError(x)

    def numbers(x):
        total = 0
        for each in range(x):
            total += yield each
        return total

    async def work(x):
        await asyncio.sleep(0)
        return x + 1

    def recursive(x):
        return x and recursive(x - 1) + 1

    return stage.module(plain, failing, numbers, work, recursive)


def caller_of(shop):
    def call():
        assert shop.plain(3) == 6
        assert shop.plain(3, y=5) == 15
        try:
            shop.failing(4)
        except KeyError as error:
            assert error.args == (4,)
        generator = shop.numbers(2)
        assert next(generator) == 0
        assert generator.send(5) == 1
        try:
            generator.send(6)
        except StopIteration as stop:
            assert stop.value == 11
        coroutine = shop.work(1)
        coroutine.send(None)
        try:
            coroutine.send(None)
        except StopIteration as stop:
            assert stop.value == 2
        assert shop.recursive(5) == 5

    return call


NAMES = ["plain", "failing", "numbers", "work", "recursive"]


def changer_of(shop, made, number):
    """Starts, changes, fails, expires and stops probes, as fast as it can."""
    chance = random.Random(number)
    key = f"key {number}"

    def change():
        name = chance.choice(NAMES)
        probe = probes[name]
        kind = chance.choice([ProbeTestInstrument, HistogramInstrument, Everything])
        event = chance.choice(["call", "return", "end"])
        value = chance.choice(["1", "len(str(x))", "x", "1 // 0"])
        instrument = kind("n", value, event, mgr=manager, when=chance.choice([None, "x"]))
        # A dozen threads, a switch each microsecond: any hit may take long.
        instrument.longest_seconds = None
        lifespan = chance.choice([None, None, timedelta(seconds=0.0005)])
        probe.attach(key, instrument, lifespan=lifespan)
        made.append((value, instrument))
        del made[:-50]
        if chance.random() < 0.5:
            probe.detach(key)
        if chance.random() < 0.1:
            for each in probes.values():
                each.detach(key)

    manager = Quiet()
    probes = {name: attach_to(f"{shop.__name__}.{name}") for name in NAMES}
    return change


class Everything(Instrument):
    def fire(self, _globals, _locals):
        assert _globals["__name__"]
        self.emit(self.name, self.evaluate(self.value, _globals, _locals), {})


def test_calls_are_right_while_probes_change_thousands_of_times(stage, often):
    shop = shop_of(stage)
    codes = {name: getattr(shop, name).__code__ for name in NAMES}
    probes = [attach_to(f"{shop.__name__}.{name}") for name in NAMES]
    for probe in probes:
        probe.start()
    made = []
    call = caller_of(shop)
    changers = [changer_of(shop, made, number) for number in range(3)]
    counts = run_together(*[call] * 8, *changers)
    for probe in probes:
        probe.stop()
    timers_ran()
    assert {name: getattr(shop, name).__code__ for name in NAMES} == codes
    for name, code in codes.items():
        assert getattr(shop, name).__code__ is code
    assert min(counts) > 0
    wait_until(lambda: reentrancy.BUSY == set())
    wrong = [each for value, each in made if value == "1" and each.status.error]
    assert [each.status.error for each in wrong] == []


def test_calls_are_right_while_code_is_swapped_thousands_of_times(stage, often):
    shop = shop_of(stage)
    call = caller_of(shop)
    every, counts = [], [0]
    for name in NAMES:
        site = sites.CodeSite(getattr(shop, name))
        hooks = [
            sites.Armed("call", Hook(lambda *_: None, ("args", "start"))),
            sites.Armed("return", Hook(lambda *_: None, ("result", "elapsed"))),
            sites.Armed("end", Hook(lambda x: x, ("x",))),
        ]
        every.append((getattr(shop, name), getattr(shop, name).__code__, site, hooks))

    def swap():
        for _, _, site, hooks in every:
            armed = [each for number, each in enumerate(hooks) if counts[0] >> number & 1]
            site.update(armed)
        counts[0] += 1

    ran = run_together(*[call] * 8, swap)
    for function, code, site, _ in every:
        site.update([])
        assert function.__code__ is code
    assert min(ran) > 0
    assert ran[-1] > 10


def test_no_call_is_lost_while_other_probes_start_change_and_stop(stage, often):
    def work(x):
        if x < 0:
            y = -x
            return y
        return x

    class Counting(Instrument):
        def emit(self, name, value, tags):
            """Its status counts."""

    path = stage.place(work)
    code = work.__code__
    probe = attach_to(path)
    counted = Counting("n", "x")
    counted.longest_seconds = None
    probe.attach("counted", counted)
    chance, manager = random.Random(1), Quiet()

    def call():
        # Where "y" has no value an instrument on it is disarmed, in one of these threads.
        assert work(1) == 1

    def change():
        kind = chance.choice([ProbeTestInstrument, HistogramInstrument])
        event = chance.choice(["call", "return", "end", "line:+4"])
        value = chance.choice(["1", "x", "x + 1", "1 // 0", "y" if ":" in event else "x"])
        when, limits = chance.choice([None, "x", "x > 1"]), Limits(hits=chance.choice([None, 3]))
        other = kind("n", value, event, mgr=manager, when=when, limits=limits)
        other.longest_seconds = None
        probe.attach("other", other)
        if chance.random() < 0.5:
            probe.detach("other")

    *calls, changes = run_together(*[call] * 4, change)
    probe.stop()
    timers_ran()
    assert changes > 0
    assert counted.status.hits == sum(calls)
    assert counted.status.error is None
    assert work.__code__ is code


def test_exactly_so_many_tokens_are_handed_out_to_threads(often):
    def count(tokens):
        got = []
        gate = threading.Barrier(4)

        def take():
            gate.wait(DEADLINE_SECONDS)
            got.extend(list(tokens))

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        return len(got), sum(not token for token in got)

    for size in (1, 2, 10, 5000):
        rate = tokens.Rate(size)
        rate.roll()
        assert count(rate.tokens) == (size, 0)
        assert count(tokens.hit_tokens(size)) == (size, 1)


def test_a_handler_has_the_same_parameters_when_it_is_disarmed(stage):
    # Without the GIL a call may begin with one code and go on with the other.
    def work(x, *, flag=None):
        y = x
        return y

    class Checking(InstrumentManager):
        def check_call(self, probe, instrument, *args, **kwargs):
            return True

    def shape(function):
        code = function.__code__
        return code.co_argcount, code.co_kwonlyargcount, code.co_flags & 0xC

    probe = attach_to(stage.place(work))
    for event, value in [("call", "x"), ("return", "result, elapsed"), ("end", "y")]:
        for manager in (InstrumentManager(), Checking()):
            probe.attach("k", ProbeTestInstrument("n", value, event, mgr=manager, when="x"))
            hook = probe._attachments["k"].hook
            functions = [hook.handler, hook.prelude, hook.sift and hook.sift[0]]
            functions = [each for each in functions if each is not None]
            shapes, codes = [*map(shape, functions)], [each.__code__ for each in functions]
            probe.detach("k")
            assert [*map(shape, functions)] == shapes
            assert all(
                each.__code__ is not code for each, code in zip(functions, codes, strict=True)
            )


def test_no_call_falls_between_an_instrument_and_its_replacement(stage, often):
    def work(x):
        return x

    path = stage.place(work)
    counted, replaced = [], [0]
    probe = attach_to(path)
    calls = [0]

    class Counting(Instrument):
        def emit(self, name, value, tags):
            counted.append(1)

    probe.attach("k", Counting("n", "x"))

    def call():
        for _ in range(20):
            work(1)
            calls[0] += 1

    def replace():
        probe.attach("k", Counting("n", "x"))
        replaced[0] += 1

    run_together(call, replace, seconds=0.5)
    probe.stop()
    # The old one goes on until the new one is there; a call on its way out then counts
    # nowhere, as the old one is silent by now. So at most one for each replacement is missed.
    assert replaced[0] > 10
    assert calls[0] - replaced[0] <= len(counted) <= calls[0]


def test_closures_and_references_are_put_back_amid_calls(stage, often):
    def make(y):
        def add(x):
            return x + y

        return add

    one, other = make(1), make(10)
    shop = stage.module(one=one, other=other, root="-".join)
    code, root = one.__code__, shop.root
    paths = [f"{shop.__name__}.{name}" for name in ("one", "other", "root")]

    def call():
        assert (one(1), other(1)) == (2, 11)
        assert shop.root(["a", "b"]) == "a-b"

    def changer(path):
        def change():
            probe = attach_to(path)
            probe.attach("k", HistogramInstrument("n", "elapsed"))
            probe.detach("k")

        return change

    counts = run_together(call, call, *map(changer, paths), seconds=0.6)
    assert min(counts) > 0
    assert one.__code__ is other.__code__ is code
    assert shop.root is root


def test_values_of_all_threads_arrive_once(stage, often):
    def work(x):
        return x

    class Sink:
        def histogram(self, name, values, tags):
            got.extend(values)

        def close(self):
            pass

    got = []
    manager = InstrumentManager()
    manager.sinks.append(Sink())
    metric = HistogramInstrument("n", "x", mgr=manager)
    probe = attach_to(stage.place(work))
    probe.attach("k", metric)
    threads = [
        threading.Thread(target=lambda first=first: [work(first + n) for n in range(2000)])
        for first in range(0, 16_000, 2000)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        metric.flush()
    probe.stop()
    assert sorted(got) == list(range(16_000))
    assert metric.status.hits == 16_000


def test_starts_and_stops_of_many_probes_at_once(stage, often):
    functions = {}
    for number in range(8):
        exec(f"def f{number}(x): return x + {number}", functions)
    del functions["__builtins__"]
    shop = stage.module(**functions)
    codes = {name: each.__code__ for name, each in functions.items()}

    def worker(name):
        def work():
            probe = attach_to(f"{shop.__name__}.{name}")
            seen = probe.instruments["k"] = ProbeTestInstrument("n", "x", "end")
            probe.start()
            assert functions[name](1) == 1 + int(name[1:])
            probe.stop()
            assert seen.results == [1]
            assert functions[name].__code__ is codes[name]

        return work

    counts = run_together(*map(worker, functions), seconds=0.6)
    assert min(counts) >= 1


def test_threads_inside_a_function_come_out_right_when_its_probes_change(stage):
    entered, leave = threading.Semaphore(0), threading.Event()

    def work(x):
        local = x * 2
        entered.release()
        leave.wait(DEADLINE_SECONDS)
        if x % 3 == 0:
            raise ValueError(local)
        return local

    path = stage.place(work)
    code = work.__code__
    results = {}

    def call(x):
        try:
            results[x] = work(x)
        except ValueError as error:
            results[x] = error.args

    probe = attach_to(path)
    threads, x = [], 0
    instruments = []
    for event in ("call", "return", "end", None, "end", "return", None):
        if event is None:
            probe.stop()
        else:
            instruments.append(ProbeTestInstrument("n", "x", event))
            probe.attach(f"k{len(instruments)}", instruments[-1])
        for _ in range(2):
            threads.append(threading.Thread(target=call, args=(x,)))
            threads[-1].start()
            x += 1
            assert entered.acquire(timeout=DEADLINE_SECONDS)
    leave.set()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert results == {n: (n * 2,) if n % 3 == 0 else n * 2 for n in range(x)}
    assert work.__code__ is code
    # Those that were stopped while calls were inside had only their "call" hits.
    assert [len(each.results) for each in instruments] == [6, 0, 0, 0, 0]


def test_a_thread_that_dies_inside_an_instrument_silences_no_other(stage, monkeypatch):
    def work(x):
        return x

    class Killed(BaseException):
        pass

    class Dying(ProbeTestInstrument):
        def emit(self, name, value, tags):
            super().emit(name, value, tags)
            if value == 0:
                # As another thread would: what it raises itself ends the instrument alone.
                ident = ctypes.c_ulong(threading.get_ident())
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Killed))

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    seen = Dying("n", "x")
    probe = attach_to(stage.place(work))
    probe.attach("k", seen)
    thread = threading.Thread(target=work, args=(0,))
    thread.start()
    thread.join(DEADLINE_SECONDS)
    wait_until(lambda: reentrancy.BUSY == set())
    for number in range(1, 4):
        thread = threading.Thread(target=work, args=(number,))
        thread.start()
        thread.join(DEADLINE_SECONDS)
    probe.stop()
    assert seen.results == [0, 1, 2, 3]


def test_expiry_amid_calls_puts_the_code_back(stage, often):
    def work(x):
        return x

    path = stage.place(work)
    code = work.__code__
    probe = attach_to(path)
    deadline = time.monotonic() + 0.5

    def expire():
        probe.attach("k", HistogramInstrument("n", "x"), lifespan=timedelta(seconds=0.0001))
        wait_until(lambda: work.__code__ is code)

    def call():
        assert work(1) == 1

    counts = run_together(call, call, expire, seconds=0.5)
    assert time.monotonic() >= deadline
    assert counts[2] > 1
    assert work.__code__ is code


def test_what_another_thread_spoils_is_parsed_again():
    left = [SystemError("AST constructor recursion depth mismatch (before=90, after=39)")] * 2

    def make():
        if left:
            raise left.pop()
        return "made"

    assert expressions.parsing(make) == "made"
    left.extend([SystemError("for ever")] * 99)
    with pytest.raises(SystemError):
        expressions.parsing(make)
