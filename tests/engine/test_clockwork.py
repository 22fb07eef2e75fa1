from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import queue
import signal
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


@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
def test_whatever_a_callback_raises_the_same_thread_goes_on(error, caplog):
    clock, threads = Clockwork("test"), []

    def leave():
        threads.append(threading.current_thread())
        raise error

    clock.hold()
    for _ in range(2):
        clock.after(0, leave)
        clock.soon(leave)
    run_until_idle(clock)
    assert threads == [clock.thread] * 4
    assert caplog.text.count(error.__name__) >= 4
    clock.release()


def test_not_even_a_log_that_fails_ends_the_thread(monkeypatch):
    clock = Clockwork("test")

    def refuse(*args):
        raise SystemExit("no logging")

    monkeypatch.setattr(clockwork.log, "exception", refuse)
    clock.hold()
    thread = clock.thread
    clock.after(0, lambda: 1 // 0)
    run_until_idle(clock)
    assert clock.thread is thread
    clock.release()


def test_a_thread_that_is_ended_from_outside_is_replaced():
    clock, threads = Clockwork("test"), []
    gate, begun = threading.Event(), threading.Event()
    clock.hold()

    def interrupted():
        begun.set()
        gate.wait(DEADLINE_SECONDS)

    clock.after(0, interrupted)
    assert begun.wait(DEADLINE_SECONDS)
    first = clock.thread
    # It is raised somewhere in the clockwork or in the callback, as it comes.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(first.ident), ctypes.py_object(SystemExit)
    )
    gate.set()
    for _ in range(3):
        ran = queue.SimpleQueue()
        clock.soon(lambda ran=ran: ran.put(threading.current_thread()))
        threads.append(ran.get(timeout=DEADLINE_SECONDS))
    assert threads[-1].is_alive()
    clock.release()


# --- at once, from anywhere -----------------------------------------------------------------------


def asked(clock, how):
    """Have something done soon; the thread that did it."""
    ran = queue.SimpleQueue()
    how(lambda: ran.put(threading.current_thread()))
    return ran.get(timeout=DEADLINE_SECONDS)


def test_what_is_wanted_soon_runs_in_the_thread_that_is_held():
    clock = Clockwork("test")
    clock.hold()
    thread = clock.thread
    assert [asked(clock, clock.soon) for _ in range(3)] == [thread] * 3
    clock.hold()
    clock.release()
    assert asked(clock, clock.soon) is thread
    clock.release()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert clock.thread is None


def test_what_is_wanted_soon_runs_before_what_is_due_and_in_order():
    clock, order, gate, done = Clockwork("test"), [], threading.Event(), threading.Event()
    clock.after(0, lambda: gate.wait(DEADLINE_SECONDS))
    clock.after(-1, lambda: order.append("due"))
    clock.after(0, done.set)
    for number in range(5):
        clock.soon(lambda number=number: order.append(number))
    gate.set()
    assert done.wait(DEADLINE_SECONDS)
    assert order in ([*range(5), "due"], ["due", *range(5)])  # it may have run before the gate


def test_what_is_wanted_soon_without_a_thread_waits_for_one():
    clock, ran = Clockwork("test"), []
    clock.soon(lambda: ran.append(1))
    assert (clock.thread, ran) == (None, [])
    run_until_idle(clock)
    assert ran == [1]


def test_soon_takes_no_lock_starts_no_thread_and_logs_nothing():
    clock, seen = Clockwork("test"), []
    callback = seen.append

    def watch(frame, event, argument):
        seen.append((event, getattr(argument, "__name__", None) or frame.f_code.co_name))

    # Its own lock is held by somebody else meanwhile.
    held, leave = threading.Event(), threading.Event()

    def hold():
        with clock._lock:
            held.set()
            leave.wait(DEADLINE_SECONDS)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(DEADLINE_SECONDS)
    sys.setprofile(watch)
    try:
        clock.soon(callback)
    finally:
        sys.setprofile(None)
    assert holder.is_alive()
    leave.set()
    holder.join(DEADLINE_SECONDS)
    assert [each for each in seen if each[0] in {"call", "c_call"}] == [
        ("call", "soon"),
        ("c_call", "append"),
        ("c_call", "put"),
        ("c_call", "setprofile"),
    ]


def test_soon_may_be_called_amid_anything_by_a_finalizer_and_a_signal_handler():
    clock, ran = Clockwork("test"), queue.SimpleQueue()
    clock.hold()
    calls = 0

    class Finalized:
        def __del__(self):
            clock.soon(functools.partial(ran.put, "finalizer"))

    def handler(*_):
        nonlocal calls
        calls += 1
        clock.soon(functools.partial(ran.put, "signal"))

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        while calls < 50:
            clock.soon(functools.partial(ran.put, "plain"))
            clock.after(0, lambda: None)
            cycle = Finalized()
            cycle.itself = cycle
            del cycle
            gc.collect(0)
            clock.hold()
            clock.release()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gc.collect()
    run_until_idle(clock)
    got = [ran.get_nowait() for _ in range(ran.qsize())]
    assert got.count("signal") == calls
    assert got.count("finalizer") == got.count("plain")
    clock.release()


@pytest.mark.parametrize("begins", [False, True])
def test_an_interrupt_while_a_thread_is_started_leaves_no_dead_clockwork(begins, monkeypatch):
    clock, start = Clockwork("test"), threading.Thread.start

    def interrupted(thread):
        if begins:
            start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            clock.hold()
    clock.hold()
    assert asked(clock, clock.soon) is clock.thread
    clock.release()
    clock.release()


def test_threads_that_start_it_at_once_get_one():
    for _ in range(20):
        clock, together, ran = Clockwork("test"), threading.Barrier(4), queue.SimpleQueue()

        def work(clock=clock, together=together, ran=ran):
            together.wait(DEADLINE_SECONDS)
            clock.hold()
            clock.soon(lambda: ran.put(threading.current_thread()))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        assert len({ran.get(timeout=DEADLINE_SECONDS) for _ in threads}) == 1
        for _ in threads:
            clock.release()


def test_callbacks_are_called_inside_what_it_was_given():
    inside = []

    @contextlib.contextmanager
    def context():
        inside.append(threading.get_ident())
        yield
        inside.remove(threading.get_ident())

    clock, seen = Clockwork("test", context), queue.SimpleQueue()
    clock.hold()
    thread = clock.thread
    clock.soon(lambda: seen.put(list(inside)))
    assert seen.get(timeout=DEADLINE_SECONDS) == [thread.ident]
    clock.soon(lambda: 1 // 0)
    clock.soon(lambda: seen.put(list(inside)))
    assert seen.get(timeout=DEADLINE_SECONDS) == [thread.ident]
    clock.release()
    thread.join(DEADLINE_SECONDS)
    assert inside == []


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


def test_a_thread_that_could_not_be_started_is_started_later(monkeypatch):
    clock = Clockwork("test")

    def refuse(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        clock.hold()
    ran = queue.SimpleQueue()
    clock.soon(lambda: ran.put("ran"))
    clock.hold()
    assert ran.get(timeout=DEADLINE_SECONDS) == "ran"
    clock.release()
    clock.release()


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


def test_a_child_of_a_process_that_holds_it_has_a_thread_of_its_own():
    clock = Clockwork("test")
    clock.hold()
    gate = threading.Event()
    clock.soon(lambda: gate.wait(DEADLINE_SECONDS))
    waiting = queue.SimpleQueue()
    clock.soon(lambda: waiting.put("asked before the fork"))

    def child():
        gate.set()
        said = waiting.get(timeout=10)
        asked(clock, clock.soon)
        return said

    assert in_child(child) == "asked before the fork"
    gate.set()
    assert waiting.get(timeout=DEADLINE_SECONDS)
    clock.release()
