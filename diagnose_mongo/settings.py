"""Where a fleet is: the environment variables that say so, and what holds without them."""

from __future__ import annotations

__all__ = [
    "COLLECTION_VARIABLE",
    "DATABASE",
    "DATABASE_VARIABLE",
    "HEARTBEAT_VARIABLE",
    "LOCAL_URI",
    "PERIOD_VARIABLE",
    "STATSD_VARIABLE",
    "URI_VARIABLE",
]

URI_VARIABLE = "DIAGNOSE_MONGODB_URI"
LOCAL_URI = "mongodb://127.0.0.1:27017"

DATABASE_VARIABLE = "DIAGNOSE_DATABASE"
DATABASE = "diagnose"

COLLECTION_VARIABLE = "DIAGNOSE_COLLECTION"

PERIOD_VARIABLE = "DIAGNOSE_PERIOD"
"""Seconds between two polls."""

HEARTBEAT_VARIABLE = "DIAGNOSE_HEARTBEAT"
"""Seconds between two heartbeats."""

STATSD_VARIABLE = "DIAGNOSE_STATSD"
"""``host:port``: where metrics go."""
