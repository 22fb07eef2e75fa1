"""What pyproject.toml says of the distribution, and what the checks before a commit run."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]

# They take long to import.
HEAVY = (
    *("asyncio", "email", "http", "multiprocessing", "sqlite3", "ssl", "urllib.request"),
    *(
        "pymongo",
        "bson",
        "apscheduler",
    ),
)


def test_the_source_distribution_names_only_what_there_is():
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [each for each in included if not (ROOT / each.lstrip("/")).exists()] == []


def test_the_library_alone_needs_nothing_and_all_brings_every_extra_for_users():
    assert PROJECT["project"]["dependencies"] == []
    assert set(brought("all")) == {*EXTRAS} - {"all", "test", "docs", "lint"}
    assert "hunter" in {*brought("demo")} & {*brought("test")}


def brought(extra):
    """The extras that one brings, those of these too."""
    for requirement in EXTRAS[extra]:
        if found := re.fullmatch(r"diagnose-mongo\[(.*)\]", requirement):
            for each in found[1].split(","):
                yield each
                yield from brought(each)


def test_the_checks_before_a_commit_are_those_of_make_lint():
    lint = re.search(r"^lint: .*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    hooks = re.findall(r"entry: (.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == [each.strip().replace("$(BIN)", ".venv/bin") for each in lint.splitlines()]


@pytest.mark.parametrize(
    "program",
    [
        "import diagnose",
        "import diagnose; diagnose.attach_to",
        "from diagnose_mongo.cli import main; main(['--help'])",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(program):
    heavy = f"{{each for each in {HEAVY} if each in sys.modules}}"
    child = subprocess.run(
        [sys.executable, "-c", f"import sys; before = {heavy}; {program}; print({heavy} - before)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.splitlines()[-1] == "set()"


def test_the_package_itself_imports_no_module_of_its_own():
    child = subprocess.run(
        [sys.executable, "-c", "import sys, diagnose; print([*sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = eval(child.stdout)
    assert [each for each in loaded if each.startswith("diagnose")] == ["diagnose"]
