"""Breakpoints for tasks: coroutines stop when they are awaited, and the event loop goes on."""

from __future__ import annotations

import asyncio
import functools

import pytest
from modules import loaded

from diagnose.breakpoints import AsyncBreakpoint, Breakpoint
from diagnose.errors import BreakpointError, BreakpointTimeoutError

SOURCE = """
import asyncio

class Account:
    def __init__(self):
        self.balance = 0

    async def load(self):
        return self.balance

    async def save(self, balance):
        self.balance = balance

    async def deposit(self, amount):
        balance = await self.load()
        try:
            await self.save(balance + amount)
        except OSError as error:
            return error.args[0]
        return balance + amount

    async def broken(self):
        raise LookupError("no account")

    async def history(self):
        for number in range(2):
            yield number

    def look(self):
        return self.balance
"""


@pytest.fixture
def bank():
    with loaded("bp_bank", SOURCE) as module:
        yield module


def in_a_loop(test):
    """Run a coroutine function as a test."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return run


@in_a_loop
async def test_a_task_stands_and_others_go_on(bank):
    account = bank.Account()
    async with Breakpoint("bp_bank.Account.save", condition=0) as bp:
        task = bp.start_task(account.deposit, 10)
        call = await bp.wait()
        assert call.args == (account, 10)
        assert bp.stackframe.f_locals["balance"] == 10
        assert await account.deposit(5) == 5  # the second call: it passes
        assert isinstance(bp, AsyncBreakpoint)
        bp.release()
        assert await task == 10
    assert account.balance == 10  # the 5 are lost


@pytest.mark.parametrize("event", ["call", "return", "end", "line:+1"])
@pytest.mark.parametrize("pair", [False, True])
@in_a_loop
async def test_it_stops_at_every_event(bank, event, pair):
    account = bank.Account()
    target = (bank.Account, "save") if pair else "bp_bank.Account.save"
    async with Breakpoint(target, event) as bp:
        task = bp.start_task(account.deposit, 10)
        await bp.wait()
        assert account.balance == (10 if event in {"return", "end"} else 0)
        bp.release()
    assert task.result == 10
    assert account.balance == 10


@in_a_loop
async def test_it_stops_where_a_coroutine_raises(bank):
    async with Breakpoint("bp_bank.Account.broken", "error") as bp:
        task = bp.start_task(bank.Account().broken)
        assert isinstance((await bp.wait()).exception, LookupError)
        bp.release()
    assert isinstance(task.exception, LookupError)


@in_a_loop
async def test_a_coroutine_stops_when_it_is_awaited_and_not_before(bank):
    async with Breakpoint("bp_bank.Account.load") as bp:
        coroutine = bank.Account().load()
        await asyncio.sleep(0)
        assert bp.calls == 0

        async def use():
            return await coroutine

        task = bp.start_task(use)
        await bp.wait()
        bp.release()
    assert task.result == 0


@in_a_loop
async def test_an_asynchronous_generator_stops_when_it_begins(bank):
    async def use():
        return [each async for each in bank.Account().history()]

    async with Breakpoint("bp_bank.Account.history") as bp:
        task = bp.start_task(use)
        await bp.wait()
        bp.release()
    assert task.result == [0, 1]


@in_a_loop
async def test_many_tasks_stand_and_are_let_go_at_once(bank):
    account = bank.Account()
    async with Breakpoint("bp_bank.Account.save") as bp:
        tasks = [bp.start_task(account.deposit, amount) for amount in range(20)]
        await bp.wait(hits=20)
        assert len(bp.standing) == 20
        bp.release()
        await bp.join()
    assert [task.result for task in tasks] == list(range(20))


@in_a_loop
async def test_each_hit_stops_and_each_release_lets_go(bank):
    account = bank.Account()

    async def twice():
        return [await account.deposit(1), await account.deposit(2)]

    async with Breakpoint("bp_bank.Account.save") as bp:
        task = bp.start_task(twice)
        for balance in (1, 3):
            assert (await bp.wait()).args[1] == balance
            bp.release()
        assert await task == [1, 3]


@in_a_loop
async def test_a_release_before_the_hit_lets_that_pass(bank):
    async with Breakpoint("bp_bank.Account.save") as bp:
        bp.release()
        task = bp.start_task(bank.Account().deposit, 1)
        assert await task == 1


@in_a_loop
async def test_an_error_is_raised_in_the_coroutine(bank):
    async with Breakpoint.error(OSError("no disk"), "bp_bank.Account.save") as bp:
        task = bp.start_task(bank.Account().deposit, 1)
        assert await task == "no disk"
    async with Breakpoint.error(MemoryError("x"), "bp_bank.Account.save") as bp:
        task = bp.start_task(bank.Account().deposit, 1)
        await bp.join()
        assert isinstance(task.exception, MemoryError)


@in_a_loop
async def test_a_task_that_is_cancelled_while_it_stands_leaves(bank):
    async with Breakpoint("bp_bank.Account.save") as bp:
        task = bp.start_task(bank.Account().deposit, 1)
        await bp.wait()
        task.task.cancel()
        await bp.join()
        assert task.task.cancelled()
        assert bp.standing == []
        assert task.whereabouts == "'breakpoint:deposit' was cancelled"


@in_a_loop
async def test_who_stands_too_long_gets_an_error_of_its_own(bank):
    async with Breakpoint("bp_bank.Account.save", timeout=0.01):
        with pytest.raises(BreakpointTimeoutError, match="nobody called release"):
            await bank.Account().save(1)


@in_a_loop
async def test_a_wait_in_vain_says_where_the_tasks_are(bank):
    started = asyncio.Event()

    async def elsewhere():
        started.set()
        await asyncio.Event().wait()

    with pytest.raises(BreakpointTimeoutError, match="it was not called at all") as found:
        async with Breakpoint("bp_bank.Account.save", timeout=0.01) as bp:
            bp.start_task(elsewhere)
            await started.wait()
            await bp.wait()
    assert "'breakpoint:elsewhere' is in wait (" in str(found.value)
    assert "not ended after 0.01 s" in found.value.__notes__[0]


@in_a_loop
async def test_what_a_task_raised_before_it_got_there_ends_the_waiting(bank):
    with pytest.raises(LookupError, match="no account"):
        async with Breakpoint("bp_bank.Account.save", timeout=60) as bp:
            bp.start_task(bank.Account().broken)
            await bp.wait()


@in_a_loop
async def test_wait_until_is_about_anything(bank):
    async with Breakpoint("bp_bank.Account.save") as bp:
        bp.start_task(bank.Account().deposit, 1)
        await bp.wait_until(1)
        await bp.wait_until(lambda: bp.standing)
        with pytest.raises(BreakpointTimeoutError):
            await bp.wait_until(lambda: False, timeout=0.01)


@in_a_loop
async def test_a_plain_function_cannot_stop_the_event_loop(bank):
    account = bank.Account()
    async with Breakpoint("bp_bank.Account.look") as bp:
        with pytest.raises(BreakpointError, match="would stop the event loop"):
            account.look()
        task = bp.start_task(asyncio.to_thread, account.look)
        await bp.wait(hits=2)
        bp.release()
    assert task.result == 0


@in_a_loop
async def test_what_cannot_be_awaited_is_said(bank):
    async with Breakpoint("bp_bank.Account.look", fire=lambda call: None) as bp:
        with pytest.raises(TypeError, match=r"start_task\(asyncio.to_thread, function\)"):
            bp.start_task(bank.Account().look)


@pytest.mark.parametrize("error", [AssertionError("mine"), KeyboardInterrupt(), SystemExit(1)])
def test_after_an_error_in_the_body_nothing_is_left(bank, error):
    code, account = bank.Account.save.__code__, bank.Account()

    async def test():
        async with Breakpoint("bp_bank.Account.save") as bp:
            bp.start_task(account.deposit, 3)
            await bp.wait()
            raise error

    with pytest.raises(type(error)):
        asyncio.run(test())
    assert bank.Account.save.__code__ is code
    assert account.balance == 3


@in_a_loop
async def test_a_breakpoint_that_was_never_hit_is_an_assertion_error(bank):
    with pytest.raises(AssertionError, match="expected any call; it was not called at all"):
        async with Breakpoint("bp_bank.Account.save"):
            pass


def test_a_thread_with_a_loop_of_its_own_stops_at_a_coroutine(bank):
    account = bank.Account()
    with Breakpoint("bp_bank.Account.save") as bp:
        thread = bp.start_thread(lambda: asyncio.run(account.deposit(1)))
        bp.wait()
        assert bp.stackframe.f_locals["balance"] == 1
        bp.release()
    assert thread.result == 1


@in_a_loop
async def test_a_coroutine_may_be_closed_while_it_stands(bank):
    async with Breakpoint("bp_bank.Account.save") as bp:
        coroutine = bank.Account().save(1)
        coroutine.send(None)
        assert len(bp.standing) == 1
        coroutine.close()
        assert bp.standing == []
