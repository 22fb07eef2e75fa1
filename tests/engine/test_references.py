from __future__ import annotations

import abc
import builtins
import copy
import functools
import inspect
import logging
import math
import pickle
import sys
import threading
import time
import types
import warnings

import pytest
from stage import attached, events, in_thread, probed, timers_ran

from diagnose import attach_to
from diagnose.errors import ProbeError, TargetKindError
from diagnose.instruments import HistogramInstrument, LogInstrument, ProbeTestInstrument

# What has no Python code is probed by replacing references to it.


def test_a_builtin_is_seen_through_every_module_and_class_that_refers_to_it(stage):
    class Circle:
        root = staticmethod(math.sqrt)
        plain = math.sqrt

    class Meta(type):
        pass

    class Made(metaclass=Meta):
        plain = math.sqrt

    class Abstract(abc.ABC):  # noqa: B024
        plain = math.sqrt

    user = stage.module(Circle, Made, Abstract, sqrt=math.sqrt, other=math.floor)
    original = math.sqrt
    holders = [math, user, Circle, Made, Abstract]
    before = [dict(vars(holder)) for holder in holders]
    with probed("math.sqrt", "(args, result)") as seen:
        assert [math.sqrt(4), user.sqrt(9), Circle.plain(16), Made.plain(25)] == [2, 3, 4, 5]
        assert Abstract.plain(36) == 6
        assert user.other is math.floor
    assert [args for args, _ in seen.results] == [(4,), (9,), (16,), (25,), (36,)]
    assert [dict(vars(holder)) for holder in holders] == before
    assert math.sqrt is user.sqrt is Circle.plain is original


def test_a_reference_that_is_imported_meanwhile_is_undone_too(stage):
    original = math.sqrt
    with probed("math.sqrt", "args") as seen:
        late = stage.script("from math import sqrt\nclass C:\n    root = sqrt\nuse = [sqrt]")
        assert (late.sqrt(4), late.C.root(9), late.use[0](16)) == (2, 3, 4)
        assert late.sqrt is not original
    assert late.sqrt is late.C.root is original
    assert seen.results == [(4,), (9,), (16,)]
    # What is kept elsewhere goes on working, unseen.
    assert late.use[0](25) == 5
    assert len(seen.results) == 3


def test_coverage_by_reference_is_said(stage):
    with attached("math.sqrt", ProbeTestInstrument("n", "1")) as probe:
        assert probe.coverage == "reference"
        assert any("no Python code" in text for text in probe.warnings)


def test_there_is_no_end_in_what_has_no_frame():
    original = math.sqrt
    with pytest.raises(ProbeError, match="use 'return'") as raised:
        with probed("math.sqrt", "1", "end"):
            pass
    assert raised.value.code == "end-unavailable"
    assert math.sqrt is original


def test_names_are_the_signatures_parameters_where_there_is_one(stage):
    @functools.lru_cache
    def area(width, height=2, *, unit="m"):
        return width * height

    shop = stage.module(area)
    value = "(width, height, unit, args, kwargs, result)"
    with probed(f"{shop.__name__}.area", value) as seen:
        assert shop.area(3) == 6
        assert shop.area(3, unit="km") == 6
        assert shop.area(height=4, width=1) == 4
    assert seen.results == [
        (3, 2, "m", (3,), {}, 6),
        (3, 2, "km", (3,), {"unit": "km"}, 6),
        (1, 4, "m", (), {"height": 4, "width": 1}, 4),
    ]


def test_events_and_exceptions_are_those_of_a_call():
    with (
        probed("math.sqrt", "args", "call") as calls,
        probed("math.sqrt", "type(exception)") as ends,
    ):
        with pytest.raises(ValueError) as raised:
            math.sqrt(-1)
        names = [entry.name for entry in raised.traceback]
    assert names == ["test_events_and_exceptions_are_those_of_a_call"]
    assert (calls.results, ends.results) == ([(-1,)], [ValueError])


def test_the_frame_of_a_stand_in_is_not_seen(stage):
    class Look:
        def __call__(self):
            return sys._getframe(1).f_code.co_name

    module = stage.module(look=Look())
    with probed(f"{module.__name__}.look", "frame.f_code.co_name") as seen:
        assert module.look() == "test_the_frame_of_a_stand_in_is_not_seen"
    assert seen.results == ["test_the_frame_of_a_stand_in_is_not_seen"]


def test_a_stand_in_looks_like_what_it_stands_for(stage):
    @functools.lru_cache(maxsize=7)
    def cached(x):
        """What it is for."""
        return x

    original = cached
    module = stage.module(cached)
    with probed(f"{module.__name__}.cached"):
        stand_in = module.cached
        assert stand_in is not original
        assert isinstance(stand_in, type(original))
        assert stand_in == original
        assert original == stand_in
        assert hash(stand_in) == hash(original)
        assert repr(stand_in) == repr(original)
        assert (stand_in.__name__, stand_in.__doc__) == ("cached", "What it is for.")
        assert stand_in.cache_parameters()["maxsize"] == 7
        assert callable(stand_in)
        assert inspect.signature(stand_in) == inspect.signature(original)
        assert {original: 1}[stand_in] == 1
        stand_in(3)
        assert stand_in.cache_info().currsize == 1
        stand_in.cache_clear()
        stand_in.note = 5
        assert original.note == 5
        del stand_in.note
        assert not hasattr(original, "note")
        assert copy.copy(stand_in) in (stand_in, original)
        assert copy.deepcopy(stand_in) in (stand_in, original)
    assert module.cached is original


def test_builtins_stay_builtins_for_those_who_ask():
    with probed("math.sqrt"):
        assert inspect.isbuiltin(math.sqrt)
        assert isinstance(math.sqrt, types.BuiltinFunctionType)
        assert math.sqrt.__module__ == "math"
        assert math.sqrt.__self__ is math
        assert math.sqrt.__text_signature__


def test_a_stand_in_is_pickled_by_the_name_of_what_it_stands_for():
    bare = pickle.dumps(math.sqrt)
    with probed("math.sqrt"):
        assert pickle.dumps(math.sqrt) == bare
        assert pickle.loads(bare) is math.sqrt
    assert pickle.loads(bare) is math.sqrt


def test_cached_methods_bind_to_instances(place):
    class Cart:
        factor = 2

        @functools.lru_cache  # noqa: B019
        def total(self, x):
            return x * self.factor

    cart = Cart()
    with probed(f"{place(Cart)}.total", "(type(self).__name__, x, result)") as seen:
        assert cart.total(3) == 6
        assert Cart.total(cart, 4) == 8
        assert cart.total.__self__ is cart
        assert Cart.total.cache_info().currsize == 2
    assert seen.results == [("Cart", 3, 6), ("Cart", 4, 8)]
    assert cart.total(3) == 6


def test_what_does_not_bind_to_instances_does_not_with_a_probe_either(place):
    class Callable:
        def __call__(self, *args):
            return args

    class Holder:
        attribute = Callable()
        partial = functools.partial(max, 5)
        builtin = math.hypot

    def look():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 3.13 warns that partial will bind in 3.14
            seen = [holder.attribute(1), holder.builtin(3, 4)]
            try:
                seen.append(holder.partial(9))
            except TypeError as error:  # 3.14: it got the instance
                seen.append(str(error))
            return seen

    holder = Holder()
    bare = look()
    path = place(Holder)
    with (
        probed(f"{path}.attribute") as a,
        probed(f"{path}.partial") as b,
        probed(f"{path}.builtin") as c,
    ):
        assert look() == bare
    assert [len(each.results) for each in (a, b, c)] == [1, 1, 1]
    assert look() == bare


def test_two_paths_to_the_same_object_share_one_stand_in(stage):
    alias = stage.module(sqrt=math.sqrt)
    original = math.sqrt
    with probed("math.sqrt", "args") as one, probed(f"{alias.__name__}.sqrt", "args") as other:
        assert alias.sqrt is math.sqrt
        math.sqrt(4)
        alias.sqrt(9)
    assert one.results == other.results == [(4,), (9,)]
    assert math.sqrt is alias.sqrt is original


def test_a_path_that_leads_to_a_stand_in_leads_to_what_it_stands_for(stage):
    with probed("math.sqrt", "args") as one:
        late = stage.script("from math import sqrt")
        with probed(f"{late.__name__}.sqrt", "args") as other:
            late.sqrt(4)
    assert one.results == other.results == [(4,)]
    assert late.sqrt is math.sqrt
    assert isinstance(math.sqrt, types.BuiltinFunctionType)
    assert type(math.sqrt) is types.BuiltinFunctionType


def test_stopping_in_any_order_puts_the_original_back(stage):
    original = math.sqrt
    alias = stage.module(sqrt=math.sqrt)
    for order in ((0, 1), (1, 0)):
        probes = [attach_to("math.sqrt"), attach_to(f"{alias.__name__}.sqrt")]
        for probe in probes:
            probe.attach("k", ProbeTestInstrument("n", "args"))
        for number in order:
            assert math.sqrt is not original
            probes[number].detach("k")
        assert math.sqrt is alias.sqrt is original


def test_a_reference_that_somebody_replaced_meanwhile_is_left_alone(stage):
    alias = stage.module(sqrt=math.sqrt)
    with probed("math.sqrt"):
        alias.sqrt = theirs = lambda x: x
    assert alias.sqrt is theirs


def test_modules_that_refuse_to_be_changed_are_left_alone(stage):
    class Hostile(types.ModuleType):
        def __setattr__(self, name, value):
            raise KeyError(name)

    class Meta(type):
        def __setattr__(cls, name, value):
            raise RuntimeError(name)

    class Closed(metaclass=Meta):
        root = math.sqrt

    hostile = stage.module(Closed)
    odd = Hostile("hostile_module")
    odd.__dict__["sqrt"] = original = math.sqrt
    sys.modules["hostile_module"] = odd
    try:
        with probed("math.sqrt", "args") as seen:
            assert (odd.sqrt, hostile.Closed.root) == (original, original)
            math.sqrt(4)
        assert seen.results == [(4,)]
    finally:
        del sys.modules["hostile_module"]
    assert math.sqrt is original


def test_an_owner_that_refuses_is_an_error_and_nothing_changes():
    class Hostile(types.ModuleType):
        def __setattr__(self, name, value):
            raise KeyError(name)

    odd = Hostile("hostile_module")
    odd.__dict__["sqrt"] = original = math.sqrt
    sys.modules["hostile_module"] = odd
    try:
        with pytest.raises(TargetKindError, match="can't be replaced") as raised:
            with probed("hostile_module.sqrt"):
                pass
    finally:
        del sys.modules["hostile_module"]
    assert raised.value.code == "target-immutable"
    assert math.sqrt is odd.sqrt is original


def test_what_can_not_be_called_is_refused(place):
    class Holder:
        part = functools.partialmethod(print, 1)

    with pytest.raises(TargetKindError, match="can't be called as it stands"):
        with probed(f"{place(Holder)}.part"):
            pass


# --- what instruments themselves use ----------------------------------------------------------

USED_BY_THE_ENGINE = [
    "time.perf_counter",
    "time.time",
    "time.monotonic",
    "threading.get_ident",
    "random.random",
    "builtins.next",
    "builtins.print",
    "builtins.repr",
    "builtins.len",
    "builtins.isinstance",
    "builtins.getattr",
    "builtins.sorted",
    "builtins.sum",
    "_thread.allocate_lock",
]


@pytest.mark.parametrize("path", USED_BY_THE_ENGINE)
def test_what_the_engine_uses_can_be_probed_without_probing_itself(path):
    from diagnose.limits import Limits

    module, _, name = path.rpartition(".")
    original = getattr(sys.modules[module], name)
    arguments = {
        "next": (iter([1, 2]),),
        "print": (),
        "repr": (1,),
        "len": ([],),
        "isinstance": (1, int),
        "getattr": (1, "real"),
        "sorted": ([2, 1],),
        "sum": ([1],),
    }.get(name, ())

    def call():
        getattr(sys.modules[module], name)(*arguments)
        return True

    # One after the other: later code is written while the first is in place.
    instruments = [
        HistogramInstrument("n", "elapsed"),
        ProbeTestInstrument("n", "(start, elapsed, str(result))"),
        LogInstrument("n", "repr(args)", limits=Limits(rate=5, sample=0.9, hits=10)),
        HistogramInstrument("n", "elapsed", "return", when="len(args) < 9"),
    ]
    with attached(path, *instruments):
        assert in_thread(call)
    assert getattr(sys.modules[module], name) is original
    assert [each.status.error for each in instruments] == [None] * 4
    instruments[0].flush()
    assert instruments[0].status.hits >= 1
    assert instruments[1].status.hits >= 1


def test_a_builtin_that_is_probed_keeps_working_everywhere():
    original = builtins.len
    with attached("builtins.len", HistogramInstrument("n", "result")):
        assert len([1, 2]) == 2
        assert [*map(len, ["a", "bb"])] == [1, 2]
        assert in_thread(lambda: len("abc")) == 3
        assert sorted(["ccc", "a"], key=len) == ["a", "ccc"]
    assert builtins.len is original


@pytest.mark.parametrize(
    "path",
    [
        "logging.Logger.info",
        "logging.Logger.handle",
        "logging.Handler.acquire",
        "logging.LogRecord.__init__",
        "threading.Event.set",
        "threading.Condition.notify",
        "threading.Condition.wait",
        "threading.Thread.start",
        "reprlib.Repr.repr",
        "copy.deepcopy",
        "inspect.signature",
    ],
)
@pytest.mark.parametrize("value", ["elapsed", "1 // 0", "repr(args)[:10]"])
def test_library_functions_that_instruments_use_can_be_probed(path, value, caplog):
    class Chatty(LogInstrument):
        def emit(self, name, value, tags):
            logging.getLogger("chatty").info("%s %s", name, value)
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()
            copy.deepcopy([value])

    def work():
        logging.getLogger("chatty").info("hello")
        done = threading.Event()
        threading.Thread(target=done.set).start()
        assert done.wait(10)
        copy.deepcopy([1])
        inspect.signature(work)
        return True

    caplog.set_level(logging.INFO, "chatty")
    with attached(path, Chatty("chatty", value), HistogramInstrument("n", "elapsed")):
        assert in_thread(work)
    assert in_thread(work)


@pytest.mark.parametrize(
    "path",
    [
        "clockwork.Clockwork.after",
        "clockwork.Clockwork._next_due",
        "clockwork.Timer.run",
        "reentrancy.Quiet.__enter__",
        "reentrancy.Quiet.__exit__",
        "handlers.disarm",
        "handlers.write",
        "instruments.base.Instrument.evaluate",
        "instruments.base.Instrument.plan",
        "instruments.log.LogInstrument.emit",
        "instruments.metrics._Metric.flush",
        "instruments.metrics.as_number",
        "instruments.metrics.freeze",
        "managers.InstrumentManager.handle_error",
        "probes.FunctionProbe.attach",
        "probes.FunctionProbe.detach",
        "attachments.Attachment.fail",
        "registry.update",
        "sites.CodeSite.update",
        "bytecode.assembly.read",
        "bytecode.assembly.write",
        "bytecode.weaving.weave",
    ],
)
@pytest.mark.parametrize("value", ["elapsed", "1 // 0", "Decimal(len(args))"])
def test_the_engine_itself_can_be_probed(stage, path, value, caplog):
    from decimal import Decimal

    from diagnose.managers import InstrumentManager

    manager = InstrumentManager()
    manager.global_namespace["Decimal"] = Decimal

    def work(x):
        yield x

    shop = stage.module(work)
    code = work.__code__

    def use():
        tags = {"tags": "{'x': x}"}
        instruments = [
            HistogramInstrument("n", "Decimal(x)", mgr=manager, custom=tags),
            HistogramInstrument("n", "x", "end"),
            LogInstrument("n", "x"),
            ProbeTestInstrument("n", "1 // 0"),
        ]
        with attached(f"{shop.__name__}.work", *instruments):
            assert list(shop.work(1)) == [1]
            with pytest.raises(ValueError):
                shop.work(1).throw(ValueError)
        assert instruments[1].status.hits == 1
        return work.__code__ is code

    on_engine = [
        HistogramInstrument("n", value, mgr=manager),
        LogInstrument("n", "repr(args)[:9]", "call"),
        ProbeTestInstrument("n", "1", "end"),
    ]
    with attached(f"diagnose.{path}", *on_engine):
        assert in_thread(use)
    assert in_thread(use)
    timers_ran()


SPECIAL = """
    import dataclasses, enum

    class Meta(type):
        def __call__(cls, *args):
            return super().__call__(*args)

    class Thing(metaclass=Meta):
        def __new__(cls, *args):
            return super().__new__(cls)
        def __init__(self, size=1):
            self.size = size
            self.closed = False
        def __len__(self):
            return self.size
        def __eq__(self, other):
            return self.size == other.size
        def __hash__(self):
            return hash(self.size)
        def __getattr__(self, name):
            if name != "made_up":
                raise AttributeError(name)
            return name
        def __getitem__(self, index):
            return range(self.size)[index]
        def __call__(self, x):
            return x + self.size
        def __enter__(self):
            return self
        def __exit__(self, *error):
            return error[0] is KeyError
        def __iter__(self):
            yield from range(self.size)
        def __repr__(self):
            return f"Thing({self.size})"
        def __bool__(self):
            return True
        @property
        def double(self):
            return self.size * 2
        @double.setter
        def double(self, value):
            self.size = value // 2

    @dataclasses.dataclass(order=True)
    class Point:
        x: int
        y: int = 2

    def look():
        thing = Thing(3)
        seen = [len(thing), thing == Thing(3), {thing: 1}[Thing(3)], thing.made_up, list(thing)]
        seen += [thing[1], thing(4), repr(thing), bool(thing), hasattr(thing, "other"), thing.double]
        thing.double = 10
        with thing as same:
            seen.append((thing is same, thing.size))
            raise KeyError
        try:
            thing[99]
        except IndexError as error:
            seen.append(str(error))
        return seen, Point(1), Point(1) < Point(2), Point(1) == Point(1, 2)
"""


@pytest.mark.parametrize(
    "name",
    [
        f"Thing.__{name}__"
        for name in "new init len eq hash getattr getitem call enter exit iter".split()
    ]
    + ["Thing.__repr__", "Thing.__bool__", "Thing.double", "Thing.double.fset", "Meta.__call__"]
    + ["Point.__init__", "Point.__eq__", "Point.__lt__", "Point.__repr__"],
)
def test_methods_that_python_itself_calls_can_be_probed(stage, name):
    module = stage.script(SPECIAL)
    bare = repr(module.look())
    with events(f"{module.__name__}.{name}") as seen:
        assert repr(module.look()) == bare
    assert set(seen) == {"call", "return", "end"}


def test_clocks_are_read_directly_also_while_they_are_probed():
    with attached("time.perf_counter", ProbeTestInstrument("n", "elapsed")):
        with probed("time.perf_counter", "elapsed") as seen:
            first = time.perf_counter()
            assert time.perf_counter() >= first
        assert len(seen.results) == 2


def test_probing_by_reference_loads_no_lazy_module(tmp_path, monkeypatch):
    import importlib.util

    name = "lazy_for_references"
    (tmp_path / f"{name}.py").write_text("loaded = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    with probed("math.sqrt", "args"):
        assert "loaded" not in object.__getattribute__(module, "__dict__")
    assert module.loaded
