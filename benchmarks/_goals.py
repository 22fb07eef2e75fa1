"""What the issues ask for, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from _rows import LONG_BODY, TEN

if TYPE_CHECKING:
    from collections.abc import Callable

# What two measurements of one thing differ by.
NOISE_NS = 2.0
# "No effect of the body's length" and "no stall", as far as clocks can tell: a body may
# seem that much longer, and a running thread waits that long for any other one
# (sys.getswitchinterval).
SAME_RATIO = 1.05
SWITCH_MS = 5.0
# A call with hotspots, and each line that runs in it.
HOTSPOTS_NS, HOTSPOTS_LINE_NS = 3_000, 80


@dataclass(frozen=True)
class Goal:
    """A goal; `look` takes the findings, and gives what was measured and whether that will do."""

    key: str
    label: str
    look: Callable


def number(value, digits=0):
    return "n/a" if value is None else f"{value:,.{digits}f}"


def at_most(key, limit, label, *, name="added_ns", unit="ns", digits=0):
    def look(findings):
        found = findings.figure(key, name)
        if found is None:
            return "n/a", None
        text = number(found.median, digits)
        return f"x {text}" if unit == "x" else f"{text} {unit}", found.median <= limit

    limit_text = f"x {limit:g}" if unit == "x" else f"{limit:,g} {unit}"
    return Goal(key, f"{label}: at most {limit_text}", look)


def cheaper(keys, wanted, other, label):
    """Of several ways to take the values, the one where we are less ahead counts."""

    def look(findings):
        found = [findings.times(key, other) for key in keys]
        if None in found:
            return "n/a", None
        return number(min(found), 1), min(found) >= wanted

    return Goal(keys[0], f"{label}: at least {wanted} times cheaper than {other}", look)


def hotspots(key, value, lines, name):
    """A call costs so much, and so much more for each line that runs."""
    limit = HOTSPOTS_NS + HOTSPOTS_LINE_NS * lines

    def look(findings):
        found = findings.figure(key, f"{name}_ns")
        if found is None:
            return "n/a", None
        if set(findings.all(key, f"{name}_lines")) != {lines}:
            raise ValueError(f"the function for {name} lines does not run {lines} of them")
        return f"{number(found.median)} ns", found.median <= limit

    total = f"{HOTSPOTS_NS:,} + {lines} x {HOTSPOTS_LINE_NS} ns"
    return Goal(key, f"`{value}`, {lines} lines that run: at most {total}", look)


def original(key):
    def look(findings):
        found = findings.all(key, "is_original")
        if not found:
            return "n/a", None
        return "original" if all(found) else "replaced", all(found)

    return Goal(key, f"{key}: the code object is the original", look)


def nothing_left(key):
    label = f"{key}: exactly 0 ns per call; as far as clocks can tell"
    return at_most(key, NOISE_NS, label, digits=1)


GOALS = (
    at_most("return", 200, "`return`, histogram"),
    cheaper(["return"], 50, "ddtrace", "`return`, histogram"),
    cheaper(
        ["return", "return-emit"], 10, "upstream", "`return`, the lesser of histogram and `emit`"
    ),
    at_most("end", 400, "`end`, histogram"),
    cheaper(["end", "end-emit"], 30, "upstream", "`end`, the lesser of histogram and `emit`"),
    at_most("fire", 700, "an empty `fire`"),
    at_most("fire-name", 1_000, "a `fire` that evaluates a name"),
    at_most("line", 350, "`line`, histogram"),
    at_most("when", 120, "condition false"),
    at_most("rate", 200, "over its rate limit"),
    at_most("ten", 1_200, f"{TEN} instruments on one function"),
    hotspots("hotspots", "hotspots", 3, "few"),
    hotspots("hotspots", "hotspots", 203, "many"),
    hotspots("hotspots-worst", "hotspots.worst", 3, "few"),
    hotspots("hotspots-worst", "hotspots.worst", 203, "many"),
    at_most(
        "body", SAME_RATIO, f"`end`, {LONG_BODY:,} nested calls", name="ratio", unit="x", digits=3
    ),
    at_most(
        "body-line",
        SAME_RATIO,
        f"`line`, {LONG_BODY:,} nested calls",
        name="ratio",
        unit="x",
        digits=3,
    ),
    at_most("heap", 1, "start and stop", name="start_stop_ms", unit="ms", digits=2),
    at_most("heap", SWITCH_MS, "stall of other threads", name="stall_ms", unit="ms", digits=2),
    original("stopped"),
    nothing_left("stopped"),
    original("expired"),
    nothing_left("expired"),
)
