"""Time limits of the program's own, which fall due while a hit is served: each arrives.

They are exceptions that a signal handler raises (celery, rq, pytest-timeout, signal.alarm), or that
another thread injects (dramatiq, func_timeout). The hit that one falls into is lost; the instrument
is not to blame, and stays.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import time_limited
from waiting import wait_until

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
REPEATS = int(os.environ.get("DIAGNOSE_TEST_REPEATS", "1"))
# For each of 4 events and 4 expressions: 16 a kind, 1,056 in the long form.
LIMITS = 1 if REPEATS == 1 else 1.5 * REPEATS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


def environment(**more):
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{FOLDER}"} | more


def run(*command, status=0, **more):
    ran = subprocess.run(
        [sys.executable, *command],
        cwd=FOLDER,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == status, ran.stdout + ran.stderr
    return ran


@pytest.mark.parametrize("kind", time_limited.KINDS)
def test_a_limit_arrives_whatever_raises_it(kind):
    ran = run("time_limited.py", "probed", str(round(LIMITS)), kind)
    assert (json.loads(ran.stdout), ran.stderr) == ({kind: {}}, "")


def test_this_test_loses_none_itself():
    ran = run("time_limited.py", "bare", str(4 * round(LIMITS)), *time_limited.KINDS)
    assert (json.loads(ran.stdout), ran.stderr) == ({kind: {} for kind in time_limited.KINDS}, "")


# --- pytest-timeout -----------------------------------------------------------------------------

LIMITED_TESTS = """
import pytest, random
import time_limited
from diagnose import attach_to

CASES = [
    pytest.param(event, expression, id=f"{event}-{expression}-{turn}", marks=pytest.mark.timeout(
        random.Random(f"{event} {expression} {turn}").uniform(0.002, 0.02), method="signal", func_only=True))
    for event in time_limited.EVENTS
    for expression in time_limited.EXPRESSIONS
    for turn in range(NUMBER)
]


@pytest.fixture(autouse=True)
def probe(event, expression):
    probe = attach_to("time_limited.step")
    seen = probe.instruments["a"] = time_limited.Counting("n", expression, event=event)
    probe.start()
    yield
    before = seen.count
    time_limited.step(time_limited.Thing())
    probe.stop()
    del probe.instruments["a"]
    assert seen.status.error is None
    assert seen.count == before + 1


def until_late():
    end = time_limited.time.perf_counter() + 1
    thing = time_limited.Thing()
    while time_limited.time.perf_counter() < end:
        time_limited.step(thing)


@pytest.mark.parametrize(("event", "expression"), CASES)
def test_limited(event, expression):
    until_late()
"""


@pytest.mark.skipif(importlib.util.find_spec("pytest_timeout") is None, reason="no pytest-timeout")
def test_each_limit_of_pytest_timeout_fails_its_test(tmp_path):
    number = round(LIMITS)
    (tmp_path / "test_limited.py").write_text(LIMITED_TESTS.replace("NUMBER", str(number)))
    ran = run(
        *("-m", "pytest", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"),
        *("-p", "no:hypothesispytest", f"--rootdir={tmp_path}", "-c", os.devnull, str(tmp_path)),
        status=1,
        COLUMNS="1000",
    )
    summary = ran.stdout.splitlines()[-1]
    expected = len(time_limited.EVENTS) * len(time_limited.EXPRESSIONS) * number
    assert re.match(rf"{expected} failed in ", summary), ran.stdout
    limits = re.findall(r"^FAILED .* - Failed: Timeout", ran.stdout, re.MULTILINE)
    assert len(limits) == expected


# --- celery -------------------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path):
    """Environment of a worker with one child, which may not outlive the test."""
    variables = environment(LIMITED_BROKER_FOLDER=str(tmp_path / "broker"))
    (tmp_path / "broker").mkdir()
    with (tmp_path / "log").open("wb") as log:
        program = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "limited_celery", "worker"),
                *("--pool=prefork", "--concurrency=1", "--without-gossip", "--without-mingle"),
            ],
            cwd=FOLDER,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    yield program
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    print((tmp_path / "log").read_text())  # pytest shows it with a failure


@pytest.mark.skipif(importlib.util.find_spec("celery") is None, reason="no celery")
def test_each_soft_limit_of_celery_reaches_its_task(worker, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMITED_BROKER_FOLDER", str(tmp_path / "broker"))
    monkeypatch.delitem(sys.modules, "limited_celery", raising=False)
    import limited_celery

    real, storm = tmp_path / "real", tmp_path / "storm"
    limited_celery.wait_for_the_limit.apply_async((str(real),), soft_time_limit=1)
    limited_celery.storm.delay(round(LIMITS), str(storm))
    wait_until(real.exists)
    assert json.loads(real.read_text()) == {}
    # As long as a lost one takes, at most.
    wait_until(lambda: storm.exists() or worker.poll() is not None, seconds=60 + 16 * LIMITS)
    assert json.loads(storm.read_text()) == {}
