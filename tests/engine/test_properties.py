"""What holds for any function, any call and any order of changes."""

from __future__ import annotations

import contextlib
import gc
import inspect
import threading
import warnings
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from made_up import EXAMPLES, KINDS, calls, functions, run, signatures, steps
from stage import DEADLINE_SECONDS, Stage, attached, events, outcome, timers_ran

from diagnose import attach_to, targets
from diagnose.bytecode import assembly, flow, weaving
from diagnose.errors import DiagnoseError
from diagnose.instruments import HistogramInstrument, ProbeTestInstrument
from diagnose.managers import InstrumentManager
from diagnose.probes import active_probes

# --- a probed function does what the bare one does --------------------------------------------


@contextlib.contextmanager
def looks_inside(module, path, what):
    """Measure each line, and see each line begin."""
    instruments = []
    if "hotspots" in what:
        instruments.append(ProbeTestInstrument("n", "hotspots.worst"))
    if "lines" in what:
        code = targets.resolve(path, import_modules=False).function.__code__
        lines = flow.line_starts(assembly.read(code))
        instruments += [ProbeTestInstrument("n", "1", f"line:{line}") for line in lines]
    with attached(path, *instruments):
        yield
    assert [each.status.error for each in instruments] == [None] * len(instruments)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_probed_function_does_what_the_bare_one_does(kind, data):
    source, name = data.draw(functions(kind))
    given_calls = data.draw(st.lists(calls, min_size=1, max_size=3))
    scripts = [data.draw(steps) for _ in given_calls]
    with Stage() as stage:
        module = stage.script(source)
        bare = [run(module, kind, *each) for each in zip(given_calls, scripts, strict=True)]
        names = data.draw(st.sampled_from([("call",), ("return",), ("end",), None]))
        names = names or ("call", "return", "end")
        code = module.subject.__code__
        path = f"{module.__name__}.{name}"
        inside = data.draw(st.sampled_from([[], ["hotspots"], ["lines"], ["hotspots", "lines"]]))
        with looks_inside(module, path, inside), events(path, names) as seen:
            now = [run(module, kind, *each) for each in zip(given_calls, scripts, strict=True)]
            gc.collect(0)
        assert now == bare
        assert module.subject.__code__ is code
        counts = {each: seen.count(each) for each in names}
        assert len(set(counts.values())) == 1, counts
        event(f"{kind}: {max(counts.values())} hits")


# --- any order of changes puts the code back --------------------------------------------------


class Slot:
    """What the machine knows of an instrument under a key."""

    def __init__(self, instrument, *, is_attached):
        self.instrument = instrument
        self.is_attached = is_attached
        self.fires = is_attached
        self.hits = 0


class Lives(RuleBasedStateMachine):
    """Attach, start, replace, expire, fail, stop, detach: on shared functions, in any order."""

    targets = st.sampled_from(["plain", "again", "closure", "numbers", "root"])
    keys = st.sampled_from(["x", "y"])
    events_ = st.sampled_from(["call", "return", "end", "line:+1"])
    expressions = st.sampled_from(["1", "1", "1", "nowhere", "1 // 0"])
    kinds = st.sampled_from([ProbeTestInstrument, HistogramInstrument])

    def __init__(self):
        super().__init__()
        self.stage = Stage()

        def plain(x):
            return x

        def make(y):
            def closure(x):
                return x + y

            return closure

        def numbers(x):
            yield x

        class Quiet(InstrumentManager):
            def handle_error(self, probe=None, instrument=None):
                pass

        self.manager = Quiet()
        self.module = self.stage.module(plain, numbers, closure=make(1), again=plain)
        # A C function that nobody else uses meanwhile.
        self.module.root = self.root = "".join
        self.functions = {
            name: getattr(self.module, name) for name in ("plain", "again", "closure", "numbers")
        }
        self.codes = {name: each.__code__ for name, each in self.functions.items()}
        self.slots = {}
        self.started = set()

    def path(self, name):
        return f"{self.module.__name__}.{name}"

    def make(self, kind, expression, event_):
        return kind("n", expression, event_, mgr=self.manager)

    def fails_to_attach(self, name, instrument):
        return instrument.value == "nowhere" or (
            name == "root" and instrument.event in {"end", "line:+1"}
        )

    def is_live(self, name):
        slots = self.slots.get(name, {})
        return name in self.started or any(slot.is_attached for slot in slots.values())

    def forget_if_empty(self, name):
        if not self.slots.get(name):
            self.slots.pop(name, None)

    def do(self, name, key, instrument, change):
        """Let ``change`` attach an instrument, and note what that must come to."""
        if self.fails_to_attach(name, instrument):
            with pytest.raises(DiagnoseError):
                change()
        else:
            change()
            self.slots.setdefault(name, {})[key] = Slot(instrument, is_attached=True)

    @rule(name=targets, key=keys, kind=kinds, expression=expressions, event_=events_)
    def attach(self, name, key, kind, expression, event_):
        instrument = self.make(kind, expression, event_)
        probe = attach_to(self.path(name))
        self.do(name, key, instrument, lambda: probe.attach(key, instrument))

    @rule(name=targets, key=keys, kind=kinds, expression=expressions, event_=events_)
    def put(self, name, key, kind, expression, event_):
        instrument = self.make(kind, expression, event_)
        probe = attach_to(self.path(name))
        if self.is_live(name):
            self.do(name, key, instrument, lambda: probe.instruments.__setitem__(key, instrument))
        else:
            probe.instruments[key] = instrument
            self.slots.setdefault(name, {})[key] = Slot(instrument, is_attached=False)

    @rule(name=targets, key=keys)
    def attach_again(self, name, key):
        slot = self.slots.get(name, {}).get(key)
        if slot is not None and not self.fails_to_attach(name, slot.instrument):
            attach_to(self.path(name)).attach(key, slot.instrument)
            slot.is_attached = slot.fires = True

    @rule(name=targets, key=keys, event_=events_)
    def expire(self, name, key, event_):
        finished = threading.Event()

        class Expiring(ProbeTestInstrument):
            def detached(self):
                super().detached()
                finished.set()

        if name == "root" and event_ in {"end", "line:+1"}:
            return
        instrument = Expiring("n", "1", event_, mgr=self.manager)
        probe = attach_to(self.path(name))
        probe.attach(key, instrument, lifespan=timedelta(seconds=0.001))
        assert finished.wait(DEADLINE_SECONDS)
        assert instrument.status.state == "expired"
        self.slots.get(name, {}).pop(key, None)
        if not self.slots.get(name):
            self.started.discard(name)
        self.forget_if_empty(name)

    @rule(name=targets, key=keys)
    def detach(self, name, key):
        if name in self.slots or name in self.started:
            attach_to(self.path(name)).detach(key)
            self.slots.get(name, {}).pop(key, None)
            self.forget_if_empty(name)

    @rule(name=targets)
    def start(self, name):
        probe = attach_to(self.path(name))
        slots = self.slots.get(name, {})
        waiting = [slot for slot in slots.values() if not slot.is_attached]
        if name not in self.started and any(
            self.fails_to_attach(name, slot.instrument) for slot in waiting
        ):
            with pytest.raises(DiagnoseError):
                probe.start()
            self.slots.pop(name, None)
            return
        probe.start()
        if name not in self.started:
            self.started.add(name)
            for slot in waiting:
                slot.is_attached = slot.fires = True

    @rule(name=targets)
    def stop(self, name):
        probe = attach_to(self.path(name))
        probe.stop()
        self.slots.pop(name, None)
        self.started.discard(name)

    @rule(name=targets, number=st.integers(0, 3))
    def call(self, name, number):
        if name == "root":
            assert self.module.root(["a"] * number) == "a" * number
        elif name == "numbers":
            assert list(self.module.numbers(number)) == [number]
        else:
            function = getattr(self.module, name)
            assert function(number) == number + (name == "closure")
        for each in {"plain": ("plain", "again"), "again": ("plain", "again")}.get(name, (name,)):
            for slot in self.slots.get(each, {}).values():
                if slot.fires and slot.instrument.value == "1 // 0":
                    assert slot.instrument.status.state == "error"
                    slot.fires = False
                elif slot.fires:
                    slot.hits += 1

    @precondition(lambda self: self.slots)
    @rule()
    def hits_are_exact(self):
        for slots in self.slots.values():
            for slot in slots.values():
                slot.instrument.flush()
                if slot.instrument.value == "1":
                    assert slot.instrument.status.hits == slot.hits

    @invariant()
    def code_is_replaced_only_where_something_is_armed(self):
        timers_ran()
        for names in (("plain", "again"), ("closure",), ("numbers",)):
            armed = any(slot.fires for name in names for slot in self.slots.get(name, {}).values())
            function = self.functions[names[0]]
            assert (function.__code__ is not self.codes[names[0]]) == armed
        armed = any(slot.fires for slot in self.slots.get("root", {}).values())
        assert (self.module.root is not self.root) == armed

    def teardown(self):
        for name in ("plain", "again", "closure", "numbers", "root"):
            attach_to(self.path(name)).stop()
        assert active_probes == {}
        timers_ran()
        for name, function in self.functions.items():
            assert function.__code__ is self.codes[name]
        assert self.module.root is self.root
        self.stage.__exit__()


Lives.TestCase.settings = settings(
    max_examples=EXAMPLES // 2, stateful_step_count=30, deadline=None
)
test_any_order_of_changes_puts_the_code_back = Lives.TestCase


# --- names ------------------------------------------------------------------------------------


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(signature=signatures(), call=calls)
def test_what_expressions_see_is_what_the_call_was(signature, call):
    text, names = signature
    parameters = inspect.signature(eval(f"lambda {text}: 0")).parameters.values()
    by_keyword = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    by_place = [name for name in names if name not in {"args", "kwargs", *by_keyword}]
    names = [*by_place, *by_keyword]
    with Stage() as stage:
        module = stage.script(f"def f({text}):\n    return locals()")
        args, kwargs = call
        kind, bound = outcome(module.f, *args, **kwargs)
        assume(kind == "returned")
        every = (*(bound[name] for name in by_place), *bound.get("args", ()))
        keywords = {**{name: bound[name] for name in by_keyword}, **bound.get("kwargs", {})}
        value = f"({', '.join([*names, 'args', 'kwargs'])},)"
        instruments = {each: ProbeTestInstrument("n", value, each) for each in ("call", "return")}
        probe = attach_to(f"{module.__name__}.f")
        probe.instruments.update(instruments)
        probe.start()
        try:
            module.f(*args, **kwargs)
        finally:
            probe.stop()
        wanted = (*(bound[name] for name in names), every, keywords)
        for instrument in instruments.values():
            assert instrument.results == [wanted]


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(source=st.sampled_from(KINDS).flatmap(functions))
def test_any_code_is_read_written_and_woven_into(source):
    import test_inside

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of 3.14: a return in finally
        code = compile(source[0], "<test>", "exec")
    for each in test_inside.all_codes(code):
        written = assembly.write(each, assembly.read(each))
        assert test_inside.listing(written) == test_inside.listing(each)
        lines = flow.line_starts(assembly.read(each))
        hook = test_inside.HOOK
        weaving.weave(
            each, before=[hook], after=[hook], ends=[hook], lines=[(n, hook) for n in lines]
        )
