"""ddtrace's Dynamic Instrumentation, in process: no agent, no network, output dropped.

Probes are the JSON documents that Datadog's backend sends (and that the file named by
DD_DYNAMIC_INSTRUMENTATION_PROBE_FILE holds), handed to the debugger by the method that its
remote configuration calls. Replaced are, by the class attributes that it has for that, what
talks to the agent: the uploader of signals and the uploader of probe statuses.
"""

from __future__ import annotations

import itertools
import os
import sys

from sides.arrivals import BUFFER, Arrivals, udp_address

UDP = udp_address()
os.environ |= {
    "DD_TRACE_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_TRACE_STARTUP_LOGS": "false",
    "DD_DOGSTATSD_URL": f"udp://{UDP[0]}:{UDP[1]}",
}

import ddtrace  # noqa: E402 - it reads the environment when it is imported
from ddtrace.debugging._debugger import Debugger  # noqa: E402
from ddtrace.debugging._encoding import LogSignalJsonEncoder, SnapshotJsonEncoder  # noqa: E402
from ddtrace.debugging._probe.remoteconfig import ProbePollerEvent, build_probe  # noqa: E402
from ddtrace.debugging._probe.status import ProbeStatusLogger  # noqa: E402
from ddtrace.debugging._signal.collector import SignalCollector  # noqa: E402
from ddtrace.debugging._signal.model import SignalTrack  # noqa: E402
from ddtrace.internal.metrics import DogStatsdClient, Metrics  # noqa: E402

# Its default for log probes is 5,000 a second, one each 200 microseconds.
UNLIMITED = 1e9
CONDITIONS = {"a > 100": {"gt": [{"ref": "a"}, 100]}}


class Side(Arrivals):
    file = ddtrace.__file__

    def __init__(self):
        self.numbers = itertools.count()
        self.debugger = None

    def probe(self, target, work, expires=None):
        if self.debugger is None:
            self.debugger = debugger(work["variant"])
        count = work.get("count", 1)
        return Probes(self.debugger, [self.document(target, work) for _ in range(count)])

    def document(self, target, work):
        module, _, name = target.rpartition(".")
        found = {"id": f"benchmark-{next(self.numbers)}", "version": 1, "language": "python"}
        if work["event"] == "line":
            code = getattr(sys.modules[module], name).__code__
            lines = [str(code.co_firstlineno + work["line"])]
            found["where"] = {"sourceFile": code.co_filename, "lines": lines}
        else:
            found["where"] = {"typeName": module, "methodName": name}
            found["evaluateAt"] = "ENTRY" if work["event"] == "call" else "EXIT"
        if "when" in work:
            found["when"] = {"dsl": work["when"], "json": CONDITIONS[work["when"]]}
        return found | (log(work) if work["variant"] == "log" else metric(work))


def metric(work):
    found = {"type": "METRIC_PROBE", "metricName": "benchmark", "kind": "HISTOGRAM"}
    if work["event"] == "call":
        return found | {"kind": "COUNT"}
    return found | {
        "value": reference("@duration" if work["value"] == "elapsed" else work["value"])
    }


def log(work):
    """A line of the arguments a and b, without a snapshot of the frame."""
    segments = [reference("a"), {"str": " "}, reference("b")]
    rate = {"snapshotsPerSecond": work.get("rate", UNLIMITED)}
    return {"type": "LOG_PROBE", "template": "{a} {b}", "segments": segments, "sampling": rate}


def reference(name):
    return {"dsl": name, "json": {"ref": name}}


class Probes:
    def __init__(self, debugger, documents):
        self.debugger = debugger
        self.documents = documents

    def start(self):
        self.built = [build_probe(document) for document in self.documents]
        self.debugger._on_configuration(ProbePollerEvent.NEW_PROBES, self.built)

    def stop(self):
        self.debugger._on_configuration(ProbePollerEvent.DELETED_PROBES, self.built)


def debugger(variant):
    client = CountingClient() if variant.startswith("statsd") else DiscardingClient()
    metrics = Metrics(client)
    metrics.enable()

    class Quiet(Debugger):
        __uploader__ = Uploader
        __logger__ = StatusLogger
        _probe_meter = metrics.get_meter("probe")

    Quiet.__watchdog__.install()
    made = Quiet()
    made.start()
    return made


class DiscardingClient:
    """A metrics client that drops what it is given."""

    def increment(self, name, value, tags=None):
        BUFFER.append(value)

    gauge = histogram = distribution = increment


class CountingClient(DogStatsdClient):
    """Its own client, sending to a port that nobody reads."""

    def histogram(self, name, value, tags=None):
        super().histogram(name, value, tags)
        BUFFER.append(value)


class Track:
    """Stands in for a queue of encoded signals: encodes, as it does, and drops the bytes."""

    def __init__(self, encoder):
        self.encoder = encoder

    def put(self, signal):
        BUFFER.append(len(self.encoder.encode(signal)))


class Uploader:
    """Its collector of signals, and nobody who sends what was collected."""

    collector = SignalCollector(
        {
            SignalTrack.LOGS: Track(LogSignalJsonEncoder("benchmark")),
            SignalTrack.SNAPSHOT: Track(SnapshotJsonEncoder("benchmark")),
        }
    )

    @classmethod
    def get_collector(cls):
        return cls.collector

    @classmethod
    def register(cls, product):
        pass

    unregister = register


class StatusLogger(ProbeStatusLogger):
    """Reports of what became of probes: errors are raised here, the rest is dropped."""

    def _enqueue(self, probe, status, message, error=None):
        if error is not None:
            raise RuntimeError(f"ddtrace: {error}")
