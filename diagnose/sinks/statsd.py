"""Metrics as StatsD datagrams, with tags in the DogStatsD form."""

from __future__ import annotations

import logging
import math
import random
import re
import socket
import threading
import time
import weakref
from decimal import Decimal
from typing import TYPE_CHECKING

from diagnose import forking
from diagnose.forking import Layer
from diagnose.sinks.stream import is_finite

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["StatsdSink"]

log = logging.getLogger(__name__)

MAX_TAG_CHARS = 200
SETTLE_SECONDS = 10.0
"""How long a server must be reached to count as reachable, or not be asked for again."""

# What separates the parts of a line, and what would end it.
_RESERVED = re.compile(r"[:|@#,\x00-\x1f\x7f\x85\u2028\u2029]")

_monotonic = time.monotonic

_NOT_NOW = OSError("another thread is opening the socket, or has just closed it")

_sinks: weakref.WeakSet[StatsdSink] = weakref.WeakSet()


class StatsdSink:
    r"""Sends metrics over UDP, without ever blocking on the network or raising its errors.

    A line is ``name:value|h|@rate|#key:value,key:value`` for a sample of a histogram and
    ``name:value|c|#...`` for a counter, and several lines, separated by ``\n``, share a
    datagram (DogStatsD protocol 1.0, the only one that all servers read:
    https://docs.datadoghq.com/extend/dogstatsd/datagram_shell). Without tags the lines are
    plain StatsD. In names and tags the reserved ``: | @ # ,`` and control characters become
    ``_``; equal sets of tags give equal text.

    The socket is opened by the first batch, which is also when the host is resolved, in the
    background thread that calls. It is opened again after a fork, and, at most each
    10 seconds, while the server is not reached. One warning is logged when sending begins to
    fail, one line when it has worked for 10 seconds again. Thread-safe.

    Args:
        host: name or address of the server. IPv4 is preferred, as agents listen on it.
        port: the server's UDP port.
        prefix: goes before every name, with a dot between.
        tags: go with every metric; a metric's own tag of the same key wins.
        max_datagram_bytes: 1,432 fits into one Ethernet frame; on the loopback interface
            8,192 is fine.
        max_values_per_flush: of a batch with more values, a uniform sample of this many is
            sent, with the sampling rate that lets the server count them all.

    Attributes:
        sent: datagrams that were handed to the network.
        failures: datagrams that were not sent, or were sent and refused.
        dropped: values that were left out: not finite, or with a name and tags too long for
            a datagram.

    Raises:
        ValueError: a number is out of its range.
    """

    sent: int
    failures: int
    dropped: int
    _lock: threading.Lock
    _socket: socket.socket | None = None
    _open_again_at: float
    _error: Exception | None
    _failed_at: float | None
    _lost: int

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8125,
        *,
        prefix: str = "",
        tags: Mapping[str, object] | None = None,
        max_datagram_bytes: int = 1432,
        max_values_per_flush: int = 1000,
    ) -> None:
        for name, value, most in (
            ("port", port, 65535),
            ("max_datagram_bytes", max_datagram_bytes, 65507),  # what IPv4 can carry
            ("max_values_per_flush", max_values_per_flush, math.inf),
        ):
            if not 1 <= value <= most:
                raise ValueError(f"{name} is {value!r}; it must be from 1 to {most}")
        self.host = host
        self.port = port
        self.prefix = prefix
        self.tags = dict(tags or {})
        self.max_datagram_bytes = max_datagram_bytes
        self.max_values_per_flush = max_values_per_flush
        # Not the shared generator: a program that seeds it must see its own sequence.
        self._random = random.Random()
        self._start_afresh()
        _sinks.add(self)

    def __repr__(self) -> str:
        return f"StatsdSink({self.host!r}, {self.port!r})"

    def histogram(self, name: str, values: Sequence[float], tags: Mapping[str, object]) -> None:
        """Send samples of a distribution."""
        finite = [value for value in values if is_finite(value)]
        self._drop(len(values) - len(finite))
        kind = "|h"
        if len(finite) > self.max_values_per_flush:
            kind += f"|@{_number(self.max_values_per_flush / len(finite))}"
            finite = self._random.sample(finite, self.max_values_per_flush)
        self._send_lines(name, finite, kind, tags)

    def counter(self, name: str, total: float, tags: Mapping[str, object]) -> None:
        """Send what a counter has grown by."""
        if is_finite(total):
            self._send_lines(name, [total], "|c", tags)
        else:
            self._drop(1)

    def close(self) -> None:
        """Close the socket; a later batch opens another one."""
        with self._lock:
            self._hang_up()

    def _send_lines(
        self, name: str, values: Iterable[float], kind: str, tags: Mapping[str, object]
    ) -> None:
        path = f"{self.prefix.rstrip('.')}.{name}" if self.prefix else name
        start = f"{_clean(path) or '_'}:".encode(errors="replace")
        end = f"{kind}{_tag_part({**self.tags, **tags})}".encode(errors="replace")
        datagram = b""
        too_long = 0
        for value in values:
            line = start + _number(value).encode() + end
            if len(line) > self.max_datagram_bytes:
                too_long += 1
            elif not datagram:
                datagram = line
            elif len(datagram) + 1 + len(line) <= self.max_datagram_bytes:
                datagram += b"\n" + line
            else:
                self._send(datagram)
                datagram = line
        if datagram:
            self._send(datagram)
        self._drop(too_long)

    def _drop(self, count: int) -> None:
        if count:
            with self._lock:
                self.dropped += count

    def _send(self, datagram: bytes) -> None:
        error = self._open()
        with self._lock:
            if error is None:
                error = self._transmit(datagram)
            is_first, lost = self._note(error)
        # Not under the lock: a handler of the application may be slow, or send metrics.
        if is_first:
            log.warning(
                "metrics do not reach StatsD at %r port %r and are lost until they do: %r",
                self.host,
                self.port,
                error,
            )
        elif lost:
            log.info(
                "metrics reach StatsD at %r port %r again; %r datagrams were lost",
                self.host,
                self.port,
                lost,
            )

    def _open(self) -> Exception | None:
        """Open the socket if there is none and it is time to; say why there is none.

        The host is resolved without the lock, as that may take seconds: another thread that
        comes meanwhile loses its datagram and does not wait.
        """
        with self._lock:
            standing = self._socket
            if standing is not None:
                return None
            if _monotonic() < self._open_again_at:
                return self._error
            self._open_again_at = _monotonic() + SETTLE_SECONDS
            self._error = _NOT_NOW
        try:
            opened = _connect(self.host, self.port)
        except (OSError, ValueError) as exc:  # ValueError: no possible host name
            self._error = exc.with_traceback(None)  # which would keep frames alive
            return exc
        with self._lock:
            if self._socket is None:
                self._socket = opened
            else:  # close() let another thread open one meanwhile
                opened.close()
        return None

    def _transmit(self, datagram: bytes) -> OSError | None:
        refused = None
        try:
            if self._socket is None:
                return _NOT_NOW
            try:
                self._socket.send(datagram)
            except ConnectionRefusedError as exc:
                # That is the answer to an earlier datagram; this one was not sent.
                refused = exc
                self._socket.send(datagram)
        except OSError as exc:
            return exc
        self.sent += 1
        return refused

    def _note(self, error: Exception | None) -> tuple[bool, int]:
        """Count; return whether failures begin, and how many there were if they are over."""
        now = _monotonic()
        if error is _NOT_NOW:
            self.failures += 1
            return False, 0
        if error is not None:
            is_first = self._failed_at is None
            self.failures += 1
            self._lost += 1
            self._failed_at = now
            if now >= self._open_again_at:
                self._hang_up()  # the host's address may have changed
            return is_first, 0
        # A datagram that nobody receives is noticed, if at all, with a later one: so only
        # a quiet time shows that the server is back.
        if self._failed_at is None or now < self._failed_at + SETTLE_SECONDS:
            return False, 0
        lost, self._lost, self._failed_at = self._lost, 0, None
        return False, lost

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._open_again_at = -math.inf

    def _start_afresh(self) -> None:
        """Begin without a socket, at first and in a forked child."""
        # A lock may have been held at the fork by a thread that does not exist here.
        self._lock = threading.Lock()
        self._error = None
        self._failed_at = None
        self._lost = 0
        self.sent = self.failures = self.dropped = 0
        self._hang_up()  # a child's copy of the socket: the parent's stays open


def _start_sinks_afresh() -> None:
    for sink in list(_sinks):
        sink._start_afresh()


forking.register(Layer.STATE, in_child=_start_sinks_afresh)


def _connect(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    error = OSError(f"no address found for {host!r}")
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(0)
            sock.connect(address)
        except OSError as exc:
            sock.close()
            error = exc
        else:
            return sock
    raise error


def _clean(text: str) -> str:
    return _RESERVED.sub("_", text)


def _tag_part(tags: Mapping[str, object]) -> str:
    cleaned = []
    for key, value in tags.items():
        name, text = (_clean(str(each)[:MAX_TAG_CHARS]) for each in (key, value))
        if name:
            cleaned.append(f"{name}:{text}" if text else name)
    return f"|#{','.join(sorted(cleaned))}" if cleaned else ""


def _number(value: float) -> str:
    """A number as every StatsD server reads it: no exponent, no needless ``.0``."""
    if isinstance(value, int):
        return str(int(value))
    text = repr(float(value))  # the shortest that reads back as the same float
    return format(Decimal(text), "f").removesuffix(".0")
