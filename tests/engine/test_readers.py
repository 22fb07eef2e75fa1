"""Libraries that read byte code get a function's own while it is probed, and nothing of ours."""

from __future__ import annotations

import pickle
import sys
import types

import pytest
from stage import Stage, attached, probed

from diagnose import HistogramInstrument, IncrementInstrument, readers
from diagnose.instruments import ProbeTestInstrument

SOURCE = """\
RATE = 2

def price(x):
    y = x + 1
    return y * RATE

def total(x):
    return price(x) + price(x + 1)
"""

INSTRUMENTS = [
    (kind, value, event)
    for event in ("call", "return", "end", "line:+1")
    for kind, value in (
        (IncrementInstrument, "1"),
        (HistogramInstrument, "x"),
        (ProbeTestInstrument, "x"),
        (ProbeTestInstrument, "elapsed" if event == "return" else "x"),
    )
]


@pytest.fixture
def shop(stage):
    return stage.script(SOURCE)


@pytest.fixture
def numba_like(monkeypatch):
    """A module that takes code as numba does."""
    module = types.ModuleType("numba.core.bytecode")
    module.get_code_object = lambda function: getattr(function, "__code__", None)
    monkeypatch.setitem(sys.modules, "numba.core.bytecode", module)
    return module


@pytest.mark.parametrize(("kind", "value", "event"), INSTRUMENTS)
def test_a_reader_gets_the_own_code_of_a_probed_function(shop, numba_like, kind, value, event):
    own = shop.price.__code__
    with attached(f"{shop.__name__}.price", kind("k", value, event)):
        assert shop.price.__code__ is not own
        assert numba_like.get_code_object(shop.price) is own
        assert numba_like.get_code_object(shop.total) is shop.total.__code__
        assert numba_like.get_code_object(None) is None
    assert numba_like.get_code_object(shop.price) is own


def test_a_reader_is_as_it_was_once_nothing_is_probed(shop, numba_like):
    read = numba_like.get_code_object
    with probed(f"{shop.__name__}.price"):
        with probed(f"{shop.__name__}.total"):
            assert numba_like.get_code_object is not read
        assert numba_like.get_code_object is not read
    assert numba_like.get_code_object is read


def test_what_replaced_a_reader_meanwhile_stays(shop, numba_like):
    def other(function):
        return function

    with probed(f"{shop.__name__}.price"):
        numba_like.get_code_object = other
    assert numba_like.get_code_object is other


@pytest.mark.parametrize("found", [None, len, types.SimpleNamespace()])
def test_a_reader_that_is_not_as_we_know_it_is_left_alone(shop, numba_like, found):
    numba_like.get_code_object = found
    with probed(f"{shop.__name__}.price") as instrument:
        assert numba_like.get_code_object is found
        assert shop.price(1) == 4
    assert instrument.results == [4]


def test_a_reader_that_lacks_what_we_know_is_left_alone(shop, numba_like):
    del numba_like.get_code_object
    with probed(f"{shop.__name__}.price") as instrument:
        assert shop.price(1) == 4
    assert instrument.results == [4]
    assert not hasattr(numba_like, "get_code_object")


def test_a_reader_that_is_imported_while_a_function_is_probed_gets_its_own_code(
    shop, tmp_path, monkeypatch
):
    package = tmp_path / "pony" / "orm"
    package.mkdir(parents=True)
    (tmp_path / "pony" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "decompiling.py").write_text(
        "class Decompiler:\n    def __init__(self, code):\n        self.code = code\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("pony", "pony.orm", "pony.orm.decompiling"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    readers._is_installed.cache_clear()
    own, before = shop.price.__code__, list(sys.meta_path)
    with probed(f"{shop.__name__}.price"):
        from pony.orm.decompiling import Decompiler

        assert Decompiler(shop.price.__code__).code is own
    assert Decompiler(shop.price.__code__).code is own
    assert vars(Decompiler)["__init__"].__module__ == "pony.orm.decompiling"
    assert not hasattr(Decompiler.__init__, "__wrapped__")
    assert sys.meta_path == before
    for name in ("pony", "pony.orm", "pony.orm.decompiling"):
        sys.modules.pop(name, None)
    readers._is_installed.cache_clear()


def test_code_that_was_given_to_another_function_leads_to_the_first_ones_own(shop, numba_like):
    own = shop.price.__code__
    with probed(f"{shop.__name__}.price"):
        shop.total.__code__ = shop.price.__code__
        with probed(f"{shop.__name__}.total"):
            assert numba_like.get_code_object(shop.total) is own


def test_tools_that_walk_through_constants_find_the_same_inner_functions(shop):
    def inner_codes():
        return [each for each in shop.price.__code__.co_consts if isinstance(each, types.CodeType)]

    before = inner_codes()
    with probed(f"{shop.__name__}.price"):
        assert inner_codes() == before
        hash(shop.price.__code__)


# --- the real ones ---


@pytest.mark.parametrize(("kind", "value", "event"), INSTRUMENTS)
def test_numba_compiles_a_probed_function_and_its_caller(shop, kind, value, event):
    numba = pytest.importorskip("numba")
    price, total = numba.njit(shop.price), None
    with attached(f"{shop.__name__}.price", kind("k", value, event)):
        assert price(1) == 4
        assert price(1.5) == 5.0
        bare = shop.price
        shop.price = price
        total = numba.njit(shop.total)
        with attached(f"{shop.__name__}.total", kind("k", value, event)):
            assert total(1) == 10
        shop.price = bare
    assert price(True) == 4
    assert total(1) == 10


@pytest.mark.parametrize("module", ["cloudpickle", "dill"])
@pytest.mark.parametrize(("kind", "value", "event"), INSTRUMENTS)
def test_a_function_that_is_pickled_by_value_takes_no_probe_along(shop, module, kind, value, event):
    pickling = pytest.importorskip(module)
    instrument = kind("k", value, event)
    own = shop.price.__code__
    names = {"RATE": 2, "__name__": "__main__"}
    with attached(f"{shop.__name__}.price", instrument):
        copy = types.FunctionType(shop.price.__code__, names, "price")
        copy.__module__ = "__main__"  # a module whose functions go by value
        pickled = pickling.dumps(copy)
        assert b"diagnose" not in pickled
        again = pickle.loads(pickled)
        assert again(1) == 4
        assert again.__code__ == own
        assert instrument.status.hits == 0
    assert again(1) == 4


@pytest.mark.parametrize(("kind", "value", "event"), INSTRUMENTS)
@pytest.mark.parametrize("whole", [False, True])
def test_torch_compiles_a_probed_function_and_its_caller(shop, kind, value, event, whole):
    torch = pytest.importorskip("torch")
    with attached(f"{shop.__name__}.price", kind("k", value, event)):
        price = torch.compile(shop.price, backend="eager", fullgraph=whole)
        total = torch.compile(shop.total, backend="eager", fullgraph=whole)
        assert price(torch.ones(1)).tolist() == [4]
        assert total(torch.ones(1)).tolist() == [10]
    assert price(torch.ones(1)).tolist() == [4]
    assert total(torch.ones(1)).tolist() == [10]


def test_pony_decompiles_a_probed_method():
    decompiling = pytest.importorskip("pony.orm.decompiling")
    with Stage() as stage:
        module = stage.script("def full(p):\n    return p.first + ' ' + p.last\n")
        with probed(f"{module.__name__}.full"):
            tree, names, _ = decompiling.decompile(module.full)
        assert names == {"p"}
        assert type(tree).__name__ == "BinOp"
