"""Start and stop on a large heap: how long they take, whom they stall, whom they reach."""

from __future__ import annotations

import functools
import gc
import importlib
import statistics
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

from sides.arrivals import nothing

SOURCE = "def add(a, b):\n    total = a + b\n    return total\n"


class Ticker(threading.Thread):
    """Does nothing but look at the clock, and keeps the longest gap between two looks."""

    def __init__(self):
        super().__init__(daemon=True)
        self.gap = 0.0
        self.ended = False

    def run(self):
        clock = time.perf_counter
        gap, last = 0.0, clock()
        while not self.ended:
            now = clock()
            gap = max(gap, now - last)
            last = now
        self.gap = gap

    @classmethod
    def longest_gap_ms(cls, action):
        ticker = cls()
        ticker.start()
        time.sleep(0.01)
        action()
        time.sleep(0.01)
        ticker.ended = True
        ticker.join()
        return ticker.gap * 1e3


def make_modules(count):
    """Modules with a function each: what a library keeps about one is no help with the next."""
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        names = [f"target_{number}" for number in range(count)]
        for name in names:
            Path(folder, f"{name}.py").write_text(SOURCE)
        importlib.invalidate_caches()
        made = [importlib.import_module(name) for name in names]
        sys.path.remove(folder)
    return made


def make_references(add, number):
    """Twenty references to a function, of the kinds that programs have, as callers by kind."""
    modules = [types.ModuleType(f"user_{number}_{each}") for each in range(4)]
    for module in modules:
        module.add = add
        sys.modules[module.__name__] = module

    class Holder:
        method = add
        static = staticmethod(add)

    def enclose(function):
        return lambda: function(1, 2)

    # All of them are held by a module, as a program's registries are.
    home = modules[0]
    home.Holder = Holder
    home.aliases = [add] * 4
    home.table = {"add": add, "sum": add}
    home.methods = [types.MethodType(add, each) for each in range(4)]
    home.partials = [functools.partial(add, 1) for _ in range(2)]
    home.closure = enclose(add)
    home.default = lambda function=add: function(1, 2)
    return [
        *(lambda module=module: module.add(1, 2) for module in modules),
        *(lambda: home.Holder.method(1, 2), lambda: home.Holder.static(1, 2)),
        *(lambda at=at: home.aliases[at](1, 2) for at in range(4)),
        *(lambda key=key: home.table[key](1, 2) for key in home.table),
        *(lambda at=at: home.methods[at](2) for at in range(4)),
        *(lambda at=at: home.partials[at](2) for at in range(2)),
        home.closure,
        home.default,
    ]


def measure_heap(side, job):
    gc.disable()
    heap = [[] for _ in range(job["objects"])]
    gc.enable()
    gc.collect()
    # The first, the timed ones, and the ones that another thread watches.
    modules = make_modules(1 + job["starts"] + job["tries"])
    references = [make_references(module.add, at) for at, module in enumerate(modules)]

    def start_and_stop(between=nothing):
        probe = side.probe(f"{modules.pop().__name__}.add", job["work"])
        began = time.perf_counter()
        probe.start()
        spent = time.perf_counter() - began
        between()
        began = time.perf_counter()
        probe.stop()
        return (spent + time.perf_counter() - began) * 1e3

    def call_all(times):
        for caller in references[-1]:
            caller()

    seen = []
    first = start_and_stop(lambda: seen.append(side.hits(call_all, 1)))
    spent = [start_and_stop() for _ in range(job["starts"])]
    # A stall that the library makes is there each time; one that the machine makes is not.
    stall = min(Ticker.longest_gap_ms(start_and_stop) for _ in range(job["tries"]))
    without = min(Ticker.longest_gap_ms(nothing) for _ in range(job["tries"]))
    return {
        "first_ms": first,
        "start_stop_ms": statistics.median(spent),
        "stall_ms": stall,
        "stall_without_ms": without,
        "seen": seen[0],
        "objects": len(heap),
    }
