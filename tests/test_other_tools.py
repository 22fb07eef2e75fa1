"""Other tools in the process see what they saw without probes, whoever came first."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import subject_for_tools as subject

from diagnose import attach_to
from diagnose.bytecode import assembly, flow, timing
from diagnose.guards import Limits
from diagnose.handlers import BUSY
from diagnose.instruments import HistogramInstrument, ProbeTestInstrument
from diagnose.instruments.calltree import CallTreeInstrument

FILE = subject.__file__

# --- probes on everything in the subject, each kind of code that they write ----------------------

FUNCTIONS = {
    "loops": subject.loops,
    "begins_with_a_loop": subject.begins_with_a_loop,
    "begins_with_for": subject.begins_with_for,
    "one_line": subject.one_line,
    "handles": subject.handles,
    "returns_in_try": subject.returns_in_try,
    "raises": subject.raises,
    "manages": subject.manages,
    "comprehends": subject.comprehends,
    "chooses": subject.chooses,
    "numbers": subject.numbers,
    "delegates": subject.delegates,
    "waits": subject.waits,
    "managed.__wrapped__": subject.managed.__wrapped__,
    "ticks": subject.ticks,
    "recursive": subject.recursive,
    "closes_over": subject.closes_over,
    "decorated": subject.decorated,
    "decorated.__wrapped__": subject.decorated.__wrapped__,
    "Cart.__init__": subject.Cart.__init__,
    "Cart.half": subject.Cart.half.fget,
    "Cart.made": subject.Cart.made.__func__,
    "Cart.sized": subject.Cart.sized,
}
EVERY_CALL = Limits(rate=1e9)


class Tree(CallTreeInstrument):
    def emit(self, name, value, tags):
        """Leave standard output alone."""


def call(code):
    return [ProbeTestInstrument("n", "0", "call"), HistogramInstrument("n", "1", "call")]


def returns(code):
    return [
        ProbeTestInstrument("n", "(args, kwargs, result, exception, elapsed)"),
        HistogramInstrument("n", "elapsed"),
    ]


def unmet(code):
    return [HistogramInstrument("n", "elapsed", when="0 == 1")]


def end(code):
    return [
        ProbeTestInstrument("n", "sorted(locals())", "end"),
        HistogramInstrument("n", "1", "end"),
    ]


def lines(code):
    starts = flow.line_starts(assembly.read(code))
    return [ProbeTestInstrument("n", "0", f"line:{line}") for line in starts]


def hotspots(code):
    return [ProbeTestInstrument("n", "str(hotspots)")]


def calltree(code):
    return [Tree("n", limits=EVERY_CALL)]


def everything(code):
    return [each for make in (call, returns, end, lines, hotspots) for each in make(code)]


KINDS = {
    each.__name__: each
    for each in (call, returns, unmet, end, lines, hotspots, calltree, everything)
}


@contextlib.contextmanager
def probes_on_the_subject(kind):
    """Probe all functions of the subject; that they are hit, and none fails, is checked too."""
    on = []
    try:
        for name, function in FUNCTIONS.items():
            probe = attach_to(f"{subject.__name__}.{name}")
            instruments = KINDS[kind](function.__code__)
            on.append((probe, instruments))
            for number, instrument in enumerate(instruments):
                probe.attach(str(number), instrument)
        yield
    finally:
        for probe, _ in on:
            for key in list(probe.instruments):
                probe.detach(key)
    for probe, instruments in on:
        for each in instruments:
            assert each.status.error is None, (probe, each, each.status.error)


@pytest.fixture(autouse=True, params=["", "busy"])
def both_ways_through_what_is_put_in(request, monkeypatch):
    """Once as usual, once where an instrument runs elsewhere and loops fold after a few runs."""
    if request.param and "takes_a_process" in request.fixturenames:
        pytest.skip("it is the same")
    if request.param:
        monkeypatch.setattr(timing, "_LONG", frozenset(range(2, 70)))
        BUSY.add(-1)
    yield
    BUSY.discard(-1)


ORDERS = ["probe first", "tool first", "on and off"]


def seen_by(tool, order=None, kind=None):
    """What a tool sees of two runs, and what they return.

    Args:
        tool: context manager of a list that it adds to.
        order: None: without probes.
        kind: of probes.
    """
    results = []

    def run(seen):
        subject.calls.clear()
        seen.append("begin")
        results.append(subject.run())
        results.append(subject.run())
        seen.append("end")

    with contextlib.ExitStack() as stack:
        if order == "probe first":
            stack.enter_context(probes_on_the_subject(kind))
        seen = stack.enter_context(tool())
        if order == "tool first":
            stack.enter_context(probes_on_the_subject(kind))
        elif order == "on and off":
            with probes_on_the_subject(kind):
                results.append(subject.run())
            results.pop()
        run(seen)
        found = seen[seen.index("begin") : seen.index("end")]
    return found, results


def assert_unseen(tool, kind, order):
    bare = seen_by(tool)
    assert seen_by(tool, order, kind) == bare
    assert seen_by(tool) == bare
    assert len(bare[0]) > 50
    return bare[0]


def mine(code):
    return code.co_filename == FILE


# --- sys.settrace, sys.setprofile ------------------------------------------------------------------


@contextlib.contextmanager
def tracing(*, opcodes=False, lines=True):
    seen = []

    def trace(frame, event, arg):
        if not mine(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = opcodes, lines
        if event != "opcode":
            kind = arg[0] if event == "exception" else type(arg)
            seen.append((frame.f_code.co_qualname, event, frame.f_lineno, kind))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


def tracing_opcodes():
    return tracing(opcodes=True)


def tracing_without_lines():
    return tracing(lines=False)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tool", [tracing, tracing_opcodes, tracing_without_lines])
def test_a_tracer_sees_the_same_events(tool, kind, order):
    assert_unseen(tool, kind, order)


# --- coverage --------------------------------------------------------------------------------------

COVERAGE = """
import sys, json
kind, order, branch, where = sys.argv[1:]
sys.path.insert(0, where)
import contextlib, coverage
if order == "tool first":
    measured = coverage.Coverage(branch=branch == "yes", include=["*/subject_for_tools.py"], data_file=None)
    measured.start()
import test_other_tools as tools
if order != "tool first":
    measured = coverage.Coverage(branch=branch == "yes", include=["*/subject_for_tools.py"], data_file=None)
probes = tools.probes_on_the_subject(kind) if kind != "none" else contextlib.nullcontext()
if order == "probe first":
    with probes:
        measured.start()
        tools.subject.run()
elif order == "tool first":
    with probes:
        tools.subject.run()
else:
    measured.start()
    with probes:
        tools.subject.run()
    tools.subject.run()
measured.stop()
data = measured.get_data()
print(json.dumps([sorted(data.lines(tools.FILE)), sorted(data.arcs(tools.FILE) or ()), measured._collector.tracer_name()]))
"""


def covered(kind, order, *, core, branch):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            COVERAGE,
            kind,
            order,
            "yes" if branch else "no",
            str(Path(__file__).parent),
        ],
        env=dict(os.environ, COVERAGE_CORE=core),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
