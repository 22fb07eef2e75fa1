from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.resources
import importlib.util
import inspect
import itertools
import logging
import os
import pkgutil
import subprocess
import sys
import textwrap
import threading
import traceback
import types
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import ClassVar

import pytest
import wrapt
from modules import document as spec
from waiting import in_child, wait_for_documents, wait_until

from diagnose import imports, probes, readers, registry, targets
from diagnose.imports import FINDER, Watch
from diagnose.instruments import ProbeTestInstrument
from diagnose.managers import InstrumentManager
from diagnose_mongo.worker.manager import MongoInstrumentManager

DEADLINE_SECONDS = 30
ROOT = Path(__file__).resolve().parents[2]

# What the module of a test has at hand while it is executed.
stage = types.SimpleNamespace()


class Seen(ProbeTestInstrument):
    """Keeps what all of its kind saw."""

    values: ClassVar[list] = []

    def emit(self, name, value, tags):
        self.values.append(value)


@pytest.fixture(autouse=True)
def surroundings_stay_as_they_are(monkeypatch):
    # As where none is: those which are (numba, dill) are waited for while anything is probed.
    monkeypatch.setattr(readers, "_is_installed", lambda _: False)
    before, modules = list(sys.meta_path), set(sys.modules)
    vars(stage).clear()
    Seen.values = []
    yield
    for name in set(sys.modules) - modules:
        if "_lt" in name or name in {"xxsubtype", "__hello__"}:
            del sys.modules[name]
    gc.collect()
    assert sys.meta_path == before
    assert (imports._watches, imports._delayed, imports._ending) == ({}, {}, set())
    assert not imports._trapped


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes importable modules, by dotted name."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files change faster than their times

    def make(files=(), /, **sources):
        for name, text in {**dict(files), **sources}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            source = f"from test_imports import stage\n{textwrap.dedent(text)}"
            path.with_suffix(".py").write_text(source)
        importlib.invalidate_caches()

    monkeypatch.setitem(sys.modules, "test_imports", sys.modules[__name__])
    return make


@pytest.fixture
def manager():
    made = InstrumentManager("me")
    made.instrument_classes["seen"] = Seen
    yield made
    made.stop()


def entry(manager, key="a"):
    return manager.specs[key]["applied"]["me"]


def await_(manager, target, key="a", **changes):
    """Have a spec wait for the module of its target."""
    manager.specs[key] = spec(target, **changes)
    manager.apply()
    assert entry(manager, key)["state"] == "pending"


def started(work, *args):
    thread = threading.Thread(target=work, args=args, daemon=True)
    thread.start()
    return thread


def joined(*threads):
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), "it waits for ever"


# --- the first caller -------------------------------------------------------------------------


def test_the_first_call_after_an_import_is_seen_without_another_apply(write, manager):
    write(late_lt="def f(): return 5")
    await_(manager, "late_lt.f")
    import late_lt

    late_lt.f()
    assert Seen.values == [5]
    manager.apply()
    assert entry(manager)["state"] == "emitting"
    assert entry(manager)["err"] is None
    assert "code" not in entry(manager)


def test_what_is_called_while_the_module_is_executed_is_not_seen(write, manager):
    write(late_lt="def f(x): return x\nf(1)\nf = f\nstage.saw = f(2)")
    await_(manager, "late_lt.f")
    importlib.import_module("late_lt").f(3)
    assert stage.saw == 2
    assert Seen.values == [3]


def test_names_taken_by_from_import_lead_to_the_probe(write, manager):
    write(late_lt="def f(): return 1", user_lt="from late_lt import f\nf()")
    await_(manager, "late_lt.f")
    import user_lt  # noqa: F401

    assert Seen.values == [1]


def test_every_spec_for_a_module_is_applied_and_those_for_others_wait_on(write, manager):
    write(late_lt="def f(): return 1\ndef g(): return 2", other_lt="def h(): return 3")
    for key, target in enumerate(["late_lt.f", "late_lt.g", "other_lt.h"]):
        await_(manager, target, key)
    import late_lt

    late_lt.f(), late_lt.g()
    assert sorted(Seen.values) == [1, 2]
    manager.apply()
    assert [entry(manager, key)["state"] for key in range(3)] == ["emitting", "emitting", "pending"]
    assert FINDER in sys.meta_path


def test_two_managers_wait_for_one_module(write, manager):
    write(late_lt="def f(): return 1")
    other = InstrumentManager("other")
    other.instrument_classes["seen"] = Seen
    other.specs["a"] = spec("late_lt.f")
    other.apply()
    await_(manager, "late_lt.f")
    importlib.import_module("late_lt").f()
    assert Seen.values == [1, 1]
    other.stop()
    manager.apply()
    importlib.import_module("late_lt").f()
    assert Seen.values == [1, 1, 1]


def test_nothing_stays_in_the_program_when_nothing_is_awaited(write, manager):
    write(late_lt="def f(): return 1")
    before = list(sys.meta_path)
    await_(manager, "late_lt.f")
    assert sys.meta_path == [FINDER, *before]
    import late_lt

    assert sys.meta_path == before  # also before the manager looks again
    assert type(late_lt.__spec__) is ModuleSpec
    assert late_lt.__spec__._initializing is False
    assert "_initializing" not in vars(ModuleSpec)
    manager.apply()
    assert sys.meta_path == before


@pytest.mark.parametrize(
    "end",
    [
        lambda manager: manager.specs.clear(),
        lambda manager: manager.specs["a"].update(enabled=False),
        lambda manager: manager.specs["a"].update(lifespan=0),
        lambda manager: manager.specs["a"].update(target="os.path.join"),
        lambda manager: manager.specs["a"].update(select={"host": "another"}),
        lambda manager: manager.stop(),
    ],
    ids=["removed", "disabled", "expired", "another target", "deselected", "stopped"],
)
def test_a_spec_that_is_over_waits_no_more(write, manager, end):
    write(late_lt="def f(): return 1")
    before = list(sys.meta_path)
    await_(manager, "late_lt.f")
    end(manager)
    if manager._records:
        manager.apply()
    assert sys.meta_path == before
    importlib.import_module("late_lt").f()
    assert Seen.values == []


def test_a_lifespan_goes_on_while_a_spec_waits(write, manager, monkeypatch):
    write(late_lt="def f(): return 1", later_lt="def f(): return 1")
    await_(manager, "late_lt.f")
    await_(manager, "later_lt.f", "b", lifespan=1000)
    now = __import__("time").monotonic
    monkeypatch.setattr(
        "diagnose.arming.time", types.SimpleNamespace(monotonic=lambda: now() + 601)
    )
    importlib.import_module("late_lt").f()
    assert Seen.values == []
    importlib.import_module("later_lt").f()
    assert Seen.values == [1]
    probe = probes.active_probes["later_lt.f"]
    (timer,) = [one.timer for one in probe._attachments.values()]
    assert timer.deadline - now() < (1000 * 60) - 600


def test_a_manager_that_is_dropped_while_a_spec_waits_leaves_nothing(write):
    write(late_lt="def f(): return 1")
    before = list(sys.meta_path)
    manager = InstrumentManager("me")
    await_(manager, "late_lt.f", instrument={"type": "log", "name": "n", "value": "result"})
    assert sys.meta_path != before
    del manager
    gc.collect()
    assert sys.meta_path == before
    importlib.import_module("late_lt").f()


# --- what is found out on the way -------------------------------------------------------------


def test_a_target_that_the_imported_module_lacks_is_an_error_with_near_misses(write, manager):
    write(late_lt="def checkout(): pass")
    await_(manager, "late_lt.chekout")
    import late_lt  # noqa: F401

    manager.apply()
    assert entry(manager)["code"] == "target-not-found"
    assert "did you mean 'checkout'" in entry(manager)["err"]
    assert FINDER not in sys.meta_path


def test_an_expression_that_does_not_fit_is_told_by_the_next_apply(write, manager):
    write(late_lt="def f(x): return x")
    await_(manager, "late_lt.f", value="y + 1")
    import late_lt

    assert late_lt.f(1) == 1
    manager.apply()
    assert entry(manager)["state"] == "error"
    assert entry(manager)["code"] == "expression-name"


def test_an_instrument_that_can_not_be_made_is_told_before_the_import(write, manager):
    write(late_lt="def f(x): return x")
    made = {"type": "seen", "value": "x", "event": "retrun"}
    manager.specs["a"] = spec("late_lt.f", instrument=made)
    manager.apply()
    assert entry(manager)["code"] == "unknown-event"
    assert FINDER not in sys.meta_path


def test_the_background_tells_it_soon(write):
    write(late_lt="def f(): return 1")
    told = threading.Semaphore(0)

    class Telling(InstrumentManager):
        def mark(self, *args, **kwargs):
            super().mark(*args, **kwargs)
            told.release()

    manager = Telling("me")
    manager.specs["a"] = spec("late_lt.f", instrument={"type": "log", "name": "n", "value": "1"})
    manager.apply_in_background(period=3600)
    assert told.acquire(timeout=DEADLINE_SECONDS)
    assert entry(manager)["state"] == "pending"
    import late_lt  # noqa: F401

    assert told.acquire(timeout=DEADLINE_SECONDS)
    assert entry(manager)["state"] == "installed"
    manager.stop()


def test_the_document_in_mongodb_says_so_long_before_the_next_poll(write, database):
    write(late_lt="def f(): return 1")
    specs = database["specs"]
    specs.insert_one(
        {"_id": "a"} | spec("late_lt.f") | {"instrument": {"type": "log", "value": "1"}}
    )
    with MongoInstrumentManager(specs, process_id="me", period=3600):

        def is_state(state):
            return lambda found: found["a"].get("applied", {}).get("me", {}).get("state") == state

        wait_for_documents(specs, is_state("pending"))
        import late_lt

        wait_for_documents(specs, is_state("installed"))
        late_lt.f()


# --- kinds of modules and imports -------------------------------------------------------------


def test_a_submodule_is_awaited_while_its_package_is_imported(write, manager):
    cart = "class Cart:\n    def total(self): return 7"
    write({"shop_lt/__init__": "", "shop_lt/cart": cart})
    await_(manager, "shop_lt.cart.Cart.total")
    import shop_lt

    manager.apply()
    assert entry(manager)["state"] == "pending"
    assert not hasattr(shop_lt, "cart")
    from shop_lt.cart import Cart

    Cart().total()
    assert Seen.values == [7]


def test_an_attribute_of_a_package_with_the_name_of_a_submodule_is_found_in_it(write, manager):
    # As tqdm.tqdm: the path leads into both, and the submodule may never be imported.
    init = "class bar_lt:\n    def update(self): return 1"
    write({"bar_lt/__init__": init, "bar_lt/bar_lt": "class Other: pass"})
    await_(manager, "bar_lt.bar_lt.update")
    import bar_lt

    bar_lt.bar_lt().update()
    assert Seen.values == [1]


def test_a_module_in_a_namespace_package_is_awaited(write, manager):
    write({"spread_lt/inner/leaf": "def f(): return 1"})
    await_(manager, "spread_lt.inner.leaf.f")
    import spread_lt.inner

    manager.apply()
    assert entry(manager)["state"] == "pending"
    assert type(spread_lt.__spec__) is type(spread_lt.inner.__spec__) is ModuleSpec
    importlib.import_module("spread_lt.inner.leaf").f()
    assert Seen.values == [1]


def test_builtin_and_frozen_modules_are_awaited(manager):
    await_(manager, "xxsubtype.bench", value="args[1]")
    await_(manager, "__hello__.TestFrozenUtf8_1.__init__", "b", value="1")
    import xxsubtype

    xxsubtype.bench([], "append", 0)
    assert Seen.values == ["append"]
    import __hello__  # prints nothing on its own

    assert type(__hello__.__spec__) is type(xxsubtype.__spec__) is ModuleSpec
    manager.apply()
    assert entry(manager)["state"] == "emitting"
    # It is there; what it lacks is an error as anywhere.
    assert entry(manager, "b")["state"] in {"installed", "error"}


def test_an_extension_module_is_awaited():
    code = """
    import sys
    from datetime import UTC, datetime
    from diagnose.managers import InstrumentManager
    from diagnose.instruments import ProbeTestInstrument

    manager = InstrumentManager("me")
    manager.instrument_classes["seen"] = ProbeTestInstrument
    name = "_multiprocessing"
    assert name not in sys.modules
    manager.specs["a"] = {
        "target": f"{name}.sem_unlink", "lifespan": 1, "lastmodified": datetime.now(UTC),
        "instrument": {"type": "seen", "name": "n", "value": "args"},
    }
    manager.apply()
    (instrument,) = [record.appointment._instrument for record in manager._records.values()]
    module = __import__(name)
    assert type(module.__spec__.loader).__name__ == "ExtensionFileLoader"
    try:
        module.sem_unlink("/no-such-semaphore")
    except FileNotFoundError:
        pass
    print(instrument.results, manager._records["a"].appointment._result is not None)
    """
    assert run(code) == "[('/no-such-semaphore',)] True"


def test_a_module_that_reloads_is_left_alone(write, manager):
    write(late_lt="def f(): return 1", other_lt="")
    await_(manager, "other_lt.f")
    import late_lt

    loader, module_spec = late_lt.__loader__, late_lt.__spec__
    assert importlib.reload(late_lt) is late_lt
    assert type(late_lt.__spec__) is ModuleSpec
    assert type(late_lt.__loader__) is type(loader)
    assert late_lt.__spec__.origin == module_spec.origin


def test_circular_imports_are_armed_when_each_module_has_been_executed(write, manager):
    write(
        one_lt="def f(x): return x\nimport two_lt\ndef later(x): return x\nlater('inside')",
        two_lt="import one_lt\none_lt.f('inside')\ndef g(x): return x",
    )
    for key, target in enumerate(["one_lt.f", "one_lt.later", "two_lt.g"]):
        await_(manager, target, key, value="x")
    import one_lt
    import two_lt

    one_lt.f(1), one_lt.later(2), two_lt.g(3)
    assert Seen.values == [1, 2, 3]


def test_a_spec_that_comes_while_its_module_is_executed_is_applied_at_the_end(write, manager):
    write(late_lt="stage.started.set(); assert stage.go.wait(30)\ndef f(): return 1")
    stage.started, stage.go = threading.Event(), threading.Event()

    def user():
        import late_lt

        late_lt.f()

    thread = started(user)
    assert stage.started.wait(DEADLINE_SECONDS)
    await_(manager, "late_lt.f")
    assert "still being imported" in entry(manager)["err"]
    manager.apply()
    assert entry(manager)["state"] == "pending"
    stage.go.set()
    joined(thread)
    assert Seen.values == [1]
    assert type(sys.modules["late_lt"].__spec__) is ModuleSpec


def test_a_module_set_by_hand_is_found_by_the_next_apply(write, manager):
    write(late_lt="def f(): return 1")
    await_(manager, "late_lt.f")
    found = importlib.util.find_spec("late_lt")
    module = importlib.util.module_from_spec(found)
    sys.modules["late_lt"] = module
    found.loader.exec_module(module)
    manager.apply()
    assert entry(manager)["state"] == "installed"
    module.f()
    assert Seen.values == [1]
    assert type(found) is ModuleSpec


def test_a_spec_that_somebody_asks_for_is_like_any_other(write, manager):
    import copy

    write(late_lt="def f(): return 1")
    await_(manager, "late_lt.f")
    found = importlib.util.find_spec("late_lt")
    plain = PathFinder.find_spec("late_lt")
    assert found == plain
    assert repr(found).partition(" object at")[0] == repr(plain).partition(" object at")[0]
    assert isinstance(found, ModuleSpec)
    assert type(found.loader) is type(plain.loader)
    assert vars(found).keys() == vars(plain).keys()
    assert copy.copy(found)._initializing is False
    assert pkgutil.resolve_name("late_lt:f")() == 1
    assert Seen.values == [1]
    assert type(found) is ModuleSpec


@pytest.mark.parametrize("is_used_by_two", [False, True])
def test_a_lazily_loaded_module_is_armed_when_it_is_executed(write, manager, is_used_by_two):
    write(late_lt="stage.ran = True\ndef f(): return 1")
    await_(manager, "late_lt.f")
    found = importlib.util.find_spec("late_lt")
    inner = found.loader
    found.loader = importlib.util.LazyLoader(inner)
    module = importlib.util.module_from_spec(found)
    if is_used_by_two:  # as importlib does it, or as the recipe in its documentation does
        sys.modules["late_lt"] = module
        found.loader.exec_module(module)
        manager.apply()
        assert entry(manager)["state"] == "pending"
    else:
        importlib._bootstrap._load(found)
        module = sys.modules["late_lt"]
    assert not hasattr(stage, "ran")
    module.f()
    assert Seen.values == [1]
    assert stage.ran
    assert module.__spec__.loader is inner
    assert "exec_module" not in vars(inner)
    assert type(module) is types.ModuleType
    manager.apply()
    assert entry(manager)["state"] == "emitting"


def test_a_lazy_module_that_fails_shows_its_own_traceback(write, manager):
    write(late_lt="raise RuntimeError('no database')")

    def lazy():
        found = importlib.util.find_spec("late_lt")
        found.loader = importlib.util.LazyLoader(found.loader)
        module = importlib.util.module_from_spec(found)
        sys.modules["late_lt"] = module
        found.loader.exec_module(module)
        with pytest.raises(RuntimeError) as caught:
            module.f()
        return frames(caught.value)

    plain = lazy()
    del sys.modules["late_lt"]
    await_(manager, "late_lt.f")
    assert lazy() == plain


# --- what programs look at --------------------------------------------------------------------

LOOKS = """
    import importlib.resources, inspect, pkgutil, sys
    me = sys.modules[__name__]
    stage.seen = (
        type(__loader__).__name__,
        __loader__ is __spec__.loader,
        __spec__.loader_state,
        isinstance(__spec__, type(sys.__spec__)),
        repr(__spec__).partition(" object at")[0],
        __spec__._initializing,
        __spec__.origin == __file__,
        type(__spec__).__name__, type(__spec__).__module__,
        inspect.getsource(me)[:4],
        pkgutil.get_data(__package__, "data.txt"),
        importlib.resources.files(__package__).joinpath("data.txt").read_text(),
        [frame.function for frame in inspect.stack()[:3]],
    )
    def f(): return 1
"""


def test_a_module_that_looks_at_itself_sees_what_it_always_sees(write, manager, tmp_path):
    write({"look_lt/__init__": LOOKS})
    (tmp_path / "look_lt" / "data.txt").write_text("data")
    import look_lt

    plain = stage.seen
    assert plain[:3] == ("SourceFileLoader", True, None)
    del sys.modules["look_lt"], look_lt
    await_(manager, "look_lt.f")
    import look_lt

    assert stage.seen == plain
    look_lt.f()
    assert Seen.values == [1]
    assert inspect.getsource(look_lt.f) == "def f(): return 1\n"
    assert importlib.resources.files(look_lt).joinpath("data.txt").read_text() == "data"


def frames(error):
    found = []
    for each in (error, error.__cause__, error.__context__):
        if each is not None:
            found.append((type(each), each.args))
            found += [
                (frame.filename, frame.lineno, frame.name)
                for frame in traceback.extract_tb(each.__traceback__)
            ]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "def g():\n    raise ValueError('inside')\ng()",
        "import surely_missing_lt",
        "from late_lt import nothing",
        "x = (",
        "import sys\nsys.modules.pop(__name__)",
        "raise SystemExit(3)",
        "raise KeyboardInterrupt",
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise LookupError from e",
    ],
)
def test_an_import_that_fails_raises_what_it_would_raise(write, manager, source):
    write(late_lt=source)

    def attempt():
        try:
            import late_lt  # noqa: F401
        except BaseException as error:
            return frames(error)
        raise AssertionError("it did not fail")

    plain = attempt()
    await_(manager, "late_lt.f")
    assert attempt() == plain
    assert "late_lt" not in sys.modules
    assert not imports._trapped
    # The next attempt counts, too.
    write(late_lt="def f(): return 1")
    importlib.import_module("late_lt").f()
    assert Seen.values == [1]


def run(code, *arguments, cwd=None):
    """Run a program of its own; what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *(arguments or ["-c", textwrap.dedent(code)])],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


MAIN = """
    import sys
    from datetime import UTC, datetime
    from diagnose.managers import InstrumentManager

    manager = InstrumentManager("me")
    for key in ("__main__.work", "app_lt.tool.work", "app_lt.other.work"):
        manager.specs[key] = {
            "target": key, "lifespan": 1, "lastmodified": datetime.now(UTC),
            "instrument": {"type": "log", "name": key, "value": "x"},
        }
    manager.apply()

    def work(x):
        return x

    if __name__ == "__main__":
        manager.apply()
        work(1)
        import app_lt.other
        app_lt.other.work(2)
        manager.apply()
        for document in manager.specs.values():
            print(document["target"], document["applied"]["me"]["state"])
        print(type(__spec__).__name__, type(__loader__).__name__, __spec__ and __spec__.name)
        manager.stop()
"""


@pytest.mark.parametrize("way", ["-m", "file"])
def test_functions_of_the_script_itself_are_found_when_they_are_defined(tmp_path, way):
    (tmp_path / "app_lt").mkdir()
    for name, text in {"__init__": "", "tool": MAIN, "other": "def work(x): pass"}.items():
        (tmp_path / "app_lt" / f"{name}.py").write_text(textwrap.dedent(text))
    # As a file it is in sys.path by its own directory; -m has the working directory.
    if way == "file":
        (tmp_path / "script_lt.py").write_text(textwrap.dedent(MAIN))
    printed = run("", *(["-m", "app_lt.tool"] if way == "-m" else ["script_lt.py"]), cwd=tmp_path)
    assert printed.splitlines() == [
        "Probe (__main__.work)[tags={}] = 1",
        "Probe (app_lt.other.work)[tags={}] = 2",
        "__main__.work emitting",
        "app_lt.tool.work pending",
        "app_lt.other.work emitting",
        "ModuleSpec SourceFileLoader app_lt.tool"
        if way == "-m"
        else "NoneType SourceFileLoader None",
    ]


# --- other tools ------------------------------------------------------------------------------


class OwnSpecs:
    """A finder as `_pytest.assertion.rewrite` is one: its specs and loader are its own."""

    def find_spec(self, name, path=None, target=None):
        if not name.endswith("_lt"):
            return None
        found = PathFinder.find_spec(name, path)
        if found is None:
            return None
        return importlib.util.spec_from_file_location(name, found.origin, loader=self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        source = Path(module.__file__).read_text()
        exec(compile(source + "\nrewritten = True", module.__file__, "exec"), vars(module))


class Wrapping:
    """A finder as wrapt's is one: it asks the others, and puts its loader before theirs."""

    def __init__(self):
        self.asking = False

    def find_spec(self, name, path=None, target=None):
        if self.asking:
            return None
        self.asking = True
        try:
            found = importlib.util.find_spec(name)
        finally:
            self.asking = False
        if found is not None:
            found.loader = ChainedLoader(found.loader)
        return found


class ChainedLoader(importlib.abc.Loader):
    def __init__(self, inner):
        self.inner = inner

    def create_module(self, spec):
        return self.inner.create_module(spec)

    def exec_module(self, module):
        self.inner.exec_module(module)
        module.rewritten = True


@contextmanager
def placed(finder, index=0):
    sys.meta_path.insert(index, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@pytest.mark.parametrize("finder", [OwnSpecs, Wrapping])
@pytest.mark.parametrize("is_before_ours", [False, True])
def test_finders_of_other_tools_do_their_work(write, manager, finder, is_before_ours):
    write(late_lt="def f(): return 1")
    if is_before_ours:
        await_(manager, "late_lt.f")
    with placed(finder()):
        if is_before_ours:
            manager.apply()  # stands first again
        else:
            await_(manager, "late_lt.f")
        assert sys.meta_path[0] is FINDER
        import late_lt
    assert late_lt.rewritten
    late_lt.f()
    assert Seen.values == [1]
    assert FINDER not in sys.meta_path


def test_a_finder_that_came_in_between_costs_only_the_time_to_the_next_apply(write, manager):
    write(late_lt="def f(): return 1")
    await_(manager, "late_lt.f")
    with placed(OwnSpecs()):
        import late_lt

    assert late_lt.rewritten
    late_lt.f()
    manager.apply()
    late_lt.f()
    assert Seen.values == [1]
    assert FINDER not in sys.meta_path


def test_a_list_of_finders_that_takes_the_place_of_the_one_before_is_used(
    write, manager, monkeypatch
):
    write(late_lt="def f(): return 1")
    plain = list(sys.meta_path)
    await_(manager, "late_lt.f")
    sys.meta_path.remove(FINDER)
    monkeypatch.setattr(sys, "meta_path", [*plain, FINDER, FINDER])
    manager.apply()
    assert sys.meta_path == [FINDER, *plain]
    importlib.import_module("late_lt").f()
    assert Seen.values == [1]
    assert sys.meta_path == plain


@pytest.mark.filterwarnings("ignore:.*find_spec:ImportWarning")
@pytest.mark.parametrize("method", ["find_module", "find_spec"])
def test_finders_that_find_nothing_or_are_of_another_kind_are_passed_by(write, manager, method):
    write(late_lt="def f(): return 1")
    with placed(types.SimpleNamespace(**{method: lambda *args: None})):
        await_(manager, "late_lt.f")
        import late_lt

    manager.apply()
    late_lt.f()
    assert Seen.values == [1]


def test_what_a_finder_raises_is_raised(write, manager):
    class Raising:
        def find_spec(self, name, path=None, target=None):
            if name == "late_lt":
                raise OSError("no disk")

    write(late_lt="")
    await_(manager, "late_lt.f")
    with placed(Raising(), 1), pytest.raises(OSError, match="no disk"):
        import late_lt  # noqa: F401


def test_a_spec_of_a_class_that_can_not_be_changed_is_imported_all_the_same(write, manager, caplog):
    class Slotted:
        __slots__ = (
            "_initializing",
            "_uninitialized_submodules",
            "cached",
            "has_location",
            "loader",
            "name",
            "origin",
            "parent",
            "submodule_search_locations",
        )

    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name != "late_lt":
                return None
            plain, made = PathFinder.find_spec(name, path), Slotted()
            for each in set(Slotted.__slots__):
                setattr(made, each, getattr(plain, each, None))
            return made

    write(late_lt="def f(): return 1")
    with placed(Finder()):
        await_(manager, "late_lt.f")
        import late_lt

    manager.apply()
    late_lt.f()
    assert Seen.values == [1]
    wait_until(lambda: "failed on" in caplog.text)


def test_the_import_hooks_of_wrapt_and_ours_meet(write, manager):
    write(late_lt="def f(): return 1")
    order = []

    @wrapt.when_imported("late_lt")
    def hook(module):
        order.append(module.f())

    try:
        await_(manager, "late_lt.f")
        import late_lt

        assert order == [1]
        assert Seen.values == []  # wrapt's hooks are part of the import
        late_lt.f()
        assert Seen.values == [1]
    finally:
        sys.meta_path[:] = [
            each for each in sys.meta_path if not type(each).__module__.startswith("wrapt")
        ]


def test_a_program_that_ends_while_a_spec_waits_ends_without_a_word():
    code = """
    from datetime import UTC, datetime
    from diagnose.managers import InstrumentManager

    manager = InstrumentManager("me")
    manager.specs["a"] = {
        "target": "wsgiref.handlers.format_date_time", "lifespan": 1,
        "instrument": {"type": "log", "value": "1"}, "lastmodified": datetime.now(UTC),
    }
    manager.apply()
    print(manager.specs["a"]["applied"]["me"]["state"])
    """
    assert run(code) == "pending"


# --- errors of ours ---------------------------------------------------------------------------


def test_a_callback_that_raises_is_logged_and_the_import_goes_on(write, caplog):
    write(late_lt="x = 1")
    called = []

    def fails(name):
        called.append((name, threading.current_thread() is threading.main_thread()))
        raise OSError("not now")

    watches = [Watch(["late_lt"], fails), Watch(["late_lt"], called.append)]
    for watch in watches:
        watch.start()
    import late_lt

    assert late_lt.x == 1
    assert called == [("late_lt", False), "late_lt"]
    assert "not now" in caplog.text
    for watch in watches:
        watch.close()
        watch.close()


def test_other_errors_of_ours_are_logged_by_another_thread(write, caplog, monkeypatch):
    write(late_lt="x = 1")
    watch = Watch(["late_lt"], print)
    watch.start()
    monkeypatch.setattr(imports, "_announce", lambda name: 1 / 0)
    import late_lt

    assert late_lt.x == 1
    wait_until(lambda: "ZeroDivisionError" in caplog.text)
    assert {record.threadName for record in caplog.records} == {"diagnose-imports"}
    watch.close()


def test_a_callback_that_imports_what_is_awaited_is_not_waited_for(write):
    write(late_lt="", later_lt="")
    called = []

    def arrived(name):
        called.append(name)
        importlib.import_module("later_lt")

    watch = Watch(["late_lt", "later_lt"], arrived)
    watch.start()
    importlib.import_module("late_lt")
    assert called == ["late_lt", "later_lt"]
    watch.close()


# --- threads ----------------------------------------------------------------------------------


def test_no_thread_can_use_the_module_before_it_is_probed(write, manager):
    numbers = itertools.count()
    for _ in range(20):
        name = f"late{next(numbers)}_lt"
        write(**{name: "import time\nfor _ in range(3): time.sleep(0)\ndef f(): return 1"})
        await_(manager, f"{name}.f", name)
        go = threading.Barrier(4)

        def user(name=name, go=go):
            go.wait(DEADLINE_SECONDS)
            importlib.import_module(name).f()

        Seen.values.clear()
        joined(*[started(user) for _ in range(4)])
        assert Seen.values == [1] * 4


def test_an_import_that_ends_while_another_thread_looks_is_not_over(monkeypatch):
    class Ending(set):
        def __contains__(self, key):
            found = super().__contains__(key)
            self.add(key)
            vars(spec)["_initializing"] = False
            return found

    spec = importlib.machinery.ModuleSpec("late_lt", None)
    spec._initializing = True
    imports._trap(spec)
    monkeypatch.setattr(imports, "_ending", Ending())
    assert spec._initializing
    imports._release(spec)


def test_other_threads_wait_for_the_module_until_the_callbacks_are_over(write):
    write(late_lt="def f(): return 1")
    order, asked = [], threading.Event()

    def other():
        asked.set()
        import late_lt

        late_lt.f()
        order.append("other")

    def arrived(name):
        found = sys.modules[name].__spec__
        # What makes importlib wait, and what a look-up without locks sees.
        assert (found._initializing, vars(found)["_initializing"]) == (True, False)
        stage.thread = started(other)
        assert asked.wait(DEADLINE_SECONDS)
        for _ in range(50):
            assert targets.find("late_lt.f") is not None
        order.append("callback")

    watch = Watch(["late_lt"], arrived)
    watch.start()
    import late_lt

    order.append("first")
    joined(stage.thread)
    assert order[0] == "callback"
    assert sorted(order) == ["callback", "first", "other"]
    assert late_lt.__spec__._initializing is False
    watch.close()


def test_imports_applies_and_stops_at_once_do_no_harm(write, manager):
    names = [f"many{number}_lt" for number in range(30)]
    write(**dict.fromkeys(names, "def f(): return 1"))
    errors, done = [], threading.Event()

    def work(step):
        try:
            step()
        except BaseException as error:
            errors.append(error)

    def importing(mine):
        for name in mine:
            importlib.import_module(name).f()

    def applying():
        for number in itertools.count():
            for name in names[number % 3 :: 3]:
                manager.specs[name] = spec(f"{name}.f", value=f"result + {number}")
            manager.apply()
            if number % 5 == 4:
                manager.stop()
            if done.is_set():
                return

    def removing():
        while not done.is_set():
            for name in names[::4]:
                manager.specs.pop(name, None)
            manager.apply()

    importers = [started(work, lambda i=i: importing(names[i::3])) for i in range(3)]
    others = [started(work, applying), started(work, removing)]
    joined(*importers)
    done.set()
    joined(*others)
    assert not errors
    for name in names:
        manager.specs[name] = spec(f"{name}.f", value="'last'")
    manager.apply()
    Seen.values.clear()
    for name in names:
        sys.modules[name].f()
    assert Seen.values == ["last"] * len(names)
    manager.stop()
    assert not probes.active_probes


def test_a_manager_that_waits_for_the_very_import_does_not_stop_it(write, manager):
    """It holds its lock, and the module's import lock is what it waits for."""
    write(late_lt="stage.executing.set()\nassert stage.go.wait(30)\ndef f(): return 1")
    stage.executing, stage.go = threading.Event(), threading.Event()
    await_(manager, "late_lt.f")

    class Importing(Seen):
        def __init__(self, *args, **kwargs):
            assert manager._lock._is_owned()
            stage.go.set()
            import late_lt  # noqa: F401

            super().__init__(*args, **kwargs)

    def user():
        import late_lt

        late_lt.f()

    importer = started(user)
    assert stage.executing.wait(DEADLINE_SECONDS)
    manager.instrument_classes["importing"] = Importing
    manager.specs["b"] = spec("os.path.join", instrument={"type": "importing", "value": "1"})
    joined(started(manager.apply), importer)
    assert Seen.values == [1]


def test_a_manager_that_imports_an_awaited_module_itself_does_not_wait_for_itself(write, manager):
    write(late_lt="def f(): return 1")
    await_(manager, "late_lt.f")

    class Importing(Seen):
        def __init__(self, *args, **kwargs):
            import late_lt

            late_lt.f()
            super().__init__(*args, **kwargs)

    manager.instrument_classes["importing"] = Importing
    manager.specs["b"] = spec("os.path.join", instrument={"type": "importing", "value": "1"})
    joined(started(manager.apply))
    assert Seen.values == [1]


@pytest.mark.parametrize("lock", ["manager", "probes", "logging"])
def test_whatever_lock_is_held_by_whoever_waits_for_the_import_it_ends(
    write, manager, monkeypatch, lock
):
    """The one thing that an import waits for has a deadline."""
    monkeypatch.setattr(imports, "HOLD_SECONDS", 0.1)
    write(late_lt="stage.executing.set()\nassert stage.go.wait(30)\ndef f(): return 1")
    stage.executing, stage.go = threading.Event(), threading.Event()
    handler = logging.StreamHandler()
    held = {"manager": manager._lock, "probes": registry.lock, "logging": handler.lock}[lock]
    logger = logging.getLogger("test_imports")
    logger.addHandler(handler)

    class Logging(Seen):
        def attached(self):
            logger.warning("armed")

    manager.instrument_classes["seen"] = Logging
    await_(manager, "late_lt.f")

    def holder():
        with held:
            stage.go.set()
            import late_lt  # noqa: F401

            stage.imported_under_lock = True

    def user():
        importlib.import_module("late_lt")

    try:
        importer = started(user)
        assert stage.executing.wait(DEADLINE_SECONDS)
        joined(started(holder), importer)
    finally:
        logger.removeHandler(handler)
    assert stage.imported_under_lock
    # It is armed as soon as the lock is free, and known to the manager after that.
    wait_until(lambda: manager._records["a"].appointment._result is not None)
    sys.modules["late_lt"].f()
    assert Seen.values == [1]
    manager.apply()
    assert entry(manager)["state"] == "emitting"


def test_a_stop_while_the_import_waits_leaves_nothing_armed(write, manager, monkeypatch):
    write(late_lt="def f(): return 1")
    await_(manager, "late_lt.f")
    monkeypatch.setattr(imports, "HOLD_SECONDS", 0.05)
    with registry.lock:
        # The worker waits for the lock, the import no longer waits for the worker.
        joined(started(importlib.import_module, "late_lt"))
        manager.stop()
    importlib.import_module("late_lt").f()
    assert Seen.values == []
    assert not probes.active_probes


def test_a_forked_child_waits_by_itself(write, manager):
    write(late_lt="def f(): return 1", later_lt="def f(): return 2")
    manager.process_id, manager._id_is_given = "me", True
    await_(manager, "late_lt.f")
    await_(manager, "later_lt.f", "b")

    def child():
        import late_lt

        late_lt.f()
        assert Seen.values == [1]
        manager.apply()
        assert entry(manager)["state"] == "emitting"
        assert entry(manager, "b")["state"] == "pending"
        manager.stop()
        assert FINDER not in sys.meta_path
        return "fine"

    assert in_child(child) == "fine"
    importlib.import_module("later_lt").f()
    assert Seen.values == [2]
    assert "late_lt" not in sys.modules


def test_a_fork_while_another_thread_imports_leaves_the_child_able_to_import(write, manager):
    write(late_lt="stage.executing.set()\nassert stage.go.wait(30)\ndef f(): return 1", ok_lt="")
    stage.executing, stage.go = threading.Event(), threading.Event()
    await_(manager, "late_lt.f")
    importer = started(importlib.import_module, "late_lt")
    assert stage.executing.wait(DEADLINE_SECONDS)

    def child():
        import ok_lt  # noqa: F401

        assert not imports._ending
        manager.stop()
        return "fine"

    assert in_child(child) == "fine"
    stage.go.set()
    joined(importer)
    sys.modules["late_lt"].f()
    assert Seen.values == [1]
