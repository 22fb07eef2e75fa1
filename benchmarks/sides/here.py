"""This library."""

from __future__ import annotations

import diagnose
from diagnose import instruments, probes
from diagnose.limits import Limits
from sides.arrivals import BUFFER, Arrivals, DiscardingText, udp_address


class Side(Arrivals):
    file = diagnose.__file__
    absent = (diagnose.DiagnoseError,)

    def __init__(self):
        self.made = []
        self.sink = None
        self.out = DiscardingText()

    def probe(self, target, work, expires=None):
        probe = probes.attach_to(target)
        for number in range(work.get("count", 1)):
            name = f"benchmark-{number}"
            probe.instruments[name] = made = self.instrument(name, work, expires)
            self.made.append(made)
        return probe

    def instrument(self, name, work, expires):
        event = f"line:+{work['line']}" if work["event"] == "line" else work["event"]
        options = {"event": event, "expires": expires, "when": work.get("when")}
        if "rate" in work:
            options["limits"] = Limits(rate=work["rate"])
        return self.kind(work)(name, work["value"], **options)

    def kind(self, work):
        variant = work["variant"]
        if variant in KINDS:
            return KINDS[variant]
        if variant == "log":
            self.arrived = lambda: self.out.lines
            instruments.LogInstrument.out = self.out
            return instruments.LogInstrument
        if self.sink is None:
            self.sink = self.make_sink(variant)
            diagnose.manager.sinks.append(self.sink)
        is_counter = work["event"] == "call"
        return instruments.IncrementInstrument if is_counter else instruments.HistogramInstrument

    def make_sink(self, variant):
        if variant == "discard":
            sink = Discarding()
            self.arrived = lambda: sink.arrived
            return sink
        from diagnose.sinks.statsd import StatsdSink

        limit = {"max_values_per_flush": 1 << 30} if variant == "statsd-all" else {}
        sink = StatsdSink(*udp_address(), **limit)
        self.arrived = lambda: self.made[0].status.hits if sink.sent and not sink.failures else 0
        return sink

    def flush(self):
        for made in self.made:
            made.flush()


class Emitting(instruments.Instrument):
    """A user's instrument, which keeps nothing of what it is given."""

    def emit(self, name, value, tags):
        BUFFER.append(None)


class Firing(instruments.Instrument):
    """A user's instrument that does all by itself, and nothing."""

    def fire(self, _globals, _locals):
        BUFFER.append(None)


class FiringName(instruments.Instrument):
    """One that evaluates its expression by itself."""

    def fire(self, _globals, _locals):
        BUFFER.append(self.evaluate(self.value, _globals, _locals))


class Acting(instruments.Instrument):
    """One that may act, and does not."""

    acts = True

    def act(self, value, names):
        BUFFER.append(None)


class Replacing(instruments.Instrument):
    """One that has the function return something else."""

    acts = True

    def act(self, value, names):
        BUFFER.append(None)
        return instruments.Result(value)


KINDS = {
    "emit": Emitting,
    "fire": Firing,
    "fire-name": FiringName,
    "acting": Acting,
    "acting-result": Replacing,
}


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
