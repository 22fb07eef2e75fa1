"""The pytest plugin of explore.py: notes what each test does, and puts probes on a package.

It is put into the environment of the package under test and loaded by ``-p`` before any
``conftest.py``. What it is to do stands in the JSON file that ``EXPLORE`` names; what it saw
goes, a line of JSON each, into the file that is named there. The lines are written at once:
when the process dies, they tell in which test.

The bare run loads this file too, but neither imports this library nor changes anything.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import sys
import time
import zlib
from collections import Counter
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, MethodType

import pytest

# Not given to the processes that tests start: those are not probed.
_ORDER_FILE = os.environ.pop("EXPLORE", None)

# Modules that test the package, or that the test runner loads from it.
# (`werkzeug.test` and `jinja2.tests` do neither.)
_NOT_PROBED = re.compile(r"(^|\.)(_?tests?\.|test_|conftest$)|pytest_?plugin$")
# What is another one in each run, and stands in the names of some tests: addresses, times, UUIDs.
_CHANGING = re.compile(
    r"0x[0-9a-f]{4,}|\d\d:\d\d:\d\d(\.\d+)?|[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}",
    re.IGNORECASE,
)
_FLUSH_SECONDS = 1.0
_CONTAINER_LEVELS = 2
_HOLDERS = (functools.cached_property, functools.partial, functools.partialmethod)


class Names:
    """Names of tests that are the same in every run."""

    def __init__(self):
        self.by_id = {}
        self.counts = Counter()

    def __getitem__(self, node_id):
        name = self.by_id.get(node_id)
        if name is None:
            name = _CHANGING.sub("…", node_id)
            self.counts[name] += 1
            if self.counts[name] > 1:
                name = f"{name} #{self.counts[name]}"
            self.by_id[node_id] = name
        return name


# --- what the tests do ----------------------------------------------------------------------


class Notes:
    """Writes down what each test does."""

    def __init__(self, path, names):
        self.names = names
        self.file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115  (open until the end)

    def write(self, **entry):
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()

    def pytest_runtest_logstart(self, nodeid):
        self.write(begin=self.names[nodeid])

    def pytest_runtest_logreport(self, report):
        outcome = report.outcome
        if hasattr(report, "wasxfail"):
            outcome = "xfailed" if outcome == "skipped" else "xpassed"
        elif outcome == "failed" and report.when != "call":
            outcome = "error"
        if report.when == "call" or outcome != "passed":
            self.write(test=self.names[report.nodeid], outcome=outcome, why=why(report))

    def pytest_collectreport(self, report):
        if not report.passed:
            name = f"collecting {_CHANGING.sub('…', report.nodeid)}"
            self.write(test=name, outcome="error" if report.failed else "skipped", why=why(report))


def why(report):
    """One line about what failed."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(report.longrepr or "") if crash is None else str(crash.message)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    return (lines[0] if crash is not None else lines[-1])[:300]


class Choice:
    """Runs some of the tests, and makes each of them do the same in every run."""

    def __init__(self, order, names):
        self.names = names
        self.only = None if order["only"] is None else set(order["only"])
        self.leave_out = set(order["leave_out"])
        self.unwanted = tuple(order["leave_out_from"])

    def pytest_collection_modifyitems(self, config, items):
        kept, gone = [], []
        for item in items:
            name = self.names[item.nodeid]
            wanted = not name.startswith(self.unwanted) if self.unwanted else True
            wanted &= name not in self.leave_out and (self.only is None or name in self.only)
            (kept if wanted else gone).append(item)
        if gone:
            items[:] = kept
            config.hook.pytest_deselected(items=gone)

    def pytest_runtest_setup(self):
        random.seed(0)


@pytest.hookimpl(trylast=True)  # after the suite's own profile was loaded
def pytest_configure():
    if not _ORDER_FILE:
        return
    # Loaded by now, unless the suite can do without: then so can we.
    hypothesis = sys.modules.get("hypothesis")
    if hypothesis is None or not _order()["repeatable_hypothesis"]:
        return
    hypothesis.settings.register_profile(
        "explore",
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=20,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("explore")


@functools.cache
def _order():
    return json.loads(Path(_ORDER_FILE).read_text(encoding="utf-8"))


# --- probes -----------------------------------------------------------------------------------


class Prober:
    """Puts instruments on every function that a package's modules define.

    Args:
        tops: names of the package's top-level modules.
        events: one instrument for each of them goes on each function.
    """

    def __init__(self, tops, events):
        self.tops = tuple(tops)
        self.events = events
        self.folders = set()
        self.functions = {}
        self.classes = {}
        self.original = {}
        # By id: functions are kept as long as they are probed.
        self.changed_by_program = set()
        sys.addaudithook(self.note_swap)
        self.instruments = []
        self.refused = []
        self.pairs = []
        self.flushed = time.monotonic()
        self.kinds = _instrument_classes()

    def note_swap(self, event, arguments):
        """Note which functions get other code from their own program (networkx does that)."""
        if event == "object.__setattr__" and arguments[1] == "__code__":
            by = sys._getframe(1).f_globals.get("__name__", "")
            if by.partition(".")[0] != "diagnose":
                self.changed_by_program.add(id(arguments[0]))

    def owns(self, name):
        """Whether a module of that name is the package's own, and not there for its tests."""
        return name.partition(".")[0] in self.tops and not _NOT_PROBED.search(name)

    def watch_imports(self):
        """Probe each of the package's modules as soon as it was executed."""
        execute = SourceFileLoader.exec_module

        def exec_module(loader, module):
            execute(loader, module)
            if self.owns(module.__name__):
                self.walk_module(module)

        # The import system's own frames are left out of tracebacks of failed imports, and
        # `warnings.warn(stacklevel=2)` passes over them. This one has to be, as well.
        exec_module.__code__ = exec_module.__code__.replace(
            co_filename="<frozen importlib._bootstrap_external>", co_name="exec_module"
        )
        SourceFileLoader.exec_module = exec_module

    def sweep(self):
        """Probe what came in other ways: imported before, loaded by pytest, made later."""
        self.classes.clear()
        for name, module in list(sys.modules.items()):
            if self.owns(name) and type(getattr(module, "__dict__", None)) is dict:
                self.walk_module(module)

    def walk_module(self, module):
        file = getattr(module, "__file__", None)
        if file and "." not in module.__name__:
            is_package = hasattr(module, "__path__")
            self.folders.add(f"{Path(file).parent}{os.sep}" if is_package else file)
        for value in list(vars(module).values()):
            self.walk(value)

    def walk(self, value, level=0):
        """Find functions in whatever may hold them; user code is not run for it."""
        kind = type(value)
        if kind is FunctionType:
            self.put_on(value)
        elif issubclass(kind, type):
            module = type.__getattribute__(value, "__dict__").get("__module__")
            if id(value) not in self.classes and isinstance(module, str) and self.owns(module):
                self.classes[id(value)] = value
                for inside in list(type.__getattribute__(value, "__dict__").values()):
                    self.walk(inside)
        elif kind in (staticmethod, classmethod, MethodType):
            self.walk(value.__func__)
        elif issubclass(kind, property):
            for inside in (value.fget, value.fset, value.fdel):
                self.walk(inside)
        elif issubclass(kind, _HOLDERS):
            self.walk(value.func)
        elif kind in (dict, list, tuple, set, frozenset) and level < _CONTAINER_LEVELS:
            for inside in list(value.values() if kind is dict else value):
                self.walk(inside, level + 1)
        elif kind is functools._lru_cache_wrapper:
            self.walk(value.__wrapped__)

    def put_on(self, function):
        if id(function) in self.functions:
            return
        self.functions[id(function)] = function
        wrapped = vars(function).get("__wrapped__")
        if wrapped is not None:
            self.walk(wrapped)
        file = function.__code__.co_filename
        if not (
            (isinstance(function.__module__, str) and self.owns(function.__module__))
            or any(file.startswith(folder) for folder in self.folders)
        ):
            return
        if _NOT_PROBED.search(str(function.__module__)):
            return
        original = function.__code__
        made = []
        try:
            for event in self.events:
                instrument = self.instrument(event, function, original)
                instrument(function)
                made.append(instrument)
        except Exception as error:
            self.refused.append((path_of(function), f"{event}: {type(error).__name__}: {error}"))
        self.instruments += made
        if len(made) == len(self.events):
            self.pairs.append(made)
        self.original[id(function)] = function, original

    def instrument(self, event, function, code):
        """One of two kinds, by the function's name: each goes another way through the engine."""
        buffered, plain = self.kinds
        is_even = zlib.crc32(function.__qualname__.encode()) % 2 == 0
        path = path_of(function)
        if event == "return":
            return buffered(path, "elapsed") if is_even else plain(path, "result")
        if event == "end":
            name = first_parameter(code)
            if is_even and name is not None:
                return plain(path, name, event)
            return buffered(path, "1", event)
        if event == "call":
            return buffered(path, "1", event) if is_even else plain(path, "start", event)
        raise ValueError(f"no instrument for the event {event!r}")

    # --- hooks ---

    def pytest_collection_finish(self):
        self.sweep()

    def pytest_runtest_logfinish(self):
        if time.monotonic() - self.flushed > _FLUSH_SECONDS:
            self.flush()
            self.flushed = time.monotonic()

    def flush(self):
        for instrument in self.instruments:
            instrument.flush()

    def summary(self):
        """What became of the probes; takes them off."""
        from diagnose.probes import active_probes

        self.flush()
        hits = dict.fromkeys(self.events, 0)
        suppressed = {}
        errors = []
        overflowed = False
        for instrument in self.instruments:
            status = instrument.status
            hits[instrument.event] += status.hits
            for reason, count in status.suppressed.items():
                suppressed[reason] = suppressed.get(reason, 0) + count
            overflowed |= has_lost(instrument)
            if status.error:
                errors.append((instrument.name, f"{instrument.event}: {status.error}"))
        # Where two functions have one path, it leads to the first of them.
        paths = Counter(path_of(function) for function, _ in self.original.values())
        mine = [
            (function, code)
            for function, code in self.original.values()
            if paths[path_of(function)] == 1 and path_of(function) in active_probes
        ]
        # All of them first: what is inside a decorator is also reached by the path of that.
        for probe in list(active_probes.values()):
            probe.stop()
        changed = [
            path_of(function)
            for function, code in mine
            if function.__code__ is not code and id(function) not in self.changed_by_program
        ]
        refused = {path for path, _ in self.refused}
        return {
            "functions": len(self.original) - len(refused),
            "hits": hits,
            "suppressed": suppressed,
            "errors": errors,
            "refused": self.refused,
            "not_restored": changed,
            "changed_by_program": len(self.changed_by_program & self.original.keys()),
            "is_least": overflowed,
            "uneven": [
                (made[0].name, ", ".join(f"{one.status.hits:,} `{one.event}`" for one in made))
                for made in self.pairs
                if len({one.status.hits for one in made}) > 1 and not any(map(has_lost, made))
            ],
        }


def has_lost(instrument):
    """Whether more values came than its buffer holds: then it has counted too few hits."""
    return any("the oldest were dropped" in text for text in instrument.warnings)


def path_of(function):
    return f"{function.__module__}.{function.__qualname__}"


def _instrument_classes():
    from diagnose import HistogramInstrument, Instrument

    class Buffered(HistogramInstrument):
        longest_seconds = None  # a busy machine must not take it off

        """Takes the shortest way there is: the value goes into a buffer, and that is all."""

        # Emptied by us between tests. The thread that does it in an application would be
        # seen by tests which count threads, or fork.
        def attached(self):
            pass

        def detached(self):
            self.flush()

    class Plain(Instrument):
        longest_seconds = None  # a busy machine must not take it off

        """Is called at each hit, with a value of the program's."""

        def emit(self, name, value, tags):
            type(value)

    return Buffered, Plain


def first_parameter(code):
    """The first parameter, if it has a value wherever the function ends."""
    if not code.co_argcount:
        return None
    name = code.co_varnames[0]
    return None if name in _deleted_names(code) or not name.isidentifier() else name


def _deleted_names(code):
    import dis

    found = set()
    for one in dis.get_instructions(code):
        if one.opname.startswith("DELETE_"):
            found.add(one.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            found |= _deleted_names(inner)
    return found


# --- the start --------------------------------------------------------------------------------


class Ending:
    """Writes the last line."""

    def __init__(self, notes, prober):
        self.notes = notes
        self.prober = prober

    def pytest_unconfigure(self):
        self.notes.write(summary=self.prober.summary() if self.prober else {})
        self.notes.file.close()


def pytest_load_initial_conftests(early_config):
    """Begin, before any of the suite's own files are loaded."""
    if not _ORDER_FILE:
        return
    order = _order()
    manager = early_config.pluginmanager
    names = Names()
    notes = Notes(order["report"], names)
    prober = None
    if order["events"]:
        prober = Prober(order["modules"], order["events"])
        prober.watch_imports()
        prober.sweep()
        manager.register(prober)
    for plugin in (notes, Choice(order, names), Ending(notes, prober)):
        manager.register(plugin)
