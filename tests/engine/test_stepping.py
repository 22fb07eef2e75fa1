"""A debugger's ``step`` goes over what serves a hit, as over C."""

from __future__ import annotations

import bdb
import cProfile
import functools
import io
import itertools
import pdb  # noqa: T100
import pstats
import re
import sys

import coverage
import pytest
from stage import Stage, attached, probed

from diagnose import HistogramInstrument, IncrementInstrument, LogInstrument
from diagnose.instruments import ProbeTestInstrument
from diagnose.limits import Limits

SOURCE = """\
class Cart:
    @property
    def size(self):
        return 3

def price(x, cart=Cart(), **more):
    total = x + 1
    return total * 2

def counted(x, cart=Cart()):
    total = x + 1
    yield total

def failing(x, cart=Cart()):
    total = x + 1
    raise LookupError(total)

def main():
    got = price(1)
    got += sum(counted(2))
    try:
        failing(3)
    except LookupError:
        got += 1
    return got
"""
NAMES = ["price", "counted", "failing"]


class Fires(ProbeTestInstrument):
    def fire(self, _globals, _locals):
        self.emit(self.name, _locals["x"], {})


class Emits(HistogramInstrument):
    def emit(self, name, value, tags):
        self.seen = value


MADE = {
    "nothing is called": lambda event: IncrementInstrument("k", "1", event),
    "a name": lambda event: HistogramInstrument("k", "x", event),
    "what is made a number": lambda event: HistogramInstrument("k", "x > 1", event),
    "tags": lambda event: IncrementInstrument("k", "1", event, custom={"tags": "{'a': x}"}),
    "a condition": lambda event: ProbeTestInstrument("k", "x", event, when="x > 1"),
    "limits": lambda event: ProbeTestInstrument("k", "x", event, limits=Limits(rate=99, hits=2)),
    "a property": lambda event: ProbeTestInstrument("k", "cart.size", event),
    "a log line": lambda event: LogInstrument("k", "x", event),
    "an error": lambda event: ProbeTestInstrument("k", "x.missing", event),
    "all names": lambda event: ProbeTestInstrument("k", "frame, start, args, kwargs", event),
    "fire": lambda event: Fires("k", "x", event),
    "emit": lambda event: Emits("k", "x", event),
}
EVENTS = ["call", "return", "end", "line:+1", "line:+2"]
COMBINED = [
    (make, event)
    for make, event in itertools.product(MADE, EVENTS)
    if make != "all names" or event in {"call", "return"}
]


@pytest.fixture
def shop(stage):
    return stage.script(SOURCE)


def session(commands, function):
    """What pdb says when it is given these commands from the begin of a function on."""
    said = io.StringIO()
    debugger = pdb.Pdb(
        stdin=io.StringIO("\n".join(commands) + "\n"), stdout=said, nosigint=True, readrc=False
    )
    debugger.use_rawinput = False
    tracing = sys.gettrace()
    try:
        debugger.runcall(function)
    except bdb.BdbQuit:
        pass
    finally:
        sys.settrace(tracing)
    return re.sub(r"0x[0-9a-f]+", "0x", said.getvalue())


STEPS = ["step"] * 60 + ["continue"]


@pytest.mark.parametrize(("make", "event"), COMBINED)
def test_step_shows_what_it_shows_without_probes(shop, make, event, capsys):
    bare = session(STEPS, shop.main)
    assert "price()" in bare
    assert "LookupError: 4" in bare
    assert "size()" not in bare
    made = {name: MADE[make](event) for name in NAMES}
    with (
        attached(f"{shop.__name__}.price", made["price"]),
        attached(f"{shop.__name__}.counted", made["counted"]),
        attached(f"{shop.__name__}.failing", made["failing"]),
    ):
        assert session(STEPS, shop.main) == bare
    assert session(STEPS, shop.main) == bare
    if make != "an error":
        assert [each.status.error for each in made.values()] == [None] * len(made)


@pytest.mark.parametrize("event", ["call", "return"])
@pytest.mark.parametrize("value", ["1", "len(args)", "(args, kwargs, start, now)", "[].missing"])
@pytest.mark.parametrize("kind", [HistogramInstrument, ProbeTestInstrument, LogInstrument])
def test_step_goes_over_what_stands_for_a_function_without_code(kind, value, event):
    with Stage() as stage:
        shop = stage.script("""
            from operator import neg

            def main():
                got = neg(2)
                return got
            """)
        bare = session(STEPS, shop.main)
        with attached(f"{shop.__name__}.neg", kind("k", value, event)):
            assert session(STEPS, shop.main) == bare


@pytest.mark.parametrize("commands", [["next"] * 30, ["step", "step", "return", "step"] * 9])
def test_other_commands_show_what_they_show_without_probes(shop, commands):
    bare = session([*commands, "continue"], shop.main)
    with probed(f"{shop.__name__}.price"), probed(f"{shop.__name__}.failing"):
        assert session([*commands, "continue"], shop.main) == bare


def test_a_breakpoint_in_what_an_instrument_calls_is_met_and_step_goes_on_there(tmp_path):
    source = tmp_path / "hooks.py"
    source.write_text(
        "def inner(x):\n    return x\n\ndef hook(x):\n    x += 1\n    return inner(x)\n"
    )
    with Stage() as stage:
        shop = stage.script(SOURCE)
        hooks = stage.script(source.read_text(), str(source))

        class Calls(ProbeTestInstrument):
            def emit(self, name, value, tags):
                hooks.hook(value)

        commands = [f"break {source}:5", "continue", "step", "step", "step", "clear 1", "continue"]
        with attached(f"{shop.__name__}.price", Calls("k", "x", "call")):
            said = session(commands, shop.main)
    assert f"> {source}(5)hook()" in said
    assert f"> {source}(1)inner()" in said


def test_the_class_of_debuggers_is_as_it_was_once_nothing_is_probed(shop):
    before = vars(bdb.Bdb)["dispatch_call"]
    with probed(f"{shop.__name__}.price"):
        with probed(f"{shop.__name__}.failing"):
            assert bdb.Bdb.dispatch_call is not before
        assert bdb.Bdb.dispatch_call is not before
    assert vars(bdb.Bdb)["dispatch_call"] is before


def test_what_replaced_the_class_s_method_meanwhile_stays(shop, monkeypatch):
    before = bdb.Bdb.dispatch_call

    @functools.wraps(before)
    def other(self, frame, arg):
        return before(self, frame, arg)

    with probed(f"{shop.__name__}.price"):
        monkeypatch.setattr(bdb.Bdb, "dispatch_call", other)
    assert bdb.Bdb.dispatch_call is other


# --- profilers are told of as many ends as begins ---


@pytest.mark.parametrize(("make", "event"), COMBINED)
def test_profilers_stay_balanced(shop, make, event):
    begun = []

    def profile(frame, event, arg):
        if event == "call":
            begun.append(frame)
        elif event == "return":
            assert begun.pop() is frame

    with attached(f"{shop.__name__}.price", MADE[make](event)):
        sys.setprofile(profile)
        try:
            shop.main()
        finally:
            sys.setprofile(None)
        assert begun == []
        profiler = cProfile.Profile()
        profiler.runcall(shop.main)
    counts = {key[2]: count for key, (count, *_) in pstats.Stats(profiler).stats.items()}
    assert {name: counts[name] for name in ("main", "price", "failing")} == {
        "main": 1,
        "price": 1,
        "failing": 1,
    }


@pytest.mark.parametrize(("make", "event"), COMBINED)
def test_coverage_sees_the_same_lines(make, event, tmp_path):
    source = tmp_path / "shop.py"
    source.write_text(SOURCE)

    def lines(module):
        measured = coverage.Coverage(data_file=None, include=[str(source)])
        with measured.collect():
            module.main()
        return sorted(measured.get_data().lines(str(source)))

    with Stage() as stage:
        module = stage.script(SOURCE, str(source))
        bare = lines(module)
        with attached(f"{module.__name__}.price", MADE[make](event)):
            # The instrument may look at a property, whose line is the program's own.
            assert set(lines(module)) - {4} == set(bare)
