"""diagnose 5.0.1 from PyPI: a black box with the same names."""

from __future__ import annotations

import socket

import diagnose
from diagnose import instruments, probes
from sides.arrivals import BUFFER, Arrivals, DiscardingText, udp_address


class Side(Arrivals):
    file = diagnose.__file__

    def probe(self, target, work, expires=None):
        probe = probes.attach_to(target)
        for number in range(work.get("count", 1)):
            name = f"benchmark-{number}"
            probe.instruments[name] = self.instrument(name, work, expires)
        return probe

    def instrument(self, name, work, expires):
        value, variant = work["value"], work["variant"]
        if variant in KINDS:
            kind = KINDS[variant]
        elif variant == "log":
            kind = instruments.LogInstrument
            kind.out = out = DiscardingText()
            self.arrived = lambda: out.lines
        else:
            instruments.statsd = DiscardingClient() if variant == "discard" else UdpClient()
            is_counter = work["event"] == "call"
            kind = (
                instruments.IncrementInstrument if is_counter else instruments.HistogramInstrument
            )
            if value == "elapsed":
                value = "int(elapsed * 1000000)"  # its metrics refuse floats
        return kind(name, value, event=work["event"], expires=expires)


class Emitting(instruments.Instrument):
    """A user's instrument, which keeps nothing of what it is given."""

    # The base class's own raises NotImplementedError.
    def fire(self, _globals, _locals):
        value = self.evaluate(self.value, _globals, _locals)
        self.emit(self.name, value, self.merge_tags(_globals, _locals))

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


KINDS = {"emit": Emitting, "fire": Firing, "fire-name": FiringName}


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
