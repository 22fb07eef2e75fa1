"""Whatever a call of ours raises, in woven code: the program does not see it.

Every function that woven code calls is replaced in turn, at each place where it is called, by one
that raises. And the code itself is looked at: no call of ours stands outside of a handler.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json.decoder
import logging
import operator
import os
import tarfile
import types
from collections import Counter

import pytest
from containing import (
    CALLS,
    ERRORS,
    LINES,
    NO_ROOM,
    SETS,
    SUBJECTS,
    Injector,
    Tree,
    counted,
    differences,
    expected,
    hits_of,
    in_c,
    lineless,
    made,
    others,
    raising,
    run,
    uncontained,
    woven_by,
)
from stage import Interrupt, Stage, attached, interrupts, timers_ran

from diagnose.bytecode import assembly, flow, weaving
from diagnose.instruments import ProbeTestInstrument

EXAMPLES = int(os.environ.get("DIAGNOSE_TEST_EXAMPLES", "25"))
IS_LONG = EXAMPLES >= 500
STEP = 16

CASES = [(kind, which) for kind in CALLS for which in SETS]


@pytest.fixture(scope="module")
def module():
    with Stage() as stage:
        yield stage.script(SUBJECTS)


@pytest.fixture(autouse=True)
def quiet():
    """What is reported is logged, with tracebacks that nobody reads."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# --- whatever a call of ours raises --------------------------------------------------------------


def judged(module, kind, which, site, error, *, with_judges=True):
    """Let one site raise ``error``; what is wrong, in words."""
    bare, hits = expected(module, kind), hits_of(module, kind)
    instead = in_c if error is None else raising(error)
    judge = None if with_judges else raising(NO_ROOM[site % 2])
    got, states, owner = run(module, kind, which, site, instead, judge)
    wrong = differences(bare, got)
    if owner is None or not with_judges:
        return wrong
    if states[owner][:2] != ("error", "defect"):
        wrong.append(f"{owner} is {states[owner]}")
    for instrument, wanted in zip(list(states)[-len(hits) :], hits, strict=True):
        if instrument is not owner and states[instrument] != ("emitting", None, wanted):
            wrong.append(f"{instrument} is {states[instrument]}; {wanted} hits were to be had")
    wrong += [
        f"{each} is {state}" for each, state in states.items() if each is not owner and state[1]
    ]
    return wrong


def sweep(module, case, check, *, each_function=False):
    """Check the sites of a case that call something; in the short form some, others in each case."""
    found, called = counted(module, *case)
    assert called
    turn, tried, failed = CASES.index(case), Counter(), []
    some = {*called[turn % STEP :: STEP]}
    if each_function:
        some |= {*{found[number].name: number for number in called}.values()}
    for number in called if IS_LONG else sorted(some):
        if found[number].is_judge:
            continue
        for index in range(len(ERRORS)) if IS_LONG else [number + turn]:
            tried[found[number].name] += 1
            error = ERRORS[index % len(ERRORS)]
            if wrong := check(module, *case, number, error):
                failed.append(f"{case}, {number} ({found[number].name}), {error}: {wrong}"[:1500])
    print(f"{len(found)} sites, {len(called)} of them called; tried: {dict(tried)}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("case", CASES, ids=map("-".join, CASES))
def test_whatever_a_call_of_ours_raises_the_program_does_not_see_it(module, case):
    sweep(module, case, judged, each_function=True)


@pytest.mark.parametrize("case", CASES, ids=map("-".join, CASES))
def test_nor_where_there_is_no_room_to_judge_it(module, case):
    sweep(module, case, functools.partial(judged, with_judges=False))


@pytest.mark.parametrize("error", NO_ROOM)
def test_want_of_room_for_a_call_is_no_defect_and_in_a_call_it_is(module, error):
    def raises():
        raise error("no room")

    for is_inside in (False, True):
        seen = ProbeTestInstrument("n", "x")
        with attached(f"{module.__name__}.plain", seen) as probe:
            (attachment,) = probe._attachments.values()
            try:
                if is_inside:
                    raises()
                raise error("no room")
            except error as raised:
                assert attachment.defect(raised)
        assert seen.status.code == ("defect" if is_inside else None)


def interrupted(module, kind, which, site, _error):
    """Let a signal handler raise, once, in what one site calls; what is wrong, in words."""
    sent = []

    def instead(function):
        def ours(*args):
            if not sent:
                sent.append(function)
                send()
            return function(*args)

        return ours

    with interrupts() as send:
        got, states, _ = run(module, kind, which, site, instead)
    wrong = [f"{each} is {state}" for each, state in states.items() if state[1] is not None]
    raised = str(got).count(repr(Interrupt))
    return wrong if raised else [*wrong, f"{got} came out"]


@pytest.mark.parametrize("case", CASES, ids=map("-".join, CASES))
def test_what_a_signal_handler_raises_there_comes_out_and_the_instruments_stay(module, case):
    sweep(module, case, interrupted)


# --- what the code looks like --------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=map("-".join, CASES))
def test_each_call_of_ours_is_contained_and_on_a_line(module, case):
    kind, which = case
    function = operator.attrgetter(kind)(module)
    own = function.__code__
    with woven_by(Injector(), module, kind, made(module, kind, which)):
        woven = function.__code__
        found, outside = uncontained(woven, own)
        assert not outside
        assert found
        assert lineless(woven) <= lineless(own)


def all_codes(code):
    if code.co_flags & inspect.CO_OPTIMIZED:
        yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from all_codes(constant)


def hooks_everywhere(code):
    """What is to be woven into a function so that all kinds of calls are in it."""

    def judge(error):
        return True

    x = list(weaving.Parameters.of(code).names)
    variables = weaving.variables(code)[:3]
    entry = ("args", "kwargs", "start", "now", "frame", *x[:1])
    leaving = (*entry, "result", "exception", "elapsed", "end", "hotspots", weaving.NOW)
    lines = [*flow.line_starts(assembly.read(code))]
    return {
        "before": [weaving.Hook(print, entry, print, ("args", "kwargs"), judge=judge)],
        "after": [
            weaving.Hook(print, leaving, print, ("args",), judge=judge),
            weaving.Hook(print, ("elapsed",), quick=(len, "elapsed"), judge=judge),
            weaving.Hook(print, (), sift=(print, tuple(x[:1])), judge=judge),
        ],
        "ends": [weaving.Hook(print, variables, quick=(len, 1), judge=judge)],
        "lines": [(line, weaving.Hook(print, variables, judge=judge)) for line in lines],
        "busy": frozenset(),
        "report": print,
    }


MODULES = [json.decoder, asyncio.streams, asyncio.tasks]


@pytest.mark.parametrize("source", [*MODULES, *([tarfile, inspect] if IS_LONG else [])])
def test_so_it_is_in_other_peoples_functions(source):
    compiled = compile(inspect.getsource(source), source.__file__, "exec", dont_inherit=True)
    count, calls = 0, 0
    for code in all_codes(compiled):
        woven = weaving.weave(code, **hooks_everywhere(code))
        found, outside = uncontained(woven, code)
        assert not outside, code
        assert lineless(woven) <= lineless(code), code
        count, calls = count + 1, calls + len(found)
    print(f"{source.__name__}: {calls} calls of ours in {count} functions")
    assert count > 5


def test_a_call_outside_of_a_handler_is_noticed(module):
    def alarm(*_):
        raise LookupError

    own = module.plain.__code__
    for where in ("before", "after", "ends"):
        woven = weaving.weave(own, **{where: [weaving.Hook(alarm, may_raise=True)]})
        _, outside = uncontained(woven, own)
        assert {each.function for each in outside} == {alarm}


# --- what a span calls ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", [each for each in ERRORS if each is not None])
@pytest.mark.parametrize("kind", CALLS)
def test_what_the_begin_or_the_end_of_a_span_raises_stays_inside(module, kind, error):
    bare = expected(module, kind)

    class Breaking(Tree):
        def begin(self, frame):
            raise error

    class Broken(Tree):
        def begin(self, frame):
            return Began()

    class Began:
        is_last = False

        def finish(self):
            raise error

        def abandon(self):
            pass

    for cls in (Breaking, Broken):
        instrument = cls("n")
        with woven_by(Injector(), module, kind, [instrument, *others(f"line:+{LINES[kind]}")]):
            got = CALLS[kind](module)
            timers_ran()
            assert differences(bare, got) == []
            assert (instrument.status.state, instrument.status.code) == ("error", "runtime-error")
