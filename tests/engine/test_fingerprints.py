from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import diagnose
from diagnose import errors, probes
from diagnose.instruments import ProbeTestInstrument
from diagnose.managers import InstrumentManager
from diagnose.targets import Target, TargetKind, fingerprint, resolve
from diagnose.targets.fingerprints import FORM, _whole

ROOT = Path(__file__).resolve().parents[2]
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"

SOURCE = """
def f(a, b=1, *args, c, **kwargs):
    '''A docstring.'''
    def inner(x):
        return a + x
    try:
        found = {"one", "two", "three"} & set(args)
        return [inner(y) for y in found if y in {"a", "b", "c"}], -0.0, 1e400, 2j, b"x", None, ...
    finally:
        print(f"{a!r} done")
"""


def function(source=SOURCE, filename="first.py", name="f"):
    namespace = {}
    exec(compile(textwrap.dedent(source), filename, "exec", dont_inherit=True), namespace)
    return namespace[name]


def of(made):
    target = Target("x.f", None, "f", TargetKind.FUNCTION, made, made)
    return fingerprint(target)


def hash_of(source, **options):
    return of(function(source, **options)).split("-")[1]


def test_it_has_the_version_a_hash_and_the_first_line():
    assert re.fullmatch(rf"{re.escape(VERSION)}-[0-9a-f]{{12}}-2", of(function()))
    assert FORM.fullmatch(of(function()))


def test_it_is_the_same_whatever_the_file_and_the_line():
    assert of(function()) == of(function(filename="/elsewhere/second.py"))
    moved = of(function("\n\n# a comment before it" + SOURCE))
    assert moved.rpartition("-")[0] == of(function()).rpartition("-")[0]
    assert moved.endswith("-4")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a + x", "a - x"),
        ("inner(y) for", "inner(1) for"),
        ("{a!r} done", "{a!r} dome"),
        ('{"a", "b", "c"}', '{"a", "b", "d"}'),
        ("-0.0", "0.0"),
        ("2j", "3j"),
        ('b"x"', '"x"'),
        ("None, ...", "..., None"),
        ("def f(a, b", "def f(a, /, b"),
        ("*args, c", "*args, d"),
        ("print(", "pprint("),
        ("A docstring", "Another"),
        ("def f(", "async def f("),
        ("    try:", "\n    try:"),
    ],
)
def test_it_is_another_for_another_body(old, new):
    assert SOURCE.count(old) == 1
    assert hash_of(SOURCE.replace(old, new)) != hash_of(SOURCE)


def test_a_constant_is_told_from_an_equal_one_of_another_type():
    bodies = ["1", "1.0", "True", "(1,)", "((1,),)", "'1'", "b'1'", "(1, 1)", "0x7fffffffffff"]
    hashes = {hash_of(f"def f(x):\n    return x in ({body}, 'y', None)\n") for body in bodies}
    assert len(hashes) == len(bodies)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


def exactly(value):
    inside = tuple(map(exactly, value)) if isinstance(value, tuple) else repr(value)
    return type(value).__name__, inside


@given(values, values)
def test_different_constants_give_different_bytes(one, other):
    assert (_whole(one, 1) == _whole(other, 1)) == (exactly(one) == exactly(other))


def test_what_is_no_part_of_the_code_does_not_count():
    assert hash_of(SOURCE.replace("b=1", "b=2")) == hash_of(SOURCE)
    plain = hash_of("def f(x):\n    return x\n")
    assert hash_of("def f(x):\n    return x  # as it is\n") == plain
    other = function("def g(x):\n    return x\n", name="g")
    assert of(other).split("-")[1] != plain  # the name counts: it is another function


def test_it_is_the_same_in_every_process(tmp_path):
    (tmp_path / "module_ft.py").write_text(SOURCE)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "module_ft.py").write_text(SOURCE)
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from diagnose.targets import fingerprint, resolve
print(fingerprint(resolve("module_ft.f", import_modules=True)))
"""
    found = set()
    for seed, directory in (("0", ""), ("1", ""), ("2", "copy")):  # the second reads the .pyc
        found.add(
            subprocess.run(
                [sys.executable, "-c", code, str(tmp_path / directory)],
                env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            ).stdout.strip()
        )
    assert found == {of(function())}


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "module_ft.py").write_text(
        "def f(x):\n    y = x * 2\n    return y\n\ndef g(x): return x\n"
    )
    yield importlib.import_module("module_ft")
    sys.modules.pop("module_ft", None)


def now(path="module_ft.f"):
    return fingerprint(resolve(path, import_modules=False))


@pytest.mark.parametrize("event", ["call", "return", "end", "line:2", "line:+1"])
def test_it_stays_while_the_function_is_probed_and_has_run(module, event):
    plain = now()
    for _ in range(50):  # CPython specialises what runs often
        module.f(1)
    assert now() == plain
    probe = diagnose.attach_to("module_ft.f")
    probe.attach("k", ProbeTestInstrument("n", "x", event))
    for _ in range(50):
        module.f(1)
        assert now() == plain
    with diagnose.sensor("module_ft.f"):
        assert now() == plain
    probe.detach("k")
    assert now() == plain


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is of 3.12")
def test_it_stays_while_another_tool_monitors_the_code(module):
    monitoring = sys.monitoring
    plain, tool = now(), 3
    monitoring.use_tool_id(tool, "test")
    try:
        monitoring.register_callback(tool, monitoring.events.LINE, lambda *_: None)
        monitoring.set_local_events(tool, module.f.__code__, monitoring.events.LINE)
        module.f(1)
        assert now() == plain
    finally:
        monitoring.set_local_events(tool, module.f.__code__, 0)
        monitoring.free_tool_id(tool)


def test_what_has_no_code_has_none():
    with pytest.raises(errors.TargetKindError) as caught:
        fingerprint(resolve("math.sqrt", import_modules=True))
    assert caught.value.code == "no-fingerprint"


# --- in specs ---------------------------------------------------------------------------------


@pytest.fixture
def manager(module):
    made = InstrumentManager("me")
    made.instrument_classes["seen"] = ProbeTestInstrument
    yield made
    made.stop()


def apply(manager, wanted, target="module_ft.f", **instrument):
    manager.specs["a"] = {
        "target": target,
        "instrument": {"type": "seen", "name": "n", "value": "x"} | instrument,
        "lifespan": 10,
        "lastmodified": datetime.now(UTC),
        "fingerprint": wanted,
    }
    manager.apply()
    return manager.specs["a"]["applied"]["me"]


OTHER = f"{VERSION}-0123456789ab-1"


def test_a_spec_whose_fingerprint_fits_is_armed(module, manager):
    assert apply(manager, now())["state"] == "installed"
    assert apply(manager, [OTHER, now(), "2.7-0123456789ab-4"])["state"] == "installed"
    assert apply(manager, [])["state"] == "installed"
    assert apply(manager, None)["state"] == "installed"
    # Elsewhere in the file it is the same function.
    assert apply(manager, now().rpartition("-")[0] + "-77")["state"] == "installed"


def test_a_spec_for_other_code_has_drifted_and_is_not_armed(module, manager):
    code, plain = module.f.__code__, now()
    found = apply(manager, OTHER)
    assert (found["state"], found["code"]) == ("drifted", "drifted")
    assert found["err"] == (
        "the code of 'module_ft.f' is not the code that the spec was written against: its "
        f"fingerprint is {plain!r} here ({module.__file__}:1) and {OTHER!r} in the spec; look at "
        "the function; if it is still what you mean, set fingerprint to that one"
    )
    assert module.f.__code__ is code
    assert not probes.active_probes


def test_a_fingerprint_of_another_python_asks_for_one_of_this(module, manager):
    found = apply(manager, ["2.7-0123456789ab-1"])
    assert found["state"] == "drifted"
    assert f"the spec has none for Python {VERSION}" in found["err"]
    assert now() in found["err"]


def test_a_line_counted_from_the_top_of_the_file_needs_the_same_place(module, manager):
    moved = now().rpartition("-")[0] + "-7"
    found = apply(manager, moved, event="line:2")
    assert found["state"] == "drifted"
    assert "it is the same, but in another place: change 'line:2'" in found["err"]
    assert apply(manager, now(), event="line:2")["state"] == "installed"
    assert apply(manager, moved, event="line:+1")["state"] == "installed"


def test_a_function_that_has_no_code_any_more_has_drifted(module, manager):
    wanted = now()
    module.f = abs
    found = apply(manager, wanted)
    assert found["state"] == "drifted"
    assert "without Python code" in found["err"]


def test_a_redefinition_that_fits_again_arms_it_at_the_next_apply(module, manager):
    wanted, original = now(), module.f
    module.f = module.g
    assert apply(manager, wanted)["state"] == "drifted"
    for _ in range(20):
        manager.apply()
    module.f = original
    manager.apply()
    assert manager.specs["a"]["applied"]["me"]["state"] == "installed"


def test_a_redefinition_that_does_not_fit_disarms_it(module, manager):
    original, code = module.f, module.f.__code__
    assert apply(manager, now())["state"] == "installed"
    module.f = module.g
    manager.apply()
    assert manager.specs["a"]["applied"]["me"]["state"] == "drifted"
    assert original.__code__ is code
    assert not probes.active_probes


def test_what_has_drifted_is_checked_rarely_while_it_stays_the_same(module, manager, monkeypatch):
    apply(manager, OTHER)
    tries = []
    monkeypatch.setattr("diagnose.arming.check", lambda *args: tries.append(args))
    made = manager.make
    monkeypatch.setattr(manager, "make", lambda *args: tries.append(args) or made(*args))
    manager._records["a"].skips_left = 5
    for _ in range(5):
        manager.apply()
    assert not tries


def test_a_fingerprint_is_checked_when_the_module_is_imported(tmp_path, module, manager):
    wanted = now()
    for index, source in enumerate(
        ["def f(x):\n    y = x * 2\n    return y\n", "def f(x): pass\n"]
    ):
        del sys.modules["module_ft"]
        (tmp_path / "module_ft.py").write_text(source)
        importlib.invalidate_caches()
        assert apply(manager, wanted)["state"] == "pending"
        again = importlib.import_module("module_ft")
        assert bool(probes.active_probes) == (index == 0)
        again.f(1)
        manager.apply()
        state = manager.specs["a"]["applied"]["me"]["state"]
        assert state == ("emitting" if index == 0 else "drifted")


@pytest.mark.parametrize(
    "wanted", ["", "3.11", f"{VERSION}-0123-1", [3], 3, {"a": 1}, [OTHER, "x"]]
)
def test_what_is_no_fingerprint_is_an_error_that_shows_one(module, manager, wanted):
    found = apply(manager, wanted)
    assert found["state"] == "error"
    assert found["code"] in {"bad-fingerprint", "wrong-type"}
    assert json.dumps(found["err"])
