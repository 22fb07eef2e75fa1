"""See test_upgrading.py: breakpoints."""

from __future__ import annotations

import threading

import pytest

from diagnose.breakpoints import Breakpoint, do

SOURCE = """
def double(x):
    return x * 2

def quadruple(x):
    return double(double(x))

def fail(x):
    raise ValueError(x)

def patient(x):
    try:
        return double(x)
    except RuntimeError:
        return "waited in vain"

class Cart:
    def add(self, x):
        return x
"""


# --- what goes on as it is --------------------------------------------------------------------


def test_a_function_itself_is_a_target(shop):
    """Targets of breakpoints."""
    alias, add = shop.double, shop.Cart().add
    for target in ("probed_shop.double", (shop, "double"), shop.double):
        with Breakpoint.block(target) as bp:
            bp.start_thread(lambda: shop.double(1))
            bp.wait()
            bp.release()
        with Breakpoint.error(OSError("no disk"), target), pytest.raises(OSError, match="no disk"):
            shop.double(1)
        doing = do(lambda: shop.double(1))
        with doing.until(target):
            assert doing.breakpoint.stackframe.f_locals == {"x": 1}
        with doing.beyond(target):
            assert doing.breakpoint.seen[0].result == 2
        with doing.error_on(target, OSError("no disk")):
            pass
        assert doing.results[:2] == [2, 2]
        assert isinstance(doing.results[2], OSError)
    with Breakpoint(shop.double, fire=lambda: None) as bp:
        alias(1)
    with Breakpoint(shop.Cart.add, fire=lambda: None) as other:
        add(1)
    assert (bp.calls, other.calls) == (1, 1)


def test_conditions_count_from_0_alone_and_in_lists(shop):
    """Conditions count from 0."""
    cases = [
        (0, [0]),
        (1, [1]),
        ([0, 2], [0, 2]),
        ([1], [1]),
        ((0, 1), [0, 1]),
        (None, [0, 1, 2, 3]),
    ]
    for condition, hit in cases:
        found = []
        with Breakpoint(
            shop.double, condition=condition, fire=lambda call, to=found: to.append(call.args[0])
        ):
            for x in range(4):
                shop.double(x)
        assert found == hit, condition
    with pytest.raises(AssertionError, match="expected call number 1"):
        with Breakpoint(shop.double, condition=1, fire=lambda: None):
            shop.double(0)
    for condition, argument in ((0, 3), (1, 6), ([1], 6)):
        with do(shop.quadruple, 3).until("probed_shop.double").where(condition) as doing:
            assert doing.breakpoint.standing[0].args == (argument,)


def test_what_is_done_at_a_hit_may_take_no_argument(shop):
    """What is done at a hit."""
    done = []
    with Breakpoint("probed_shop.double", "call", None, 10.0, lambda: done.append(1)):
        shop.double(1)
    assert done == [1]


def test_a_do_fills_its_own_results_and_needs_no_function(shop):
    """`do`."""
    doing = do(shop.double, 1)
    for number in (1, 2, 3):
        with doing.until("probed_shop.double", 20):
            assert doing.breakpoint.timeout == 20
            doing.release()
        assert doing.results == [2] * number
    with do().until("probed_shop.double", timeout=20).once as nobody:
        thread = threading.Thread(target=shop.quadruple, args=(1,))
        thread.start()
        nobody.breakpoint.wait()
        nobody.release()
        thread.join()
    assert (nobody.results, nobody.breakpoint.hits) == ([], 1)
    with do().error_on("probed_shop.double", OSError("no disk")):
        with pytest.raises(OSError, match="no disk"):
            shop.double(1)
    with do():
        assert shop.double(1) == 2


def test_a_wait_that_runs_out_is_a_runtime_error(shop):
    """Waits that run out."""
    with pytest.raises(RuntimeError, match="it was not called at all") as found:
        with Breakpoint("probed_shop.double", timeout=0.01) as bp:
            bp.wait()
    assert isinstance(found.value, AssertionError)


def test_a_caller_that_stands_too_long_gets_a_runtime_error(shop):
    """Callers that stand too long."""
    with Breakpoint.block(shop.double, timeout=0.01) as bp:
        with pytest.raises(RuntimeError, match="nobody called release"):
            shop.double(1)
        thread = bp.start_thread(shop.patient, 1)
        bp.wait(hits=2)
        thread.join()
    assert (thread.result, bp.hits) == ("waited in vain", 2)


# --- what differs -----------------------------------------------------------------------------


def test_what_threads_raise_is_raised_in_the_test(shop):
    """What threads raise."""
    with pytest.raises(ValueError, match="5"):
        with Breakpoint(shop.fail, fire=lambda: None) as bp:
            bp.start_thread(shop.fail, 5)


def test_calls_are_a_number(shop):
    """`calls` is a number."""
    with Breakpoint(shop.double, fire=lambda: None) as bp:
        shop.double(1)
    assert (bp.calls, bp.hits, [call.args for call in bp.seen]) == (1, 1, [(1,)])


def test_waiting_waits_for_news(shop):
    """`wait()` waits for news."""
    with Breakpoint(shop.double, fire=lambda: None, timeout=0.01) as bp:
        shop.double(1)
        bp.wait()
        with pytest.raises(RuntimeError):
            bp.wait()
        shop.double(1)
        bp.wait()


def test_a_do_stays_as_it_was(shop):
    """A `do` stays as it was."""
    doing = do(shop.double, 1)
    doing.until("probed_shop.double")
    with doing:
        doing.breakpoint.join()
        assert doing.breakpoint.hits == 0
    assert doing.results == [2]
