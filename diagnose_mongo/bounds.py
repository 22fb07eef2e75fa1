"""What workers and the janitor have to agree on: when a process is dead, and which have entries."""

from __future__ import annotations

from diagnose.specs import PERCENT_MODULUS, process_share

__all__ = [
    "BOUNDED_ABOVE",
    "FAILURES",
    "HEARTBEAT_SECONDS",
    "SAMPLE",
    "TTL_HEARTBEATS",
    "is_sampled",
]

HEARTBEAT_SECONDS = 30.0

TTL_HEARTBEATS = 3
"""A process that misses this many heartbeats counts as dead."""

BOUNDED_ABOVE = 10_000
"""In a fleet of more processes ``applied`` holds failures and a sample only."""

FAILURES = 200
"""So many of the failures, then."""

SAMPLE = 100
"""About so many of all processes, then."""


def is_sampled(process_id: str, processes: int) -> bool:
    """Whether a process of so many is one of those that have entries in any case."""
    return process_share(process_id) * processes < SAMPLE * PERCENT_MODULUS
