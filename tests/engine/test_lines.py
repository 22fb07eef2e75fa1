from __future__ import annotations

import asyncio
import contextlib
import sys

import pytest
from stage import Interrupt, attached, interrupts, outcome, probed

from diagnose import HistogramInstrument
from diagnose.bytecode import assembly, flow
from diagnose.errors import InstrumentError, ProbeError, UnknownNameError
from diagnose.instruments import ProbeTestInstrument

SHOP = """\
import functools

def checkout(items, fee=1):
    total = 0
    for price in items:
        total += price
        if price > 5:
            continue
        total += fee
    try:
        ratio = 100 / total
    except ZeroDivisionError:
        ratio = None
    finally:
        done = True
    return (total,
            ratio)

@functools.cache
@functools.wraps(checkout)
def decorated(x):
    y = x + 1

    return y

def outer(x):
    def inner(z):
        w = z * 2
        return w
    key = lambda v: v + 1
    return inner(x) + key(x)

def numbers(n):
    for each in range(n):
        got = yield each
    return "end"

async def wait(n):
    import asyncio
    for each in range(n):
        await asyncio.sleep(0)
    return n

def oneline(x): return x + 1
"""


def lines_of(module, path, line, value, *calls, **options):
    with probed(f"{module.__name__}.{path}", value, f"line:{line}", **options) as seen:
        for call in calls:
            call()
    assert seen.status.error is None
    return seen.results


def test_a_line_is_seen_just_before_it_runs_each_time(stage):
    shop = stage.script(SHOP)
    call = lambda: shop.checkout([2, 7, 3])
    assert lines_of(shop, "checkout", 6, "(price, total)", call) == [(2, 0), (7, 3), (3, 10)]
    assert lines_of(shop, "checkout", 9, "(price, total, fee)", call) == [(2, 2, 1), (3, 13, 1)]
    assert lines_of(shop, "checkout", 8, "price", call) == [7]
    assert lines_of(shop, "checkout", 4, "items", call) == [[2, 7, 3]]
    assert len(lines_of(shop, "checkout", 5, "items", call)) >= 1


def test_lines_may_be_counted_from_the_def(stage):
    shop = stage.script(SHOP)
    assert lines_of(shop, "checkout", "+3", "price", lambda: shop.checkout([2])) == [2]
    assert lines_of(shop, "oneline", "+0", "x", lambda: shop.oneline(4)) == [4]
    # From the def, not from its first decorator.
    path = "decorated.__wrapped__"
    assert lines_of(shop, path, "+1", "x", lambda: shop.decorated(1)) == [1]
    assert lines_of(shop, path, "+3", "y", lambda: shop.decorated(2)) == [3]


def test_lines_of_except_and_finally_clauses_are_seen_on_every_way(stage):
    shop = stage.script(SHOP)
    both = [lambda: shop.checkout([9]), lambda: shop.checkout([])]
    assert lines_of(shop, "checkout", 13, "total", *both) == [0]
    assert lines_of(shop, "checkout", 15, "ratio", *both) == [100 / 9, None]


def test_an_expression_over_several_lines_is_one_run_of_the_first(stage):
    shop = stage.script("""
    def f(x):
        return dict(
            a=x,
            b=x,
        )
    """)
    assert lines_of(shop, "f", 3, "x", lambda: shop.f(1)) == [1]
    assert lines_of(shop, "f", 4, "x", lambda: shop.f(1)) == [1]


@pytest.mark.parametrize("line", [0, 1, 3, 19, 25, 9999])
def test_a_line_without_code_is_an_error_that_names_the_nearest_ones(stage, line):
    shop = stage.script(SHOP)
    code = shop.checkout.__code__
    event = f"line:{line}"
    if line == 0:
        with pytest.raises(InstrumentError, match="no event 'line:0'"):
            ProbeTestInstrument("n", "1", event)
        return
    with pytest.raises(ProbeError, match=r"nearest lines that have some: \d+, \d+, \d+") as raised:
        with probed(f"{shop.__name__}.checkout", "1", event):
            pass
    assert raised.value.code == "line-without-code"
    assert shop.checkout.__code__ is code
    assert "line " + str(line) in str(raised.value)


def test_a_line_of_a_function_inside_names_that_function(stage):
    shop = stage.script(SHOP)
    with pytest.raises(ProbeError, match=r"outer.<locals>.inner \(line 27\)") as raised:
        with probed(f"{shop.__name__}.outer", "1", "line:28"):
            pass
    assert raised.value.code == "line-elsewhere"
    # The line of a lambda is the outer function's own too.
    assert lines_of(shop, "outer", 30, "x", lambda: shop.outer(3)) == [3]


@pytest.mark.parametrize("event", ["line", "line:", "line:x", "line:-3", "line:1.5", "line: 3"])
def test_what_is_no_line_is_no_event(event):
    with pytest.raises(InstrumentError, match="no event") as raised:
        ProbeTestInstrument("n", "1", event)
    assert raised.value.code == "unknown-event"
    assert "line:N" in str(raised.value)


def test_lines_of_generators_and_coroutines_are_seen(stage):
    shop = stage.script(SHOP)
    call = lambda: list(shop.numbers(3))
    assert lines_of(shop, "numbers", 35, "each", call) == [0, 1, 2]
    assert lines_of(shop, "numbers", 36, "each", call) == [2]
    call = lambda: asyncio.run(shop.wait(2))
    assert lines_of(shop, "wait", 41, "each", call) == [0, 1]


def test_a_condition_and_limits_guard_a_line(stage):
    shop = stage.script(SHOP)
    call = lambda: shop.checkout([1, 2, 3, 4])
    assert lines_of(shop, "checkout", 6, "price", call, when="price > 2") == [3, 4]
    # Looked at before anything that may have no value yet.
    assert lines_of(shop, "checkout", 4, "total", call, when="len(items) > 9") == []


def test_a_variable_without_a_value_is_called_by_its_name(stage, caplog):
    shop = stage.script(SHOP)
    with probed(f"{shop.__name__}.checkout", "price", "line:4") as seen:
        assert shop.checkout([1])[0] == 2
    assert "'price' has no value there" in seen.status.error


def test_names_of_a_call_mean_nothing_at_a_line(stage):
    shop = stage.script(SHOP)
    with pytest.raises(UnknownNameError, match="local variable"):
        with probed(f"{shop.__name__}.checkout", "elapsed", "line:4"):
            pass


def test_several_lines_and_events_live_beside_each_other(stage):
    shop = stage.script(SHOP)
    path = f"{shop.__name__}.checkout"
    bare = outcome(shop.checkout, [2, 7]), outcome(shop.checkout, [None])
    events = ["call", "return", "end", "line:4", "line:6", "line:6", "line:9", "line:16"]
    recorders = [ProbeTestInstrument(event, "1", event) for event in events]
    with attached(path, *recorders):
        assert (outcome(shop.checkout, [2, 7]), outcome(shop.checkout, [None])) == bare
    assert [len(each.results) for each in recorders] == [2, 2, 2, 2, 3, 3, 1, 1]


def test_what_a_signal_handler_raises_in_a_line_probe_is_raised_at_that_line(stage):
    shop = stage.script(SHOP)

    class Stopping(ProbeTestInstrument):
        def emit(self, name, value, tags):
            interrupt()

    stopping = Stopping("n", "1", "line:11")
    with interrupts() as interrupt, attached(f"{shop.__name__}.checkout", stopping):
        with pytest.raises(Interrupt) as raised:
            shop.checkout([1])
    trace = raised.value.__traceback__.tb_next
    assert (trace.tb_frame.f_code.co_name, trace.tb_lineno) == ("checkout", 11)
    assert stopping.status.error is None


def test_what_interrupts_a_line_probe_on_the_way_to_a_handler_gets_there(stage):
    class Raises(ProbeTestInstrument):
        def emit(self, *_):
            if module.log:
                interrupt()

    # Since 3.12 the line of a "with" is run again when an exception leaves the block.
    module = stage.script("""
    log = []

    class Manager:
        def __enter__(self):
            log.append("enter")

        def __exit__(self, *exc):
            log.append(exc[0].__name__)

    def boom():
        raise KeyError

    def subject():
        with Manager():
            return boom()
    """)
    with interrupts() as interrupt:
        with attached(f"{module.__name__}.subject", Raises("n", "1", "line:+1")):
            with pytest.raises((Interrupt, KeyError)) as raised:
                module.subject()
    assert module.log == ["enter", raised.type.__name__]
    assert sys.exception() is None


def test_lines_are_those_that_there_were_before_hotspots_came(stage):
    shop = stage.script("""
    def subject(items, more):
        for (
            a,
            b,
        ) in items(
            more,
        ):
            c = more(a)
            if c:
                if c.x:
                    d = (
                        f"{a!r} and {b!r}"
                        f"{c!r}"
                    )
                yield d
    """)
    path = f"{shop.__name__}.subject"
    lines = flow.line_starts(assembly.read(shop.subject.__code__))
    with probed(path, "hotspots"):
        for line in lines:
            with probed(path, "items", f"line:{line}"):
                pass


def test_a_metric_of_a_local_at_a_line(stage):
    shop = stage.script(SHOP)
    instrument = HistogramInstrument("n", "total", "line:9")
    with attached(f"{shop.__name__}.checkout", instrument):
        shop.checkout([1, 2])
        instrument.flush()
        assert instrument.status.hits == 2


def test_a_tracer_sees_the_same_lines_as_before(stage):
    shop = stage.script(SHOP)

    def traced():
        seen = []

        def trace(frame, event, arg):
            if frame.f_code.co_filename == shop.checkout.__code__.co_filename:
                seen.append((frame.f_code.co_name, frame.f_lineno, event))
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            shop.checkout([2, 7])
            shop.checkout([])
            list(shop.numbers(2))
        finally:
            sys.settrace(before)
        return seen

    bare = traced()
    with contextlib.ExitStack() as stack:
        for line in (4, 5, 6, 7, 9, 11, 13, 15, 16):
            path = f"{shop.__name__}.checkout"
            stack.enter_context(probed(path, "items", f"line:{line}"))
        for line in (34, 35, 36):
            stack.enter_context(probed(f"{shop.__name__}.numbers", "n", f"line:{line}"))
        assert traced() == bare


@pytest.mark.parametrize(
    ("line", "value", "expected"),
    [
        ("+1", "total", [7]),
        ("+1", "(x, total)", [(2, 7)]),
        ("+2", "total", [7]),
        ("+2", "each", [0, 1]),
        ("+3", "each", [0, 1]),
        ("+4", "first + second", [3]),
        ("+5", "handle", ["entered"]),
        ("+6", "handle", ["entered"]),
    ],
)
def test_a_variable_that_only_this_line_sets_is_seen_behind_it(stage, line, value, expected):
    shop = stage.script("""
    class Block:
        def __enter__(self):
            return "entered"

        def __exit__(self, *exc):
            pass

    def subject(x):
        total = x + 5
        for each in range(2):
            last = each
        first, second = 1, 2
        with Block() as handle:
            total += len(handle)
        return total, last, first, second
    """)
    bare = shop.subject(2)
    with probed(f"{shop.__name__}.subject", value, f"line:{line}") as seen:
        assert shop.subject(2) == bare
    assert seen.results[: len(expected)] == expected
    assert seen.status.error is None
