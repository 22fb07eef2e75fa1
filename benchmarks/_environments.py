"""Interpreters, environments of the other libraries, and the processes that measure."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from sides import LIBRARIES

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
CACHE = FOLDER / "results"
WORKER_SECONDS = 180

ABOUT = """
import importlib.metadata, json, platform, sys
for name in sys.argv[1:]:
    importlib.metadata.version(name)
import diagnose
print(json.dumps({
    "version": platform.python_version(),
    "implementation": sys.implementation.name,
    "base": getattr(sys, "_base_executable", sys.executable),
}))
"""


class CannotMeasureError(Exception):
    """A process that was to measure something failed; the text says why."""


@dataclass
class Interpreter:
    """A Python to measure with, and what was found.

    Attributes:
        python: has what this library needs; the library itself is the one beside this file.
        about: version, implementation and the executable that makes environments.
        others: the executable for each other side that can be measured.
        why_not: why another one can't.
        results: outcomes of all rounds, by (measurement, side).
        failures: why there is none.
        before: another checkout of this library, if one is to be measured too.
    """

    python: Path
    about: dict
    others: dict[str, Path] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)
    results: dict[tuple[str, str], list[dict]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    before: Path | None = None

    @property
    def version(self):
        return self.about["version"]

    @property
    def sides(self):
        """Who can be measured."""
        return ["here", *self.others]

    @property
    def columns(self):
        """Who was to be measured."""
        return [name for name in LIBRARIES if name in {"here", *self.others, *self.why_not}]


def say(text):
    print(text, file=sys.stderr, flush=True)


def last_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def clean_environment():
    """Nothing of the caller's may decide which library a worker imports, or how it is set up."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "DD_"))
    }
    return kept | {"PYTHONWARNINGS": "ignore"}


def run(command, **options):
    """Run to the end, and give back what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise CannotMeasureError(last_line(done.stderr))
    return done.stdout


def our_project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def look_at(path, names, before=None):
    """The interpreter at `path`, with environments for the sides in `names`."""
    found = shutil.which(path)
    if found is None:
        raise CannotMeasureError(f"there is no Python at {path!r}; give --python another path")
    # Workers run in another folder. Not resolved: a link in an environment stands for it.
    found = os.path.abspath(found)  # noqa: PTH100
    needed = [re.match(r"[\w.-]+", each)[0] for each in our_project().get("dependencies", ())]
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    try:
        about = json.loads(run([found, "-c", ABOUT, *needed], env=environment, cwd=FOLDER))
    except CannotMeasureError as error:
        raise CannotMeasureError(
            f"{found} can't import this library whole: {error}; "
            f"install what it needs: {found} -m pip install -e {ROOT}"
        ) from None
    interpreter = Interpreter(Path(found), about, before=before)
    if before is not None:
        interpreter.others["before"] = interpreter.python
    for name in names:
        if name != "here":
            try:
                interpreter.others[name] = prepare(name, interpreter)
            except CannotMeasureError as error:
                interpreter.why_not[name] = str(error)
    return interpreter


def prepare(name, interpreter):
    """The executable that measures another side."""
    library = LIBRARIES[name]
    if tuple(map(int, interpreter.version.split(".")[:2])) < library.since:
        wanted = ".".join(map(str, library.since))
        raise CannotMeasureError(f"{library.title} exists from Python {wanted} on")
    return install(name, interpreter.about) if library.requirement else interpreter.python


def install(name, about):
    """Make an environment with a library in it, once for each version of Python."""
    library = LIBRARIES[name]
    folder = CACHE / f"{name}-{about['implementation']}-{about['version']}"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    marker = folder / "installed"
    if marker.exists() and marker.read_text() == library.requirement and python.exists():
        return python
    say(f"installing {library.requirement} into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if library.wheels:
        pip += ["--only-binary", library.wheels]
    try:
        run([about["base"], "-m", "venv", str(folder)], env=clean_environment())
        run([*pip, library.requirement], env=clean_environment())
    except CannotMeasureError as error:
        raise CannotMeasureError(f"{library.requirement} can't be installed: {error}") from None
    marker.write_text(library.requirement)
    return python


def run_worker(interpreter, job):
    """Measure one thing in a fresh process."""
    environment = clean_environment()
    python = interpreter.others.get(job["side"], interpreter.python)
    root = {"here": ROOT, "before": interpreter.before}.get(job["side"])
    if root is not None:
        environment["PYTHONPATH"] = str(root)
    command = [str(python), str(FOLDER / "_worker.py"), json.dumps(job)]
    try:
        printed = run(command, env=environment, cwd=FOLDER, timeout=WORKER_SECONDS)
    except subprocess.TimeoutExpired:
        raise CannotMeasureError(f"took more than {WORKER_SECONDS} s") from None
    outcome = json.loads(printed.splitlines()[-1])
    if root is not None and root not in Path(outcome["file"]).parents:
        raise CannotMeasureError(f"measured {outcome['file']} instead of {root}")
    return outcome
