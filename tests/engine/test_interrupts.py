"""Which exceptions belong to the program, told by where and how they came up."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import signal
import sys
import threading

import pytest
from stage import in_thread
from waiting import wait_until

from diagnose.interrupts import belongs_to_program, is_signal_handler

NUMBER = int(signal.SIGUSR1)


class Own(Exception):
    """Of the program."""


class Base(BaseException):
    """Of a hub."""


def caught(work, *arguments):
    """What comes out of a call, with its traceback from the frame on that catches it."""
    try:
        work(*arguments)
    except BaseException as error:
        return error
    raise AssertionError


def raises(*_arguments, **_more):
    raise Own("why", 5)


def statement(error):
    raise error


@pytest.fixture
def install():
    before = signal.getsignal(NUMBER)
    yield lambda handler: signal.signal(NUMBER, handler)
    signal.signal(NUMBER, before)


class Handles:
    def method(self, number, frame):
        raise Own("why")

    @classmethod
    def of(cls, *_given):
        raise Own("why")

    def __call__(self, number, frame):
        raise Own("why")


def of_two(number, frame):
    raise Own("why")


def calls_another(number, frame):
    statement(Own("why"))


@pytest.mark.parametrize(
    "handler",
    [
        of_two,
        raises,
        calls_another,
        functools.partial(of_two),
        functools.partial(functools.partial(raises, more=1), other=2),
        functools.partial(raises, 1, 2),
        Handles().method,
        Handles.of,
        Handles(),
        lambda *arguments: raises(*arguments),
    ],
)
def test_what_a_signal_handler_raises_belongs_to_the_program(install, handler):
    install(handler)
    assert belongs_to_program(caught(signal.raise_signal, NUMBER)) is True


def test_a_handler_that_was_installed_counts_however_it_was_called(install):
    install(of_two)
    assert belongs_to_program(caught(of_two, None, None)) is True
    install(signal.SIG_IGN)
    assert belongs_to_program(caught(of_two, None, None)) is False


HERE, ELSEWHERE = object(), sys._getframe()


@pytest.mark.parametrize(
    ("given", "is_theirs"),
    [
        ((NUMBER, HERE), True),
        ((None, NUMBER, HERE), True),
        ((0, 0, 0, NUMBER, HERE), True),
        ((0, 0, 0, 0, NUMBER, HERE), False),  # so many no handler has
        ((NUMBER, ELSEWHERE), False),
        ((HERE, NUMBER), False),
        ((10_000, HERE), False),
        (("10", HERE), False),
        ((True, HERE), False),
        ((NUMBER,), False),
        ((), False),
        # tracers
        ((HERE, "call"), True),
        ((HERE, "line", None), True),
        ((None, HERE, "c_call"), True),
        ((HERE, "calls"), False),
        ((HERE, 5), False),
        ((ELSEWHERE, "call"), False),
        (("call", HERE), False),
    ],
)
@pytest.mark.parametrize(
    "called",
    [
        raises,
        lambda a=0, b=0, c=0, d=0, e=0, f=0: statement(Own("why")),
        lambda a=0, *rest, key=1: statement(Own("why")),
    ],
)
def test_a_function_that_is_called_as_handlers_or_tracers_are_is_taken_for_one(
    called, given, is_theirs
):
    def work():
        here = sys._getframe()
        called(*[here if each is HERE else each for each in given])

    if len(given) == 6 and called.__code__.co_argcount == 1:
        is_theirs = True  # five of the rest are looked at, too
    assert belongs_to_program(caught(work)) is is_theirs


def test_only_the_main_thread_serves_signals():
    def work():
        raises(NUMBER, sys._getframe())

    def trace():
        raises(sys._getframe(), "call", None)

    assert belongs_to_program(caught(work)) is True
    assert in_thread(lambda: belongs_to_program(caught(work))) is False
    assert in_thread(lambda: belongs_to_program(caught(trace))) is True


def test_the_frame_that_caught_it_is_not_asked_whether_it_traces():
    def tracer(frame, event, argument):
        return belongs_to_program(caught_here())

    def caught_here():
        try:
            raise Own("why")
        except Own as error:
            return error

    assert tracer(sys._getframe(), "call", None) is False


def test_a_frame_says_whether_it_is_of_a_handler(install):
    frames = []

    def handler(*given):
        frames.append((is_signal_handler(sys._getframe()), is_signal_handler(sys._getframe(1))))

    install(handler)
    signal.raise_signal(NUMBER)
    handler()  # it is the same code
    install(signal.SIG_DFL)
    handler()
    handler(NUMBER, sys._getframe())
    assert frames == [(True, False), (True, False), (False, False), (True, False)]
    install(handler)
    in_thread(handler)
    assert frames[-1] == (False, False)


# --- what C functions raise ---------------------------------------------------------------------


def result_of(error):
    """A call of a C function that raises it."""
    loop = asyncio.new_event_loop()
    try:
        future = loop.create_future()
        future.set_exception(error)
        return caught_from(future.result)
    finally:
        loop.close()


def caught_from(function):
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "is_theirs"),
    [
        (Own(), True),  # it can't be told from one that another thread has injected
        (Own("why"), False),
        (Base("why"), True),
        (Base(), True),
        (ValueError(), False),
        (asyncio.InvalidStateError(), False),
    ],
)
def test_an_exception_without_arguments_out_of_a_call_of_c_may_be_injected(error, is_theirs):
    assert belongs_to_program(result_of(error)) is is_theirs


@pytest.mark.parametrize("error", [Own(), Own("why"), Base(), KeyboardInterrupt(), SystemExit(1)])
def test_what_a_statement_raises_is_not_injected(error):
    assert belongs_to_program(caught(statement, error)) is False


def test_what_was_never_raised_belongs_to_nobody():
    assert belongs_to_program(KeyboardInterrupt()) is False


def test_an_interrupt_from_the_keyboard_belongs_to_the_program():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        error = caught(lambda: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert type(error) is KeyboardInterrupt
    assert belongs_to_program(error) is True


def spins(turns):
    while True:
        turns[0] += 1


def calls_c(turns):
    while True:
        turns[0] += 1
        len(turns)


@pytest.mark.parametrize(
    ("work", "kind"),
    # Behind a call of C a SystemExit may be that of sys.exit().
    [(spins, Own), (spins, Base), (spins, SystemExit), (calls_c, Own), (calls_c, Base)],
)
def test_what_another_thread_injects_belongs_to_the_program(work, kind):
    turns, verdicts = [0], []

    def run():
        try:
            work(turns)
        except BaseException as error:
            verdicts.append((type(error), belongs_to_program(error)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until(lambda: turns[0] > 1_000)
    set_error = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert set_error(ctypes.c_ulong(thread.ident), ctypes.py_object(kind)) == 1
    thread.join(30)
    assert verdicts == [(kind, True)]
