"""The demo's StatsD server: what the workers measure, as it comes in over UDP.

In place of this there would be a Datadog agent, Telegraf, statsd_exporter or the like.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["MetricsServer", "Row", "Series", "parse", "summarize"]

_HOST = "127.0.0.1"
_LARGEST_DATAGRAM = 65_535
_KEPT_SAMPLES = 5_000
_WORKER = "worker"

Tags = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Series:
    """What has come in for one metric under one set of tags.

    Attributes:
        kind: "h" (histogram) or "c" (counter).
        samples: the latest values.
        count: how many values came.
        total: their sum.
        since: when the first came, by the monotonic clock.
    """

    kind: str
    since: float
    samples: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_SAMPLES))
    count: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        """Take one value."""
        self.samples.append(value)
        self.count += 1
        self.total += value


class MetricsServer:
    """Listens on a free UDP port of 127.0.0.1 and keeps what comes in. A context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((_HOST, 0))
        self.port: int = self._socket.getsockname()[1]
        self._lock = threading.Lock()
        self._series: dict[tuple[str, Tags], Series] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._listen, name="statsd", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing = True
        # Closing a socket does not wake a thread that waits for it.
        self._socket.sendto(b"", (_HOST, self.port))
        self._thread.join()
        self._socket.close()

    def forget(self) -> None:
        """Begin anew."""
        with self._lock:
            self._series.clear()

    def series(self) -> dict[tuple[str, Tags], Series]:
        """By name and tags, a picture of what came in; later values don't change it."""
        with self._lock:
            return {
                key: Series(each.kind, each.since, each.samples.copy(), each.count, each.total)
                for key, each in sorted(self._series.items())
            }

    def _listen(self) -> None:
        while True:
            datagram = self._socket.recv(_LARGEST_DATAGRAM)
            if self._closing:
                return
            now = time.monotonic()
            with self._lock:
                for line in datagram.decode(errors="replace").splitlines():
                    # Anybody may send us anything.
                    with contextlib.suppress(ValueError):
                        name, value, kind, tags = parse(line)
                        self._series.setdefault((name, tags), Series(kind, now)).add(value)


def parse(line: str) -> tuple[str, float, str, Tags]:
    """Take ``name:value|kind|#key:value,…`` apart.

    Raises:
        ValueError: it is something else.
    """
    name, _, rest = line.partition(":")
    value, kind, *more = rest.split("|")
    tags = next((part[1:].split(",") for part in more if part.startswith("#")), [])
    pairs = ((key, text) for key, _, text in (tag.partition(":") for tag in tags))
    return name, float(value), kind, tuple(sorted(pairs))


@dataclass(frozen=True, slots=True)
class Row:
    """A line about one metric.

    Attributes:
        name: of the metric.
        tags: its tags, but for the worker's.
        worker: whose values these are; None for all workers'.
        count: how many values, or how far a counter grew.
        per_second: since the first.
        quantiles: by name (p50, p95, max); empty for a counter.
    """

    name: str
    tags: Tags
    worker: str | None
    count: float
    per_second: float
    quantiles: Mapping[str, float]


def summarize(series: Mapping[tuple[str, Tags], Series]) -> list[Row]:
    """A row for each metric over all workers, and for a histogram one for each worker as well."""
    metrics: dict[tuple[str, Tags], dict[str, Series]] = {}
    for (name, tags), each in series.items():
        own_tags = tuple(tag for tag in tags if tag[0] != _WORKER)
        metrics.setdefault((name, own_tags), {})[dict(tags).get(_WORKER, "?")] = each
    rows = []
    for (name, tags), by_worker in metrics.items():
        rows.append(_row(name, tags, None, by_worker.values()))
        if rows[-1].quantiles:
            rows += [_row(name, tags, worker, [each]) for worker, each in sorted(by_worker.items())]
    return rows


def _row(name: str, tags: Tags, worker: str | None, series: Iterable[Series]) -> Row:
    series = list(series)
    seconds = max(1.0, time.monotonic() - min(each.since for each in series))
    if series[0].kind == "c":
        total = sum(each.total for each in series)
        return Row(name, tags, worker, total, total / seconds, {})
    count = sum(each.count for each in series)
    samples = sorted(value for each in series for value in each.samples)
    quantiles = {
        "p50": samples[len(samples) // 2],
        "p95": samples[len(samples) * 95 // 100],
        "max": samples[-1],
    }
    return Row(name, tags, worker, count, count / seconds, quantiles)
