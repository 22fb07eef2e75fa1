from __future__ import annotations

import functools
import gc
import queue
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
from stage import DEADLINE_SECONDS
from waiting import in_child

from diagnose import clockwork
from diagnose.clockwork import Clockwork


def run_until_idle(clock):
    done = threading.Event()
    clock.after(0, done.set)
    assert done.wait(DEADLINE_SECONDS)


def test_callbacks_run_in_the_order_of_their_deadlines():
    clock, order, done = Clockwork("test"), [], threading.Event()
    gate = threading.Event()
    clock.after(0, lambda: gate.wait(DEADLINE_SECONDS))
    clock.after(0.03, lambda: (order.append("late"), done.set()))
    clock.after(0.01, lambda: order.append("early"))
    clock.after(0.02, lambda: order.append("middle"))
    clock.after(-5, lambda: order.append("overdue"))
    for number in range(3):
        clock.after(0, lambda number=number: order.append(number))
    gate.set()
    assert done.wait(DEADLINE_SECONDS)
    assert order == ["overdue", 0, 1, 2, "early", "middle", "late"]


def test_a_callback_is_not_run_before_its_deadline():
    clock, ran = Clockwork("test"), []
    done = threading.Event()
    begin = time.monotonic()
    clock.after(0.05, lambda: (ran.append(time.monotonic()), done.set()))
    assert done.wait(DEADLINE_SECONDS)
    assert ran[0] - begin >= 0.05


def test_a_sooner_deadline_wakes_the_thread_that_waits_for_a_later_one():
    clock, done = Clockwork("test"), threading.Event()
    far = clock.after(10_000, lambda: None)
    clock.after(0.01, done.set)
    assert done.wait(DEADLINE_SECONDS)
    assert far.pending
    far.cancel()


def test_a_cancelled_callback_does_not_run_and_is_forgotten():
    class Thing:
        pass

    clock, thing, ran = Clockwork("test"), Thing(), []
    died = weakref.ref(thing)
    timer = clock.after(0.01, lambda thing=thing: ran.append(thing))
    assert timer.pending
    timer.cancel()
    timer.cancel()
    del thing
    gc.collect()
    assert died() is None
    done = threading.Event()
    clock.after(0.02, done.set)
    assert done.wait(DEADLINE_SECONDS)
    assert ran == []
    assert not timer.pending


def test_a_callback_is_forgotten_after_it_ran():
    class Thing:
        pass

    clock, thing = Clockwork("test"), Thing()
    died = weakref.ref(thing)
    timer = clock.after(0, lambda thing=thing: None)
    del thing
    run_until_idle(clock)
    gc.collect()
    assert died() is None
    assert not timer.pending


def test_what_a_callback_raises_is_logged_and_the_next_runs(caplog):
    clock = Clockwork("test")

    def broken():
        raise ValueError("broken callback")

    clock.after(0, broken)
    run_until_idle(clock)
    assert "ValueError: broken callback" in caplog.text


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_a_callback_does_not_end_the_service(error, monkeypatch):
    clock, ended = Clockwork("test"), threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: ended.set())

    def leave():
        raise error

    clock.after(0, leave)
    run_until_idle(clock)
    run_until_idle(clock)
    assert ended.wait(DEADLINE_SECONDS)


def test_there_is_a_thread_only_while_something_is_due():
    clock = Clockwork("a name of its own")
    assert clock._thread is None
    threads = []
    clock.after(0, lambda: threads.append(threading.current_thread()))
    run_until_idle(clock)
    (thread,) = threads
    assert thread.name == "a name of its own"
    assert thread.daemon
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert clock._thread is None
    run_until_idle(clock)


def test_a_callback_may_set_and_cancel_timers():
    clock, done, ran = Clockwork("test"), threading.Event(), []
    never = clock.after(0.02, lambda: ran.append("never"))

    def again(count):
        ran.append(count)
        never.cancel()
        if count:
            clock.after(0, lambda: again(count - 1))
        else:
            clock.after(0.03, done.set)

    clock.after(0, lambda: again(3))
    assert done.wait(DEADLINE_SECONDS)
    assert ran == [3, 2, 1, 0]


def test_cancelled_timers_do_not_gather():
    clock = Clockwork("test")
    kept = clock.after(5_000, lambda: None)
    for _ in range(5_000):
        clock.after(1_000, lambda: None).cancel()
    assert len(clock._heap) <= 2 * clockwork.SWEEP_AT_LEAST
    assert kept.pending
    kept.cancel()
    run_until_idle(clock)


def test_deadlines_may_be_further_away_than_a_lock_can_wait():
    clock = Clockwork("test")
    timer = clock.after(threading.TIMEOUT_MAX * 2, lambda: None)
    run_until_idle(clock)
    assert timer.pending
    timer.cancel()


def test_many_threads_may_set_timers_at_once():
    clock, lock, ran = Clockwork("test"), threading.Lock(), []

    def note(number):
        with lock:
            ran.append(number)

    def work(first):
        for number in range(first, first + 200):
            clock.after(0, lambda number=number: note(number))
            clock.after(0.001, lambda: None).cancel()

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 1600, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    run_until_idle(clock)
    assert sorted(ran) == list(range(1600))


def test_when_no_thread_can_be_started_nothing_is_raised(monkeypatch):
    clock = Clockwork("test")

    def refuse(self):
        raise RuntimeError("can't start new thread at interpreter shutdown")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        timer = clock.after(0, lambda: None)
        assert timer.pending
    run_until_idle(clock)


# --- fork -------------------------------------------------------------------------------------


def test_a_forked_child_runs_what_is_due_in_both():
    clock, done = Clockwork("test"), threading.Event()
    clock.after(0.05, done.set)

    def child():
        assert done.wait(10)
        run_until_idle(clock)
        return "ran"

    assert in_child(child) == "ran"
    assert done.wait(DEADLINE_SECONDS)


def test_a_callback_that_runs_during_a_fork_runs_again_in_the_child():
    clock, begun, leave, done = Clockwork("test"), *(threading.Event() for _ in range(3))

    def callback():
        begun.set()
        leave.wait(DEADLINE_SECONDS)
        done.set()

    clock.after(0, callback)
    assert begun.wait(DEADLINE_SECONDS)

    def child():
        leave.set()
        assert done.wait(10)
        return "ran"

    assert in_child(child) == "ran"
    leave.set()
    assert done.wait(DEADLINE_SECONDS)


def test_what_is_due_in_a_child_runs_after_the_hooks_that_modules_register(tmp_path):
    # Such a hook makes the lock anew that a callback needs.
    script = tmp_path / "script.py"
    script.write_text(
        """
import os, threading
from diagnose.clockwork import Clockwork

clock, order, done = Clockwork("test"), [], threading.Event()
begun, leave = threading.Event(), threading.Event()

def hook():
    # Long enough for a thread that was started before this one to run.
    done.wait(0.05)
    order.append("hook")

os.register_at_fork(after_in_child=hook)
parent = os.getpid()

def due():
    order.append("due")
    done.set()

clock.after(0, lambda: (begun.set(), os.getpid() == parent and leave.wait(30)))
begun.wait(30)
clock.after(0, due)
pid = os.fork()
if pid == 0:
    done.wait(10)
    os._exit(0 if order == ["hook", "due"] else 1)
_, status = os.waitpid(pid, 0)
leave.set()
raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    )
    root = str(Path(clockwork.__file__).parent.parent)
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env={"PYTHONPATH": root},
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0


def test_forks_amid_timers_do_not_deadlock():
    clock, stop = Clockwork("test"), threading.Event()

    def busy():
        while not stop.is_set():
            # Not an Event: the child would have the lock in it as it is at the fork, maybe taken.
            ran = queue.SimpleQueue()
            clock.after(0.001, lambda: None).cancel()
            clock.after(0.0001, functools.partial(ran.put, None))
            ran.get(timeout=DEADLINE_SECONDS)

    threads = [threading.Thread(target=busy, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()

    def child():
        run_until_idle(clock)
        return "fine"

    try:
        for _ in range(20):
            assert in_child(child) == "fine"
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
    run_until_idle(clock)
