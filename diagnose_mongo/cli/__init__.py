"""The operator's command, ``diagnose``: puts specs in, follows them, looks at the fleet.

It comes with the extra ``cli``. Exit codes: 0 for what went well, 1 for what failed, 2 for a
wrong use of the command, 124 when the time was not enough, 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_EXTRA = frozenset({"cyclopts", "rich", "pymongo", "bson"})
_FAILED, _INTERRUPTED, _BROKEN_PIPE = 1, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the name of the program; None: those of this process.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        # What a terminal can't show is no reason to fail.
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="replace")
    try:
        try:
            from diagnose_mongo.cli.verbs import run_command

            code = run_command(sys.argv[1:] if arguments is None else list(arguments))
        except ModuleNotFoundError as exc:
            missing = (exc.name or "").partition(".")[0]
            if missing not in _EXTRA:
                raise
            print(
                f"diagnose: {missing} is not installed: pip install 'diagnose-mongo[cli]'",
                file=sys.stderr,
            )
            code = _FAILED
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Python flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return code
