"""A program whose audit hook raises at the Nth event of a phase, for all N; run by a test.

Arguments: the phase (``attach``, ``hit``, ``off``), ``once`` or ``on`` (from the Nth on), the
event. It prints what is wrong, and in the last line how many events were refused.
"""

from __future__ import annotations

import logging
import sys
import threading
import types

from diagnose import HistogramInstrument, probes, registry, sites
from diagnose.errors import DiagnoseError
from diagnose.instruments import ProbeTestInstrument
from diagnose.instruments.calltree import CallTreeInstrument

SOURCE = """
def helper(x):
    return x

def target(x):
    made = x
    return made + 1

def broken():
    raise KeyError(1)
"""


class Fires(ProbeTestInstrument):
    def fire(self, _globals, _locals):
        self.emit(self.name, dict(_locals), {})


class Tree(CallTreeInstrument):
    def emit(self, name, value, tags):
        pass


MADE = {
    "a name": lambda event: ProbeTestInstrument("k", "x", event),
    "a number": lambda event: HistogramInstrument("k", "x > 1", event),
    "the frame": lambda event: ProbeTestInstrument("k", "frame", event),
    "locals": lambda event: ProbeTestInstrument("k", "locals()", event),
    "eval": lambda event: ProbeTestInstrument("k", "eval('x')", event),
    "fire": lambda event: Fires("k", "1", event),
    "an error": lambda event: ProbeTestInstrument("k", "broken()", event),
    "a condition": lambda event: ProbeTestInstrument("k", "x", event, when="helper(x)"),
    "hotspots": lambda event: ProbeTestInstrument("k", "str(hotspots)", event),
    "a tree": lambda event: Tree("k", "tree.data()", event),
}


class Refusal:
    def __init__(self, *, goes_on):
        self.goes_on = goes_on
        self.thread = threading.get_ident()
        self.is_on = False
        self.count = self.begin = 0
        self.refused = []

    def hook(self, name, args):
        if self.is_on and threading.get_ident() == self.thread:
            self.count += 1
            if self.count == self.begin or (self.goes_on and self.count > self.begin):
                self.refused.append(name)
                raise RuntimeError(f"not allowed: {name}")

    def start(self, begin):
        self.begin, self.count, self.refused = begin, 0, []


def run(make, event, phase, refusal, wrong):
    shop = sys.modules["shop"]
    original = shop.target.__code__
    instrument = MADE[make](event)
    probe = probes.attach_to("shop.target")
    refusal.is_on = phase == "attach"
    try:
        probe.attach("k", instrument)
    except (RuntimeError, DiagnoseError) as error:
        refusal.is_on = False
        if "not allowed: " not in str(error):
            wrong.append(f"attach: {error!r}")
    refusal.is_on = phase == "hit"
    for x in (1, 2):
        result = shop.target(x)
        if result != x + 1:
            wrong.append(f"result: {result!r}")
    refusal.is_on = phase == "off"
    probe.detach("k")
    refusal.is_on = False
    if refusal.goes_on:
        # What could not be taken off did no harm, and goes as soon as it can.
        if shop.target(1) != 2:
            wrong.append("result while it could not be taken off")
        probe.attach("other", ProbeTestInstrument("other", "x"))
        probe.detach("other")
    hits = instrument.status.hits
    shop.target(3)
    if instrument.status.hits != hits:
        wrong.append("it serves on")
    if shop.target.__code__ is not original:
        wrong.append("its code is left")
        shop.target.__code__ = original
    if sites._sites or registry._on_site or probes.active_probes:
        wrong.append("something is left")
        sites._sites.clear()
        registry._on_site.clear()
        probes.active_probes.clear()


def main(phase, how, event):
    logging.disable()
    shop = sys.modules["shop"] = types.ModuleType("shop")
    exec(compile(SOURCE, "shop.py", "exec"), vars(shop))
    refusal = Refusal(goes_on=how == "on")
    sys.addaudithook(refusal.hook)
    refused = 0
    for make in MADE:
        if event not in {"call", "return"} and make == "the frame":
            continue
        if event != "return" and make in {"hotspots", "a tree"}:
            continue
        if make == "a tree" and phase == "hit" and sys.version_info < (3, 12):
            continue  # the profile function is outside of all guards
        for begin in range(1, 1000):
            wrong = []
            refusal.start(begin)
            try:
                run(make, event, phase, refusal, wrong)
            except BaseException as error:
                refusal.is_on = False
                raise SystemExit(f"{make}, {begin}, {refusal.refused}: {error!r}") from error
            refused += len(refusal.refused)
            if wrong:
                print(f"{make}, {begin}, {refusal.refused[:1]}: {wrong}")
            if not refusal.refused:
                break
    print(refused)


main(*sys.argv[1:])
