"""A fleet of real processes on a real MongoDB: how soon everybody has what, and what goes wrong.

    python benchmarks/fleet_rollout.py [--processes 20] [--specs 50] [--outage 10]

Starts a mongod and the worker processes, then measures: until the entry of every process is in
every spec after an insert, after a change, after the server was killed for a while, and after a
worker was killed. Meanwhile each worker calls the probed functions and watches how long its
calls take. Prints a table; the exit code is 1 if a goal was missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import threading
import time
import types
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pymongo  # noqa: E402

import diagnose_mongo  # noqa: E402
from diagnose_mongo.server import LocalServer  # noqa: E402

FUNCTIONS = 10
PERIOD_SECONDS = 1.0
ROLLOUT_GOAL_SECONDS = 3.0
SLOW_CALL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
LOOK_SECONDS = 0.02


# --- a worker -----------------------------------------------------------------------------------


class Application:
    """Calls functions all the time and keeps how long the slowest call took."""

    def __init__(self):
        module = types.ModuleType("fleet_app")
        sys.modules["fleet_app"] = module
        functions = "".join(f"def f{i}(x):\n    return x * 2\n\n" for i in range(FUNCTIONS))
        exec(
            compile(functions + "def late(x):\n    return x\n", "fleet_app.py", "exec"),
            vars(module),
        )
        self.functions = [getattr(module, f"f{i}") for i in range(FUNCTIONS)]
        self.late = module.late
        self.calls_late = False
        self.is_over = False
        self.counts = self._zero()

    @staticmethod
    def _zero():
        return {"calls": 0, "raised": 0, "slowest": 0.0}

    def work(self):
        while not self.is_over:
            for function in [*self.functions, *([self.late] if self.calls_late else [])]:
                began = time.perf_counter()
                try:
                    function(1)
                except Exception:
                    self.counts["raised"] += 1
                seconds = time.perf_counter() - began
                self.counts["calls"] += 1
                self.counts["slowest"] = max(self.counts["slowest"], seconds)
            time.sleep(random.uniform(0.01, 0.03))

    def report(self):
        counts, self.counts = self.counts, self._zero()
        return counts


def be_worker(uri, process_id):
    manager = diagnose_mongo.start(uri, process_id=process_id, period=PERIOD_SECONDS, service="w")
    application = Application()
    thread = threading.Thread(target=application.work)
    thread.start()
    print("ready", flush=True)
    # Each line is answered with what happened since the one before.
    for line in sys.stdin:
        if line.strip() == "late":
            application.calls_late = True
        print(json.dumps(application.report()), flush=True)
    application.is_over = True
    thread.join()
    manager.stop()


# --- the fleet ----------------------------------------------------------------------------------


@dataclass
class Worker:
    process_id: str
    process: subprocess.Popen[str]

    def ask(self, line: str = "report") -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@dataclass
class Results:
    """Rows of the table: what was measured, seconds, the goal in seconds or None."""

    rows: list[tuple[str, float, float | None]] = field(default_factory=list)
    raised: int = 0
    calls: int = 0

    def add(self, what, seconds, goal=None):
        self.rows.append((what, seconds, goal))

    def missed(self, slack=1.0):
        missed = [
            what for what, seconds, goal in self.rows if goal is not None and seconds > goal * slack
        ]
        return missed + (["exceptions in workers"] if self.raised else [])

    def __str__(self):
        width = max(len(what) for what, _, _ in self.rows)
        lines = [f"{'':{width}}  measured, s  goal, s"]
        for what, seconds, goal in self.rows:
            wanted = "" if goal is None else f"{goal:7.1f}"
            lines.append(f"{what:{width}}  {seconds:11.3f}  {wanted}".rstrip())
        lines.append(f"calls in workers: {self.calls}, of which raised: {self.raised}")
        return "\n".join(lines)


class Fleet:
    def __init__(self, server, processes):
        self.server = server
        self.specs = pymongo.MongoClient(server.uri)["diagnose"]["specs"]
        self.workers = [self._launch(f"worker{i}") for i in range(processes)]
        for worker in self.workers:
            assert worker.process.stdout.readline() == "ready\n"

    def _launch(self, process_id):
        process = subprocess.Popen(
            [sys.executable, __file__, "--worker", self.server.uri, process_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return Worker(process_id, process)

    @property
    def process_ids(self):
        return {worker.process_id for worker in self.workers}

    def seconds_until(self, is_so, query=None):
        """How long until ``is_so(spec, its applied)`` for every spec of the query."""
        began = time.monotonic()
        while True:
            found = []
            with contextlib.suppress(pymongo.errors.AutoReconnect):
                found = list(self.specs.find(query or {}))
            seconds = time.monotonic() - began
            if found and all(is_so(each, each.get("applied", {})) for each in found):
                return seconds
            if seconds > PATIENCE_SECONDS:
                raise SystemExit(f"after {seconds:.0f} s it is still not so: {found[:1]}")
            time.sleep(LOOK_SECONDS)

    def everybody_has(self, **parts):
        wanted = self.process_ids

        def is_so(spec, applied):
            return wanted <= applied.keys() and all(
                applied[p]["lm"] == spec["lastmodified"]
                and all(applied[p][name] == value for name, value in parts.items())
                for p in wanted
            )

        return is_so

    def ask(self, line="report"):
        return [worker.ask(line) for worker in self.workers]

    def touch(self, query, **changes):
        self.specs.update_many(
            query, {"$set": changes or {"comment": "again"}, "$currentDate": {"lastmodified": True}}
        )

    def stop(self):
        for worker in self.workers:
            worker.process.stdin.close()
        codes = [worker.process.wait(PATIENCE_SECONDS) for worker in self.workers]
        for worker in self.workers:
            worker.process.stdout.close()
        self.specs.database.client.close()
        return codes

    def kill(self):
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()


def spec(number, target, value="result", instrument_type="hist"):
    return {
        "_id": f"spec-{number}",
        "target": target,
        "instrument": {"type": instrument_type, "name": f"n{number}", "value": value},
        "lifespan": 60,
        "lastmodified": datetime.now(UTC),
    }


def run(*, processes, specs, outage_seconds):
    results = Results()
    with LocalServer() as server:
        began = time.monotonic()
        fleet = Fleet(server, processes)
        try:
            results.add(f"{processes} workers started", time.monotonic() - began)
            measure(fleet, server, specs, outage_seconds, results)
            codes = fleet.stop()
        except BaseException:
            fleet.kill()
            raise
        if any(codes):
            results.raised += 1
    return results


def measure(fleet, server, specs, outage_seconds, results):
    def note(reports, phase):
        results.raised += sum(report["raised"] for report in reports)
        results.calls += sum(report["calls"] for report in reports)
        slowest = [report["slowest"] for report in reports]
        results.add(f"slowest call, {phase}", max(slowest), SLOW_CALL_SECONDS)
        results.add(f"  median worker's slowest call, {phase}", statistics.median(slowest))

    kinds = ("hist", "incr")
    fleet.specs.insert_many(
        [
            *(
                spec(i, f"fleet_app.f{i % FUNCTIONS}", instrument_type=kinds[i % len(kinds)])
                for i in range(specs - 1)
            ),
            spec("late", "fleet_app.late"),
        ]
    )
    seconds = fleet.seconds_until(fleet.everybody_has(err=None))
    results.add(f"{specs} specs inserted, all entries there", seconds, ROLLOUT_GOAL_SECONDS)
    fleet.seconds_until(fleet.everybody_has(state="emitting"), {"_id": {"$ne": "spec-late"}})

    fleet.touch({"_id": "spec-0"})
    seconds = fleet.seconds_until(fleet.everybody_has(err=None))
    results.add("one spec changed, applied everywhere", seconds, ROLLOUT_GOAL_SECONDS)

    fleet.touch({})
    seconds = fleet.seconds_until(fleet.everybody_has(err=None))
    results.add("all specs changed, applied everywhere", seconds, ROLLOUT_GOAL_SECONDS)
    note(fleet.ask(), "MongoDB up")

    server.kill()
    fleet.ask("late")  # from here on its instrument fires, which nobody can be told
    time.sleep(outage_seconds)
    note(fleet.ask(), f"MongoDB killed for {outage_seconds:g} s")
    began = time.monotonic()
    server.restart()
    results.add("MongoDB primary again", time.monotonic() - began)
    seconds = fleet.seconds_until(fleet.everybody_has(state="emitting"), {"_id": "spec-late"})
    results.add("what changed meanwhile is told", seconds, 2 * PERIOD_SECONDS)
    # Every spec was changed before the outage and fires all the time.
    seconds += fleet.seconds_until(fleet.everybody_has(state="emitting"))
    results.add("all status there again", seconds, 2 * PERIOD_SECONDS)
    fleet.touch({"_id": "spec-1"})
    seconds = fleet.seconds_until(fleet.everybody_has(err=None))
    results.add("one spec changed after it, applied everywhere", seconds, ROLLOUT_GOAL_SECONDS)
    note(fleet.ask(), "after the outage")

    victim = fleet.workers.pop()
    victim.process.kill()
    victim.process.wait()
    victim.process.stdin.close()
    victim.process.stdout.close()
    fleet.specs.insert_one(spec("new", "fleet_app.f0"))
    seconds = fleet.seconds_until(fleet.everybody_has(err=None), {"_id": "spec-new"})
    results.add("a worker killed, a spec inserted: the others", seconds, ROLLOUT_GOAL_SECONDS)
    assert victim.process_id not in fleet.specs.find_one({"_id": "spec-new"})["applied"]
    note(fleet.ask(), "a worker killed")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--specs", type=int, default=50)
    parser.add_argument("--outage", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--worker", nargs=2, metavar=("URI", "PROCESS_ID"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        be_worker(*arguments.worker)
        return 0
    results = run(
        processes=arguments.processes, specs=arguments.specs, outage_seconds=arguments.outage
    )
    print(results)
    for what in results.missed():
        print(f"missed: {what}")
    return 1 if results.missed() else 0


if __name__ == "__main__":
    sys.exit(main())
