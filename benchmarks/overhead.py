"""What probes cost: this library and others, in one run on one machine.

    python benchmarks/overhead.py [--quick] [--python PATH]... [--json FILE]
                                  [--only ROW]... [--side NAME]... [--before CHECKOUT]

Prints tables that are also valid Markdown. benchmarks/README.md says what is measured and
how. The other libraries are installed from PyPI into environments of their own below
benchmarks/results/, and run in processes of their own.

Exit codes: 0 when everything of this library was measured, also where a goal is missed;
1 when something could not be measured; 2 for arguments that make no sense.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from _environments import CannotMeasureError, look_at, run_worker, say
from _report import load, machine, report
from _rows import MEASUREMENTS
from sides import LIBRARIES, NOBODY


@dataclass(frozen=True)
class Effort:
    """How much is done, and how often."""

    rounds: int
    heap_rounds: int
    repeats: int
    repeat_ns: int

    @property
    def usual(self):
        """What every job is told."""
        return {"repeats": self.repeats, "repeat_ns": self.repeat_ns, "most_calls": 100_000}


OTHERS = [name for name in LIBRARIES if name != "before"]
FULL = Effort(rounds=5, heap_rounds=3, repeats=16, repeat_ns=20_000_000)
QUICK = Effort(rounds=2, heap_rounds=1, repeats=8, repeat_ns=8_000_000)


def measure(interpreter, effort, keys, objects):
    usual = effort.usual | {"objects": objects}
    for number in range(max(effort.rounds, effort.heap_rounds)):
        say(f"Python {interpreter.version}: round {number + 1} of {effort.rounds}")
        take(interpreter, "scale", usual | {"side": NOBODY, "measure": "scale"})
        for key in keys:
            if number >= (effort.heap_rounds if key == "heap" else effort.rounds):
                continue
            wanted = MEASUREMENTS[key]
            sides = [side for side in wanted.sides if side in interpreter.sides]
            if interpreter.before is not None and "here" in sides:
                sides.append("before")
            # Nobody is always the one that comes first.
            turn = number % len(sides) if sides else 0
            for side in sides[turn:] + sides[:turn]:
                take(interpreter, key, usual | wanted.job(side))


def take(interpreter, key, job):
    at = key, job["side"]
    if at in interpreter.failures:
        return
    try:
        outcome = run_worker(interpreter, job)
    except CannotMeasureError as error:
        interpreter.failures[at] = str(error)
        # Half of the rounds would be taken for all of them.
        interpreter.results.pop(at, None)
        say(f"{key}, {job['side']}: {error}")
    else:
        interpreter.results.setdefault(at, []).append(outcome)


def parse_arguments():
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
        "--only",
        action="append",
        choices=MEASUREMENTS,
        metavar="ROW",
        help=f"measure this alone, may be repeated: {', '.join(MEASUREMENTS)}",
    )
    parser.add_argument(
        "--side",
        action="append",
        choices=OTHERS,
        metavar="NAME",
        help=f"measure this beside ours, may be repeated: {', '.join(OTHERS)} (default: all)",
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="CHECKOUT",
        help="measure another checkout of this library beside this one, and nothing else",
    )
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
    return arguments


def main():
    arguments = parse_arguments()
    effort = QUICK if arguments.quick else FULL
    keys = [key for key in MEASUREMENTS if key in (arguments.only or MEASUREMENTS)]
    began = time.monotonic()
    interpreters = []
    is_whole = True
    for path in arguments.python or [sys.executable]:
        try:
            before = arguments.before and arguments.before.resolve()
            names = ["here"] if before else arguments.side or OTHERS
            interpreters.append(look_at(path, names, before))
        except CannotMeasureError as error:
            is_whole = False
            say(str(error))
    documents = []
    for interpreter in interpreters:
        load_before = load()
        measure(interpreter, effort, keys, arguments.objects)
        about = machine(load_before, interpreter.others)
        text = report(interpreter, keys, about, effort.rounds, arguments.objects)
        print(text, end="\n\n", flush=True)
        is_whole &= not any(side in {"here", NOBODY} for _, side in interpreter.failures)
        outcomes = {" ".join(at): found for at, found in interpreter.results.items()}
        documents.append({"python": interpreter.about, "machine": about, "outcomes": outcomes})
    if arguments.json:
        arguments.json.write_text(json.dumps(documents, indent=1))
    say(f"done in {time.monotonic() - began:.0f} s")
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
