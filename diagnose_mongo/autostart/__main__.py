"""``python -m diagnose_mongo.autostart -- COMMAND …``: run a program with a manager in it."""

from __future__ import annotations

import sys

from diagnose_mongo.autostart import run


def main(arguments: list[str]) -> int:
    """Run the command that the arguments are, after ``--`` if there is one."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command:
        sys.stderr.write("usage: python -m diagnose_mongo.autostart -- COMMAND …\n")
        return 2
    return run(command)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
