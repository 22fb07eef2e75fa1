"""Breakpoints in threads: where they stop, who goes on, what is said, and that nothing stays."""

from __future__ import annotations

import functools
import inspect
import linecache
import os
import re
import sys
import threading
import traceback
from functools import cached_property
from pathlib import Path
from textwrap import TextWrapper
from unittest.mock import Mock

import pytest
from modules import loaded
from waiting import wait_until

from diagnose import attach_to, breakpoints
from diagnose.breakpoints import Breakpoint, Call, do
from diagnose.breakpoints.blocked import Gate, Monitor
from diagnose.breakpoints.workers import Workers
from diagnose.errors import (
    BreakpointError,
    BreakpointTimeoutError,
    ProbeError,
    TargetKindError,
    TargetNotFoundError,
)
from diagnose.instruments import HistogramInstrument, ProbeTestInstrument
from diagnose.reentrancy import BUSY

SOURCE = """
from functools import lru_cache

def double(x, *, extra=0):
    found = x * 2
    return found + extra

def quadruple(x):
    return double(double(x))

def fail(x):
    raise LookupError(x)

def forgiving(x):
    try:
        fail(x)
    except LookupError as error:
        return error.args[0]

def numbers(n):
    for i in range(n):
        yield i

@lru_cache
def cached(x):
    return x

class Base:
    def inherited(self, x):
        return "base", x

class Cart(Base):
    def add(self, x):
        self.last = x
        return x + 1

    @staticmethod
    def static(x):
        return x

    @classmethod
    def made(cls, x):
        return cls, x

    @property
    def total(self):
        return 42

    join = "-".join
    kept = staticmethod(len)
    remembered = lru_cache(lambda self, x: x)

class Slotted:
    __slots__ = ()
    def go(self):
        return 1

joined = "+".join
"""


@pytest.fixture
def shop():
    with loaded("bp_shop", SOURCE) as module:
        yield module


def line_of(text):
    return SOURCE.splitlines().index(text) + 1


# --- where it stops ---------------------------------------------------------------------------


def test_a_caller_stands_before_the_body_until_it_is_released(shop):
    cart = shop.Cart()
    with Breakpoint("bp_shop.Cart.add") as bp:
        thread = bp.start_thread(cart.add, 3)
        call = bp.wait()
        assert (call.args, call.kwargs, call.thread) == ((cart, 3), {}, thread)
        assert not hasattr(cart, "last")
        assert bp.stackframe.f_locals["x"] == 3
        assert bp.stackframe.f_code.co_name == "add"
        assert bp.standing == [call]
        bp.release()
        bp.join()
        assert bp.stackframe is None
        assert (bp.calls, bp.hits) == (1, 1)
    assert thread.result == 4
    assert cart.last == 3


def test_a_class_and_a_name_are_enough(shop):
    cart = shop.Cart()
    with Breakpoint(shop.Cart, "add") as bp:
        thread = bp.start_thread(cart.add, 3)
        bp.wait()
        bp.release()
    assert thread.result == 4


def test_it_stops_where_the_function_has_returned(shop):
    with Breakpoint("bp_shop.double", "return") as bp:
        thread = bp.start_thread(shop.double, 4)
        assert bp.wait().result == 8
        assert bp.stackframe.f_locals["found"] == 8
        bp.release()
    assert thread.result == 8


def test_return_is_no_event_of_a_call_that_raises(shop):
    with pytest.raises(BreakpointError, match="expected any call; it was not called at all"):
        with Breakpoint("bp_shop.fail", "return", timeout=0.05) as bp:
            bp.start_thread(shop.forgiving, 4)
            with pytest.raises(BreakpointTimeoutError):
                bp.wait()
            bp.join()


def test_it_stops_where_the_function_has_raised(shop):
    with Breakpoint("bp_shop.fail", "error") as bp:
        thread = bp.start_thread(shop.forgiving, 4)
        assert isinstance(bp.wait().exception, LookupError)
        bp.release()
    assert thread.result == 4


def test_what_is_raised_where_it_stops_for_that_is_no_surprise(shop):
    with Breakpoint("bp_shop.fail", "error") as bp:
        thread = bp.start_thread(shop.fail, 4)
        bp.wait()
        bp.release()
    assert isinstance(thread.exception, LookupError)


def test_it_stops_at_the_end_with_the_variables_that_there_are(shop):
    with Breakpoint("bp_shop.double", "end") as bp:
        bp.start_thread(shop.double, 4, extra=1)
        call = bp.wait()
        assert (call.args, call.kwargs) == ((4,), {"extra": 1})
        assert bp.stackframe.f_locals == {"x": 4, "extra": 1, "found": 8}
        bp.release()


@pytest.mark.parametrize("event", ["line:+2", f"line:{line_of('    return found + extra')}"])
def test_it_stops_before_a_line(shop, event):
    with Breakpoint("bp_shop.double", event) as bp:
        thread = bp.start_thread(shop.double, 4)
        bp.wait()
        assert bp.stackframe.f_lineno == line_of("    return found + extra")
        assert bp.stackframe.f_locals["found"] == 8
        bp.release()
    assert thread.result == 8


def test_it_stops_in_a_generator_when_that_begins(shop):
    with Breakpoint("bp_shop.numbers") as bp:
        thread = bp.start_thread(lambda: list(shop.numbers(2)))
        assert bp.wait().args == (2,)
        bp.release()
    assert thread.result == [0, 1]


def test_a_path_means_every_reference(shop):
    alias, bound, partial = shop.double, shop.Cart().add, functools.partial(shop.double, 5)
    with Breakpoint("bp_shop.double") as bp, Breakpoint("bp_shop.Cart.add") as other:
        bp.start_thread(alias, 1)
        bp.start_thread(partial)
        other.start_thread(bound, 1)
        bp.wait(hits=2)
        other.wait()
        bp.release()
        other.release()


def test_a_pair_means_that_attribute_only(shop):
    alias = shop.double
    with Breakpoint((shop, "double")) as bp:
        assert alias(1) == 2
        bp.start_thread(shop.double, 3)
        bp.wait()
        bp.release()
        assert bp.calls == 1
    assert shop.double is alias


@pytest.mark.parametrize(
    ("owner", "name", "call", "result"),
    [
        ("Cart", "add", lambda shop: shop.Cart().add(1), 2),
        ("Cart", "inherited", lambda shop: shop.Cart().inherited(1), ("base", 1)),
        ("Cart", "static", lambda shop: shop.Cart().static(1), 1),
        ("Cart", "made", lambda shop: shop.Cart.made(1)[1], 1),
        ("Cart", "total", lambda shop: shop.Cart().total, 42),
        ("Cart", "join", lambda shop: shop.Cart().join("ab"), "a-b"),
        ("Cart", "kept", lambda shop: shop.Cart().kept("ab"), 2),
        ("Cart", "remembered", lambda shop: shop.Cart().remembered(7), 7),
        ("", "joined", lambda shop: shop.joined("ab"), "a+b"),
        ("", "cached", lambda shop: shop.cached(3), 3),
    ],
)
def test_every_kind_of_attribute_can_be_stopped_at_and_is_put_back(shop, owner, name, call, result):
    owner = getattr(shop, owner) if owner else shop
    before = dict(vars(owner))
    with Breakpoint(owner, name) as bp:
        thread = bp.start_thread(call, shop)
        bp.wait()
        bp.release()
    assert thread.result == result
    assert dict(vars(owner)) == before
    assert all(vars(owner)[key] is before[key] for key in before)


@pytest.mark.parametrize("name", ["add", "inherited", "static", "made"])
def test_of_an_object_it_stops_only_the_calls_of_that_object(shop, name):
    cart, other = shop.Cart(), shop.Cart()
    expected = getattr(other, name)(1)
    with Breakpoint(cart, name) as bp:
        assert getattr(other, name)(1) == expected
        thread = bp.start_thread(getattr(cart, name), 1)
        bp.wait()
        bp.release()
        bp.join()
        assert bp.calls == 1
    assert thread.result == expected
    assert name not in vars(cart)


def test_of_a_class_it_stops_a_method_of_its_metaclass(shop):
    class Meta(type):
        def named(cls, x):
            return cls, x

    one, other = Meta("One", (), {}), Meta("Other", (), {})
    with Breakpoint(one, "named") as bp:
        assert other.named(1) == (other, 1)
        thread = bp.start_thread(lambda: one.named(2))
        assert bp.wait().args == (one, 2)
        bp.release()
    assert thread.result == (one, 2)
    assert "named" not in vars(one)


def test_a_callable_that_an_object_holds_itself_is_put_back(shop):
    cart = shop.Cart()
    cart.add = double = shop.double
    with Breakpoint(cart, "add") as bp:
        thread = bp.start_thread(lambda: cart.add(2))
        bp.wait()
        bp.release()
    assert thread.result == 4
    assert cart.add is double


def test_what_somebody_else_put_on_the_attribute_meanwhile_stays(shop, caplog):
    with Breakpoint(shop, "double") as bp:
        bp.start_thread(shop.double, 1)
        bp.wait()
        shop.double = mine = len
        bp.release()
    assert shop.double is mine
    assert "bp_shop.double was replaced by somebody else" in caplog.text


def test_a_copy_has_the_looks_of_the_function(shop):
    shop.double.mark = 5
    with Breakpoint(shop, "double") as bp:
        bp.start_thread(shop.double, 1)
        bp.wait()
        assert str(inspect.signature(shop.double)) == "(x, *, extra=0)"
        assert (shop.double.__name__, shop.double.mark) == ("double", 5)


def test_a_function_without_python_code_can_be_stopped_at_by_its_path(shop):
    with Breakpoint("bp_shop.joined") as bp:
        thread = bp.start_thread(lambda: shop.joined("ab"))
        assert bp.wait().args == ("ab",)
        bp.release()
    assert thread.result == "a+b"


# --- which calls ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "condition",
    [
        lambda x: x == 2,
        lambda x, extra: x == 2 and extra == 0,
        lambda *args, **_: args == (2,),
        lambda value, **_: value == 2,
        1,
        [1],
        (lambda x: x == 2,),
    ],
)
def test_a_condition_says_which_calls_stop(shop, condition):
    with Breakpoint("bp_shop.double", condition=condition) as bp:
        thread = bp.start_thread(lambda: [shop.double(x) for x in (1, 2, 3)])
        assert bp.wait().args == (2,)
        assert bp.calls == 2
        bp.release()
        bp.join()
        assert (bp.calls, bp.hits) == (3, 1)
    assert thread.result == [2, 4, 6]


def test_of_several_conditions_each_has_to_be_met(shop):
    with pytest.raises(BreakpointError, match="expected call number 5; 3 calls got there") as found:
        with Breakpoint("bp_shop.double", condition=[0, lambda x: x == 3, 5]) as bp:
            bp.start_thread(lambda: [shop.double(x) for x in (1, 2, 3)])
            bp.wait(hits=1)
            bp.release()
            bp.wait(hits=2)
    assert "1. double(1, extra=0) in 'breakpoint:<lambda>' (a hit)" in str(found.value)
    assert "2. double(2, extra=0) in 'breakpoint:<lambda>'\n" in str(found.value)
    assert "\n(condition= counts calls from 0)" in str(found.value)


def test_a_method_s_predicate_may_name_what_it_looks_at(shop):
    cart, other = shop.Cart(), shop.Cart()
    with Breakpoint("bp_shop.Cart.add", condition=lambda self: self is cart) as bp:
        other.add(1)
        bp.start_thread(cart.add, 1)
        bp.wait()
        bp.release()


def test_a_condition_that_raises_is_the_test_s_failure_and_not_the_program_s(shop):
    with pytest.raises(BreakpointError, match=r"raised ZeroDivisionError: .* for double") as found:
        with Breakpoint("bp_shop.double", condition=lambda x: 1 / 0):
            assert shop.double(2) == 4
    assert isinstance(found.value.__cause__, ZeroDivisionError)
    with pytest.raises(BreakpointError, match="ZeroDivisionError"):
        with Breakpoint("bp_shop.double", condition=lambda x: 1 / 0) as bp:
            bp.start_thread(shop.double, 2)
            bp.wait()


@pytest.mark.parametrize("condition", [-1, True, "x > 1", 1.5, [1, "x"]])
def test_what_can_be_no_condition_is_said(condition):
    with pytest.raises(TypeError, match=r"neither a predicate .* nor the number of a call"):
        Breakpoint("bp_shop.double", condition=condition)


def test_no_condition_at_all_is_said():
    with pytest.raises(ValueError, match="give None for any"):
        Breakpoint("bp_shop.double", condition=[])


# --- going on ---------------------------------------------------------------------------------


def test_each_hit_stops_and_each_release_lets_go(shop):
    with Breakpoint("bp_shop.double") as bp:
        thread = bp.start_thread(shop.quadruple, 1)
        for x in (1, 2):
            assert bp.wait().args == (x,)
            bp.release()
        bp.join()
    assert thread.result == 4


def test_one_release_lets_all_go_who_stand(shop):
    with Breakpoint("bp_shop.double") as bp:
        threads = [bp.start_thread(shop.double, x) for x in range(5)]
        bp.wait(hits=5)
        assert sorted(call.args for call in bp.standing) == [(x,) for x in range(5)]
        bp.release()
        bp.join()
    assert sorted(thread.result for thread in threads) == [0, 2, 4, 6, 8]


def test_wait_returns_at_once_while_somebody_stands(shop):
    with Breakpoint("bp_shop.double") as bp:
        bp.start_thread(shop.double, 1)
        assert bp.wait() is bp.wait()
        bp.release()


def test_a_release_before_the_hit_lets_that_pass(shop):
    with Breakpoint("bp_shop.double") as bp:
        bp.release()
        thread = bp.start_thread(shop.double, 1)
        bp.join()
        bp.wait()
        second = bp.start_thread(shop.double, 2)
        assert bp.wait().args == (2,)  # only one passes
        bp.release()
    assert (thread.result, second.result) == (2, 4)


class Crossing:
    """Holds a caller that is noted and told to all, before it waits at its gate."""

    def __init__(self, monkeypatch):
        self.arrived, self.go_on = threading.Event(), threading.Event()
        wait = Gate.wait

        def held(gate, seconds):
            self.arrived.set()
            assert self.go_on.wait(10)
            return wait(gate, seconds)

        monkeypatch.setattr(Gate, "wait", held)


def test_a_release_between_the_hit_and_its_waiting_is_not_lost(shop, monkeypatch):
    with Breakpoint("bp_shop.double") as bp:
        crossing = Crossing(monkeypatch)
        thread = bp.start_thread(shop.double, 1)
        assert crossing.arrived.wait(10)
        bp.wait()
        bp.release()
        crossing.go_on.set()
        bp.join()
    assert thread.result == 2


def test_a_hit_between_looking_and_waiting_is_not_lost(shop, monkeypatch):
    with Breakpoint("bp_shop.double", timeout=10_000) as bp:
        wait = Monitor.wait
        looks = []

        def late(monitor, version, seconds):
            looks.append(bp.hits)
            if len(looks) == 1:
                # It was looked, in vain; before it is waited the hit comes.
                bp.start_thread(shop.double, 1)
                wait_until(lambda: bp.standing)
            wait(monitor, version, seconds)

        monkeypatch.setattr(Monitor, "wait", late)
        bp.wait()
        assert looks == [0]
        bp.release()


def test_a_release_in_the_moment_in_which_the_caller_gives_up_is_not_lost(shop, monkeypatch):
    with Breakpoint("bp_shop.double", timeout=0.01) as bp:
        wait = Gate.wait

        def late(gate, seconds):
            is_opened = wait(gate, seconds)
            assert not is_opened
            bp.release()
            return is_opened

        monkeypatch.setattr(Gate, "wait", late)
        assert shop.double(1) == 2


def test_release_and_hit_cross_in_any_order(shop):
    with Breakpoint("bp_shop.double", timeout=30) as bp:
        for number in range(300):
            go = threading.Barrier(2)

            def hit(go=go):
                go.wait()
                return shop.double(1)

            thread = bp.start_thread(hit)
            go.wait()
            bp.release()
            thread.join(30)
            assert thread.result == 2, number


def test_who_stands_too_long_gets_an_error_of_its_own(shop):
    with Breakpoint("bp_shop.double", timeout=0.01) as bp:
        with pytest.raises(BreakpointTimeoutError) as found:
            shop.double(3)
        assert bp.standing == []
    text = str(found.value)
    assert text.startswith(
        "double(3, extra=0) in 'MainThread' stood at Breakpoint('bp_shop.double'"
    )
    assert "0.01 s, and nobody called release()" in text
    for kind in (AssertionError, TimeoutError, RuntimeError):
        assert isinstance(found.value, kind)


def test_an_error_for_standing_too_long_is_the_caller_s_and_is_over_once_that_handles_it(shop):
    def careful():
        try:
            return shop.double(1)
        except RuntimeError as error:
            return error

    with Breakpoint("bp_shop.double", timeout=0.01) as bp:
        thread = bp.start_thread(careful)
        bp.wait()
        thread.join()
    assert isinstance(thread.result, BreakpointTimeoutError)
    assert "nobody called release" in str(thread.result)


def test_an_error_for_standing_too_long_that_nobody_handles_is_raised_in_the_test(shop):
    with pytest.raises(BreakpointTimeoutError, match="nobody called release"):
        with Breakpoint("bp_shop.double", timeout=0.01) as bp:
            thread = bp.start_thread(shop.double, 1)
            bp.wait()
            thread.join()


# --- other things to do at a hit --------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("no disk"), KeyError, MemoryError, RecursionError("x")])
@pytest.mark.parametrize("event", ["call", "return", "end", "line:+2"])
def test_an_error_is_raised_in_the_caller(shop, error, event):
    kind = error if isinstance(error, type) else type(error)
    with Breakpoint.error(error, "bp_shop.double", event) as bp:
        with pytest.raises(kind) as found:
            shop.double(1)
        assert bp.hits == 1
    if not isinstance(error, type):
        assert found.value is error
    assert shop.double(1) == 2


def test_an_error_at_a_line_can_be_handled_by_the_function(shop):
    with Breakpoint.error(LookupError("injected"), "bp_shop.forgiving", "line:+2"):
        assert shop.forgiving(1) == "injected"


def test_an_error_that_was_made_does_not_surprise(shop):
    with Breakpoint.error(OSError("no disk"), shop.Cart, "add") as bp:
        thread = bp.start_thread(shop.Cart().add, 1)
        bp.wait()
    assert isinstance(thread.exception, OSError)


def test_an_error_may_be_one_that_is_no_exception_of_programs(shop):
    with Breakpoint.error(KeyboardInterrupt, "bp_shop.double"):
        with pytest.raises(KeyboardInterrupt):
            shop.double(1)


def test_only_calls_that_meet_the_condition_get_the_error(shop):
    with Breakpoint.error(OSError("x"), "bp_shop.double", condition=lambda x: x > 1):
        assert shop.double(1) == 2
        with pytest.raises(OSError, match="x"):
            shop.double(2)


def test_what_is_no_exception_is_said():
    with pytest.raises(TypeError, match="give it first, then the target"):
        Breakpoint.error("bp_shop.double", OSError)


def test_block_is_what_a_breakpoint_does_anyway(shop):
    with Breakpoint.block("bp_shop.double", "call", 0) as bp:
        bp.start_thread(shop.double, 1)
        bp.wait()
        bp.release()
    with pytest.raises(TypeError, match="for something else: Breakpoint"):
        Breakpoint.block("bp_shop.double", fire=print)


def test_anything_can_be_done_at_a_hit(shop):
    seen = []

    def fire(call):
        seen.append((call.args, call.frame.f_locals["x"]))
        assert shop.double(7) == 14  # its own calls do not stop

    with Breakpoint("bp_shop.double", fire=fire) as bp:
        assert shop.double(5) == 10
        assert isinstance(bp.wait(), Call)
    assert seen == [((5,), 5)]
    assert bp.seen[0].frame is None


def test_an_instrument_s_own_calls_do_not_stop(shop):
    probe = attach_to("bp_shop.quadruple")
    seen = ProbeTestInstrument("n", "double(result)", "return")
    with Breakpoint("bp_shop.double", condition=lambda x: x == 4, timeout=1) as bp:
        probe.attach("k", seen)
        try:
            thread = bp.start_thread(shop.quadruple, 2)
            bp.wait()
            bp.release()
            bp.join()
        finally:
            probe.detach("k")
        assert (thread.result, seen.results, bp.calls) == (8, [16], 2)


def test_a_probe_on_the_same_function_goes_on(shop):
    probe = attach_to("bp_shop.double")
    before, after = (ProbeTestInstrument("n", "x", event) for event in ("call", "end"))
    probe.attach("before", before)
    with Breakpoint("bp_shop.double") as bp:
        probe.attach("after", after)
        bp.start_thread(shop.double, 3)
        bp.wait()
        assert (before.results, after.results) == ([3], [])
        bp.release()
        bp.join()
        assert after.results == [3]
    shop.double(4)
    assert (before.results, after.results) == ([3, 4], [3, 4])
    probe.detach("before")
    probe.detach("after")


def test_several_breakpoints_stop_on_one_function(shop):
    with Breakpoint("bp_shop.double") as one, Breakpoint("bp_shop.double", "return") as two:
        thread = one.start_thread(shop.double, 3)
        one.wait()
        assert two.hits == 0
        one.release()
        two.wait()
        two.release()
    assert thread.result == 6


# --- waiting ----------------------------------------------------------------------------------


def test_a_wait_in_vain_says_what_was_expected_and_what_happened(shop):
    with Breakpoint("bp_shop.double", condition=lambda x: x > 5, timeout=0.01) as bp:
        bp.start_thread(shop.quadruple, 1).join()
        with pytest.raises(AssertionError) as found:
            bp.wait()
        bp.start_thread(shop.double, 9)
        bp.wait()
        bp.release()
    text = str(found.value)
    assert text.startswith("bp_shop.double at 'call': expected a call for which ")
    assert "test_breakpoints.py:" in text
    assert "condition=lambda x: x > 5" in text
    assert "within 0.01 s; 2 calls got there\n  1. double(1, extra=0)" in text
    assert text.endswith("started by it:\n  'breakpoint:quadruple' returned 4")


def test_a_wait_in_vain_says_where_the_threads_are(shop):
    gate = threading.Event()

    def stuck():
        gate.wait(10)

    with Breakpoint("bp_shop.double", timeout=0.2) as bp:
        bp.start_thread(stuck)
        with pytest.raises(BreakpointTimeoutError, match="it was not called at all") as found:
            bp.wait()
        gate.set()
        bp.start_thread(shop.double, 1)
        bp.wait()
    assert re.search(r"'breakpoint:stuck' is in stuck \(.*: gate.wait\(10\)\)", str(found.value))


def test_what_a_thread_raised_before_it_got_there_ends_the_waiting(shop):
    def broken():
        raise LookupError("before")

    with pytest.raises(LookupError, match="before") as found:
        with Breakpoint("bp_shop.double", timeout=60) as bp:
            bp.start_thread(broken)
            bp.wait()
    assert "raised by 'breakpoint:broken', which Breakpoint" in found.value.__notes__[0]


def test_wait_until_is_about_anything(shop):
    flag = []
    with Breakpoint("bp_shop.double") as bp:
        thread = bp.start_thread(lambda: [flag.append(1), shop.double(1)])
        bp.wait_until(lambda: flag)
        bp.wait_until(1)
        bp.release()
        bp.wait_until(lambda: not thread.is_alive())
        with pytest.raises(BreakpointTimeoutError, match=r"expected <lambda>|is true"):
            bp.wait_until(lambda: False, timeout=0.01)
        with pytest.raises(BreakpointTimeoutError, match=r"expected 2 calls, within 0.01 s"):
            bp.wait_until(2, 0.01)


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "x"])
def test_what_can_be_no_number_of_hits_is_said(shop, wrong):
    with Breakpoint("bp_shop.double") as bp:
        bp.release()
        shop.double(1)
        with pytest.raises(ValueError, match="is no number of hits"):
            bp.wait(hits=wrong)
        with pytest.raises(TypeError, match="number of calls"):
            bp.wait_until(wrong)


@pytest.mark.parametrize("wrong", [0, -1, True, "1", float("nan"), float("inf")])
def test_what_can_be_no_timeout_is_said(shop, wrong):
    with pytest.raises(ValueError, match="no number of seconds above 0"):
        Breakpoint("bp_shop.double", timeout=wrong)
    with Breakpoint("bp_shop.double") as bp:
        bp.release()
        shop.double(1)
        with pytest.raises(ValueError, match="no number of seconds above 0"):
            bp.wait(wrong)


def test_join_says_who_stands_at_the_breakpoint(shop):
    with Breakpoint("bp_shop.double") as bp:
        bp.start_thread(shop.quadruple, 1)
        bp.wait()
        with pytest.raises(BreakpointTimeoutError) as found:
            bp.join(0.01)
    assert "'breakpoint:quadruple' is in double (bp_shop.py:5)" in str(found.value)
    assert "it stands at this breakpoint: release() it" in str(found.value)


def test_join_raises_what_a_thread_raised(shop):
    with Breakpoint("bp_shop.double") as bp:
        bp.start_thread(shop.double, None)
        bp.wait()
        bp.release()
        with pytest.raises(TypeError):
            bp.join()
        bp.join()  # it is known by now


# --- leaving ----------------------------------------------------------------------------------


def test_a_breakpoint_that_was_never_hit_is_an_assertion_error(shop):
    with pytest.raises(AssertionError) as found:
        with Breakpoint("bp_shop.double"):
            pass
    assert str(found.value) == (
        "bp_shop.double at 'call': expected any call; it was not called at all"
    )


def test_what_a_thread_raised_is_raised_on_leaving(shop):
    with pytest.raises(TypeError) as found:
        with Breakpoint("bp_shop.double") as bp:
            bp.start_thread(shop.double, None)
            bp.wait()
    assert "raised by 'breakpoint:double'" in found.value.__notes__[0]


def test_a_thread_that_ends_by_system_exit_does_not_end_the_test(shop):
    def leave():
        shop.double(1)
        sys.exit(3)

    with Breakpoint("bp_shop.double") as bp:
        thread = bp.start_thread(leave)
        bp.wait()
    assert isinstance(thread.exception, SystemExit)


def test_what_the_test_knows_of_is_not_raised_on_leaving(shop):
    with Breakpoint("bp_shop.double") as bp:
        thread = bp.start_thread(shop.double, None)
        bp.wait()
        bp.release()
        thread.join()
        assert isinstance(thread.exception, TypeError)


def test_those_who_stand_are_let_go_on_leaving_and_threads_end(shop):
    with Breakpoint("bp_shop.double") as bp:
        threads = [bp.start_thread(shop.quadruple, x) for x in (1, 2)]
        bp.wait(hits=2)
    assert [thread.result for thread in threads] == [4, 8]
    assert not any(thread.is_alive() for thread in threads)


def test_a_thread_that_does_not_end_is_said(shop):
    gate = threading.Event()

    def stay():
        shop.double(1)
        gate.wait(10)

    with pytest.raises(BreakpointTimeoutError, match=r"not ended after 0.2 s: .* is in stay"):
        with Breakpoint("bp_shop.double", timeout=0.2) as bp:
            thread = bp.start_thread(stay)
            bp.wait()
    gate.set()
    thread.join(10)


@pytest.mark.parametrize("error", [AssertionError("mine"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("target", ["bp_shop.double", "pair"])
def test_after_an_error_in_the_body_nothing_is_left(shop, error, target):
    before, code = shop.double, shop.double.__code__
    with pytest.raises(type(error)) as found:
        with Breakpoint((shop, "double") if target == "pair" else target) as bp:
            thread = bp.start_thread(shop.double, 3)
            bp.wait()
            raise error
    assert found.value is error
    assert (shop.double, shop.double.__code__) == (before, code)
    assert thread.result == 6
    assert bp.standing == []


def test_the_error_in_the_body_comes_with_what_a_thread_raised(shop):
    with pytest.raises(AssertionError, match="mine") as found:
        with Breakpoint("bp_shop.double") as bp:
            bp.start_thread(shop.double, None)
            bp.wait()
            raise AssertionError("mine")
    assert any("TypeError: unsupported operand" in note for note in found.value.__notes__)


def interrupted(*_):
    raise KeyboardInterrupt


def test_an_interrupt_while_it_is_waited_undoes_everything(shop, monkeypatch):
    code = shop.double.__code__
    with pytest.raises(KeyboardInterrupt):
        with Breakpoint("bp_shop.double") as bp:
            thread = bp.start_thread(shop.double, 1)
            bp.wait()
            monkeypatch.setattr(Monitor, "wait", interrupted)
            bp.wait(hits=2)
    assert shop.double.__code__ is code
    assert thread.result == 2


def test_an_interrupt_while_the_caller_stands_lets_it_leave(shop, monkeypatch):
    with Breakpoint("bp_shop.double") as bp:
        monkeypatch.setattr(Gate, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shop.double(1)
        assert bp.standing == []


def test_an_interrupt_while_threads_are_joined_undoes_everything(shop, monkeypatch):
    code = shop.double.__code__
    with pytest.raises(KeyboardInterrupt):
        with Breakpoint("bp_shop.double") as bp:
            thread = bp.start_thread(shop.double, 1)
            bp.wait()
            monkeypatch.setattr(Workers, "join", interrupted)
    assert shop.double.__code__ is code
    thread.join(10)
    assert thread.result == 2


@pytest.mark.parametrize("pair", [True, False])
def test_an_interrupt_at_any_line_of_entering_or_leaving_undoes_everything(shop, pair):
    before, its_code = shop.double, shop.double.__code__
    left, interrupts = 0, 0
    ours = str(Path(breakpoints.__file__).parent.parent)
    bp = Breakpoint((shop, "double") if pair else "bp_shop.double", fire=lambda _: None)

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.startswith(ours):
            return None
        # No program can catch an interrupt before the first line of its `__exit__`; nor one where
        # a `with` is left, but there is none: CPython looks for signals after calls and jumps.
        code = frame.f_code
        is_first = code.co_name == "__exit__" and frame.f_lineno <= code.co_firstlineno + 6
        line = linecache.getline(code.co_filename, frame.f_lineno)
        if event == "line" and not is_first and not line.lstrip().startswith("with "):
            left -= 1
            if not left:
                raise KeyboardInterrupt
        return trace

    old = sys.gettrace()
    while left <= 0:
        interrupts += 1
        left = interrupts
        try:
            sys.settrace(trace)
            with bp:
                shop.double(1)
        except KeyboardInterrupt:
            left = 0
        finally:
            sys.settrace(old)
        assert (shop.double, shop.double.__code__) == (before, its_code)
        assert threading.get_ident() not in BUSY
        bp.disarm()
    assert interrupts > 50


def test_a_disarmed_breakpoint_lets_all_go_and_stops_nobody(shop):
    code = shop.double.__code__
    with Breakpoint("bp_shop.double") as bp:
        thread = bp.start_thread(shop.double, 1)
        bp.wait()
        bp.disarm()
        assert shop.double.__code__ is code
        assert shop.double(2) == 4
        bp.join()
        assert bp.hits == 1
        bp.disarm()
    assert thread.result == 2


def test_breakpoints_on_one_attribute_may_be_left_in_any_order(shop):
    before = shop.double
    first, second = (Breakpoint((shop, "double"), fire=lambda _: None) for _ in range(2))
    first.__enter__()
    second.__enter__()
    shop.double(1)
    first.__exit__(None, None, None)
    shop.double(1)
    second.__exit__(None, None, None)
    assert shop.double is before
    assert (first.hits, second.hits) == (1, 2)


def test_arguments_whose_repr_calls_the_target_are_shown(shop):
    class Calling:
        def __repr__(self):
            shop.double(1)
            return "calling"

        def __mul__(self, _):
            return 0

    with Breakpoint("bp_shop.double", timeout=0.05) as bp:
        thread = bp.start_thread(shop.double, Calling())
        assert "double(calling, extra=0)" in str(bp.wait())
        thread.join(10)
        assert "double(calling, extra=0) in 'breakpoint:double' stood at" in str(thread.exception)
    assert bp.calls == 1


def test_what_threads_raised_is_told_of_if_its_text_fails(shop):
    class UntoldError(Exception):
        def __str__(self):
            raise LookupError

    def fail():
        raise UntoldError

    with pytest.raises(BreakpointTimeoutError, match="UntoldError, whose str raises LookupError"):
        with Breakpoint("bp_shop.double", timeout=0.05) as bp:
            thread = bp.start_thread(fail)
            thread.join(10)
            assert thread.exception
            bp.wait()


def test_an_error_that_is_raised_again_and_again_does_not_grow(shop):
    error = OSError("no disk")
    with Breakpoint.error(error, "bp_shop.double"):
        for _ in range(20):
            with pytest.raises(OSError, match="no disk"):
                shop.double(1)
    assert len(list(traceback.walk_tb(error.__traceback__))) < 10


def test_a_thread_that_cannot_be_started_is_the_error_that_is_raised(shop, monkeypatch):
    def fail(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        with Breakpoint("bp_shop.double") as bp:
            bp.start_thread(shop.double, 1)


def test_what_breakpoints_and_threads_use_themselves_may_be_the_target():
    with Breakpoint("threading.Condition.notify_all") as bp:
        event = threading.Event()
        thread = bp.start_thread(event.set)
        bp.wait()
        bp.release()
    assert thread.has_ended


def test_a_cached_property_stops(shop):
    class Cached:
        @cached_property
        def total(self):
            return 3

    kept = Cached.__dict__["total"]
    with Breakpoint(Cached, "total", fire=lambda _: None) as bp:
        assert Cached().total == 3
    assert (Cached.__dict__["total"], bp.hits) == (kept, 1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda shop: Breakpoint(shop.Cart), "Breakpoint.Cart, 'checkout'."),
        (lambda _: Breakpoint(Mock(), "send"), "what its __getattr__ makes can't be stopped"),
    ],
)
def test_a_target_that_is_given_the_wrong_way_is_told_the_right_one(shop, make, text):
    with pytest.raises(TargetNotFoundError, match=text):
        make(shop).__enter__()


def test_a_breakpoint_can_be_entered_again_and_begins_anew(shop):
    bp = Breakpoint("bp_shop.double")
    for _ in range(2):
        with bp:
            bp.start_thread(shop.double, 1)
            bp.wait()
            bp.release()
        assert (bp.calls, bp.hits, len(bp.seen)) == (1, 1, 1)


def test_a_breakpoint_that_is_entered_cannot_be_entered(shop):
    with Breakpoint("bp_shop.double") as bp:
        with pytest.raises(RuntimeError, match="in use already; make another one"):
            bp.__enter__()
        bp.release()
        assert shop.double(1) == 2


# --- what cannot be ---------------------------------------------------------------------------


def test_a_path_that_leads_nowhere_is_said(shop):
    with pytest.raises(TargetNotFoundError, match="did you mean 'double'"):
        Breakpoint("bp_shop.duble").__enter__()


def test_an_attribute_that_is_not_there_is_said(shop):
    with pytest.raises(TargetNotFoundError, match="did you mean 'add'"):
        Breakpoint(shop.Cart, "ad").__enter__()


def test_what_can_be_no_target_is_said(shop):
    with pytest.raises(TargetKindError, match=r"neither a path .* nor an object and an attribute"):
        Breakpoint((shop.double,))


def test_an_attribute_that_cannot_be_called_is_said(shop):
    shop.limit = 5
    with pytest.raises(TargetKindError, match=r"bp_shop.limit is 5, which can't be called"):
        Breakpoint(shop, "limit").__enter__()
    with pytest.raises(TargetKindError, match="name one of its functions, such as"):
        Breakpoint(shop, "Cart").__enter__()


@pytest.mark.parametrize(("owner", "name"), [(dict, "get"), ("Slotted", "go")])
def test_an_attribute_that_cannot_be_replaced_is_said(shop, owner, name):
    owner = getattr(shop, owner)() if isinstance(owner, str) else owner
    with pytest.raises(
        TargetKindError, match=r"can't be replaced: .*; name the function by its path"
    ):
        Breakpoint(owner, name).__enter__()


def test_an_event_that_there_is_not_is_said(shop):
    with pytest.raises(ValueError, match="event 'begin' is none of 'call', 'return'"):
        Breakpoint("bp_shop.double", "begin")
    for event in ("line:", "line:x", "line:-1"):
        with pytest.raises(ValueError, match="is none of"):
            Breakpoint("bp_shop.double", event)


def test_a_line_without_code_is_said_and_nothing_is_left(shop):
    before = shop.double
    with pytest.raises(ProbeError, match="nearest lines"):
        Breakpoint("bp_shop.double", "line:9999").__enter__()
    with pytest.raises(ProbeError, match="nearest lines"):
        Breakpoint((shop, "double"), "line:9999").__enter__()
    assert shop.double is before


def test_a_line_of_what_has_no_code_is_said_and_nothing_is_left(shop):
    before = shop.joined
    with pytest.raises(ProbeError, match="has no Python code"):
        Breakpoint("bp_shop.joined", "end").__enter__()
    assert shop.joined is before


def test_what_cannot_be_done_at_a_hit_is_said(shop):
    with pytest.raises(TypeError, match="can't be called; give a function that takes the call"):
        Breakpoint("bp_shop.double", fire=5)


def test_arguments_whose_repr_fails_are_shown_all_the_same(shop):
    class Shy:
        def __repr__(self):
            raise ValueError

        def __mul__(self, _):
            return 1

    with pytest.raises(BreakpointError, match=r"<Shy, whose repr raises ValueError>|<Shy instance"):
        with Breakpoint("bp_shop.double", condition=1) as bp:
            bp.release()
            shop.double(Shy())


# --- do ---------------------------------------------------------------------------------------


def test_do_runs_a_function_up_to_a_call_and_then_to_its_end(shop):
    cart = shop.Cart()
    with do(cart.add, 3).until("bp_shop.Cart.add") as adding:
        assert not hasattr(cart, "last")
        assert adding.stackframe.f_locals["x"] == 3
    assert adding.results == [4]
    assert cart.last == 3


def test_do_can_be_entered_again(shop):
    cart = shop.Cart()
    adding = do(lambda: cart.add(3)).until(shop.Cart, "add")
    for number in (1, 2):
        with adding:
            assert adding.breakpoint.hits == 1
        assert adding.results == [4] * number


def test_do_goes_beyond_a_function_that_returns_or_raises(shop):
    with do(shop.quadruple, 1).beyond("bp_shop.double") as doing:
        assert doing.breakpoint.seen[0].result == 2
    with do(shop.forgiving, 1).beyond("bp_shop.fail") as doing:
        assert isinstance(doing.breakpoint.seen[0].exception, LookupError)
    assert doing.results == [1]


def test_do_stops_where_the_target_returns_or_raises(shop):
    with do(shop.quadruple, 1).until("bp_shop.double").returns as doing:
        assert doing.breakpoint.seen[0].result == 2
    with do(shop.forgiving, 1).until("bp_shop.fail").errors as doing:
        assert isinstance(doing.breakpoint.seen[0].exception, LookupError)


def test_do_makes_a_target_fail(shop):
    error = OSError("no disk")
    with do(shop.quadruple, 1).error_on("bp_shop.double", error) as doing:
        pass
    assert doing.results == [error]
    with do(shop.forgiving, 1).error_on("bp_shop.fail", LookupError("other")) as doing:
        pass
    assert doing.results == ["other"]


def test_do_stops_where_a_condition_is_met_and_only_once(shop):
    def many():
        return [shop.double(x) for x in (1, 2, 2, 3)]

    with do(many).until("bp_shop.double").where(lambda x: x == 2).once as doing:
        assert doing.breakpoint.seen[-1].number == 2
        doing.release()
        doing.breakpoint.join()
    assert doing.results == [[2, 4, 4, 6]]


def test_do_without_a_point_runs_to_the_end(shop):
    with do(shop.double, 1) as doing:
        pass
    assert doing.results == [2]
    with pytest.raises(TypeError), do(shop.double, None):
        pass


def test_what_do_is_asked_for_does_not_change_it(shop):
    first = do(shop.quadruple, 1).until("bp_shop.double")
    second = first.returns
    with first:
        assert first.breakpoint.event == "call"
    with second:
        assert second.breakpoint.event == "return"
    assert (first.results, second.results) == ([4], [4])


def test_do_says_what_is_missing(shop):
    for name in ("returns", "errors", "once"):
        with pytest.raises(TypeError, match="first until"):
            getattr(do(shop.double, 1), name)
    with pytest.raises(TypeError, match="first until"):
        do(shop.double, 1).where(1)


def test_do_raises_what_the_function_raised_before_it_got_there(shop):
    with pytest.raises(LookupError):
        with do(shop.fail, 1).within(60).until("bp_shop.double"):
            pytest.fail("it is not there")
    with pytest.raises(BreakpointError, match="expected any call; it was not called at all"):
        with do(shop.forgiving, 1).until("bp_shop.double").within(60):
            pytest.fail("it is not there")
    add = shop.Cart().add
    with pytest.raises(BreakpointError, match="name the function by its path"):
        with do(add, 1).until(shop.Cart, "add"):
            pytest.fail("it is not there")


def test_do_that_is_entered_cannot_be_entered(shop):
    with do(shop.double, 1).until("bp_shop.double") as doing:
        with pytest.raises(RuntimeError, match="entered already"):
            doing.__enter__()


# --- as tests use it --------------------------------------------------------------------------


def test_a_lost_update_happens_each_time(shop):
    class Account:
        balance = 0

        def save(self, balance):
            self.balance = balance

        def deposit(self, amount):
            balance = self.balance
            self.save(balance + amount)

    account = Account()
    with Breakpoint(account, "save", condition=0) as bp:
        bp.start_thread(account.deposit, 10)
        bp.wait()
        account.deposit(5)  # the second call: it passes
        bp.release()
    assert account.balance == 10  # the 5 are lost


def test_breakpoints_and_metrics_share_a_function_that_many_threads_call(shop):
    metric = HistogramInstrument("n", "elapsed")
    probe = attach_to("bp_shop.double")
    probe.attach("k", metric)
    try:
        with Breakpoint("bp_shop.double", condition=lambda x: x == 500) as bp:
            threads = [bp.start_thread(lambda: [shop.double(x) for x in range(1000)])] * 4
            bp.wait()
            bp.release()
            bp.join()
        assert all(thread.result[-1] == 1998 for thread in threads)
    finally:
        probe.detach("k")


# --- a function as the target -----------------------------------------------------------------


def test_a_function_stops_on_every_reference(shop):
    alias, add = shop.double, shop.Cart().add
    with Breakpoint(shop.double, condition=[0, 1], fire=lambda _: None) as bp:
        assert (alias(1), shop.double(2)) == (2, 4)
    assert (bp.calls, repr(bp)) == (2, "Breakpoint('bp_shop.double', event='call')")
    with Breakpoint(shop.Cart.add, "return", 0) as bp:
        thread = bp.start_thread(add, 3)
        assert bp.wait().result == 4
        bp.release()
    assert thread.result == 4


def test_functions_behind_methods_of_a_class_and_without_code_stop_too(shop):
    class Made:
        @classmethod
        def made(cls):
            return cls()

        @staticmethod
        def plain():
            return 1

    for function in (Made.made, Made.plain, os.getpid, shop.cached):
        with Breakpoint(function, fire=lambda _: None) as bp:
            Made.made(), Made.plain(), os.getpid(), shop.cached(1)
        assert bp.calls == 1, function


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (threading.Event().set, r"is a method of one object: give \(Event, 'set'\)"),
        ([].append, "is no plain function, and is not what 'list.append' leads to"),
        (functools.lru_cache(TextWrapper.wrap), "not what 'textwrap.TextWrapper.wrap' leads to"),
        (str.upper, "is no plain function, and is not what 'builtins.str.upper' leads to"),
    ],
)
def test_a_function_that_does_not_say_which_calls_are_meant_is_told_how(function, text):
    with pytest.raises(TargetKindError, match=text):
        Breakpoint(function).__enter__()


def test_a_function_that_is_called_at_a_hit_may_take_no_argument(shop):
    done = []
    for fire in (lambda: done.append(1), lambda *_: done.append(2), lambda _=None: done.append(_)):
        with Breakpoint(shop.double, fire=fire) as bp:
            shop.double(1)
    assert done == [1, 2, bp.seen[0]]


# --- what a do keeps --------------------------------------------------------------------------


def test_a_do_has_the_results_of_those_that_were_made_from_it(shop):
    doing = do(shop.quadruple, 1)
    for number in (1, 2):
        with doing.until(shop.double).where(0):
            assert doing.breakpoint.hits == 1
            doing.release()
        assert doing.results == [4] * number


def test_a_do_without_a_function_leaves_the_calls_to_the_test(shop):
    with do().until(shop.double).once as doing:
        thread = doing.breakpoint.start_thread(shop.double, 2)
        assert doing.breakpoint.wait().args == (2,)
    assert (thread.result, doing.results) == (4, [])
    with do().error_on(shop.double, OSError("no disk")), pytest.raises(OSError, match="no disk"):
        shop.double(1)
    with do() as doing:
        assert doing.stackframe is None
    with pytest.raises(BreakpointTimeoutError):
        with do().until(shop.double) as doing:
            doing.breakpoint.start_thread(int).join()
            doing.breakpoint.wait(0.01)  # others may call it yet
    with pytest.raises(BreakpointError, match="it was not called at all"):
        with do().until(shop.double):
            pass


def test_the_time_that_a_do_has_may_be_given_with_the_point(shop):
    made = [
        do().until(shop.double, 0.5),
        do().until(shop.double, timeout=0.5),
        do().beyond(shop.double, 0.5),
        do().error_on(shop.double, OSError, 0.5),
        do().within(0.5).until(shop.Cart, "add"),
    ]
    for each in made:
        with pytest.raises(BreakpointError), each:
            assert each.breakpoint.timeout == 0.5
