"""Runs random programs bare and probed; see the package's docstring."""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (1, 3)]

from random_programs import running, shrinking  # noqa: E402  (run by path)
from random_programs.parts import text  # noqa: E402

HANGS_SECONDS = 60
NO_PROGRAM = 3


def main():
    """Exit status 1 if a program differs."""
    parser = argparse.ArgumentParser(prog="random_programs", description=__doc__)
    parser.add_argument("seeds", help="N, or FIRST:END")
    parser.add_argument("--show", action="store_true", help="print programs and scripts")
    parser.add_argument("--shrink", action="store_true", help="make a failing one small, print it")
    parser.add_argument("--here", action="store_true", help="in this process: a crash ends it")
    given = parser.parse_args()
    first, _, end = given.seeds.partition(":")
    if given.here:
        return (
            here(given.seeds) if Path(given.seeds).exists() else here(range(int(first), int(end)))
        )
    seeds = range(int(first), int(end or int(first) + 1))
    failed = 0
    for seed, what in differing(seeds):
        failed += 1
        print(f"seed {seed}: {what}", flush=True)
        if given.shrink:
            show(shrunk(running.case(seed), what))
    if given.show:
        for seed in seeds:
            show(running.case(seed))
    print(f"{failed} of {len(seeds)} differ")
    return failed > 0


def differing(seeds):
    """Run programs in another process, and those behind one that crashes in the next."""
    first = seeds.start
    while first < seeds.stop:
        lines, end = child(f"{first}:{seeds.stop}")
        for line in lines:
            seed, what = json.loads(line)
            if what:
                yield seed, what
            first = seed + 1
        status, errors = end()
        if status == 0:
            return
        yield first, f"the process ends with {status}: {errors[-1500:]}"
        first += 1


def child(seeds):
    """This program in another process: the lines that it prints, and what waits for its end.

    There sets of strings are gone over in one order. The end is its status and its errors.
    """
    command = [sys.executable, "-W", "ignore", __file__, seeds, "--here"]
    environment = {"PYTHONHASHSEED": "0", "PYTHONPATH": str(Path(__file__).parents[3])}
    errors = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
    )

    def end():
        with process, errors:
            process.communicate()
            errors.seek(0)
            return process.returncode, errors.read()

    return process.stdout, end


def here(seeds):
    """Run programs, and print for each a line of JSON; a case that is in a file likewise."""
    logging.disable()
    faulthandler.enable()
    if isinstance(seeds, str):
        cases = [pickle.loads(Path(seeds).read_bytes())]
    else:
        cases = map(running.case, seeds)
    for case in cases:
        faulthandler.dump_traceback_later(HANGS_SECONDS, exit=True)
        what = running.difference(case)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps([case.seed, what]), flush=True)
    return 0


def shrunk(case, what):
    """The case made small; what crashes is tried in other processes."""
    if what.startswith("the process ends"):
        with tempfile.TemporaryDirectory() as folder:
            return shrinking.shrunk(case, lambda each: crashes(each, folder))
    like = shrinking.likeness(what)

    def fails(candidate):
        try:
            return shrinking.likeness(running.difference(candidate)) == like
        except Exception:  # it is no program any more
            return False

    logging.disable()
    return shrinking.shrunk(case, fails)


def crashes(case, folder):
    """Whether a case ends its process."""
    if running.compiled(text(case.nodes)) is None:
        return False
    path = Path(folder) / "case"
    path.write_bytes(pickle.dumps(case))
    _, end = child(str(path))
    return end()[0] < 0


def show(case):
    """Print a case."""
    print(text(case.nodes))
    for operation in case.operations:
        print(operation)


if __name__ == "__main__":
    sys.exit(main())
