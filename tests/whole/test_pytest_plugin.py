from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Not what the run that these tests are part of was told.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name[:6] != "PYTEST"}

SHOP = """
class Archive:
    def unarchive(self, name):
        return name.upper()

    def restore(self, name):
        text = self.unarchive(name)
        return text
"""

TOP = """
import queue
import threading

import pytest
import shop

UNARCHIVE, RESTORE = shop.Archive.unarchive, shop.Archive.restore
CODES = UNARCHIVE.__code__, RESTORE.__code__


def check_all_is_as_it_was():
    from diagnose.breakpoints.register import entered
    from diagnose.probes import active_probes

    assert shop.Archive.unarchive is UNARCHIVE
    assert shop.Archive.restore is RESTORE
    assert (UNARCHIVE.__code__, RESTORE.__code__) == CODES
    assert not entered
    assert not active_probes
    assert not [each for each in threading.enumerate() if each.name.startswith("breakpoint:")]

"""

USING_ALL = """
@pytest.fixture
def using_all(breakpoint_at, sensor, probe):
    def use():
        bp = breakpoint_at("shop.Archive.unarchive")
        on_attribute = breakpoint_at((shop.Archive, "restore"), condition=lambda name: True)
        seen = sensor("shop.Archive.restore")
        probe("shop.Archive.unarchive", "result")
        assert UNARCHIVE.__code__ is not CODES[0]
        assert shop.Archive.restore is not RESTORE
        thread = bp.start_thread(shop.Archive().restore, "a")
        on_attribute.wait()
        on_attribute.release()
        bp.wait()
        return thread
    return use

"""


@pytest.fixture
def run(tmp_path):
    """Runs pytest on a project of its own; returns the output, and what became of each test."""

    def run_pytest(tests, *options, top=TOP):
        (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
        (tmp_path / "shop.py").write_text(SHOP)
        (tmp_path / "test_shop.py").write_text(top + tests)
        child = subprocess.run(
            [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *options],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        output = child.stdout + child.stderr
        ends = re.findall(r"^(PASSED|FAILED|ERROR|XFAIL|SKIPPED) \S+::(\w+)", output, re.MULTILINE)
        found = {}
        for end, name in ends:
            found.setdefault(name, []).append(end.lower())
        return output, found

    return run_pytest


def section(output):
    """The lines of where each thread stands."""
    found = re.findall(
        r"^-+ where each thread stands -+\n(.*?)\n[-=_]{3}", output, re.MULTILINE | re.DOTALL
    )
    assert len(found) == 1, output
    return found[0].splitlines()


# --- fixtures ---------------------------------------------------------------------------------


def test_they_undo_themselves_after_a_test_that_passes(run):
    output, ends = run(
        USING_ALL
        + """
def test_it(using_all):
    thread = using_all()

def test_after():
    check_all_is_as_it_was()
"""
    )
    assert ends == {"test_it": ["passed"], "test_after": ["passed"]}, output


def test_they_undo_themselves_after_a_test_that_fails(run):
    output, ends = run(
        USING_ALL
        + """
def test_it(using_all):
    using_all()
    assert 1 == 2

def test_after():
    check_all_is_as_it_was()
"""
    )
    assert ends == {"test_it": ["failed"], "test_after": ["passed"]}, output
    assert "E       assert 1 == 2" in output


def test_they_undo_themselves_when_another_fixture_fails_before_or_after_the_test(run):
    output, ends = run(
        USING_ALL
        + """
@pytest.fixture
def failing(using_all, breakpoint_at):
    using_all()
    breakpoint_at("shop.Archive.restore", condition=99)
    raise ValueError("before")

@pytest.fixture
def failing_later(using_all):
    yield using_all
    raise ValueError("after")

def test_before(failing):
    pass

def test_between():
    check_all_is_as_it_was()

def test_late(failing_later):
    failing_later()

def test_after():
    check_all_is_as_it_was()
"""
    )
    assert ends == {
        "test_before": ["error"],
        "test_between": ["passed"],
        "test_late": ["passed", "error"],
        "test_after": ["passed"],
    }, output
    assert "ValueError: before" in output
    assert "ValueError: after" in output
    # What the test would have met, had it been run, is no error of its own.
    assert "BreakpointError" not in output


def test_they_are_left_in_the_reverse_order_of_their_making(run):
    # Left in another order, each would find what the other one put there.
    output, ends = run(
        """
def test_it(breakpoint_at):
    first = breakpoint_at((shop.Archive, "restore"))
    between = shop.Archive.restore
    second = breakpoint_at((shop.Archive, "restore"))
    assert shop.Archive.restore is not between
    first.start_thread(between, shop.Archive(), "a")
    second.start_thread(shop.Archive.restore, shop.Archive(), "a")
    first.wait()
    second.wait()
    # Those who are let go by the one may get to the other.

def test_after():
    check_all_is_as_it_was()
"""
    )
    assert ends == {"test_it": ["passed"], "test_after": ["passed"]}, output
    assert "replaced by somebody else" not in output


def test_all_are_let_go_before_the_end_of_any_thread_is_waited_for(run):
    output, ends = run(
        """
def test_it(breakpoint_at):
    first = breakpoint_at("shop.Archive.unarchive", timeout=60.0)
    second = breakpoint_at("shop.Archive.restore", timeout=60.0)
    second.start_thread(shop.Archive().restore, "a")
    second.wait()
    second.release()
    first.wait()

def test_after():
    check_all_is_as_it_was()
""",
        "--timeout=30",
    )
    assert ends == {"test_it": ["passed"], "test_after": ["passed"]}, output


def test_a_condition_that_was_not_met_fails_the_test_on_the_line_that_made_the_breakpoint(run):
    output, ends = run(
        """
def test_it(breakpoint_at):
    breakpoint_at("shop.Archive.unarchive", condition=2)
    x = 1
"""
    )
    assert ends == {"test_it": ["failed"]}, output
    assert re.search(
        r'^>       breakpoint_at\("shop.Archive.unarchive", condition=2\)\n'
        r"E       diagnose.errors.BreakpointError: .* expected call number 2; it was not called",
        output,
        re.MULTILINE,
    ), output


def test_a_threads_error_fails_the_test_with_the_line_that_raised_it(run):
    output, ends = run(
        """
def test_it(breakpoint_at):
    bp = breakpoint_at("shop.Archive.unarchive")
    bp.start_thread(shop.Archive().restore, 5)
    bp.wait()
"""
    )
    assert ends == {"test_it": ["failed"]}, output
    assert ">       return name.upper()" in output
    assert "raised by 'breakpoint:restore'" in output
    assert "contextlib" not in output


def test_what_leaving_has_to_say_is_noted_on_the_tests_own_error(run):
    output, ends = run(
        """
def test_it(breakpoint_at):
    bp = breakpoint_at("shop.Archive.unarchive")
    bp.start_thread(shop.Archive().restore, 5)
    bp.wait()
    raise KeyError("of the test")
"""
    )
    assert ends == {"test_it": ["failed"]}, output
    assert "E       KeyError: 'of the test'" in output
    assert "E       AttributeError: 'int' object has no attribute 'upper'" in output
    assert "E       raised by 'breakpoint:restore'" in output


def test_a_test_that_is_skipped_or_expected_to_fail_stays_so(run):
    output, ends = run(
        """
def test_skips(breakpoint_at):
    breakpoint_at("shop.Archive.unarchive")
    pytest.skip("for now")

@pytest.mark.xfail(strict=True)
def test_fails_by_its_breakpoint(breakpoint_at):
    breakpoint_at("shop.Archive.unarchive")
"""
    )
    assert "1 skipped, 1 xfailed" in output
    assert ends["test_fails_by_its_breakpoint"] == ["xfail"]


def test_they_serve_unittest_and_getfixturevalue_too(run):
    output, ends = run(
        """
import unittest

class TestUnit(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def fixtures(self, breakpoint_at):
        self.breakpoint_at = breakpoint_at

    def test_unmet(self):
        self.breakpoint_at("shop.Archive.unarchive")

def test_asks(request):
    request.getfixturevalue("breakpoint_at")("shop.Archive.unarchive")

def test_after():
    check_all_is_as_it_was()
"""
    )
    assert ends["test_asks"] == ["failed"], output
    assert ends["test_after"] == ["passed"], output
    assert re.search(r"FAILED \S+::TestUnit::test_unmet - diagnose.errors.BreakpointErr", output)


def test_a_sensor_keeps_the_values_that_it_was_asked_for(run):
    output, ends = run(
        """
def test_it(sensor):
    results = sensor("shop.Archive.restore")
    names = sensor("shop.Archive.unarchive", "name", event="call")
    assert shop.Archive().restore("a") == "A"
    assert (results.results, names.results) == (["A"], ["a"])
"""
    )
    assert ends == {"test_it": ["passed"]}, output


def test_a_sensor_that_failed_says_so_on_the_tests_error(run):
    output, ends = run(
        """
def test_it(sensor):
    seen = sensor("shop.Archive.restore", "name.nothing")
    shop.Archive().restore("a")
    assert seen.results == ["A"]
"""
    )
    assert ends == {"test_it": ["failed"]}, output
    assert re.search(r"^E .*'name.nothing' raised AttributeError", output, re.MULTILINE), output


def test_a_probe_takes_an_instrument_or_the_text_of_a_value(run):
    output, ends = run(
        """
def test_it(probe, capsys):
    import diagnose

    made = diagnose.ProbeTestInstrument("mine", "name", "call")
    assert probe("shop.Archive.restore", made) is made
    probe("shop.Archive.restore", "(name, result)")
    probe("shop.Archive.unarchive", "name", "call", name="before")
    shop.Archive().restore("a")
    assert made.results == ["a"]
    assert capsys.readouterr().out.splitlines() == [
        "Probe (before)[tags={}] = a",
        "Probe (restore)[tags={}] = ('a', 'A')",
    ]
    with pytest.raises(TypeError, match="where it is made"):
        probe("shop.Archive.restore", made, "return")

def test_after():
    check_all_is_as_it_was()
"""
    )
    assert ends == {"test_it": ["passed"], "test_after": ["passed"]}, output


# --- where each thread stands -----------------------------------------------------------------

AT_RESTORE = "Breakpoint('shop.Archive.restore', event='call')"
AT_UNARCHIVE = "Breakpoint('shop.Archive.unarchive', event='call')"

TIMED_OUT = """
def test_it(breakpoint_at):
    bp = breakpoint_at("shop.Archive.unarchive", timeout=0.2, condition=lambda name: name == "b")
    with Breakpoint("shop.Archive.restore") as held:
        held.start_thread(shop.Archive().restore, "b")
        held.wait()
        bp.wait()

def test_after():
    check_all_is_as_it_was()

from diagnose.breakpoints import Breakpoint
"""


def check_timed_out(output):
    assert section(output) == [
        "MainThread",
        "  test_shop.py:29, in test_it",
        "    bp.wait()",
        "",
        f"breakpoint:restore, started by {AT_RESTORE}, stands at {AT_RESTORE}",
        "  shop.py:7, in Archive.restore",
        "    text = self.unarchive(name)",
    ]


def test_a_breakpoint_that_is_not_reached_in_time_says_where_each_thread_stands(run):
    output, ends = run(TIMED_OUT)
    assert ends == {"test_it": ["failed"], "test_after": ["passed"]}, output
    check_timed_out(output)


def test_it_is_shown_without_pytest_timeout_too(run):
    output, ends = run(TIMED_OUT, "-p", "no:timeout")
    assert ends == {"test_it": ["failed"], "test_after": ["passed"]}, output
    check_timed_out(output)


def test_it_is_shown_from_the_workers_of_xdist(run):
    output, ends = run(TIMED_OUT, "-n", "2")
    assert ends == {"test_it": ["failed"], "test_after": ["passed"]}, output
    check_timed_out(output)


HANGING = """
from diagnose.breakpoints import Breakpoint

@pytest.mark.timeout(0.5, method="signal")
def test_it():
    with Breakpoint("shop.Archive.unarchive") as bp:
        bp.start_thread(shop.Archive().restore, "b")
        bp.wait()
        queue.Queue().get()
"""


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_test_that_pytest_timeout_ends_says_where_each_thread_stood(run, options):
    output, ends = run(HANGING, *options)
    assert ends == {"test_it": ["failed"]}, output
    lines = section(output)
    assert lines[:3] == ["MainThread", "  test_shop.py:31, in test_it", "    queue.Queue().get()"]
    assert lines[-6:] == [
        "",
        f"breakpoint:restore, started by {AT_UNARCHIVE}, stands at {AT_UNARCHIVE}",
        "  shop.py:7, in Archive.restore",
        "    text = self.unarchive(name)",
        "  shop.py:4, in Archive.unarchive",
        "    return name.upper()",
    ]


def test_a_timeout_of_a_test_that_uses_no_breakpoint_shows_its_threads_too(run):
    output, ends = run(
        """
@pytest.fixture
def other():
    going, go_on = threading.Event(), threading.Event()

    def work():
        going.set()
        go_on.wait()

    thread = threading.Thread(target=work, name="other")
    thread.start()
    going.wait()
    yield
    go_on.set()
    thread.join()

@pytest.mark.timeout(0.5, method="signal")
def test_it(other):
    queue.Queue().get()
"""
    )
    assert ends == {"test_it": ["failed"]}, output
    lines = section(output)
    assert "    queue.Queue().get()" in lines
    assert "    go_on.wait()" in lines[lines.index("other") :]


def test_any_timeout_error_shows_where_threads_stood_before_with_blocks_were_left(run):
    output, ends = run(
        """
from diagnose.breakpoints import Breakpoint

def fail():
    raise TimeoutError("no answer")

def test_it():
    try:
        with Breakpoint("shop.Archive.unarchive") as bp:
            bp.start_thread(shop.Archive().restore, "b")
            bp.wait()
            fail()
    except TimeoutError as error:
        raise ValueError("because of it") from error
"""
    )
    assert ends == {"test_it": ["failed"]}, output
    lines = section(output)
    assert lines[:5] == [
        "MainThread",
        "  test_shop.py:34, in test_it",
        "    fail()",
        "  test_shop.py:27, in fail",
        '    raise TimeoutError("no answer")',
    ]
    assert "    text = self.unarchive(name)" in lines


def test_tasks_that_stand_are_shown(run):
    output, ends = run(
        """
import asyncio

from diagnose.breakpoints import Breakpoint

async def fetch():
    return 1

async def work():
    return await fetch()

async def use():
    async with Breakpoint((shop, "fetch"), timeout=0.2) as bp:
        bp.start_task(work)
        await bp.wait()
        await bp.wait(hits=2)

def test_it():
    shop.fetch = fetch
    globals()["fetch"] = lambda: shop.fetch()
    asyncio.run(use())
"""
    )
    assert ends == {"test_it": ["failed"]}, output
    lines = section(output)
    assert any(re.match(r"fetch\(\) in 'MainThread': stands, of AsyncBrea", each) for each in lines)
    assert any(each.startswith("'breakpoint:work' is in ") for each in lines)


def test_a_thread_that_does_not_end_is_shown_where_it_is(run):
    output, ends = run(
        """
go_on = threading.Event()

def work():
    go_on.wait()

def test_it(breakpoint_at):
    bp = breakpoint_at("shop.Archive.unarchive", timeout=0.2)
    bp.start_thread(work)
"""
    )
    assert ends == {"test_it": ["failed"]}, output
    assert section(output)[:2] == ["MainThread", "  (outside of the test)"]
    assert "    go_on.wait()" in section(output)


def test_the_error_of_a_thread_that_stood_too_long_points_to_where_it_stood(run):
    output, ends = run(
        """
def test_it(breakpoint_at):
    bp = breakpoint_at("shop.Archive.unarchive", timeout=0.2)
    thread = bp.start_thread(shop.Archive().restore, "b")
    bp.wait()
    thread.join()
"""
    )
    assert ends == {"test_it": ["failed"]}, output
    assert ">       text = self.unarchive(name)" in output
    assert "_give_up" not in output
    assert "    text = self.unarchive(name)" in section(output)


def test_it_is_told_in_a_folder_that_is_gone(tmp_path, monkeypatch):
    from diagnose.breakpoints.stacks import where_all_stand

    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert f"{__file__}:" in where_all_stand()


def test_other_failures_have_no_such_section(run):
    output, ends = run(
        """
from diagnose.breakpoints import Breakpoint
from diagnose.errors import BreakpointTimeoutError

def test_it():
    with Breakpoint("shop.Archive.unarchive", timeout=0.05) as bp:
        with pytest.raises(BreakpointTimeoutError):
            bp.wait()
        assert False
"""
    )
    assert ends == {"test_it": ["failed"]}, output
    assert "where each thread" not in output


def test_the_message_of_a_timeout_stays_short_and_its_where_has_the_lines():
    from diagnose.breakpoints import Breakpoint
    from diagnose.errors import BreakpointTimeoutError

    with (
        pytest.raises(BreakpointTimeoutError) as caught,
        Breakpoint("json.loads", timeout=0.05) as bp,
    ):
        bp.wait()
    assert "    bp.wait()" in caught.value.where
    assert "bp.wait()" not in str(caught.value)
    assert not BreakpointTimeoutError("made by somebody else").where


# --- what it costs, and how to do without it --------------------------------------------------

PLAIN = "def test_plain(): pass\n"


def modules_after_a_run(tmp_path, *options):
    (tmp_path / "test_plain.py").write_text(PLAIN)
    (tmp_path / "conftest.py").write_text(
        "import json, sys\n"
        "def pytest_sessionfinish():\n"
        "    open('modules.json', 'w').write(json.dumps(sorted(sys.modules)))\n"
    )
    subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=tmp_path,
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    names = json.loads((tmp_path / "modules.json").read_text())
    return {name for name in names if name.partition("_")[0].partition(".")[0] == "diagnose"}


def test_a_run_that_does_not_use_it_imports_nothing_but_the_plugin(tmp_path):
    assert modules_after_a_run(tmp_path) == {"diagnose_pytest"}
    assert modules_after_a_run(tmp_path, "--timeout=60") == {"diagnose_pytest"}


def test_it_can_be_switched_off(run, tmp_path):
    assert modules_after_a_run(tmp_path, "-p", "no:diagnose") == set()
    (tmp_path / "conftest.py").unlink()
    output, ends = run("def test_it(breakpoint_at): pass\n", "-p", "no:diagnose", top="")
    assert ends["test_it"] == ["error"]
    assert "fixture 'breakpoint_at' not found" in output


def test_pytest_does_not_warn_when_the_library_was_imported_before_it(tmp_path):
    """As by ``sitecustomize``: pytest rewrites all that a plugin's distribution has."""
    site = tmp_path / "site"
    info = site / "made_for_this_test-1.dist-info"
    info.mkdir(parents=True)
    packages = ["diagnose", "diagnose_mongo", "diagnose_pytest", "another"]
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-for-this-test\nVersion: 1\n")
    (info / "RECORD").write_text("".join(f"{each}/__init__.py,,\n" for each in packages))
    (info / "entry_points.txt").write_text("[pytest11]\nmade_for_this_test = another\n")
    (site / "another").mkdir()
    (site / "another" / "__init__.py").touch()
    (site / "sitecustomize.py").write_text(f"import {', '.join(packages)}")
    (tmp_path / "test_plain.py").write_text(PLAIN)
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert re.findall(r"cannot be rewritten[;:] (\S+)", child.stdout) == ["another"]


# --- the documentation ------------------------------------------------------------------------


def test_what_the_documentation_shows_is_so(run, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "pytest.md").read_text()
    files = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.DOTALL))
    assert files.keys() == {"archive.py", "test_archive.py", "test_late.py"}
    for name, text in files.items():
        # With the line of its name: the lines that are shown are counted with it.
        (tmp_path / name).write_text(f"# {name}\n{text}")
    output, ends = run("", "test_archive.py", top="")
    assert set(map(tuple, ends.values())) == {("passed",)}, output
    output, ends = run("", "test_late.py", top="")
    assert set(map(tuple, ends.values())) == {("failed",)}, output
    shown = re.search(r"```text\n-+ where each thread stands -+\n(.*?)\n```", page, re.DOTALL)
    assert section(output) == shown[1].splitlines()


def test_an_error_of_this_library_is_shown_at_the_tests_line_without_our_frames(run):
    body = """
def test_it():
    from diagnose.breakpoints import Breakpoint

    with Breakpoint("shop.Archive.unarchiv"):
        pass
"""
    output, ends = run(body)
    assert ends == {"test_it": ["failed"]}, output
    assert '>       with Breakpoint("shop.Archive.unarchiv"):' in output
    assert "has no 'unarchiv'; did you mean 'unarchive'?" in output
    assert "search.py" not in output
    output, _ = run(body, "--full-trace")
    assert "search.py" in output
