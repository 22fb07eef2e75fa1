from __future__ import annotations

import contextlib
import itertools
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pymongo
import pytest

from diagnose_mongo.demo import specs, workload
from diagnose_mongo.demo.display import Picture, PlainDisplay
from diagnose_mongo.demo.metrics import MetricsServer, parse, summarize
from diagnose_mongo.demo.signals import Interrupted, StopSignals
from diagnose_mongo.demo.worker import service_functions
from diagnose_mongo.rollouts import Failure, Rollout
from diagnose_mongo.server import URI_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0

FUNCTIONS = len(list(service_functions()))
AS_THEY_WERE = f"has ended, its {FUNCTIONS} functions as they were"
HIDE_CURSOR = "\x1b[?25l"
SHOW_CURSOR = "\x1b[?25h"

needs_proc = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="these tests find processes in /proc (Linux)"
)


class Demo:
    """The demo in a process of its own, and a way to find every process that it started."""

    def __init__(self, directory: Path, *arguments: str, terminal: bool = False, **env: str):
        # Children inherit it, however they are started.
        self.mark = f"DIAGNOSE_TEST_MARK={uuid.uuid4().hex}"
        self.directory = directory
        self.text = ""
        self._changed = threading.Condition()
        environment = os.environ | {"TMPDIR": str(directory), "TERM": "xterm", **env}
        if URI_VARIABLE not in env:
            environment.pop(URI_VARIABLE, None)
        environment.update([self.mark.split("=")])
        command = [sys.executable, "-m", "diagnose_mongo.demo", *arguments]
        self.output, write_end = pty.openpty() if terminal else os.pipe()
        if terminal:
            # The first terminal that the leader of a session opens is the one that controls it.
            command = ["sh", "-c", 'exec "$@" <>"$0" >&0 2>&1', os.ttyname(write_end), *command]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        os.close(write_end)
        self._woken, self._wake = os.pipe()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # a terminal whose last process has ended
            while self._woken not in select.select([self.output, self._woken], [], [])[0]:
                data = os.read(self.output, 65536)
                if not data:
                    break
                with self._changed:
                    self.text += data.decode(errors="replace")
                    self._changed.notify_all()
        os.close(self.output)
        os.close(self._woken)

    def hang_up(self) -> None:
        """Close the terminal, or the pipe."""
        with contextlib.suppress(OSError):  # that was done long ago
            os.write(self._wake, b"!")
        self._reader.join(SECONDS)

    def wait_for(self, text: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.text, SECONDS), self.text

    def wait(self) -> int:
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return code

    def processes(self) -> list[int]:
        """All that it has started, and itself."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def assert_nothing_is_left(self) -> None:
        assert self.processes() == []
        assert list(self.directory.iterdir()) == []

    def close(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.hang_up()
        os.close(self._wake)


@pytest.fixture
def start(tmp_path) -> Iterator:
    demos = []

    def start(*arguments: str, **options) -> Demo:
        demos.append(Demo(tmp_path, *arguments, **options))
        return demos[-1]

    yield start
    for demo in demos:
        demo.close()


# --- the whole of it --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Iterator[Demo]:
    """The demo without a terminal, from beginning to end, as fast as it can."""
    demo = Demo(tmp_path_factory.mktemp("demo"), "--seconds", "1")
    try:
        demo.code = demo.wait()
        yield demo
    finally:
        demo.close()


def section(demo: Demo, number: int) -> str:
    return re.search(rf"^{number}\. .*?(?=^\d\. |\Z)", demo.text, re.MULTILINE | re.DOTALL)[0]


def test_it_ends_by_itself_with_exit_code_0(told):
    assert told.code == 0, told.text
    assert "\nDone in " in told.text


def test_without_a_terminal_it_prints_plain_lines_and_none_twice_in_a_row(told):
    assert "\x1b" not in told.text
    assert "\r" not in told.text
    lines = told.text.splitlines()
    assert not [line for line, after in itertools.pairwise(lines) if line == after]


@pytest.mark.parametrize("spec_id", ["parse-time", "files-by-size", "longest-function"])
def test_every_process_installs_the_specs_and_emits(told, spec_id):
    states = re.findall(rf"^ +[\d.]+ s  {spec_id} +(.*)$", section(told, 2), re.MULTILINE)
    assert states[-1] == "3 emitting"
    # What a state was before depends on when the picture was taken.
    assert len(states) > 1
    assert all(
        re.fullmatch(r"(\d (emitting|installed|waiting|behind)(, )?)+", each) for each in states
    )


def test_a_typo_in_a_target_is_an_error_with_the_right_name(told):
    text = " ".join(section(told, 3).split())
    assert "tokens 3 error" in text
    assert "has no 'tokenise'; did you mean 'tokenize'?" in text


def test_an_expression_that_fails_at_run_time_is_an_error_with_its_message(told):
    text = " ".join(section(told, 3).split())
    assert "docstring-length 3 error" in text
    assert "'len(result)' raised TypeError: object of type 'NoneType' has no len()" in text


def test_an_error_is_told_once(told):
    assert " ".join(told.text.split()).count("did you mean") == 1


def test_values_of_every_worker_are_measured(told):
    values = section(told, 4)
    assert re.search(
        r"^ +parse\.seconds +all +\d[\d,]* .* ms +[\d.]+ ms +[\d.]+ ms$", values, re.MULTILINE
    )
    for worker in ("w1", "w2", "w3"):
        assert re.search(rf"^ +{worker} +\d+ .* ms$", values, re.MULTILINE)
    for size in ("small", "medium", "large"):
        assert re.search(rf"^ +files size={size} +all +\d+ +[\d.]+$", values, re.MULTILINE)


def test_locals_of_a_function_are_logged_by_every_worker(told):
    lines = re.findall(
        r"^ +(w\d): Probe \(longest\)\[tags=\{\}\] = \('.*\.py', '\w+', (\d+)\)$",
        section(told, 4),
        re.MULTILINE,
    )
    assert {worker for worker, _ in lines} == {"w1", "w2", "w3"}
    assert all(int(length) > 100 for _, length in lines)


def test_the_fleet_follows_a_change(told):
    states = re.findall(r"s  docstring-length +(.*)$", section(told, 5), re.MULTILINE)
    assert states[-1] == "3 emitting"
    assert not any("error" in state for state in states)
    assert re.search(r"^ +docstring\.chars +all +\d", section(told, 5), re.MULTILINE)


def test_the_fleet_follows_a_removal(told):
    before, after = section(told, 6).split("specs.delete_one")
    assert re.search(r"w1, w2, w3: .*; not: .*\bmeasure\b", " ".join(before.split()))
    assert re.search(r"w1, w2, w3: .*; not: ", " ".join(after.split()))
    assert "measure" not in after
    assert "longest-function   the document is gone" in after


def test_in_the_end_every_function_has_its_original_code(told):
    all_of_them = f"{FUNCTIONS} of {FUNCTIONS} functions have their original code\n"
    assert f"w1, w2, w3: {all_of_them}" in section(told, 7)
    for worker in ("w1", "w2", "w3"):
        assert re.search(rf"^ +{worker} \(pid \d+\) {AS_THEY_WERE}", told.text, re.MULTILINE)


@needs_proc
def test_nothing_is_left_when_it_has_ended(told):
    assert re.search(r"MongoDB \(pid \d+\) has ended, and its data are removed", told.text)
    told.assert_nothing_is_left()


# --- ended early ------------------------------------------------------------------------------

MOMENTS = {
    "while MongoDB starts": "1. Start",
    "while the workers start": "specs = MongoClient",
}


@needs_proc
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_leaves_nothing(start, moment):
    demo = start()
    demo.wait_for(MOMENTS[moment])
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait() == 128 + signal.SIGINT, demo.text
    demo.assert_nothing_is_left()
    assert "Traceback" not in demo.text


@needs_proc
def test_ctrl_c_in_a_terminal_leaves_nothing_and_the_terminal_as_it_was(start):
    demo = start(terminal=True)
    demo.wait_for(" emitting")
    assert HIDE_CURSOR in demo.text  # it draws
    os.write(demo.output, b"\x03")
    assert demo.wait() == 128 + signal.SIGINT, demo.text
    demo.assert_nothing_is_left()
    assert "Traceback" not in demo.text
    assert AS_THEY_WERE in demo.text
    assert demo.text.rindex(SHOW_CURSOR) > demo.text.rindex(HIDE_CURSOR)


@needs_proc
def test_it_leaves_nothing_when_its_terminal_is_closed(start):
    demo = start("--live", terminal=True)
    demo.wait_for(" emitting")
    demo.hang_up()  # the system sends SIGHUP, and writing fails
    assert demo.process.wait(SECONDS) != 0
    demo.assert_nothing_is_left()


@needs_proc
def test_sigterm_ends_it_and_its_database_in_a_mongodb_that_was_there(start, mongo_server):
    demo = start("--seconds", "1", DIAGNOSE_MONGODB_URI=mongo_server.uri)
    demo.wait_for(" waiting")
    with pymongo.MongoClient(mongo_server.uri) as client:
        assert [name for name in client.list_database_names() if "diagnose_demo" in name]
        demo.process.send_signal(signal.SIGTERM)
        assert demo.wait() == 128 + signal.SIGTERM, demo.text
        assert not [name for name in client.list_database_names() if "diagnose_demo" in name]
    demo.assert_nothing_is_left()
    assert mongo_server.uri not in demo.text  # it could hold a password
    assert AS_THEY_WERE in demo.text


@needs_proc
def test_the_live_demo_stays_until_ctrl_c_and_takes_specs_from_anybody(start):
    demo = start("--live", "--seconds", "1")
    demo.wait_for("ast.get_docstring.")
    uri = re.search(r'MongoClient\("(.*?)"\)\["demo"\]', demo.text)[1]
    command = textwrap.dedent(
        re.search(r"^ +\$ (\S+ -c .*?\)')$", demo.text, re.MULTILINE | re.DOTALL)[0]
    )
    done = subprocess.run(
        ["sh", "-c", command.strip("$ ")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    demo.wait_for("mine               3 emitting")
    with pymongo.MongoClient(uri) as client:
        client["demo"]["specs"].insert_one({"_id": 7, "target": None})
    demo.wait_for("7                  3 error")
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait() == 0, demo.text
    assert re.search(r"^ +characters +all +\d", demo.text, re.MULTILINE)
    demo.assert_nothing_is_left()


@needs_proc
def test_it_ends_when_nobody_reads_what_it_prints(start):
    demo = start("--live")
    demo.wait_for(" waiting")
    demo.hang_up()
    assert demo.process.wait(SECONDS) != 0
    demo.assert_nothing_is_left()


@needs_proc
def test_a_demo_that_is_killed_takes_its_workers_and_its_mongodb_with_it(start):
    demo = start("--live")
    demo.wait_for(" waiting")
    watches = [os.pidfd_open(pid) for pid in demo.processes()]
    assert len(watches) == 6  # itself, three workers, mongod and its keeper
    demo.process.kill()
    for watch in watches:
        assert select.select([watch], [], [], SECONDS)[0]
        os.close(watch)
    demo.process.wait()
    assert list(demo.directory.iterdir()) == []


@needs_proc
def test_a_worker_that_dies_ends_the_demo_with_a_message(start):
    demo = start("--live")
    demo.wait_for(" waiting")
    os.kill(int(re.search(r"w2 \(pid (\d+)\)", demo.text)[1]), signal.SIGKILL)
    assert demo.wait() == 1
    assert "The demo failed: worker w2" in demo.text
    assert "ended with code -9" in demo.text
    demo.assert_nothing_is_left()


@pytest.mark.parametrize("name", ["rich", "pymongo", "apscheduler"])
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(name):
    code = (
        f"import sys; sys.modules[{name!r}] = None; import runpy; "
        "runpy.run_module('diagnose_mongo.demo', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"The demo needs {name}: pip install 'diagnose-mongo[demo]'\n"


# --- its parts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document", [document for _, document in specs.THREE_KINDS + specs.MISTAKES], ids=str
)
def test_what_is_shown_as_typed_is_the_call_that_was_made(document):
    stamped = specs.stamped(document)
    typed = specs.typed("insert", stamped)
    moment = stamped["lastmodified"]

    class datetime:
        now = staticmethod(lambda zone: moment)

    calls = []
    exec(typed, {"insert": calls.append, "datetime": datetime, "UTC": None})
    assert calls == [stamped]
    assert all(len(line) <= 96 for line in typed.splitlines())


def test_a_line_of_statsd_is_taken_apart():
    assert parse("files:3|c|#worker:w1,size:small") == (
        "files",
        3.0,
        "c",
        (("size", "small"), ("worker", "w1")),
    )
    assert parse("x:0.5|h|@0.1") == ("x", 0.5, "h", ())
    with pytest.raises(ValueError):
        parse("no metric")


def test_what_comes_in_over_udp_is_summed_up_by_metric_and_worker():
    from diagnose.sinks.statsd import StatsdSink

    with MetricsServer() as server:
        for worker in ("w1", "w2"):
            sink = StatsdSink(port=server.port, tags={"worker": worker})
            sink.histogram("t", [1.0, 2.0, 3.0], {})
            sink.counter("c", 5, {"size": "small"})
            sink.close()
        deadline = time.monotonic() + SECONDS
        while len(server.series()) < 4:
            assert time.monotonic() < deadline
        rows = summarize(server.series())
    assert [(row.name, row.tags, row.worker, row.count) for row in rows] == [
        ("c", (("size", "small"),), None, 10),
        ("t", (), None, 6),
        ("t", (), "w1", 3),
        ("t", (), "w2", 3),
    ]
    assert rows[1].quantiles == {"p50": 2.0, "p95": 3.0, "max": 3.0}


def spec_in(*, failures=(), **counts):
    return Rollout("a", None, None, counts, 0, failures)


def test_the_plain_display_prints_changes_only(capsys):
    with PlainDisplay() as display:
        for _ in range(3):
            display.draw(Picture([spec_in(waiting=2)]))
        for _ in range(3):
            display.draw(Picture([spec_in(emitting=1, waiting=1)]))
        display.draw(Picture([]))
    lines = [line.split("s  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert [" ".join(line.split()) for line in lines] == [
        "a 2 waiting",
        "a 1 emitting, 1 waiting",
        "a the document is gone",
    ]


def test_the_terminal_display_draws_a_bar_with_a_part_for_each_state():
    import io

    from rich.console import Console

    from diagnose_mongo.demo.terminal import TerminalDisplay

    failure = Failure("odd", 1, ({"process": "q", "err": "it [failed]"},))
    found = spec_in(emitting=1, error=1, waiting=1, failures=(failure,))
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=100)
    with TerminalDisplay(console) as display:
        display.heading("1. [Title]")
        display.draw(Picture([found], (), ["w1: a line"]))
    text = out.getvalue()
    bars = re.findall("\x1b\\[(\\d+)m(━+)\x1b\\[0m", text)
    assert [(colour, len(bar)) for colour, bar in bars[:3]] == [("32", 8), ("31", 8), ("90", 8)]
    assert "1. [Title]" in text
    assert "1 of 3: it [failed]" in text
    assert "w1: a line" in text


def test_a_signal_ends_the_next_pause_and_later_ones_change_nothing():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        signals.pause(0)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted) as caught:
            signals.pause(SECONDS)
    assert caught.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_service_works_without_probes():
    files = workload.SourceFile.find_all(Path(os.__file__).parent / "json")
    assert {file.name for file in files} >= {"decoder.py", "encoder.py"}
    encoder = next(file for file in files if file.name == "encoder.py")
    tree = encoder.parse()
    assert encoder.size == "large"
    assert encoder.tokenize() > 1000
    assert workload.measure(encoder, tree) > 10
    assert any(workload.docstring(function) for function in workload.functions_of(tree))
