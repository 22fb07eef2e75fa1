from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
import weakref
from datetime import timedelta
from pathlib import Path

import leftovers
import pytest
from stage import Stage, attached, events, frees_code, probed, timers_ran

from diagnose import attach_to, registry, sites
from diagnose.instruments import HistogramInstrument, LogInstrument, ProbeTestInstrument
from diagnose.managers import InstrumentManager

# `make proof`: more than a million hits, and more than ten thousand cycles of start and stop.
REPEATS = int(os.environ.get("DIAGNOSE_TEST_REPEATS", "1"))


class Thing:
    """Something whose end can be watched."""


def growth(work, times, *, warm):
    """Blocks of memory and objects that ``times`` more runs leave, once things have settled.

    The least of several rounds: caches of the interpreter fill for a while, a leak goes on.
    """

    def settle():
        timers_ran()
        gc.collect()
        # The fixture that looks for probes left behind notes the code of every function.
        noted = leftovers.originals
        for key, (function, _) in list(noted.items()):
            if function() is None or function().__name__ == "handler":
                del noted[key]
        gc.collect()
        return sys.getallocatedblocks(), len(gc.get_objects())

    for _ in range(warm):
        work()
    settle()
    before, rounds = settle(), []
    for _ in range(4):
        for _ in range(times):
            work()
        after = settle()
        rounds.append((after[0] - before[0], after[1] - before[1]))
        before = after
    return min(blocks for blocks, _ in rounds), min(objects for _, objects in rounds)


def test_hits_leave_nothing_behind(stage):
    def work(x):
        y = x
        return y

    log = LogInstrument("n", "x")
    metrics = [HistogramInstrument("n", "elapsed", each) for each in ("return",)]
    with Path(os.devnull).open("w") as log.out:
        instruments = [
            log,
            *metrics,
            HistogramInstrument("n", "y", "end"),
            HistogramInstrument("n", "x", "call", custom={"tags": "{'x': x}"}),
        ]
        with attached(stage.place(work), *instruments):

            def hits():
                for number in range(1000):
                    work(number % 10)
                for each in metrics:
                    each.flush()
                for each in instruments:
                    each.flush()

            blocks, objects = growth(hits, 50 * REPEATS, warm=20)
    assert objects < 100
    assert blocks < 500


@frees_code
@pytest.mark.parametrize(
    "kind", ["function", "end", "line", "hotspots", "generator", "coroutine", "reference"]
)
def test_starting_and_stopping_leaves_nothing_behind(stage, kind):
    def work(x):
        return x

    def numbers(x):
        yield x

    async def wait(x):
        return x

    module = stage.module(work, numbers, wait, root="".join)
    name = {"generator": "numbers", "coroutine": "wait", "reference": "root"}.get(kind, "work")
    path = f"{module.__name__}.{name}"
    event = {"end": "end", "line": "line:+1"}.get(kind, "return")
    value = {"end": "x", "line": "x", "hotspots": "hotspots.worst"}.get(kind, "args")
    manager = InstrumentManager()

    def cycle():
        probe = attach_to(path)
        probe.instruments["k"] = HistogramInstrument("n", "1", event, mgr=manager)
        probe.start()
        probe.attach("l", ProbeTestInstrument("n", value, event))
        probe.stop()

    times = (6 if kind == "reference" else 60) * REPEATS
    blocks, objects = growth(cycle, times, warm=20)
    assert objects < min(times, 100)
    assert blocks < min(5 * times, 500)
    assert registry._on_site == {}
    assert sites._sites == {}


def test_arguments_and_results_die_after_the_call(stage, names):
    def work(thing, *rest, **more):
        local = Thing()
        died.append(weakref.ref(local))
        return Thing()

    died = []
    with events(stage.place(work), names):
        arguments = [Thing() for _ in range(3)]
        died += [weakref.ref(each) for each in arguments]
        result = work(arguments[0], arguments[1], more=arguments[2])
        died.append(weakref.ref(result))
        del arguments, result
        # Without the collector: there are no cycles either.
        assert [each() for each in died] == [None] * 5


def test_arguments_die_after_a_call_that_raised(stage, names):
    def work(thing):
        raise ValueError

    died = []
    with events(stage.place(work), names):
        thing = Thing()
        died.append(weakref.ref(thing))
        with contextlib.suppress(ValueError):
            work(thing)
        del thing
        assert died[0]() is None


def test_what_generators_and_coroutines_hold_dies_with_them(stage, names):
    def numbers(thing):
        got = yield 1
        died.append(weakref.ref(got))
        del got
        yield 2

    async def work(thing):
        await asyncio.sleep(0)
        raise ValueError

    died = []
    with events(stage.place(numbers), names), events(stage.place(work), names):
        thing = Thing()
        died.append(weakref.ref(thing))
        generator = numbers(thing)
        next(generator)
        generator.send(Thing())
        del generator, thing
        thing = Thing()
        died.append(weakref.ref(thing))
        coroutine = work(thing)
        coroutine.send(None)
        with contextlib.suppress(ValueError):
            coroutine.send(None)
        del coroutine, thing
        assert [each() for each in died if each() is not None] == []


def test_what_is_sent_into_a_generator_dies_before_the_next_value_is_asked_for(stage, names):
    def sink():
        while True:
            yield

    with events(stage.place(sink), names):
        generator = sink()
        next(generator)
        thing = Thing()
        died = weakref.ref(thing)
        generator.send(thing)
        del thing
        assert died() is None
        generator.close()


def test_tags_and_values_of_metrics_keep_nothing_alive(stage):
    def work(thing):
        return thing

    class Number:
        def __float__(self):
            return 1.0

    path = stage.place(work)
    with attached(path, HistogramInstrument("n", "result", custom={"tags": "{'t': thing}"})):
        thing = Number()
        died = weakref.ref(thing)
        work(thing)
        del thing
        assert died() is None


def test_errors_of_instruments_keep_nothing_alive(stage):
    class Quiet(InstrumentManager):
        def handle_error(self, probe=None, instrument=None):
            pass

    def work(thing):
        return thing

    with probed(stage.place(work), "1 // (thing is None)", mgr=Quiet()) as seen:
        thing = Thing()
        died = weakref.ref(thing)
        work(thing)
        del thing
        gc.collect()
        assert seen.status.state == "error"
        assert died() is None


@frees_code
@pytest.mark.parametrize("event", ["call", "return", "end"])
def test_a_function_and_its_module_can_be_collected_after_stop(event):
    with Stage() as stage:
        module = stage.script("def work(x):\n    return x")
        died = [weakref.ref(module.work), weakref.ref(module)]
        with probed(f"{module.__name__}.work", "x", event) as seen:
            module.work(1)
    del module, stage
    timers_ran()
    gc.collect()
    assert seen.results == [1]
    assert [each() for each in died] == [None, None]


@frees_code
def test_a_probe_that_expired_keeps_nothing_alive():
    finished = threading.Event()

    class Expiring(ProbeTestInstrument):
        def detached(self):
            super().detached()
            finished.set()

    with Stage() as stage:
        module = stage.script("def work(x):\n    return x")
        died = weakref.ref(module.work)
        attach_to(f"{module.__name__}.work").attach(
            "k", Expiring("n", "x"), lifespan=timedelta(seconds=0.01)
        )
        assert finished.wait(30)
    del module, stage
    timers_ran()
    gc.collect()
    assert died() is None


@frees_code
@pytest.mark.parametrize("lifespan", [None, timedelta(hours=1)])
def test_an_instrument_that_is_dropped_is_collected(stage, lifespan):
    def work(x):
        return x

    metric = HistogramInstrument("n", "x")
    died = weakref.ref(metric)
    probe = attach_to(stage.place(work))
    probe.attach("k", metric, lifespan=lifespan)
    work(1)
    probe.detach("k")
    del metric
    timers_ran()
    gc.collect()
    assert died() is None
