"""On a Python whose byte code nobody knows nothing is probed, and operators can work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FUTURE = "sys.version_info = (3, 99, 0, 'final', 0)"
ANOTHER = "sys.implementation.name = 'another'"


def run(program, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("python", "name"), [(FUTURE, "cpython 3.99"), (ANOTHER, "another 3.")], ids=["newer", "other"]
)
@pytest.mark.parametrize(
    "use",
    [
        "diagnose.attach_to('shutil.copy')",
        "diagnose.manager",
        "from diagnose.breakpoints import Breakpoint",
        "import diagnose_mongo; diagnose_mongo.start('mongodb://127.0.0.1:1')",
    ],
)
def test_it_is_refused_in_words_before_anything_is_woven(python, name, use):
    child = run(f"""
import asyncio, sys
{python}
changed = []
def note(event, arguments):
    if event == "object.__setattr__" and arguments[1] == "__code__":
        changed.append(arguments[0])
sys.addaudithook(note)
import diagnose
from diagnose.errors import ProbeError
try:
    {use}
except ProbeError as error:
    print(error.code, error)
assert not changed
""")
    assert child.stderr == ""
    assert child.stdout.startswith(
        "unsupported-python functions are probed by byte code of CPython"
    )
    assert f"this is {name}" in child.stdout


# What others wrote looks at the version, too.
COMMAND = "import sys, cyclopts, rich.console, pymongo; {}; from diagnose_mongo.cli import main; sys.exit(main())"


@pytest.mark.parametrize("python", [FUTURE, ANOTHER], ids=["newer", "other"])
def test_the_verbs_of_operators_work(python, mongo_server, database):
    def diagnose(*arguments, status=0):
        done = run(
            COMMAND.format(python),
            *arguments,
            DIAGNOSE_MONGODB_URI=mongo_server.uri,
            DIAGNOSE_DATABASE=database.name,
        )
        assert done.returncode == status, done.stderr
        return done.stdout

    diagnose("install")
    diagnose("add", "shutil.copy", "--value", "elapsed", "--id", "copies", "--no-wait")
    assert "copies" in diagnose("ls")
    # There is no process that it is meant for.
    assert "copies:" in diagnose("status", "copies", "--timeout", "0.1", status=124)
    diagnose("rm", "copies")
    assert "copies" not in diagnose("ls")
