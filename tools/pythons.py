"""Finds the second Python that `make test` runs the tests on, and prints its path.

    python tools/pythons.py

The inside of a function is watched in one way on 3.11 and in another from 3.12 on, and both
should be tested. So beside the Python that runs this: from 3.12 on it is 3.11, if the machine
has one that works; else the newest other one. Nothing is printed when there is none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

SUPPORTED = {(3, 11), (3, 12), (3, 13), (3, 14), (3, 15)}
NAME = re.compile(r"python3(\.\d+)?")

# Where interpreters live that are not on PATH, or only as shims that don't run.
ELSEWHERE = [
    (Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv"), "versions/*/bin"),
    (Path.home(), ".local/share/uv/python/*/bin"),
    (Path.home(), ".asdf/installs/python/*/bin"),
    (Path.home(), ".local/bin"),
    (Path("/usr"), "bin"),
    (Path("/usr/local"), "bin"),
    (Path("/opt"), "homebrew/bin"),
    (Path("/opt"), "python/*/bin"),
    (Path("/Library"), "Frameworks/Python.framework/Versions/*/bin"),
]

# That it starts is not enough: it has to be able to make an environment. Pre-releases and
# builds without the GIL lack wheels of what the tests need. It names itself, since a shim runs
# different interpreters in different folders.
QUESTION = """
import ensurepip, sys, sysconfig, venv
usable = sys.implementation.name == "cpython" and sys.version_info.releaselevel == "final"
if usable and not sysconfig.get_config_var("Py_GIL_DISABLED"):
    print(*sys.version_info[:3], sys.executable)
"""


def candidates() -> list[Path]:
    """Every file that looks like a Python 3, once."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    for root, pattern in ELSEWHERE:
        folders += sorted(root.glob(pattern))
    found = {}
    for folder in folders:
        # A link's name may run another thing than the file it leads to (shims): both count,
        # but a file that has several names in one folder is asked once.
        for path in sorted(folder.glob("python3*"), reverse=True):
            if NAME.fullmatch(path.name) and os.access(path, os.X_OK):
                found.setdefault((folder, path.resolve()), path)
    return list(found.values())


def ask(path: Path) -> tuple[tuple[int, ...], str] | None:
    """Its version and its own idea of where it is, or None when it can't be used."""
    try:
        answer = subprocess.run(
            [path, "-I", "-c", QUESTION],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout.split(maxsplit=3)
    except (OSError, subprocess.SubprocessError):
        return None
    if len(answer) != 4:
        return None
    return tuple(int(part) for part in answer[:3]), answer[3].strip()


def choose(mine: tuple[int, ...], others: dict[tuple[int, ...], str]) -> str | None:
    """The path to use beside version ``mine``, of those in ``others``."""
    usable = {v: p for v, p in others.items() if v[:2] in SUPPORTED and v[:2] != mine[:2]}
    if mine[:2] != (3, 11):
        usable = {v: p for v, p in usable.items() if v[:2] == (3, 11)} or usable
    return usable[max(usable)] if usable else None


def main() -> None:
    """Print the path of the second Python."""
    found: dict[tuple[int, ...], str] = {}
    for path in candidates():
        answer = ask(path)
        if answer is not None:
            found.setdefault(*answer)
    chosen = choose(sys.version_info[:3], found)
    if chosen is not None:
        print(chosen)


if __name__ == "__main__":
    main()
