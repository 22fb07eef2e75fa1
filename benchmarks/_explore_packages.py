"""The packages that explore.py knows, and the environments that their tests run in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = HERE / "results" / "explore"
PYTEST = "pytest==9.1.1"
INSTALL_SECONDS = 600


class CannotExploreError(Exception):
    """A package can't be tried; the text says why, and what to do."""


@dataclass(frozen=True)
class Suite:
    """A package and how its own tests are run.

    Attributes:
        version: of the sdist on PyPI; None: the newest.
        tests: files and folders in the sdist, by spaces; None: where tests usually are.
        requires: what the tests need besides pytest; None: what the sdist's metadata say.
        arguments: for pytest.
        variables: of the environment.
        leave_out: tests (the beginnings of their names) that can't be repeated or need a network.
        repeatable_hypothesis: whether property tests may be made to try the same in every run.
        is_quick: whether it is one of those that ``--quick`` runs.
    """

    name: str
    version: str | None = None
    tests: str | None = None
    requires: str | None = None
    arguments: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    repeatable_hypothesis: bool = True
    is_quick: bool = False


SUITES = (
    Suite(
        "anyio",
        "4.16.0",
        requires="blockbuster coverage[toml] hypothesis psutil pytest-mock pytest-timeout trio "
        "trustme truststore uvloop",
        # Sandboxes have no IPv6; what fails there leaks sockets, which other tests then find.
        arguments="-k 'not ipv6 and not uvloop and not dualstack and not localhost'",
    ),
    Suite("attrs", "26.1.0", requires="cloudpickle hypothesis pympler"),
    Suite("boltons", "26.2.0", requires=""),
    Suite(
        "cattrs",
        "26.2.1",
        requires="hypothesis pytest-benchmark immutables",
        arguments="--benchmark-disable",
    ),
    Suite("click", "8.5.1", requires=""),
    Suite("docutils", "0.23", requires="pygments"),
    Suite("jinja2", "3.1.6", requires="trio"),
    Suite(
        "jsonschema",
        "4.26.0",
        tests="jsonschema/tests",
        requires="virtue jsonpath-ng",
        variables={"JSON_SCHEMA_TEST_SUITE": "json"},
    ),
    Suite("markdown", "3.11.3", requires="pyyaml"),
    Suite("marshmallow", "4.4.0", requires="simplejson", is_quick=True),
    Suite(
        "mistune",
        "3.4.0",
        requires="",
        # Compare times, which a busy machine makes fail.
        leave_out=(
            "tests/test_inline_limits.py",
            *(f"tests/test_security_{each}" for each in ("edge", "form", "inline", "math", "ref")),
        ),
    ),
    Suite(
        "more-itertools",
        "11.2.1",
        requires="",
        # Measures memory; here the values of a test are in a buffer until it is over.
        leave_out=("tests/test_more.py::SeekableTest::test_repeated_zero_cache_peek",),
    ),
    Suite(
        "networkx",
        "3.6.1",
        tests="networkx/classes networkx/algorithms/tests networkx/utils",
        requires="",
    ),
    Suite("packaging", "26.4", requires="hypothesis pretend tomli_w"),
    Suite(
        "pluggy",
        "1.7.0",
        tests="testing",
        requires="pytest-benchmark",
        arguments="--benchmark-disable",
    ),
    Suite("pyparsing", "3.3.3", requires="railroad-diagrams jinja2"),
    Suite(
        "sqlglot",
        "30.30.0",
        requires="python-dateutil pytz",
        # Those compare with duckdb, or need its own compiled form.
        arguments="--ignore=tests/test_executor.py --ignore=tests/test_optimizer.py "
        "--ignore=tests/test_sqlglotc.py",
    ),
    Suite(
        "starlette",
        "1.10.0",
        requires="blockbuster httpx httpx2[zstd] itsdangerous jinja2 python-multipart pyyaml trio "
        "opentelemetry-sdk pytest-codspeed",
    ),
    Suite("tomlkit", "0.15.2", requires="pyyaml", is_quick=True),
    Suite("toolz", "1.2.0", tests="toolz tlz", requires="", is_quick=True),
    Suite("trio", "0.35.0", tests="src/trio", requires="async_generator pyOpenSSL trustme jedi"),
    Suite(
        "werkzeug",
        "3.1.9",
        requires="cffi cryptography ephemeral-port-reserve pytest-timeout watchdog",
        # Servers in processes of their own, which wait for changes of files for ever.
        leave_out=("tests/test_serving.py",),
    ),
    Suite("wtforms", "3.3.2", requires="babel email_validator"),
)

# What docs/limits.md says: package, beginning of the test's name, why it differs.
_OTHER_CODE = "looks frames' code objects up in a set that it made before the probe came"
LIMITS: tuple[tuple[str, str, str], ...] = (
    ("jinja2", "tests/test_debug.py::TestDebug::test_runtime_error", _OTHER_CODE),
    ("trio", "src/trio/_tests/test_threads.py::test_do_in_trio_thread", _OTHER_CODE),
    ("trio", "src/trio/_tests/test_threads.py::test_run_in_trio_thread_ki", _OTHER_CODE),
    (
        "attrs",
        "tests/test_3rd_party.py::TestCloudpickleCompat::test_repr",
        "pickles probed functions by value",
    ),
)


def suite_of(wanted):
    """The suite of ``PACKAGE`` or ``PACKAGE==VERSION``, from the table or a guessed one."""
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)(?:==([\w.!+]+))?", wanted)
    if match is None:
        raise CannotExploreError(f"{wanted!r} is no package; write PACKAGE or PACKAGE==VERSION")
    name, version = normalized(match[1]), match[2]
    for suite in SUITES:
        if suite.name == name and version in {None, suite.version}:
            return suite
    return Suite(name, version)


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def limit_of(suite, test):
    """Why a test may differ, or None."""
    for package, begin, reason in LIMITS:
        if package == suite.name and test.startswith(begin):
            return reason
    return None


# --- sdists ---------------------------------------------------------------------------------


def find_sdist(suite, python):
    """The sdist of a suite, from PyPI the first time."""
    folder = CACHE / "sdists"
    folder.mkdir(parents=True, exist_ok=True)
    if suite.version is not None:
        for file in folder.iterdir():
            if split_name(file) == (suite.name, suite.version):
                return file
    wanted = suite.name if suite.version is None else f"{suite.name}=={suite.version}"
    target = folder / f".{suite.name}-{os.getpid()}"
    shutil.rmtree(target, ignore_errors=True)
    try:
        # Its requirements may come as wheels, those to build it too.
        pip(
            [python, "-m", "pip"],
            ["download", "--no-deps", "--no-binary", suite.name, "--dest", str(target), wanted],
            f"PyPI has no sdist of {wanted} that pip can use with {python}",
        )
        found = [file for file in target.iterdir() if split_name(file)[0] == suite.name]
        if not found:
            raise CannotExploreError(f"pip brought no sdist of {wanted}")
        return found[0].rename(folder / found[0].name)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def split_name(file):
    """Package and version, from the name of an sdist's file."""
    match = re.fullmatch(r"(.+)-([^-]+?)(\.tar\.gz|\.zip)", file.name)
    return (normalized(match[1]), match[2]) if match else ("", "")


def unpack(sdist, target):
    """Unpack an sdist into ``target``, which is emptied before."""
    shutil.rmtree(target, ignore_errors=True)
    waiting = target.with_name(target.name + ".part")
    shutil.rmtree(waiting, ignore_errors=True)
    if sdist.suffix == ".zip":
        with zipfile.ZipFile(sdist) as archive:
            archive.extractall(waiting)
    else:
        with tarfile.open(sdist) as archive:
            archive.extractall(waiting, filter="data")
    (only,) = waiting.iterdir()
    only.rename(target)
    waiting.rmdir()


def find_tests(suite, tree):
    """Files and folders of tests, as pytest wants them."""
    if suite.tests is not None:
        return suite.tests.split()
    import_name = suite.name.replace("-", "_")
    for folder in ("tests", "test", "testing", f"{import_name}/tests", f"src/{import_name}/tests"):
        there = tree / folder
        if any(there.rglob("test_*.py")) or any(there.rglob("*_test.py")):
            return (folder,)
    found = sorted(path.name for path in tree.glob("test*.py"))
    if not found:
        raise CannotExploreError("its sdist has no tests")
    return tuple(found)


def guess_requirements(tree):
    """What the tests need by the sdist's own account: groups and extras for tests."""
    file = tree / "pyproject.toml"
    if not file.is_file():
        return ()
    with file.open("rb") as opened:
        content = tomllib.load(opened)
    project = content.get("project", {})
    tables = (content.get("dependency-groups", {}), project.get("optional-dependencies", {}))
    for word in ("tests", "test", "testing", "dev"):
        for table in tables:
            if word in table:
                named = [one for one in table[word] if isinstance(one, str)]
                return tuple(one for one in named if not re.match(r"pytest\b(?!-)", one))
    return ()


# --- environments -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Environment:
    """Where a suite runs: a Python with the package, what its tests need, and this library."""

    folder: Path
    python: Path
    sdist: Path
    version: str
    modules: tuple[str, ...]


def prepare(suite, interpreter):
    """Make the environment of a suite, or find the one that was made before."""
    sdist = find_sdist(suite, interpreter.path)
    version = split_name(sdist)[1]
    folder = CACHE / interpreter.version / f"{suite.name}-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    if suite.requires is not None:
        requires = suite.requires.split()
    else:
        unpack(sdist, folder / "tree")
        requires = guess_requirements(folder / "tree")
        shutil.rmtree(folder / "tree")
    wanted = [PYTEST, *own_requirements(), *requires]
    ready = folder / "ready.json"
    place = folder / "venv"
    python = place / "bin" / "python"
    made = json.loads(ready.read_text()) if ready.is_file() else {}
    if made.get("wanted") != wanted or not python.exists():
        ready.unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        run_quietly(
            [interpreter.path, "-m", "venv", "--without-pip", place],
            f"{interpreter.path} can't make an environment",
        )
        pip(
            [interpreter.path, "-m", "pip", "--python", python],
            ["install", sdist, *wanted],
            f"{suite.name} {version} can't be installed on {interpreter.version}",
        )
        made = {"wanted": wanted, "modules": ask_modules(suite, python)}
        ready.write_text(json.dumps(made))
    (site,) = place.glob("lib/python*/site-packages")
    link(site / "diagnose", ROOT / "diagnose")
    link(site / "_explore_plugin.py", HERE / "_explore_plugin.py")
    return Environment(folder, python, sdist, version, tuple(made["modules"]))


def own_requirements():
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["dependencies"]


def link(place, target):
    # A link, not `install -e`: of this tree only the library is to be seen, as it is now.
    place.unlink(missing_ok=True)
    place.symlink_to(target)


MODULES = """
import importlib.metadata, json, sys
found = set()
for file in importlib.metadata.distribution(sys.argv[1]).files or ():
    first = file.parts[0]
    if len(file.parts) == 1 and file.suffix in (".py", ".so"):
        found.add(first.partition(".")[0])
    elif first.isidentifier() and file.suffix == ".py":
        found.add(first)
print(json.dumps(sorted(found - {"test", "tests", "testing", "docs", "examples"})))
"""


def ask_modules(suite, python):
    """The top-level modules that the package has installed."""
    text = run_quietly([python, "-c", MODULES, suite.name], "its files can't be listed")
    return json.loads(text)


def pip(command, arguments, problem):
    switches = ["--quiet", "--disable-pip-version-check", "--no-input"]
    run_quietly([*command, *switches, *arguments], problem)


def run_quietly(command, problem):
    """Run a command to its end and return what it prints."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotExploreError(f"{problem}: not done in {INSTALL_SECONDS} s") from None
    if done.returncode:
        raise CannotExploreError(f"{problem}: {telling_line(done.stderr or done.stdout)}")
    return done.stdout


def telling_line(text):
    """The line of a program's output that says most about why it failed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(E |ERROR|error|[\w.]*Error\b)", line)]
    return (errors or lines or ["no output"])[-1][:300]
