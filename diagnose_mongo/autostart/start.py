"""Starts a manager in a process that was started by ``diagnose run``, as the environment says."""

from __future__ import annotations

import os
import sys

from diagnose.instruments import LogInstrument
from diagnose.sinks.statsd import StatsdSink
from diagnose_mongo import documents
from diagnose_mongo.bounds import HEARTBEAT_SECONDS
from diagnose_mongo.server import LOCAL_URI, URI_VARIABLE
from diagnose_mongo.store import connect
from diagnose_mongo.worker.manager import MongoInstrumentManager

__all__ = ["start_from_environment"]


class _Stderr:
    def write(self, text: str) -> None:
        if sys.stderr is not None:
            sys.stderr.write(text)


class _LogToStderr(LogInstrument):
    out = _Stderr()


def start_from_environment() -> MongoInstrumentManager:
    """Start a manager in this process, as the environment says.

    ``DIAGNOSE_MONGODB_URI``, ``DIAGNOSE_DATABASE``, ``DIAGNOSE_COLLECTION``,
    ``DIAGNOSE_PERIOD`` and ``DIAGNOSE_HEARTBEAT`` (seconds), ``DIAGNOSE_STATSD`` (``host:port``: where metrics go) and
    the variables that labels are taken from. It gives way to a manager that the program itself
    starts. Lines of ``log`` go to stderr: the program's stdout may be what another reads.

    Returns:
        The manager; ``stop()`` ends it, as does the end of the program.

    Raises:
        StoreError: the URI is none.
        ValueError: another setting is none.
    """
    settings = os.environ
    manager = MongoInstrumentManager(
        connect(
            settings.get(URI_VARIABLE) or LOCAL_URI,
            settings.get("DIAGNOSE_DATABASE") or "diagnose",
            settings.get("DIAGNOSE_COLLECTION") or documents.COLLECTION,
        ),
        period=_seconds("DIAGNOSE_PERIOD", 10.0),
        heartbeat=_seconds("DIAGNOSE_HEARTBEAT", HEARTBEAT_SECONDS),
        gives_way=True,
    )
    manager.instrument_classes["log"] = _LogToStderr
    if address := settings.get("DIAGNOSE_STATSD"):
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"DIAGNOSE_STATSD must look like 127.0.0.1:8125, not {address!r}")
        manager.sinks.append(StatsdSink(host, int(port)))
    manager.start()
    return manager


def _seconds(variable: str, otherwise: float) -> float:
    text = os.environ.get(variable)
    try:
        return float(text) if text else otherwise
    except ValueError:
        raise ValueError(f"{variable} must be a number of seconds, not {text!r}") from None
