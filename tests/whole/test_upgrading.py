"""What was written for diagnose 5.0.1 goes on, as docs/upgrading.md says.

A test's docstring is the claim of the page that it is about, by its words in bold. The meanings
were measured at the package from PyPI, by calling it. Here: instruments; managers and
breakpoints have files of their own.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from modules import loaded
from waiting import wait_until

import diagnose
from diagnose import hotspots, probes
from diagnose.instruments import (
    HistogramInstrument,
    IncrementInstrument,
    Instrument,
    LogInstrument,
    ProbeTestInstrument,
)
from diagnose.limits import Limits
from diagnose.managers import InstrumentManager, mag

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "upgrading.md"

SOURCE = """
def double(x):
    return x * 2

def quadruple(x):
    return double(double(x))

def fail(x):
    raise ValueError(x)

def forgiving(x):
    try:
        return fail(x)
    except ValueError:
        return "forgiven"

def spots(wait):
    for _ in range(20):
        wait(0.02)
    for _ in range(2):
        wait(0.12)

class Cart:
    pass
"""


def test_each_claim_of_the_page_has_a_test_and_each_test_a_claim():
    claims = re.findall(r"^- \*\*(.+?)\*\*", PAGE.read_text(), re.MULTILINE)
    tested = [
        ast.get_docstring(node)
        for path in TESTS.rglob("test_upgrading*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(claims) > 30
    assert sorted(each.removesuffix(".") for each in tested if each) == sorted(claims)


@pytest.fixture
def probe(shop):
    made = probes.attach_to("probed_shop.double")
    yield made
    made.stop()
    made.instruments.clear()


@pytest.fixture
def manager(shop):
    made = InstrumentManager("me")
    yield made
    made.stop()


@pytest.fixture
def sink():
    """Where metrics of the default manager go."""
    kept = Kept()
    diagnose.manager.sinks.append(kept)
    yield kept
    diagnose.manager.sinks.remove(kept)


class Kept:
    def __init__(self):
        self.samples, self.totals = [], []

    def histogram(self, name, values, tags):
        self.samples += [(name, value, tags) for value in values]

    def counter(self, name, total, tags):
        self.totals.append((name, total, tags))


class Fires(Instrument):
    """A subclass as programs have it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.fired, self.said = [], []

    def fire(self, _globals, _locals):
        value = self.evaluate(self.value, _globals, _locals)
        self.fired.append((value, self.merge_tags(_globals, _locals)))

    def handle_error(self, probe):
        self.said.append((probe.target, sys.exc_info()[0]))


def values_of(*expressions, target="probed_shop.double", call):
    """What each of them is at a call."""
    found = []
    for expression in expressions:
        with diagnose.sensor(target, expression) as seen:
            call()
        found += seen.results
    return found


# --- what goes on as it is --------------------------------------------------------------------


def test_probes_are_attached_started_listed_and_stopped(shop):
    """Probes."""
    probe = diagnose.probes.attach_to("probed_shop.double")
    assert probes.attach_to("probed_shop.double") is probe is diagnose.attach_to(probe.target)
    seen = probe.instruments["k"] = ProbeTestInstrument("n", "result")
    shop.double(1)
    probe.start()
    assert probes.active_probes == {"probed_shop.double": probe}
    shop.double(2)
    probe.stop()
    shop.double(3)
    assert seen.results == [4]
    other = ProbeTestInstrument("n", "x")
    made = probes.FunctionProbe("probed_shop.quadruple", {"k": other})
    assert (made.target, dict(made.instruments)) == ("probed_shop.quadruple", {"k": other})
    waiting = probes.attach_to("probed_shop.quadruple")
    waiting.instruments["k"] = other
    probes.start_all()
    shop.quadruple(1)
    waiting.stop()
    assert other.results == [1]


def test_instruments_take_their_arguments_by_position(manager):
    """An instrument's arguments."""
    expires = datetime.now(UTC) + timedelta(hours=1)
    for kind in (Instrument, LogInstrument, HistogramInstrument, IncrementInstrument, Fires):
        made = kind("n", "x", "call", expires, {"tags": "{}"}, manager)
        assert (made.name, made.value, made.event) == ("n", "x", "call")
        assert (made.expires, made.custom, made.mgr) == (expires, {"tags": "{}"}, manager)
    plain = Instrument("n", "x")
    assert (plain.event, plain.expires, plain.custom) == ("return", None, {})
    assert plain.mgr is diagnose.manager


@pytest.mark.parametrize("event", ["call", "return", "end"])
def test_a_fire_of_one_s_own_gets_two_mappings(shop, probe, event):
    """Overridden `fire`."""
    value = "args[0]" if event == "call" else "x"
    seen = probe.instruments["k"] = Fires("n", value, event, None, {"tags": "{'size': mag(x)}"})
    probe.start()
    shop.double(25)
    assert seen.fired == [(25, {"size": 1})]
    # It may be called by hand, as tests of such a class do.
    seen.value = "x + y"
    seen.fire({"mag": mag, "x": 1}, {"y": 2})
    assert seen.fired[1] == (3, {"size": 0})


def test_emit_evaluate_and_merge_tags_of_one_s_own_are_called(shop, probe):
    """Overridden `emit`, `evaluate`, `merge_tags`."""

    class Mine(Instrument):
        def __init__(self, *args):
            super().__init__(*args)
            self.got = []

        def emit(self, name, value, tags):
            self.got.append((name, value, dict(tags)))

    class Evaluating(Mine):
        def evaluate(self, value, _globals, _locals):
            return value, sorted({"args", "kwargs", "result", "x"} & set(_locals))

        def merge_tags(self, _globals, _locals):
            return {"mine": _locals["x"]}

    first = probe.instruments["first"] = Mine("n", "(x, result)")
    second = probe.instruments["second"] = Evaluating("n", "x")
    probe.start()
    shop.double(2)
    assert first.got == [("n", (2, 4), {})]
    assert second.got == [
        ("n", ("x", ["args", "kwargs", "result", "x"]), {"mine": 2}),
    ]


@pytest.mark.parametrize("event", ["call", "return", "end"])
@pytest.mark.parametrize("whose", ["instrument", "manager"])
def test_check_call_says_which_calls_count_and_handle_error_is_told(shop, probe, event, whose):
    """Overridden `check_call` and `handle_error`."""
    asked = []

    def check(probe, *args, **kwargs):
        asked.append((probe.target, args, kwargs))
        return args[0] != 3

    class Choosing(Fires):
        def check_call(self, probe, *args, **kwargs):
            return check(probe, *args, **kwargs)

    class Manager(InstrumentManager):
        def check_call(self, probe, instrument, *args, **kwargs):
            return check(probe, *args, **kwargs)

    kind, manager = (Choosing, None) if whose == "instrument" else (Fires, Manager())
    seen = probe.instruments["k"] = kind("n", "10 // x", event, None, None, manager)
    probe.start()
    assert [shop.double(x) for x in (5, 3, 2, 0)] == [10, 6, 4, 0]
    assert asked == [("probed_shop.double", (x,), {}) for x in (5, 3, 2, 0)]
    assert [value for value, _ in seen.fired] == [2, 5]
    wait_until(lambda: seen.said)
    assert seen.said == [("probed_shop.double", ZeroDivisionError)]


def test_finish_is_called_after_each_hit_that_was_served(shop, probe):
    """`finish()` after each hit."""

    class Finishing(Fires):
        def finish(self):
            self.fired.append("finished")

    class Emitting(Instrument):
        finished = 0

        def finish(self):
            self.finished += 1

    first = probe.instruments["first"] = Finishing("n", "result")
    second = probe.instruments["second"] = Emitting("n", "x", "call")
    probe.start()
    shop.double(1)
    shop.double(2)
    assert first.fired == [(2, {}), "finished", (4, {}), "finished"]
    assert second.finished == 2
    with diagnose.sensor("probed_shop.double") as seen:
        shop.double(1)
        assert seen.finish_called


@pytest.mark.parametrize("kind", [ProbeTestInstrument, Fires])
def test_tags_that_are_put_into_custom_later_count_from_the_next_hit(shop, probe, kind):
    """Tags that come later."""
    seen = probe.instruments["k"] = kind("n", "x")
    probe.start()
    shop.double(1)
    seen.custom["tags"] = "{'size': mag(x)}"
    shop.double(10)
    if kind is Fires:
        assert seen.fired == [(1, {}), (10, {"size": 1})]
    else:
        assert seen.log == [({}, 1), ({"size": 1}, 10)]


def test_a_decorators_instrument_is_listed_and_stays_when_specs_are_applied(sink):
    """Instruments as decorators."""
    source = """
from diagnose.instruments import HistogramInstrument, IncrementInstrument

timing = HistogramInstrument("n", "x")

@timing
def work(x):
    return x

class Cart:
    @IncrementInstrument("adds", "1")
    def add(self, x):
        return x

def make():
    @timing
    def inner(x):
        return x
    return inner
"""
    with loaded("upgraded_decorated", source) as module:
        paths = ["upgraded_decorated.work", "upgraded_decorated.Cart.add"]
        try:
            assert list(probes.active_probes) == paths
            probe = probes.active_probes[paths[0]]
            assert list(probe.instruments.values()) == [module.timing]
            manager = InstrumentManager("me")
            instrument = {"type": "incr", "name": "calls", "value": "1"}
            document = {"target": paths[0], "instrument": instrument, "lifespan": 10}
            for specs in ({}, {"s": document}, {}):
                manager.specs.clear()
                manager.specs.update(specs)
                manager.apply()
                diagnose.manager.apply()
                module.work(len(specs))
                module.Cart().add(1)
            assert list(probes.active_probes) == paths
            # Those of one path are told apart, whatever the path leads to.
            made = [module.make(), module.make()]
            probes.start_all()
            for number, inner in enumerate(made):
                inner(10 + number)
            path = "upgraded_decorated.make.<locals>.inner"
            assert list(probes.active_probes) == [*paths, path]
            module.timing.flush()
            assert sink.samples == [("n", value, {}) for value in (0, 1, 0, 10, 11)]
            assert module.timing.status.hits == 5
        finally:
            for probe in list(probes.active_probes.values()):
                probe.stop()
    assert sum(total for _, total, _ in sink.totals) == 3


def test_a_log_line_is_what_it_was(shop, probe):
    """Log lines."""

    class Short(LogInstrument):
        MAX_CHARS = 10
        out = io.StringIO()

    assert LogInstrument.MAX_CHARS == 2000
    probe.instruments["k"] = Short("n", "'a' * x", "return", None, {"tags": "{'size': mag(x)}"})
    probe.start()
    shop.double(3)
    shop.double(30)
    long = LogInstrument("n", "'a' * 3000")
    long.out = io.StringIO()
    long.fire({}, {})
    assert Short.out.getvalue().splitlines() == [
        "Probe (n)[tags={'size': 0}] = aaa",
        "Probe (n)[tags={'size': 1}] = aaaaaaa...",
    ]
    assert long.out.getvalue() == f"Probe (n)[tags={{}}] = {'a' * 1997}...\n"


def test_sensors_keep_what_they_saw(shop, manager):
    """`ProbeTestInstrument` and `sensor`."""
    with diagnose.sensor("probed_shop.double") as seen:
        shop.double(1)
    assert (seen.name, seen.value, seen.event) == ("test_instrument", "result", "return")
    assert (seen.log, seen.results, seen.finish_called) == ([({}, 2)], [2], True)
    with diagnose.sensor("probed_shop.double", "x", "mine", "call", manager) as seen:
        shop.double(1)
    assert (seen.name, seen.mgr, seen.results) == ("mine", manager, [1])
    own = ProbeTestInstrument("n", "x")
    own.fire({}, {"x": 5})
    assert (own.log, own.results, own.finish_called) == ([({}, 5)], [5], False)


def test_the_costliest_line_has_its_time_its_number_and_its_text(shop):
    """The costliest line."""
    expressions = [
        f"(hotspots.{which}.time, hotspots.{which}.lineno, hotspots.{which}.source)"
        for which in ("worst", "slowest")
    ]

    def call():
        shop.spots(time.sleep)

    worst, slowest = values_of(*expressions, target="probed_shop.spots", call=call)
    first = shop.spots.__code__.co_firstlineno
    assert (worst[1], slowest[1]) == (first + 2, first + 4)
    assert (worst[2], slowest[2]) == ("", "")  # there is no such file
    assert worst[0] >= 0.1
    assert slowest[0] >= 0.02
    first_by_total = "hotspots.worst.time == hotspots.worst.total"
    by_longest = "hotspots.slowest.time == hotspots.slowest.longest < hotspots.slowest.total"
    found = values_of(first_by_total, by_longest, target="probed_shop.spots", call=call)
    assert found == [True, True]


@pytest.mark.parametrize("path", ["probed_shop.nothing", "probed_shop.Cart.nothing"])
def test_a_missing_attribute_is_an_attribute_error(shop, path):
    """A missing attribute."""
    probe = probes.attach_to(path)
    probe.instruments["k"] = LogInstrument("n", "1")
    with pytest.raises(AttributeError, match="has no 'nothing'") as found:
        probe.start()
    assert isinstance(found.value, LookupError)
    assert isinstance(found.value, diagnose.DiagnoseError)
    probes.active_probes.clear()


# --- what differs -----------------------------------------------------------------------------


def test_frame_is_the_caller_s(shop):
    """`frame` is the caller's."""
    found = values_of("frame.f_code.co_name", call=lambda: shop.quadruple(1))
    assert found == ["quadruple"] * 2


def test_a_stopped_probe_is_listed_no_more_and_may_be_started_again(shop, probe):
    """A stopped probe is not listed."""
    seen = probe.instruments["k"] = ProbeTestInstrument("n", "x")
    for number in (1, 2):
        probe.start()
        shop.double(number)
        probe.stop()
        shop.double(0)
        assert probes.active_probes == {}
    assert seen.results == [1, 2]


def test_exception_is_none_where_the_function_returned(shop):
    """`exception` is always there."""
    assert values_of("exception is None", call=lambda: shop.double(1)) == [True]
    expression = "(type(exception).__name__, exception is result)"

    def call():
        shop.forgiving(1)

    assert values_of(expression, target="probed_shop.fail", call=call) == [("ValueError", True)]


def test_metrics_take_floats(shop, probe, sink):
    """Metrics take floats."""
    metric = probe.instruments["k"] = HistogramInstrument("n", "x")
    whole = probe.instruments["whole"] = HistogramInstrument("whole", "int(elapsed * 1000)")
    probe.start()
    for value in (1.5, timedelta(milliseconds=1500), 2):
        shop.double(value)
    metric.flush()
    whole.flush()
    assert [value for name, value, _ in sink.samples if name == "n"] == [1.5, 1.5, 2]
    assert {type(value) for name, value, _ in sink.samples if name == "whole"} == {int}


def test_an_error_ends_an_instrument(shop, probe):
    """An error ends an instrument."""
    seen = probe.instruments["k"] = ProbeTestInstrument("n", "1 // x")
    probe.start()
    assert (shop.double(0), shop.double(1)) == (0, 2)
    assert seen.results == []
    assert (seen.status.state, seen.status.code) == ("error", "runtime-error")


def test_the_rate_of_log_lines_is_limited_unless_it_is_said(shop, probe):
    """A log line's rate."""
    assert LogInstrument.default_limits == Limits(rate=100)
    log = probe.instruments["k"] = LogInstrument("n", "x", limits=Limits(rate=100_000))
    log.out = io.StringIO()
    probe.start()
    for x in range(300):
        shop.double(x)
    assert len(log.out.getvalue().splitlines()) == 300


def test_lines_go_where_standard_output_is_at_the_hit(shop, probe, capsys):
    """`LogInstrument.out` is `None`."""
    assert LogInstrument.out is None
    probe.instruments["k"] = LogInstrument("n", "x")
    probe.start()
    shop.double(1)
    assert capsys.readouterr().out == "Probe (n)[tags={}] = 1\n"


def test_an_unknown_argument_is_an_error():
    """Unknown arguments."""
    with pytest.raises(TypeError, match="evnet"):
        Instrument("n", "x", evnet="call")


def test_a_line_s_source_has_no_white_space_around_it():
    """A line's `source`."""
    lines = Path(__file__).read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if line.startswith("    number = next"))
    line = hotspots.LineTime(number, 1, 1.0, 1.0, __file__)
    assert line.source == lines[number - 1].strip()


def test_a_missing_module_is_no_import_error():
    """A missing module."""
    probe = probes.attach_to("upgraded_nowhere.nothing")
    probe.instruments["k"] = LogInstrument("n", "1")
    with pytest.raises(LookupError, match="no module 'upgraded_nowhere'") as found:
        probe.start()
    assert isinstance(found.value, AttributeError)
    assert not isinstance(found.value, ImportError)
    probes.active_probes.clear()


def test_arguments_are_by_the_parameters_however_they_were_given(shop, probe):
    """`args`, `kwargs` and what `check_call` gets."""
    asked = []

    class Asks(ProbeTestInstrument):
        def check_call(self, probe, /, *args, **kwargs):
            asked.append((args, kwargs))
            return True

    seen = probe.instruments["k"] = Asks("n", "(args, kwargs)", "call")
    probe.start()
    shop.double(x=3)
    assert asked == seen.results == [((3,), {})]
