"""What tools/mutate.py changes, what it leaves alone, and what it says of a survivor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import mutate
from mutants import mutants


def changed(source):
    """Each mutant of a text as what it is, and the text with it."""
    source = source.encode()
    return {(each.what, each.apply(source).decode()) for each in mutants("m.py", source)}


@pytest.mark.parametrize(
    ("source", "what", "result"),
    [
        ("if ok:\n    f()", "condition negated", "if (not (ok)):\n    f()"),
        ("if not ok:\n    f()", "condition negated", "if (ok):\n    f()"),
        ("x = [a for a in b if a.c]", "condition negated", "x = [a for a in b if (not (a.c))]"),
        ("f(a < b)", "comparison changed", "f(a <= b)"),
        ("f((a) not in (b))", "comparison changed", "f((a) in (b))"),
        ("f(a is not\n  b)", "comparison changed", "f(a is\n  b)"),
        ("f(a and b or c)", "and is or", "f(a or b or c)"),
        ("f(a and b or c)", "or is and", "f(a and b and c)"),
        ("f(a + b)", "operator changed", "f(a - b)"),
        ("f(1)", "constant changed", "f(0)"),
        ("f(True)", "constant changed", "f(False)"),
        ("f('call')", "constant changed", "f('callx')"),
        ("f(a, b=c)", "argument dropped", "f(a)"),
        ("f(a, b=c)", "argument dropped", "f(b=c)"),
        ("def f():\n    return x", "returns None", "def f():\n    return None"),
        ("é(); del x", "statement deleted", "é(); pass"),
        ("t = 'not d·more\\nreturn\\n'", "handler: 'not ' is ''", "t = 'd·more\\nreturn\\n'"),
    ],
)
def test_each_kind_of_mistake_is_made_at_its_place(source, what, result):
    assert (what, result) in changed(source)


@pytest.mark.parametrize(
    "source",
    [
        '"""A module."""',
        "def f(x: int = None) -> 'a':\n    '''Do it.'''",
        "class C:\n    'A class.'\n    x: int",
        "__all__ = ['f']",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    x = 1",
        "log.warning('a', 1)",
        "import sys\nif sys.version_info < (3, 0):\n    x = 1",
        "import sys\nassert f if sys.version_info > (3, 0) else h(1)",
        "import opcode\nif opcode.opmap.get('NONE') is not None:\n    x = 1",
        "from diagnose.bytecode.flow import RESUMES_AT\nif RESUMES_AT == 0 and x:\n    y = 1",
        "import sys\ndef f():\n    if sys.version_info > (3, 0):\n        return None\n    g(1)\n",
        "def f():\n    return None",
    ],
)
def test_what_changes_nothing_is_left_alone(source):
    assert changed(source) == set()


def test_beside_what_is_of_the_version_the_rest_of_a_condition_is_changed():
    source = (
        b"import opcode\nA, B = opcode.opmap.get('NONE'), opcode.opmap['CALL']\n"
        b"if A is not None:\n    x = 1\nelif B and a < b:\n    f()\n"
    )
    found = mutants("m.py", source)
    assert {each.line for each in found} == {2, 5, 6}
    assert not any(b"NONEx" in each.apply(source) for each in found)
    assert any(b"elif B and a <= b" in each.apply(source) for each in found)


def test_each_mutant_of_the_library_is_python_and_another_text_and_its_line_is_told():
    path = mutate.ROOT / "diagnose/tokens.py"
    source = path.read_bytes()
    found = mutants("diagnose/tokens.py", source)
    assert len(found) > 50
    for each in found:
        compile(each.apply(source), "m.py", "exec")
        assert each.apply(source) != source
        lines = mutate.shown(each).splitlines()
        assert lines[0].startswith(f"diagnose/tokens.py:{each.line}: ")
        assert lines[1][2] == "-"


def test_the_same_seed_draws_the_same_mutants_and_all_tests_of_the_table_exist():
    parts = ["tokens", "budget"]
    assert mutate.sample(3, parts) == mutate.sample(3, parts) != mutate.sample(4, parts)
    for path in (
        "diagnose/tokens.py",
        "diagnose/handlers/writing.py",
        "diagnose_mongo/store/link.py",
    ):
        assert mutate.nearest(path)
    modules = [
        each.relative_to(mutate.ROOT).as_posix() for each in mutate.ROOT.glob("diag*/**/*.py")
    ]
    for part, names in mutate.NEAREST.items():
        assert any(module.startswith(part) for module in modules), part
        for name in names.split():
            assert (mutate.ROOT / mutate.file_of(name)).exists(), name


def test_a_mutant_is_killed_by_a_failing_test_a_crash_or_one_that_never_ends(tmp_path):
    tests = {
        "passes": "def test_it():\n    pass\n",
        "fails": "def test_it():\n    assert False\n",
        "crashes": "import os\ndef test_it():\n    os.kill(os.getpid(), 11)\n",
        "hangs": "import threading\ndef test_it():\n    threading.Event().wait()\n",
    }
    for name, text in tests.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    assert mutate.failure(tmp_path, "test_passes.py", 100) is None
    assert "FAILED test_fails.py::test_it" in mutate.failure(tmp_path, "test_fails.py", 100)
    assert mutate.failure(tmp_path, "test_crashes.py", 100) == "crash (SIGSEGV)"
    assert mutate.failure(tmp_path, "test_hangs.py", 5) == "never ends"


def test_a_mutant_is_in_the_copy_only_as_long_as_its_tests_run(tmp_path):
    (tmp_path / "m.py").write_text("def f():\n    return 1\n")
    (tmp_path / "test_m.py").write_text("import m\ndef test_it():\n    assert m.f() == 1\n")
    (tmp_path / "test_n.py").write_text("import m\ndef test_it():\n    assert m.f\n")
    seconds = {"test_m.py": 30.0, "test_n.py": 30.0}
    for mutant in mutants("m.py", (tmp_path / "m.py").read_bytes()):
        assert mutate.verdict(tmp_path, mutant, ["test_n.py"], seconds).killed_by is None
        assert mutate.verdict(tmp_path, mutant, [*seconds], seconds).killed_by == "test_m.py"
    assert (tmp_path / "m.py").read_text() == "def f():\n    return 1\n"
