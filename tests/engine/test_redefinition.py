from __future__ import annotations

import functools
import gc
import importlib
import sys
import textwrap
import threading
import time
import types
import weakref
from datetime import UTC, datetime
from typing import ClassVar

import pytest
import wrapt
from stage import frees_code

import diagnose
from diagnose import managers, probes, targets
from diagnose.instruments import ProbeTestInstrument
from diagnose.managers import InstrumentManager
from diagnose.originals import own_code

SHOP = """
def total(x): return x

class Base:
    def close(self): return "base"

class Cart(Base):
    def checkout(self, x): return x
    @staticmethod
    def parse(x): return x
    @classmethod
    def of(cls, x): return x
    @property
    def size(self): return 1
"""


class Seen(ProbeTestInstrument):
    """Keeps what all of its kind saw."""

    values: ClassVar[list] = []

    def emit(self, name, value, tags):
        self.values.append(value)


def write(path, source):
    path.write_text(textwrap.dedent(source))
    importlib.invalidate_caches()


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "shop_rt.py"
    write(path, SHOP)
    return path


@pytest.fixture
def shop(file):
    Seen.values = []
    yield importlib.import_module("shop_rt")
    sys.modules.pop("shop_rt", None)


@pytest.fixture
def manager(shop):
    made = InstrumentManager("me")
    made.instrument_classes["seen"] = Seen
    yield made
    made.stop()


def arm(manager, target="shop_rt.total", value="result", key="a", **changes):
    manager.specs[key] = {
        "target": target,
        "instrument": {"type": "seen", "name": "n", "value": value},
        "lifespan": 10,
        "lastmodified": datetime.now(UTC),
    } | changes
    manager.apply()
    return entry(manager, key)


def entry(manager, key="a"):
    return manager.specs[key]["applied"]["me"]


# --- the probe follows ------------------------------------------------------------------------


def test_a_reloaded_module_has_its_new_function_probed(shop, file, manager):
    assert arm(manager)["state"] == "installed"
    old, code = shop.total, own_code(shop.total.__code__)
    write(file, f"# a new first line\n{SHOP}")
    importlib.reload(shop)
    shop.total(1)
    assert Seen.values == []
    manager.apply()
    shop.total(2)
    assert Seen.values == [2]
    assert old.__code__ is code
    (warning,) = entry(manager)["warnings"]
    assert warning == f"the function was redefined; the probe moved to the new one at {file}:3"
    assert entry(manager)["err"] is None


def test_a_module_that_is_imported_anew_has_its_function_probed(shop, manager):
    arm(manager)
    del sys.modules["shop_rt"]
    again = importlib.import_module("shop_rt")
    assert again is not shop
    manager.apply()
    again.total(1), shop.total(2)
    assert Seen.values == [1]


@pytest.mark.parametrize(
    ("path", "make", "call"),
    [
        ("Cart.checkout", lambda f: f, lambda c: c().checkout(5)),
        ("Cart.parse", staticmethod, lambda c: c.parse(5)),
        ("Cart.of", classmethod, lambda c: c.of(5)),
    ],
)
def test_a_class_attribute_that_is_replaced_is_followed(shop, manager, path, make, call):
    arm(manager, f"shop_rt.{path}", "x")
    name = path.rpartition(".")[2]
    old = targets.find(f"shop_rt.{path}").function
    code = own_code(old.__code__)
    new = (lambda x: x) if make is staticmethod else (lambda self, x: x)
    setattr(shop.Cart, name, make(new))
    manager.apply()
    call(shop.Cart)
    assert Seen.values == [5]
    assert old.__code__ is code
    assert "redefined" in entry(manager)["warnings"][0]


def test_a_property_that_is_replaced_is_followed(shop, manager):
    arm(manager, "shop_rt.Cart.size")
    shop.Cart.size = property(lambda self: 2)
    manager.apply()
    assert shop.Cart().size == 2
    assert Seen.values == [2]


def test_a_method_that_a_subclass_now_overrides_is_followed(shop, manager):
    arm(manager, "shop_rt.Cart.close")
    assert "inherited" in entry(manager)["warnings"][0]
    shop.Cart.close = lambda self: "own"
    manager.apply()
    shop.Cart().close(), shop.Base().close()
    assert Seen.values == ["own"]
    assert [text for text in entry(manager)["warnings"] if "inherited" in text] == []
    del shop.Cart.close
    manager.apply()
    shop.Cart().close()
    assert Seen.values == ["own", "base"]


def test_a_callable_without_code_may_take_the_place_of_a_function_and_back(shop, manager):
    old = shop.total
    arm(manager, value="1")
    shop.total = abs
    manager.apply()
    assert shop.total(-3) == 3
    assert Seen.values == [1]
    assert any("redefined" in text for text in entry(manager)["warnings"])
    shop.total = old
    manager.apply()
    shop.total(1)
    assert Seen.values == [1, 1]
    manager.stop()
    assert shop.total is old


def test_hits_and_their_limit_are_counted_on(shop, manager):
    arm(manager, limits={"hits": 2})
    shop.total(1)
    shop.total = lambda x: x
    manager.apply()
    shop.total(2), shop.total(3)
    manager.apply()
    assert Seen.values == [1, 2]
    assert entry(manager)["state"] == "done"


def test_the_lifespan_goes_on(shop, manager, monkeypatch):
    arm(manager)
    shop.total = lambda x: x
    now = manager.now()
    monkeypatch.setattr(manager, "now", lambda: now + __import__("datetime").timedelta(minutes=9))
    manager.apply()
    probe = probes.active_probes["shop_rt.total"]
    (timer,) = [one.timer for one in probe._attachments.values()]
    assert timer.deadline - time.monotonic() < 61


def test_an_expression_that_does_not_fit_the_new_function_is_an_error(shop, manager):
    old, code = shop.total, shop.total.__code__
    arm(manager, value="x")
    shop.total = lambda y: y
    manager.apply()
    assert entry(manager)["state"] == "error"
    assert entry(manager)["code"] == "expression-name"
    assert old.__code__ is code
    assert not probes.active_probes


def test_every_spec_of_a_function_moves_and_those_of_other_managers_when_they_apply(shop, manager):
    other = InstrumentManager("other")
    other.instrument_classes["seen"] = Seen
    arm(manager, value="'one'")
    arm(manager, value="'two'", key="b")
    other.specs["c"] = manager.specs["a"] | {"instrument": {"type": "seen", "value": "'three'"}}
    other.apply()
    old, code = shop.total, own_code(shop.total.__code__)
    shop.total = lambda x: x
    manager.apply()
    shop.total(1)
    assert sorted(Seen.values) == ["one", "two"]
    old(1)
    assert sorted(Seen.values) == ["one", "three", "two"]
    other.apply()
    assert old.__code__ is code
    Seen.values.clear()
    shop.total(1)
    assert sorted(Seen.values) == ["one", "three", "two"]
    other.stop()


def test_what_code_has_attached_stays_where_it_was_attached(shop, manager):
    with diagnose.sensor("shop_rt.total", "'sensor'") as sensor:
        arm(manager)
        old = shop.total
        shop.total = lambda x: x
        manager.apply()
        shop.total(1), old(2)
        assert (Seen.values, sensor.results) == ([1], ["sensor"])


@frees_code
def test_a_redefined_function_is_not_kept_alive(shop, manager):
    arm(manager)
    ref = weakref.ref(shop.total)
    shop.total = lambda x: x
    manager.apply()
    gc.collect()
    assert ref() is None


def test_no_call_falls_between_two_functions_while_threads_call(shop, manager):
    arm(manager, value="x")
    numbers, stop = iter(range(10**9)), threading.Event()

    def caller():
        while not stop.is_set():
            shop.total(next(numbers))

    thread = threading.Thread(target=caller)
    thread.start()
    try:
        for _ in range(30):
            shop.total = types.FunctionType(own_code(shop.total.__code__), vars(shop), "total")
            manager.apply()
            assert entry(manager)["err"] is None
    finally:
        stop.set()
        thread.join(30)
    Seen.values.clear()
    shop.total(-1)
    assert Seen.values == [-1]


# --- where the path leads no more -------------------------------------------------------------


def test_a_function_that_is_gone_is_an_error_and_the_old_one_is_restored(shop, manager):
    old, code = shop.total, shop.total.__code__
    arm(manager)
    del shop.total
    shop.totals = lambda x: x
    manager.apply()
    assert entry(manager)["state"] == "error"
    assert entry(manager)["code"] == "target-not-found"
    assert "did you mean 'totals'" in entry(manager)["err"]
    assert old.__code__ is code
    # And it comes back at the first apply that finds it, however many did not.
    for _ in range(20):
        manager.apply()
    shop.total = old
    manager.apply()
    shop.total(1)
    assert Seen.values == [1]
    assert entry(manager)["err"] is None


def test_a_value_in_the_place_of_a_function_is_an_error(shop, manager):
    old, code = shop.total, shop.total.__code__
    arm(manager)
    shop.total = 3
    manager.apply()
    assert entry(manager)["code"] == "target-kind"
    assert old.__code__ is code


def test_a_module_that_is_taken_away_is_waited_for_again(shop, manager):
    old, code = shop.total, shop.total.__code__
    arm(manager)
    del sys.modules["shop_rt"]
    manager.apply()
    assert entry(manager)["state"] == "pending"
    assert old.__code__ is code
    importlib.import_module("shop_rt").total(4)
    assert Seen.values == [4]


# --- wrapped by other tools -------------------------------------------------------------------


def functools_wrapper(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return ("wrapped", function(*args, **kwargs))

    return wrapper


@wrapt.decorator
def wrapt_wrapper(wrapped, instance, args, kwargs):
    return ("wrapped", wrapped(*args, **kwargs))


@pytest.mark.parametrize("wrap", [functools_wrapper, wrapt_wrapper])
@pytest.mark.parametrize("path", ["total", "Cart.checkout", "Cart.parse", "Cart.of"])
def test_a_function_that_is_wrapped_meanwhile_stays_probed_inside(shop, manager, wrap, path):
    arm(manager, f"shop_rt.{path}")
    owner, name = (shop.Cart, path[5:]) if path.startswith("Cart") else (shop, path)
    raw = vars(owner)[name]
    kept = {"Cart.parse": staticmethod, "Cart.of": classmethod}.get(path)
    if kept is not None and wrap is functools_wrapper:
        setattr(owner, name, kept(wrap(raw.__func__)))
    else:
        setattr(owner, name, wrap(raw))
    for _ in range(2):
        manager.apply()
        called = getattr(shop.Cart() if path == "Cart.checkout" else owner, name)
        assert called(7) == ("wrapped", 7)
    assert Seen.values == [7, 7]
    (warning,) = entry(manager)["warnings"]
    assert "was wrapped by" in warning
    assert "stays on the function inside" in warning
    # A new version of the spec goes where the one before was.
    arm(manager, f"shop_rt.{path}", "(1, result)")
    assert called(8) == ("wrapped", 8)
    assert Seen.values == [7, 7, (1, 8)]
    setattr(owner, name, raw)
    manager.apply()
    assert "warnings" not in entry(manager)
    manager.stop()
    assert vars(owner)[name] is raw


def test_a_function_that_was_wrapped_before_is_probed_outside(shop, manager):
    shop.total = functools_wrapper(shop.total)
    arm(manager)
    shop.total(7)
    assert Seen.values == [("wrapped", 7)]


def test_a_wrapper_that_does_not_say_what_it_wraps_is_a_redefinition(shop, manager):
    arm(manager)
    inner = shop.total
    shop.total = lambda x: inner(x) + 1
    manager.apply()
    shop.total(1), inner(5)
    assert Seen.values == [2]


def test_wrappers_that_lead_in_circles_or_lie_are_redefinitions(shop, manager):
    arm(manager)

    class Lying:
        def __getattr__(self, name):
            raise RuntimeError("asked")

        def __call__(self, x):
            return x

    old, one, two = shop.total, (lambda x: x), (lambda x: x)
    one.__wrapped__, two.__wrapped__ = two, one
    shop.total = Lying()
    assert not targets.find("shop_rt.total").wraps(old)
    shop.total = one
    manager.apply()
    shop.total(3)
    assert Seen.values == [3]


# --- what it costs ----------------------------------------------------------------------------


def test_an_apply_that_finds_nothing_new_does_not_search(shop, manager, monkeypatch):
    for key in ("Cart.checkout", "total", "Cart.size"):
        arm(manager, f"shop_rt.{key}", key=key)
    made = []
    monkeypatch.setattr(targets, "resolve", lambda *a, **k: made.append(a))
    monkeypatch.setattr(managers.InstrumentManager, "make", lambda *a, **k: made.append(a))
    before = [shop.total.__code__, shop.Cart.checkout.__code__]
    for _ in range(3):
        manager.apply()
    assert not made
    assert [shop.total.__code__, shop.Cart.checkout.__code__] == before


def test_looking_where_a_path_leads_costs_microseconds(shop):
    paths = ["shop_rt.Cart.checkout", "shop_rt.Cart.chekout", "not_imported_rt.a.b.c"]
    for path in paths:
        targets.find(path)
        best = min(_seconds(lambda path=path: targets.find(path)) for _ in range(200))
        assert best < 0.001, path


def _seconds(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
