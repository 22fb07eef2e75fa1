"""Where values go: every side ends in something that drops them, and says how many came."""

from __future__ import annotations

import contextlib
import socket
from collections import deque

# Room for what a check lets come, ten instruments a call; a measurement fills it many times.
BUFFER = deque(maxlen=10_000)


def nothing():
    pass


class Arrivals:
    """What all sides have in common.

    Attributes:
        file: what was imported.
        absent: errors that mean "this library has no such thing".
    """

    file = ""
    absent = ()

    def probe(self, target, work, expires=None):
        """Something to `start` and `stop`: `work` done at each hit of `target`, a dotted path."""
        raise NotImplementedError

    def flush(self):
        """Bring to its end what is done for the calls in the background."""

    def arrived(self):
        """How many values have come."""
        return len(BUFFER)

    def counting(self):
        """While it is open, hits must be counted. Sides that drop them uncounted override it."""
        return contextlib.nullcontext()

    def hits(self, run, times):
        """How many values so many calls bring."""
        with self.counting():
            self.flush()
            BUFFER.clear()
            before = self.arrived()
            run(times)
            self.flush()
            return self.arrived() - before


class DiscardingText:
    """A text stream that drops what it is given."""

    def __init__(self):
        self.lines = 0

    def write(self, text):
        self.lines += text.endswith("\n")

    def flush(self):
        pass


def udp_address():
    """A local port that somebody listens on but does not read: the kernel drops the rest."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    udp_address.kept = receiver
    return receiver.getsockname()
