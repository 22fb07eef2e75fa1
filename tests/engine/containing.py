"""Functions whose woven code is looked at, and in which calls of ours are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import dis
import functools
import itertools
import operator
import sys
import types
from collections import Counter

from stage import outcome, timers_ran

from diagnose import probes
from diagnose.bytecode import assembly, containment, flow, weaving
from diagnose.instruments import CallTreeInstrument, HistogramInstrument, ProbeTestInstrument
from diagnose.limits import Limits

SUBJECTS = """
    import types

    @types.coroutine
    def pause(value):
        return (yield value)

    def plain(x, *rest, key=7, **more):
        y = [x, *rest]
        for each in y:
            try:
                y.append(10 // each)
            except ZeroDivisionError as error:
                y.append(str(error))
                break
            if x == 2:
                raise ValueError(y)
            if len(y) > 3:
                return y, key, sorted(locals())
        x = key
        return x, more, sorted(locals())

    def long(x):
        y = 0
        for each in range(4200):
            y += each
        if x == 2:
            raise LookupError(y)
        return y, sorted(locals())

    def make(base):
        def closure(x, y=2):
            z = lambda: x * base * y
            if x == 2:
                raise KeyError(z())
            y = 5
            return z(), sorted(locals())

        return closure

    closure = make(3)

    class C:
        def method(self, x):
            y = x
            with suppressed:
                y = 10 // x
                return super().__eq__(y), sorted(locals())
            return "suppressed", y

    import contextlib
    suppressed = contextlib.suppress(ZeroDivisionError)

    def numbers(x, *rest):
        y = 0
        try:
            y = yield x
            y = yield from (y, x)
            if x == 2:
                raise StopIteration(x)
        finally:
            rest += (y,)
        return rest, sorted(locals())

    async def work(x, key=1):
        y = await pause(x)
        async with manager():
            x = await pause(y)
            if x == 2:
                raise GeneratorExit
        return x, sorted(locals())

    class manager:
        async def __aenter__(self):
            return await pause("in")

        async def __aexit__(self, *given):
            return await pause("out")

    async def ticks(x):
        y = 1
        for y in range(x):
            yield y
            await pause(y)
        if x == 2:
            raise StopAsyncIteration
        yield sorted(locals())
"""


# --- what is done with a function ----------------------------------------------------------------


def call_plain(m):
    return [
        outcome(m.plain, 1),
        outcome(m.plain, 1, 1, 3, a=1),
        outcome(m.plain, 0, key=2),
        outcome(m.plain, 2),
        outcome(m.plain),
    ]


def call_long(m):
    return [outcome(m.long, 1), outcome(m.long, 2)]


def call_closure(m):
    return [outcome(m.closure, 1), outcome(m.closure, 2, 3), outcome(m.closure, 1, y=0)]


def call_method(m):
    return [outcome(m.C().method, x) for x in (1, 0)] + [outcome(m.C().method, "1")]


def steps(thing, *todo):
    """What a generator or coroutine does, step by step."""
    seen = []
    for name, argument in todo:
        if name == "close":
            seen.append(outcome(thing.close))
        else:
            seen.append(outcome(getattr(thing, name), argument))
    seen.append(outcome(thing.close))
    return seen


def call_generator(m):
    return [
        steps(m.numbers(1, 8), ("send", None), ("send", 4), ("send", 5), ("send", 6), ("send", 7)),
        steps(m.numbers(2), ("send", None), ("send", None), ("send", None), ("send", None)),
        steps(m.numbers(1), ("send", None), ("throw", KeyError(1)), ("send", None)),
        steps(m.numbers(1), ("throw", StopIteration(1))),
        steps(m.numbers(1), ("send", None), ("close", None), ("send", None)),
    ]


def call_coroutine(m):
    sent = [("send", None), ("send", 1), ("send", None)]
    return [
        steps(m.work(1), *sent, ("send", 3), ("send", None)),
        steps(m.work(1), *sent, ("send", 2), ("send", None)),
        steps(m.work(1), *sent, ("throw", KeyError(1)), ("send", None)),
        steps(m.work(1), ("send", None), ("close", None)),
    ]


def call_asynchronous_generator(m):
    async def all_of(x):
        return [each async for each in m.ticks(x)]

    async def half():
        ticks = m.ticks(3)
        seen = [await anext(ticks)]
        with contextlib.suppress(KeyError):
            await ticks.athrow(KeyError(1))
        return seen

    async def closed():
        ticks = m.ticks(3)
        await anext(ticks)
        await ticks.aclose()

    sent = [("send", None)] * 5
    return [steps(each, *sent) for each in (all_of(1), all_of(2), half(), closed())]


CALLS = {
    "plain": call_plain,
    "long": call_long,
    "closure": call_closure,
    "C.method": call_method,
    "numbers": call_generator,
    "work": call_coroutine,
    "ticks": call_asynchronous_generator,
}
LINES = {"plain": 3, "long": 1, "closure": 2, "C.method": 3, "numbers": 4, "work": 2, "ticks": 3}


# --- what is on it -------------------------------------------------------------------------------


class Checked(ProbeTestInstrument):
    def check_call(self, probe, /, *args, **kwargs):
        return True


class Fired(ProbeTestInstrument):
    def fire(self, _globals, _locals):
        self.emit(self.name, len(_locals), {})


class Number(HistogramInstrument):
    longest_seconds = 60.0  # a machine that does other things too must not take it off


class Tree(CallTreeInstrument):
    longest_seconds = 60.0
    out = types.SimpleNamespace(write=len)


GIVEN = "(args, kwargs, start, now, frame is None)"
ALL = f"({GIVEN}, result, exception, elapsed, end)"

# By name: a class, its value, event and more. X is the first parameter.
SETS = {
    "call": [(ProbeTestInstrument, GIVEN, "call"), (Number, "1", "call")],
    "call, checked": [(Checked, "1", "call"), (Fired, "1", "call")],
    "return": [(ProbeTestInstrument, ALL, "return")],
    "return, checked": [(Checked, "elapsed", "return"), (Fired, "frame", "return")],
    "return, alone": [(Number, "elapsed", "return")],
    "return, sifted": [(ProbeTestInstrument, "elapsed", "return", {"when": "X == 1"})],
    "return, several": [
        (ProbeTestInstrument, "elapsed", "return", {"when": "X == 1"}),
        (Number, "elapsed", "return"),
    ],
    "end": [(ProbeTestInstrument, "X", "end"), (Number, "1", "end")],
    "line": [(ProbeTestInstrument, "X", "line"), (Number, "1", "line")],
    "hotspots": [(ProbeTestInstrument, "hotspots.worst", "return")],
    "span": [(Tree, "tree", "return", {"limits": Limits(rate=1e9)})],
    "all": [
        (Checked, GIVEN, "call"),
        (ProbeTestInstrument, f"(hotspots, {ALL})", "return", {"when": "X == 1"}),
        (Number, "elapsed", "return"),
        (ProbeTestInstrument, "X", "end"),
        (ProbeTestInstrument, "X", "line"),
    ],
}


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("no text")

    __repr__ = __str__


class Own(BaseException):
    pass


# None: what a C function raises, which was called in a wrong way.
ERRORS = [
    NameError, MemoryError, RecursionError, KeyError, Unspeakable, StopIteration, GeneratorExit,
    Own, asyncio.CancelledError, KeyboardInterrupt, SystemExit, StopAsyncIteration, None,
]  # fmt: skip
NO_ROOM = (MemoryError, RecursionError)


# --- the places where woven code calls ---------------------------------------------------------


class Site:
    """A call in woven code that is not the function's own.

    Attributes:
        number: of the instruction that calls, in the listing.
        loads: of the one that pushes what is called.
        function: what is called.
    """

    def __init__(self, number, loads, function):
        self.number, self.loads, self.function = number, loads, function
        kind = getattr(function, "__name__", type(function).__name__)
        self.is_judge = kind in {"drop", "judge", "_Judge"}
        self.name = "judge" if self.is_judge else kind


def sites(listing, woven, own):
    """All of them that can be reached."""
    depth = flow.depths(listing)
    call, load = dis.opmap["CALL"], dis.opmap["LOAD_CONST"]
    found = []
    for number, one in enumerate(listing):
        if one.opcode != call or id(one) not in depth:
            continue
        # On 3.11 the instruction before takes the arguments.
        at = number - ("PRECALL" in dis.opmap)
        begin = depth[id(listing[at])] - one.argument - 2
        while depth.get(id(listing[at])) != begin:
            at -= 1
        loads = at + (listing[at].opcode == dis.opmap["PUSH_NULL"])  # first until 3.12
        pushes = listing[loads]
        if pushes.opcode == load and pushes.argument >= len(own.co_consts):
            found.append(Site(number, loads, woven.co_consts[pushes.argument]))
    return found


def replaced(woven, listing, replacements):
    """Code like ``woven``, in which some sites call something else."""
    constants = []
    for site, function in replacements:
        one = listing[site.loads]
        one.argument = len(woven.co_consts) + len(constants)
        one.prefixes = (one.argument.bit_length() - 1) >> 3
        constants.append(function)
    return assembly.write(woven, listing, constants=constants)


class Injector:
    """Stands for ``weave``: what it makes last has calls replaced in it.

    Args:
        choose: called with the sites, it says what stands for which.
    """

    weave = staticmethod(weaving.weave)

    def __init__(self, choose=lambda sites: ()):
        self.choose = choose
        self.waits = True
        self.sites = []
        self.owners = {}

    def __call__(self, code, **given):
        if self.waits:
            return code.replace()
        woven = self.weave(code, **given)
        listing = assembly.read(woven)
        self.sites = sites(listing, woven, code)
        hooks = [*given["before"], *given["after"], *given["ends"]]
        for hook in [*hooks, *(hook for _, hook in given["lines"])]:
            sift, quick = hook.sift or (None,), hook.quick or (None,)
            for function in (hook.handler, hook.prelude, sift[0], quick[0]):
                if function is not None:
                    self.owners[id(function)] = hook.judge.attachment.instrument
        choose, self.choose = self.choose, lambda sites: ()
        return replaced(woven, listing, choose(self.sites))


@contextlib.contextmanager
def woven_by(injector, module, name, instruments):
    """Instruments on a function, whose code the injector makes once all are there."""
    path = f"{module.__name__}.{name}"
    probe = probes.attach_to(path)
    before, weaving.weave = weaving.weave, injector
    try:
        *first, last = instruments
        injector.waits = True
        for number, instrument in enumerate(first):
            probe.attach(str(number), instrument)
        injector.waits = False
        probe.attach("last", last)
        yield
    finally:
        weaving.weave = before
        probe.stop()
        for key in list(probe.instruments):
            probe.detach(key)


def parameter(module, name):
    """The first parameter of a function, or the one behind ``self``."""
    code = operator.attrgetter(name)(module).__code__
    return next(each for each in code.co_varnames if each != "self")


def made(module, kind, which):
    """The instruments of a set, and one more on each event."""
    line, x = f"line:+{LINES[kind]}", parameter(module, kind)
    found = [
        cls("n", value.replace("X", x), line if event == "line" else event,
            **{**dict(*more), **({"when": f"{x} == 1"} if more and "when" in more[0] else {})})
        for cls, value, event, *more in SETS[which]
    ]  # fmt: skip
    return [*found, *others(line)]


def others(line):
    return [ProbeTestInstrument("other", "1", event) for event in ("call", "return", "end", line)]


# --- with calls replaced ---------------------------------------------------------------------------


@functools.cache
def expected(module, kind):
    """What the bare function does."""
    return CALLS[kind](module)


@functools.cache
def hits_of(module, kind):
    """How many hits each of the others has where nothing raises."""
    instruments = others(f"line:+{LINES[kind]}")
    with woven_by(Injector(), module, kind, instruments):
        CALLS[kind](module)
        return [each.status.hits for each in instruments]


@functools.cache
def counted(module, kind, which):
    """The sites of a case; and the numbers of those where something is called."""
    called = set()

    def counting(number, function):
        def count(*args):
            called.add(number)
            return function(*args)

        return count

    def choose(found):
        return [(site, counting(number, site.function)) for number, site in enumerate(found)]

    injector = Injector(choose)
    with woven_by(injector, module, kind, made(module, kind, which)):
        found = injector.sites
        CALLS[kind](module)
    return found, sorted(called)


def raising(error, calls=None):
    """A function that raises in place of another."""

    def make(function):
        def ours(*args):
            if calls is not None:
                calls.append(function)
            raise error

        return ours

    return make


def in_c(function):
    """A function without Python code that raises in place of another: it has no such argument."""
    return functools.partial(len, function, function)


def run(module, kind, which, site, instead, judge=None):
    """Let a site call ``instead`` (and judges be ``judge``); what became of the instruments."""
    at = []

    def choose(found):
        at.append(found[site])
        judges = [(each, judge(each.function)) for each in found if judge and each.is_judge]
        return [(at[0], instead(at[0].function)), *judges]

    injector, instruments = Injector(choose), made(module, kind, which)
    with woven_by(injector, module, kind, instruments):
        got = CALLS[kind](module)
        timers_ran()
        statuses = [each.status for each in instruments]
        states = [(status.state, status.code, status.hits) for status in statuses]
    owner = injector.owners.get(id(at[0].function))
    return got, dict(zip(instruments, states, strict=True)), owner


def differences(bare, got):
    return [f"{a} became {b}" for a, b in zip(bare, got, strict=True) if a != b]


# --- what the code looks like ----------------------------------------------------------------------


def uncontained(woven, own):
    """The calls of ours outside of a handler that contains; and how many there are."""
    listing = assembly.read(woven)
    found = sites(listing, woven, own)
    judges = {id(each.function) for each in found if each.is_judge}
    known = {id(containment._NO_ROOM), id(weaving._no_caller), *judges}
    following = {id(one): after for one, after in itertools.pairwise(listing)}

    def contains(handler):
        """Whether what is raised gets to a judge, or to where only want of room is dropped."""
        if handler is None:
            return False
        begin = [handler.target, following[id(handler.target)]]
        loads = [one for one in begin if one.opcode == dis.opmap["LOAD_CONST"]]
        return bool(loads) and id(woven.co_consts[loads[0].argument]) in known

    # What is raised as a frame is entered goes where that of the instruction before goes (3.13).
    more = 0 if sys.version_info[:2] == (3, 12) else 1
    return found, [
        site
        for site in found
        if not all(contains(one.handler) for one in listing[site.number - more : site.number + 1])
    ]


def lineless(code):
    """How many instructions there are of each kind that are on no line."""
    return Counter(dis.opname[one.opcode] for one in assembly.read(code) if one.location[0] is None)
