"""Exceptions that the program keeps are as they were after an instrument has raised them."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading

import pytest
from stage import attached

from diagnose import HistogramInstrument, registry
from diagnose.instruments import ProbeTestInstrument

SOURCE = """\
class Kept(Exception):
    pass

def fail(x=None):
    raise KEPT

def deep(x=None, depth=3):
    if depth:
        return deep(x, depth - 1)
    raise KEPT

def again(x=None):
    try:
        fail(x)
    except Kept:
        raise

def yields(x=None):
    yield 1
    raise KEPT

def delegates(x=None):
    yield from yields(x)

def throws(x=None):
    made = yields(x)
    next(made)
    made.throw(KEPT)

class Odd:
    def __float__(self): fail()
    def __str__(self): fail()
    def __bool__(self): fail()
    @property
    def size(self): fail()

def target(x, odd=Odd()):
    made = x
    return made

def target_that_fails(x, odd=Odd()):
    made = x
    raise ValueError(made)
"""


class Emits(ProbeTestInstrument):
    def emit(self, name, value, tags):
        raise value


class Fires(ProbeTestInstrument):
    def fire(self, _globals, _locals):
        raise _globals["KEPT"]


class Evaluates(Fires):
    def fire(self, _globals, _locals):
        self.evaluate("fail()", _globals, _locals)


class Finishes(ProbeTestInstrument):
    def finish(self):
        raise self.kept


class Checks(ProbeTestInstrument):
    def check_call(self, probe, /, *args, **kwargs):
        raise self.kept


class Acts(ProbeTestInstrument):
    acts = True

    def act(self, value, names):
        raise value


class Unjudged(ProbeTestInstrument):
    """What raises gets past the handler's own ``try``."""

    def plan(self, probe, fail, done, watch=None):
        def broken(error):
            raise error

        return dataclasses.replace(super().plan(probe, fail, done, watch), fail=broken)


MADE = {
    "emit": lambda event: Emits("k", "KEPT", event),
    "fire": lambda event: Fires("k", "1", event),
    "evaluate": lambda event: Evaluates("k", "1", event),
    "finish": lambda event: Finishes("k", "1", event),
    "check_call": lambda event: Checks("k", "1", event),
    "act": lambda event: Acts("k", "KEPT", event),
    "a call": lambda event: ProbeTestInstrument("k", "fail()", event),
    "a deep call": lambda event: ProbeTestInstrument("k", "deep()", event),
    "raised again": lambda event: ProbeTestInstrument("k", "again()", event),
    "a generator": lambda event: ProbeTestInstrument("k", "list(yields())", event),
    "generators": lambda event: ProbeTestInstrument("k", "list(delegates())", event),
    "throw": lambda event: ProbeTestInstrument("k", "throws()", event),
    "a comprehension": lambda event: ProbeTestInstrument("k", "[fail() for _ in [1]]", event),
    "a condition": lambda event: ProbeTestInstrument("k", "1", event, when="fail()"),
    "truth": lambda event: ProbeTestInstrument("k", "1", event, when="odd"),
    "tags": lambda event: ProbeTestInstrument("k", "1", event, custom={"tags": "{'a': fail()}"}),
    "a number": lambda event: HistogramInstrument("k", "odd", event),
    "a text": lambda event: HistogramInstrument("k", "1", event, custom={"tags": "{'a': odd}"}),
    "a property": lambda event: ProbeTestInstrument("k", "odd.size", event),
    "a defect": lambda event: Unjudged("k", "fail()", event),
}
if sys.version_info < (3, 12):  # it does not say who called a generator that is over
    for _name in ("a generator", "generators", "throw"):
        del MADE[_name]
EVENTS = ["call", "return", "end", "line:+2"]
COMBINED = [
    (make, event)
    for make, event in itertools.product(MADE, EVENTS)
    if make != "act" or event in {"call", "return"}
]


@pytest.fixture
def shop(stage):
    return stage.script(SOURCE)


def fresh(shop):
    return shop.Kept("as it is")


def raised(shop):
    """It has a traceback, a cause, a context and a note."""
    error = shop.Kept("as it is")
    error.add_note("a note")
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise error from TypeError("the cause")
    except shop.Kept:
        return error


def raised_within(shop):
    shop.KEPT = error = shop.Kept("as it is")
    try:
        shop.deep()
    except shop.Kept:
        return error


def state(error):
    entries, entry = [], error.__traceback__
    while entry is not None:
        entries.append((id(entry), entry.tb_frame.f_code.co_name, entry.tb_lineno))
        entry = entry.tb_next
    return (
        entries,
        error.__context__,
        error.__cause__,
        error.__suppress_context__,
        getattr(error, "__notes__", None),
        error.args,
        vars(error).keys(),
    )


def fail_at_hit(shop, make, event, name="target", call=None):
    """Attach, call, and wait for all that comes of the error."""
    instrument = MADE[make](event)
    instrument.kept = shop.KEPT
    told = threading.Event()
    with attached(f"{shop.__name__}.{name}", instrument):
        result = (call or getattr(shop, name))(1)
        # What the timers' thread does is done in order.
        registry.timers.after(0, told.set)
        assert told.wait(30)
        assert instrument.status.state == "error"
    return result


@pytest.mark.parametrize(("make", "event"), COMBINED)
@pytest.mark.parametrize("kind", [fresh, raised, raised_within])
def test_an_exception_that_the_program_keeps_is_as_it_was(shop, make, event, kind):
    error = shop.KEPT = kind(shop)
    before = state(error)
    for _ in range(2):
        assert fail_at_hit(shop, make, event) == 1
        assert state(error) == before


@pytest.mark.parametrize(("make", "event"), COMBINED)
def test_one_that_was_never_raised_is_so_within_an_except_block_too(shop, make, event):
    error = shop.KEPT = fresh(shop)
    before = state(error)
    try:
        raise LookupError
    except LookupError as outer:
        fail_at_hit(shop, make, event)
        assert outer.__context__ is None
    assert state(error) == before


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("kind", [raised, fresh])
def test_so_it_is_at_the_end_by_an_exception(shop, make, kind):
    error = shop.KEPT = kind(shop)
    before = state(error)

    def call(x):
        with pytest.raises(ValueError, match="1") as found:
            shop.target_that_fails(x)
        return found.value

    own = fail_at_hit(shop, make, "return", "target_that_fails", call)
    assert state(error)[0] == before[0]
    assert own.__context__ is None
    if kind is fresh:
        assert state(error) == before


@pytest.mark.parametrize("make", ["emit", "a deep call", "raised again", "a defect"])
def test_so_it_is_when_threads_raise_it_at_once(shop, make):
    error = shop.KEPT = raised(shop)
    before = state(error)
    begun = threading.Barrier(4)
    interval = sys.getswitchinterval()

    def run():
        begun.wait(30)
        assert fail_at_hit(shop, make, "call", queue.pop()) == 1

    names = []
    for number in range(4):
        name = f"target_{number}"
        exec(f"def {name}(x, odd=None):\n    return x\n", vars(shop))
        names.append(name)
    queue = list(names)

    try:
        sys.setswitchinterval(1e-6)
        for _ in range(10):
            queue[:] = names
            threads = [threading.Thread(target=run) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert not queue
            assert state(error) == before
    finally:
        sys.setswitchinterval(interval)


def test_what_the_program_raises_meanwhile_has_its_whole_traceback(shop):
    error = shop.KEPT = fresh(shop)
    handling, go_on = threading.Event(), threading.Event()

    class Waits(Emits):
        def handle_error(self, probe):
            handling.set()
            assert go_on.wait(30)

    with attached(f"{shop.__name__}.target", Waits("k", "KEPT", "call")):
        shop.target(1)
        assert handling.wait(30)
        try:
            shop.deep()
        except shop.Kept:
            go_on.set()
            told = threading.Event()
            registry.timers.after(0, told.set)
            assert told.wait(30)
    names = [entry[1] for entry in state(error)[0]]
    assert (
        names == ["test_what_the_program_raises_meanwhile_has_its_whole_traceback"] + ["deep"] * 4
    )
