# ruff: noqa: B904 - functions under probe chain exceptions in every way
from __future__ import annotations

import asyncio
import collections
import contextlib
import copy
import cProfile
import faulthandler
import gc
import inspect
import io
import linecache
import logging
import pickle
import pstats
import signal
import sys
import threading
import traceback
import typing
import warnings
from decimal import Decimal

import pytest
from stage import attached, events, in_thread, outcome, probed
from waiting import wait_until

from diagnose import reentrancy
from diagnose.instruments import HistogramInstrument, ProbeTestInstrument

# The subjects look around in every way that a wrapper's frame would show in. What they see
# without a probe is what they have to see with one, on whatever events.


def same_with_probes(place, subject, names, look=None):
    """Call ``look`` (the subject itself if none) without and with probes on the subject."""
    look = look or subject
    bare, with_probes = None, None
    path = place(subject)
    for is_probed in (False, True):  # one line for both calls: lines are compared too
        with events(path, names) if is_probed else contextlib.nullcontext() as seen:
            result = outcome(look)
        bare, with_probes = (bare, result) if is_probed else (result, None)
    assert with_probes == bare
    assert set(seen) == set(names)
    return bare


# --- who called -------------------------------------------------------------------------------


def test_frames_of_callers_are_numbered_as_before(place, names):
    def who():
        frame = sys._getframe(1)
        names = [each.f_code.co_name for each in (sys._getframe(0), frame, sys._getframe(2))]
        return names, frame.f_lineno, frame.f_back.f_code.co_name

    kind, seen = same_with_probes(place, who, names)
    assert kind == "returned"
    assert seen[0] == ["who", "outcome", "same_with_probes"]


def test_the_stack_is_as_before(place, names):
    def look():
        stack = [(each.filename, each.function, each.lineno) for each in inspect.stack()[:4]]
        text = traceback.format_stack()[-3:]
        frame, walked = inspect.currentframe(), []
        while frame is not None:
            walked.append(frame.f_code.co_name)
            frame = frame.f_back
        return stack, text, walked

    same_with_probes(place, look, names)


def test_frames_of_all_threads_are_as_before(place, names):
    def look():
        frame = sys._current_frames()[threading.get_ident()]
        return frame.f_code.co_name, frame.f_back.f_code.co_name

    same_with_probes(place, look, names)


def test_warnings_point_where_they_pointed(place, names):
    def old():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.warn("one", stacklevel=1)
            warnings.warn("two", stacklevel=2)
            warnings.warn("three", DeprecationWarning, stacklevel=3)
        return [(each.filename, each.lineno) for each in caught]

    same_with_probes(place, old, names)


def test_a_warning_is_shown_once_for_each_line_that_calls(place, names):
    def old():
        warnings.warn("it is old", stacklevel=2)

    with warnings.catch_warnings(record=True) as caught, events(place(old), names):
        warnings.simplefilter("default")
        for _ in range(3):
            old()
        old()
    assert len(caught) == 2


def test_log_records_have_the_caller_that_they_had(place, names):
    def work():
        records = []
        handler = logging.Handler()
        handler.emit = records.append
        logger = logging.getLogger("test_invisible")
        logger.propagate = False
        logger.addHandler(handler)
        logger.warning("one")
        logger.warning("two", stacklevel=2)
        logger.warning("three", stack_info=True)
        logger.removeHandler(handler)
        return [(each.funcName, each.lineno, each.pathname, each.stack_info) for each in records]

    same_with_probes(place, work, names)


def test_classes_get_the_module_that_they_got(place, names):
    def make():
        point = collections.namedtuple("Point", "x y")
        Kind = typing.NewType("Kind", int)
        return point.__module__, Kind.__module__, type("T", (), {}).__module__

    assert same_with_probes(place, make, names)[1] == (__name__,) * 3


def test_locals_and_globals_are_those_of_the_body(place, names):
    def look():
        x = 1
        there = locals()
        found = sorted(there), globals() is sys.modules[__name__].__dict__, dir(), vars() == there
        return found, eval("x"), sys._getframe().f_locals["x"]

    same_with_probes(place, look, names)


def test_locals_of_the_caller_can_be_reached(place, names):
    def look():
        return sorted(sys._getframe(1).f_locals)

    same_with_probes(place, look, names)


# --- exceptions -------------------------------------------------------------------------------


def raises(kind):
    return {}[kind]


def test_tracebacks_are_the_same_entry_by_entry(place, names):
    def fail():
        with contextlib.suppress(ValueError):
            return [raises(each) for each in (1, 2)]

    bare = same_with_probes(place, fail, names)
    assert [entry[1].rpartition(".")[2] for entry in bare[1]["trace"]] == [
        "fail",
        "<listcomp>",
        "raises",
    ][:: 1 if sys.version_info < (3, 12) else 2]


def test_printed_tracebacks_are_the_same(place, names):
    def fail():
        try:
            raises(1)
        except LookupError as error:
            error.add_note("a note")
            raise ValueError("outer") from error

    def look():
        try:
            fail()
        except ValueError:
            return traceback.format_exc()

    text = same_with_probes(place, fail, names, look)[1]
    assert text.count('File "') == 4


def test_causes_contexts_and_groups_are_the_same(place, names):
    def fail():
        errors = []
        for number in range(3):
            try:
                try:
                    raise KeyError(number)
                except KeyError as error:
                    if number:
                        raise ValueError(number) from (error if number == 1 else None)
                    raise TypeError(number)
            except Exception as error:
                errors.append(error)
        raise ExceptionGroup("several", [*errors, ExceptionGroup("more", [errors[0]])])

    def handle():
        try:
            fail()
        except* KeyError:
            raise AssertionError
        except* ValueError as group:
            raise LookupError("again") from group

    same_with_probes(place, fail, names)
    same_with_probes(place, fail, names, handle)


def test_an_exception_that_is_raised_again_and_again_has_the_same_traceback(place, names):
    error = ValueError("shared")

    def fail():
        raise error

    def look():
        error.__traceback__ = None
        for _ in range(3):
            try:
                fail()
            except ValueError:
                pass
        return [each.name for each in traceback.extract_tb(error.__traceback__)]

    same_with_probes(place, fail, names, look)


def test_the_exception_that_is_being_handled_is_the_same_inside(place, names):
    def inside():
        return repr(sys.exc_info()[1]), repr(sys.exception())

    def look():
        seen = [inside()]
        try:
            raise ValueError(1)
        except ValueError:
            seen.append(inside())
        seen.append(inside())
        return seen

    assert same_with_probes(place, inside, names, look)[1][1] == ("ValueError(1)",) * 2


def test_what_is_raised_inside_has_the_callers_exception_as_context(place, names):
    def inside():
        raise KeyError(2)

    def look():
        try:
            raise ValueError(1)
        except ValueError:
            inside()

    assert same_with_probes(place, inside, names, look)[1]["context"]["type"] is ValueError


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, BaseException])
def test_exceptions_of_every_kind_get_through(place, names, error):
    def fail():
        raise error(3)

    same_with_probes(place, fail, names)


def test_tracebacks_of_generators_are_the_same(place, names):
    def numbers():
        try:
            yield 1
            yield raises(2)
        finally:
            yield 3
            raises(3)

    def scripts():
        seen = []
        for script in ("nnnn", "ntnn", "nnc", "nc", "nnt", "tn"):
            generator = numbers()
            for step in script:
                if step == "n":
                    seen.append(outcome(next, generator))
                elif step == "c":
                    seen.append(outcome(generator.close))
                else:
                    seen.append(outcome(generator.throw, KeyError(9)))
        return seen

    same_with_probes(place, numbers, names, scripts)


def test_tracebacks_of_coroutines_are_the_same(place, names):
    async def inner():
        await asyncio.sleep(0)
        raises(1)

    async def work():
        try:
            await inner()
        except LookupError:
            raise ValueError(2)

    async def main():
        await work()

    def look():
        seen = outcome(asyncio.run, main())
        seen[1]["trace"] = [each for each in seen[1]["trace"] if each[0] == __file__]
        return seen

    bare = same_with_probes(place, work, names, look)
    assert [entry[1].rpartition(".")[2] for entry in bare[1][1]["trace"]] == ["main", "work"]


def test_tracebacks_of_asynchronous_generators_are_the_same(place, names):
    async def numbers():
        try:
            yield 1
            await asyncio.sleep(0)
            yield raises(2)
        except KeyError:
            yield 5
            raise

    async def main(script):
        generator = numbers()
        result = []
        for step in script:
            try:
                if step == "n":
                    result.append(await anext(generator))
                elif step == "t":
                    result.append(await generator.athrow(KeyError(9)))
                else:
                    result.append(await generator.aclose())
            except Exception as error:
                result.append(
                    [(each.name, each.lineno) for each in traceback.extract_tb(error.__traceback__)]
                )
        return result

    def scripts():
        return [
            asyncio.run(main(script)) for script in ("nnn", "ntn", "ntc", "nc", "ntt", "tn", "nnt")
        ]

    same_with_probes(place, numbers, names, scripts)


# --- what functions say about themselves ------------------------------------------------------


def plain(a: int, /, b: str = "x", *rest: int, c: float = 1.0, **more: object) -> list[int]:
    """What it is for."""
    return [a]


def test_functions_describe_themselves_as_before(place, names):
    def look():
        return (
            str(inspect.signature(plain)),
            inspect.getsource(plain),
            inspect.getsourcelines(plain)[1],
            inspect.getfile(plain),
            inspect.getdoc(plain),
            inspect.getfullargspec(plain),
            typing.get_type_hints(plain),
            repr(plain).split(" at ")[0],
            (plain.__name__, plain.__qualname__, plain.__module__, plain.__doc__),
            (plain.__defaults__, plain.__kwdefaults__, plain.__annotations__, vars(plain)),
            [test(plain) for test in (inspect.isfunction, inspect.iscoroutinefunction)],
            [test(plain) for test in (inspect.isgeneratorfunction, inspect.isasyncgenfunction)],
            plain.__code__.co_varnames[:5],
            plain.__code__.co_flags & ~(inspect.CO_NESTED | 0xFFF0000),
            (plain.__code__.co_name, plain.__code__.co_qualname, plain.__code__.co_firstlineno),
        )

    assert look()[7] == "<function plain"
    bare = look()
    with events(place(plain), names):
        assert look() == bare


def test_functions_and_bound_methods_are_pickled_and_copied_as_before(place, names):
    bare = pickle.dumps(plain), pickle.dumps(Cart(3).items)
    with events(place(plain), names), events(f"{place(Cart)}.items", names):
        assert (pickle.dumps(plain), pickle.dumps(Cart(3).items)) == bare
        assert pickle.loads(bare[0]) is plain
        assert pickle.loads(bare[1])() == 3
        assert copy.copy(plain) is plain
        assert copy.deepcopy(plain) is plain
        assert hash(plain) == object.__hash__(plain)


class Cart:
    def __init__(self, size):
        self.size = size

    def items(self):
        return self.size


def test_nothing_but_the_code_of_a_probed_function_changes(place, names):
    identity, closure, globals_ = id(plain), plain.__closure__, plain.__globals__
    code = plain.__code__
    with events(place(plain), names):
        assert plain.__code__ is not code
        assert (id(plain), plain.__closure__) == (identity, closure)
        assert plain.__globals__ is globals_
    assert plain.__code__ is code


# --- tracers, profilers, debuggers ------------------------------------------------------------


def traced(function):
    """The events that a trace function gets, but for those of instruments."""
    seen = []

    def trace(frame, event, arg):
        code = frame.f_code
        if code.co_filename == __file__:
            seen.append((code.co_name, frame.f_lineno, event))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return seen


def branches(x):
    total = 0
    for each in range(x):
        total += each
    if total > 5:
        raise ValueError
    return total


def begins_with_a_loop(x):
    while x:
        x -= 1
    return x


def begins_with_a_condition(x): return x and 5  # fmt: skip


def counts_down(x):
    for each in range(x): yield each  # fmt: skip # noqa: E701, UP028


def look_at_branches():
    for size in (2, 9, 1, 9):
        try:
            branches(size)
        except ValueError:
            pass
    begins_with_a_loop(3)
    begins_with_a_condition(0)
    begins_with_a_condition(2)
    list(counts_down(3))


@contextlib.contextmanager
def events_on_branches(place, names):
    with contextlib.ExitStack() as stack:
        for each in (branches, begins_with_a_loop, begins_with_a_condition, counts_down):
            stack.enter_context(events(place(each), names))
        yield


def test_a_tracer_sees_the_same_events(place, names):
    bare = traced(look_at_branches)
    with events_on_branches(place, names):
        assert traced(look_at_branches) == bare
    assert len(bare) > 50


class Stack:
    """What a tracer in C keeps: it is given the ends of frames whose begin was hidden too."""

    def __init__(self):
        self.frames = []
        self.wrong = []

    def __call__(self, frame, event, arg):
        if event == "call":
            self.frames.append(frame)
        elif event == "return":
            if self.frames and self.frames[-1] is frame:
                self.frames.pop()
            else:
                self.wrong.append((frame.f_code.co_name, event))
        elif event == "line" and self.frames and self.frames[-1] is not frame:
            self.wrong.append((frame.f_code.co_name, event))
        return self


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("kind", ["trace", "profile"])
def test_tracers_and_profilers_are_told_of_a_begin_for_each_end(place, names, kind, when):
    install = {"trace": sys.settrace, "profile": sys.setprofile}[kind]

    def observe(function):
        before = {"trace": sys.gettrace, "profile": sys.getprofile}[kind]()
        stack = Stack()
        if when == "before":
            install(stack)
        try:
            function(stack)
        finally:
            install(before)
        # This frame and the one that installed began before.
        return [each for each in stack.wrong if each[0] not in ("observe", "work", "starts")]

    def starts(stack):
        if when == "inside":
            install(stack)

    def work(stack):
        starts(stack)
        look_at_branches()
        look_at_branches()

    with events(place(branches), names), events(place(starts), names), events(place(work), names):
        wrong = observe(work)
    if when == "inside" and kind == "profile":
        wrong = [each for each in wrong if each[0] != "observe"]
    assert wrong == []


def test_cprofile_knows_who_called_whom(place, names):
    def later():
        return sum(range(1000))

    def work():
        for size in (2, 9, 2):
            try:
                branches(size)
            except ValueError:
                later()
            later()
        later()

    with events(place(branches), names):
        profile = cProfile.Profile()
        profile.runcall(work)
    stats = pstats.Stats(profile).stats
    callers = {name: [key[2] for key in callers] for (_, _, name), (*_, callers) in stats.items()}
    counts = {name: count for (_, _, name), (count, *_) in stats.items()}
    assert callers["later"] == ["work"]
    assert callers["branches"] == ["work"]
    assert (counts["later"], counts["work"]) == (5, 1)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in 3.12")
def test_line_monitoring_sees_the_same_lines(place, names):
    monitoring = getattr(sys, "monitoring", None)

    def lines():
        seen = []

        def note(code, line):
            if code.co_filename == __file__:
                seen.append((code.co_name, line))

        monitoring.use_tool_id(monitoring.COVERAGE_ID, "test")
        monitoring.register_callback(monitoring.COVERAGE_ID, monitoring.events.LINE, note)
        monitoring.set_events(monitoring.COVERAGE_ID, monitoring.events.LINE)
        try:
            look_at_branches()
        finally:
            monitoring.set_events(monitoring.COVERAGE_ID, 0)
            monitoring.register_callback(monitoring.COVERAGE_ID, monitoring.events.LINE, None)
            monitoring.free_tool_id(monitoring.COVERAGE_ID)
        return seen

    bare = lines()
    with events_on_branches(place, names):
        assert lines() == bare
    assert lines() == bare
    assert len(bare) > 50


# --- limits, signals --------------------------------------------------------------------------


def test_endless_recursion_is_still_a_recursion_error(place, names):
    def endless(n):
        depths.append(n)
        return endless(n + 1)

    depths = []
    path = place(endless)
    with attached(path, *[HistogramInstrument("n", "1", name) for name in names]):
        with pytest.raises(RecursionError):
            endless(0)
        assert len(depths) > sys.getrecursionlimit() / 4
    with pytest.raises(RecursionError):
        endless(0)
    assert threading.get_ident() not in reentrancy.BUSY


def test_an_instrument_that_does_not_fit_under_the_recursion_limit_harms_nobody(place):
    # Neither what it evaluates, nor what serves its error.
    class Deep:
        def __len__(self):
            return deeper(20)

    def deeper(n):
        return n and deeper(n - 1) + 1

    def leaf(thing):
        return "fits"

    def call(depth, thing):
        return leaf(thing) if depth == 0 else call(depth - 1, thing)

    def headroom():
        """How deep calls can go here, and still reach the leaf and a modest instrument."""
        depth = 0
        with contextlib.suppress(RecursionError):
            while call(depth, None):
                depth += 1
        return depth - 1

    path = place(leaf)
    with events(path, ("return",)):
        fits = in_thread(headroom)
    errors = 0
    for depth in range(fits - 25, fits):
        failing = Raising("n", "len(thing)")
        with attached(path, failing):
            assert in_thread(call, depth, Deep()) == "fits"
            errors += failing.status.suppressed["error"]
    wait_until(lambda: reentrancy.BUSY == set())
    assert errors > 10


class Raising(HistogramInstrument):
    def handle_error(self, probe):
        """Take note of it quietly."""


def test_signals_interrupt_the_body_and_leave_nothing_behind(place, names):
    def work():
        signal.raise_signal(signal.SIGUSR1)
        return "not reached"

    def interrupt(number, frame):
        interrupted.append(frame.f_code.co_name)
        raise KeyboardInterrupt

    interrupted = []
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        same_with_probes(place, work, names)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert interrupted[0] == interrupted[-1]
    assert threading.get_ident() not in reentrancy.BUSY


@pytest.mark.parametrize("kind", [ProbeTestInstrument, HistogramInstrument])
@pytest.mark.parametrize("event", ["call", "return", "end"])
def test_an_interrupt_within_an_instrument_reaches_the_program_and_probes_go_on(place, kind, event):
    class Interrupted(BaseException):
        pass

    def interrupt(*_):
        raise Interrupted

    def work(x):
        return x

    # A timer interrupts at any instruction: of the body, the handler. What is
    # raised in a callback of the garbage collector (hypothesis has one) would be lost.
    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()
    instrument = kind("n", "x", event)
    count, one = 0, Decimal(1)
    with attached(place(work), instrument):
        try:
            for number in range(300):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0001 + number * 3e-7)
                    for _ in range(100_000):
                        work(one)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupted:
                    count += 1
                assert threading.get_ident() not in reentrancy.BUSY
                instrument.flush()
                getattr(instrument, "log", []).clear()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            gc.enable()
        instrument.flush()
        hits = instrument.status.hits
        work(one)
        instrument.flush()
        assert instrument.status.hits == hits + 1
    assert count > 250


def test_a_fault_report_can_be_written_inside(place, names, tmp_path):
    def report():
        with (tmp_path / "report").open("w+") as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            return "in report" in file.read()

    same_with_probes(place, report, names)


def test_standard_output_can_be_redirected_inside(place, names):
    def work():
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            print("inside")
        return out.getvalue()

    same_with_probes(place, work, names)


def test_sources_of_probed_functions_are_read_from_their_files(place):
    with events(place(plain)):
        lines, number = inspect.getsourcelines(plain)
    assert lines[0] == linecache.getline(__file__, number)


@pytest.mark.parametrize("switch", [sys.settrace, sys.setprofile])
def test_what_a_tracer_raises_at_a_return_leaves_the_function(place, switch):
    def subject(a, b, c):
        a = [a]
        b, c = [b], [c]
        return a, b, c

    def tracer(frame, event, _argument):
        if event == "return" and frame.f_code.co_name == "subject":
            raise KeyError("the tracer's")
        return tracer

    def call():
        switch(tracer)
        try:
            return subject(1, 2, 3)
        finally:
            switch(None)

    path = place(subject)
    before = switch is sys.settrace and sys.gettrace()
    with probed(path, "(a, b, c, elapsed > 0)") as seen:
        try:
            with pytest.raises(KeyError, match="the tracer's"):
                call()
        finally:
            sys.settrace(before or None)
    # It has returned by then, and that is not told twice.
    assert seen.results == [(1, 2, 3, True)]
    assert seen.status.error is None
