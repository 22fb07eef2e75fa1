from __future__ import annotations

import importlib
import os
import sys
import textwrap
import time

import pytest

from diagnose.targets import complete, completion

SHOP = {
    "__init__": "def helper(): pass\nimport json\n",
    "cart": """
        import functools, math, os
        from shop_ct.base import Base

        VAT = 19
        rate = functools.lru_cache(lambda x: x)
        half = functools.partial(pow, 2)
        sine = math.sin

        def checkout(): pass
        def check(): pass
        def _checksum(): pass

        class Cart(Base):
            limit = 3
            def checkout(self): pass
            def _reset(self): pass
            def __secret(self): pass
            @staticmethod
            def parse(text): pass
            @classmethod
            def of(cls): pass
            @property
            def size(self): raise RuntimeError("a property was run")
            @functools.cached_property
            def weight(self): raise RuntimeError("a property was run")
            class Line:
                def price(self): pass

        class Meta(type):
            def __getattribute__(cls, name): raise RuntimeError("a class was run")

        class Hostile(metaclass=Meta):
            def route(self): pass

        cart = Cart()

        def __getattr__(name): raise RuntimeError("a module was run")
        def __dir__(): raise RuntimeError("a module was run")
    """,
    "base": "class Base:\n    def total(self): pass\n",
    "carriers/__init__": "",
    "carriers/dhl": "raise RuntimeError('a module was imported')",
    "_private": "",
}


@pytest.fixture
def shop(tmp_path, monkeypatch):
    for name, source in SHOP.items():
        path = tmp_path / "shop_ct" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("shop_ct.cart")
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop_ct"]:
        del sys.modules[name]


def paths(prefix, **options):
    return [each.path for each in complete(prefix, **options)]


def kinds(prefix):
    return {
        each.path[len("shop_ct.cart.") :]: (each.kind, each.is_probeable)
        for each in complete(prefix)
    }


def test_names_that_begin_so_are_listed_in_order(shop):
    assert paths("shop_ct.cart.che") == ["shop_ct.cart.check", "shop_ct.cart.checkout"]
    assert paths("shop_ct.cart.checkout") == ["shop_ct.cart.checkout"]
    assert paths("shop_ct.cart.Cart.ch") == ["shop_ct.cart.Cart.checkout"]
    assert paths("shop_ct.cart.Cart.Line.") == ["shop_ct.cart.Cart.Line.price"]
    assert paths("shop_ct.cart.zzz") == []


def test_each_has_its_kind_and_whether_it_can_be_probed(shop):
    assert kinds("shop_ct.cart.") == {
        "Base": ("class", False),
        "Cart": ("class", False),
        "Hostile": ("class", False),
        "Meta": ("class", False),
        "check": ("function", True),
        "checkout": ("function", True),
        "half": ("callable", True),
        "rate": ("callable", True),
        "sine": ("function", True),
    }
    assert kinds("shop_ct.cart.Cart.") == {
        "Cart.Line": ("class", False),
        "Cart.checkout": ("method", True),
        "Cart.of": ("class method", True),
        "Cart.parse": ("static method", True),
        "Cart.size": ("property", True),
        "Cart.total": ("method", True),  # inherited
        "Cart.weight": ("property", True),
    }
    (append,) = complete("builtins.list.append")
    assert (append.kind, append.is_probeable) == ("callable", False)


def test_private_names_are_listed_when_they_are_asked_for(shop):
    assert paths("shop_ct.cart._c") == ["shop_ct.cart._checksum"]
    assert paths("shop_ct.cart.Cart._r") == ["shop_ct.cart.Cart._reset"]
    assert paths("shop_ct.cart.Cart.__sec") == ["shop_ct.cart.Cart.__secret"]
    assert paths("shop_ct.cart.Cart._Cart") == ["shop_ct.cart.Cart._Cart__secret"]
    assert "shop_ct.cart.Cart.__init_subclass__" in paths("shop_ct.cart.Cart.__init")
    assert paths("shop_ct._") != []
    assert "shop_ct._private" in paths("shop_ct._p")


def test_modules_are_listed_whether_they_are_imported_or_not(shop):
    found = {each.path: each for each in complete("shop_ct.")}
    assert list(found) == [
        "shop_ct.base", "shop_ct.carriers", "shop_ct.cart", "shop_ct.helper",
        "shop_ct.json",
    ] or list(found) == ["shop_ct.base", "shop_ct.carriers", "shop_ct.cart", "shop_ct.helper"]  # fmt: skip
    assert found["shop_ct.cart"].kind == "module"
    assert found["shop_ct.cart"].is_imported
    assert not found["shop_ct.carriers"].is_imported
    assert not found["shop_ct.carriers"].is_probeable
    assert found["shop_ct.helper"].kind == "function"


def test_nothing_is_imported_and_nothing_of_the_program_runs(shop):
    before = set(sys.modules)
    assert paths("shop_ct.carriers.") == ["shop_ct.carriers.dhl"]
    assert paths("shop_ct.carriers.dhl.") == []
    assert paths("shop_ct.cart.cart.che") == ["shop_ct.cart.cart.checkout"]
    assert paths("shop_ct.cart.Hostile.r") == ["shop_ct.cart.Hostile.route"]
    assert paths("shop_ct.cart.made_by_getattr.x") == []
    for name in ("shop_ct.carriers", "shop_ct.carriers.dhl"):
        assert name not in sys.modules
    assert set(sys.modules) == before


def test_top_level_modules_are_those_of_the_path_and_of_python_itself(shop):
    assert "shop_ct" in paths("shop_")
    assert "wsgiref" in paths("wsg")
    assert "sys" in paths("sys")
    assert paths("") == paths("", limit=50)
    assert len(paths("")) == 50
    assert not [path for path in paths("", limit=5000) if path.startswith("_")]
    assert "__main__" in paths("__m")


def test_a_module_that_is_new_on_disk_is_found(shop, tmp_path):
    assert paths("shop_ct.new") == []
    file = tmp_path / "shop_ct" / "newest.py"
    file.write_text("")
    os.utime(file.parent, ns=(1, time.time_ns() + 10**9))
    assert paths("shop_ct.new") == ["shop_ct.newest"]


def test_no_more_than_the_limit_are_listed(shop):
    assert paths("shop_ct.cart.", limit=2) == ["shop_ct.cart.Base", "shop_ct.cart.Cart"]
    assert paths("shop_ct.cart.", limit=0) == []
    assert paths("shop_ct.cart.", limit=-1) == []


@pytest.mark.parametrize(
    "prefix",
    ["..", "a..b.", ".", "shop_ct.cart.check(", "shop ct.", "é", "\ud800.", "x" * 5000, "1."],
)
def test_what_leads_nowhere_has_no_completions(shop, prefix):
    assert complete(prefix) == []


def test_strange_things_in_sys_modules_do_no_harm(monkeypatch):
    class Raising:
        def __getattribute__(self, name):
            raise RuntimeError("run")

    monkeypatch.setitem(sys.modules, "strange_ct", Raising())
    monkeypatch.setitem(sys.modules, "none_ct", None)
    monkeypatch.setitem(sys.modules, 3, None)
    assert paths("strange_ct.") == []
    assert paths("none_ct.") == []
    assert paths("strange_c") == ["strange_ct"]


def test_a_key_costs_a_few_milliseconds_and_does_not_scan_the_disk(shop, monkeypatch):
    scans = []
    listed = completion.pkgutil.iter_modules
    monkeypatch.setattr(
        completion.pkgutil, "iter_modules", lambda path: scans.append(path) or listed(path)
    )
    for prefix in ("sho", "shop_ct.", "shop_ct.cart.", "shop_ct.cart.Cart.", "email.mime."):
        complete(prefix)
        scans.clear()
        times = []
        for _ in range(20):
            started = time.perf_counter()
            complete(prefix)
            times.append(time.perf_counter() - started)
        assert not scans, prefix
        assert min(times) < 0.01, prefix
