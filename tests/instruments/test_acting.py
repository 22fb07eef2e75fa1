"""Instruments that act: they give parameters other values, replace results, raise."""

from __future__ import annotations

import gc
import itertools
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import EXAMPLES, KINDS, calls, functions, run, steps
from stage import Interrupt, Stage, attached, in_thread, interrupts, outcome, picture

from diagnose.errors import InstrumentError
from diagnose.instruments import Instrument, ProbeTestInstrument, Raise, Result, calltree
from diagnose.limits import Limits
from diagnose.managers import InstrumentManager

logging.getLogger("diagnose").addHandler(logging.NullHandler())


class Acting(Instrument):
    """Acts as a function says that is given the names of the call."""

    acts = True

    def __init__(self, choose, event="return", value="1", **options):
        super().__init__("acting", value, event, **options)
        self.choose = choose

    def act(self, value, names):
        return self.choose(names)


class Odd(BaseException):
    pass


# --- every kind of function, every end, every choice, beside others -------------------------------

HEADS = {
    "plain": ("subject", "def subject(n):\n{body}"),
    "method": ("C.subject", "class C:\n  def subject(self, n):\n{body}\nsubject = C().subject"),
    "class method": (
        "C.subject",
        "class C:\n  @classmethod\n  def subject(cls, n):\n{body}\nsubject = C.subject",
    ),
    "static method": (
        "C.subject",
        "class C:\n  @staticmethod\n  def subject(n):\n{body}\nsubject = C.subject",
    ),
    "cell": ("subject", "def subject(n):\n   later = lambda: n\n{body}"),
    "closure": (
        "subject",
        "def make(outer):\n  def subject(n):\n   outer\n{body}\n  return subject\nsubject = make(1)",
    ),
    "any arguments": (
        "inner",
        (
            "subject = lambda n: inner(n, 3, 4, 5, k=6, x=7)\n"
            "def inner(n, /, a=1, *args, k=2, **kwargs):\n{body}"
        ),
    ),
    "generator": ("subject", "def subject(n):\n   yield 'first'\n{body}"),
    "coroutine": ("subject", "async def subject(n):\n   await pause()\n{body}"),
    "asynchronous generator": ("subject", "async def subject(n):\n   yield 'first'\n{body}"),
    "no code": (
        "subject",
        "import functools\ndef inner(n):\n{body}\nsubject = functools.partial(inner)",
    ),
}
BODIES = {
    "returns": "log.append(n)\nreturn n * 2",
    "returns in try": "try:\n  return n * 2\nfinally:\n  log.append(n)",
    "returns in except": "try:\n  raise KeyError(n)\nexcept KeyError:\n  return log.append(n)",
    "raises": "log.append(n)\nraise KeyError(n)",
    "raises in try": "try:\n  raise KeyError(n)\nfinally:\n  log.append(n)",
    "raises in finally": "try:\n  log.append(n)\nfinally:\n  raise KeyError(n)",
    "raises in with": "with manager():\n  log.append(n)\n  raise KeyError(n)",
    "raises in except": "try:\n  raise ValueError(n)\nexcept ValueError:\n  log.append(n)\n"
    "  raise KeyError(n)",
}
CASES = [
    (kind, end)
    for kind in HEADS
    for end in BODIES
    # What has no code is covered by reference, and the heap is looked through each time.
    if kind != "no code" or end in {"returns", "raises in with"}
]
SETTING = """
import contextlib, types
log = []
@contextlib.contextmanager
def manager():
    try:
        yield
    finally:
        log.append("exit")
@types.coroutine
def pause():
    yield
"""
WITHOUT_RESULT = {"asynchronous generator"}
SUSPENDABLE = {"generator", "coroutine", "asynchronous generator"}


def source_of(kind, end):
    body = BODIES[end]
    if kind in WITHOUT_RESULT:
        body = body.replace("return n * 2", "return").replace("return log", "log")
    indented = "\n".join("   " + line for line in body.splitlines())
    path, head = HEADS[kind]
    return path, SETTING + head.format(body=indented)


def drive(module, kind, n):
    """What a call comes to in the end, and what the function wrote down."""
    module.log.clear()
    found = outcome(to_the_end, kind, module.subject(n)) if kind in SUSPENDABLE else None
    return found or outcome(module.subject, n), list(module.log)


def to_the_end(kind, made):
    if kind == "asynchronous generator":
        seen = []
        while True:
            step = made.asend(None)
            try:
                step.send(None)
            except StopIteration as stop:
                seen.append(stop.value)
            except StopAsyncIteration:
                return seen
    seen = []
    while True:
        try:
            seen.append(made.send(None))
        except StopIteration as stop:
            return seen, stop.value


def with_result(kind, value):
    """What the outcome is if the function returns a value."""
    if kind in WITHOUT_RESULT:
        return "returned", ["first"]
    shown = {"generator": (["first"], value), "coroutine": ([None], value)}.get(kind, value)
    return "returned", shown


def error_of(found):
    """Kind, arguments, and those of the context, of what was raised."""
    how, error = found
    assert how == "raised", found
    context = error["context"]
    return error["type"], error["args"], context and (context["type"], context["args"])


NEIGHBOURS = {
    "alone": (),
    "watched": (
        ("call", "n"),
        ("return", "(n, result, exception)"),
        ("end", "n"),
        ("return", "hotspots.worst"),
    ),
}


def neighbours(kind, which):
    """Instruments that watch, for a kind of function."""
    found = []
    for event, value in NEIGHBOURS[which]:
        if kind != "no code":
            found.append(ProbeTestInstrument("watching", value, event))
        elif event != "end" and "hotspots" not in value:
            of_any = value.replace("(n,", "(args[0],") if "," in value else "args[0]"
            found.append(ProbeTestInstrument("watching", of_any, event))
    return found


def raises_itself(names):
    return 1 // 0


INJECTED = {
    "instance": (lambda names: Raise(TimeoutError("injected")), TimeoutError, "('injected',)"),
    "class": (lambda names: Raise(TimeoutError), TimeoutError, "()"),
    "base": (lambda names: Raise(Odd(1)), Odd, "(1,)"),
    "stop": (lambda names: Raise(StopIteration(5)), StopIteration, "(5,)"),
}
NOTHING = {"none": lambda names: None}
NOTHING_ON_CALL = NOTHING | {"no parameter": lambda names: {}}
MISTAKES = {
    "raises": raises_itself,
    "odd": lambda names: 5,
    "unmade": lambda names: Raise(UnicodeDecodeError),
    "no exception": lambda names: Raise(int),
    "stops": lambda names: next(iter(())),
    "leaves": lambda names: sys.exit(3),
}
MISTAKES_ON_CALL = MISTAKES | {
    "unknown": lambda names: {"nobody": 1},
    "result": lambda names: Result(1),
    "text": lambda names: "n",
}
MISTAKES_ON_RETURN = MISTAKES | {"parameters": lambda names: {"n": 1}}


def expected_error(kind, error, args):
    """What is raised where the function's own code raises this."""
    if error is StopIteration and kind in SUSPENDABLE:
        word = {"asynchronous generator": "async generator"}.get(kind, kind)
        return RuntimeError, f"('{word} raised StopIteration',)"
    return error, args


def orders(kind):
    return 2 if kind in {"plain", "generator", "no code"} else 1


def check(module, path, kind, acting, expect, among=NEIGHBOURS):
    """Call with an instrument that acts, and others beside; ``expect`` looks at what came of it."""
    for which in among:
        watching = neighbours(kind, which)
        # Those that watch may come first or last.
        for order in ([*watching, acting], [acting, *watching])[: orders(kind) if watching else 1]:
            for each in watching:
                each.log.clear()
            with attached(path, *order):
                found = drive(module, kind, 3)
            expect(found, {(each.event, each.value): each.results for each in watching})
            assert [each.status.error for each in watching] == [None] * len(watching)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("kind", "end"), CASES)
def test_what_acts_on_call_does_what_it_says_and_nothing_else(stage, kind, end):
    path, source = source_of(kind, end)
    module = stage.script(source)
    path = f"{module.__name__}.{path}"
    bare, bare_9 = drive(module, kind, 3), drive(module, kind, 9)

    def is_given_three(seen):
        for (event, value), results in seen.items():
            if event != "end" and "hotspots" not in value:
                (given,) = [each[0] if isinstance(each, tuple) else each for each in results]
                assert given == 3

    def expect_bare(found, seen):
        assert found == bare
        is_given_three(seen)

    def expect_nine(found, seen):
        assert found == bare_9
        is_given_three(seen)
        assert seen.get(("end", "n"), [9]) == [9]

    for choose in NOTHING_ON_CALL.values():
        acting = Acting(choose, "call")
        check(module, path, kind, acting, expect_bare)
        assert (acting.status.error, acting.status.hits) == (None, 1 + orders(kind))
    nine = {"args": [9]} if kind == "no code" else {"n": 9}
    check(module, path, kind, Acting(lambda names: nine, "call"), expect_nine)
    for choose in MISTAKES_ON_CALL.values():
        acting = Acting(choose, "call")
        check(module, path, kind, acting, expect_bare, ["alone"])
        assert (acting.status.state, acting.status.code) == ("error", "runtime-error")
    for choose, error, args in INJECTED.values():
        wanted = expected_error(kind, error, args)

        def expect_error(found, seen, wanted=wanted, error=error, args=args):
            (how, raised), noted = found
            assert (how, raised["type"], raised["args"]) == ("raised", *wanted)
            assert noted == []
            is_given_three(seen)
            for (event, value), results in seen.items():
                if event == "return" and "exception" in value:
                    ((_, result, exception),) = results
                    # As with its own: on 3.11 it becomes another one behind the function's code.
                    kinds = error if sys.version_info < (3, 12) else wanted[0]
                    assert type(result) is type(exception) is kinds
            if wanted[0] is not error:  # what became a RuntimeError
                raised = raised["cause"]
                assert (raised["type"], raised["args"]) == (error, args)
            if kind != "no code":
                lines = source.splitlines()
                *_, line, _ = raised["trace"][-1]
                assert "def subject" not in lines[line - 1]
                assert line > SETTING.count("\n")

        check(module, path, kind, Acting(choose, "call"), expect_error)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("kind", "end"), CASES)
def test_what_acts_on_return_does_what_it_says_and_nothing_else(stage, kind, end):
    path, source = source_of(kind, end)
    module = stage.script(source)
    path = f"{module.__name__}.{path}"
    bare = drive(module, kind, 3)
    own = bare[0][1] if bare[0][0] == "raised" else None

    def is_own(seen):
        """Those that watch see what the function itself did."""
        for (event, value), results in seen.items():
            if event == "return" and "exception" in value:
                ((_, result, exception),) = results
                assert (exception is None) == (own is None)
                assert exception is None or type(result) is type(exception) is own["type"]

    def expect_bare(found, seen):
        assert found == bare
        is_own(seen)

    def expect_fixed(found, seen):
        assert found == (with_result(kind, "fixed"), bare[1])
        is_own(seen)

    for choose in NOTHING.values():
        check(module, path, kind, Acting(choose), expect_bare)
    check(module, path, kind, Acting(lambda names: Result("fixed")), expect_fixed)
    for choose in MISTAKES_ON_RETURN.values():
        acting = Acting(choose)
        check(module, path, kind, acting, expect_bare, ["alone"])
        assert (acting.status.state, acting.status.code) == ("error", "runtime-error")
    for choose, error, args in INJECTED.values():
        wanted = expected_error(kind, error, args)

        def expect_error(found, seen, wanted=wanted, error=error, args=args):
            (how, raised), noted = found
            assert (how, raised["type"], raised["args"]) == ("raised", *wanted)
            assert noted == bare[1]
            is_own(seen)
            if wanted[0] is not error:  # what became a RuntimeError
                raised = raised["cause"]
                assert (raised["type"], raised["args"]) == (error, args)
            context = raised["context"]
            assert (context and context["type"]) == (own and own["type"])
            if kind != "no code":
                names = [entry[1].rpartition(".")[2] for entry in raised["trace"]]
                assert names[-1] == path.rpartition(".")[2]

        check(module, path, kind, Acting(choose), expect_error)
    if own is not None:
        again = Acting(lambda names: Raise(names["exception"]))

        def expect_the_same(found, seen):
            assert error_of(found[0]) == error_of(bare[0])

        check(module, path, kind, again, expect_the_same)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_acts_and_says_nothing_changes_nothing(kind, data):
    source, name = data.draw(functions(kind))
    given_calls = data.draw(st.lists(calls, min_size=1, max_size=3))
    scripts = [data.draw(steps) for _ in given_calls]
    with Stage() as stage:
        module = stage.script(source)
        bare = [run(module, kind, *each) for each in zip(given_calls, scripts, strict=True)]
        events = data.draw(st.lists(st.sampled_from(["call", "return"]), min_size=1, max_size=3))
        acting = [Acting(lambda names: names.clear(), event) for event in events]
        code = module.subject.__code__
        with attached(f"{module.__name__}.{name}", *acting):
            now = [run(module, kind, *each) for each in zip(given_calls, scripts, strict=True)]
            gc.collect(0)
        assert now == bare
        assert module.subject.__code__ is code
        assert [each.status.error for each in acting] == [None] * len(acting)


# --- parameters -----------------------------------------------------------------------------------

EVERY = "def f(a, /, b, c=3, *args, d, e=5, **kwargs):\n    return a, b, c, args, d, e, kwargs"
GIVEN = {"a": 1, "b": 2, "c": 3, "args": (4, 5), "d": 6, "e": 5, "kwargs": {"x": 7}}
OTHER = {"a": "A", "b": "B", "c": "C", "args": ("D",), "d": "E", "e": "F", "kwargs": {"y": "G"}}


def test_each_set_of_parameters_can_be_changed_and_the_others_stay(stage):
    module = stage.script(EVERY)
    for length in range(len(GIVEN) + 1):
        for names in itertools.combinations(GIVEN, length):
            changed = {name: OTHER[name] for name in names}
            with attached(f"{module.__name__}.f", Acting(lambda _, c=changed: c, "call")):
                found = module.f(1, 2, 3, 4, 5, d=6, x=7)
            assert found == tuple((GIVEN | changed).values())


def test_the_stars_are_what_a_call_makes_of_them(stage):
    module = stage.script(EVERY)
    keywords = {"y": 1}
    with attached(
        f"{module.__name__}.f",
        Acting(lambda names: {"args": iter([8, 9]), "kwargs": keywords}, "call"),
    ):
        *_, args, _, _, kwargs = module.f(1, 2, d=6)
    assert (args, kwargs) == ((8, 9), {"y": 1})
    assert kwargs is not keywords
    for mistake in ({"args": 1}, {"kwargs": [1]}, {"kwargs": {1: 2}}):
        acting = Acting(lambda names, m=mistake: m, "call")
        with attached(f"{module.__name__}.f", acting):
            assert module.f(1, 2, d=6)[3::3] == ((), {})
        assert acting.status.state == "error"


def test_variables_of_closures_are_changed_for_those_who_hold_them(stage):
    module = stage.script(
        "def f(a, *rest, **more):\n    def get(): return a, rest, more\n    a; return get"
    )
    new = {"a": 2, "rest": (3,), "more": {"x": 4}}
    with attached(f"{module.__name__}.f", Acting(lambda names: new, "call")):
        get = module.f(1)
    assert get() == (2, (3,), {"x": 4})


def test_to_change_the_mapping_of_names_changes_no_parameter(stage):
    module = stage.script(EVERY)

    def choose(names):
        assert isinstance(names, Mapping)
        assert [names[name] for name in "abcde" if name != "args"] == [1, 2, 3, 6, 5]
        assert names["args"] == (1, 2, 3, 4, 5)  # as in expressions: all of them
        names["a"] = "changed"
        names.pop("b")
        return {"c": 9}

    acting = Acting(choose, "call")
    with attached(f"{module.__name__}.f", acting):
        assert module.f(1, 2, 3, 4, 5, d=6) == (1, 2, 9, (4, 5), 6, 5, {})
    assert acting.status.error is None


def test_each_call_of_a_recursion_is_acted_on(stage):
    module = stage.script("def f(n):\n    return 1 if n == 0 else 1 + f(n - 1)")
    clamp = Acting(lambda names: {"n": min(names["n"], 3)}, "call")
    with attached(f"{module.__name__}.f", clamp):
        assert module.f(500) == 4
    assert clamp.status.hits == 4


def test_a_builtin_gets_other_arguments(stage):
    module = stage.module(f=divmod)
    path = f"{module.__name__}.f"
    with attached(path, Acting(lambda names: {"args": (9, names["args"][1])}, "call")):
        assert module.f(7, 2) == (4, 1)
    with attached(path, Acting(lambda names: Result(names["result"][0]))):
        assert module.f(7, 2) == 3
    with attached(path, Acting(lambda names: Raise(KeyError(1)), "call")):
        how, error = outcome(module.f, 7, 2)
    assert (how, error["type"], error["trace"]) == ("raised", KeyError, [])
    assert module.f is divmod


# --- several that act -----------------------------------------------------------------------------


def test_the_next_that_acts_gets_what_the_one_before_has_given(stage):
    module = stage.script("def f(n, *args, m=0):\n    return n, args, m")
    path = f"{module.__name__}.f"
    seen = ProbeTestInstrument("seen", "(n, args, kwargs)", "return")
    twice = [
        Acting(
            lambda names: {"n": names["n"] + 1, "args": (*names["args"], 5), "m": names["m"] + 2},
            "call",
        )
        for _ in range(3)
    ]
    with attached(path, seen, *twice):
        n, args, m = module.f(1, 2)
    assert (n, m) == (4, 6)
    assert args[-1] == 5
    assert seen.results == [(1, (1, 2), {"m": 0})]  # what the caller gave
    more = [
        Acting(lambda names, k=k: Result((names["result"], k)), "return") for k in ("a", "b", "c")
    ]
    with attached(path, *more):
        assert module.f(1) == ((((1, (), 0), "a"), "b"), "c")


@pytest.mark.parametrize("kind", HEADS)
def test_a_result_in_place_of_an_exception_goes_on_to_the_next(stage, kind):
    path, source = source_of(kind, "raises in except")
    module = stage.script(source)
    seen = []

    def first(names):
        return Result(("first", type(names["exception"])))

    def then(names):
        seen.append((names["result"], names["exception"]))
        return Result("then")

    with attached(f"{module.__name__}.{path}", Acting(first), Acting(then)):
        found = drive(module, kind, 3)[0]
    assert found == with_result(kind, "then")
    result = None if kind in WITHOUT_RESULT else ("first", KeyError)
    assert seen == [(result, None)]


def test_behind_one_that_raises_no_other_is_asked(stage):
    module = stage.script("def f(n):\n    return n")
    later = []
    for event in ("call", "return"):
        first = Acting(lambda names: Raise(KeyError(1)), event)
        then = Acting(later.append, event)
        with attached(f"{module.__name__}.f", first, then):
            assert outcome(module.f, 1)[0] == "raised"
    assert later == []


def test_what_is_raised_on_call_can_be_answered_on_return(stage):
    module = stage.script("def f(n):\n    return n")
    fault = Acting(lambda names: Raise(KeyError("injected")), "call")
    serve = Acting(lambda names: Result(repr(names["exception"])))
    with attached(f"{module.__name__}.f", fault, serve):
        assert module.f(1) == "KeyError('injected')"


def test_a_call_tree_that_was_begun_is_ended_by_what_is_raised_on_call(stage):
    module = stage.script("def f(n):\n    return n")
    fault = Acting(lambda names: Raise(KeyError(1)), "call")

    class Tree(calltree.CallTreeInstrument):
        trees = 0

        def emit(self, name, value, tags):
            self.trees += 1

    tree = Tree("tree", limits=Limits(rate=1e6))
    with attached(f"{module.__name__}.f", tree, fault):
        for _ in range(3):
            assert outcome(module.f, 1)[0] == "raised"
        assert tree.status.hits == 3
    assert tree.status.error is None


# --- as the function's own code -------------------------------------------------------------------


def plain(found):
    """A picture without where in the line it was."""
    if isinstance(found, dict):
        return {name: plain(value) for name, value in found.items() if name != "members"}
    if isinstance(found, list):
        return [entry[:3] if isinstance(entry, tuple) else entry for entry in found]
    return found


@pytest.mark.parametrize("kind", ["plain", "generator", "coroutine"])
@pytest.mark.parametrize("error", ["KeyError", "StopIteration"])
def test_it_is_raised_as_the_functions_own_code_would(stage, kind, error):
    head = {"plain": "def", "generator": "def", "coroutine": "async def"}[kind]
    last = "\n    yield" if kind == "generator" else ""

    def called(body, *instruments):
        module = stage.script(
            f"{head} f():\n    {body}{last}\n"
            "def caller(drive):\n"
            "    try:\n        raise LookupError('before')\n"
            "    except LookupError:\n        return drive(f())\n",
            "<own code>",
        )
        drive = {"plain": lambda value: value}.get(kind, lambda made: made.send(None))
        with attached(f"{module.__name__}.f", *instruments):
            seen = outcome(module.caller, drive)
        return plain(seen[1])

    made = getattr(__import__("builtins"), error)
    own = called(f"raise {error}(1)")
    assert called("pass", Acting(lambda names: Raise(made(1)), "call")) == own
    assert called("return 1", Acting(lambda names: Raise(made(1)))) == own


def test_an_exception_in_flight_is_not_seen_behind_the_call(stage):
    module = stage.script(
        "import sys\ndef f():\n    try:\n        raise KeyError(1)\n    finally:\n        pass\n"
        "def caller():\n    f()\n    return sys.exception()"
    )
    with attached(f"{module.__name__}.f", Acting(lambda names: Result(1))):
        assert module.caller() is None
        try:
            raise LookupError
        except LookupError as before:
            assert module.caller() is before


CHOICES = {
    "nothing": ("return", lambda made: None),
    "a result": ("return", lambda made: Result(made)),
    "an error": ("return", lambda made: Raise(KeyError(made))),
    "a parameter": ("call", lambda made: {"n": made, "rest": (made,), "more": {"x": made}}),
    "an error on call": ("call", lambda made: Raise(KeyError(made))),
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("ends", ["return n", "raise KeyError(n)", "yield n; return n"])
def test_nothing_is_held_for_longer_than_the_call(stage, ends, choice):
    event, choose = CHOICES[choice]
    module = stage.script(f"def f(n, *rest, **more):\n    {ends}")
    made, handed = object(), object()
    watches = ProbeTestInstrument("n", "1", "return")
    watches.emit = lambda name, value, tags: None

    def call():
        try:
            found = module.f(handed, handed, x=handed)
            if "yield" in ends:
                list(found)
        except KeyError:
            pass

    for beside in ((), (watches,)):
        with attached(f"{module.__name__}.f", Acting(lambda names: choose(made), event), *beside):
            call()
            gc.collect()
            before = sys.getrefcount(made), sys.getrefcount(handed)
            for _ in range(1000):
                call()
            gc.collect()
            assert (sys.getrefcount(made), sys.getrefcount(handed)) == before


# --- like any instrument --------------------------------------------------------------------------


def test_limits_and_conditions_turn_hits_away(stage):
    module = stage.script("def f(n):\n    return n")
    path = f"{module.__name__}.f"

    def fixed(**options):
        return Acting(lambda names: Result("fixed"), **options)

    def results(instrument, count=10):
        with attached(path, instrument):
            return [module.f(number) for number in range(count)]

    assert results(fixed(when="n % 2")) == [n if n % 2 == 0 else "fixed" for n in range(10)]
    condition = fixed(when="n > 5")
    assert results(condition) == [0, 1, 2, 3, 4, 5, *["fixed"] * 4]
    assert condition.status.suppressed == {"condition": 6}
    assert results(fixed(when="result > 5"))[5:7] == [5, "fixed"]
    assert results(fixed(when="elapsed < 0")) == list(range(10))
    assert results(fixed(when="elapsed >= 0 and end >= start")) == ["fixed"] * 10
    hits = fixed(limits=Limits(hits=2))
    assert results(hits) == ["fixed", "fixed", *range(2, 10)]
    assert hits.status.state == "done"
    rate = fixed(limits=Limits(rate=0.001))
    assert results(rate) == ["fixed", *range(1, 10)]
    assert rate.status.suppressed == {"rate": 9}
    sampled = fixed(limits=Limits(sample=0.5))
    assert 20 < results(sampled, 100).count("fixed") < 80
    assert sampled.status.suppressed["sample"] + sampled.status.hits == 100


def test_its_value_is_that_of_the_expression(stage):
    module = stage.script("def f(n):\n    return n")

    class Doubles(Instrument):
        acts = True

        def act(self, value, names):
            return Result(value)

    with attached(f"{module.__name__}.f", Doubles("n", "(n * 2, result, elapsed >= 0)")):
        assert module.f(4) == (8, 4, True)


def test_names_of_a_return_are_all_there(stage):
    module = stage.script("def f(n):\n    return n")
    seen = {}
    with attached(f"{module.__name__}.f", Acting(seen.update)):
        module.f(4)
    assert seen.keys() == (
        {"n", "result", "exception", "elapsed", "start", "end", "args", "kwargs", "now", "frame"}
    )
    assert seen["elapsed"] >= 0 <= seen["end"] - seen["start"]


def test_calls_inside_act_are_not_acted_on(stage):
    module = stage.script("def f(n):\n    return n")
    with attached(f"{module.__name__}.f", Acting(lambda names: Result(("inner", module.f(5))))):
        assert module.f(1) == ("inner", 5)


def test_calls_that_are_inside_as_it_is_taken_off_end_by_themselves(stage):
    module = stage.script("def f(n):\n    yield n\n    return n")
    with attached(f"{module.__name__}.f", Acting(lambda names: Result("fixed"))):
        inside = module.f(1)
        next(inside)
    with pytest.raises(StopIteration) as end:
        next(inside)
    assert end.value.value == 1


def test_what_a_signal_handler_raises_in_act_belongs_to_the_program(stage):
    module = stage.script("def f(n):\n    return n")
    for event in ("call", "return"):
        with interrupts() as interrupt:
            acting = Acting(lambda names: interrupt(), event)
            with attached(f"{module.__name__}.f", acting), pytest.raises(Interrupt):
                module.f(1)
        assert acting.status.error is None


@pytest.mark.parametrize("event", ["call", "return"])
def test_where_there_is_no_room_for_it_nothing_is_changed(stage, event):
    module = stage.script("depth = 0\ndef f(n):\n    global depth\n    depth += 1\n    return f(n)")
    acting = Acting(lambda names: None, event)
    bare = in_thread(lambda: outcome(module.f, 1))[1]["type"]
    with attached(f"{module.__name__}.f", acting):
        assert in_thread(lambda: outcome(module.f, 1))[1]["type"] is bare is RecursionError
    assert acting.status.error is None


def test_what_it_raises_has_a_traceback_that_does_not_grow(stage):
    module = stage.script("def f(n):\n    return n")
    with attached(f"{module.__name__}.f", Acting(lambda names: Raise(KeyError))):
        lengths = set()
        for _ in range(5):
            try:
                module.f(1)
            except KeyError as error:
                lengths.add(len(picture(error)["trace"]))
    assert lengths == {2}


# --- who may have one -----------------------------------------------------------------------------


def test_raise_takes_exceptions_only():
    for wrong in (1, int, "KeyError", None):
        with pytest.raises(TypeError, match="is no exception"):
            Raise(wrong)


@pytest.mark.parametrize("event", ["end", "line:1", "line:+1"])
def test_it_can_act_before_and_after_only(event):
    with pytest.raises(InstrumentError, match="on 'call' and on 'return'") as error:
        Acting(lambda names: None, event)
    assert error.value.code == "unknown-event"


def test_hotspots_are_refused(stage):
    module = stage.script("def f(n):\n    return n")
    with (
        pytest.raises(Exception, match="'hotspots' means nothing"),
        attached(f"{module.__name__}.f", Acting(lambda names: None, value="hotspots.worst")),
    ):
        pass


def test_what_watches_whole_calls_is_refused():
    class ActingTree(calltree.CallTreeInstrument):
        acts = True

    with pytest.raises(InstrumentError, match="ActingTree watches a whole call, and can't act"):
        ActingTree("n")


class Fixed(Instrument):
    acts = True

    def act(self, value, names):
        return Result(value)


def test_a_document_makes_one_only_of_a_class_that_is_registered(stage):
    module = stage.script("def f(n):\n    return n")
    manager = InstrumentManager("here")
    manager.specs["fixed"] = document = {
        "target": f"{module.__name__}.f",
        "instrument": {"type": "fixed", "value": "'fixed'"},
        "lifespan": 10,
        "lastmodified": datetime.now(UTC),
    }
    try:
        for words in ("fixed", "Fixed", f"{Fixed.__module__}.Fixed", "Instrument"):
            document["instrument"] = {"type": words, "value": "'fixed'", "acts": True}
            manager.apply()
            assert document["applied"]["here"]["code"] in {"unknown-type", "unknown-field"}
            assert module.f(1) == 1
        manager.instrument_classes["fixed"] = Fixed
        document["instrument"] = {"type": "fixed", "value": "'fixed'"}
        manager.apply()
        entry = document["applied"]["here"]
        assert (entry["state"], entry["acts"]) == ("installed", True)
        assert any("may change what the function is given" in text for text in entry["warnings"])
        assert module.f(1) == "fixed"
        document["validate"] = True
        manager.apply()
        assert document["applied"]["here"]["state"] == "validated"
        assert document["applied"]["here"]["acts"] is True
        assert module.f(1) == 1
    finally:
        manager.specs.clear()
        manager.apply()


def test_what_only_watches_is_not_marked(stage):
    module = stage.script("def f(n):\n    return n")
    manager = InstrumentManager("here")
    manager.specs["watches"] = document = {
        "target": f"{module.__name__}.f",
        "instrument": {"type": "log", "value": "result"},
        "lifespan": 10,
        "lastmodified": datetime.now(UTC),
    }
    try:
        manager.apply()
        entry = document["applied"]["here"]
        assert (entry["state"], entry.get("acts")) == ("installed", None)
    finally:
        manager.specs.clear()
        manager.apply()


def test_act_without_acts_is_an_error_that_says_so():
    class Forgetful(Instrument):
        def act(self, value, names):
            return None

    with pytest.raises(InstrumentError, match="set that on the class"):
        Forgetful("n", "1", "call")
