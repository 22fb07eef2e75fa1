# ruff: noqa: E721, FURB171, PLE0304, PLR0124, SLOT002, UP031, F841 - it does what nobody should
"""Each operation of the data model on a callable and on its stand-in: the same comes out."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import copy
import dataclasses
import faulthandler  # noqa: F401 - looked up by its name
import functools
import gc
import inspect
import io
import json
import math
import operator
import os
import pickle
import re
import sys
import types
import typing
import unittest.mock
import warnings
import weakref

import pytest
from stage import probed, timers_ran

from diagnose import attach_to, standins
from diagnose.errors import TargetKindError
from diagnose.instruments import ProbeTestInstrument

# --- what is stood in for ---------------------------------------------------------------------


class Recording:
    """Has every special method, and says which one ran."""

    rows = (1, 2, 3)

    def __call__(self, *args, **kwargs):
        return ("call", args, kwargs)

    def __reduce_ex__(self, protocol):
        return (Recording, ())


def _named(name):
    def method(self, *args):
        return (name, *(each if each is not self else "self" for each in args))

    return method


for _name in """
    add and floordiv lshift matmul mod mul or pow rshift sub truediv xor divmod
    radd rand rfloordiv rlshift rmatmul rmod rmul ror rpow rrshift rsub rtruediv rxor rdivmod
    iadd ilshift
    neg invert abs round trunc floor ceil getitem
    lt le gt ge missing
""".split():
    setattr(Recording, f"__{_name}__", _named(_name))
for _name, _value in {
    "index": 3, "int": 4, "float": 0.5, "complex": 1j, "len": 3, "bool": False, "str": "text",
    "repr": "shown", "format": "formatted", "bytes": b"b", "fspath": "/path", "length_hint": 4,
    "sizeof": 99, "contains": True, "instancecheck": True, "subclasscheck": True, "hash": 7,
    "setitem": None, "delitem": None, "exit": True, "dir": ["a", "b"],
}.items():  # fmt: skip
    setattr(Recording, f"__{_name}__", lambda self, *_, _value=_value: _value)
for _name in ("pos", "enter", "isub", "imul", "copy", "deepcopy"):
    setattr(Recording, f"__{_name}__", lambda self, *_: self)
for _name in ("iter", "reversed"):
    setattr(Recording, f"__{_name}__", lambda self: iter(self.rows))


class Iterator:
    def __init__(self):
        self.left = 2

    def __call__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise StopIteration
        return self.left


class Awaitable:
    def __call__(self, x=1):
        return x

    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return "awaited"

    async def __aenter__(self):
        return "entered"

    async def __aexit__(self, *error):
        return True

    def __aiter__(self):
        self.left = 2
        return self

    async def __anext__(self):
        self.left -= 1
        if self.left < 0:
            raise StopAsyncIteration
        return self.left


class Unhashable:
    __hash__ = None
    __iter__ = None
    __len__ = None
    __contains__ = None

    def __call__(self):
        return 1

    def __eq__(self, other):
        return type(other) == type(self)


class Strict:
    """Knows its own class alone."""

    __slots__ = ("size",)

    def __init__(self, size=2):
        self.size = size

    def __call__(self, by=1):
        return self.size * by

    def __add__(self, other):
        return NotImplemented if type(other) is not Strict else Strict(self.size + other.size)

    def __lt__(self, other):
        if type(other) is not Strict:
            raise TypeError
        return self.size < other.size

    def __eq__(self, other):
        return type(other) is Strict and self.size == other.size

    def __hash__(self):
        return hash(self.size)

    def __repr__(self):
        return f"Strict({self.size})"


@dataclasses.dataclass(order=True)
class Data:
    x: int = 1
    y: str = "y"

    def __call__(self, *, z):
        return self.x + z


class Dynamic:
    """Attributes that are made, and special methods by other descriptors than functions."""

    kind = property(lambda self: "kind")
    __len__ = functools.partialmethod(lambda self, size: size, 5)
    __str__ = property(lambda self: lambda: "by a property")

    def __call__(self):
        return 1

    @staticmethod
    def __index__():
        return 8

    def __getattr__(self, name):
        if name.startswith("__") or name == "missing":
            raise AttributeError(name)
        return f"made {name}"

    def __setattr__(self, name, value):
        if name == "refused":
            raise ValueError(name)
        object.__setattr__(self, name, value)


class Raising:
    def __call__(self):
        raise KeyError("call")

    def __getattribute__(self, name):
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        raise LookupError(name)

    def __len__(self):
        raise ZeroDivisionError

    def __bool__(self):
        return 3

    def __enter__(self):
        raise OSError

    def __exit__(self, *error):
        return False

    def __repr__(self):
        raise RuntimeError


class Descriptor:
    def __call__(self):
        return 1

    def __get__(self, instance, owner=None):
        return (type(instance).__name__, owner.__name__)

    def __set__(self, instance, value):
        instance.__dict__["given"] = value

    def __set_name__(self, owner, name):
        owner.named = name


class Sequence:
    def __call__(self):
        return 1

    def __getitem__(self, index):
        return [10, 20, 30][index]


class ListLike(list):
    def __call__(self, x=0):
        return x


class Buffer(bytearray):
    def __call__(self):
        return 1


class Mapped(typing.NamedTuple("Mapped", [("x", int)])):
    def __call__(self):
        return self.x


class Manager(contextlib.ContextDecorator):
    def __call__(self, function=None):
        return self if function is None else super().__call__(function)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return error[0] is KeyError


@functools.lru_cache(maxsize=3)
def _cached(x=0):
    return x


def _referent():
    return 1


MADE = [
    Recording, Iterator, Awaitable, Unhashable, Strict, Data, Dynamic, Raising, Descriptor, Sequence,
    ListLike, Buffer, Manager,
]  # fmt: skip
CALLABLES = {
    **{cls.__name__: cls for cls in MADE},
    "Mapped": lambda: Mapped(3),
    "builtin function": lambda: math.sqrt,
    "module's function": lambda: operator.add,
    "bound builtin method": lambda: [1, 2].append,
    "classmethod of C": lambda: dict.fromkeys,
    "method descriptor": lambda: str.upper,
    "slot wrapper": lambda: int.__add__,
    "method wrapper": lambda: (1).__add__,
    "lru_cache": lambda: _cached,
    "partial": lambda: functools.partial(max, 5),
    "itemgetter": lambda: operator.itemgetter(1),
    "attrgetter": lambda: operator.attrgetter("real"),
    "methodcaller": lambda: operator.methodcaller("upper"),
    "generic alias": lambda: list[int],
    "typing alias": lambda: typing.List[int],  # noqa: UP006
    "weak reference": lambda: weakref.ref(_referent),
    "method of a C function": lambda: types.MethodType(max, 5),
    "MagicMock": unittest.mock.MagicMock,
    "Mock": unittest.mock.Mock,
    "cached wrapper of wrapt": lambda: pytest.importorskip("wrapt").FunctionWrapper(
        _referent, lambda wrapped, instance, args, kwargs: wrapped()
    ),
}

# --- what is done with it ---------------------------------------------------------------------


def _with(thing):
    with thing as entered:
        if entered is thing:
            raise KeyError
    return "left"


def _exit_stack(thing):
    with contextlib.ExitStack() as stack:
        return stack.enter_context(thing)


def _awaited(thing):
    async def run():
        return await thing

    return asyncio.run(run())


async def _all(thing):
    return [each async for each in thing]


async def _async_with(thing):
    async with thing as entered:
        raise KeyError(entered)
    return "left"


def _set_item(thing):
    thing[0] = 9
    return thing


def _delete_item(thing):
    del thing[0]
    return thing


def _set_attribute(thing):
    thing.anything = 5
    return thing.anything


def _delete_attribute(thing):
    thing.anything = 5
    del thing.anything
    return hasattr(thing, "anything")


def _refused(thing):
    thing.refused = 1


def _as_descriptor(thing):
    cls = type("Holder", (), {"attribute": thing})
    holder = cls()
    first = holder.attribute
    holder.attribute = 3
    return [first, vars(holder), vars(cls).get("named"), cls.attribute]


def _matched(thing):
    match thing:
        case Data(x=x):
            return x
        case [first, *_]:
            return first
        case {"a": a}:
            return a
        case Strict():
            return "strict"
        case list():
            return "list"
    return "nothing"


OPERANDS = {
    "itself": lambda thing: thing,
    "a number": lambda _: 3,
    "a text": lambda _: "a",
    "a list": lambda _: [1],
    "a bytes": lambda _: b"x",
    "its type's": lambda _: Strict(5),
    "nothing": lambda _: None,
    "a set": lambda _: {1},
}
BINARY = [
    operator.add, operator.sub, operator.mul, operator.matmul, operator.truediv, operator.floordiv,
    operator.mod, divmod, pow, operator.lshift, operator.rshift, operator.and_, operator.or_,
    operator.xor, operator.iadd, operator.isub, operator.imul, operator.ilshift, operator.ior,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
    operator.contains, operator.getitem, operator.concat, isinstance, issubclass,
]  # fmt: skip
OPERATIONS = {
    "len": len,
    "list": list,
    "tuple": tuple,
    "iter": lambda f: list(iter(f)),
    "next": lambda f: next(f),
    "sum": sum,
    "sorted": sorted,
    "reversed": lambda f: list(reversed(f)),
    "unpacked": lambda f: [*f],
    "unpacked mapping": lambda f: {**f},
    "bool": bool,
    "if": lambda f: 1 if f else 2,
    "int": int,
    "float": float,
    "complex": complex,
    "index": operator.index,
    "as an index": lambda f: "abcdefghij"[f],
    "range": lambda f: range(f),
    "str": str,
    "repr": repr,
    "ascii": ascii,
    "format": format,
    "format with": lambda f: format(f, "10"),
    "f-string": lambda f: f"{f}|{f!r}",
    "%": lambda f: "%s %d" % (f, f),
    "bytes": bytes,
    "memoryview": lambda f: bytes(memoryview(f)),
    "b.join": lambda f: b"".join([f]),
    "hash": lambda f: hash(f) == hash(f),
    "in a dict": lambda f: {f: 1}[f],
    "in a set": lambda f: f in {f},
    "in a list": lambda f: [f].index(f),
    "abs": abs,
    "neg": operator.neg,
    "pos": operator.pos,
    "invert": operator.invert,
    "round": round,
    "round to": lambda f: round(f, 1),
    "trunc": math.trunc,
    "floor": math.floor,
    "ceil": math.ceil,
    "pow of three": lambda f: pow(f, 2, 3),
    "dir": lambda f: sorted(dir(f)),
    "vars": lambda f: dict(vars(f)),
    "fspath": os.fspath,
    "length hint": operator.length_hint,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy of a list": lambda f: copy.deepcopy([f, f]),
    "replace": lambda f: getattr(copy, "replace", dataclasses.replace)(f),
    "pickle": lambda f: pickle.loads(pickle.dumps(f)),
    "reduce": lambda f: f.__reduce_ex__(4),
    "json": json.dumps,
    "weakref": lambda f: weakref.ref(f)() is f,
    "weak key": lambda f: weakref.WeakKeyDictionary({f: 1})[f],
    "finalize": lambda f: weakref.finalize(f, print).detach() is not None,
    "call": lambda f: f(),
    "call with": lambda f: f(4),
    "call with keywords": lambda f: f(z=4),
    "call with many": lambda f: f(1, "2", [3]),
    "map": lambda f: list(map(f, [4.0, 9.0])),
    "as a method": lambda f: types.MethodType(f, 3)(),
    "partial": lambda f: functools.partial(f, 4)(),
    "with": _with,
    "ExitStack": _exit_stack,
    "await": _awaited,
    "async for": lambda f: asyncio.run(_all(f)),
    "async with": lambda f: asyncio.run(_async_with(f)),
    "get item": lambda f: f[0],
    "slice": lambda f: f[0:2],
    "set item": _set_item,
    "delete item": _delete_item,
    "set attribute": _set_attribute,
    "delete attribute": _delete_attribute,
    "refused attribute": _refused,
    "missing attribute": lambda f: f.missing,
    "any attribute": lambda f: f.kind,
    "wrapped": lambda f: f.__wrapped__,
    "as a descriptor": _as_descriptor,
    "match": _matched,
    "class": lambda f: f.__class__,
    "type's name": lambda f: (type(f).__name__, type(f).__qualname__, type(f).__module__),
    "type's text": lambda f: repr(type(f)),
    "type's attribute": lambda f: type(f).__eq__ is not None and type(f).__doc__,
    "is of its type": lambda f: isinstance(f, type(f)) and issubclass(f.__class__, type(f)),
    "equals its type": lambda f: (type(f) == f.__class__, f.__class__ == type(f)),
    "type as key": lambda f: {f.__class__: 1}[type(f)] + {type(f): 1}[f.__class__],
    "others are of its type": lambda f: isinstance(copy.copy(f), type(f)),
    "a list is": lambda f: isinstance([], type(f)),
    "isinstance of": lambda f: isinstance(3, f),
    "is itself": lambda f: (f is f, f == f, not f != f),
    "callable": callable,
    "signature": lambda f: str(inspect.signature(f)),
    "doc": inspect.getdoc,
    "inspected": lambda f: [
        look(f)
        for name, look in vars(inspect).items()
        if name.startswith("is") and inspect.isfunction(look) and name != "iskeyword"
    ],
    "abstract classes": lambda f: [
        name
        for name, cls in vars(__import__("collections.abc").abc).items()
        if isinstance(cls, type) and isinstance(f, cls)
    ],
    "singledispatch": lambda f: functools.singledispatch(lambda x: type(x).__name__)(f),
    "print": lambda f: print(f, file=io.StringIO()),
    "raise": lambda f: operator.methodcaller("throw", f)(each for each in [1]),
    **{
        f"{function.__name__} and {name}": lambda f, function=function, make=make: function(
            f, make(f)
        )
        for function in BINARY
        for name, make in OPERANDS.items()
    },
    **{
        f"{function.__name__} of {name}": lambda f, function=function, make=make: function(
            make(f), f
        )
        for function in BINARY
        for name, make in OPERANDS.items()
    },
}

# What is known to differ; see standins.py.
KNOWN = {
    # C code that looks into an object of its own kind, and Python code that asks for `type(x) is T`.
    ("ListLike", "concat of a list"),
    ("ListLike", "json"),
    ("Mapped", "json"),
    ("Mapped", "match"),
    ("Mapped", "mod of a text"),
    ("Mapped", "mod of a bytes"),
    ("Buffer", "mod of a bytes"),
    ("Strict", "lt of its type's"),
    # Found again by its name, in a class that can't be changed.
    *((name, "pickle") for name in ("method descriptor", "slot wrapper", "typing alias")),
    ("typing alias", "copy"),
    ("typing alias", "deepcopy"),
    ("typing alias", "deepcopy of a list"),
}
if sys.version_info < (3, 12):
    # No buffer can be given by Python code there.
    by_buffer = "int, float, memoryview, b.join, contains of a bytes, concat of a bytes"
    KNOWN |= {("Buffer", name) for name in by_buffer.split(", ")}
    without = ("itemgetter", "attrgetter", "methodcaller", "weak reference", "generic alias")
    KNOWN |= {(name, "signature") for name in without}
# Pickled by the name under which it is found: the stand-in has to be there too.
BY_NAME = {"builtin function", "module's function", "lru_cache"}


def outcome(operation, thing, found):
    def seen(value):
        if value is thing or value is found:
            return "itself" if value is thing else "what it stands for"
        if type(value) in {list, tuple}:
            return [type(value).__name__, *map(seen, value)]
        return type(value).__name__, re.sub(r"0x[0-9a-f]+|id='\d+'|mock/\d+", "0x", repr(value))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = operation(thing)
        except BaseException as error:
            return type(error)
        try:
            return seen(result)
        except Exception as error:
            return type(error)


@pytest.mark.parametrize("name", CALLABLES)
def test_every_operation_gives_what_it_gives_without_a_probe(name):
    wrong = {}
    for label, operation in OPERATIONS.items():
        if label == "pickle" and name in BY_NAME:
            continue
        found = CALLABLES[name]()
        bare = outcome(operation, found, found)
        found = CALLABLES[name]()
        call, _ = standins.plain_call("call")
        stood_in = outcome(operation, standins.make(found, call), found)
        if bare != stood_in:
            wrong[label] = bare, stood_in
    assert wrong.keys() == {label for kind, label in KNOWN if kind == name}, wrong
    assert len(OPERATIONS) > 500


# --- while it is probed, and after ------------------------------------------------------------


@pytest.mark.parametrize(
    "name", sorted(BY_NAME | {"partial", "Data", "itemgetter", "generic alias"})
)
def test_what_is_probed_is_pickled_and_copied_as_without_a_probe(stage, name):
    found = _cached if name == "lru_cache" else CALLABLES[name]()
    place = {"builtin function": "math.sqrt", "module's function": "_operator.add"}.get(name)
    place = {"lru_cache": f"{__name__}._cached"}.get(name, place)
    if place is None:
        module = stage.module(found=found)
        place = f"{module.__name__}.found"
    holder, _, attribute = place.rpartition(".")
    holder = sys.modules[holder]
    bare = [pickle.dumps(found, protocol) for protocol in range(2, 6)]
    is_same = [copy.copy(found) is found, copy.deepcopy(found) is found]
    with probed(place):
        thing = getattr(holder, attribute)
        assert thing is not found
        assert [pickle.dumps(thing, protocol) for protocol in range(2, 6)] == bare
        assert (pickle.loads(pickle.dumps(thing)) is thing) == is_same[0]
        assert [copy.copy(thing) is thing, copy.deepcopy(thing) is thing] == is_same
        assert (copy.deepcopy([thing])[0] is thing) == is_same[1]
    assert getattr(holder, attribute) is found


def test_methods_that_give_the_callable_itself_give_the_stand_in(stage):
    module = stage.module(found=Manager(), counted=Iterator())
    with (
        probed(f"{module.__name__}.found", "result") as seen,
        probed(f"{module.__name__}.counted", "1"),
    ):
        assert module.found() is module.found
        with module.found as entered:
            assert entered is module.found
        assert iter(module.counted) is module.counted is module.counted()
        assert next(module.counted) == 1
    assert len(seen.results) == 1


def test_frames_of_a_stand_in_are_hidden_whatever_is_done_and_also_when_it_was_kept(stage):
    class Looks:
        def _seen(self, *args):
            frames, frame = [], sys._getframe(1)
            while frame is not None and len(frames) < 2:
                frames.append(frame.f_code.co_name)
                frame = frame.f_back
            seen.append(frames)

        def _raises(self, *args):
            raise LookupError

    for name in ("call", "len", "eq", "getitem", "enter", "exit", "hash", "add", "getattr", "get"):
        setattr(Looks, f"__{name}__", Looks._seen if name != "hash" else Looks._raises)
    for name in ("setattr", "delattr", "neg", "repr", "radd"):
        setattr(Looks, f"__{name}__", Looks._raises)

    def use(thing):
        for operation in (
            lambda: thing(), lambda: len(thing), lambda: thing == 3, lambda: thing[0],
            lambda: thing.__enter__, lambda: thing + 1, lambda: thing.made_up, lambda: with_(thing),
        ):  # fmt: skip
            with contextlib.suppress(TypeError):
                operation()
        for operation in (
            lambda: hash(thing), lambda: setattr(thing, "x", 1), lambda: delattr(thing, "x"),
            lambda: -thing, lambda: repr(thing), lambda: 1 + thing,
        ):  # fmt: skip
            with pytest.raises(LookupError) as raised:
                operation()
            seen.append([entry.name for entry in raised.traceback])

    def with_(thing):
        with thing:
            pass

    module = stage.module(thing=Looks())
    seen = []
    use(module.thing)
    bare, seen = seen, []
    assert len(bare) > 12
    with probed(f"{module.__name__}.thing", "1") as hits:
        kept, seen = module.thing, []
        use(kept)
    assert seen == bare
    assert len(hits.results) == 1
    seen = []
    use(kept)
    assert seen == bare
    assert module.thing is not kept
    assert len(hits.results) == 1


def test_weak_references_live_as_long_as_what_is_stood_in_for(stage):
    module = stage.module(thing=Recording())
    died = []
    path = f"{module.__name__}.thing"
    with probed(path):
        reference = weakref.ref(module.thing, died.append)
        weak = weakref.WeakSet([module.thing])
    gc.collect()
    assert not died
    assert reference() == module.thing
    assert len(weak) == 1

    class Few:
        __slots__ = ()

        def __call__(self):
            return 1

    module.thing = Few()
    with probed(path):
        with pytest.raises(TypeError, match="weak reference"):
            weakref.ref(module.thing)


def test_a_metaclass_is_not_asked_when_a_reference_in_its_class_is_replaced(stage):
    asked = []

    class Meta(type):
        def __setattr__(cls, name, value):
            asked.append(name)
            raise AttributeError(name)

    class Closed(metaclass=Meta):
        root = math.sqrt

    module = stage.module(Closed)
    with probed(f"{module.__name__}.Closed.root", "args") as seen:
        assert (Closed.root(4), math.sqrt(9)) == (2, 3)
        assert vars(Closed)["root"] is math.sqrt
    assert seen.results == [(4,), (9,)]
    assert not asked
    assert vars(Closed)["root"] is math.sqrt
    assert type(math.sqrt) is types.BuiltinFunctionType


LOOKERS = {
    "builtins": "locals globals vars dir eval exec compile breakpoint __build_class__",
    "sys": "_getframe _getframemodulename breakpointhook getrefcount settrace setprofile",
    "_warnings": "warn",
    "gc": "get_referrers",
    "faulthandler": "dump_traceback",
}


@pytest.mark.parametrize(
    "path",
    [
        f"{module}.{name}"
        for module, names in LOOKERS.items()
        for name in names.split()
        if hasattr(sys.modules[module], name)
    ],
)
def test_what_looks_at_how_it_is_called_is_refused_in_words(stage, path):
    module, _, name = path.rpartition(".")
    original = getattr(sys.modules[module], name)
    alias = stage.module(other=original)
    for each in (path, f"{alias.__name__}.other"):
        with pytest.raises(
            TargetKindError, match=r"its caller.*probe the Python function"
        ) as raised:
            attach_to(each).attach("k", ProbeTestInstrument("n", "1"))
        assert raised.value.code == "target-looks-at-caller"
    attach_to(path).stop()
    attach_to(f"{alias.__name__}.other").stop()
    assert getattr(sys.modules[module], name) is alias.other is original


def test_python_functions_that_look_at_their_caller_are_probed_as_ever():
    def look():
        here = "here"
        return inspect.currentframe().f_locals["here"]

    with probed("inspect.currentframe", "1") as seen:
        assert look() == "here"
    assert seen.results == [1]


# Called without arguments they would wait, end the process, or change what tests share.
NOT_CALLED = set(
    """
    input exit quit breakpoint breakpointhook __breakpointhook__ copyright credits license help abort _exit fork forkpty pause
    _clear_type_cache _clear_internal_caches _debugmallocstats _stats settrace
    _clear_type_descriptors exc_clear setprofile call_tracing intern activate_stack_trampoline
    deactivate_stack_trampoline unraisablehook excepthook displayhook _git is_stack_trampoline_active
    _current_frames _current_exceptions getallocatedblocks getunicodeinternedsize _getquickenedcount
    get_stats get_count collect freeze unfreeze get_objects callstats _dump_tracelets
    """.split()
)


@pytest.mark.parametrize("module", [builtins, sys, gc])
def test_c_functions_without_arguments_give_the_same_with_a_probe(module):
    """Finds what looks at its caller and is not refused."""
    compared = 0
    for name, found in sorted(vars(module).items()):
        if name in NOT_CALLED or not isinstance(found, types.BuiltinFunctionType):
            continue

        def look(name=name):
            a_local = 1
            try:
                return repr(getattr(module, name)())
            except Exception as error:
                return type(error), str(error)
            finally:
                del a_local

        bare = look()
        try:
            with probed(f"{module.__name__}.{name}", "1") as seen:
                compared += 1
                assert look() == bare, name
        except TargetKindError as error:
            assert error.code == "target-looks-at-caller"
        else:
            assert seen.status.error is None
    timers_ran()
    assert compared
