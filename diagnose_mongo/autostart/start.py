"""Starts a manager in a process that was started by ``diagnose run``, as the environment says."""

from __future__ import annotations

import os
import sys

from diagnose.instruments import LogInstrument
from diagnose.sinks.statsd import StatsdSink
from diagnose_mongo import documents, settings
from diagnose_mongo.bounds import HEARTBEAT_SECONDS
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

    Those of :mod:`diagnose_mongo.settings`, and the variables that labels are taken from. It gives way to a manager that the program itself
    starts. Lines of ``log`` go to stderr: the program's stdout may be what another reads.

    Returns:
        The manager; ``stop()`` ends it, as does the end of the program.

    Raises:
        StoreError: the URI is none.
        ValueError: another setting is none.
    """
    given = os.environ
    manager = MongoInstrumentManager(
        connect(
            given.get(settings.URI_VARIABLE) or settings.LOCAL_URI,
            given.get(settings.DATABASE_VARIABLE) or settings.DATABASE,
            given.get(settings.COLLECTION_VARIABLE) or documents.COLLECTION,
        ),
        period=_seconds(settings.PERIOD_VARIABLE, 10.0),
        heartbeat=_seconds(settings.HEARTBEAT_VARIABLE, HEARTBEAT_SECONDS),
        gives_way=True,
    )
    manager.instrument_classes["log"] = _LogToStderr
    if address := given.get(settings.STATSD_VARIABLE):
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(
                f"{settings.STATSD_VARIABLE} must look like 127.0.0.1:8125, not {address!r}"
            )
        manager.sinks.append(StatsdSink(host, int(port)))
    manager.start()
    return manager


def _seconds(variable: str, otherwise: float) -> float:
    text = os.environ.get(variable)
    try:
        return float(text) if text else otherwise
    except ValueError:
        raise ValueError(f"{variable} must be a number of seconds, not {text!r}") from None
