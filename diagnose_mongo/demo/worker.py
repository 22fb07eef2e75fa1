"""One worker process of the demo: the service of :mod:`.workload`, and a manager beside it.

The lines with ``manager`` in :func:`main` are all that a program needs to be probed. No spec is
mentioned here: what is probed is decided in MongoDB while this runs.

For the demo, the worker also answers for the code of its functions: for each byte on its
standard input, and at its end, it writes a line of JSON that says which of them don't have
their original code. The lines of ``log`` instruments come on its standard output too. It ends
in good order on SIGTERM, and when its standard input ends: so it can't outlive the demo.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from types import FunctionType
from typing import TYPE_CHECKING

import diagnose_mongo
from diagnose.sinks.statsd import StatsdSink
from diagnose_mongo.demo import workload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

__all__ = ["main"]


def main(name: str, database: str, statsd_port: str) -> int:
    """Work until told to stop; returns how many functions lack their original code then."""
    originals = {function: function.__code__ for function in service_functions()}
    terminated = noted_sigterm()

    indexer = workload.Indexer.of_standard_library()
    indexer.start()
    # Where MongoDB is, is in the environment: DIAGNOSE_MONGODB_URI.
    sink = StatsdSink(port=int(statsd_port), tags={"worker": name})
    manager = diagnose_mongo.start(database=database, period=1.0, sinks=[sink])

    answer(originals, files=len(indexer.files))
    stdin = sys.stdin.fileno()
    while terminated not in select.select([stdin, terminated], [], [])[0]:
        questions = os.read(stdin, 100)
        if not questions:
            break  # the demo is gone
        for _ in questions:
            answer(originals)

    manager.stop()
    indexer.stop()
    return answer(originals)


def noted_sigterm() -> int:
    """A file descriptor that is ready to be read as soon as SIGTERM has come.

    The system may give a signal to any thread, and then the main thread goes on waiting for
    its input: an exception in the handler would come when that ends.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return reader


def service_functions() -> Iterator[FunctionType]:
    """All Python functions of the service, methods included."""
    for value in vars(workload).values():
        if getattr(value, "__module__", None) == workload.__name__:
            members = vars(value).values() if isinstance(value, type) else [value]
            for member in members:
                function = getattr(member, "__func__", member)  # of a static or class method
                if isinstance(function, FunctionType):
                    yield function


def answer(originals: dict[FunctionType, CodeType], **more: object) -> int:
    """Say which functions don't have their original code; returns how many that are."""
    replaced = [f.__qualname__ for f, code in originals.items() if f.__code__ is not code]
    said = {"pid": os.getpid(), "functions": len(originals), "replaced": replaced, **more}
    # In one piece, as threads write log lines.
    sys.stdout.write(f"{json.dumps(said)}\n")
    sys.stdout.flush()
    return len(replaced)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
