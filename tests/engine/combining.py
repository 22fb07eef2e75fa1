"""One combination of what can come together at a hit: it is set up, run and checked.

:data:`SPACE` has the dimensions; the first value of each is the plainest. :func:`run` takes one
value of each, calls a function bare and probed, and returns what is wrong, in words.
"""

from __future__ import annotations

import asyncio
import datetime
import operator
import sys
import threading
import types
from itertools import chain

from combined import BY_REFERENCE, KINDS, XS, Odd, Quit, Unspeakable, Unusable
from stage import in_thread, outcome, timers_ran

import diagnose
from diagnose import instruments, managers, probes, reentrancy
from diagnose.errors import DiagnoseError
from diagnose.limits import Limits

# --- the space --------------------------------------------------------------------------------


class Emits(instruments.Instrument):
    def emit(self, name, value, tags):
        vars(self).setdefault("got", []).append((name, value, dict(tags)))


class Fires(Emits):
    def fire(self, _globals, _locals):
        self.emit(self.name, self.evaluate(self.value, _globals, _locals), {"n": len(_locals)})


class Evaluates(Emits):
    def evaluate(self, value, _globals, _locals):
        return super().evaluate(value, _globals, _locals)


class Merges(Emits):
    def merge_tags(self, _globals, _locals):
        return {**super().merge_tags(_globals, _locals), "own": 1}


_INSTRUMENTS = {
    "recording": instruments.ProbeTestInstrument,
    "log": instruments.LogInstrument,
    "hist": instruments.HistogramInstrument,
    "incr": instruments.IncrementInstrument,
    "emits": Emits,
    "fires": Fires,
    "evaluates": Evaluates,
    "merges": Merges,
    "calltree": instruments.CallTreeInstrument,
}
_CONDITIONS = {
    "none": None,
    "true": "True",
    "false": "False",
    "raising": "1 // 0",
    "plain": "X == 1",
    "odd": "ODD == 1",
    "odd raising": "ODD < 1",
}
_LIMITS = {
    "none": {},
    "rate": {"rate": 1},
    "sample": {"sample": 0.5},
    "hits": {"hits": 2},
    "fleet_hits": {"fleet_hits": 2},
}
_RAISED = {
    "Exception": lambda: Exception("ours"),
    "BaseException": lambda: Quit("ours"),
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "StopIteration": lambda: StopIteration(5),
    "StopAsyncIteration": StopAsyncIteration,
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
    "NameError": lambda: NameError("name 'y' is not defined", name="y"),
    "Unspeakable": Unspeakable,
    "group": lambda: BaseExceptionGroup("ours", [Quit(), SystemExit()]),
}
_RETURNED = {"True": True, "False": False, "None": None, "unusable": Unusable()}
_MANAGER_HOOKS = ("manager.check_call", "manager.get_tags", "manager.handle_error", "manager.mark")
_INSTRUMENT_HOOKS = "emit fire evaluate merge_tags finish check_call handle_error".split()
_AT_HITS = {"manager.check_call", "manager.get_tags", *_INSTRUMENT_HOOKS} - {"handle_error"}
_CHECKS = {"manager.check_call", "check_call"}
_REENTRIES = ("applies", "starts", "stops", "attaches", "detaches", "changes custom", "calls")

SPACE = {
    "kind": tuple(KINDS),
    "event": ("return", "call", "end", "line:+1"),
    "instrument": tuple(_INSTRUMENTS),
    "value": ("X", "literal", "clock", "all"),
    "when": tuple(_CONDITIONS),
    "limits": tuple(_LIMITS),
    "tags": ("none", "own"),
    "hook": ("none", *_MANAGER_HOOKS, *_INSTRUMENT_HOOKS, "sink"),
    "where": ("class", "instance", "assigned"),
    "does": (
        *(f"returns {each}" for each in _RETURNED),
        *(f"raises {each}" for each in _RAISED),
        "raises from C",
        "raises the call's",
        *_REENTRIES,
    ),
    "budget": ("off", "on", "exceeded"),
    "outcome": ("returns", "raises", "quits"),
    "way": ("attach", "spec"),
    "thread": ("main", "other"),
}


# --- one combination --------------------------------------------------------------------------


class Lines:
    """Where log instruments write."""

    def write(self, text):
        text.encode()


class _World:
    """A manager, an instrument and a hook, as a combination says, on a module's function."""

    def __init__(self, module, combination):
        self.module = module
        vars(self).update(combination)
        name, self.call, self.x_name, self.odd_name = KINDS[self.kind]
        if self.kind == "decorated" and self.event not in ("call", "return"):
            self.x_name, self.odd_name = "1", "ODD"  # which function's variables: not our matter
        self.path = f"{module.__name__}.{name}"
        self.hook_calls = self.raised = self.entered = 0
        self.odd = None
        self.seen_inside = []
        self.uses_default = self.where == "assigned"
        self.assigned = []

    # --- the hook ---

    def hooked(self, *given, **_):
        self.hook_calls += 1
        kind, _, what = self.does.partition(" ")
        if self.does in _REENTRIES:
            self.enter_again()
        elif kind == "returns":
            return _RETURNED[what]
        elif self.does == "raises the call's":
            # Not beside the program, which raises the very same object at the same time.
            is_beside = self.hook in ("manager.handle_error", "handle_error", "sink")
            if self.odd is not None and self.odd.error is not None and not is_beside:
                self.raised += 1
                raise self.odd.error
        else:
            self.raised += 1
            if self.does == "raises from C":
                next(iter(()))
            error = _RAISED[what]()
            raise error
        # What a hook returns that does something else does no harm.
        is_tags = self.hook == "evaluate" and given[0].startswith("{")
        return {} if is_tags or self.hook in ("manager.get_tags", "merge_tags") else 1

    def enter_again(self):
        if self.entered == 3:
            return
        self.entered += 1
        probe = probes.active_probes.get(self.path)
        if self.does == "applies":
            self.manager.apply()
        elif self.does == "calls":
            self.seen_inside.append(
                without_context(outcome(self.call, self.module, 1, Odd(1, self.outcome)))
            )
        elif probe is None:
            return
        elif self.does == "starts":
            probe.start()
        elif self.does == "stops":
            probe.stop()
        elif self.does == "attaches":
            probe.attach("another", instruments.ProbeTestInstrument("another", "0", "call"))
        elif self.does == "detaches":
            for key in list(probe.instruments):
                probe.detach(key)
        elif self.instrument_made is not None:
            self.instrument_made.custom["tags"] = "{'changed': 1}"

    # --- set up ---

    def make_manager(self):
        share = {"off": None, "on": 1.0, "exceeded": 1e-12}[self.budget]
        of_manager, _, name = self.hook.partition(".")
        is_hooked = of_manager == "manager"
        if self.uses_default:
            manager = diagnose.manager
            manager.budget.share = share
            if is_hooked:
                self.assign(manager, name)
        elif is_hooked and self.where == "class":
            own = type("Own", (managers.InstrumentManager,), {name: self.method()})
            manager = own("here", cpu_budget=share)
        else:
            manager = managers.InstrumentManager("here", cpu_budget=share)
            if is_hooked:
                self.assign(manager, name)
        sink = types.SimpleNamespace(histogram=_nothing, counter=_nothing, close=_nothing)
        if self.hook == "sink":
            sink.histogram = sink.counter = self.hooked
        manager.sinks[:] = [sink]
        return manager

    def assign(self, thing, name):
        setattr(thing, name, self.hooked)
        self.assigned.append((thing, name))

    def method(self):
        return lambda _self, *args, **kwargs: self.hooked(*args, **kwargs)

    def instrument_class(self):
        base = _INSTRUMENTS[self.instrument]
        # A machine that does other things too must not take it off.
        own = {"longest_seconds": 60.0, "out": Lines()}
        if self.hook in _INSTRUMENT_HOOKS:
            if self.where == "class":
                own[self.hook] = self.method()
            else:

                def __init__(instrument, *args, **kwargs):
                    base.__init__(instrument, *args, **kwargs)
                    setattr(instrument, self.hook, self.hooked)

                own["__init__"] = __init__
        return type("Own", (base,), own)

    def text(self, expression):
        if expression is None:
            return None
        return expression.replace("X", self.x_name).replace("ODD", self.odd_name)

    def value_text(self):
        is_inside = self.event not in ("call", "return")
        if self.value == "clock":
            return "1" if is_inside else "elapsed" if self.event == "return" else "start"
        if self.value == "all":
            if self.instrument == "calltree":
                return "tree"
            names = "args, kwargs, frame, now, start"
            if self.event == "return":
                names += ", result, exception, elapsed, end"
                names += "" if self.kind in BY_REFERENCE else ", hotspots.worst"
            return "locals()" if is_inside else f"({names})"
        return "1" if self.value == "literal" else "X"

    def set_up(self):
        """Put the instrument on; the code of what refuses that, or None."""
        self.instrument_made = None
        self.manager = self.make_manager()
        made_by, when = self.instrument_class(), self.text(_CONDITIONS[self.when])
        custom = {"tags": self.text("{'t': X}")} if self.tags == "own" else {}
        limits, value = _LIMITS[self.limits], self.text(self.value_text())
        if self.way == "attach":
            try:
                self.instrument_made = made_by(
                    "name", value, self.event, custom=custom, when=when, limits=Limits(**limits),
                    mgr=None if self.uses_default else self.manager,
                )  # fmt: skip
                self.instrument_made.budget = self.manager.budget
                probes.attach_to(self.path).attach("own", self.instrument_made)
            except DiagnoseError as error:
                return error.code
            return None
        made = []

        def make(*args, **kwargs):
            self.instrument_made = made_by(*args, **kwargs)
            made.append(self.instrument_made)
            return self.instrument_made

        self.manager.instrument_classes["own"] = make
        self.manager.specs["spec"] = {
            "target": self.path,
            "instrument": {"type": "own", "name": "name", "value": value, "event": self.event,
                           "custom": custom},
            "limits": limits,
            "lastmodified": datetime.datetime(2026, 1, 1),
            "lifespan": None,
            **({} if when is None else {"when": when}),
        }  # fmt: skip
        self.apply()
        record = self.manager._records["spec"].outcome
        return record.code if record.state.value == "error" else None

    def apply(self):
        try:
            self.manager.apply()
        except BaseException:
            if self.hook != "manager.mark" or not self.raised:
                raise

    # --- calls ---

    def call_all(self):
        got = []
        for x in XS:
            self.odd = Odd(x, self.outcome)
            self.module.ODD = self.odd
            work = outcome, self.call, self.module, x, self.odd
            got.append(in_thread(*work) if self.thread == "other" else work[0](*work[1:]))
            if self.budget == "exceeded":
                self.manager.budget.look()
        return got

    def tear_down(self):
        self.manager.stop()
        probe = probes.active_probes.get(self.path)
        if probe is not None:
            probe.stop()
            for key in list(probe.instruments):
                probe.detach(key)
        for thing, name in self.assigned:
            delattr(thing, name)
        if self.uses_default:
            self.manager.budget.share = managers.CPU_BUDGET
            self.manager.specs.clear()
            self.manager.apply()
            self.manager.sinks.clear()
            self.manager.instrument_classes.pop("own", None)


def _nothing(*_, **__):
    return None


def without_context(seen):
    """What a call did, without the exception that was handled at that time."""
    return seen[0], {**seen[1], "context": None} if seen[0] == "raised" else seen[1]


_bare = {}


def bare(module, kind, how, thread):
    """What a function of the module does where it is not probed."""
    key = module.__name__, kind, how, thread
    if key not in _bare:
        plainest = {name: values[0] for name, values in SPACE.items()}
        world = _World(module, {**plainest, "kind": kind, "outcome": how, "thread": thread})
        _bare[key] = world.call_all()
    return _bare[key]


def functions(module):
    """By kind, the function that is probed, or what stands for it in the module."""
    found = {}
    for kind, (path, *_) in KINDS.items():
        thing = operator.attrgetter(path.partition(".")[0])(module)
        for name in path.split(".")[1:]:
            thing = vars(thing)[name]
        thing = getattr(thing, "fget", None) or getattr(thing, "__func__", None) or thing
        found[kind] = thing
    return found


def watchers():
    """What watches calls in this thread, or in all."""
    monitoring = getattr(sys, "monitoring", None)
    tools = [] if monitoring is None else [monitoring.get_tool(number) for number in range(6)]
    return sys.getprofile(), sys.gettrace(), tools


def run(module, **combination):
    """Run one combination on a module made of :data:`combined.SUBJECTS`; what is wrong, in words."""
    combination = {name: combination.get(name, values[0]) for name, values in SPACE.items()}
    expected = bare(module, combination["kind"], combination["outcome"], combination["thread"])
    world = _World(module, combination)
    before = functions(module)
    codes = {kind: getattr(each, "__code__", None) for kind, each in before.items()}
    watching = watchers()
    wrong = []
    try:
        refused = world.set_up()
        if refused is None:
            got = world.call_all()
            if got != expected:
                pairs = zip(XS, expected, got, strict=True)
                wrong += [f"x={x}: {a} became {b}" for x, a, b in pairs if a != b]
            if world.instrument_made is not None:
                flushed = outcome(world.instrument_made.flush)
                if flushed[0] != "returned" and not (world.hook == "sink" and world.raised):
                    wrong.append(f"flush: {flushed}")
            timers_ran()
            wrong += judged(world)
        elif refused not in refusals(world):
            wrong.append(f"refused: {refused}")
        elif world.call_all() != expected:
            wrong.append("refused, and yet it does something else")
    finally:
        world.tear_down()
    timers_ran()
    if threading.get_ident() in reentrancy.BUSY:
        wrong.append("this thread is busy for good")
        reentrancy.BUSY.clear()
    after = functions(module)
    for kind, thing in after.items():
        if thing is not before[kind] or getattr(thing, "__code__", None) is not codes[kind]:
            wrong.append(f"{kind} is not what it was")
    if probes.active_probes:
        wrong.append(f"probes are left: {list(probes.active_probes)}")
        probes.active_probes.clear()
    if watchers() != watching:
        wrong.append(f"what watches this thread: {watchers()}")
        sys.setprofile(None)
    return wrong


# --- what is expected -------------------------------------------------------------------------


def refusals(world):
    """With which codes such a combination may be refused."""
    codes = set()
    if world.instrument == "calltree":
        if world.event != "return":
            codes |= {"unknown-event"}
        if world.kind in BY_REFERENCE:
            codes |= {"calltree-unavailable"}
    if world.kind in BY_REFERENCE and world.event not in ("call", "return"):
        codes |= {"end-unavailable"}
    return codes


def judged(world):
    """What does not fit, of the instrument's state and hits."""
    status = world.instrument_made.status
    state, code, hits = status.state, status.code, status.hits
    wrong = []
    if code == "defect":
        wrong.append(f"defect: {status.error}")
    if state not in {"installed", "emitting", "error", "done", "suspended", "stopped"}:
        wrong.append(f"state {state}")
    has_code = state in {"error", "suspended"}
    if has_code != (code is not None) and state != "stopped":
        wrong.append(f"state {state} with code {code}")
    if world.seen_inside and any(
        each != without_context(bare(world.module, world.kind, world.outcome, world.thread)[1])
        for each in world.seen_inside
    ):
        wrong.append(f"a call inside the hook: {world.seen_inside}")
    must, may = errors(world)
    if must and state != "error":
        wrong.append(f"state {state} in place of error")
    if state == "error" and not (must or may):
        wrong.append(f"no reason for {status.error}")
    least, most = expected_hits(world, failed=state == "error")
    if not least <= hits <= most:
        wrong.append(f"{hits} hits in place of {least} to {most} ({dict(status.suppressed)})")
    is_each = world.hook in ("finish", "emit") and world.does.startswith("returns")
    if is_each and state != "error" and world.hook_calls != hits:
        wrong.append(f"{world.hook} was called {world.hook_calls} times for {hits} hits")
    if state == "error" and code == "runtime-error" and world.hook.endswith("handle_error"):
        if world.hook_calls != 1:
            wrong.append(f"handle_error was called {world.hook_calls} times")
    return wrong


def errors(world):
    """Whether the instrument has to be in error, and whether it may be."""
    raised = bool(world.raised) and world.hook in _AT_HITS
    may = raised
    if world.when in ("raising", "odd raising"):
        may = True
    if world.value == "all" and world.instrument in ("hist", "incr"):
        may = True
    if world.does.startswith("returns") and world.hook_calls:
        may |= world.hook in ("manager.get_tags", "evaluate", "merge_tags")
        may |= world.hook in _CHECKS and world.does == "returns unusable"
    return raised, may


def expected_hits(world, *, failed):
    """How many hits there are at least and at most."""
    frames = (
        list(chain.from_iterable(range(x + 1) for x in XS))
        if (world.kind == "recursive")
        else list(XS)
    )
    if world.when in ("false", "raising", "odd raising"):
        return 0, 0
    if world.when == "plain" and world.x_name != "1":
        frames = [x for x in frames if x == 1]
    most = len(frames)
    if world.hook in _CHECKS and world.does in ("returns False", "returns None"):
        return 0, 0
    if world.limits in ("hits", "fleet_hits"):
        most = min(most, 2)
    least = most
    if world.hook == "manager.mark" and world.does == "calls":
        most += len(world.seen_inside) * len(frames)  # no hit is being served there
    if failed or world.budget == "exceeded" or world.limits == "sample":
        least = 0
    elif world.limits == "rate" or world.instrument == "calltree":
        least = min(least, 1)
    if world.hook_calls and world.does in ("stops", "detaches", "changes custom", "applies"):
        least = 0
    return least, most
