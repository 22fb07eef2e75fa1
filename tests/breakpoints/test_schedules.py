from __future__ import annotations

import itertools
import math
import os
import queue
import re
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from waiting import wait_until

from diagnose.breakpoints import explore
from diagnose.breakpoints.schedules.locks import MAKERS, RUNNERS
from diagnose.errors import BreakpointError, DiagnoseError, ScheduleError, TargetNotFoundError

# As the messages have it: relative to where pytest runs.
HERE = __file__.removeprefix(f"{Path.cwd()}{os.sep}")
REAL = threading.Lock, threading.RLock, threading._allocate_lock


class Account:
    def __init__(self, balance=100):
        self.balance = balance
        self.lock = threading.Lock()
        self.changed = threading.Condition(threading.RLock())

    def read(self):
        return self.balance

    def write(self, balance):
        self.balance = balance

    def deposit(self, amount):
        before = self.read()
        self.write(before + amount)

    def deposit_alone(self, amount):
        with self.lock:
            self.deposit(amount)

    def deposit_inline(self, amount):
        before = self.balance
        self.balance = before + amount


def passes(trace):
    trace.append("")


POINTS = [f"{__name__}.Account.read", f"{__name__}.Account.write"]
PASSES = [f"{__name__}.passes"]
CODES = {each: each.__code__ for each in (Account.read, Account.write, passes)}


@pytest.fixture(autouse=True)
def nothing_changed():
    """No thread is left, and nothing is patched, whatever a test saw."""
    before = set(threading.enumerate())
    yield
    assert (threading.Lock, threading.RLock, threading._allocate_lock) == REAL
    assert not MAKERS
    assert {each: each.__code__ for each in CODES} == CODES
    assert not set(threading.enumerate()) - before
    assert not RUNNERS


def deposit(account):
    account.deposit(10)


def is_120(account):
    assert account.balance == 120


def failure(*args, **kwargs):
    with pytest.raises(ScheduleError) as caught:
        explore(*args, **kwargs)
    return caught.value


# --- what it finds ---


def test_a_lost_update_is_found():
    error = failure(Account, [deposit, deposit], POINTS, is_120)
    text = str(error)
    assert isinstance(error, AssertionError)
    assert isinstance(error.__cause__, AssertionError)
    assert "12 of 20 schedules failed (all there are)" in text
    assert f"  thread A is deposit ({HERE}:" in text
    assert f"  2. A comes to the call write(<Account 1>, 110), {HERE}:" in text
    assert "self.write(before + amount)" in text
    assert "schedule='AABBBA'" in text
    assert error.report.failing[0] == "AABBBA"
    assert len(error.report.failing) == 12


def test_an_account_with_a_lock_loses_nothing():
    report = explore(Account, [lambda account: account.deposit_alone(10)] * 2, POINTS, is_120)
    assert report.is_complete
    assert report.failing == ()
    assert report.count > 2


def transfer(source, target):
    with source.lock:
        source.read()
        with target.lock:
            source.write(0)


def test_a_deadlock_by_the_order_of_locks_is_found_and_ended():
    threads = [lambda two: transfer(two[0], two[1]), lambda two: transfer(two[1], two[0])]
    error = failure(lambda: (Account(), Account()), threads, POINTS)
    text = str(error)
    assert error.report.is_complete
    assert error.report.failing[0] == "ABBA"
    assert "it was a deadlock: nobody can go on" in text
    assert re.search(r"A is in transfer\(\), .*with target.lock:; it waits for <Lock \d>", text)
    assert f"which thread B holds (made in Account.__init__, {HERE}:" in text
    assert "can't be ended" not in text
    right = [lambda two: transfer(two[0], two[1])] * 2
    assert not explore(lambda: (Account(), Account()), right, POINTS).failing


def test_a_deadlock_of_locks_that_are_older_is_found():
    mine, theirs = threading.Lock(), threading.Lock()

    def one(trace):
        with mine:
            passes(trace)
            with theirs:
                pass

    def other(trace):
        with theirs:
            passes(trace)
            with mine:
                pass

    error = failure(list, [one, other], PASSES, timeout=1.5)
    left = [each for each in threading.enumerate() if each.name.startswith("schedule:")]
    # This test knows the locks, so it can let them go.
    mine.release()
    for each in left:
        each.join(10)
    assert len(left) == 2
    assert "may be a deadlock" in str(error)
    assert "can't be ended" in str(error)
    assert "with theirs:" in str(error)


def test_after_threads_that_can_not_be_ended_no_others_are_run():
    def wait(account):
        account.read()
        if account.balance:
            older.acquire()  # no schedule knows of it

    def take(account):
        account.write(0)
        account.read()

    older = threading.Lock()
    older.acquire()
    error = failure(Account, [take, wait], POINTS, lambda _: 1 / 0, timeout=1.5)
    left = [each for each in threading.enumerate() if each.name == "schedule:B"]
    older.release()
    for each in left:
        each.join(10)
    assert len(left) == 1
    assert "can't be ended: schedule:B are left" in str(error)
    assert not error.report.is_complete


def test_locks_that_are_older_keep_threads_apart_too():
    older = threading.Lock()

    def work(account):
        with older:
            account.deposit(10)

    report = explore(Account, [work, work], POINTS, is_120)
    assert not report.failing
    assert report.count > 2


def test_a_lock_that_a_thread_takes_twice_is_a_deadlock():
    def twice(account):
        with account.lock, account.lock:
            pass

    error = failure(Account, [twice, deposit], POINTS, timeout=1, samples=1)
    assert "which thread A holds" in str(error)


def test_reentrant_locks_can_be_taken_twice():
    def twice(account):
        with account.changed, account.changed:
            account.deposit(10)

    assert not explore(Account, [twice, twice], POINTS, is_120).failing


def test_a_notification_that_comes_too_early_is_found():
    def wait(account):
        account.read()
        with account.changed:
            account.changed.wait()

    def notify(account):
        with account.changed:
            account.changed.notify_all()

    error = failure(Account, [wait, notify], POINTS[:1], timeout=1)
    # Before the first step of A, between its steps, and not after the second.
    assert error.report.failing == ("BAA", "ABA")
    assert f"in wait(), {HERE}" in str(error)
    assert "account.changed.wait(); it waits for a notification" in str(error)


def test_queues_and_events_let_others_go_on():
    def put(subject):
        passes(subject[2])
        subject[0].put(1)
        assert subject[1].wait(10)

    def get(subject):
        assert subject[0].get() == 1
        passes(subject[2])
        subject[1].set()

    report = explore(lambda: (queue.Queue(), threading.Event(), []), [put, get], PASSES)
    assert not report.failing
    assert report.is_complete


def test_a_wait_with_a_time_ends_when_nobody_else_can_go_on():
    def wait(event):
        passes([])
        assert not event.wait(0.01)

    assert not explore(threading.Event, [wait, wait], PASSES).failing


def test_threads_that_threads_start_are_waited_for():
    def work(account):
        helper = threading.Thread(target=account.deposit, args=(10,))
        helper.start()
        account.read()
        helper.join(10)
        assert not helper.is_alive()

    assert not explore(Account, [work, deposit], POINTS[:1], samples=4).failing


def waits_for_a_notification(letter):
    """Whether the thread stands there, and nobody has notified it yet."""
    return any(
        each.letter == letter and each.state == "waiting" and each.lock and not each.lock.is_free
        for each in list(RUNNERS.values())
    )


def test_a_step_goes_on_when_a_helper_frees_what_the_thread_waits_for():
    def work(trace):
        is_free = threading.Event()

        def free():
            wait_until(lambda: waits_for_a_notification("A"))
            is_free.set()

        helper = threading.Thread(target=free)
        helper.start()
        assert is_free.wait(30)
        passes(trace)
        helper.join(30)

    error = failure(list, [work, passes], PASSES, lambda _: 1 / 0, schedule="ABAB")
    assert "1. A comes to the call passes" in str(error)
    assert "waits for" not in str(error)


def test_who_waits_for_a_thread_of_the_program_goes_on_as_soon_as_that_lets_it():
    made = []

    def make():
        made.append(threading.Event())
        return made[-1]

    def free():
        # The other one has ended, so nothing but this can let the first one go on.
        wait_until(lambda: len(RUNNERS) == 1 and waits_for_a_notification("A"))
        made[-1].set()

    helper = threading.Thread(target=free)
    helper.start()
    began = time.monotonic()
    explore(make, [lambda event: event.wait(), passes_event], PASSES, schedule="ABB", timeout=60)
    helper.join(30)
    assert time.monotonic() - began < 30


def passes_event(event):
    passes([])


def test_threads_that_try_for_a_lock_again_and_again_are_ended():
    def hold(account):
        with account.lock:
            account.read()

    def spin(account):
        while True:
            account.lock.acquire(blocking=False)

    error = failure(Account, [hold, spin], POINTS[:1], timeout=0.1, schedule="AB")
    assert "nobody came to a point or to an end within 0.1 s" in str(error)
    assert "can't be ended" not in str(error)


def test_what_threads_do_without_a_turn_is_told():
    lock = threading.Lock()

    def work(trace):
        with lock:
            passes(trace)
        passes(trace)

    error = failure(list, [work, work], PASSES, lambda _: 1 / 0, schedule="ABAABB")
    text = str(error)
    assert re.search(r"2\. B is blocked in work\(\), .*: with lock:", text)
    assert re.search(r"3\. A comes to the call passes.*; then B comes to the call passes", text)


def test_what_a_thread_raises_is_a_failure():
    def check_first(trace):
        passes(trace)
        if len(trace) > 1:
            raise LookupError("too many")

    error = failure(list, [check_first, passes], PASSES)
    assert isinstance(error.__cause__, LookupError)
    assert f"raises LookupError: too many, {HERE}:" in str(error)
    assert ': raise LookupError("too many")' in str(error)
    assert all(each.endswith("A") for each in error.report.failing)


def test_what_a_thread_raises_is_told_of_if_its_text_fails():
    class UntoldError(Exception):
        def __str__(self):
            raise LookupError

    def fail(trace):
        passes(trace)
        raise UntoldError

    error = failure(list, [fail, passes], PASSES)
    assert "UntoldError, whose str raises LookupError" in str(error)


def test_a_lock_that_is_never_released_is_told_of():
    error = failure(
        Account,
        [lambda account: account.lock.acquire(), deposit],
        POINTS,
        lambda account: account.lock.acquire(),
    )
    assert "thread A ended while it held the Lock that was made in Account.__init__" in str(error)


def test_threads_that_never_come_to_an_end_are_ended():
    def spin(trace):
        while True:
            passes(trace)

    assert "no end after 10,000 steps" in str(failure(list, [spin, passes], PASSES, samples=1))


def test_threads_that_do_not_come_to_a_point_are_a_failure():
    is_enough = threading.Event()

    def busy(trace):
        while not is_enough.is_set():
            pass

    error = failure(list, [busy, passes], PASSES, timeout=0.1)
    assert "nobody came to a point or to an end within 0.1 s" in str(error)
    left = [each for each in threading.enumerate() if each.name == "schedule:A"]
    is_enough.set()
    for each in left:
        each.join(10)


# --- which schedules there are ---


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 1), (2, 1), (3, 4), (0, 5)])
def test_two_threads_have_as_many_schedules_as_there_are_orders(first, second):
    def times(number):
        return lambda trace: [passes(trace) for _ in range(number)]

    seen = set()

    def one(trace):
        for _ in range(first):
            trace.append("A")
            passes([])
        trace.append("A")

    def other(trace):
        for _ in range(second):
            trace.append("B")
            passes([])
        trace.append("B")

    points = PASSES if first or second else []
    report = explore(list, [one, other], points, lambda trace: seen.add("".join(trace)))
    assert report.count == math.comb(first + second + 2, first + 1) == len(seen)
    assert report.is_complete


def test_three_threads_have_as_many_schedules_as_there_are_orders():
    report = explore(list, [passes] * 3, PASSES)
    assert report.count == math.factorial(6) // 2**3
    error = failure(Account, [deposit] * 3, POINTS, lambda account: is_130(account), samples=300)
    assert set(error.report.failing[0]) == set("ABC")


def is_130(account):
    assert account.balance == 130


def times_taken(schedule):
    """How often a thread had to stop that could have gone on."""
    return sum(
        one != other and one in schedule[at:]
        for at, (one, other) in enumerate(itertools.pairwise(schedule), 1)
    )


def test_those_with_the_fewest_changes_come_first():
    order = []

    def noted(letter):
        def work(trace):
            for _ in range(3):
                trace.append(letter)
                passes([])
            trace.append(letter)

        return work

    explore(list, [noted("A"), noted("B")], PASSES, lambda trace: order.append("".join(trace)))
    assert order[:2] == ["AAAABBBB", "BBBBAAAA"]
    assert len(order) == 70
    taken = [times_taken(each) for each in order]
    assert taken == sorted(taken)
    assert taken[-1] == 6


def test_the_same_seed_gives_the_same_sample_and_another_one_another():
    def run(seed):
        error = failure(Account, [deposit] * 3, POINTS, is_130, samples=60, seed=seed)
        assert error.report.count == 60
        assert not error.report.is_complete
        assert f"seed {seed}" in str(error)
        # pytest puts the address of the account into the text of an assertion.
        return error.report.failing, re.sub(r" at 0x\w+", "", str(error))

    assert run(1) == run(1)
    assert run(1)[0] != run(2)[0]


def test_a_sample_has_no_schedule_twice():
    error = failure(Account, [deposit] * 3, POINTS, lambda _: 1 / 0, samples=200)
    assert len(set(error.report.failing)) == 200


def test_all_are_run_where_there_are_no_more_than_samples():
    assert failure(Account, [deposit] * 2, POINTS, is_120, samples=41).report.count == 20
    assert failure(Account, [deposit] * 2, POINTS, is_120, samples=20).report.is_complete
    assert failure(Account, [deposit] * 2, POINTS, is_120, samples=None).report.is_complete
    assert not failure(Account, [deposit] * 2, POINTS, is_120, samples=19).report.is_complete


def test_one_schedule_can_be_run_alone():
    found = failure(Account, [deposit, deposit], POINTS, is_120)
    again = failure(Account, [deposit, deposit], POINTS, is_120, schedule=found.report.failing[0])
    assert again.report.count == 1
    assert again.report.failing == found.report.failing[:1]
    steps = [line for line in str(found).splitlines() if line[:4].strip().rstrip(".").isdigit()]
    assert len(steps) == 6
    assert all(line in str(again) for line in steps)
    assert explore(Account, [deposit, deposit], POINTS, is_120, schedule="AAABBB").count == 1


def test_every_failing_schedule_fails_again_and_no_other_one_does():
    failing = set(failure(Account, [deposit, deposit], POINTS, is_120).report.failing)
    for number in range(64):
        schedule = f"{number:06b}".replace("0", "A").replace("1", "B")
        if schedule.count("A") == 3:
            try:
                explore(Account, [deposit, deposit], POINTS, is_120, schedule=schedule)
            except ScheduleError:
                assert schedule in failing
            else:
                assert schedule not in failing


def test_a_schedule_may_have_its_beginning_alone():
    error = failure(Account, [deposit, deposit], POINTS, is_120, schedule="AAB")
    assert error.report.failing == ("AABBBA",)


def test_a_schedule_that_does_not_fit_is_told_of():
    with pytest.raises(ScheduleError, match="in step 4 A can't go on, only B can"):
        explore(Account, [deposit, deposit], POINTS, is_120, schedule="AAAABBB")


# --- points ---


@pytest.mark.parametrize(
    "points",
    [
        [(Account, "read"), (Account, "write")],
        [(f"{__name__}.Account.read", "return"), (f"{__name__}.Account.write", "end")],
        [((Account, "read"), "return"), ((Account, "write"), "call")],
        [(f"{__name__}.Account.deposit", "line:+2"), (Account, "read")],
        [((Account, "deposit"), "line:+1"), ((Account, "deposit"), "line:+2")],
        [(f"{__name__}.Account.deposit", f"line:{Account.deposit.__code__.co_firstlineno + 2}"),
         POINTS[0]],
    ],
)  # fmt: skip
def test_points_are_given_as_breakpoints_are(points):
    before = dict(vars(Account))
    error = failure(Account, [deposit, deposit], points, is_120)
    assert error.report.count == 20
    assert vars(Account) == before


def test_a_line_is_shown_as_it_is():
    error = failure(
        Account,
        [lambda account: account.deposit_inline(10)] * 2,
        [(f"{__name__}.Account.deposit_inline", "line:+2")],
        is_120,
    )
    assert f"comes to a line of deposit_inline(), {HERE}:" in str(error)
    assert ": self.balance = before + amount" in str(error)
    assert error.report.count == 6


def test_threads_that_are_not_of_the_schedule_pass():
    account = Account()

    def check(mine):
        thread = threading.Thread(target=account.deposit, args=(1,))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        mine.deposit(0)

    report = explore(Account, [deposit, deposit], POINTS, check)
    assert account.balance == 100 + report.count


def test_a_point_that_nobody_comes_to_is_told_of():
    with pytest.raises(BreakpointError, match=r"no thread came to .*passes at 'call'"):
        explore(Account, [deposit, deposit], [*POINTS, *PASSES])


# --- whatever happens ---


def test_an_interrupt_in_check_ends_it():
    def check(account):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explore(Account, [deposit, deposit], POINTS, check)


def test_an_interrupt_while_a_thread_runs_ends_it():
    def interrupt(account):
        signal.raise_signal(signal.SIGINT)
        account.changed.acquire()
        with account.changed:
            account.changed.wait(30)

    def handle(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        with pytest.raises(KeyboardInterrupt):
            explore(Account, [interrupt, interrupt], [], timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_of_make_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError):
        explore(lambda: 1 / 0, [deposit, deposit], POINTS)


def test_what_ends_the_test_in_check_goes_through():
    with pytest.raises(pytest.fail.Exception) as caught:
        explore(Account, [deposit, deposit], POINTS, lambda _: pytest.fail("no"))
    assert caught.value.__notes__ == ["in schedule 'AAABBB' of diagnose.breakpoints.explore"]


def test_threads_that_catch_everything_are_ended_too():
    def stubborn(account):
        for _ in range(3):
            try:
                account.read()
            except BaseException:
                pass

    def fails(account):
        raise LookupError

    assert isinstance(failure(Account, [stubborn, fails], POINTS[:1]).__cause__, LookupError)


def test_threads_that_do_something_else_each_time_are_told_of():
    times = iter(range(100))

    def moody(trace):
        if next(times) == 0:
            passes(trace)
            passes(trace)

    with pytest.raises(ScheduleError, match="the threads do not always do the same"):
        explore(list, [moody, passes], PASSES)


def test_explorations_do_not_run_in_each_other():
    with pytest.raises(ScheduleError, match="another exploration runs"):
        explore(list, [passes, passes], PASSES, lambda _: explore(list, [passes, passes], PASSES))


def test_unknown_points_are_refused_and_the_others_put_back():
    with pytest.raises(TargetNotFoundError):
        explore(Account, [deposit, deposit], [POINTS[0], f"{__name__}.Account.reed"])
    with pytest.raises(DiagnoseError):
        explore(Account, [deposit, deposit], [POINTS[0], (POINTS[1], "line:+99")])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"threads": [deposit]}, TypeError),
        ({"threads": [deposit] * 4}, TypeError),
        ({"threads": [deposit, 1]}, TypeError),
        ({"points": [3]}, DiagnoseError),
        ({"points": [(POINTS[0], "middle")]}, ValueError),
        ({"samples": 0}, ValueError),
        ({"schedule": "ABC"}, ValueError),
        ({"timeout": 0}, ValueError),
    ],
)
def test_wrong_arguments_are_refused(changes, error):
    given = {"make": Account, "threads": [deposit, deposit], "points": POINTS, **changes}
    with pytest.raises(error):
        explore(**given)


def test_locks_imported_by_name_are_known_too(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Lock", threading.Lock, raising=False)

    def make():
        return Lock(), []  # noqa: F821

    def work(subject):
        with subject[0]:
            passes(subject[1])

    def twice(subject):
        with subject[0], subject[0]:
            passes(subject[1])

    assert not explore(make, [work, work], PASSES).failing
    assert "<Lock 1>" in str(failure(make, [work, twice], PASSES, timeout=1, samples=1))
    assert sys.modules[__name__].Lock is REAL[0]


# --- the documentation ---


def test_the_page_says_what_is_so(tmp_path, monkeypatch):
    page = (Path(__file__).resolve().parents[2] / "docs" / "schedules.md").read_text()
    code = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in code] == ["bank.py", "test_bank.py"]
    for name, text in code:
        (tmp_path / name).write_text(f"# {name}\n{text}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bank", raising=False)
    # An import would have pytest put its own text in place of the assertion's.
    tests = runpy.run_path("test_bank.py")

    said = []
    for name, test in tests.items():
        if name.startswith("test_"):
            with pytest.raises(ScheduleError) as caught:
                test()
            said.append(str(caught.value))
    monkeypatch.delitem(sys.modules, "bank")
    shown = re.findall(r"```text\n(.*?)\n```", page, re.DOTALL)
    assert said == shown
    assert len(shown) == 2
