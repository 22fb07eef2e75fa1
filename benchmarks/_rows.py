"""What is measured on which side, and the rows that show it.

A measurement is a job for `_worker.py`; it runs in a process of its own, once a round, on each
of its sides. A row shows one figure of a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HERE = ("here",)
LIBRARIES = ("here", "upstream")
DEBUGGERS = ("here", "upstream", "ddtrace")

LONG_BODY = 20_000
SHORT_BODY = 100
TEN = 10
# In `body`, the line that returns.
BODY_LINE = 5

ELAPSED = {"event": "return", "value": "elapsed", "variant": "discard"}
LOCAL_AT_END = {"event": "end", "value": "total", "variant": "discard"}
LOCAL_AT_LINE = {"event": "line", "line": 2, "value": "total", "variant": "discard"}
FIRE = {"event": "return", "value": "a"}
ACTING = {"event": "return", "value": "1"}
LOG = {"event": "return", "value": "(a, b)", "variant": "log"}


@dataclass(frozen=True)
class Measurement:
    """One job.

    Attributes:
        sides: who is measured.
        work: what is done at each hit; see `sides/`.
        measure: the function of `_worker.py`.
        more: what else that function wants to know.
        each: what it wants to know by side.
    """

    sides: tuple[str, ...]
    work: dict
    measure: str = "event"
    more: dict = field(default_factory=dict)
    each: dict = field(default_factory=dict)

    def job(self, side):
        usual = {"measure": self.measure, "target": "_subject.add", "run": "call_add"}
        return usual | {"side": side, "work": self.work} | self.more | self.each.get(side, {})


def body(event, length, sides, **more):
    work = LOCAL_AT_END if event == "end" else LOCAL_AT_LINE | {"line": BODY_LINE}
    # Long enough that fewer repeats do.
    more |= {"target": "_subject.body", "length": length, "alternations": 3, "repeats": 5}
    return Measurement(sides, work, "body", more)


def metric_of(target, run, sides):
    return Measurement(sides, ELAPSED, more={"target": f"_subject.{target}", "run": run})


MAY_BE_ABSENT = {"may_be_absent": True}


def hotspots(value, sides):
    work = {"event": "return", "value": value, "variant": "emit"}
    return Measurement(sides, work, "hotspots", MAY_BE_ABSENT)


MEASUREMENTS = {
    "call": Measurement(DEBUGGERS, {"event": "call", "value": "1", "variant": "discard"}),
    "call-emit": Measurement(LIBRARIES, {"event": "call", "value": "1", "variant": "emit"}),
    "return": Measurement((*DEBUGGERS, "wrapt"), ELAPSED),
    "return-emit": Measurement(LIBRARIES, ELAPSED | {"variant": "emit"}),
    "statsd": Measurement(DEBUGGERS, ELAPSED | {"variant": "statsd"}),
    "statsd-all": Measurement(DEBUGGERS, ELAPSED | {"variant": "statsd-all"}),
    "end": Measurement((*DEBUGGERS, "monitoring"), LOCAL_AT_END),
    "end-emit": Measurement(LIBRARIES, LOCAL_AT_END | {"variant": "emit"}),
    "line": Measurement(("here", "ddtrace", "monitoring"), LOCAL_AT_LINE, more=MAY_BE_ABSENT),
    "fire": Measurement(LIBRARIES, FIRE | {"variant": "fire"}),
    "fire-name": Measurement(LIBRARIES, FIRE | {"variant": "fire-name"}),
    "acting": Measurement(HERE, ACTING | {"variant": "acting"}),
    "acting-result": Measurement(HERE, ACTING | {"variant": "acting-result"}),
    "log": Measurement(DEBUGGERS, LOG | {"rate": 1e9}),
    "when": Measurement(("here", "ddtrace"), ELAPSED | {"when": "a > 100"}, "condition"),
    "rate": Measurement(("here", "ddtrace"), LOG | {"rate": 1}, "rate"),
    "ten": Measurement(DEBUGGERS, ELAPSED | {"count": TEN}),
    "generator": metric_of("count_up", "call_generator", (*DEBUGGERS, "monitoring")),
    "coroutine": metric_of("add_later", "call_coroutine", (*DEBUGGERS, "monitoring")),
    "hotspots": hotspots("hotspots", ("here", "upstream")),
    "hotspots-worst": hotspots("hotspots.worst", ("here", "upstream", "monitoring")),
    "body-short": body("end", SHORT_BODY, (*DEBUGGERS, "monitoring")),
    "body": body("end", LONG_BODY, (*DEBUGGERS, "monitoring")),
    "body-line": body("line", LONG_BODY, ("here", "ddtrace"), **MAY_BE_ABSENT),
    "nothing": Measurement(("wrapt",), {"event": "return", "value": "", "variant": "nothing"}),
    "stopped": Measurement(DEBUGGERS, ELAPSED, "gone", {"is_expiry": False}),
    "expired": Measurement(LIBRARIES, ELAPSED, "gone", {"is_expiry": True}),
    "heap": Measurement(
        DEBUGGERS,
        ELAPSED,
        "heap",
        # Upstream's takes seconds each time, so fewer times have to do.
        {"starts": 20, "tries": 5},
        {"upstream": {"starts": 1, "tries": 3}},
    ),
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: of the measurement.
        label: what the row says.
        name: of the figure in the measurement's outcome.
        unit: how the figure is shown: "ns", "x", "ms" or "" (a number).
        digits: after the decimal point.
    """

    key: str
    label: str
    name: str = "added_ns"
    unit: str = "ns"
    digits: int = 0
    is_compared: bool = True


ROWS = (
    Row("call", "`call`, 1 into a counter"),
    Row("call-emit", "`call`, 1 to a subclass's `emit`"),
    Row("return", "`return`, `elapsed` into a histogram"),
    Row("return-emit", "the same, to a subclass's `emit`"),
    Row("statsd", "the same, to StatsD by UDP, defaults"),
    Row("statsd-all", "the same, to StatsD by UDP, every value"),
    Row("end", "`end`, a local into a histogram"),
    Row("end-emit", "the same, to a subclass's `emit`"),
    Row("line", "`line:+2`, a local into a histogram"),
    Row("fire", "`return`, a subclass's `fire` that does nothing"),
    Row("fire-name", "the same, with a `fire` that evaluates a name"),
    Row("acting", "`return`, a subclass that acts and returns None", is_compared=False),
    Row("acting-result", "the same, and replaces the result", is_compared=False),
    Row("log", "`return`, a line of text of two arguments"),
    Row("when", "condition false: `return`, `a > 100`"),
    Row("rate", "over its rate limit: a log of one a second"),
    Row("ten", "ten `return` histograms on one function"),
    Row("generator", "`return` of a generator of ten values"),
    Row("coroutine", "`return` of a coroutine"),
    Row("hotspots", "`hotspots` of 3 lines that run", "few_ns"),
    Row("hotspots", "`hotspots` of 203", "many_ns"),
    Row("hotspots-worst", "`hotspots.worst` of 3 lines that run", "few_ns"),
    Row("hotspots-worst", "`hotspots.worst` of 203", "many_ns"),
    Row("hotspots-worst", "from these: a call without its lines", "call_ns"),
    Row("hotspots-worst", "from these: each line that runs", "line_ns"),
    Row("body-short", "`end`, body of 100 nested calls", "ratio", "x", 3, is_compared=False),
    Row("body", "`end`, body of 20,000 nested calls", "ratio", "x", 3, is_compared=False),
    Row("body-line", "`line`, body of 20,000 nested calls", "ratio", "x", 3, is_compared=False),
    Row("nothing", "a wrapper that does nothing"),
    Row("stopped", "stopped", digits=1, is_compared=False),
    Row("expired", "expired", digits=1, is_compared=False),
    Row("heap", "start and stop", "start_stop_ms", "ms", 2),
    Row("heap", "start and stop, the first in its process", "first_ms", "ms", 2),
    Row("heap", "longest stall of another thread", "stall_ms", "ms", 2, is_compared=False),
    Row(
        "heap", "the same while nothing is started", "stall_without_ms", "ms", 2, is_compared=False
    ),
    Row("heap", "references covered, of 20", "seen", "", 0, is_compared=False),
)
