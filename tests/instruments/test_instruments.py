from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from types import FunctionType

import pytest
from stage import DEADLINE_SECONDS, attached, in_thread, timers_ran
from waiting import in_child, wait_until

from diagnose import attach_to, handlers, targets
from diagnose.errors import (
    ExpressionNotAdmittedError,
    ExpressionSyntaxError,
    InstrumentError,
    UnknownNameError,
)
from diagnose.instruments import (
    HistogramInstrument,
    IncrementInstrument,
    Instrument,
    LogInstrument,
    ProbeTestInstrument,
    metrics,
)
from diagnose.instruments.base import remaining_seconds
from diagnose.limits import Limits
from diagnose.managers import InstrumentManager
from diagnose.sinks import standard
from diagnose.sites import site_of


class ListSink:
    def __init__(self):
        self.got = []
        self.arrived = threading.Event()

    def histogram(self, name, values, tags):
        self.got.append(("histogram", name, list(values), dict(tags)))
        self.arrived.set()

    def counter(self, name, total, tags):
        self.got.append(("counter", name, total, dict(tags)))
        self.arrived.set()

    def close(self):
        pass


@pytest.fixture
def sink():
    return ListSink()


@pytest.fixture
def manager(sink):
    manager = InstrumentManager()
    manager.sinks.append(sink)
    return manager


@pytest.fixture
def shop(stage):
    def same(x, **more):
        return x

    module = stage.module(same)
    module.path = f"{module.__name__}.same"
    return module


# --- metrics ----------------------------------------------------------------------------------


def test_values_reach_the_sinks_in_batches_by_themselves(shop, manager, sink):
    with attached(shop.path, HistogramInstrument("h", "x", mgr=manager)):
        for number in range(1000):
            shop.same(number)
        assert sink.arrived.wait(DEADLINE_SECONDS)
    values = [value for _, _, batch, _ in sink.got for value in batch]
    assert values == list(range(1000))
    assert len(sink.got) <= 3


def test_taking_an_instrument_off_sends_what_is_left(shop, manager, sink):
    histogram = HistogramInstrument("h", "x", mgr=manager)
    with attached(shop.path, histogram):
        shop.same(1)
    assert sink.got == [("histogram", "h", [1], {})]
    assert histogram.status.hits == 1


def test_counters_are_summed_before_they_are_sent(shop, manager, sink):
    counter = IncrementInstrument("c", "x", mgr=manager)
    with attached(shop.path, counter):
        for number in (1, 2.5, True):
            shop.same(number)
    assert sink.got == [("counter", "c", 4.5, {})]
    assert counter.status.hits == 3


def test_values_are_grouped_by_their_tags_which_are_text(shop, manager, sink):
    tags = {"tags": "{'tier': tier, 'size': 1, 2: None}"}
    with attached(shop.path, HistogramInstrument("h", "x", mgr=manager, custom=tags)):
        for number, tier in enumerate(["gold", "tin", "gold", 3]):
            shop.same(number, tier=tier)
    rest = {"size": "1", "2": "None"}
    assert sink.got == [
        ("histogram", "h", [0, 2], {"tier": "gold", **rest}),
        ("histogram", "h", [1], {"tier": "tin", **rest}),
        ("histogram", "h", [3], {"tier": "3", **rest}),
    ]


def test_the_managers_tags_are_on_metrics_too(shop, sink):
    class Tagging(InstrumentManager):
        def get_tags(self):
            return {"host": "web1"}

    manager = Tagging()
    manager.sinks.append(sink)
    with attached(shop.path, HistogramInstrument("h", "x", mgr=manager)):
        shop.same(1)
    assert sink.got == [("histogram", "h", [1], {"host": "web1"})]


class Numeric:
    """As numpy's numbers are."""

    def __float__(self):
        return 1.5


class Integral(int):
    pass


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (3, 3),
        (-2.5, -2.5),
        (True, 1),
        (Decimal("1.25"), 1.25),
        (Fraction(1, 4), 0.25),
        (timedelta(minutes=1), 60.0),
        (Numeric(), 1.5),
        (Integral(7), 7),
        (math.inf, math.inf),
        (10**30, 10**30),
    ],
)
@pytest.mark.parametrize("tags", [None, {"tags": "{}"}])
def test_numbers_of_all_kinds_are_values(shop, manager, sink, given, number, tags):
    histogram = HistogramInstrument("h", "x", mgr=manager, custom=tags)
    with attached(shop.path, histogram):
        shop.same(given)
    assert histogram.status.error is None
    assert sink.got == [("histogram", "h", [number], {})]
    assert type(sink.got[0][2][0]) in (int, float)


class Broken:
    def __float__(self):
        raise ArithmeticError("no number after all")


class Unprintable:
    def __repr__(self):
        raise ValueError("no repr")


@pytest.mark.parametrize(
    "given", ["3", b"3", None, [1], 1j, object(), Broken(), Unprintable(), "x" * 5000]
)
@pytest.mark.parametrize("kind", [HistogramInstrument, IncrementInstrument])
def test_what_is_no_number_is_an_error_of_the_instrument(shop, manager, sink, given, kind):
    metric, other = kind("h", "x", mgr=manager), HistogramInstrument("o", "1", mgr=manager)
    with attached(shop.path, metric, other):
        assert shop.same(given) is given
        timers_ran()
    assert metric.status.state == "error"
    assert len(metric.status.error) < 2000
    assert [got[1] for got in sink.got] == ["o"]


def test_the_error_for_what_is_no_number_says_what_to_do(shop, manager):
    metric = HistogramInstrument("h", "x", mgr=manager)
    with attached(shop.path, metric):
        shop.same(None)
    assert "a metric needs a number" in metric.status.error
    assert "exception is None" in metric.status.error


def test_a_metric_that_overrides_emit_is_handed_name_value_and_tags(shop, manager, sink):
    class Doubling(HistogramInstrument):
        def emit(self, name, value, tags):
            super().emit(name, value * 2, {**tags, "doubled": True})

    with attached(shop.path, Doubling("h", "x", mgr=manager, custom={"tags": "{'a': x}"})):
        shop.same(4)
    assert sink.got == [("histogram", "h", [8], {"a": "4", "doubled": "True"})]


def test_a_metric_whose_emit_is_put_on_the_instance_calls_that(shop, manager, sink):
    got = []
    metric = HistogramInstrument("h", "x", mgr=manager)
    metric.emit = lambda name, value, tags: got.append((name, value, tags))
    with attached(shop.path, metric):
        shop.same(5)
        metric.flush()
    assert got == [("h", 5, {})]
    assert sink.got == []


INSIDE = "use a local variable of the function or a global of its module"


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ("call", "use a parameter, or one of start, now, args, kwargs, frame"),
        (
            "return",
            (
                "use a parameter, or one of result, exception, elapsed, hotspots, start, end, now, "
                "args, kwargs, frame"
            ),
        ),
        ("end", INSIDE),
        ("line:+1", INSIDE),
    ],
)
def test_a_name_that_means_nothing_is_told_with_those_that_mean_something_there(shop, event, words):
    def plain(x):
        return x

    shop.plain = plain
    path = f"{shop.__name__}.plain"
    with pytest.raises(UnknownNameError) as caught:
        attach_to(path).attach("k", ProbeTestInstrument("n", "zzzzz", event))
    kind = event.partition(":")[0]
    assert str(caught.value) == (
        f"name 'zzzzz' means nothing for the event '{kind}' of this function; {words}"
    )


def test_an_instrument_on_two_functions_is_drained_until_the_last_is_left(stage, manager, sink):
    def one(x):
        return x

    def other(x):
        return x

    module = stage.module(one, other)
    metric = HistogramInstrument("h", "x", mgr=manager)
    first, second = (attach_to(f"{module.__name__}.{name}") for name in ("one", "other"))
    first.attach("k", metric)
    second.attach("k", metric)
    one(1)
    first.detach("k")
    sink.arrived.clear()
    other(2)
    assert sink.arrived.wait(DEADLINE_SECONDS)
    second.attach("k", metric)
    sink.arrived.clear()
    other(3)
    assert sink.arrived.wait(DEADLINE_SECONDS)
    second.detach("k")
    assert sorted(value for _, _, values, _ in sink.got for value in values) == [1, 2, 3]


@contextlib.contextmanager
def drain_that_waits():
    """Nothing is drained or sent inside of it."""
    waits, leave = threading.Event(), threading.Event()
    metrics._clockwork.hold()
    metrics._clockwork.soon(lambda: (waits.set(), leave.wait(DEADLINE_SECONDS)))
    assert waits.wait(DEADLINE_SECONDS)
    try:
        yield
    finally:
        leave.set()
        metrics._clockwork.release()


def test_more_values_than_a_buffer_holds_are_lost_with_a_warning(shop, manager, sink, monkeypatch):
    monkeypatch.setattr(metrics, "BUFFERED_VALUES", 10)
    metric = HistogramInstrument("h", "x", mgr=manager)
    with attached(shop.path, metric):
        with drain_that_waits():
            for number in range(25):
                shop.same(number)
        metric.flush()
        assert any("the oldest were dropped" in text for text in metric.warnings)
    assert [value for _, _, values, _ in sink.got for value in values] == list(range(15, 25))


def test_a_missing_sink_is_a_warning_and_hits_are_counted(shop):
    manager = InstrumentManager()
    metric = HistogramInstrument("h", "x", mgr=manager)
    with attached(shop.path, metric):
        shop.same(1)
        metric.flush()
        assert any("no metric sink" in text for text in metric.warnings)
        assert metric.status.hits == 1
        manager.sinks.append(ListSink())
        assert metric.warnings == ()


def test_a_broken_sink_is_logged_once_and_the_others_get_their_values(shop, manager, sink, caplog):
    class BrokenSink(ListSink):
        works = False

        def histogram(self, name, values, tags):
            if not self.works:
                raise OSError("the network is down")
            super().histogram(name, values, tags)

    broken = BrokenSink()
    manager.sinks.insert(0, broken)
    metric = HistogramInstrument("h", "x", mgr=manager)
    with attached(shop.path, metric):
        for number in range(3):
            shop.same(number)
            metric.flush()
        assert any("a metric sink raised" in text for text in metric.warnings)
        broken.works = True
        shop.same(3)
        metric.flush()
        assert metric.warnings == ()
        assert metric.status.state == "emitting"
    assert caplog.text.count("OSError: the network is down") == 1
    assert [values for _, _, values, _ in sink.got] == [[0], [1], [2], [3]]
    assert broken.got == [("histogram", "h", [3], {})]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, OSError])
def test_whatever_a_sink_raises_is_logged_once_and_the_rest_goes_on(
    error, stage, manager, sink, caplog
):
    def one(x):
        return x

    def other(x):
        return x

    class Raising(ListSink):
        def histogram(self, name, values, tags):
            raise error

        counter = histogram

    module = stage.module(one, other)
    manager.sinks.insert(0, Raising())
    metrics_on = [
        kind(f"{kind.__name__} {path}", "x", mgr=manager)
        for kind in (HistogramInstrument, IncrementInstrument)
        for path in ("one", "other")
    ]
    with attached(f"{module.__name__}.one", *metrics_on[::2]):
        with attached(f"{module.__name__}.other", *metrics_on[1::2]):
            for number in range(3):
                one(number)
                other(number)
                for metric in metrics_on:
                    metric.flush()
            thread = metrics._clockwork.thread
            assert all("a metric sink raised" in metric.warnings[0] for metric in metrics_on)
    assert thread is not None
    assert len(sink.got) == 12
    assert [metric.status.hits for metric in metrics_on] == [3] * 4
    assert caplog.text.count(f" {error.__name__}\n") + caplog.text.count(f"\n{error.__name__}") == 1


def test_a_sink_that_hangs_is_waited_for_once_by_whoever_takes_instruments_off(
    shop, manager, monkeypatch, caplog
):
    monkeypatch.setattr(metrics, "SETTLE_SECONDS", 0.05)
    gate, inside = threading.Event(), threading.Event()

    class Hanging(ListSink):
        def histogram(self, name, values, tags):
            inside.set()
            gate.wait(DEADLINE_SECONDS)
            super().histogram(name, values, tags)

    hanging = Hanging()
    manager.sinks[:] = [hanging]
    several = [HistogramInstrument(f"h{number}", "x", mgr=manager) for number in range(5)]
    with attached(shop.path, *several):
        shop.same(1)
        assert inside.wait(DEADLINE_SECONDS)
        shop.same(2)
    assert caplog.text.count("a metric sink has not come to an end") == 1
    monkeypatch.setattr(metrics, "HANGS_AFTER_SECONDS", -1)
    assert any("does not come to an end" in text for text in several[0].warnings)
    monkeypatch.undo()
    gate.set()
    wait_until(lambda: sum(len(values) for _, _, values, _ in hanging.got) == 10)
    with attached(shop.path, several[0]):
        shop.same(3)
    assert hanging.got[-1] == ("histogram", "h0", [3], {})


def test_a_sink_that_has_been_at_it_for_five_seconds_is_said_to_hang(shop, manager, monkeypatch):
    gate, inside, moment = threading.Event(), threading.Event(), [100.0]
    monkeypatch.setattr(metrics, "_clock", lambda: moment[0])

    class Slow(ListSink):
        def histogram(self, name, values, tags):
            inside.set()
            gate.wait(DEADLINE_SECONDS)

    manager.sinks[:] = [Slow()]
    metric = HistogramInstrument("h", "x", mgr=manager)
    with attached(shop.path, metric):
        assert metric.warnings == ()
        shop.same(1)
        assert inside.wait(DEADLINE_SECONDS)
        for moment[0] in (100.0, 105.0):
            assert metric.warnings == ()
        moment[0] = 105.1
        assert [text.split(":")[0] for text in metric.warnings] == [
            "a metric sink does not come to an end"
        ]
        gate.set()
        wait_until(lambda: metric.warnings == ())


def test_an_expiry_does_not_wait_for_a_sink(shop, manager):
    gate, inside = threading.Event(), threading.Event()

    class Hanging(ListSink):
        def histogram(self, name, values, tags):
            inside.set()
            gate.wait(DEADLINE_SECONDS)

    class Finished(HistogramInstrument):
        def finish(self):
            finished.set()

    finished = threading.Event()
    manager.sinks[:] = [Hanging()]
    attach_to(shop.path).attach("other", HistogramInstrument("other", "x", mgr=manager))
    shop.same(1)
    assert inside.wait(DEADLINE_SECONDS)
    attach_to(shop.path).attach(
        "k", Finished("h", "x", mgr=manager), lifespan=timedelta(milliseconds=10)
    )
    shop.same(2)
    assert finished.wait(DEADLINE_SECONDS)
    assert not metrics._drain._is_stuck  # nobody has waited
    gate.set()
    attach_to(shop.path).stop()


# Those of the first kind are appended by the function's own code, without a handler.
@pytest.mark.parametrize("value", ["elapsed", "1.5", "x", "x + 0"])
@pytest.mark.parametrize("kind", [HistogramInstrument, IncrementInstrument])
def test_a_copy_of_the_code_that_outlives_the_probe_records_nothing(
    shop, manager, sink, value, kind
):
    metric = kind("h", value, mgr=manager)
    with attached(shop.path, metric):
        shop.same(1)
        copy = FunctionType(shop.same.__code__, vars(shop))
        copy(1)
    assert metric.status.hits == 2
    sink.got.clear()
    copy(1)
    with attached(shop.path, metric):
        copy(1)
        metric.flush()
        assert sink.got == []
        shop.same(1)
    assert metric.status.hits == 3
    assert len(sink.got) == 1
    assert len(metric._buffers) == 0


def test_an_instrument_that_is_suspended_now_and_then_gathers_no_buffers(shop, manager):
    for value in ("elapsed", "x"):
        metric = HistogramInstrument("h", value, mgr=manager)
        with attached(shop.path, metric) as probe:
            (attachment,) = probe._attachments.values()
            for _ in range(20):
                shop.same(1)
                attachment.suspend("it costs")
                attachment.resume()
                metric.flush()
            shop.same(1)
            assert len(metric._buffers) == 1
        assert metric.status.hits == 21


def test_a_sink_may_take_the_instrument_off(shop, manager):
    class Enough(ListSink):
        def histogram(self, name, values, tags):
            attach_to(shop.path).detach("k")
            super().histogram(name, values, tags)

    enough = Enough()
    manager.sinks[:] = [enough]
    attach_to(shop.path).attach("k", HistogramInstrument("h", "x", mgr=manager))
    shop.same(1)
    assert enough.arrived.wait(DEADLINE_SECONDS)
    assert enough.got == [("histogram", "h", [1], {})]
    assert attach_to(shop.path).instruments == {}
    attach_to(shop.path).stop()


def test_what_a_sink_does_is_not_probed(stage, shop, manager):
    def deliver(values):
        delivered.extend(values)

    class Delivering(ListSink):
        def histogram(self, name, values, tags):
            deliver(values)
            super().histogram(name, values, tags)

    delivered = []
    delivering = Delivering()
    manager.sinks[:] = [delivering]
    with attached(shop.path, HistogramInstrument("h", "x", mgr=manager)):
        with attached(stage.place(deliver), ProbeTestInstrument("n", "1")) as probe:
            shop.same(1)
            assert delivering.arrived.wait(DEADLINE_SECONDS)
            (seen,) = probe.instruments.values()
    assert delivered == [1]
    assert seen.status.hits == 0


def test_a_slow_sink_delays_no_call(shop, manager):
    gate, inside = threading.Event(), threading.Event()

    class Slow(ListSink):
        def histogram(self, name, values, tags):
            inside.set()
            gate.wait(DEADLINE_SECONDS)

    manager.sinks[:] = [Slow()]
    metric = HistogramInstrument("h", "x", mgr=manager)
    with attached(shop.path, metric):
        shop.same(1)
        assert inside.wait(DEADLINE_SECONDS)
        assert in_thread(shop.same, 2) == 2
        gate.set()


def test_a_child_sends_its_own_values_and_drains_once(shop, manager, sink):
    metric = HistogramInstrument("h", "x", mgr=manager)
    with attached(shop.path, metric):
        shop.same(1)

        def grandchild():
            shop.same(3)
            assert sink.arrived.wait(10)
            # One timer for the drain, not one for each generation.
            wait_until(lambda: len(metrics._clockwork._heap) <= 1, seconds=10)
            return [values for _, _, values, _ in sink.got]

        def child():
            shop.same(2)
            below = in_child(grandchild)
            assert sink.arrived.wait(10)
            return below, [values for _, _, values, _ in sink.got]

        assert in_child(child) == "('[[3]]', [[2]])"
    assert [values for _, _, values, _ in sink.got] == [[1]]


# --- log --------------------------------------------------------------------------------------


def test_a_log_line_has_the_form_that_users_know(shop, capsys):
    with attached(shop.path, LogInstrument("cart.size", "x", custom={"tags": "{'a': 'b'}"})):
        shop.same(3)
    assert capsys.readouterr().out == "Probe (cart.size)[tags={'a': 'b'}] = 3\n"


def test_a_log_goes_where_out_says_on_the_class_a_subclass_or_the_instance(shop):
    class Mine(LogInstrument):
        out = io.StringIO()

    other = LogInstrument("b", "x")
    other.out = io.StringIO()
    with attached(shop.path, Mine("a", "x"), other):
        shop.same("v")
    assert Mine.out.getvalue() == "Probe (a)[tags={}] = v\n"
    assert other.out.getvalue() == "Probe (b)[tags={}] = v\n"


def test_standard_output_is_what_it_is_at_the_hit(shop, monkeypatch):
    with attached(shop.path, LogInstrument("a", "x")):
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        shop.same(1)
        assert sys.stdout.getvalue() == "Probe (a)[tags={}] = 1\n"


@pytest.mark.parametrize(
    "value",
    [
        "x" * 100_000,
        list(range(1_000_000)),
        dict.fromkeys(range(10000), "v" * 100),
        ["y" * 50_000] * 3,
        tuple(range(3000)),
        set(range(5000)),
        10**1900,
    ],
)
def test_long_values_are_cut(shop, value):
    class Short(LogInstrument):
        MAX_CHARS = 80
        out = io.StringIO()

    line = LogInstrument("a", "x")
    line.out = io.StringIO()
    short = Short("a", "x")
    short.out = io.StringIO()
    with attached(shop.path, line, short):
        shop.same(value)
    text = line.out.getvalue().removeprefix("Probe (a)[tags={}] = ").removesuffix("\n")
    assert 0 < len(text) <= LogInstrument.MAX_CHARS
    text = short.out.getvalue().removeprefix("Probe (a)[tags={}] = ").removesuffix("\n")
    assert 0 < len(text) <= 80
    if not isinstance(value, int):
        assert "..." in text


def test_an_output_that_fails_disarms_the_log_only(shop):
    class Closed:
        def write(self, text):
            raise OSError("closed")

    class Quiet(InstrumentManager):
        def handle_error(self, probe=None, instrument=None):
            pass

    log, other = LogInstrument("a", "x", mgr=Quiet()), ProbeTestInstrument("b", "x")
    log.out = Closed()
    with attached(shop.path, log, other):
        shop.same(1)
        shop.same(2)
    assert "OSError: closed" in log.status.error
    assert other.results == [1, 2]


# --- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ProbeTestInstrument, HistogramInstrument])
@pytest.mark.parametrize("event", ["call", "return", "end"])
def test_after_its_last_hit_an_instrument_is_done_and_costs_nothing(shop, kind, event):
    code = shop.same.__code__
    limited = kind("n", "x", event, limits=Limits(hits=3))
    with attached(shop.path, limited):
        for number in range(3):
            assert shop.same(number) == number
        timers_ran()
        assert shop.same.__code__ is code
        assert shop.same(9) == 9
    limited.flush()
    assert limited.status.hits == 3
    assert limited.status.state == "done"


def test_threads_share_the_hits_of_an_instrument_exactly(shop):
    limited = ProbeTestInstrument("n", "x", limits=Limits(hits=100))
    with attached(shop.path, limited):
        threads = [
            threading.Thread(target=lambda: [shop.same(n) for n in range(200)]) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
    assert len(limited.results) == 100
    assert limited.status.state == "done"


def test_a_condition_is_asked_before_hits_and_rates_are_counted(shop):
    limits = Limits(rate=2, hits=5)
    limited = ProbeTestInstrument("n", "x", when="x % 2", limits=limits)
    begin = time.monotonic()
    with attached(shop.path, limited):
        for number in range(10):
            shop.same(number)
    assert limited.status.suppressed["condition"] == 5
    assert limited.results == [1, 3] or time.monotonic() - begin > 0.9


@pytest.mark.parametrize(
    "when",
    [
        *("x", "not x", "x == 1", "x != 1.5", "-1 < x <= 2", "x is True", "x is not None"),
        *("x in (1, 1.5, 'a')", "x not in (0, True)", "x in {2, None}", "(x, x) == (1, 1)"),
        *("x + 1 == 2", "x - 1 == 0 or -x == 1", "x and +x // 1 == 1", "x / 1 < 1"),
        *("x * 2 == 2", "x in [1, 2]", "x == (1 if x else 0)", "'1' in f'{x}'"),
    ],
)
@pytest.mark.parametrize("event", ["call", "return"])
def test_a_condition_decides_as_python_does(shop, event, when):
    values = [0, 1, 2, -1, True, False, 1.0, 1.5, -0.5, 10**30]
    seen = ProbeTestInstrument("n", "x", event, when=when)
    with attached(shop.path, seen):
        for value in values:
            shop.same(value)
    wanted = [value for value in values if eval(when, {"x": value})]
    assert list(map(repr, seen.results)) == list(map(repr, wanted))
    assert seen.status.suppressed["condition"] == len(values) - len(wanted)


def test_a_sample_takes_a_share(shop):
    sampled = ProbeTestInstrument("n", "x", limits=Limits(sample=0.5))
    with attached(shop.path, sampled):
        for number in range(2000):
            shop.same(number)
    assert 800 < len(sampled.results) < 1200
    assert sampled.status.suppressed["sample"] == 2000 - len(sampled.results)


def test_log_lines_are_limited_to_a_hundred_a_second(shop):
    log = LogInstrument("n", "x")
    log.out = io.StringIO()
    begin = time.monotonic()
    with attached(shop.path, log):
        for number in range(150):
            shop.same(number)
    lines = log.out.getvalue().count("\n")
    assert lines == 100 or time.monotonic() - begin > 0.9
    assert lines + log.status.suppressed["rate"] == 150


# --- how instruments are described ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 3}, "name has to be a string, not 3"),
        ({"value": None}, "value has to be an expression in a string"),
        ({"event": 3}, "event has to be a string"),
        ({"event": "retrun"}, "there is no event 'retrun'; did you mean 'return'"),
        ({"event": "line"}, "use one of call, return, end"),
        ({"custom": ["tags"]}, "custom has to be a dict"),
        ({"expires": 10}, "expires has to be a datetime"),
        ({"when": True}, "when has to be an expression in a string"),
    ],
)
def test_an_argument_of_the_wrong_type_is_an_error(arguments, message):
    with pytest.raises(InstrumentError, match=message):
        Instrument(**{"name": "n", "value": "1", **arguments})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"value": "1 +"}, ExpressionSyntaxError, "value '1 \\+'"),
        ({"value": ""}, ExpressionSyntaxError, "value ''"),
        ({"value": "1", "when": "1 +"}, ExpressionSyntaxError, "when '1 \\+'"),
        ({"value": "1", "custom": {"tags": "{"}}, ExpressionSyntaxError, r"custom.tags '\{'"),
        ({"value": "1", "custom": {"tags": 3}}, InstrumentError, "custom.tags has to be"),
        ({"value": "x.__class__", "policy": "restricted"}, ExpressionNotAdmittedError, "__class__"),
    ],
)
def test_an_expression_that_can_not_be_used_is_an_error_of_attach(shop, options, error, message):
    code = shop.same.__code__
    with pytest.raises(error, match=message):
        with attached(shop.path, Instrument("n", **options)):
            pass
    assert shop.same.__code__ is code


def test_the_first_six_arguments_have_the_names_and_the_order_that_users_know():
    manager = InstrumentManager()
    expires = datetime(2030, 1, 1)
    instrument = Instrument("n", "v", "call", expires, {"tags": "{}"}, manager)
    assert (instrument.name, instrument.value, instrument.event) == ("n", "v", "call")
    assert (instrument.expires, instrument.custom) == (expires, {"tags": "{}"})
    assert instrument.mgr is manager
    instrument.mgr = None
    assert isinstance(instrument.mgr, InstrumentManager)
    assert repr(instrument) == "Instrument('n', 'v', event='call')"
    assert Instrument("n", "v").event == "return"


def test_evaluate_merge_tags_and_fire_can_be_called_by_hand():
    class Tagging(InstrumentManager):
        def get_tags(self):
            return {"host": "web1"}

    seen = ProbeTestInstrument("n", "x + y", mgr=Tagging(), custom={"tags": "{'x': x}"})
    assert seen.evaluate("[x * n for n in range(y)]", {"y": 3}, {"x": 2}) == [0, 2, 4]
    assert seen.merge_tags({}, {"x": 2}) == {"host": "web1", "x": 2}
    seen.fire({"y": 1}, {"x": 2})
    assert seen.log == [({"host": "web1", "x": 2}, 3)]
    restricted = ProbeTestInstrument("n", "x", policy="restricted")
    assert restricted.evaluate("len(x)", {}, {"x": [1]}) == 1
    with pytest.raises(ExpressionNotAdmittedError):
        restricted.evaluate("x.__class__", {}, {"x": [1]})


def test_an_override_on_the_instance_counts(shop):
    seen = Instrument("n", "x")
    got = []
    seen.fire = lambda globals_, locals_: got.append(locals_["x"])
    with attached(shop.path, seen):
        shop.same(5)
    assert got == [5]


@pytest.mark.parametrize("policy", ["python", "restricted"])
@pytest.mark.parametrize(
    "value",
    [
        "(x, len(x))",
        "sorted(n + 1 for n in x)",
        "{k: 1 for k in x}",
        "f'{x}'",
        "max(x) if x else 0",
    ],
)
def test_both_policies_evaluate_the_same(shop, policy, value):
    seen = ProbeTestInstrument("n", value, policy=policy)
    with attached(shop.path, seen):
        shop.same([3, 1])
    assert seen.status.error is None
    assert seen.results == [eval(value, {"x": [3, 1]})]


def test_the_time_that_is_left_counts_from_now():
    now = datetime.now(UTC)
    assert 59 < remaining_seconds(now + timedelta(seconds=60)) <= 60
    assert 59 < remaining_seconds((now + timedelta(seconds=60)).replace(tzinfo=None)) <= 60
    assert remaining_seconds(datetime(2001, 1, 1)) < 0


# --- standard output --------------------------------------------------------------------------


@pytest.fixture
def pipe_of(monkeypatch):
    """Called in a test, it gives a real standard output: what is written to it can be read."""
    read, write = os.pipe()
    with os.fdopen(read) as reader, os.fdopen(write, "w") as real:

        def begin():  # not before: pytest puts its own in place as the test begins
            monkeypatch.setattr(sys, "stdout", real)
            monkeypatch.setattr(sys, "__stdout__", real)
            monkeypatch.setattr(standard.STANDARD_OUTPUT, "lost", False)
            return reader

        yield begin


def test_lines_for_the_real_standard_output_pass_its_stream_in_order(shop, pipe_of):
    pipe = pipe_of()
    with attached(shop.path, LogInstrument("a", "x")):
        sys.stdout.write("the program's own, kept in its buffer\n")
        for number in range(50):
            shop.same(number)
        lines = [pipe.readline() for _ in range(50)]
    assert lines == [f"Probe (a)[tags={{}}] = {number}\n" for number in range(50)]
    sys.stdout.flush()
    assert pipe.readline() == "the program's own, kept in its buffer\n"


def test_lines_stand_where_they_belong_if_the_program_keeps_no_buffer(shop, pipe_of):
    pipe = pipe_of()
    sys.stdout.reconfigure(write_through=True)
    with attached(shop.path, LogInstrument("a", "x")):
        for number in range(5):
            shop.same(number)
            print(number, flush=True)
        lines = [pipe.readline() for _ in range(10)]
    expected = [(f"Probe (a)[tags={{}}] = {number}\n", f"{number}\n") for number in range(5)]
    assert lines == [line for pair in expected for line in pair]


def test_text_that_the_output_cannot_encode_is_escaped(shop, pipe_of):
    pipe = pipe_of()
    sys.stdout.reconfigure(encoding="ascii")
    with attached(shop.path, LogInstrument("a", "x")):
        shop.same("é\udc80")
        assert pipe.readline() == "Probe (a)[tags={}] = \\xe9\\udc80\n"


@pytest.mark.parametrize("how", ["close", "none"])
def test_without_a_standard_output_lines_are_lost_with_a_warning(shop, pipe_of, how, monkeypatch):
    pipe_of()
    log = LogInstrument("a", "x")
    with attached(shop.path, log):
        assert log.warnings == ()
        if how == "close":
            sys.stdout.close()
        else:
            monkeypatch.setattr(sys, "stdout", None)
        assert shop.same(1) == 1
    assert log.status.state != "error"
    assert log.status.hits == 1
    assert "lines were lost" in log.warnings[0]


def test_a_childs_lines_are_its_own(shop, pipe_of):
    pipe = pipe_of()
    with attached(shop.path, LogInstrument("a", "x")):
        shop.same("parent")

        def child():
            shop.same("child")
            standard.STANDARD_OUTPUT.settle()

        in_child(child)
        lines = sorted(pipe.readline() for _ in range(2))
    assert lines == [f"Probe (a)[tags={{}}] = {who}\n" for who in ("child", "parent")]
    sys.stdout.close()
    assert pipe.read() == ""


def test_a_log_without_a_probe_writes_too(pipe_of):
    pipe = pipe_of()
    LogInstrument("a", "x").emit("a", 1, {})
    assert pipe.readline() == "Probe (a)[tags={}] = 1\n"


def test_what_serves_hits_can_be_read(shop):
    scope = site_of(targets.resolve(shop.path, import_modules=False), inside=False).scope(
        "return", {}
    )
    shown = []
    for instrument in (
        ProbeTestInstrument("n", "(x, elapsed)", "return", when="x > 3", limits=Limits(hits=2)),
        HistogramInstrument("n", "elapsed"),
    ):
        plan = instrument.plan(None, lambda error: True, lambda: None)
        shown.append(handlers.text(plan, scope))
        compile(shown[-1], "text", "exec")
    assert "C·emit(C·name, E·value, {})" in shown[0]
    assert "if not E·when:" in shown[0]
    assert "C·next(C·tokens, None)" in shown[0]
    assert "C·append(E·number)" in shown[1]


def test_an_override_that_looks_like_the_method_it_overrides_is_asked(shop):
    class Strict(InstrumentManager):
        @functools.wraps(InstrumentManager.check_call)
        def check_call(self, *args, **kwargs):
            return False

        @functools.wraps(InstrumentManager.get_tags)
        def get_tags(self):
            return {"a": 1}

    strict = Strict()
    watched, tagged = (ProbeTestInstrument("n", "x", mgr=strict) for _ in range(2))
    tagged.check_call = lambda *args, **kwargs: True
    with attached(shop.path, watched, tagged):
        shop.same(1)
    assert (watched.log, tagged.log) == ([], [({"a": 1}, 1)])
    assert watched.status.suppressed["check"] == 1
