"""What a fleet costs its MongoDB, and how soon all of it has a new spec.

    python benchmarks/fleet.py 100 1000 10000 [--bounded 50000] [--seconds 40] [--json FILE]

For each N, N processes are simulated on one real mongod: each is a real manager with a process
id, entries and heartbeats of its own, that polls at its moment of each period with the real
driver. They share a few operating system processes and the connections of those, and arm
nothing: what is measured is the protocol. 50 specs have entries of all N before it begins.

Prints a table; the exit code is 1 if a goal was missed or a status was lost.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pymongo  # noqa: E402

from diagnose.records import Outcome, Record  # noqa: E402
from diagnose.specs import State  # noqa: E402
from diagnose_mongo import bounds  # noqa: E402
from diagnose_mongo.installation import install  # noqa: E402
from diagnose_mongo.rollouts import rollout  # noqa: E402
from diagnose_mongo.server import LocalServer  # noqa: E402
from diagnose_mongo.store import Link  # noqa: E402
from diagnose_mongo.worker import heartbeats  # noqa: E402
from diagnose_mongo.worker.manager import MongoInstrumentManager  # noqa: E402
from diagnose_mongo.worker.polling import phase_of  # noqa: E402

SPECS = 50
PERIOD_SECONDS = 10.0
# As `control` would set it: more polls than this machine's two cores can make are no measurement.
BOUNDED_PERIOD_SECONDS = 60.0
MOST_WITH_SHORT_PERIOD = 10_000
HEARTBEAT_PERIODS = 3
WORKERS = 2
THREADS = 8
PATIENCE_SECONDS = 180.0
DATABASE = "fleet"
RUN = "as prepared"
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

GOALS = {
    "poll_ms": (0.5, "one poll in the steady state, ms"),
    "poll_bytes": (4_000, "bytes of one poll"),
    "all_have_it_s": (20.0, "until all have a new spec, s"),
    "rollout_ms": (200.0, "the rollout query, ms"),
    "lost": (0, "statuses lost"),
}
BOUNDED_ONLY_SHOWN = {"all_have_it_s", "rollout_ms"}


def spec(number):
    return {
        "_id": f"spec-{number}",
        "target": f"shop.cart.f{number}",
        "instrument": {"type": "hist", "name": f"shop.cart.f{number}", "value": "elapsed"},
        "lifespan": None,
        "lastmodified": datetime.now(UTC).replace(tzinfo=None, microsecond=0),
    }


def entry_of(document):
    return {
        "lm": document["lastmodified"],
        "err": None,
        "state": "installed",
        "at": document["lastmodified"],
    }


def identity(number):
    return f"web{number % 97}-{number}-k3x9ab12"


# --- simulated processes ------------------------------------------------------------------------


class Simulated(MongoInstrumentManager):
    """A process of the fleet that arms nothing: everything it finds counts as installed."""

    def adopt(self, found, *, has_entries):
        """Be as if these specs had been applied and told long ago."""
        session = self._session
        for document in found:
            key = document["_id"]
            session.mirror.adopt(key, document)
            self._records[key] = self._installed(key, document)
            if has_entries:
                session.entries.written[key] = {
                    name: value for name, value in entry_of(document).items() if name != "at"
                }
        session._polls = 1
        session.heart.has_beaten, session.heart._run = True, RUN

    def _installed(self, key, document):
        record = Record(key, "", document["lastmodified"], None)
        record.outcome = Outcome(State.INSTALLED)
        record.told = document
        return record

    def _reconcile(self):
        news = []
        for key, document in self.specs.items():
            record = self._records.get(key)
            if record is None or record.content != document["lastmodified"]:
                record = self._records[key] = self._installed(key, document)
                news.append((key, document, record))
        for key in self._records.keys() - self.specs.keys():
            del self._records[key]
        return news


class Worker:
    """Polls for its share of the fleet, each process at its own moments."""

    def __init__(self, uri, first, count, options):
        self._client = pymongo.MongoClient(uri, maxPoolSize=THREADS)
        link = Link(self._client[DATABASE]["specs"])
        found = list(link.collection.find({}, {"applied": 0, "counts": 0}))
        has_entries = options["bounded_above"] >= options["processes"]
        self._never = threading.Event()
        self._fleet = []
        now = time.monotonic()
        for number in range(first, first + count):
            each = Simulated(
                link,
                process_id=identity(number),
                period=options["period"],
                heartbeat=options["period"] * HEARTBEAT_PERIODS,
                service="web",
                bounded_above=options["bounded_above"],
            )
            each.adopt(found, has_entries=has_entries)
            phase = phase_of(each.process_id, each.period)
            # A third of them says in each period that it lives.
            each._session.heart._due_at = now + each.period * (number % HEARTBEAT_PERIODS)
            self._fleet.append((now + phase, number, each))
        heapq.heapify(self._fleet)
        self._lock = threading.Lock()
        self._polls, self._spent, self._latest = 0, 0.0, 0.0
        gc.freeze()

    def run(self):
        """Poll until the parent closes standard input."""
        stopping = threading.Event()
        threads = [threading.Thread(target=self._poll, args=(stopping,)) for _ in range(THREADS)]
        began_cpu, began = time.process_time(), time.monotonic()
        for thread in threads:
            thread.start()
        sys.stdin.read()
        stopping.set()
        for thread in threads:
            thread.join()
        return {
            "polls": self._polls,
            "mean_poll_ms": self._spent / max(self._polls, 1) * 1e3,
            "latest_s": self._latest,
            "cpu": (time.process_time() - began_cpu) / (time.monotonic() - began),
        }

    def _poll(self, stopping):
        # Several threads, since a real process waits for nobody else's answers.
        while not stopping.is_set():
            with self._lock:
                due, number, each = self._fleet[0]
                now = time.monotonic()
                if due <= now:
                    heapq.heappop(self._fleet)
            if due > now:
                stopping.wait(min(due - now, 0.02))
                continue
            soon = each._poll(self._never)
            after = time.monotonic()
            regular = due + each.period
            moment = regular if soon is None else min(regular, after + soon)
            with self._lock:
                self._polls += 1
                self._spent += after - now
                self._latest = max(self._latest, now - due)
                heapq.heappush(self._fleet, (moment, number, each))


def work(arguments):
    options = json.loads(arguments)
    worker = Worker(options["uri"], options["first"], options["count"], options)
    print("ready", flush=True)
    print(json.dumps(worker.run()), flush=True)


# --- the measurement ----------------------------------------------------------------------------


def prepare(client, processes, bounded):
    """50 specs with entries of all, and a document for each process."""
    database = client[DATABASE]
    install(Link(database["specs"]))
    made = [spec(number) for number in range(SPECS)]
    ids = [identity(number) for number in range(processes)]
    told = [each for each in ids if not bounded or bounds.is_sampled(each, processes)]
    for document in made:
        database["specs"].insert_one(
            {**document, "applied": dict.fromkeys(told, entry_of(document))}
        )
    figures = [
        {
            "id": each["_id"],
            "lm": each["lastmodified"],
            "hits": 0,
            "cost": 0.0,
            "state": "installed",
        }
        for each in made
    ]
    expires = datetime.fromtimestamp(time.time() + 900, UTC)
    now = datetime.now(UTC)
    for start in range(0, processes, 1000):
        database["processes"].insert_many(
            [
                {
                    "_id": each,
                    **heartbeats.content(each, {"service": "web", "host": "x"}, PERIOD_SECONDS, []),
                    "specs": figures,
                    "run": RUN,
                    "at": now,
                    "since": now,
                    "expires": expires,
                }
                for each in ids[start : start + 1000]
            ]
        )
    database["control"].insert_one(
        {"_id": "lease", "processes": processes, "bounded": bounded, "ends": LONG_AGO}
    )
    return made


def one_poll(client, processes, bounded_above):
    """Time and bytes of polls in the steady state, with nothing else going on."""
    link = Link(client[DATABASE]["specs"])
    one = Simulated(
        link, process_id=identity(0), period=PERIOD_SECONDS, bounded_above=bounded_above
    )
    one.adopt(
        link.collection.find({}, {"applied": 0, "counts": 0}),
        has_entries=bounded_above >= processes,
    )
    one._session.heart._due_at = time.monotonic() + 3600
    one._session.heart.has_beaten = False  # no chores now
    times, count = [], 58  # the 60th reads everything
    never = threading.Event()
    one._poll(never)
    before = network(client)
    for _ in range(count):
        began = time.perf_counter()
        one._poll(never)
        times.append(time.perf_counter() - began)
    spent = network(client) - before
    idle = network(client)
    overhead = network(client) - idle  # of asking
    return statistics.median(times) * 1e3, (spent - overhead) / count


def commands(client):
    """How often the server was asked: polls are aggregations, heartbeats are findAndModify."""
    counted = client.admin.command("serverStatus")["metrics"]["commands"]
    return {name: counted[name]["total"] for name in ("aggregate", "findAndModify")}


def network(client):
    status = client.admin.command("serverStatus", **dict.fromkeys(_NOT_WANTED, 0))["network"]
    return status["bytesIn"] + status["bytesOut"]


_NOT_WANTED = ("wiredTiger", "metrics", "repl", "locks", "tcmalloc", "globalLock", "opLatencies")


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rollout_ms(database, spec_id, wanted):
    times = []
    for _ in range(5):
        began = time.perf_counter()
        found = rollout(database["specs"], spec_id)
        times.append(time.perf_counter() - began)
        if found.processes != wanted:
            raise AssertionError(f"{found} where {wanted} processes were expected")
    return statistics.median(times) * 1e3


def measure(processes, seconds, bounded_above, period=PERIOD_SECONDS):
    bounded = processes > bounded_above
    with LocalServer() as server, pymongo.MongoClient(server.uri) as client:
        database = client[DATABASE]
        prepare(client, processes, bounded)
        result: dict[str, Any] = {"processes": processes, "bounded": bounded, "period": period}
        result["poll_ms"], result["poll_bytes"] = one_poll(client, processes, bounded_above)
        workers = []
        share = processes // WORKERS
        for number in range(WORKERS):
            count = share if number < WORKERS - 1 else processes - share * number
            options = {
                "uri": server.uri,
                "first": share * number,
                "count": count,
                "processes": processes,
                "bounded_above": bounded_above,
                "period": period,
            }
            workers.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--work", json.dumps(options)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        try:
            for worker in workers:
                worker.stdout.readline()
            run(database, server, seconds, result)
        finally:
            for worker in workers:
                worker.stdin.close()
            told = [json.loads(worker.stdout.read() or "{}") for worker in workers]
            for worker in workers:
                worker.wait()
        result["workers_cpu"] = sum(each.get("cpu", 0) for each in told)
        result["latest_s"] = max(each.get("latest_s", 0) for each in told)
        result["mean_poll_ms"] = statistics.mean(each["mean_poll_ms"] for each in told)
        result["lost"] = lost(database, processes, bounded)
        return result


def run(database, server, seconds, result):
    processes = result["processes"]
    time.sleep(result["period"])  # one period, so that all are at their moments
    client = database.client
    cpu, began = cpu_seconds(server.pid), time.monotonic()
    counters = commands(client)
    time.sleep(seconds)
    passed = time.monotonic() - began
    after = commands(client)
    result["server_cpu"] = (cpu_seconds(server.pid) - cpu) / passed
    result["heartbeats_per_s"] = (after["findAndModify"] - counters["findAndModify"]) / passed
    result["polls_per_s"] = (after["aggregate"] - counters["aggregate"]) / passed
    new = spec(SPECS)
    cpu, began = cpu_seconds(server.pid), time.monotonic()
    database["specs"].insert_one(new)
    while True:
        found = rollout(database["specs"], new["_id"])
        took = time.monotonic() - began
        if found.is_complete and found.processes == processes:
            break
        if took > PATIENCE_SECONDS:
            raise AssertionError(f"not everywhere after {took:.0f} s: {found}")
        time.sleep(max(0.05, processes / 5_000))
    result["all_have_it_s"] = took
    result["rollout_cpu"] = (cpu_seconds(server.pid) - cpu) / took
    size = {"$project": {"size": {"$bsonSize": "$$ROOT"}}}
    ((each),) = database["specs"].aggregate([{"$match": {"_id": new["_id"]}}, size])
    result["document_kb"] = each["size"] / 1e3
    result["rollout_ms"] = rollout_ms(database, new["_id"], processes)


def lost(database, processes, bounded):
    """Of how many processes the status is not there that was told."""
    missing = 0
    if not bounded:
        wanted = {identity(number) for number in range(processes)}
        for document in database["specs"].find():
            has = {
                name
                for name, entry in document["applied"].items()
                if entry["lm"] == document["lastmodified"]
            }
            missing += len(wanted - has)
        return missing
    for each in database["processes"].find({}, {"specs.id": 1}):
        missing += SPECS + 1 - len(each["specs"])
    return missing


# --- the table ----------------------------------------------------------------------------------

ROWS = (
    ("period", "seconds between two polls; heartbeats: three times as many", "{:.0f}"),
    ("poll_ms", "one poll, steady state", "{:.2f} ms"),
    ("poll_bytes", "bytes of one poll, both ways", "{:,.0f}"),
    ("polls_per_s", "polls a second", "{:,.0f}"),
    ("heartbeats_per_s", "heartbeats a second", "{:,.1f}"),
    ("server_cpu", "the server's CPU, steady state", "{:.0%} of a core"),
    ("latest_s", "the latest poll", "{:.1f} s late"),
    ("all_have_it_s", "until all have reported a new spec", "{:.1f} s"),
    ("rollout_cpu", "the server's CPU meanwhile", "{:.0%} of a core"),
    ("document_kb", "size of that spec's document", "{:,.0f} kB"),
    ("rollout_ms", "the rollout query", "{:,.0f} ms"),
    ("lost", "statuses lost", "{:,}"),
)


def table(results):
    lines = ["| | " + " | ".join(f"{each['processes']:,}" for each in results) + " |"]
    lines.append("|---|" + "--:|" * len(results))
    lines.append(
        "| form of `applied` | "
        + " | ".join("bounded" if each["bounded"] else "all" for each in results)
        + " |"
    )
    for name, label, form in ROWS:
        lines.append(
            f"| {label} | " + " | ".join(form.format(each[name]) for each in results) + " |"
        )
    return "\n".join(lines)


def missed(results):
    found = []
    for each in results:
        for name, (goal, label) in GOALS.items():
            if each["bounded"] and name in BOUNDED_ONLY_SHOWN:
                continue
            if each[name] > goal:
                found.append(f"{each['processes']:,}: {label}: {each[name]:.2f}, goal {goal}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("processes", nargs="*", type=int, default=[100, 1_000, 10_000])
    parser.add_argument("--bounded", type=int, action="append", default=[], metavar="N")
    parser.add_argument("--seconds", type=float, default=40.0, help="of the steady state")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--quick", action="store_true", help="200 processes, and no goal but: none lost"
    )
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return 0
    if options.quick:
        options.processes, options.bounded, options.seconds = [200], [300], 3.0
        bounds.BOUNDED_ABOVE = 200
    results = []
    for number in options.processes:
        print(f"{number:,} processes ...", file=sys.stderr, flush=True)
        results.append(measure(number, options.seconds, max(number, bounds.BOUNDED_ABOVE)))
        print(results[-1], file=sys.stderr, flush=True)
    for number in options.bounded:
        print(f"{number:,} processes, bounded ...", file=sys.stderr, flush=True)
        bound = min(number - 1, bounds.BOUNDED_ABOVE)
        is_large = number > MOST_WITH_SHORT_PERIOD
        period = BOUNDED_PERIOD_SECONDS if is_large else PERIOD_SECONDS
        results.append(measure(number, options.seconds, bound, period))
        print(results[-1], file=sys.stderr, flush=True)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    problems = [each for each in missed(results) if not options.quick or "lost" in each]
    for problem in problems:
        print(f"missed: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
