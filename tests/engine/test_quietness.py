"""Code of the program's values runs in the quiet state only, and no probe hits itself."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from datetime import timedelta

import pytest
from stage import Stage, attached

from diagnose import HistogramInstrument, IncrementInstrument, LogInstrument
from diagnose.instruments import ProbeTestInstrument
from diagnose.limits import Limits
from diagnose.reentrancy import BUSY

LOUD = []
"""What ran outside of the quiet state."""
WATCHED = threading.local()


def _record(name):
    if getattr(WATCHED, "is_on", False) and threading.get_ident() not in BUSY:
        LOUD.append(name)


def _recording(name, result):
    def run(self, *given):
        _record(name)
        return result(self, *given) if callable(result) else result

    return run


def _getattribute(self, name):
    _record(f"__getattribute__ {name}")
    return object.__getattribute__(self, name)


class Meta(type):
    def __getattribute__(cls, name):
        _record(f"Meta.__getattribute__ {name}")
        return type.__getattribute__(cls, name)

    __hash__ = _recording("Meta.__hash__", type.__hash__)
    __eq__ = _recording("Meta.__eq__", lambda self, other: self is other)
    __instancecheck__ = _recording("Meta.__instancecheck__", False)
    __subclasscheck__ = _recording("Meta.__subclasscheck__", False)
    __repr__ = _recording("Meta.__repr__", "Meta")
    __bool__ = _recording("Meta.__bool__", True)
    __or__ = _recording("Meta.__or__", None)


_TRUE = "eq ne lt le gt ge contains bool".split()
_NUMBERS = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow neg pos abs "
    "and rand or ror xor rxor lshift rshift invert len int index hash round trunc floor ceil "
    "length_hint getitem call"
).split()
_METHODS = {
    **dict.fromkeys(_TRUE, True),
    **dict.fromkeys(_NUMBERS, 3),
    "float": 3.0,
    "complex": 3j,
    "str": "three",
    "repr": "three",
    "format": "three",
    "bytes": b"three",
    "iter": lambda self: iter([1, 2]),
    "reversed": lambda self: iter([2, 1]),
    "dir": lambda self: ["a"],
    "enter": lambda self: self,
    "exit": None,
    "getattr": None,
    "setattr": None,
    "delattr": None,
    "get": lambda self, *_: self,
    "copy": lambda self: self,
    "deepcopy": lambda self, _: self,
    "reduce_ex": lambda self, _: (int, ()),
    "sizeof": 8,
    "del": None,
}


def loud(*bases):
    members = {f"__{name}__": _recording(name, result) for name, result in _METHODS.items()}
    members["__getattribute__"] = _getattribute
    members["__class__"] = property(lambda self: _record("__class__") or int)
    return Meta("Loud", bases or (object,), members)


LOUD_CLASSES = [
    loud(),
    loud(int),
    loud(float),
    loud(str),
    loud(timedelta),
    loud(dict),
    loud(list),
    loud(tuple),
]


class Raised(Exception):
    __getattribute__ = _getattribute
    __str__ = _recording("Raised.__str__", "raised")
    __repr__ = _recording("Raised.__repr__", "raised")
    __eq__ = _recording("Raised.__eq__", True)
    __hash__ = _recording("Raised.__hash__", 3)
    __bool__ = _recording("Raised.__bool__", False)


class Silent:
    def write(self, text):
        pass


class Log(LogInstrument):
    out = Silent()


class Fires(ProbeTestInstrument):
    def fire(self, _globals, _locals):
        names = dict(_locals)
        self.emit(self.name, repr(names), self.merge_tags(_globals, _locals))


class Acts(ProbeTestInstrument):
    acts = True

    def act(self, value, names):
        return None


KINDS = [ProbeTestInstrument, HistogramInstrument, IncrementInstrument, Log, Fires, Acts]
EVENTS = ["call", "return", "end", "line:+2"]
VALUES = [
    "x",
    "x + 1",
    "[x]",
    "{'a': x}",
    "kept",
    "str(x)",
    "x.a",
    "raising(x)",
    "len(x)",
    "x in x",
]
CONDITIONS = [None, "x", "x == x", "not x", "x and 1", "x > 1", "1"]
TAGS = [None, "{'a': x}", "{x: 1}", "{'a': x == 1}", "x"]
LIMITS = [None, Limits(rate=1000, hits=50)]

SOURCE = """\
def target(x, *args, **kwargs):
    made = x
    kept = made
    return kept

def fails(x, *args, **kwargs):
    made = x
    kept = made
    raise x
"""


@pytest.fixture
def shop():
    LOUD.clear()
    with Stage() as stage:
        module = stage.script(SOURCE)

        def raising(x):
            raise Raised

        module.raising = raising
        module.kept = 1
        yield module


def options():
    """Each value, condition and kind of tags, and some together."""
    yield from ((value, None, None, None) for value in VALUES)
    yield from (("x", when, None, None) for when in CONDITIONS)
    yield from (("x", None, tags, None) for tags in TAGS)
    yield from (("x", when, tags, LIMITS[1]) for when in ("x", "1") for tags in TAGS)


@pytest.mark.parametrize(("kind", "event"), list(itertools.product(KINDS, EVENTS)))
def test_code_of_values_runs_in_the_quiet_state_only(shop, kind, event):
    if kind is Acts and event not in {"call", "return"}:
        pytest.skip("it acts on 'call' and on 'return'")
    served = 0
    for value, when, tags, limits in options():
        custom = {"tags": tags} if tags else None
        for cls in LOUD_CLASSES:
            given = cls()
            instrument = kind("k", value, event, when=when, custom=custom, limits=limits)
            with attached(f"{shop.__name__}.target", instrument):
                for _ in range(2):
                    WATCHED.is_on = True
                    try:
                        result = shop.target(given, given, key=given)
                    finally:
                        WATCHED.is_on = False
                    assert result is given
                    del result
            served += instrument.status.hits
            assert not LOUD, (cls.__mro__, value, when, tags, LOUD)
    assert served >= 50


@pytest.mark.parametrize(
    ("kind", "value"), list(itertools.product(KINDS, ["exception", "x", "[exception]"]))
)
def test_code_of_exceptions_runs_in_the_quiet_state_only(shop, kind, value):
    for when in (None, "exception", "exception is not None"):
        with attached(f"{shop.__name__}.fails", kind("k", value, "return", when=when)):
            given = Raised()
            found = None
            WATCHED.is_on = True
            try:
                shop.fails(given)
            except BaseException as error:
                WATCHED.is_on = False
                found = error
            assert found is given
        assert not LOUD, (value, when, LOUD)


def called_at_hits(shop):
    """All functions outside of this library that are called while hits are served."""
    found = set()

    def profile(frame, event, arg):
        if event == "call":
            found.add(frame.f_code)
        elif event == "c_call":
            found.add(arg)

    for kind, value in itertools.product(KINDS[:5], ["x", "x + 1", "start", "elapsed"]):
        for tags in (None, "{'a': x}"):
            instrument = kind("k", value, "return", custom={"tags": tags} if tags else None)
            with attached(f"{shop.__name__}.target", instrument):
                sys.setprofile(profile)
                try:
                    shop.target(True)
                finally:
                    sys.setprofile(None)
    return found


HOT = [
    "threading.get_ident",
    "threading.active_count",
    "threading.current_thread",
    "os.getpid",
    "time.time",
    "time.clock_gettime",
    "time.perf_counter",
    "time.monotonic",
    "time.thread_time",
    "random.random",
    "functools.wraps",
    "copy.deepcopy",
]


def test_what_hits_call_is_among_what_is_tried(shop):
    names = {
        f"{each.__module__}.{each.__qualname__}"
        for each in called_at_hits(shop)
        if getattr(each, "__module__", None) not in {None, "builtins"}
    }
    # By the names of C; and what can't be probed, as it looks at its caller.
    aliases = {"_thread.get_ident", "sys.setprofile", "sys._getframe"}
    assert names <= aliases | set(HOT), names - aliases - set(HOT)


@pytest.mark.parametrize("kind", [ProbeTestInstrument, Fires])
@pytest.mark.parametrize("path", HOT)
def test_a_probe_on_what_hits_call_does_not_hit_itself(path, kind):
    value = "str([now, start, result])"
    instrument = kind("k", value, "return", custom={"tags": "{'a': result}"})
    with attached(path, instrument):
        module, _, name = path.partition(".")
        function = sys.modules[module]
        for part in name.split("."):
            function = getattr(function, part)
        takes_one = name in {"wraps", "deepcopy", "clock_gettime"}
        before = instrument.status.hits
        for _ in range(3):
            with contextlib.suppress(TypeError):
                function(*[1] * takes_one)
        # Three, and what other threads do meanwhile.
        assert 3 <= instrument.status.hits - before <= 10
