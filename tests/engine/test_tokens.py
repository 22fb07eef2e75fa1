"""Limits, and the counters without a lock that keep them."""

from __future__ import annotations

import math

import pytest

from diagnose.errors import InstrumentError
from diagnose.limits import Limits
from diagnose.tokens import Allotment, Rate, Tally, hit_tokens


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def served(rate, clock, times):
    """As a handler asks, so often at this moment: how many are let through."""
    count = 0
    for _ in range(times):
        if clock() >= rate.until:
            rate.roll()
        count += bool(next(rate.tokens, False))
    return count


@pytest.mark.parametrize(
    ("per_second", "hits", "window"),
    [(3, 3, 1.0), (1, 1, 1.0), (2.5, 2, 0.8), (0.5, 1, 2.0), (0.1, 1, 10.0)],
)
def test_a_rate_lets_so_many_hits_through_in_each_window(per_second, hits, window):
    clock = Clock()
    rate = Rate(per_second, clock)
    assert next(rate.tokens, None) is None  # before the first window
    assert served(rate, clock, 10) == hits
    clock.now += window - 1e-6
    assert served(rate, clock, 10) == 0
    clock.now += 2e-6
    assert served(rate, clock, 10) == hits
    clock.now += 5 * window  # what was not used is gone
    assert served(rate, clock, 10) == hits


def test_a_window_begins_at_its_first_hit_and_is_opened_once():
    clock = Clock()
    rate = Rate(2, clock)
    assert rate.until == -math.inf
    rate.roll()
    assert rate.until == 101.0
    tokens = rate.tokens
    clock.now = 100.999
    rate.roll()
    assert rate.tokens is tokens
    clock.now = 101.0
    rate.roll()
    assert rate.tokens is not tokens
    assert rate.until == 102.0


def test_who_finds_another_at_it_opens_no_window():
    clock = Clock()
    rate = Rate(2, clock)
    with rate._lock:
        rate.roll()
    assert rate.until == -math.inf
    rate.roll()
    assert rate.until == 101.0
    rate.roll()  # the lock was given back
    assert not rate._lock.locked()


def test_an_allotment_is_used_up_granted_and_revoked():
    allotment = Allotment()
    assert not allotment
    allotment.grant(3)
    allotment.grant(2)
    allotment.pop()
    assert len(allotment) == 4
    assert allotment.revoke() == 4
    assert allotment.revoke() == 0
    assert {allotment: 1}[allotment] == 1  # it is a constant of a code object


def test_a_tally_counts_by_a_call_and_by_its_iterator():
    tally = Tally()
    assert tally.value == 0
    for _ in range(3):
        tally.add()
    next(tally.ones)
    assert tally.value == 4


@pytest.mark.parametrize("hits", [1, 2, 5])
def test_there_is_a_token_for_each_hit_and_the_last_says_so(hits):
    found = list(hit_tokens(hits))
    assert len(found) == hits
    assert [bool(each) for each in found] == [True] * (hits - 1) + [False]
    assert found[-1] == 0


# --- limits -------------------------------------------------------------------------------------


def test_where_nothing_is_set_the_defaults_count():
    defaults = Limits(rate=100, sample=0.5, hits=7, fleet_hits=8)
    assert Limits().over(defaults) == defaults
    mine = Limits(rate=1, sample=1, hits=2, fleet_hits=3)
    assert mine.over(defaults) == mine
    assert Limits(hits=2).over(Limits(rate=1)) == Limits(rate=1, hits=2)


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("rate", [0, -1, math.inf, math.nan, True, "5"], [1e-9, 1, 1e9]),
        ("sample", [0, -0.1, 1.001, math.nan, True, "1"], [1e-9, 1]),
        ("hits", [0, -1, 1.0, True, "1"], [1, 10**9]),
        ("fleet_hits", [0, -1, 1.0, True, "1"], [1, 10**9]),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_with_its_name_and_value(name, bad, good):
    for value in bad:
        with pytest.raises(InstrumentError) as caught:
            Limits(**{name: value})
        assert caught.value.code == "bad-limit"
        assert str(caught.value).startswith(f"limits.{name} is {value!r}; it has to be ")
    for value in good:
        assert getattr(Limits(**{name: value}), name) == value
    assert getattr(Limits(**{name: None}), name) is None
