"""Figures, the table of rows and libraries, and the table of goals."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from _environments import ROOT, our_project
from _goals import GOALS, NOISE_NS
from _rows import MEASUREMENTS, ROWS
from sides import LIBRARIES, NOBODY

NOT_THERE = "not there"
NOT_AVAILABLE = "n/a"
COMPARED = ("upstream", "ddtrace")
# Of so few there is no low and high worth a table.
QUICK_ROUNDS = 2


@dataclass(frozen=True)
class Figure:
    """The median over the rounds, and the least and the most of them."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Findings:
    """What one interpreter's results say."""

    results: dict[tuple[str, str], list[dict]]

    def all(self, key, name, side="here"):
        """A figure of every round; empty when there is none."""
        outcomes = self.results.get((key, side), [])
        return [outcome[name] for outcome in outcomes if name in outcome]

    def figure(self, key, name="added_ns", side="here"):
        values = self.all(key, name, side)
        return Figure(statistics.median(values), min(values), max(values)) if values else None

    def times(self, key, other, name="added_ns"):
        """How many times cheaper we are than another side, by the medians."""
        ours, theirs = self.figure(key, name), self.figure(key, name, other)
        return theirs.median / max(ours.median, 1e-9) if ours and theirs else None

    def is_absent(self, key, side="here"):
        return bool(self.all(key, "absent", side))


# --- tables --------------------------------------------------------------------------------


def table(head, rows):
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]

    def line(row):
        padded = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if at == 0 else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def shown(row, value):
    text = f"{value:,.{row.digits}f}"
    return f"x {text}" if row.unit == "x" else f"{text} ms" if row.unit == "ms" else text


def spread(row, found):
    return f"{found.low:,.{row.digits}f} to {found.high:,.{row.digits}f}"


def cell(findings, row, side):
    if side not in (*MEASUREMENTS[row.key].sides, "before"):
        return ""
    found = findings.figure(row.key, row.name, side)
    if found:
        return shown(row, found.median)
    return NOT_THERE if findings.is_absent(row.key, side) else NOT_AVAILABLE


def ratio(findings, row, other):
    found = findings.times(row.key, other, row.name) if row.is_compared else None
    return "" if found is None else f"{found:,.{1 if found < 100 else 0}f}"


def main_table(findings, rows, sides):
    compared = [side for side in COMPARED if side in sides]
    lines = []
    for row in rows:
        ours = findings.figure(row.key, row.name)
        cells = [cell(findings, row, side) for side in sides]
        cells.insert(1, spread(row, ours) if ours else "")
        lines.append([row.label, *cells, *(ratio(findings, row, side) for side in compared)])
    titles = [LIBRARIES[side].title for side in sides]
    titles.insert(1, "low to high")
    cheaper = [f"{LIBRARIES[side].title} ÷ here" for side in compared]
    return table(["ns added per call, or as it says", *titles, *cheaper], lines)


def spread_table(findings, rows, others):
    """Lowest and highest of the others."""
    lines = []
    for row in rows:
        found = [findings.figure(row.key, row.name, side) for side in others]
        if any(found):
            lines.append([row.label, *(spread(row, each) if each else "" for each in found)])
    return table(["low to high", *(LIBRARIES[side].title for side in others)], lines)


def goals_table(findings, goals):
    lines = []
    for goal in goals:
        text, is_met = goal.look(findings)
        if is_met is None:
            verdict = NOT_THERE if findings.is_absent(goal.key) else "not measured"
        else:
            verdict = "met" if is_met else "missed"
        lines.append([goal.label, text, verdict])
    return table(["goal", "measured", ""], lines)


# --- report --------------------------------------------------------------------------------


def cpu_name():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def our_version():
    version = our_project()["version"]
    try:
        commit = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--", "diagnose")
    except (OSError, subprocess.CalledProcessError):
        return version
    return f"{version} ({commit}{', changed' if changed else ''})"


def git(*arguments):
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def load():
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def machine(load_before, sides):
    others = [LIBRARIES[side].requirement for side in sides if LIBRARIES[side].requirement]
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {cpu_name()}, {os.cpu_count()} CPUs, "
        f"{platform.system()} {platform.release()}, load {load_before} before and {load()} after; "
        f"here: {our_version()}{'; beside it: ' if others else ''}{', '.join(others)}"
    )


def report(interpreter, keys, about, rounds, objects):
    findings = Findings(interpreter.results)
    rows = [row for row in ROWS if row.key in keys]
    goals = [goal for goal in GOALS if goal.key in keys]
    parts = [
        f"## Python {interpreter.version}",
        f"{about}; {rounds} rounds; {objects:,} objects on the heap of start and stop.",
        main_table(findings, rows, interpreter.columns),
    ]
    scale = {
        name: findings.figure("scale", f"{name}_ns", NOBODY)
        for name in ("clocks", "decorator", "nothing")
    }
    if all(scale.values()):
        parts.append(
            f"For scale: two `time.perf_counter()` reads take {scale['clocks'].median:.0f} ns, a "
            f"`functools.wraps` decorator that does nothing {scale['decorator'].median:.0f} ns. The "
            "same function measured twice differs by "
            f"{scale['nothing'].low:.1f} to {scale['nothing'].high:.1f} ns."
        )
    if goals:
        parts.append(goals_table(findings, goals))
    if len(interpreter.sides) > 1 and rounds > QUICK_ROUNDS:
        parts.append(spread_table(findings, rows, interpreter.sides[1:]))
    parts += remarks(interpreter, findings)
    return "\n\n".join(parts)


def remarks(interpreter, findings):
    """What a reader of the tables should know."""
    for name, why in interpreter.why_not.items():
        yield f"{LIBRARIES[name].title} was not measured: {why}."
    for (key, side), why in interpreter.failures.items():
        yield f"Not measured: {key}, {side}: {why}"
    expired = findings.all("expired", "is_original", "upstream")
    if expired and not all(expired):
        yield "Upstream's wrapper stays in place when its instrument has expired."
    if findings.figure("generator", side="upstream"):
        yield (
            "Upstream's `return` of a generator or coroutine is when it is made, here and in "
            "ddtrace when it finishes."
        )
    left = findings.figure("stopped")
    if left and left.median > NOISE_NS:
        yield (
            f"Stopped, the function has its own code again, yet a call takes {left.median:.1f} ns "
            "more: this CPython does not specialise calls of a function whose `__code__` was "
            "ever set."
        )
