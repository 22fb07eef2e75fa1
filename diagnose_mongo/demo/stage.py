"""Sets the stage (a MongoDB, a StatsD server, three workers) and clears it, whatever happens."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pymongo
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from diagnose_mongo.demo import DemoError
from diagnose_mongo.demo.display import PlainDisplay
from diagnose_mongo.demo.fleet import Fleet
from diagnose_mongo.demo.metrics import MetricsServer
from diagnose_mongo.demo.signals import Interrupted
from diagnose_mongo.demo.story import Story
from diagnose_mongo.demo.terminal import TerminalDisplay
from diagnose_mongo.server import URI_VARIABLE, LocalServer, server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo.collection import Collection

    from diagnose_mongo.demo.display import Display
    from diagnose_mongo.demo.signals import StopSignals

__all__ = ["perform"]

_WORKERS = ["w1", "w2", "w3"]
_SERVER_SELECTION_MS = 5_000
_FAREWELL_SECONDS = 2.0
_LONGEST_REASON = 300


def perform(signals: StopSignals, *, seconds: float, live: bool) -> None:
    """Run the demo; when this returns or raises, nothing of it is left.

    Args:
        signals: what can end it early.
        seconds: how long it takes, about, if nothing is slow.
        live: go on until a signal comes.

    Raises:
        DiagnoseError: something did not happen, or not in time, or MongoDB failed.
        Interrupted: a signal came.
    """
    began, interrupted = time.monotonic(), None
    with _display() as display:
        display.heading("1. Start a MongoDB and three worker processes")
        with server() as mongodb:
            display.say(f"MongoDB: {mongodb.origin}")
            pid = mongodb.pid if isinstance(mongodb, LocalServer) else None
            # Of an existing server: the URI may hold a password, and the database is our own.
            shown_uri = mongodb.uri if pid else f"<{URI_VARIABLE}>"
            database = "demo" if pid else f"diagnose_demo_{os.getpid()}"
            display.code(f'specs = MongoClient("{shown_uri}")["{database}"]["specs"]')
            signals.pause(0)
            with (
                _specs(mongodb.uri, database) as collection,
                MetricsServer() as metrics,
                Fleet(_WORKERS, mongodb.uri, database, metrics.port) as fleet,
            ):
                story = Story(display, signals, collection, fleet, metrics, seconds)
                try:
                    if live:
                        story.tell_live(shown_uri)
                    story.tell()
                except Interrupted as exc:
                    # The workers are ended and looked at all the same.
                    interrupted = exc
                    display.heading(f"{exc.signal.name}: end the workers and MongoDB")
                else:
                    display.heading("8. End the workers and MongoDB")
                story.end_workers()
        if pid is not None:
            _check_gone(pid)
            display.say(f"MongoDB (pid {pid}) has ended, and its data are removed.")
        if interrupted is not None:
            raise interrupted
        display.heading(
            f"Done in {time.monotonic() - began:.0f} s. With `make demo-live` it stays, for specs "
            "of your own."
        )


def _display() -> Display:
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return TerminalDisplay()
    return PlainDisplay()


@contextlib.contextmanager
def _specs(uri: str, database: str) -> Iterator[Collection[dict[str, Any]]]:
    """The collection of specs; the database goes away in the end."""
    client: MongoClient[dict[str, Any]] = MongoClient(
        uri, serverSelectionTimeoutMS=_SERVER_SELECTION_MS
    )
    with client:
        try:
            yield client[database]["specs"]
        except PyMongoError as exc:
            # The driver goes on to describe its settings and all servers.
            reason = textwrap.shorten(str(exc).partition(", Timeout:")[0], _LONGEST_REASON)
            raise DemoError(f"MongoDB failed: {reason}; see that it runs, and try again") from exc
        finally:
            # It may be the server that failed; then this is not the error to talk about.
            with contextlib.suppress(PyMongoError), pymongo.timeout(_FAREWELL_SECONDS):
                client.drop_database(database)


def _check_gone(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        raise DemoError(f"MongoDB (pid {pid}) is still there; end it with: kill {pid}")
