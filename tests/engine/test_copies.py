"""What was copied from a probed function has nothing to do with the probe once that has stopped."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import types

import pytest
from stage import Stage, attached, timers_ran

from diagnose import HistogramInstrument, IncrementInstrument, LogInstrument, manager
from diagnose.breakpoints import Breakpoint
from diagnose.instruments import CallTreeInstrument, ProbeTestInstrument
from diagnose.limits import Limits

SOURCE = """\
def price(x, *rest, **more):
    total = x + 2
    return total * 2

def counted(x):
    total = x + 2
    yield total * 2

async def fetched(x):
    total = x + 2
    return total * 2
"""


class Sink:
    def __init__(self):
        self.got = []

    def counter(self, name, value, tags):
        self.got.append((name, value))

    def histogram(self, name, values, tags):
        self.got.append((name, *values))


class Fires(ProbeTestInstrument):
    def fire(self, _globals, _locals):
        self.log.append(({}, 1))


def copied(function):
    return types.FunctionType(function.__code__, function.__globals__, "copy", None, None)


def replaced(function):
    return types.FunctionType(function.__code__.replace(co_name="copy"), function.__globals__)


def wrapped(function):
    copy = types.FunctionType(function.__code__, dict(function.__globals__), "copy")
    copy.__dict__.update(function.__dict__)
    return copy


def run(function, *args):
    made = function(*args)
    if inspect.isgenerator(made):
        return list(made)
    return asyncio.run(made) if inspect.iscoroutine(made) else made


MADE = [
    lambda event: IncrementInstrument("k", "1", event),
    lambda event: HistogramInstrument("k", "x", event),
    lambda event: HistogramInstrument("k", "x", event, custom={"tags": "{'a': 1}"}),
    lambda event: HistogramInstrument("k", "start" if event == "call" else "x", event),
    lambda event: ProbeTestInstrument("k", "x", event),
    lambda event: ProbeTestInstrument("k", "x", event, when="x < 100"),
    lambda event: ProbeTestInstrument("k", "x", event, limits=Limits(rate=1000, hits=1000)),
    lambda event: ProbeTestInstrument("k", "x.missing", event),
    lambda event: LogInstrument("k", "x", event),
    lambda event: Fires("k", "x", event),
]
EVENTS = ["call", "return", "end", "line:+1", "line:+2"]
ON_RETURN = [
    lambda _: HistogramInstrument("k", "elapsed", "return"),
    lambda _: ProbeTestInstrument("k", "hotspots", "return"),
    lambda _: ProbeTestInstrument("k", "(result, exception, elapsed, args)", "return"),
    lambda _: ProbeTestInstrument("k", "x", "return", when="x > 100"),
    lambda _: CallTreeInstrument("k"),
]
COMBINED = [*itertools.product(MADE, EVENTS), *((make, "return") for make in ON_RETURN)]


def told(instrument, sink):
    """All that an instrument could show of a hit."""
    status = instrument.status
    flush = getattr(instrument, "flush", None)
    if flush is not None:
        flush()
    return list(getattr(instrument, "log", ())), status.error, list(sink.got)


@pytest.fixture
def sink(monkeypatch):
    sink = Sink()
    monkeypatch.setattr(manager, "sinks", [sink])
    return sink


@pytest.mark.parametrize("name", ["price", "counted", "fetched"])
@pytest.mark.parametrize("copying", [copied, replaced, wrapped])
def test_copies_do_nothing_once_the_probe_has_stopped(name, copying, sink, capsys, monkeypatch):
    with Stage() as stage:
        module = stage.script(SOURCE)
        function = getattr(module, name)
        called = []
        for make, event in COMBINED:
            instrument = make(event)
            with attached(f"{module.__name__}.{name}", instrument):
                copy = copying(function)
                want = run(copy, 3), run(function, 3)
            assert want == (([10], [10]) if name == "counted" else (10, 10))
            timers_ran()  # an error of these hits is told
            # From here on nothing of the instrument may be run, in any way.
            for hook in ("emit", "fire", "evaluate", "merge_tags", "handle_error", "finish"):
                monkeypatch.setattr(
                    instrument, hook, lambda *_, hook=hook: called.append(hook), raising=False
                )
            before = told(instrument, sink)
            capsys.readouterr()
            assert [run(copy, 3) for _ in range(3)] == [want[0]] * 3
            assert capsys.readouterr().out == "", (instrument, event)
            timers_ran()
            assert called == [], (instrument, event)
            if not isinstance(instrument, IncrementInstrument | HistogramInstrument):
                assert told(instrument, sink) == before, (instrument, event)
            monkeypatch.undo()
            monkeypatch.setattr(manager, "sinks", [sink])


@pytest.mark.parametrize("make", MADE[:4])
@pytest.mark.parametrize("event", EVENTS)
def test_a_copy_has_nothing_to_do_with_what_is_attached_anew(make, event, sink):
    with Stage() as stage:
        module = stage.script(SOURCE)
        instrument = make(event)
        path = f"{module.__name__}.counted"
        with attached(path, instrument):
            copy = copied(module.counted)
        instrument.flush()
        sink.got.clear()
        with attached(path, instrument):
            list(copy(3))
            instrument.flush()
        assert sink.got == []


@pytest.mark.parametrize("event", ["call", "return", "line:+1"])
def test_copies_stop_nowhere_once_a_breakpoint_is_gone(event):
    with Stage() as stage:
        module = stage.script(SOURCE)
        seen = []
        with Breakpoint(f"{module.__name__}.price", event, fire=seen.append):
            copy = copied(module.price)
            assert module.price(3) == 10
        assert len(seen) == 1
        assert copy(3) == 10
        assert len(seen) == 1
