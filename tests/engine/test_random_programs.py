"""Programs that nobody thought of do under probes what they do without: see random_programs."""

from __future__ import annotations

import functools
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from random_programs import __main__ as command
from random_programs import programs, running, scripts, shrinking
from random_programs.parts import Node, one, text

# Five for each example of the property tests: 200, and 5,000 in `make proof`.
COUNT = 5 * int(os.environ.get("DIAGNOSE_TEST_EXAMPLES", "25"))
# The same ones in CI, others each time elsewhere; a failure names its seed.
FIRST = 0 if os.environ.get("CI") else random.randrange(10**6) * 1000
MOST_SHOWN = 3


def test_random_programs_do_the_same_bare_and_probed():
    failed = dict(command.differing(range(FIRST, FIRST + COUNT)))
    shown = []
    for seed, what in list(failed.items())[:MOST_SHOWN]:
        shown += [f"seed {seed}: {what}", small(seed), f"again: python {folder()} {seed} --shrink"]
    assert not failed, "\n\n".join([f"{len(failed)} of {COUNT} differ: {[*failed]}", *shown])


def folder():
    return Path(command.__file__).parent.relative_to(Path(__file__).parents[2])


def small(seed):
    """A smaller program that fails as that of the seed does."""
    run = [sys.executable, "-W", "ignore", str(Path(command.__file__)), str(seed), "--shrink"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


# --- so that this says something: what the programs are, and that differences are seen -----------


@functools.cache
def cases():
    return [running.case(seed) for seed in range(100)]


def test_programs_and_scripts_have_statements_and_operations_of_all_kinds():
    source = "\n".join(text(case.nodes) for case in cases())
    for part in (
        *("elif ", "else:", "while ", "for ", "async for", "break", "continue", "try:", "finally:"),
        *(
            "except* ",
            "with ",
            "async with",
            "match ",
            "case {",
            "case [",
            "case Point",
            " async for",
        ),
        *("lambda", "del ", "global ", "nonlocal ", ":= ", "^= ", "f'", ", *", "assert ", " from "),
        *("yield from", "= yield", "await ", "locals()", "    def inner", "class K", "@noted"),
        *("@staticmethod", "@classmethod", "super()", "/", "*args", "**kwargs", "async def"),
    ):
        assert part in source, part
    statements = {name[1:] for name in vars(programs.Writer) if re.match("_[a-z]", name)}
    assert statements == {*programs.SIMPLE, *programs.COMPOUND}
    done = Counter(each["do"] for case in cases() for each in case.operations)
    assert {"call", "make", "step", "drop", "attach", "put", "every_line", "stop_all"} < {*done}
    kinds = {each.get("kind") for case in cases() for each in case.operations}
    assert kinds - {None} == scripts.KINDS.keys()


def test_the_program_of_a_seed_is_always_the_same():
    for seed in range(20):
        first, second = running.case(seed), running.case(seed)
        assert text(first.nodes) == text(second.nodes)
        assert first.operations == second.operations


def test_a_bare_run_twice_is_no_difference_and_every_program_ends():
    for case in cases()[:30]:
        code = running.compiled(text(case.nodes))
        assert seen(case, code) == seen(case, code)


def seen(case, code):
    return running.Run(case, code, is_probed=False).seen


PROGRAM = [
    one("from random_programs.world import *"),
    Node([("def f(p):", [one("p ^= 1"), one("return p")])]),
]
CALL = {"do": "call", "path": "f", "args": [2], "kwargs": {}, "steps": []}


def probe(**changes):
    usual = {"do": "attach", "path": "f", "key": "x", "kind": "hist", "event": "call", "value": "{0}",
             "when": None, "limit": None, "most": 1, "tags": None, "names": [0, 0]}  # fmt: skip
    return usual | changes


@pytest.mark.parametrize(
    "value",
    ["mark('probe')", "print('probe')", "vars(sys.modules['random_program']).update(f=same)"],
)
def test_what_an_expression_does_to_the_program_is_a_difference(value):
    assert running.difference(running.Case(0, PROGRAM, [probe(), CALL, CALL])) is None
    case = running.Case(0, PROGRAM, [probe(value=value, kind="test"), CALL, CALL])
    assert "probed:" in running.difference(case)


def test_a_function_that_keeps_other_code_is_a_difference(monkeypatch):
    monkeypatch.setattr(running, "stop_all", lambda: None)
    case = running.Case(0, PROGRAM, [probe(), CALL])
    try:
        assert "has not its own code" in running.difference(case)
    finally:
        monkeypatch.undo()
        running.stop_all()


def test_a_failing_case_is_made_small():
    case = next(each for each in cases() if "print(" in text(each.nodes))

    def fails(candidate):
        if running.compiled(text(candidate.nodes)) is None:
            return False
        return "print(" in text(candidate.nodes)

    made = shrinking.shrunk(case, fails)
    assert len(text(made.nodes).splitlines()) < 12
    assert len(made.operations) == 1
    assert fails(made)


def test_a_process_that_dies_names_its_seed_and_the_others_are_run(monkeypatch):
    calls = []

    def child(seeds):
        calls.append(seeds)
        if len(calls) == 1:
            return ["[3, null]", '[4, "differs"]'], lambda: (-11, "Fatal")
        return ["[6, null]"], lambda: (0, "")

    monkeypatch.setattr(command, "child", child)
    found = dict(command.differing(range(3, 7)))
    assert found.keys() == {4, 5}
    assert "-11" in found[5]
    assert calls == ["3:7", "6:7"]


def test_a_case_that_ends_its_process_is_a_crash(tmp_path):
    dying = Node([("def f(p):", [one("import os"), one("os.kill(os.getpid(), 9)")])])
    program = [one("from random_programs.world import *"), dying]
    assert command.crashes(running.Case(0, program, [CALL]), tmp_path)
    assert not command.crashes(running.Case(0, PROGRAM, [CALL]), tmp_path)
