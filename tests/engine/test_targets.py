from __future__ import annotations

import enum
import functools
import importlib
import importlib.util
import inspect
import itertools
import math
import os
import random
import subprocess
import sys
import textwrap
import threading
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import diagnose.targets
from diagnose.errors import (
    TargetError,
    TargetKindError,
    TargetNotFoundError,
    TargetNotImportedError,
)
from diagnose.instruments import ProbeTestInstrument
from diagnose.targets import Target, TargetKind, resolve

SHOP = {
    "__init__.py": """
        from shop_t.sale import sale

        class Discount:
            def apply(self): pass
    """,
    "sale.py": """
        def sale(): return "a function with its module's name"
        def rebate(): pass
    """,
    "base.py": """
        import abc, enum, functools

        class Meta(type):
            def make(cls): pass

        class Base(metaclass=Meta):
            def total(self): pass
            def __secret(self): pass
    """,
    "cart.py": """
        import functools, random, math, types
        from shop_t.base import Base

        VAT = 19

        def loud(function):
            @functools.wraps(function)
            def wrapper(*args): return function(*args)
            return wrapper

        @loud
        def price(item): pass

        @functools.lru_cache
        def rate(country): pass

        half = functools.partial(pow, 2)
        double = lambda x: 2 * x
        randint = random.Random().randint
        sine = math.sin
        bound = types.MethodType(len, [])

        class Cart(Base):
            slot = property(lambda self: 1)

            def __init__(self): self.router = Router()
            def checkout(self): pass
            def __secret(self): pass

            @staticmethod
            def parse(text): pass

            @classmethod
            def of(cls, items): pass

            @property
            def size(self): pass

            @size.setter
            def size(self, value): pass

            @functools.cached_property
            def weight(self): pass

            @loud
            def pay(self): pass

            @functools.lru_cache
            def fee(self): pass

            @property
            @loud
            def owner(self): pass

            @functools.singledispatchmethod
            def add(self, item): pass

            pay_cash = functools.partialmethod(pay, "cash")
            parse_int = staticmethod(int)
            cached = classmethod(functools.lru_cache(price))
            counted = staticmethod(len)

            class Line:
                def price(self): pass

        class Slotted:
            __slots__ = ("handler", "empty")

        class Router:
            def route(self): pass
            def __call__(self): pass

        class App:
            @property
            def config(self): raise RuntimeError("a property was run")
            def handle(self): pass
            def _setup(self): self.__hidden = double
            def __getattr__(self, name): raise RuntimeError("__getattr__ was run")
            @functools.cached_property
            def computed(self): pass

        app = App()
        app.router = Router()
        app.on_start = double
        app._setup()
        slotted = Slotted()
        slotted.handler = app
    """,
    "lazy.py": """
        asked = []

        def __getattr__(name):
            asked.append(name)
            if name == "made":
                def made(): pass
                return made
            if name == "length":
                return len
            if name == "broken":
                raise RuntimeError("can't make it")
            raise AttributeError(name)
    """,
    "broken.py": "raise RuntimeError('no database')",
    "needs.py": "import surely_missing_module",
    "gone.py": "import sys; sys.modules[__name__] = None",
    "later.py": "def deliver(): pass",
}


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A package on disk, `shop_t`, of which `shop_t.cart` and what it needs is imported."""
    package = tmp_path / "shop_t"
    package.mkdir()
    for name, text in SHOP.items():
        (package / name).write_text(textwrap.dedent(text))
    (tmp_path / "just_a_directory").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("shop_t.cart")
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop_t"]:
        del sys.modules[name]


def find(path: str) -> Target:
    return resolve(path, import_modules=False)


def failure(path, kind: type[TargetError] = TargetError, *, import_modules=False) -> TargetError:
    with pytest.raises(kind) as caught:
        resolve(path, import_modules=import_modules)
    assert type(caught.value) is kind
    return caught.value


def outcome(path, *, import_modules=False) -> Target | TargetError:
    try:
        return resolve(path, import_modules=import_modules)
    except TargetError as error:
        return error


# --- what a path can lead to ------------------------------------------------------------------


def test_a_function_of_a_module_is_found_with_its_owner(shop):
    target = find("shop_t.cart.loud")
    assert target.path == "shop_t.cart.loud"
    assert (target.owner, target.name, target.kind) == (shop, "loud", TargetKind.FUNCTION)
    assert target.found is target.function is shop.loud
    assert target.warnings == ()


@pytest.mark.parametrize(
    ("path", "kind", "function"),
    [
        ("Cart.checkout", TargetKind.METHOD, lambda c: c.Cart.checkout),
        ("Cart.__init__", TargetKind.METHOD, lambda c: c.Cart.__init__),
        ("Cart.parse", TargetKind.STATIC_METHOD, lambda c: c.Cart.parse),
        ("Cart.of", TargetKind.CLASS_METHOD, lambda c: c.Cart.of.__func__),
        ("Cart.size", TargetKind.PROPERTY, lambda c: c.Cart.size.fget),
        ("Cart.weight", TargetKind.PROPERTY, lambda c: c.Cart.weight.func),
        ("Cart.pay", TargetKind.METHOD, lambda c: c.Cart.pay),
        ("Cart.Line.price", TargetKind.METHOD, lambda c: c.Cart.Line.price),
        ("price", TargetKind.FUNCTION, lambda c: c.price),
        ("double", TargetKind.FUNCTION, lambda c: c.double),
    ],
)
def test_each_kind_of_function_is_found_raw_in_its_owner(shop, path, kind, function):
    target = find(f"shop_t.cart.{path}")
    assert target.kind is kind
    assert target.function is function(shop)
    assert vars(target.owner)[target.name] is target.found
    assert target.warnings == ()


def test_the_accessors_of_a_property_are_found_one_by_one(shop):
    for accessor in ("fget", "fset"):
        target = find(f"shop_t.cart.Cart.size.{accessor}")
        assert (target.owner, target.name) == (shop.Cart, "size")
        assert (target.found, target.kind) == (shop.Cart.size, TargetKind.PROPERTY)
        assert target.function is getattr(shop.Cart.size, accessor)
    wrapped = shop.Cart.owner.fget.__wrapped__
    assert find("shop_t.cart.Cart.owner.fget.__wrapped__").function is wrapped
    error = failure("shop_t.cart.Cart.size.fdel", TargetNotFoundError)
    assert "has no 'fdel'" in error.message
    assert "'shop_t.cart.Cart.size.fset'" in error.message


def test_the_function_under_a_decorator_is_found_through_wrapped(shop):
    assert find("shop_t.cart.price.__wrapped__").function is shop.price.__wrapped__
    assert find("shop_t.cart.rate.__wrapped__").function is shop.rate.__wrapped__
    assert find("shop_t.cart.Cart.pay.__wrapped__").function is shop.Cart.pay.__wrapped__


@pytest.mark.parametrize("name", ["rate", "half", "sine", "bound", "Cart.fee", "Cart.pay_cash"])
def test_callables_without_python_code_are_references_that_setattr_replaces(shop, name):
    target = find(f"shop_t.cart.{name}")
    assert (target.kind, target.function) == (TargetKind.REFERENCE, None)
    assert vars(target.owner)[target.name] is target.found
    other = object()
    setattr(target.owner, target.name, other)
    assert vars(target.owner)[target.name] is other


def test_a_callable_object_is_a_reference_and_its_call_method_is_code(shop):
    assert find("shop_t.cart.app.router").kind is TargetKind.REFERENCE
    assert find("shop_t.cart.app.router.__call__").function is shop.Router.__call__


def test_what_is_behind_a_probed_reference_is_found_as_when_it_is_not_probed(shop):
    paths = {
        "rate": ["rate", "rate.__wrapped__", "rate.__wrapd__", "rate.cache_clear"],
        "Cart.fee": ["Cart.fee.__wrapped__"],
        "bound_fee": ["bound_fee.__wrapped__"],
        "app.router": ["app.router", "app.router.__call__", "app.router.rout"],
    }
    shop.bound_fee = shop.Cart().fee

    def told(path: str) -> tuple[object, ...]:
        found = outcome(f"shop_t.cart.{path}")
        if isinstance(found, TargetError):
            return type(found), found.code, found.message
        return found.owner, found.name, found.kind, found.function, found.warnings

    for probed, inside in paths.items():
        before = [told(path) for path in inside]
        raw = find(f"shop_t.cart.{probed}").found
        probe = diagnose.attach_to(f"shop_t.cart.{probed}")
        probe.attach("calls", ProbeTestInstrument("calls", "1"))
        try:
            assert find(f"shop_t.cart.{probed}").found is not raw
            assert [told(path) for path in inside] == before
        finally:
            probe.detach("calls")
        assert find(f"shop_t.cart.{probed}").found is raw


def test_a_slot_of_the_program_that_is_named_like_a_stand_ins_is_not_looked_through(shop):
    class Proxy:
        __slots__ = ("_found",)

        def __call__(self):
            pass

    shop.proxy = Proxy()
    shop.proxy._found = shop.rate
    assert find("shop_t.cart.proxy.__call__").function is Proxy.__call__
    failure("shop_t.cart.proxy.__wrapped__", TargetNotFoundError)


def test_a_c_function_of_a_module_is_a_reference():
    target = find("math.sin")
    assert (target.owner, target.found) == (math, math.sin)


def test_a_bound_method_in_a_module_leads_to_its_function(shop):
    target = find("shop_t.cart.randint")
    assert target.function is random.Random.randint
    assert target.kind is TargetKind.METHOD
    assert target.found is shop.randint
    assert "bound method of random.Random" in target.warnings[0]


def test_an_inherited_method_is_found_where_it_is_defined_with_a_warning(shop):
    base = sys.modules["shop_t.base"]
    target = find("shop_t.cart.Cart.total")
    assert (target.owner, target.function) == (base.Base, base.Base.total)
    why = "is inherited from shop_t.base.Base: calls through any subclass are seen"
    assert target.warnings == (f"shop_t.cart.Cart.total {why}",)
    target = find("shop_t.cart.Cart.make")
    assert target.owner is base.Meta
    assert "metaclass shop_t.base.Meta" in target.warnings[0]


def test_private_names_are_found_as_python_mangles_them(shop):
    target = find("shop_t.cart.Cart.__secret")
    assert (target.name, target.owner) == ("_Cart__secret", shop.Cart)
    assert find("shop_t.cart.app.__hidden").name == "_App__hidden"
    del shop.Cart._Cart__secret
    assert find("shop_t.cart.Cart.__secret").name == "_Base__secret"


def test_functions_are_found_through_instances(shop):
    target = find("shop_t.cart.app.handle")
    assert (target.owner, target.kind) == (shop.App, TargetKind.METHOD)
    assert "defined by class shop_t.cart.App" in target.warnings[0]
    assert find("shop_t.cart.app.router.route").function is shop.Router.route
    assert find("shop_t.cart.slotted.handler.handle").function is shop.App.handle
    target = find("shop_t.cart.app.on_start")
    assert (target.owner, target.name, target.kind) == (shop.app, "on_start", TargetKind.FUNCTION)


def test_instances_are_looked_at_as_python_does(shop):
    # A property goes before what is in the instance, anything else comes after it.
    vars(shop.app).update(config=shop.double, handle=shop.double, computed=shop.app.router)
    assert find("shop_t.cart.app.config").kind is TargetKind.PROPERTY
    assert find("shop_t.cart.app.handle").function is shop.double
    assert find("shop_t.cart.app.computed.route").function is shop.Router.route


def test_an_instances_dictionary_is_found_below_a_property_of_that_name(shop):
    # As Python itself does; wrapt's object proxies are so where its extension is not there.
    class Hidden(shop.App):
        __dict__ = property(lambda self: 1 / 0)

    shop.hidden = Hidden()
    shop.hidden.on_start = shop.double
    target = find("shop_t.cart.hidden.on_start")
    assert (target.owner, target.function) == (shop.hidden, shop.double)


def test_a_property_is_found_through_an_instance_and_not_run(shop):
    target = find("shop_t.cart.app.config")
    assert (target.owner, target.kind) == (shop.App, TargetKind.PROPERTY)
    error = failure("shop_t.cart.app.config.load", TargetKindError)
    assert "only known when it runs" in error.message


def test_a_module_reached_as_an_attribute_is_gone_through(shop):
    target = find("shop_t.cart.functools.wraps")
    assert (target.owner, target.function) == (functools, functools.wraps)
    assert find("os.path.join").owner is os.path


def test_an_attribute_with_the_name_of_a_submodule_goes_before_it(shop):
    package = sys.modules["shop_t"]
    assert find("shop_t.sale").found is package.sale
    assert find("shop_t.sale.rebate").function is sys.modules["shop_t.sale"].rebate


# --- what a path can't lead to ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (None, "None (NoneType)"),
        (7, "7 (int)"),
        (["shop"], "list"),
        ("", "is empty"),
        ("shop..cart", "empty part"),
        (".shop", "empty part"),
        ("shop.", "empty part"),
        ("shop.ca rt", "'ca rt'"),
        ("shop.cart:Cart", "'cart:Cart'"),
        ("shop.f()", "'f()'"),
        ("shop.1", "'1'"),
        ("shop.<locals>.f", "'<locals>'"),
        ("x." * 600 + "y", "1000 characters"),
    ],
)
def test_what_is_no_path_is_a_syntax_error_with_the_reason(path, part):
    error = failure(path)
    assert error.code == "target-syntax"
    assert part in error.message
    assert len(error.message) < 500


def test_a_module_is_refused_with_functions_in_it(shop):
    error = failure("shop_t.cart", TargetKindError)
    assert error.code == "target-is-module"
    assert "'shop_t.cart.loud', 'shop_t.cart.price', 'shop_t.cart.double'" in error.message


def test_a_class_is_refused_with_its_methods(shop):
    error = failure("shop_t.cart.Cart", TargetKindError)
    assert error.code == "target-is-class"
    assert "'shop_t.cart.Cart.__init__' to see instances being made" in error.message
    assert "'shop_t.cart.Cart.checkout'" in error.message
    assert "__init__" not in failure("shop_t.cart.Router", TargetKindError).message
    assert "method" in failure("shop_t.cart.Slotted", TargetKindError).message


@pytest.mark.parametrize(
    "path", ["VAT", "slotted", "Slotted.handler", "Cart.parse_int", "Cart.counted"]
)
def test_what_can_not_be_called_or_has_no_code_is_refused(shop, path):
    error = failure(f"shop_t.cart.{path}", TargetKindError)
    assert error.code == "target-kind"
    assert repr(f"shop_t.cart.{path}") in error.message


def test_a_cached_class_method_is_refused_in_favour_of_what_it_caches(shop):
    error = failure("shop_t.cart.Cart.cached", TargetKindError)
    assert "probe 'shop_t.cart.Cart.cached.__wrapped__'" in error.message
    assert find("shop_t.cart.Cart.cached.__wrapped__").function is shop.price


def test_an_object_with_functions_in_it_is_refused_in_their_favour(shop):
    assert "'shop_t.cart.Cart.add.func'" in failure("shop_t.cart.Cart.add", TargetKindError).message
    assert find("shop_t.cart.Cart.add.func").kind is TargetKind.FUNCTION


def test_an_unset_slot_is_not_found(shop):
    assert failure("shop_t.cart.slotted.empty.x", TargetNotFoundError).code == "target-not-found"


@pytest.mark.parametrize(
    "path", ["str.join", "dict.get", "builtins.str.join", "collections.Counter.get"]
)
def test_methods_of_immutable_types_are_refused_with_the_way_out(path):
    error = failure(path, TargetKindError)
    assert error.code == "target-immutable"
    assert ("inherited" in error.message) == path.startswith("collections")
    assert "probe the Python function that calls it" in error.message


def test_a_missing_attribute_names_its_owner_and_near_misses(shop):
    for import_modules in (False, True):
        error = failure("shop_t.cart.Cartt", TargetNotFoundError, import_modules=import_modules)
        assert error.code == "target-not-found"
        assert error.message == "module 'shop_t.cart' has no 'Cartt'; did you mean 'Cart'?"
    error = failure("shop_t.cart.Cart.chekout", TargetNotFoundError)
    assert error.message == "class 'shop_t.cart.Cart' has no 'chekout'; did you mean 'checkout'?"
    assert "did you mean 'loud'" in failure("shop_t.cart.LOUD", TargetNotFoundError).message


def test_a_missing_attribute_that_another_module_has_is_pointed_to(shop):
    message = failure("shop_t.base.Cart.checkout", TargetNotFoundError).message
    assert message.endswith("; there is 'shop_t.cart.Cart.checkout'")
    # Where it is made, not where it is imported; and of the same package only.
    importlib.import_module("shop_t.lazy")
    message = failure("shop_t.lazy.Base.total", TargetNotFoundError).message
    assert message.endswith("; there is 'shop_t.base.Base.total'")
    importlib.import_module("json")
    for name in ("random", "dumps"):
        assert "there is" not in failure(f"shop_t.base.{name}", TargetNotFoundError).message


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("shop_t.cart.Cart.route", "shop_t.cart.Router.route"),  # a method of another class
        ("shop_t.cart.route", "shop_t.cart.Router.route"),  # of a class in the module
        ("shop_t.cart.Cart.rebate", "shop_t.sale.rebate"),  # a function of another module
        ("shop_t.cart.rebate", "shop_t.sale.rebate"),
        ("shop_t.cart.Order.rebate", "shop_t.sale.rebate"),
        ("shop_t.order.Router.route", "shop_t.cart.Router.route"),  # in a module of another name
        ("cart.Router.route", "shop_t.cart.Router.route"),  # without the package
        ("Router.route", "shop_t.cart.Router.route"),
        ("rebate", "shop_t.sale.rebate"),
    ],
)
def test_a_function_that_is_somewhere_else_is_pointed_to(shop, path, there):
    importlib.import_module("shop_t.sale")
    assert failure(path, TargetNotFoundError).message.endswith(f"; there is {there!r}")


def test_what_is_in_too_many_places_is_not_looked_for(shop):
    for path in ("requests_t.get", "shop_t.cart.Cart.__aenter__", "shop_t.zzz.nowhere"):
        assert "check the spelling" in failure(path, TargetNotFoundError).message


@pytest.mark.parametrize(
    "path",
    [
        "shop_t.cart:Cart.pay",
        "shop_t/cart.py::Cart::pay",
        "shop_t.cart.Cart.pay()",
        "shop_t/cart.py:Cart.pay",
    ],
)
def test_a_path_in_another_notation_is_shown_as_it_should_be(path):
    assert failure(path).message.endswith("such as 'shop_t.cart.Cart.pay'")


def test_finding_is_resolving_without_a_word(shop):
    for path in (
        "shop_t.cart.Cart.pay",
        "shop_t.cart.sine",
        "shop_t.sale",
        "shop_t.Discount.apply",
    ):
        found, resolved = diagnose.targets.find(path), outcome(path)
        if isinstance(resolved, TargetError):
            assert found is None
        else:
            assert found.subject is resolved.subject
            assert (found.owner, found.name) == (resolved.owner, resolved.name)
    for path in (
        "",
        None,
        "shop_t.nothing",
        "shop_t.later.deliver",
        "shop_t.cart.Cart",
        "x" * 2000,
    ):
        assert diagnose.targets.find(path) is None


def test_the_modules_that_a_path_may_lead_through():
    assert diagnose.targets.module_names("a.b.C.d") == ("a", "a.b", "a.b.C")
    assert diagnose.targets.module_names("a") == ()
    with pytest.raises(TargetError):
        diagnose.targets.module_names("a..b")


def test_a_namespace_package_in_one_is_looked_through_before_either_is_imported(
    tmp_path, monkeypatch
):
    (tmp_path / "outer_t" / "inner").mkdir(parents=True)
    (tmp_path / "outer_t" / "inner" / "leaf.py").write_text("def f(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert failure("outer_t.inner.leaf.f", TargetNotImportedError).name == "outer_t.inner.leaf"
    assert failure("outer_t.other.leaf.f", TargetNotFoundError).code == "module-not-found"
    assert [each.path for each in diagnose.targets.complete("outer_t.inner.")] == [
        "outer_t.inner.leaf"
    ]


def test_what_a_package_lacks_may_be_an_attribute_or_a_module(shop):
    error = failure("shop_t.Discout.apply", TargetNotFoundError)
    assert error.code == "target-not-found"
    assert error.message == "package 'shop_t' has no 'Discout'; did you mean 'Discount'?"
    assert failure("shop_t.Discout", TargetNotFoundError).code == "target-not-found"
    assert failure("shop_t.zzz", TargetNotFoundError).code == "target-not-found"
    error = failure("shop_t.zzz.f", TargetNotFoundError)
    assert error.code == "module-not-found"
    assert "check the spelling" in error.message
    for path in ("shop_t.cart.zzz.f", "shop_t.cart.__init__", "shop_t.cart.__repr__"):
        error = failure(path, TargetNotFoundError)
        assert error.code == "target-not-found"
        assert "check the spelling" in error.message


def test_a_missing_module_is_told_from_one_that_is_not_imported(shop):
    for import_modules in (False, True):
        error = failure("shop_t.crat.Cart", TargetNotFoundError, import_modules=import_modules)
        assert error.code == "module-not-found"
        assert error.message == "no module 'shop_t.crat'; did you mean 'shop_t.cart'?"
        error = failure("colections.x", TargetNotFoundError, import_modules=import_modules)
        assert error.code == "module-not-found"
        assert "did you mean 'collections'" in error.message
    error = failure("shop_t.later.deliver", TargetNotImportedError)
    assert (error.code, error.name) == ("module-not-imported", "shop_t.later")
    assert error.message == (
        "module 'shop_t.later' is not imported in this process yet; the probe is applied when it is"
    )
    # A module in no package has no modules in it, whatever there is of that name elsewhere.
    assert failure("shop_t.later.json.dumps", TargetNotImportedError).name == "shop_t.later"
    assert "shop_t.later" not in sys.modules


def test_nothing_is_imported_for_a_path_into_a_package_that_is_not_imported(shop):
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop_t"]:
        del sys.modules[name]
    before = set(sys.modules)
    assert failure("shop_t.cart.Cart.checkout", TargetNotImportedError).name == "shop_t.cart"
    assert failure("shop_t.Discount.apply", TargetNotImportedError).name == "shop_t"
    assert "names a module" in failure("shop_t.cart", TargetNotImportedError).message
    assert set(sys.modules) == before


def test_a_directory_that_happens_to_have_the_name_is_no_module(shop):
    assert failure("just_a_directory.module.f", TargetNotFoundError).code == "module-not-found"


def test_a_package_without_a_file_is_looked_through_too(tmp_path, monkeypatch):
    (tmp_path / "spread_t" / "inner").mkdir(parents=True)
    (tmp_path / "spread_t" / "inner" / "leaf.py").write_text("def f(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        importlib.import_module("spread_t.inner")
        assert (
            failure("spread_t.inner.leaf.f", TargetNotImportedError).name == "spread_t.inner.leaf"
        )
        message = failure("spread_t.inner.laef.f", TargetNotFoundError).message
        assert "did you mean 'spread_t.inner.leaf'?" in message
        importlib.import_module("spread_t.inner.leaf")
        assert find("spread_t.inner.leaf.f").kind is TargetKind.FUNCTION
    finally:
        for name in ("spread_t.inner.leaf", "spread_t.inner", "spread_t"):
            sys.modules.pop(name, None)


def test_a_builtin_function_is_suggested_under_its_full_path():
    assert "did you mean 'builtins.len'?" in failure("len", TargetNotFoundError).message
    assert find("builtins.len").kind is TargetKind.REFERENCE


def test_a_module_that_another_thread_is_importing_is_waited_for(shop, monkeypatch):
    half = types.ModuleType("half_done")
    half.__spec__ = ModuleSpec("half_done", None)
    half.__spec__._initializing = True
    half.ready = lambda: None
    monkeypatch.setitem(sys.modules, "half_done", half)
    assert find("half_done.ready").function is half.ready
    error = failure("half_done.Cart.checkout", TargetNotImportedError)
    assert error.name == "half_done"
    error = failure("half_done.Cart", TargetNotImportedError, import_modules=True)
    assert "attach the probe when it is complete" in error.message
    half.__spec__._initializing = False
    assert failure("half_done.Cart.checkout", TargetNotFoundError).code == "target-not-found"


def test_code_that_imports_waits_for_another_threads_import(tmp_path, monkeypatch):
    (tmp_path / "slow_module_t.py").write_text(
        "import sys\nstarted, go = sys.slow_events\nstarted.set()\n"
        "assert go.wait(30)\ndef f(): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    started, go = threading.Event(), threading.Event()
    monkeypatch.setattr(sys, "slow_events", (started, go), raising=False)
    importer = threading.Thread(target=importlib.import_module, args=("slow_module_t",))
    importer.start()
    try:
        assert started.wait(30)
        assert failure("slow_module_t.f", TargetNotImportedError).name == "slow_module_t"
        found = []
        resolver = threading.Thread(
            target=lambda: found.append(resolve("slow_module_t.f", import_modules=True))
        )
        resolver.start()
        go.set()
        resolver.join(30)
        assert found[0].function is sys.modules["slow_module_t"].f
    finally:
        go.set()
        importer.join(30)
        sys.modules.pop("slow_module_t", None)


# --- importing --------------------------------------------------------------------------------


def test_code_may_have_the_module_imported(shop):
    target = resolve("shop_t.later.deliver", import_modules=True)
    assert target.function is sys.modules["shop_t.later"].deliver


def test_an_import_that_fails_says_how(shop):
    error = failure("shop_t.broken.f", TargetNotFoundError, import_modules=True)
    assert error.code == "module-import-failed"
    assert "RuntimeError: no database" in error.message
    assert isinstance(error.__cause__, RuntimeError)
    error = failure("shop_t.needs.f", TargetNotFoundError, import_modules=True)
    assert error.code == "module-import-failed"
    assert "surely_missing_module" in error.message


def test_a_module_that_blocks_itself_is_not_imported_again_and_again(shop):
    error = failure("shop_t.gone.f", TargetNotFoundError, import_modules=True)
    assert error.code == "module-not-found"
    assert "blocked" in error.message


def test_a_blocked_module_is_not_waited_for(shop, monkeypatch):
    monkeypatch.setitem(sys.modules, "shop_t.later", None)
    for import_modules in (False, True):
        error = failure("shop_t.later.f", TargetNotFoundError, import_modules=import_modules)
        assert error.message == (
            "module 'shop_t.later' is blocked: sys.modules has None under its name"
        )


def test_code_asks_no_getattr_but_a_modules(shop):
    error = failure("shop_t.cart.app.nothing", TargetNotFoundError, import_modules=True)
    assert "'shop_t.cart.app' (a App) has no 'nothing'" in error.message


def test_an_object_that_stands_for_a_module_is_one(shop, monkeypatch):
    class Dynamic:
        asked = 0

        def __getattr__(self, name):
            if name != "made":
                raise AttributeError(name)
            Dynamic.asked += 1
            return shop.double

    monkeypatch.setitem(sys.modules, "dynamic_t", Dynamic())
    failure("dynamic_t.made", TargetNotFoundError)
    assert Dynamic.asked == 0
    assert resolve("dynamic_t.made", import_modules=True).function is shop.double


def test_a_modules_getattr_is_asked_by_code_and_never_by_a_spec(shop):
    lazy = importlib.import_module("shop_t.lazy")
    assert "__getattr__" in failure("shop_t.lazy.made", TargetNotFoundError).message
    assert lazy.asked == []
    target = resolve("shop_t.lazy.made", import_modules=True)
    assert target.function.__name__ == "made"
    assert "made by __getattr__" in target.warnings[0]
    assert resolve("shop_t.lazy.length", import_modules=True).kind is TargetKind.REFERENCE
    failure("shop_t.lazy.other", TargetNotFoundError, import_modules=True)
    error = failure("shop_t.lazy.broken", TargetNotFoundError, import_modules=True)
    assert error.code == "module-import-failed"


def test_a_lazily_loaded_module_is_loaded_by_code_and_never_by_a_spec(shop, monkeypatch):
    spec = importlib.util.find_spec("shop_t.later")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "shop_t.later", module)
    spec.loader.exec_module(module)
    failure("shop_t.later.deliver", TargetNotImportedError)
    assert "deliver" not in types.ModuleType.__getattribute__(module, "__dict__")
    assert resolve("shop_t.later.deliver", import_modules=True).kind is TargetKind.FUNCTION


def test_a_script_is_found_under_main_and_its_other_name_says_so(tmp_path):
    script = tmp_path / "script_t.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from diagnose.errors import TargetNotImportedError
        from diagnose.targets import resolve
        def work(): pass
        if __name__ == "__main__":
            found = resolve("__main__.work", import_modules=False)
            assert (found.function, found.warnings) == (work, ())
            try:
                resolve("script_t.work", import_modules=False)
            except TargetNotImportedError as error:
                assert "'__main__.work'" in str(error), error
            else:
                raise AssertionError
            target = resolve("script_t.work", import_modules=True)
            assert "__main__" in target.warnings[0], target
            print("all well")
        """)
    )
    root = str(Path(diagnose.targets.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("all well\n", "")


# --- hostile surroundings ---------------------------------------------------------------------


class Hostile:
    """Everything that can be overridden raises."""

    def _refuse(self, *args):
        raise RuntimeError("a hostile object was run")

    __getattribute__ = __getattr__ = __eq__ = __hash__ = __repr__ = __str__ = _refuse
    __bool__ = __len__ = __iter__ = __getitem__ = __setattr__ = __call__ = _refuse
    __class__ = __dict__ = __wrapped__ = __func__ = __path__ = property(_refuse)


class HostileMeta(type):
    def _refuse(cls, *args):
        raise RuntimeError("a hostile class was run")

    __getattribute__ = __eq__ = __repr__ = __instancecheck__ = __subclasscheck__ = _refuse
    __hash__ = type.__hash__
    mro = type.mro


class LyingDict(dict):
    def get(self, *args):
        raise RuntimeError("a hostile dictionary was run")

    __getitem__ = __contains__ = __iter__ = items = keys = get


class RaisingFinder:
    def find_spec(self, *args):
        raise RuntimeError("a finder failed")


def test_hostile_objects_are_looked_at_without_running_them(monkeypatch):
    ran = []
    module = types.ModuleType("hostile_t")
    module.__path__ = itertools.repeat("a path without an end")
    module.__name__ = Hostile()
    module.thing = Hostile()
    module.cls = HostileMeta("Cls", (), {"method": lambda self: None, "value": Hostile()})
    module.instance = type.__call__(module.cls)
    module.f = lambda: None
    module.f.__module__ = 3
    module.f.__wrapped__ = Hostile()
    module.descriptor = type("D", (), {"__get__": lambda *a: ran.append(a)})()
    vars(module)[3] = "not a name"
    holder = type("Holder", (), {})()
    holder.__dict__ = LyingDict(f=module.f)
    module.holder = holder
    monkeypatch.setitem(sys.modules, "hostile_t", module)
    monkeypatch.setitem(sys.modules, "hostile_object_t", Hostile())
    monkeypatch.setitem(sys.modules, "blocked_t", None)
    monkeypatch.setitem(sys.modules, 17, None)
    monkeypatch.setattr(sys, "meta_path", [RaisingFinder(), object(), *sys.meta_path])

    assert find("hostile_t.cls.method").kind is TargetKind.METHOD
    assert find("hostile_t.instance.method").kind is TargetKind.METHOD
    assert find("hostile_t.f").function is module.f
    assert find("hostile_t.holder.f").function is module.f
    assert find("hostile_t.thing").kind is TargetKind.REFERENCE
    assert find("hostile_t.thing._refuse").function is Hostile._refuse
    assert "blocked" in failure("blocked_t.f", TargetNotFoundError).message
    assert "blocked" in failure("blocked_t.f", TargetNotFoundError, import_modules=True).message
    paths = [
        f"{start}.{name}"
        for start in (
            "hostile_t",
            "hostile_object_t",
            "hostile_t.cls",
            "hostile_t.thing",
            "hostile_t.f",
            "hostile_t.holder",
            "hostile_t.descriptor",
            "hostile_t.instance",
        )
        for name in (
            "nothing",
            "value",
            "__x",
            "thing",
            "__get__.x",
            "descriptor",
            "__wrapped__",
            "__dict__",
            "__class__",
            "cls",
            "mro",
            "sub.f",
        )
    ]
    for path in [*paths, "hostile_t", "hostile_object_t", "blocked_t", "absent_t.f"]:
        for import_modules in (False, True):
            found = outcome(path, import_modules=import_modules)
            if isinstance(found, TargetError) and not import_modules:
                assert "could not be looked up" not in found.message, path
    assert ran == []


@given(
    st.lists(
        st.sampled_from(
            ["os", "path", "join", "json", "JSONDecoder", "decode", "enum", "Enum", "name", "fget",
             "functools", "__dict__", "__class__", "__mro__", "__init__", "__wrapped__", "__x",
             "partial", "func", "sys", "modules", "", " ", "ﬁle", "é", "None", "class", "\ud800"]
        ),
        max_size=5,
    ).map(".".join)
    | st.text(max_size=20)
    | st.none()
    | st.floats()
)  # fmt: skip
def test_any_path_gives_a_target_or_a_target_error(path):
    found = outcome(path)
    if isinstance(found, TargetError):
        assert found.message
    else:
        assert (found.function is None) == (found.kind is TargetKind.REFERENCE)


def subjects():
    """Each name in the loaded modules, and in what they hold: path, holder, name, raw value."""
    for module_name, module in list(sys.modules.items()):
        if not isinstance(module, types.ModuleType) or module_name.startswith("diagnose"):
            continue
        for name, value in list(vars(module).items()):
            path = f"{module_name}.{name}"
            if not all(map(str.isidentifier, path.split("."))) or path in sys.modules:
                continue
            yield path, module, name, value
            if isinstance(value, type):
                for inner, raw in list(vars(value).items()):
                    if isinstance(inner, str) and inner.isidentifier():
                        yield f"{path}.{inner}", value, inner, raw


def test_every_attribute_of_every_loaded_module_is_resolved_or_refused_for_a_reason():
    before = set(sys.modules)
    kinds = {TargetKind.FUNCTION: 0, TargetKind.METHOD: 0, TargetKind.REFERENCE: 0}
    refusals = {"target-kind", "target-immutable", "target-is-class", "target-is-module"}
    refusals.add("target-looks-at-caller")
    for index, (path, holder, name, raw) in enumerate(subjects()):
        if isinstance(holder, type) and index % 7:
            continue
        target = outcome(path)
        if isinstance(target, TargetError):
            assert target.code in refusals, (path, target)
            assert type(raw) is not types.FunctionType, path
            continue
        assert target.found is raw, path
        # Since 3.14 modules have an attribute of that name by their type, which comes first there.
        if not (isinstance(holder, types.ModuleType) and name == "__annotate__"):
            assert raw is inspect.getattr_static(holder, name), path
        assert vars(target.owner)[target.name] is raw, path
        assert (target.function is None) == (target.kind is TargetKind.REFERENCE), path
        kinds[target.kind] = kinds.get(target.kind, 0) + 1
    assert min(kinds.values()) > 20, kinds
    assert set(sys.modules) == before


def test_kinds_are_words_that_a_status_can_show():
    assert issubclass(TargetKind, enum.Enum)
    assert {kind.value for kind in TargetKind} == {
        "function", "method", "static method", "class method", "property", "reference",
    }  # fmt: skip
