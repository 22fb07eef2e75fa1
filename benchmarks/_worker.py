"""One measurement in one fresh process; `overhead.py` starts it and reads its last line.

    python _worker.py '{"side": "here", "measure": "event", "work": {...}, ...}'

All sides run the same code here; what differs between the libraries is in `sides/`. Times per
call are CPU time of the whole process, so that what background threads do for the calls
(draining buffers into sinks) counts in full, and other people's load on the machine hardly
does. Times of `start` and `stop`, and stalls, are wall-clock time.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from datetime import UTC, datetime, timedelta

import _heap
import _subject
import sides
from sides.arrivals import nothing

CHECKED_HITS = 500
# How long an instrument that ends after 0.4 s is given to be gone; upstream's never is.
EXPIRY_SECONDS = 1.0
# How long the next hit that a rate of one a second lets through may take to come.
NEXT_HIT_SECONDS = 5.0


class WrongHitsError(Exception):
    """What is measured does not do what it is measured for."""


def per_call(run, job, *, flush=nothing):
    """The least CPU time per call of several repeats, in ns; flushing is part of each."""
    times = 1
    while True:
        began = time.process_time_ns()
        run(times)
        spent = time.process_time_ns() - began
        if spent >= job["repeat_ns"] / 4 or times >= job["most_calls"]:
            break
        times *= 2
    times = max(1, min(job["most_calls"], int(times * job["repeat_ns"] / max(spent, 1))))
    flush()
    best = None
    for _ in range(job["repeats"]):
        began = time.process_time_ns()
        run(times)
        flush()
        spent = (time.process_time_ns() - began) / times
        best = spent if best is None else min(best, spent)
    return best


def check(side, run, each=1):
    """Whatever is measured, each call brings so many values to where values go."""
    arrived = side.hits(run, CHECKED_HITS)
    if arrived != CHECKED_HITS * each:
        raise WrongHitsError(f"{CHECKED_HITS} calls brought {arrived} values")


def measure_scale(job):
    """What the parts of a probe cost whoever writes it."""
    bare = per_call(_subject.call_add, job)
    return {
        f"{name}_ns": per_call(run, job) - bare
        for name, run in (
            ("decorator", _subject.call_decorated_add),
            ("clocks", _subject.call_add_with_clock_reads),
            ("nothing", _subject.call_add),
        )
    }


def measure_event(side, job):
    """Every call is a hit."""
    run = getattr(_subject, job["run"])
    each = job["work"].get("count", 1)
    bare = per_call(run, job)
    probe = side.probe(job["target"], job["work"])
    probe.start()
    check(side, run, each)
    probed = per_call(run, job, flush=side.flush)
    check(side, run, each)
    probe.stop()
    return {"bare_ns": bare, "added_ns": probed - bare}


def measure_condition(side, job):
    """No call is a hit, because a condition on an argument is false."""
    run = _subject.call_add
    bare = per_call(run, job)
    probe = side.probe(job["target"], job["work"])
    probe.start()
    check(side, _subject.call_add_large)
    check(side, run, 0)
    probed = per_call(run, job, flush=side.flush)
    check(side, run, 0)
    check(side, _subject.call_add_large)
    probe.stop()
    return {"bare_ns": bare, "added_ns": probed - bare}


def measure_rate(side, job):
    """Next to no call is a hit, because a rate of one hit a second allows none."""
    run = _subject.call_add
    bare = per_call(run, job)
    probe = side.probe(job["target"], job["work"])
    probe.start()

    def check_few(least):
        arrived = side.hits(run, CHECKED_HITS)
        if not least <= arrived <= 2:
            raise WrongHitsError(f"{CHECKED_HITS} calls brought {arrived} values")

    check_few(1)
    probed = per_call(run, job, flush=side.flush)
    check_few(0)
    deadline = time.monotonic() + NEXT_HIT_SECONDS
    while not side.hits(run, 1):
        if time.monotonic() > deadline:
            raise WrongHitsError(f"no value came for {NEXT_HIT_SECONDS} s")
    probe.stop()
    return {"bare_ns": bare, "added_ns": probed - bare}


def measure_gone(side, job):
    """What is left of a probe that was stopped, or that has expired."""
    function, code = _subject.add, _subject.add.__code__
    bare = per_call(_subject.call_add, job)
    expires = None
    if job["is_expiry"]:
        expires = datetime.now(UTC) + timedelta(seconds=0.4)
        expires = expires.replace(tzinfo=None)  # as both libraries take it: UTC
    probe = side.probe(job["target"], job["work"], expires)
    probe.start()
    check(side, _subject.call_add)

    def is_original():
        return _subject.add is function and function.__code__ is code

    if expires is None:
        probe.stop()
    else:
        deadline = time.monotonic() + EXPIRY_SECONDS
        while not is_original() and time.monotonic() < deadline:
            time.sleep(0.01)
    _subject.call_add(1)
    side.flush()
    before = side.arrived()
    after = per_call(_subject.call_add, job)
    side.flush()
    if side.arrived() != before:
        raise WrongHitsError("the probe is gone, but its instrument still sees calls")
    return {"bare_ns": bare, "added_ns": after - bare, "is_original": is_original()}


def measure_body(side, job):
    """A body of `length` nested calls, with the probe and without, in turns."""
    run = functools.partial(_subject.call_body, job["length"])
    bare, probed = [], []
    for _ in range(job["alternations"]):
        bare.append(per_call(run, job))
        probe = side.probe(job["target"], job["work"])
        probe.start()
        probed.append(per_call(run, job, flush=side.flush))
        probe.stop()
    probe = side.probe(job["target"], job["work"])
    probe.start()
    check(side, functools.partial(_subject.call_body, 0))
    probe.stop()
    bare_ns, probed_ns = min(bare), min(probed)
    return {"bare_ns": bare_ns, "added_ns": probed_ns - bare_ns, "ratio": probed_ns / bare_ns}


def measure_hotspots(side, job):
    """A function of few lines and one of many: what a call costs, and what a line that runs."""
    few = measure_event(side, job | {"target": "_subject.three_lines", "run": "call_three_lines"})
    many = measure_event(side, job | {"target": "_subject.many_lines", "run": "call_many_lines"})
    few_lines, many_lines = lines_run("call_three_lines"), lines_run("call_many_lines")
    per_line = (many["added_ns"] - few["added_ns"]) / (many_lines - few_lines)
    return {
        "few_ns": few["added_ns"],
        "few_lines": few_lines,
        "many_ns": many["added_ns"],
        "many_lines": many_lines,
        "line_ns": per_line,
        "call_ns": few["added_ns"] - few_lines * per_line,
    }


def lines_run(name):
    """How many lines of the function that a loop calls run in one call of it."""
    run = getattr(_subject, name)
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line" and frame.f_code is not run.__code__
        return trace

    sys.settrace(trace)
    run(1)
    sys.settrace(None)
    return count


MEASURES = {
    "event": measure_event,
    "condition": measure_condition,
    "rate": measure_rate,
    "gone": measure_gone,
    "body": measure_body,
    "hotspots": measure_hotspots,
    "heap": _heap.measure_heap,
}


def main():
    job = json.loads(sys.argv[1])
    if job["measure"] == "scale":
        outcome = measure_scale(job)
    else:
        side = sides.load(job["side"])
        try:
            outcome = MEASURES[job["measure"]](side, job)
        except side.absent as error:
            if not job.get("may_be_absent"):
                raise
            outcome = {"absent": str(error)}
        outcome["file"] = side.file
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
