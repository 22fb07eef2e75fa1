"""Coverage, debuggers, monitoring tools and wrappers beside probes, before and after them."""

from __future__ import annotations

import bdb
import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wrapt
from stage import attached, events, probed

from diagnose import HistogramInstrument
from diagnose.instruments import ProbeTestInstrument

by_monitoring = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="sys.monitoring is new in 3.12"
)


SUBJECT = """\
import contextlib

def work(n):
    total = 0
    for each in range(n):
        if each % 2:
            total += each
            continue
        try:
            total += 10 // each
        except ZeroDivisionError:
            total -= 1
        finally:
            total += 0
    with contextlib.suppress(KeyError):
        {}[total]
    return [x for x in
            range(total) if x]

def numbers(n):
    while n:
        n -= 1
        got = yield n
    if got:
        return 1

async def wait(n):
    for _ in range(n):
        n += 1
    return n

def one(x): return x + 1

def call_all():
    work(5)
    list(numbers(2))
    try:
        wait(2).send(None)
    except StopIteration:
        pass
    one(2)
"""
LINES = {"work": (4, 7, 10, 12, 15), "numbers": (21, 23), "wait": (29,), "one": (32,)}


def instruments(name):
    """One of each event, and one that is served without a call."""
    made = [ProbeTestInstrument(each, "1", each) for each in ("call", "return", "end")]
    made += [ProbeTestInstrument("n", "1", f"line:{line}") for line in LINES[name]]
    return [*made, HistogramInstrument("n", "elapsed")]


@contextlib.contextmanager
def everything(module):
    """Probes of all kinds on all functions."""
    with contextlib.ExitStack() as stack:
        made = []
        for name in LINES:
            made += instruments(name)
            stack.enter_context(attached(f"{module}.{name}", *made[-len(instruments(name)) :]))
        yield
    assert [each.status.error for each in made] == [None] * len(made)


# --- coverage ---------------------------------------------------------------------------------

COVERED = """
import contextlib, json, sys
sys.path[:0] = {path!r}
import coverage
import subject_of_coverage, test_other_tools

order = sys.argv[1]
found = []
for probes in (False, True):
    measure = coverage.Coverage(branch=True, data_file=None, include=["*subject_of_coverage*"])
    with contextlib.ExitStack() as stack:
        if probes and order == "probe first":
            stack.enter_context(test_other_tools.everything("subject_of_coverage"))
        measure.start()
        if probes and order == "tool first":
            stack.enter_context(test_other_tools.everything("subject_of_coverage"))
        subject_of_coverage.call_all()
        measure.stop()
    data = measure.get_data()
    name, = data.measured_files()
    found.append((sorted(data.lines(name)), sorted(data.arcs(name))))
assert found[0] == found[1], [set(a) ^ set(b) for a, b in zip(*found)]
assert len(found[0][0]) > 20
print("same", len(found[0][1]))
"""


@pytest.mark.parametrize("order", ["probe first", "tool first"])
@pytest.mark.parametrize("core", ["ctrace", "pytrace", "sysmon"])
def test_coverage_sees_the_same_lines_and_branches(tmp_path, core, order):
    if core == "sysmon" and sys.version_info < (3, 14):
        pytest.skip("measures branches from 3.14 on")
    if core == "ctrace":
        pytest.importorskip("coverage.tracer", exc_type=ImportError)
    (tmp_path / "subject_of_coverage.py").write_text(SUBJECT)
    script = tmp_path / "covered.py"
    path = [str(tmp_path), *(str(each) for each in Path(__file__).parents[:3])]
    script.write_text(COVERED.format(path=path))
    done = subprocess.run(
        [sys.executable, script, order],
        env={**os.environ, "COVERAGE_CORE": core},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.startswith("same"), done.stderr[-3000:]


# --- debuggers --------------------------------------------------------------------------------


class Stepper(bdb.Bdb):
    """Notes where it stops, and goes on in one way."""

    def __init__(self, filename, how):
        super().__init__()
        self.filename = filename
        self.how = how
        self.stops = []

    def stop(self, frame, what):
        if frame.f_code.co_filename == self.filename:
            local = {k: v for k, v in frame.f_locals.items() if isinstance(v, int)}
            self.stops.append((what, frame.f_code.co_name, frame.f_lineno, sorted(local.items())))
        if self.how == "next" and frame.f_code.co_filename == self.filename:
            self.set_next(frame)
        else:
            self.set_step()

    def user_line(self, frame):
        self.stop(frame, "line")

    def user_return(self, frame, value):
        self.stop(frame, "return")

    def user_exception(self, frame, info):
        self.stop(frame, "exception")


@pytest.mark.parametrize("how", ["step", "next"])
@pytest.mark.parametrize("names", [("call",), ("return",), ("end",), ("call", "return", "end")])
def test_a_debugger_stops_at_the_same_places(stage, how, names):
    module = stage.script(SUBJECT)

    def debugged():
        stepper = Stepper(module.work.__code__.co_filename, how)
        before = sys.gettrace()
        try:
            stepper.runcall(module.call_all)
        finally:
            sys.settrace(before)
        return stepper.stops

    bare = debugged()
    with contextlib.ExitStack() as stack:
        for name in LINES:
            stack.enter_context(events(f"{module.__name__}.{name}", names))
        assert debugged() == bare
    assert len(bare) > 5


# --- sys.monitoring ---------------------------------------------------------------------------


@by_monitoring
@pytest.mark.parametrize("order", ["probe first", "tool first"])
def test_a_tool_that_watches_one_function_goes_on_watching_it(stage, order):
    module = stage.script(SUBJECT)
    function, tool = module.work, 3
    monitoring = sys.monitoring
    wanted = monitoring.events.LINE | monitoring.events.PY_RETURN

    def watch(seen):
        monitoring.register_callback(
            tool, monitoring.events.LINE, lambda code, line: seen.append(line)
        )
        monitoring.register_callback(
            tool, monitoring.events.PY_RETURN, lambda code, offset, value: seen.append("return")
        )
        monitoring.set_local_events(tool, function.__code__, wanted)

    monitoring.use_tool_id(tool, "test")
    try:
        bare, now = [], []
        watch(bare)
        function(5)
        if order == "tool first":
            watch(now)
        with probed(f"{module.__name__}.work", "elapsed"):
            if order == "probe first":
                watch(now)
            function(5)
            assert now == bare
        del now[:]
        function(5)
        assert now == bare
        assert monitoring.get_local_events(tool, function.__code__) == wanted
    finally:
        monitoring.set_local_events(tool, function.__code__, 0)
        monitoring.free_tool_id(tool)


# --- wrappers ---------------------------------------------------------------------------------


def with_functools(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@wrapt.decorator
def with_wrapt(wrapped, instance, args, kwargs):
    return wrapped(*args, **kwargs)


@pytest.mark.parametrize("wrap", [with_functools, with_wrapt])
def test_a_function_may_be_wrapped_while_it_is_probed(stage, wrap):
    module = stage.script(SUBJECT)
    bare = module.one
    with probed(f"{module.__name__}.one", "(x, result)") as seen:
        module.one = wrap(module.one)
        assert module.one(1) == 2
        module.one = bare
        assert module.one(2) == 3
    assert seen.results == [(1, 2), (2, 3)]


@pytest.mark.parametrize("wrap", [with_functools, with_wrapt])
def test_a_wrapped_function_may_be_probed_and_unwrapped(stage, wrap):
    module = stage.script(SUBJECT)
    bare = module.one
    code = bare.__code__
    module.one = wrap(bare)
    instrument = ProbeTestInstrument("n", "(x, result)")
    module.bare = bare
    with attached(f"{module.__name__}.bare", instrument):
        assert module.one(1) == 2
        module.one = bare
        assert bare(2) == 3
    assert instrument.results == [(1, 2), (2, 3)]
    assert bare.__code__ is code
