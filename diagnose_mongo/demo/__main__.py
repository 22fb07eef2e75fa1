"""The command ``python -m diagnose_mongo.demo``."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import signal
import sys

from diagnose.errors import DiagnoseError
from diagnose_mongo.demo.signals import Interrupted, StopSignals, silence

__all__ = ["main"]

_NEEDED = ("rich", "pymongo", "apscheduler")
_SECONDS = 27.0

OK, FAILED, MISSING = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit code: 0, 1 (failed), 2 (something is not installed)."""
    options = _parse(arguments)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"The demo needs {' and '.join(missing)}: pip install 'diagnose-mongo[demo]'",
            file=sys.stderr,
        )
        return MISSING
    with StopSignals() as signals:
        # Imported after Ctrl-C is taken care of: it needs a while, and the extra.
        from diagnose_mongo.demo.stage import perform  # noqa: PLC0415 - as said

        try:
            perform(signals, seconds=options.seconds, live=options.live)
        except Interrupted as interrupted:
            is_usual = options.live and interrupted.signal == signal.SIGINT
            return OK if is_usual else 128 + interrupted.signal
        except DiagnoseError as exc:
            print(f"\nThe demo failed: {exc}", file=sys.stderr)
            return FAILED
        except OSError as exc:
            if exc.errno in {errno.EPIPE, errno.EIO}:  # nobody reads what is written here
                silence()
            print(f"\nThe demo failed: {exc}", file=sys.stderr)
            return FAILED
    return OK


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diagnose_mongo.demo",
        description="Three worker processes pick up specs of probes from a MongoDB.",
    )
    parser.add_argument("--live", action="store_true", help="go on until Ctrl-C")
    parser.add_argument(
        "--seconds", type=float, default=_SECONDS, help="how long it takes, about (%(default)g)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
