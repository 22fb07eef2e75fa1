"""One of each kind of what once reached a program."""

from __future__ import annotations

import logging
import logging.handlers
import queue
import random
import sys

import pytest
from stage import attached, outcome, probed

from diagnose import HistogramInstrument
from diagnose.bytecode import assembly, flow
from diagnose.instruments import ProbeTestInstrument
from diagnose.limits import Limits


def test_a_line_in_a_comprehension_over_the_name_of_a_cell_harms_nobody(stage):
    shop = stage.script("""
    def f(xs):
        x = 0
        r = [x for x in xs
             if x > 1]
        return r, lambda: x
    """)
    for line in flow.line_starts(assembly.read(shop.f.__code__)):
        for value in ("x", "sorted(locals())"):
            with probed(f"{shop.__name__}.f", value, f"line:{line}") as seen:
                result, inner = shop.f([1, 2, 3])
                assert (result, inner()) == ([2, 3], 0)
            assert seen.results or seen.status.error


@pytest.mark.parametrize("event", ["call", "return", "end", "line:+1"])
def test_the_frame_is_on_a_line_while_a_hit_is_served(stage, event):
    shop = stage.script("""
    def plain(item, bad=False):
        x = item
        if bad:
            raise ValueError(bad)
        return x

    def ticks(item, bad=False):
        yield item
        if bad:
            raise ValueError(bad)

    def short(item, bad=False): return 1 / (not bad)
    """)
    lines = []

    def look():
        frame = sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename == shop.plain.__code__.co_filename:
                lines.append(frame.f_lineno)
            frame = frame.f_back

    shop.look = look
    for name in ("plain", "ticks", "short"):
        if (name, event) == ("short", "line:+1"):
            continue
        for bad in (False, True):
            with probed(f"{shop.__name__}.{name}", "look()", event):
                outcome(lambda n=name, b=bad: list(made) if (made := getattr(shop, n)(1, b)) else 0)
    assert lines
    assert all(type(line) is int and line > 0 for line in lines)


def test_an_error_of_a_hit_takes_no_lock_of_the_program():
    records = queue.Queue()
    handler = logging.handlers.QueueHandler(records)
    logger = logging.getLogger("promise")
    logger.addHandler(handler)
    failing = HistogramInstrument("n", "1 / 0", "call")
    try:
        with attached("queue.Queue._put", failing):
            logger.warning("hello")
    finally:
        logger.removeHandler(handler)
    assert records.qsize() == 1
    assert failing.status.code == "runtime-error"


def test_a_sample_draws_no_number_of_the_programs(stage):
    def work(x):
        return x

    path = stage.place(work)
    random.seed(1)
    bare = [random.random() for _ in range(3)]
    random.seed(1)
    sampled = ProbeTestInstrument("n", "x", "call", limits=Limits(sample=0.5))
    with attached(path, sampled):
        for number in range(100):
            work(number)
        assert [random.random() for _ in range(3)] == bare
    assert 0 < sampled.status.hits < 100


@pytest.mark.parametrize("event", ["call", "return", "end"])
def test_types_of_values_are_compared_by_identity(stage, event):
    class Odd(type):  # noqa: PLW1641  (so its classes have no hash)
        def __eq__(cls, other):
            raise RuntimeError("not to be compared")

    class Thing(metaclass=Odd):
        pass

    def work(x):
        return 1

    with attached(stage.place(work), HistogramInstrument("n", "1", event, when="x == 1")):
        assert work(Thing()) == 1
