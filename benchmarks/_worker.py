"""One measurement in one fresh process; `overhead.py` starts it and reads its last line.

    python _worker.py '{"side": "ours", "case": "return", "variant": "emit", ...}'

Both sides run the same code here; what differs between the libraries is in `Ours` and
`Upstream`. Times per call are CPU time of the whole process, so that what background threads do
for the calls (draining buffers into sinks) counts in full, and other people's load on
the machine hardly does. Times of `start` and `stop`, and stalls, are wall-clock time.
"""

from __future__ import annotations

import functools
import gc
import json
import socket
import statistics
import sys
import threading
import time
import types
from collections import deque
from datetime import UTC, datetime, timedelta

import _subject

VALUES = {"call": "1", "return": "elapsed", "end": "total"}
CHECKED_HITS = 500
# How long an instrument that ends after 0.4 s is given to be gone; upstream's never is.
EXPIRY_SECONDS = 1.0
BUFFER = deque(maxlen=1000)


def nothing():
    pass


def udp_address():
    """A local port that somebody listens on but does not read: the kernel drops the rest."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    udp_address.kept = receiver
    return receiver.getsockname()


# --- the two libraries --------------------------------------------------------------------


class Ours:
    """This library. `arrived` says how many values have come to where they go."""

    def __init__(self):
        import diagnose
        from diagnose import instruments, probes

        self.file = diagnose.__file__
        self.instruments = instruments
        self.probes = probes
        self.manager = diagnose.manager
        self.flush = nothing
        self.arrived = lambda: len(BUFFER)

    def instrument(self, event, variant, expires=None):
        value = VALUES[event]
        if variant == "emit":

            class Emitting(self.instruments.Instrument):
                def emit(self, name, value, tags):
                    BUFFER.append(value)

            return Emitting("benchmark", value, event=event, expires=expires)
        classes = self.instruments
        kind = classes.IncrementInstrument if event == "call" else classes.HistogramInstrument
        made = kind("benchmark", value, event=event, expires=expires)
        self.flush = made.flush
        self.manager.sinks.append(self.sink(variant, made))
        return made

    def sink(self, variant, instrument):
        if variant == "discard":
            sink = Discarding()
            self.arrived = lambda: sink.arrived
            return sink
        from diagnose.sinks.statsd import StatsdSink

        limit = {"max_values_per_flush": 1 << 30} if variant == "statsd-all" else {}
        sink = StatsdSink(*udp_address(), **limit)
        self.arrived = lambda: instrument.status.hits if sink.sent and not sink.failures else 0
        return sink

    def attach(self, target, instrument):
        probe = self.probes.attach_to(target)
        probe.instruments["benchmark"] = instrument
        return probe


class Discarding:
    """A sink that drops what it is given."""

    def __init__(self):
        self.arrived = 0

    def histogram(self, name, values, tags):
        self.arrived += len(values)

    def counter(self, name, total, tags):
        self.arrived += total

    def close(self):
        pass


class Upstream:
    """diagnose 5.0.1 from PyPI, a black box with the same names."""

    def __init__(self):
        import diagnose
        from diagnose import instruments, probes

        self.file = diagnose.__file__
        self.instruments = instruments
        self.probes = probes
        self.flush = nothing
        self.arrived = lambda: len(BUFFER)

    def instrument(self, event, variant, expires=None):
        value = VALUES[event]
        if variant == "emit":

            class Emitting(self.instruments.Instrument):
                # The base class's own raises NotImplementedError.
                def fire(self, _globals, _locals):
                    value = self.evaluate(self.value, _globals, _locals)
                    self.emit(self.name, value, self.merge_tags(_globals, _locals))

                def emit(self, name, value, tags):
                    BUFFER.append(value)

            return Emitting("benchmark", value, event=event, expires=expires)
        self.instruments.statsd = DiscardingClient() if variant == "discard" else UdpClient()
        if event == "return":
            value = "int(elapsed * 1000000)"  # its metrics refuse floats
        classes = self.instruments
        kind = classes.IncrementInstrument if event == "call" else classes.HistogramInstrument
        return kind("benchmark", value, event=event, expires=expires)

    attach = Ours.attach


class DiscardingClient:
    """A statsd client that drops what it is given."""

    def histogram(self, name, value, tags=None):
        BUFFER.append(value)

    increment = histogram


class UdpClient:
    """What statsd clients do: one line, one datagram, for each hit."""

    def __init__(self):
        self.address = udp_address()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def histogram(self, name, value, tags=None):
        self.socket.sendto(f"{name}:{value}|h".encode(), self.address)
        BUFFER.append(value)


# --- nanoseconds per call ------------------------------------------------------------------


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


def check_hits(side, run):
    """Whatever is measured, each call brings one value to where values go."""
    side.flush()
    BUFFER.clear()
    before = side.arrived()
    run(CHECKED_HITS)
    side.flush()
    arrived = side.arrived() - before
    if arrived != CHECKED_HITS:
        raise RuntimeError(f"{CHECKED_HITS} calls brought {arrived} values")


def measure_scale(job):
    bare = per_call(_subject.call_add, job)
    run = {
        "decorator": _subject.call_decorated_add,
        "clocks": _subject.call_add_with_clock_reads,
        "nothing": _subject.call_add,
    }[job["case"]]
    return {"bare_ns": bare, "added_ns": per_call(run, job) - bare}


def measure_event(side, job):
    bare = per_call(_subject.call_add, job)
    instrument = side.instrument(job["case"], job["variant"])
    probe = side.attach("_subject.add", instrument)
    probe.start()
    check_hits(side, _subject.call_add)
    probed = per_call(_subject.call_add, job, flush=side.flush)
    check_hits(side, _subject.call_add)
    probe.stop()
    return {"bare_ns": bare, "added_ns": probed - bare}


def measure_gone(side, job):
    """What is left of a probe that was stopped, or that has expired."""
    function, code = _subject.add, _subject.add.__code__
    bare = per_call(_subject.call_add, job)
    expires = None
    if job["case"] == "expired":
        expires = datetime.now(UTC) + timedelta(seconds=0.4)
        expires = expires.replace(tzinfo=None)  # as both libraries take it: UTC
    probe = side.attach("_subject.add", side.instrument("return", job["variant"], expires))
    probe.start()
    check_hits(side, _subject.call_add)

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
        raise RuntimeError("the probe is gone, but its instrument still sees calls")
    return {"bare_ns": bare, "added_ns": after - bare, "is_original": is_original()}


def measure_body(side, job):
    """An `end` instrument on a body of `length` nested calls, switched on and off."""
    run = functools.partial(_subject.call_body, job["length"])
    instrument = side.instrument("end", job["variant"])
    bare, probed = [], []
    for _ in range(job["alternations"]):
        bare.append(per_call(run, job))
        probe = side.attach("_subject.body", instrument)
        probe.start()
        probed.append(per_call(run, job, flush=side.flush))
        probe.stop()
    probe = side.attach("_subject.body", instrument)
    probe.start()
    check_hits(side, functools.partial(_subject.call_body, 0))
    probe.stop()
    bare_ns, probed_ns = min(bare), min(probed)
    return {"bare_ns": bare_ns, "added_ns": probed_ns - bare_ns, "ratio": probed_ns / bare_ns}


# --- start and stop on a large heap -------------------------------------------------------


class Ticker(threading.Thread):
    """Does nothing but look at the clock, and keeps the longest gap between two looks."""

    def __init__(self):
        super().__init__(daemon=True)
        self.gap = 0.0
        self.ended = False

    def run(self):
        clock = time.perf_counter
        gap, last = 0.0, clock()
        while not self.ended:
            now = clock()
            gap = max(gap, now - last)
            last = now
        self.gap = gap

    @classmethod
    def longest_gap_ms(cls, action):
        ticker = cls()
        ticker.start()
        time.sleep(0.01)
        action()
        time.sleep(0.01)
        ticker.ended = True
        ticker.join()
        return ticker.gap * 1e3


def make_target(number):
    """A function of its own: what a library keeps about one is no help with the next."""
    module = types.ModuleType(f"target_{number}")
    sys.modules[module.__name__] = module
    exec("def add(a, b):\n    total = a + b\n    return total\n", module.__dict__)
    return module.add, f"{module.__name__}.add"


def make_references(add, number):
    """Twenty references to a function, of the kinds that programs have, as callers by kind."""
    modules = [types.ModuleType(f"user_{number}_{each}") for each in range(4)]
    for module in modules:
        module.add = add
        sys.modules[module.__name__] = module

    class Holder:
        method = add
        static = staticmethod(add)

    def enclose(function):
        return lambda: function(1, 2)

    # All of them are held by a module, as a program's registries are.
    home = modules[0]
    home.Holder = Holder
    home.aliases = [add] * 4
    home.table = {"add": add, "sum": add}
    home.methods = [types.MethodType(add, each) for each in range(4)]
    home.partials = [functools.partial(add, 1) for _ in range(2)]
    home.closure = enclose(add)
    home.default = lambda function=add: function(1, 2)
    return {
        "modules": [lambda module=module: module.add(1, 2) for module in modules],
        "class": [lambda: home.Holder.method(1, 2), lambda: home.Holder.static(1, 2)],
        "list": [lambda at=at: home.aliases[at](1, 2) for at in range(4)],
        "dict": [lambda key=key: home.table[key](1, 2) for key in home.table],
        "bound methods": [lambda at=at: home.methods[at](2) for at in range(4)],
        "partials": [lambda at=at: home.partials[at](2) for at in range(2)],
        "closure": [home.closure],
        "default": [home.default],
    }


def measure_heap(side, job):
    gc.disable()
    heap = [[] for _ in range(job["objects"])]
    gc.enable()
    gc.collect()
    numbers = range(1 + job["starts"] + job["tries"])
    made = [make_target(number) for number in numbers]
    targets = [target for _, target in made]
    references = [make_references(add, number) for number, (add, _) in enumerate(made)]
    instrument = side.instrument("return", job["variant"])

    def start_and_stop(between=nothing):
        probe = side.attach(targets.pop(), instrument)
        began = time.perf_counter()
        probe.start()
        spent = time.perf_counter() - began
        between()
        began = time.perf_counter()
        probe.stop()
        return (spent + time.perf_counter() - began) * 1e3

    seen = {}

    def look():
        for kind, callers in references.pop().items():
            side.flush()
            BUFFER.clear()
            before = side.arrived()
            for caller in callers:
                caller()
            side.flush()
            seen[kind] = side.arrived() - before

    first = start_and_stop(look)
    spent = [start_and_stop() for _ in range(job["starts"])]
    # A stall that the library makes is there each time; one that the machine makes is not.
    stall = min(Ticker.longest_gap_ms(start_and_stop) for _ in range(job["tries"]))
    without = min(Ticker.longest_gap_ms(nothing) for _ in range(job["tries"]))
    return {
        "first_ms": first,
        "start_stop_ms": statistics.median(spent),
        "stall_ms": stall,
        "stall_without_ms": without,
        "seen": seen,
        "objects": len(heap),
    }


def main():
    job = json.loads(sys.argv[1])
    if job["side"] == "neither":
        outcome = measure_scale(job)
    else:
        side = Ours() if job["side"] == "ours" else Upstream()
        measure = {
            "stopped": measure_gone,
            "expired": measure_gone,
            "body": measure_body,
            "heap": measure_heap,
        }.get(job["case"], measure_event)
        outcome = measure(side, job)
        outcome["file"] = side.file
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
