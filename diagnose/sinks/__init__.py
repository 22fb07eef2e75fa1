"""Where the values of metrics go.

A sink is an adapter: it translates batches of numbers for one place and holds no logic.
`diagnose.sinks.stream` writes lines to a text stream, `diagnose.sinks.logging` log
records, `diagnose.sinks.statsd` datagrams for a StatsD server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Sink"]


@runtime_checkable
class Sink(Protocol):
    """What receives the values of metric instruments.

    The methods are called from background threads, never from a probed call, with a batch
    of one name and one set of tags. They may be slow and may raise: the caller goes on with
    the other sinks, and that batch is lost for this one.
    """

    def histogram(self, name: str, values: Sequence[float], tags: Mapping[str, object]) -> None:
        """Take samples of a distribution, at least one, in the order they were measured."""

    def counter(self, name: str, total: float, tags: Mapping[str, object]) -> None:
        """Take what a counter has grown by since the last call."""

    def close(self) -> None:
        """Release what the sink opened itself. Closing twice is allowed."""
