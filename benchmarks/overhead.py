"""What probes cost: this library and upstream `diagnose` 5.0.1, in one run on one machine.

    python benchmarks/overhead.py [--quick] [--python PATH]... [--json FILE]

Prints tables that are also valid Markdown. benchmarks/README.md says what is measured and
how. Upstream is installed from PyPI into an environment of its own below
benchmarks/results/, and runs in processes of its own.

Exit codes: 0 when everything of this library was measured, also where a goal is missed;
1 when something could not be measured; 2 for arguments that make no sense.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = HERE / "results"
UPSTREAM = "diagnose==5.0.1"
WORKER_SECONDS = 180

# What the issue asks for.
RETURN_NS = 250
RETURN_TIMES = 10
END_TIMES = 30
LONG_BODY = 20_000
START_STOP_MS = 2.0
# What two measurements of one thing differ by.
NOISE_NS = 2.0
# "No effect of the body's length" and "no stall", as far as clocks can tell: a body may
# seem that much longer, and a running thread waits that long for any other one
# (sys.getswitchinterval).
SAME_RATIO = 1.05
SWITCH_MS = 5.0

PROBE = """
import json, platform, sys
print(json.dumps({
    "version": platform.python_version(),
    "implementation": sys.implementation.name,
    "base": getattr(sys, "_base_executable", sys.executable),
}))
"""

IMPORTS = """
import sys
import diagnose, hunter
"""

# case, variant, what the row says
CALLS = (
    ("call", "discard", "`call`, 1 into a counter"),
    ("call", "emit", "`call`, 1 to a subclass's `emit`"),
    ("return", "discard", "`return`, `elapsed` into a histogram"),
    ("return", "statsd", "the same, to StatsD by UDP, defaults"),
    ("return", "statsd-all", "the same, to StatsD by UDP, every value"),
    ("return", "emit", "`return`, `elapsed` to a subclass's `emit`"),
    ("end", "discard", "`end`, a local into a histogram"),
    ("end", "emit", "`end`, a local to a subclass's `emit`"),
)
GONE = (
    ("stopped", "emit", "stopped"),
    ("expired", "emit", "expired"),
)
SCALE = (
    ("clocks", "two `time.perf_counter()` reads"),
    ("decorator", "a `functools.wraps` decorator that does nothing"),
    ("nothing", "nothing: the same function measured twice"),
)
LENGTHS = (0, 100, LONG_BODY)


class CannotMeasureError(Exception):
    """A process that was to measure something failed; the text says why."""


@dataclass
class Effort:
    """How much is done, and how often."""

    rounds: int
    heap_rounds: int
    repeats: int
    repeat_ns: int


FULL = Effort(rounds=5, heap_rounds=3, repeats=16, repeat_ns=20_000_000)
QUICK = Effort(rounds=2, heap_rounds=1, repeats=8, repeat_ns=8_000_000)


@dataclass
class Interpreter:
    """A Python to measure with: this library as it stands here, upstream in an environment."""

    ours: Path
    about: dict
    upstream: Path | None = None
    why_not: str = ""
    results: dict = field(default_factory=dict)
    failures: dict = field(default_factory=dict)

    @property
    def sides(self):
        return ("ours", "upstream") if self.upstream else ("ours",)


# --- environments and processes -----------------------------------------------------------


def clean_environment():
    """Nothing of the caller's may decide which library a worker imports."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return kept | {"PYTHONWARNINGS": "ignore"}


def look_at(path):
    found = shutil.which(path)
    if found is None:
        raise CannotMeasureError(f"there is no Python at {path!r}; give --python another path")
    done = subprocess.run([found, "-c", PROBE], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMeasureError(f"{path!r} does not run: {last_line(done.stderr)}")
    interpreter = Interpreter(Path(found), json.loads(done.stdout))
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [found, "-c", IMPORTS],
        env=environment,
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CannotMeasureError(
            f"{found} can't import this library whole: {last_line(done.stderr)}; "
            f"install what it needs: {found} -m pip install -e {ROOT}"
        )
    try:
        interpreter.upstream = install_upstream(interpreter.about)
    except CannotMeasureError as error:
        interpreter.why_not = str(error)
    return interpreter


def install_upstream(about):
    """Make an environment with upstream in it, once for each version of Python."""
    folder = CACHE / f"upstream-{about['implementation']}-{about['version']}"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    marker = folder / "installed"
    if marker.exists() and marker.read_text() == UPSTREAM and python.exists():
        return python
    say(f"installing {UPSTREAM} into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    environment = clean_environment()
    for command in (
        [about["base"], "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UPSTREAM],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotMeasureError(f"{UPSTREAM} can't be installed: {last_line(done.stderr)}")
    marker.write_text(UPSTREAM)
    return python


def run_worker(interpreter, job):
    """Measure one thing in a fresh process."""
    environment = clean_environment()
    python = interpreter.ours
    if job["side"] == "ours":
        environment["PYTHONPATH"] = str(ROOT)
    elif job["side"] == "upstream":
        python = interpreter.upstream
    command = [str(python), str(HERE / "_worker.py"), json.dumps(job)]
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=WORKER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotMeasureError(f"took more than {WORKER_SECONDS} s") from None
    if done.returncode:
        raise CannotMeasureError(last_line(done.stderr))
    outcome = json.loads(done.stdout.splitlines()[-1])
    if job["side"] == "ours" and ROOT not in Path(outcome["file"]).parents:
        raise CannotMeasureError(f"measured {outcome['file']} instead of {ROOT}")
    return outcome


def last_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def say(text):
    print(text, file=sys.stderr, flush=True)


# --- measuring -----------------------------------------------------------------------------


def plan(effort):
    """All jobs of one round, as (key, job) without the side."""
    usual = {"repeats": effort.repeats, "repeat_ns": effort.repeat_ns, "most_calls": 100_000}
    jobs = [((case, variant), {"case": case, "variant": variant}) for case, variant, _ in CALLS]
    jobs += [((case, variant), {"case": case, "variant": variant}) for case, variant, _ in GONE]
    for length in LENGTHS:
        job = {"case": "body", "variant": "discard", "length": length, "alternations": 3}
        jobs.append((("body", length), job | {"repeats": 5}))
    return [(key, usual | job) for key, job in jobs]


def measure(interpreter, effort, objects):
    usual = {"repeats": effort.repeats, "repeat_ns": effort.repeat_ns, "most_calls": 100_000}
    for number in range(effort.rounds):
        say(f"Python {interpreter.about['version']}: round {number + 1} of {effort.rounds}")
        for case, _ in SCALE:
            take(interpreter, ("scale", case), usual | {"side": "neither", "case": case})
        for key, job in plan(effort):
            take_both(interpreter, key, job, number)
    for number in range(effort.heap_rounds):
        say(f"Python {interpreter.about['version']}: heap {number + 1} of {effort.heap_rounds}")
        job = {"case": "heap", "variant": "discard", "objects": objects}
        # Upstream's takes seconds each time, so fewer times have to do.
        times = {"ours": {"starts": 20, "tries": 5}, "upstream": {"starts": 1, "tries": 3}}
        take_both(interpreter, ("heap",), job, number, times)


def take_both(interpreter, key, job, number, extra=None):
    # Neither side is always the one that comes first.
    sides = interpreter.sides if number % 2 == 0 else interpreter.sides[::-1]
    for side in sides:
        take(interpreter, (side, *key), job | {"side": side} | (extra or {}).get(side, {}))


def take(interpreter, key, job):
    if key in interpreter.failures:
        return
    try:
        outcome = run_worker(interpreter, job)
    except CannotMeasureError as error:
        interpreter.failures[key] = str(error)
        say(f"{' '.join(map(str, key))}: {error}")
    else:
        interpreter.results.setdefault(key, []).append(outcome)


# --- figures -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """The median over the rounds, and the least and the most of them."""

    median: float
    low: float
    high: float


def figure(interpreter, key, name):
    outcomes = interpreter.results.get(key)
    if not outcomes or key in interpreter.failures:
        return None
    values = [outcome[name] for outcome in outcomes]
    return Figure(statistics.median(values), min(values), max(values))


def times(ours, theirs):
    """How many times cheaper ours is, by the medians."""
    if ours is None or theirs is None:
        return None
    return theirs.median / max(ours.median, 1e-9)


def number(value, digits=0):
    return "n/a" if value is None else f"{value:,.{digits}f}"


def cells(value, digits=0):
    if value is None:
        return ["n/a", ""]
    low, high = number(value.low, digits), number(value.high, digits)
    return [number(value.median, digits), f"{low} to {high}"]


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


def calls_table(interpreter):
    rows = []
    for case, variant, label in CALLS:
        ours = figure(interpreter, ("ours", case, variant), "added_ns")
        theirs = figure(interpreter, ("upstream", case, variant), "added_ns")
        ratio = number(times(ours, theirs), 1)
        rows.append([label, *cells(ours), *cells(theirs), ratio])
    for case, variant, label in GONE:
        ours = figure(interpreter, ("ours", case, variant), "added_ns")
        theirs = figure(interpreter, ("upstream", case, variant), "added_ns")
        rows.append([label, *cells(ours, 1), *cells(theirs, 1), ""])
    for case, label in SCALE:
        rows.append(
            [label, *cells(figure(interpreter, ("scale", case), "added_ns"), 1), "", "", ""]
        )
    head = ["ns added per call", "here", "low to high", "upstream", "low to high", "times cheaper"]
    return table(head, rows)


def body_table(interpreter):
    rows = []
    for length in LENGTHS:
        row = [f"body of {length:,} nested calls"]
        for side in ("ours", "upstream"):
            ratio = figure(interpreter, (side, "body", length), "ratio")
            bare = figure(interpreter, (side, "body", length), "bare_ns")
            row += [number(bare and bare.median / 1e3, 2), *cells(ratio, 3)]
        rows.append(row)
    head = ["`end`, a local into a histogram"]
    for side in ("here", "upstream"):
        head += ["bare, µs", f"times slower, {side}", "low to high"]
    return table(head, rows)


def heap_table(interpreter, objects):
    rows = []
    for name, label, digits in (
        ("start_stop_ms", "start and stop, ms", 2),
        ("first_ms", "the very first in its process, ms", 2),
        ("stall_ms", "longest stall of another thread, ms", 2),
        ("stall_without_ms", "the same while nothing is started, ms", 2),
    ):
        ours = figure(interpreter, ("ours", "heap"), name)
        theirs = figure(interpreter, ("upstream", "heap"), name)
        ratio = number(times(ours, theirs), 0) if name in ("start_stop_ms", "first_ms") else ""
        rows.append([label, *cells(ours, digits), *cells(theirs, digits), ratio])
    row = ["calls seen, of one through each of 20 references"]
    for side in ("ours", "upstream"):
        seen = (interpreter.results.get((side, "heap")) or [{}])[-1].get("seen")
        row += [str(sum(seen.values())) if seen else "n/a", ""]
    rows.append([*row, ""])
    head = [f"{objects:,} objects on the heap"]
    head += ["here", "low to high", "upstream", "low to high", "times faster"]
    return table(head, rows)


# --- goals ---------------------------------------------------------------------------------


def verdict(is_met):
    return "not measured" if is_met is None else "met" if is_met else "missed"


def at_most(value, limit):
    return None if value is None else value.median <= limit


def least_times(interpreter, case):
    """Of both ways to take the values, the one where we are less ahead."""
    found = []
    for variant in ("discard", "emit"):
        ours = figure(interpreter, ("ours", case, variant), "added_ns")
        found.append(times(ours, figure(interpreter, ("upstream", case, variant), "added_ns")))
    return None if None in found else min(found)


def goals_table(interpreter):
    rows = []

    def row(goal, shown, is_met):
        rows.append([goal, shown, verdict(is_met)])

    cost = figure(interpreter, ("ours", "return", "discard"), "added_ns")
    row(
        f"`return`, histogram: at most {RETURN_NS} ns",
        f"{number(cost and cost.median)} ns",
        at_most(cost, RETURN_NS),
    )
    for case, wanted in (("return", RETURN_TIMES), ("end", END_TIMES)):
        found = least_times(interpreter, case)
        is_met = None if found is None else found >= wanted
        label = f"`{case}`, the lesser of histogram and `emit`: at least {wanted} times cheaper"
        row(label, number(found, 1), is_met)
    ratio = figure(interpreter, ("ours", "body", LONG_BODY), "ratio")
    row(
        f"`end`: no effect of the body's length ({LONG_BODY:,} calls; x {SAME_RATIO} is noise)",
        f"x {number(ratio and ratio.median, 3)}",
        at_most(ratio, SAME_RATIO),
    )
    for case, variant, label in GONE:
        outcomes = interpreter.results.get(("ours", case, variant))
        is_met = outcomes and all(outcome["is_original"] for outcome in outcomes)
        shown = "n/a" if is_met is None else "original" if is_met else "replaced"
        row(f"{label}: the code object is the original", shown, is_met)
        left = figure(interpreter, ("ours", case, variant), "added_ns")
        row(
            f"{label}: exactly 0 ns per call ({NOISE_NS:g} ns is noise)",
            f"{number(left and left.median, 1)} ns",
            at_most(left, NOISE_NS),
        )
    spent = figure(interpreter, ("ours", "heap"), "start_stop_ms")
    row(
        f"start and stop: under {START_STOP_MS:g} ms",
        f"{number(spent and spent.median, 2)} ms",
        at_most(spent, START_STOP_MS),
    )
    stall = figure(interpreter, ("ours", "heap"), "stall_ms")
    row(
        f"no stall of other threads (up to {SWITCH_MS:g} ms, the interpreter's own)",
        f"{number(stall and stall.median, 2)} ms",
        at_most(stall, SWITCH_MS),
    )
    return table(["goal", "measured", ""], rows)


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
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
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


def report(interpreter, machine, effort, objects):
    lines = [
        f"## Python {interpreter.about['version']}",
        "",
        f"{machine}; {effort.rounds} rounds.",
        "",
        calls_table(interpreter),
        "",
        body_table(interpreter),
        "",
        heap_table(interpreter, objects),
        "",
        goals_table(interpreter),
    ]
    if interpreter.why_not:
        lines += ["", f"Upstream was not measured: {interpreter.why_not}"]
    for key, why in interpreter.failures.items():
        lines += ["", f"Not measured: {' '.join(map(str, key))}: {why}"]
    expired = interpreter.results.get(("upstream", "expired", "emit"))
    if expired and not all(outcome["is_original"] for outcome in expired):
        lines += ["", "Upstream's wrapper stays in place when its instrument has expired."]
    left = figure(interpreter, ("ours", "stopped", "emit"), "added_ns")
    if left and left.median > NOISE_NS:
        text = (
            f"Stopped, the function has its own code again, yet a call takes {left.median:.1f} ns "
            "more: this CPython does not specialise calls of a function whose `__code__` was "
            "ever set."
        )
        lines += ["", text]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: rough figures")
    parser.add_argument(
        "--python",
        action="append",
        metavar="PATH",
        help="interpreter to measure with, may be repeated (default: this one)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes there")
    parser.add_argument(
        "--objects",
        type=int,
        default=5_000_000,
        metavar="N",
        help="size of the heap for start and stop (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.objects < 0:
        parser.error(f"--objects is {arguments.objects}; it must be 0 or more")
    effort = QUICK if arguments.quick else FULL
    began = time.monotonic()
    interpreters = []
    is_whole = True
    for path in arguments.python or [sys.executable]:
        try:
            interpreters.append(look_at(path))
        except CannotMeasureError as error:
            is_whole = False
            say(str(error))
    documents = []
    for interpreter in interpreters:
        load_before = load()
        measure(interpreter, effort, arguments.objects)
        machine = (
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {cpu_name()}, "
            f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()}, load {load_before} "
            f"before and {load()} after; here: {our_version()}, upstream: {UPSTREAM}"
        )
        print(report(interpreter, machine, effort, arguments.objects), end="\n\n", flush=True)
        is_whole &= not any(key[0] == "ours" for key in interpreter.failures)
        outcomes = {" ".join(map(str, key)): value for key, value in interpreter.results.items()}
        documents.append({"python": interpreter.about, "machine": machine, "outcomes": outcomes})
    if arguments.json:
        arguments.json.write_text(json.dumps(documents, indent=1))
    say(f"done in {time.monotonic() - began:.0f} s")
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
