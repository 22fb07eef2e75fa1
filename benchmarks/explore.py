"""Does anybody notice a probe? The test suites of packages that nobody here wrote say so.

    python benchmarks/explore.py [--python PATH]... [PACKAGE[==VERSION]]...

Runs each package's own tests bare, and again with a `return` and an `end` probe on every
function that the package defines; then compares test by test. Prints tables that are also
valid Markdown. benchmarks/README.md says how. The packages come from PyPI, and the
environments that are made for them stay below benchmarks/results/explore/.

Exit codes: 0 when no test differs, but for documented limits; 1 when one does, an instrument
failed, a function did not get its code back, or a package could not be tried; 2 for arguments
that make no sense.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import _explore_packages as packages
from _explore_packages import CannotExploreError

EVENTS = ("call", "return", "end")
RUN_SECONDS = 900
# How often tests that differ run again, on each side.
REPEATS = 3
# A process that dies is started again without the test that it died in.
DEATHS = 5
LISTED = 20
# The worse, the later: a test can have several reports (set-up, subtests, tear-down).
OUTCOMES = ("passed", "xpassed", "xfailed", "skipped", "error", "failed", "crashed", "hung")


@dataclass(frozen=True)
class Interpreter:
    """A Python to try packages on."""

    path: str
    version: str


@dataclass
class Run:
    """What a suite did in one run."""

    outcomes: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    probes: dict = field(default_factory=dict)
    seconds: float = 0.0

    def outcome(self, test):
        return self.outcomes.get(test, "missing")

    def note(self, test, outcome, why):
        known = self.outcomes.get(test)
        if known is None or OUTCOMES.index(outcome) > OUTCOMES.index(known):
            self.outcomes[test] = outcome
            self.reasons[test] = why


@dataclass
class Difference:
    """A test that does not do the same with probes."""

    test: str
    bare: str
    probed: str
    why: str
    verdict: str = "caused"
    limit: str | None = None


@dataclass
class Report:
    """What was found out about one package on one Python."""

    package: str
    version: str
    python: str
    problem: str = ""
    bare: Run | None = None
    probed: Run | None = None
    differences: list[Difference] = field(default_factory=list)

    @property
    def caused(self):
        return [one for one in self.differences if one.verdict == "caused" and not one.limit]

    @property
    def is_good(self):
        if self.problem or self.probed is None:
            return False
        probes = self.probed.probes
        return not (self.caused or probes.get("errors") or probes.get("not_restored"))


# --- one run ------------------------------------------------------------------------------------


class Runner:
    """Runs one suite, as often as need be, always at the same place."""

    def __init__(self, suite, environment, events, place):
        self.suite = suite
        self.environment = environment
        self.events = events
        self.place = place

    def run(self, label, *, probed, only=None):
        """Run the suite, or some of its tests, in a fresh copy of the sdist."""
        run = Run()
        gone = []
        for _ in range(DEATHS):
            died = self.run_once(run, label, probed=probed, only=only, gone=gone)
            if died is None:
                return run
            test, outcome, why = died
            run.note(test, outcome, why)
            gone = list(run.outcomes)
        return run

    def run_once(self, run, label, *, probed, only, gone):
        """Run it once; the test that the process died in, if it did."""
        tree, temporary = self.place / "tree", self.place / "tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        packages.unpack(self.environment.sdist, tree)
        tests = packages.find_tests(self.suite, tree)
        notes = self.place / "notes.jsonl"
        notes.unlink(missing_ok=True)
        order = {
            "report": str(notes),
            "modules": self.environment.modules,
            "events": self.events if probed else [],
            "only": only,
            "leave_out": gone,
            "leave_out_from": self.suite.leave_out,
            "repeatable_hypothesis": self.suite.repeatable_hypothesis,
        }
        (self.place / "order.json").write_text(json.dumps(order))
        command = [
            str(self.environment.python), "-m", "pytest", "-p", "_explore_plugin",
            "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly",
            "--continue-on-collection-errors", "-q", "--tb=short",
            *shlex.split(self.suite.arguments), *tests,
        ]  # fmt: skip
        log = self.environment.folder / f"{label}.log"
        began = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=tree,
                env=self.variables(temporary),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(RUN_SECONDS)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                # With all that its tests started and left.
                end_group(process)
        run.seconds += time.monotonic() - began
        running, summary = self.read(notes, run)
        if summary is not None and code in {0, 1, 5}:
            run.probes = summary
            if not run.outcomes and only is None:
                raise CannotExploreError(f"pytest found no tests in {' '.join(tests)}; see {log}")
            return None
        if running is None:
            tail = packages.telling_line(log.read_text(errors="replace"))
            raise CannotExploreError(
                f"its tests don't run ({label}, exit code {code}): {tail}; see {log}"
            )
        if code is None:
            return running, "hung", f"the run was ended after {RUN_SECONDS} s"
        return running, "crashed", f"the process ended with {name_of_signal(code)}"

    def variables(self, temporary):
        """The same on every machine, as far as can be."""
        return {
            "PATH": f"{self.environment.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": str(temporary),
            "TMPDIR": str(temporary),
            "PYTEST_DEBUG_TEMPROOT": str(temporary),
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "EXPLORE": str(self.place / "order.json"),
            **self.suite.variables,
        }

    @staticmethod
    def read(notes, run):
        """Take over what a run has noted; the test it was in, and the summary."""
        running = summary = None
        if notes.is_file():
            for line in notes.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # the process died while it wrote it
                if "begin" in entry:
                    running = entry["begin"]
                elif "test" in entry:
                    run.note(entry["test"], entry["outcome"], entry["why"])
                else:
                    summary = entry["summary"]
        return running, summary


def end_group(process):
    with contextlib.suppress(ProcessLookupError):  # nobody is left in it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def name_of_signal(code):
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


# --- comparing ------------------------------------------------------------------------------


def differing(bare, probed):
    """The tests that did not do the same, in the order in which they ran."""
    tests = dict.fromkeys([*bare.outcomes, *probed.outcomes])
    return [test for test in tests if bare.outcome(test) != probed.outcome(test)]


def settle(runner, bare, probed, say):
    """Tell the differences that probes cause from tests that do now this, now that."""
    tests = differing(bare, probed)
    if not tests:
        return []
    say(f"{len(tests)} tests differ: running them again")
    again = {False: [], True: []}
    for number in range(REPEATS):
        for is_probed, runs in again.items():
            label = f"{'probed' if is_probed else 'bare'}-again-{number + 1}"
            runs.append(runner.run(label, probed=is_probed, only=tests))
    found, open_ = [], []
    for test in tests:
        sides = [{run.outcome(test) for run in again[is_probed]} for is_probed in (False, True)]
        reason = next(
            (run.reasons[test] for run in (*again[True], probed, bare) if run.reasons.get(test)), ""
        )
        one = Difference(test, bare.outcome(test), probed.outcome(test), reason)
        one.limit = packages.limit_of(runner.suite, test)
        found.append(one)
        if len(sides[0]) > 1:
            one.verdict = "flaky"  # bare
        elif sides[0] == sides[1]:
            open_.append(one)
        elif len(sides[1]) > 1:
            one.why = f"(in {count_like(again[True], test, sides[0])} of {REPEATS} probed runs the same) {one.why}"
    if open_:
        say(f"{len(open_)} tests do the same when run alone: running their files again")
        files = {one.test.partition("::")[0] for one in open_}
        inside = [test for test in bare.outcomes if test.partition("::")[0] in files]
        bare = runner.run("bare-files-again", probed=False, only=inside)
        probed = runner.run("probed-files-again", probed=True, only=inside)
        for one in open_:
            same = (bare.outcome(one.test), probed.outcome(one.test)) == (one.bare, one.probed)
            one.verdict = "caused" if same else "flaky"
    return found


def count_like(runs, test, outcomes):
    return sum(run.outcome(test) in outcomes for run in runs)


def explore(suite, interpreter, options):
    """Try one package on one Python."""
    report = Report(suite.name, suite.version or "", interpreter.version)

    def say(text):
        print(f"{suite.name} {report.version} on {interpreter.version}: {text}", file=sys.stderr)

    place = Path(tempfile.mkdtemp(prefix="explore-"))
    try:
        say("preparing")
        environment = packages.prepare(suite, interpreter)
        report.version = environment.version
        runner = Runner(suite, environment, options.events, place)
        remembered = environment.folder / "bare.json"
        if options.only_probed and remembered.is_file():
            report.bare = Run(**json.loads(remembered.read_text()))
        else:
            say("running its tests bare")
            report.bare = runner.run("bare", probed=False)
            remembered.write_text(json.dumps(asdict(report.bare)))
        say("running its tests with probes")
        report.probed = runner.run("probed", probed=True)
        report.differences = settle(runner, report.bare, report.probed, say)
    except CannotExploreError as error:
        report.problem = str(error)
        say(report.problem)
    finally:
        if options.keep:
            say(f"kept {place}")
        else:
            shutil.rmtree(place, ignore_errors=True)
    return report


# --- telling ----------------------------------------------------------------------------------

HEAD = (
    "package", "version", "Python", "functions probed", "calls seen", "tests",
    "seconds bare", "seconds probed", "slow-down", "differences caused",
)  # fmt: skip


def show(coming):
    """Print each row as soon as it is known, then the details; return the reports."""
    print(f"| {' | '.join(HEAD)} |")
    print(f"|{'---|' * 3}{'---:|' * (len(HEAD) - 3)}")
    reports = []
    for report in coming:
        reports.append(report)
        print(f"| {' | '.join(row(report))} |", flush=True)
    for report in reports:
        show_differences(report)
        show_probes(report)
    print("\nVerdicts\n")
    for report in reports:
        print(f"- {report.package} {report.version} on {report.python}: {verdict(report)}")
    return reports


def row(report):
    names = [report.package, report.version, report.python]
    bare, probed = report.bare, report.probed
    if bare is None or probed is None or report.problem:
        return [*names, *["n/a"] * (len(HEAD) - len(names))]
    hits = probed.probes.get("hits", {})
    least = "> " if probed.probes.get("is_least") else ""
    return [
        *names,
        f"{probed.probes.get('functions', 0):,}",
        least + " + ".join(f"{count:,}" for count in hits.values()),
        f"{len(bare.outcomes):,}",
        f"{bare.seconds:.1f}",
        f"{probed.seconds:.1f}",
        f"x {probed.seconds / bare.seconds:.2f}",
        str(len(report.caused)),
    ]


def show_differences(report):
    if not report.differences:
        return
    print(f"\nTests of {report.package} on {report.python} that differ\n")
    for one in report.differences[:LISTED]:
        word = f"documented: {one.limit}" if one.limit else one.verdict
        print(f"- `{one.test}`: {one.bare} bare, {one.probed} probed ({word}): {one.why}")
    if len(report.differences) > LISTED:
        print(f"- and {len(report.differences) - LISTED} more (--json FILE has all)")


def show_probes(report):
    """What went wrong with the probes themselves."""
    if report.probed is None:
        return
    probes = report.probed.probes
    for key, title in (
        ("errors", "Instruments that failed"),
        ("uneven", "Functions whose instruments saw different numbers of calls"),
        ("refused", "Functions that can't be probed"),
        ("not_restored", "Functions that did not get their code back"),
    ):
        entries = probes.get(key, [])
        if not entries:
            continue
        print(f"\n{title}: {report.package} on {report.python}, {len(entries)}\n")
        for entry in entries[:LISTED]:
            print(f"- {entry if isinstance(entry, str) else f'`{entry[0]}`: {entry[1]}'}")


def verdict(report):
    if report.problem:
        return f"NOT TRIED: {report.problem}"
    counts = Counter(report.bare.outcomes.values())
    text = ", ".join(f"{counts[each]:,} {each}" for each in OUTCOMES if counts[each])
    flaky = sum(one.verdict == "flaky" for one in report.differences)
    limits = sum(one.limit is not None for one in report.differences)
    notes = [f"{limits} documented limits"] * bool(limits) + [f"{flaky} flaky"] * bool(flaky)
    probes = report.probed.probes
    for key, words in (("errors", "instrument errors"), ("not_restored", "functions not restored")):
        if probes.get(key):
            notes.append(f"{len(probes[key])} {words}")
    if changed := probes.get("changed_by_program"):
        notes.append(f"{changed} functions got other code from the package itself")
    suppressed = probes.get("suppressed")
    if suppressed:
        notes.append("hits turned away: " + ", ".join(f"{n:,} {w}" for w, n in suppressed.items()))
    result = "SAME" if report.is_good else f"DIFFERENT ({len(report.caused)} tests)"
    return f"{result}; bare: {text}{'; ' if notes else ''}{'; '.join(notes)}"


# --- arguments ----------------------------------------------------------------------------------

ABOUT = "import platform, sys; print(sys.implementation.name, platform.python_version())"


def look_at(path):
    found = shutil.which(path)
    if found is None:
        raise CannotExploreError(f"there is no Python at {path!r}; give --python another path")
    done = subprocess.run([found, "-c", ABOUT], capture_output=True, text=True, check=False)
    name, _, version = done.stdout.strip().partition(" ")
    if done.returncode or name != "cpython":
        raise CannotExploreError(f"{path!r} is no CPython that runs; give --python another path")
    if tuple(map(int, version.split(".")[:2])) < (3, 11):
        raise CannotExploreError(f"{path!r} is {version}; this library needs 3.11 or newer")
    return Interpreter(found, version)


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="explore.py", description="Runs packages' own tests bare and with probes everywhere."
    )
    known = ", ".join(suite.name for suite in packages.SUITES)
    parser.add_argument(
        "packages",
        nargs="*",
        metavar="PACKAGE[==VERSION]",
        help=f"known are: {known} (default: all)",
    )
    parser.add_argument("--python", action="append", metavar="PATH", help="repeatable")
    parser.add_argument("--events", default="return,end", help="of call, return, end")
    parser.add_argument("--quick", action="store_true", help="three small packages")
    parser.add_argument(
        "--only-probed", action="store_true", help="take the bare run from the last time"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="packages at a time")
    parser.add_argument("--keep", action="store_true", help="keep the trees that tests ran in")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    options = parser.parse_args(arguments)
    options.events = [event.strip() for event in options.events.split(",") if event.strip()]
    wrong = [event for event in options.events if event not in EVENTS]
    if wrong or not options.events:
        parser.error(f"--events takes some of {','.join(EVENTS)}, not {','.join(wrong)!r}")
    if options.jobs < 1:
        parser.error("--jobs has to be 1 or more")
    if options.quick and options.packages:
        parser.error("--quick has packages of its own; leave them out")
    try:
        options.interpreters = [look_at(path) for path in options.python or [sys.executable]]
        options.suites = [packages.suite_of(wanted) for wanted in options.packages]
    except CannotExploreError as error:
        parser.error(str(error))
    if not options.suites:
        options.suites = [s for s in packages.SUITES if s.is_quick or not options.quick]
    return options


def main(arguments=None):
    options = parse(arguments)
    # Started in the background of a script it is ignored, and then in the tests too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    pairs = [(suite, each) for each in options.interpreters for suite in options.suites]
    with ThreadPoolExecutor(options.jobs) as pool:
        reports = show(pool.map(lambda pair: explore(*pair, options), pairs))
    print(
        f"\n`{'` and `'.join(options.events)}` probes; {platform.platform()}, {os.cpu_count()} "
        f"CPUs; {time.monotonic() - began:.0f} s altogether"
    )
    if options.json:
        options.json.write_text(json.dumps([asdict(report) for report in reports], indent=1))
    return 0 if all(report.is_good for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
