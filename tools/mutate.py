"""How many small mistakes the tests find: a random sample of mutants of the core modules.

    make mutate                                # 20 minutes, both cores
    make mutate ARGS="--minutes 2 --seed 7 --modules handlers,diagnose/tokens"

Each mutant (see :mod:`mutants`) is one change of one line. The tests nearest to its module, by
the table below, are run with it, the fastest first, until one fails: it is killed; so is one
that crashes or never ends. Those that survive are printed, as file:line and the change: each is a
test that is missing, code that does nothing, or a change that changes nothing.

It never touches the work tree: each job has a copy in a temporary folder. The same seed draws the
same mutants in the same order, and as many as the time allows are tried.

A script of our own, for neither tool that is alive (2026) does this. mutmut 3 puts a trampoline
with all mutants into each function: here functions and their byte code are what is tested.
cosmic-ray 8 has one test command for all modules, and makes a session of all mutants; a sample,
a time limit for the whole and nearest tests would be as much code around it as this is.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import difflib
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mutants import mutants

ROOT = Path(__file__).parents[1]
COPIED = ("diagnose", "diagnose_mongo", "diagnose_pytest", "tests", "tools", "benchmarks", "docs")
COPIED_FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile")

# The first that a module's path begins with counts. The order of tests is by their measured time.
NEAREST = {
    "diagnose/limits.py": "tokens instruments specs",
    "diagnose/tokens.py": "tokens instruments threads",
    "diagnose/fields.py": "spec_fields specs managers",
    "diagnose/specs/": "specs spec_fields managers",
    "diagnose/arming.py": "many_instruments fingerprints redefinition managers imports",
    "diagnose/records.py": "entries redefinition many_instruments managers imports budget",
    "diagnose/managers.py": (
        "entries redefinition many_instruments managers upgrading_managers imports budget"
    ),
    "diagnose/interrupts.py": "interrupts lines containment kept_exceptions time_limits",
    "diagnose/clockwork.py": "clockwork",
    "diagnose/forking.py": "clockwork probes managers mongo_fork",
    "diagnose/standins.py": "stand_ins references",
    "diagnose/registry.py": "many_instruments redefinition probes ends combinations",
    "diagnose/attachments.py": (
        "attachments many_instruments kept_exceptions redefinition probes managers budget "
        "combinations"
    ),
    "diagnose/hit_errors.py": "hit_errors kept_exceptions probes combinations",
    "diagnose/ending.py": "ends probes",
    "diagnose/probes.py": (
        "many_instruments redefinition decorated entries probes managers budget ends combinations"
    ),
    "diagnose/sites.py": "weaving references decorated redefinition probes combinations",
    "diagnose/cpu_budget.py": "budget",
    "diagnose/handlers/names.py": "names probes combinations",
    "diagnose/handlers/acting.py": "acts acting",
    "diagnose/handlers/": "instruments inside acting probes combinations recursion_limit budget",
    "diagnose/bytecode/timing.py": "hotspots lines weaving",
    "diagnose/bytecode/": "lines inside weaving acting invisible containment recursion_limit",
    "diagnose/instruments/calltree.py": "calltrees",
    "diagnose/instruments/hunting.py": "calltrees other_tools instruments",
    "diagnose/instruments/signatures.py": "spec_fields entries managers",
    "diagnose/instruments/": "instruments probes sinks acting",
    "diagnose_mongo/store/": (
        "store_specs store_records store_fleet changes installation mongo_manager fleet_state "
        "mongo_outage"
    ),
    "diagnose_mongo/worker/": (
        "worker_parts identity mongo_manager fleet_state mongo_outage mongo_fork autostart"
    ),
}
# A test file takes longer with a mutant, and beside another job.
PATIENCE, GRACE_SECONDS = 3.0, 20.0


@dataclass(slots=True)
class Verdict:
    """What became of a mutant: the test file that killed it, or None."""

    mutant: object
    killed_by: str | None
    how: str = ""


def main():
    """Print the survivors, and how many there are of each module."""
    parser = argparse.ArgumentParser(prog="mutate.py", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=None, help="which sample; default: another one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--modules", default="", help="parts of paths, with commas between")
    given = parser.parse_args()
    seed = random.randrange(10**6) if given.seed is None else given.seed
    deadline = time.monotonic() + 60 * given.minutes
    drawn = sample(seed, [each for each in given.modules.split(",") if each])
    print(f"{len(drawn)} mutants, seed {seed}, {given.minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copies = [copy_of_the_tree(Path(folder) / str(number)) for number in range(given.jobs)]
        files = sorted({each for mutant in drawn for each in nearest(mutant.path)})
        seconds = measured(copies, files, deadline)
        verdicts = tried(copies, drawn, seconds, deadline)
    report(verdicts)


def sample(seed, parts):
    """All mutants, in the order in which they are tried."""
    found = []
    for path in sorted(ROOT.glob("diagnose*/**/*.py")):
        name = path.relative_to(ROOT).as_posix()
        if nearest(name) and (not parts or any(part in name for part in parts)):
            found += mutants(name, path.read_bytes())
    random.Random(seed).shuffle(found)
    return found


def nearest(path):
    """The test files for a module."""
    names = next((names for part, names in NEAREST.items() if path.startswith(part)), "")
    return [file_of(name) for name in names.split()]


def file_of(name):
    """The path of a test file, whichever folder it is in."""
    found = next((ROOT / "tests").rglob(f"test_{name}.py"))
    return found.relative_to(ROOT).as_posix()


def copy_of_the_tree(to):
    """What tests need, without what was compiled."""
    to.mkdir(parents=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in COPIED_FILES:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, to / name)
    return to


def measured(copies, files, deadline):
    """Run each test file without a mutant; how long each takes, without those that fail."""
    seconds = {}
    for copy in copies:  # what is compiled now need not be for each mutant
        compileall.compile_dir(copy, quiet=2)

    def measure(copy, file):
        began = time.monotonic()
        how = failure(copy, file, 600.0)
        if how is None:
            seconds[file] = time.monotonic() - began
        else:
            print(f"{file} is left out: without any mutant it says: {how}", flush=True)

    in_jobs(copies, files, measure, deadline)
    slowest = sorted(seconds.items(), key=lambda pair: -pair[1])
    print("tests: " + ", ".join(f"{Path(file).stem} {spent:.0f} s" for file, spent in slowest))
    return seconds


def tried(copies, drawn, seconds, deadline):
    """Try mutants until the time is over."""
    verdicts = []

    def try_one(copy, mutant):
        files = sorted((each for each in nearest(mutant.path) if each in seconds), key=seconds.get)
        if files:
            verdicts.append(verdict(copy, mutant, files, seconds))
            if verdicts[-1].killed_by is None:
                print(f"survives: {shown(mutant)}", flush=True)

    in_jobs(copies, drawn, try_one, deadline)
    return verdicts


def in_jobs(copies, things, work, deadline):
    """Do something with each thing, in as many threads as there are copies, while there is time."""
    waiting = queue.SimpleQueue()
    for each in things:
        waiting.put(each)

    def job(copy):
        while time.monotonic() < deadline:
            try:
                thing = waiting.get_nowait()
            except queue.Empty:
                return
            work(copy, thing)

    threads = [threading.Thread(target=job, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def verdict(copy, mutant, files, seconds):
    """Write the mutant into a copy, run its tests, and put the original back."""
    path = copy / mutant.path
    source, before = path.read_bytes(), path.stat()
    path.write_bytes(mutant.apply(source))
    # Another time than that of the original, by which it is told that it has to be compiled.
    os.utime(path, (before.st_atime + 10, before.st_mtime + 10))
    try:
        for file in files:
            how = failure(copy, file, PATIENCE * seconds[file] + GRACE_SECONDS)
            if how is not None:
                return Verdict(mutant, file, how)
        return Verdict(mutant, None)
    finally:
        path.write_bytes(source)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def failure(copy, file, longest):
    """Run a test file: how it fails, or None."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", file]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"}
    with tempfile.TemporaryFile() as output:
        # A session of its own: what a test started ends with it.
        process = subprocess.Popen(
            command, cwd=copy, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(longest)
        except subprocess.TimeoutExpired:
            return "never ends"
        finally:
            kill(process)
        if status == 0:
            return None
        if status < 0:
            return f"crash ({signal.Signals(-status).name})"
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
        return next(
            (line for line in lines if line.startswith(("FAILED", "ERROR"))),
            f"exit status {status}",
        )


def kill(process):
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# --- what is printed ----------------------------------------------------------------------------


def shown(mutant):
    """A mutant as file:line, what it is, and the change of the line."""
    source = (ROOT / mutant.path).read_bytes()
    before, after = (each.decode().splitlines() for each in (source, mutant.apply(source)))
    changes = [
        line for line in difflib.unified_diff(before, after, n=0, lineterm="")
        if line[:1] in "+-" and not line.startswith(("+++", "---"))
    ]  # fmt: skip
    return "\n  ".join([f"{mutant.path}:{mutant.line}: {mutant.what}", *changes])


def report(verdicts):
    """Print a table of modules, and the sum."""
    killed = Counter(each.mutant.path for each in verdicts if each.killed_by)
    survived = Counter(each.mutant.path for each in verdicts if not each.killed_by)
    print("\nmodule                                   killed survived")
    for path in sorted({*killed, *survived}):
        print(f"{path:40} {killed[path]:6} {survived[path]:8}")
    total = len(verdicts)
    hows = Counter(
        "time-out" if each.how == "never ends" else each.how.split(" (")[0] if "crash" in each.how else "test"
        for each in verdicts if each.killed_by
    )  # fmt: skip
    share = 100 * killed.total() / total if total else 0
    print(f"{killed.total()} of {total} killed, {share:.0f} % ({dict(hows)})")


if __name__ == "__main__":
    main()
