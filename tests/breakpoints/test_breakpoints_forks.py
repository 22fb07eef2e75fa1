from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from modules import loaded
from waiting import in_child, wait_until

from diagnose.breakpoints import AsyncBreakpoint, Breakpoint, forks
from diagnose.errors import BreakpointError, BreakpointTimeoutError

SOURCE = """
def double(x, *, more=0):
    return x * 2 + more

def spread(*all):
    return 3

async def later(x):
    return x
"""
SECONDS = 30.0
CODE_OF_TIMEOUT = 77


@pytest.fixture(autouse=True)
def shop():
    with loaded("stopped_shop", SOURCE) as module:
        yield module


@pytest.fixture(autouse=True)
def nothing_of_forks_is_left():
    descriptors, threads = open_descriptors(), set(threading.enumerate())
    yield
    assert open_descriptors() == descriptors
    assert not set(threading.enumerate()) - threads
    assert not forks.children
    assert not forks.watched


def open_descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def at_double(**given):
    return Breakpoint("stopped_shop.double", **{"timeout": SECONDS, **given})


class Child:
    """A forked child, whose exit code is what ``work`` returns."""

    def __init__(self, work):
        self.pid = os.fork()
        if self.pid == 0:
            # No test that fails leaves a process that waits for it forever.
            signal.alarm(2 * int(SECONDS))
            code = 99
            try:
                code = work()
            except BreakpointTimeoutError:
                code = CODE_OF_TIMEOUT
            except BaseException as error:
                print(repr(error), file=sys.stderr)
            finally:
                os._exit(code)

    def end(self):
        descriptor = os.pidfd_open(self.pid)
        try:
            has_ended = select.select([descriptor], [], [], SECONDS)[0]
        finally:
            os.close(descriptor)
        if not has_ended:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        assert has_ended, "the child did not end"
        return os.waitstatus_to_exitcode(status)


def test_a_child_stops_and_its_parent_sees_what_it_called(shop):
    with at_double() as bp:
        child = Child(lambda: shop.double(3, more=1))
        call = bp.wait()
        assert (call.name, call.args, call.kwargs) == ("double", (3,), {"more": 1})
        assert call.thread.pid == child.pid
        assert str(call) == f"double(3, more=1) in 'MainThread of process {child.pid}'"
        assert bp.standing == [call]
        assert (bp.calls, bp.hits, bp.seen) == (1, 1, [call])
        assert bp.stackframe is None
        assert os.waitpid(child.pid, os.WNOHANG) == (0, 0)
        bp.release()
        assert child.end() == 7
        assert bp.standing == []


def test_children_of_multiprocessing_stop(shop):
    context = multiprocessing.get_context("fork")
    with at_double() as bp:
        process = context.Process(target=shop.double, args=(1.5,))
        process.start()
        assert bp.wait().args == (1.5,)
        assert process.is_alive()
        bp.release()
        process.join(SECONDS)
        assert process.exitcode == 0
        process.close()


def test_a_pool_of_children_stops_again_and_again(shop):
    context = multiprocessing.get_context("fork")
    with at_double() as bp:
        with context.Pool(2) as pool:
            results = pool.map_async(shop.double, [1, 2, 3, 4], chunksize=1)
            for _ in range(2):
                wait_until(lambda: len(bp.standing) == 2)
                bp.release()
            assert results.get(SECONDS) == [2, 4, 6, 8]
            pool.close()
            pool.join()
        assert bp.hits == 4


def test_several_children_stand_at_once_and_go_on_at_one_release(shop):
    with at_double() as bp:
        children = [Child(lambda number=number: shop.double(number)) for number in range(5)]
        bp.wait(hits=5)
        assert sorted(call.args for call in bp.standing) == [(n,) for n in range(5)]
        assert sorted(call.number for call in bp.seen) == [1, 2, 3, 4, 5]
        assert {call.thread.pid for call in bp.seen} == {child.pid for child in children}
        bp.release()
        assert [child.end() for child in children] == [0, 2, 4, 6, 8]


def test_threads_of_the_parent_and_of_a_child_stand_side_by_side(shop):
    def work():
        threads = [threading.Thread(target=shop.double, args=(n,), name=f"t{n}") for n in (1, 2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return 5

    with at_double() as bp:
        child = Child(work)
        bp.wait(hits=2)
        started = bp.start_thread(shop.double, 3)
        bp.wait(hits=3)
        assert {call.thread.name for call in bp.standing} == {
            f"t1 of process {child.pid}",
            f"t2 of process {child.pid}",
            started.name,
        }
        bp.release()
        assert child.end() == 5
    assert started.result == 6


def test_the_second_hit_of_a_child_stops_too(shop):
    with at_double() as bp:
        child = Child(lambda: shop.double(1) + shop.double(2))
        for number in (1, 2):
            assert bp.wait(hits=number).args == (number,)
            assert len(bp.standing) == 1
            bp.release()
        assert child.end() == 6


def test_a_release_may_come_before_the_hit(shop):
    go_on, write = os.pipe()
    with at_double() as bp:
        child = Child(lambda: os.read(go_on, 1) and shop.double(4))
        bp.release()
        os.write(write, b".")
        assert child.end() == 8
        assert bp.hits == 1
    os.close(go_on)
    os.close(write)


def test_only_calls_that_meet_the_predicate_stop_and_all_are_seen(shop):
    with at_double(condition=lambda x: x == 2) as bp:
        child = Child(lambda: shop.double(1) + shop.double(2) + shop.double(3))
        assert bp.wait().args == (2,)
        bp.release()
        assert child.end() == 12
        assert [(call.args, call.is_hit) for call in bp.seen] == [
            ((1,), False),
            ((2,), True),
            ((3,), False),
        ]
        assert (bp.calls, bp.hits) == (3, 1)


def test_numbers_are_those_of_all_processes_together(shop):
    with at_double(condition=2) as bp:
        shop.double(10)
        assert Child(lambda: shop.double(11)).end() == 22
        child = Child(lambda: shop.double(12))
        assert bp.wait().args == (12,)
        bp.release()
        assert child.end() == 24
        shop.double(13)
        assert [call.number for call in bp.seen] == [1, 2, 3, 4]


def test_conditions_that_several_processes_meet_are_all_met(shop):
    with at_double(condition=[lambda x: x == 1, lambda x: x == 2]) as bp:
        children = [Child(lambda number=number: shop.double(number)) for number in (1, 2)]
        bp.wait(hits=2)
        bp.release()
        assert [child.end() for child in children] == [2, 4]


def test_hits_at_most_counts_those_of_all_processes(shop):
    bp = at_double()
    bp.hits_at_most = 1
    with bp:
        first = Child(lambda: shop.double(1))
        bp.wait()
        assert Child(lambda: shop.double(2)).end() == 4
        assert (bp.calls, bp.hits) == (2, 1)
        bp.release()
        assert first.end() == 2


def test_a_predicate_that_raises_in_a_child_is_told():
    bp = at_double(condition=lambda x: x.nothing)
    with pytest.raises(BreakpointError, match=r"raised AttributeError: 'int' object has no"):
        with bp:
            assert in_child(lambda: sys.modules["stopped_shop"].double(1)) == "2"
            bp.wait()


def test_an_error_is_raised_in_the_child_and_counts_in_the_parent(shop):
    def work():
        try:
            shop.double(1)
        except OSError as error:
            return error.errno
        return 0

    with Breakpoint.error(OSError(28, "full"), "stopped_shop.double", timeout=SECONDS) as bp:
        assert Child(work).end() == 28
        assert bp.wait().args == (1,)
        assert (bp.hits, bp.standing) == (1, [])


def test_results_and_exceptions_are_told_as_texts_where_they_are_not_plain(shop):
    class Odd:
        def __mul__(self, other):
            return self

        def __add__(self, other):
            return self

        def __repr__(self):
            return "an odd one"

    with at_double(event="return") as bp:
        child = Child(lambda: (shop.double(Odd()), 5)[1])
        call = bp.wait()
        assert "double(an odd one, more=0) in" in str(call)
        assert str(call).endswith(", returning an odd one")
        bp.release()
        assert child.end() == 5
    with at_double(event="error") as bp:
        child = Child(lambda: shop.double({"a": 1}))
        call = bp.wait()
        assert call.args == ({"a": 1},)
        assert isinstance(call.exception, Exception)
        assert ", raising TypeError(" in str(call)
        bp.release()
        assert child.end() == 99


def test_arguments_of_any_size_arrive(shop):
    many = tuple(range(300_000))
    with Breakpoint("stopped_shop.spread", timeout=SECONDS) as bp:
        child = Child(lambda: shop.spread(*many))
        assert bp.wait().args == many
        bp.release()
        assert child.end() == 3
        child = Child(lambda: shop.spread(many))
        assert str(bp.wait(hits=2)).startswith("spread((0, 1, 2, 3, 4, 5, ...)) in ")
        bp.release()
        assert child.end() == 3


def test_the_message_says_that_nobody_called_and_what_was_called_instead(shop):
    with at_double() as bp:
        assert Child(lambda: 0).end() == 0
        with pytest.raises(BreakpointTimeoutError, match="it was not called at all"):
            bp.wait(0.01)
        bp.hits_at_most = 0
        assert Child(lambda: shop.double(1)).end() == 2
        with pytest.raises(BreakpointTimeoutError, match=r"1\. double\(1, more=0\) in 'Main"):
            bp.wait(0.01)
    with pytest.raises(BreakpointError, match=r"x == 5.*\n  1\. double\(1, more=0\) in"):
        with at_double(condition=lambda x: x == 5):
            assert Child(lambda: shop.double(1)).end() == 2


def test_a_child_that_is_killed_stands_no_more(shop):
    with at_double() as bp:
        killed, other = (Child(lambda number=number: shop.double(number)) for number in (1, 2))
        bp.wait(hits=2)
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.end() == -signal.SIGKILL
        wait_until(lambda: [call.args for call in bp.standing] == [(2,)])
        bp.release()
        assert other.end() == 4


def test_a_child_that_nobody_releases_gets_an_error_and_stands_no_more(shop):
    bp = at_double()
    with bp:
        bp.timeout = 0.05  # the child's: it has a copy
        child = Child(lambda: shop.double(1))
        bp.timeout = SECONDS
        assert bp.wait().args == (1,)
        assert child.end() == CODE_OF_TIMEOUT
        wait_until(lambda: not bp.standing)
        assert bp.hits == 1


def test_leaving_the_block_lets_children_go(shop):
    with at_double() as bp:
        children = [Child(lambda: shop.double(3)) for _ in range(3)]
        bp.wait(hits=3)
    assert [child.end() for child in children] == [6, 6, 6]


def test_a_block_that_is_left_by_an_error_lets_children_go(shop):
    with pytest.raises(ZeroDivisionError), at_double() as bp:
        child = Child(lambda: shop.double(3))
        bp.wait()
        1 / 0
    assert child.end() == 6


def test_a_child_that_outlives_the_block_passes(shop):
    go_on, write = os.pipe()
    with at_double() as bp:
        child = Child(lambda: os.read(go_on, 1) and shop.double(4) + shop.double(5))
        bp.release()
        shop.double(1)
    os.write(write, b".")
    assert child.end() == 18
    os.close(go_on)
    os.close(write)


def test_the_parents_death_lets_a_child_go(shop):
    """The parent is here a child of ours, and is killed."""
    read, write = os.pipe()

    def parent():
        with at_double() as bp:
            Child(lambda: os.write(write, b"%d" % shop.double(21)) and 0)
            bp.wait()
            os.write(write, b"stands ")
            signal.pause()

    child = Child(parent)
    assert os.read(read, 100) == b"stands "
    os.kill(child.pid, signal.SIGKILL)
    assert child.end() == -signal.SIGKILL
    assert os.read(read, 100) == b"42"
    os.close(read)
    os.close(write)


def test_a_grandchild_stops_at_the_same_release(shop):
    with at_double() as bp:
        child = Child(lambda: Child(lambda: shop.double(3)).end() + shop.double(1))
        call = bp.wait()
        assert call.args == (3,)
        assert call.thread.pid != child.pid
        bp.release()
        assert bp.wait(hits=2).thread.pid == child.pid
        bp.release()
        assert child.end() == 8


def test_a_grandchild_outlives_the_child_and_still_stops(shop):
    read, write = os.pipe()

    def work():
        Child(lambda: os.write(write, b"%d" % shop.double(3)) and 0)
        return 0

    with at_double() as bp:
        assert Child(work).end() == 0
        assert bp.wait().args == (3,)
        bp.release()
        assert os.read(read, 10) == b"6"
    os.close(read)
    os.close(write)


def test_a_child_may_have_breakpoints_of_its_own(shop):
    def work():
        with at_double() as own:
            thread = own.start_thread(shop.double, 4)
            assert own.wait(hits=1).args == (4,)
            own.release()
            own.join()
            child = Child(lambda: shop.double(5))
            assert own.wait(hits=2).args == (5,)
            own.release()
            return thread.result + child.end()

    with Breakpoint("stopped_shop.double", condition=lambda x: x == 99, timeout=SECONDS) as bp:
        assert Child(work).end() == 18
        assert [call.args for call in bp.seen] == [(4,), (5,)]
        bp.release()
        shop.double(99)


def test_a_child_may_leave_the_block_and_waits_for_nobody(shop):
    go_on = threading.Event()
    with contextlib.ExitStack() as stack:
        bp = stack.enter_context(at_double(condition=lambda x: x == 1))
        bp.start_thread(go_on.wait)  # the child has a copy of it that never ends

        def leave():
            started = time.monotonic()
            stack.close()
            assert time.monotonic() - started < SECONDS / 3
            assert not forks.watched
            return shop.double(1)

        assert Child(leave).end() == 2
        assert (bp.calls, bp.hits) == (0, 0)
        go_on.set()
        bp.release()
        shop.double(1)


def test_a_fork_is_possible_while_another_thread_has_the_lock(shop):
    has_it, enough = threading.Event(), threading.Event()

    with at_double() as bp:

        def hold():
            with bp._session.stop.monitor.lock:
                has_it.set()
                enough.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        has_it.wait()
        child = Child(lambda: shop.double(1) + shop.double(2))
        enough.set()
        thread.join()
        for hits in (1, 2):
            bp.wait(hits=hits)
            bp.release()
        assert child.end() == 6


def test_threads_may_fork_at_once(shop):
    codes = []

    def fork(number):
        codes.append(Child(lambda: shop.double(number)).end())

    with at_double() as bp:
        threads = [threading.Thread(target=fork, args=(number,)) for number in range(8)]
        for each in threads:
            each.start()
        bp.wait(hits=8)
        assert len(bp.standing) == 8
        bp.release()
        for each in threads:
            each.join()
    assert sorted(codes) == [number * 2 for number in range(8)]


def test_a_fork_while_others_stand_leaves_them_standing(shop):
    with at_double() as bp:
        first = Child(lambda: shop.double(1))
        bp.wait()
        assert Child(lambda: 0).end() == 0
        assert len(bp.standing) == 1
        bp.release()
        assert first.end() == 2


def test_every_breakpoint_has_its_own_children(shop):
    with at_double(event="call") as at_call, at_double(event="return") as at_return:
        child = Child(lambda: shop.double(5))
        assert at_call.wait().result is None
        assert at_return.calls == 0
        at_call.release()
        assert at_return.wait().result == 10
        at_return.release()
        assert child.end() == 10


def test_nothing_is_paid_without_a_fork(shop):
    descriptors, threads = open_descriptors(), threading.active_count()
    with at_double() as bp:
        assert (open_descriptors(), threading.active_count()) == (descriptors, threads)
        bp.release()
        shop.double(1)
        assert (open_descriptors(), threading.active_count()) == (descriptors, threads)


def test_no_descriptor_is_left_after_many_forks(shop):
    with at_double() as bp:
        descriptors = open_descriptors()
        for number in range(50):
            child = Child(lambda number=number: shop.double(number))
            bp.wait(hits=number + 1)
            bp.release()
            assert child.end() == number * 2
        # Those that wake the thread that answered are closed at the next fork, or at the end.
        wait_until(lambda: open_descriptors() <= descriptors + 2)


def test_a_child_has_no_descriptor_of_other_children(shop):
    with at_double() as bp:
        others = [Child(lambda: shop.double(1)) for _ in range(5)]
        bp.wait(hits=5)
        before = open_descriptors()
        assert Child(lambda: before - open_descriptors()).end() == 5 + 5 + 2 - 1
        bp.release()
        assert [child.end() for child in others] == [2] * 5


def test_a_fork_that_fails_leaves_nothing(shop):
    code = """
import os, resource, threading
from diagnose.breakpoints import Breakpoint
import json
os.setuid(65534) if os.getuid() == 0 else None
with Breakpoint("json.loads") as bp:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    try:
        os.fork()
    except OSError:
        print("failed", end=" ")
    bp.release()
    json.loads("1")
print(before == (len(os.listdir("/proc/self/fd")), threading.active_count()))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert answer.stdout == "failed True\n", answer.stderr


def test_a_child_that_becomes_another_program_is_gone(shop):
    with at_double() as bp:
        subprocess.run(["/bin/true"], preexec_fn=lambda: None, check=True)
        wait_until(lambda: not forks.children)
        bp.release()
        shop.double(1)


def test_without_sockets_a_child_passes_and_it_is_said(shop, monkeypatch, caplog):
    with at_double() as bp, monkeypatch.context() as patch, caplog.at_level(logging.WARNING):

        def fail(*_):
            raise OSError(24, "too many open files")

        patch.setattr("socket.socketpair", fail)
        assert Child(lambda: shop.double(4)).end() == 8
        bp.release()
        shop.double(1)
    assert "a forked child will pass" in caplog.text


@pytest.mark.filterwarnings("default:This process:DeprecationWarning")
def test_no_fork_warns_of_threads_on_account_of_breakpoints():
    code = """
import os, warnings, json, sys
from diagnose.breakpoints import Breakpoint
warnings.simplefilter("error")
sys.unraisablehook = lambda it: (print("warned:", it.exc_value, flush=True), os._exit(1))
with Breakpoint("json.loads") as bp:
    for number in range(5):
        if os.fork() == 0:
            json.loads("1")
            os._exit(0)
    bp.wait(hits=5)
    bp.release()
    for number in range(5):
        os.wait()
print("well")
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert (answer.stdout, answer.stderr) == ("well\n", "")


def test_tasks_of_a_child_pass(shop):
    async def test():
        async with Breakpoint("stopped_shop.later", timeout=SECONDS) as bp:
            assert isinstance(bp, AsyncBreakpoint)
            context = multiprocessing.get_context("fork")
            process = context.Process(target=run)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                process.start()
            await asyncio.to_thread(process.join, SECONDS)
            assert process.exitcode == 0
            process.close()
            assert bp.calls == 0
            bp.release()
            await shop.later(1)

    def run():
        asyncio._set_running_loop(None)
        assert asyncio.run(shop.later(2)) == 2

    asyncio.run(test())


def test_an_async_block_stops_children_at_a_plain_function(shop):
    async def test():
        async with at_double() as bp:
            child = Child(lambda: shop.double(2))
            assert (await bp.wait()).args == (2,)
            bp.release()
            return await asyncio.to_thread(child.end)

    assert asyncio.run(test()) == 4
