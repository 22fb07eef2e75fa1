"""Any Python program with a manager in it and in its children, and no line of it changed.

``diagnose run -- COMMAND …`` puts the folder ``path`` in front of ``PYTHONPATH`` and becomes the
command. Each Python that starts from there on imports the ``sitecustomize`` of that folder,
which calls :func:`diagnose_mongo.autostart.start.start_from_environment` a moment later: see
``path/_diagnose_autostart.py``. Pythons that ignore
the environment (``-I``, ``-E``), or have no ``site`` (``-S``), stay without.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["VARIABLE", "run"]

VARIABLE = "DIAGNOSE_AUTOSTART"
"""Tells the command's Pythons where to find this library, if they have none of their own: the
version that it is for, and folders."""

_PATH = Path(__file__).parent / "path"
_LIBRARIES = ("diagnose_mongo", "diagnose", "pymongo", "bson", "apscheduler", "tzlocal", "hunter")
_NOT_FOUND, _NOT_RUN = 127, 126  # as shells have it
# Flags of one letter each, and perhaps an option whose value follows.
_ARGUMENT = re.compile(r"-([A-VYZabd-ln-z]*)(?:([WXcm])(.*))?", re.DOTALL)


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Become ``command``, with a manager in it and in its children.

    Does not return if that works: it is the same process, so signals and the exit code are the
    command's own.

    Args:
        command: the program, as a path or to be found in ``PATH``, and its arguments.
        environment: variables to set besides those of this process.

    Returns:
        126 or 127, after a line on stderr: there is no such program, or it can't be run.
    """
    variables = {**os.environ, **(environment or {})}
    hidden = variables.get("PYTHONPATH")
    variables["PYTHONPATH"] = os.pathsep.join([str(_PATH), *([hidden] if hidden else [])])
    variables[VARIABLE] = os.pathsep.join([_version(), *_folders()])
    if (flag := _ignoring_flag(command)) is not None:
        _say(f"{command[0]} {flag} does not look at PYTHONPATH: it runs without probes")
    sys.stdout.flush()
    # Python ignores these, and what is ignored stays so in a new program.
    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), variables)  # noqa: S606 - the user's own command
    except FileNotFoundError:
        _say(f"there is no program {command[0]!r}: give a path, or a name that is in PATH")
        return _NOT_FOUND
    except OSError as exc:
        _say(f"{command[0]!r} can't be run: {exc.strerror}")
        return _NOT_RUN


def _say(what: str) -> None:
    sys.stderr.write(f"diagnose run: {what}\n")
    sys.stderr.flush()


def _version() -> str:
    return f"{sys.implementation.cache_tag}{sys.abiflags}"


def _folders() -> list[str]:
    """Where this library and what it needs are installed here."""
    found: dict[str, None] = {}
    for name in _LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            place = Path(spec.origin).parent
            found[str(place.parent if spec.submodule_search_locations else place)] = None
    return list(found)


def _ignoring_flag(command: Sequence[str]) -> str | None:
    """The argument that makes a ``python …`` ignore what is set here."""
    if not Path(command[0]).name.startswith("python"):
        return None
    arguments = iter(command[1:])
    for argument in arguments:
        parts = _ARGUMENT.fullmatch(argument)
        if parts is None or argument == "-":
            return None
        flags, option, value = parts.groups()
        if set(flags) & set("IES"):
            return argument
        if option in {"c", "m"}:
            return None
        if option and not value:
            next(arguments, None)
    return None
