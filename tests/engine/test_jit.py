from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = '''
import _opcode
import sys

sys.path.insert(0, "tests")
from stage import Stage, attached
from diagnose.instruments import ProbeTestInstrument

TEXT = """
def inner(x, y=2):
    total = 0
    for i in range(x % 7):
        total += i * y
    if x % 13 == 0:
        try:
            raise ValueError(x)
        except ValueError as error:
            total += len(error.args)
    return total

def generator(n):
    for i in range(n):
        yield inner(i)

def outer(n):
    total = 0
    for i in range(n):
        total += inner(i)
    return total + sum(generator(n))
"""


def executors(code):
    found = 0
    for unit in range(0, len(code.co_code), 2):
        try:
            found += _opcode.get_executor(code, unit) is not None
        except ValueError:  # at other instructions
            pass
    return found


assert sys._jit.is_enabled()
with Stage() as stage:
    module = stage.script(TEXT)
    bare = [module.outer(20000), module.outer(300)]
    compiled = 0
    for name in ("inner", "generator", "outer"):
        for event, value in [
            ("call", "1"),
            ("return", "elapsed"),
            ("return", "hotspots"),
            ("end", "1"),
            ("line:+2", "1"),
        ]:
            made = ProbeTestInstrument("n", value, event)
            with attached(f"{module.__name__}.{name}", made):
                assert module.outer(20000) == bare[0], (name, event)
                compiled += executors(getattr(module, name).__code__)
            assert made.status.error is None, made.status
            assert len(made.results) == made.status.hits
            assert module.outer(300) == bare[1]
    print(compiled)
'''


@pytest.mark.skipif(
    not (hasattr(sys, "_jit") and sys._jit.is_available()), reason="this CPython has no JIT"
)
def test_what_the_jit_compiled_goes_on_as_it_was_when_probes_come_and_go():
    environment = {**os.environ, "PYTHON_JIT": "1"}
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) > 0, "it compiled nothing that was probed: this shows nothing"
