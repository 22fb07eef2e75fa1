"""An instrument on a function: how it changes, ends, pauses and goes on."""

from __future__ import annotations

import pytest
from stage import Stage, attached, timers_ran

from diagnose import attach_to
from diagnose.errors import ExpressionSyntaxError, ProbeError, UnknownNameError
from diagnose.instruments import ProbeTestInstrument
from diagnose.limits import Limits
from diagnose.managers import InstrumentManager


@pytest.fixture
def shop():
    with Stage() as stage:

        def same(x, y=0):
            return x

        module = stage.module(same)
        module.path = f"{module.__name__}.same"
        yield module


def attachment_of(probe):
    (found,) = probe._attachments.values()
    return found


# --- tags that are changed later ------------------------------------------------------------------


def test_tags_that_are_changed_count_from_the_next_hit_and_hits_are_counted_on(shop):
    seen = ProbeTestInstrument("n", "x", custom={"tags": "{'a': 1}"}, limits=Limits(hits=4))
    with attached(shop.path, seen):
        shop.same(1)
        before = shop.same.__code__
        seen.custom["tags"] = "{'b': x}"
        shop.same(2)
        del seen.custom["tags"]
        shop.same(3)
        seen.custom = {"tags": "{'c': y}"}
        assert shop.same.__code__ is not before
        shop.same(4, 5)
        shop.same(6)
        assert seen.status.state == "done"
    assert seen.log == [({"a": 1}, 1), ({"b": 2}, 2), ({}, 3), ({"c": 5}, 4)]


@pytest.mark.parametrize(
    ("tags", "error"), [("{'a': ", ExpressionSyntaxError), ("{'a': zzz}", UnknownNameError)]
)
def test_tags_that_can_not_be_used_are_an_error_and_the_old_ones_count_on(shop, tags, error):
    seen = ProbeTestInstrument("n", "x", custom={"tags": "{'a': x}"})
    with attached(shop.path, seen) as probe:
        hook = attachment_of(probe).hook
        with pytest.raises(error):
            seen.custom["tags"] = tags
        assert attachment_of(probe).hook is hook
        shop.same(1)
        assert seen.status.state == "emitting"
    assert seen.log == [({"a": 1}, 1)]


def test_tags_that_change_after_it_was_taken_off_change_no_code(shop):
    bare = shop.same.__code__
    seen = ProbeTestInstrument("n", "x", limits=Limits(hits=1))
    with attached(shop.path, seen):
        shop.same(1)
        seen.custom["tags"] = "{'a': 1}"  # it is done
        timers_ran()
        assert shop.same.__code__ is bare
    seen.custom["tags"] = "{'a': zzz}"
    assert shop.same.__code__ is bare
    assert seen.log == [({}, 1)]


# --- suspended, and back --------------------------------------------------------------------------


@pytest.fixture
def suspended(shop):
    """An instrument that the budget suspended."""
    manager = InstrumentManager()
    seen = ProbeTestInstrument("n", "x", mgr=manager)
    seen.budget = manager.budget
    with attached(shop.path, seen) as probe:
        one = attachment_of(probe)
        shop.same(1)
        one.suspend("too dear")
        timers_ran()
        yield one, seen, probe


def state(seen):
    return str(seen.status.state), seen.status.code, seen.status.error


def test_what_is_suspended_serves_no_hit_until_it_is_resumed(suspended, shop):
    one, seen, _ = suspended
    assert state(seen) == ("suspended", "cpu-budget", "too dear")
    shop.same(2)
    one.suspend("again")
    assert state(seen) == ("suspended", "cpu-budget", "too dear")
    one.resume()
    assert state(seen) == ("emitting", None, None)  # it has served hits before
    shop.same(3)
    one.resume()
    shop.same(4)
    assert seen.results == [1, 3, 4]
    assert state(seen) == ("emitting", None, None)


def test_what_was_taken_off_while_it_was_suspended_does_not_come_back(suspended, shop):
    one, seen, probe = suspended
    bare = shop.same.__code__
    probe.stop()
    one.resume()
    shop.same(2)
    assert seen.results == [1]
    assert str(seen.status.state) == "stopped"
    assert shop.same.__code__ is bare


def test_what_can_not_be_resumed_since_the_code_is_another_says_so(shop):
    manager = InstrumentManager()
    seen = ProbeTestInstrument("n", "y", mgr=manager)
    with attached(shop.path, seen) as probe:
        one = attachment_of(probe)
        one.suspend("too dear")
        timers_ran()
        before = shop.same.__code__
        shop.same.__code__ = (lambda x, z=0: x).__code__
        one.resume()
        assert str(seen.status.state) == "error"
        assert seen.status.code
        assert "'y'" in seen.status.error
        assert not one.armed
        assert not one.suspended
        shop.same(2)
        assert seen.results == []
        shop.same.__code__ = before


def test_the_cost_that_was_reckoned_is_on_its_status(suspended):
    one, seen, _ = suspended
    one.note_cost(0.25)
    assert seen.status.cost == 0.25


def test_hits_and_what_was_turned_away_are_counted(shop):
    seen = ProbeTestInstrument("n", "x", when="x > 2", limits=Limits(hits=2))
    with attached(shop.path, seen) as probe:
        one = attachment_of(probe)
        for number in range(6):
            shop.same(number)
        assert one.count() == (2, 3)


# --- what makes no sense --------------------------------------------------------------------------


def test_an_instrument_that_is_off_already_ends_only_once(shop):
    class Failing(ProbeTestInstrument):
        told = 0

        def emit(self, name, value, tags):
            raise ValueError(value)

        def handle_error(self, probe):
            Failing.told += 1

    seen = Failing("n", "x")
    with attached(shop.path, seen) as probe:
        one = attachment_of(probe)
        shop.same(1)
        timers_ran()
        before = state(seen)
        assert before[:2] == ("error", "runtime-error")
        assert "ValueError: 1" in before[2]
        one.done()
        one.suspend("why")
        one.resume()
        assert state(seen) == before
    assert Failing.told == 1


def test_a_probe_on_what_can_not_be_called_so_is_an_error_and_leaves_nothing(shop):
    bare = shop.same.__code__
    seen = ProbeTestInstrument("n", "x", event="line:999999")
    with pytest.raises(ProbeError):
        attach_to(shop.path).attach("k", seen)
    assert shop.same.__code__ is bare
    assert seen.status.state == "new"
