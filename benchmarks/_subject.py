"""The functions that `overhead.py` puts probes on, and the loops that call them."""

from __future__ import annotations

import functools
import time
from itertools import repeat

clock = time.perf_counter


def add(a, b):
    total = a + b
    return total  # noqa: RET504 - the local is what `end` and `line` instruments look at


def call_add(times):
    for _ in repeat(None, times):
        add(1, 2)


def call_add_large(times):
    """What a condition on the size of an argument lets through."""
    for _ in repeat(None, times):
        add(200, 2)


def add_with_clock_reads(a, b):
    clock()
    total = a + b
    clock()
    return total


def call_add_with_clock_reads(times):
    for _ in repeat(None, times):
        add_with_clock_reads(1, 2)


def does_nothing(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


decorated_add = does_nothing(add)


def call_decorated_add(times):
    for _ in repeat(None, times):
        decorated_add(1, 2)


def count_up(length):
    for number in range(length):  # noqa: UP028 - a loop, as generators have
        yield number


def call_generator(times):
    for _ in repeat(None, times):
        for _ in count_up(10):
            pass


async def add_later(a, b):
    total = a + b
    return total  # noqa: RET504 - as in `add`


def call_coroutine(times):
    for _ in repeat(None, times):
        coroutine = add_later(1, 2)
        try:  # noqa: SIM105 - it costs more than what is measured
            coroutine.send(None)
        except StopIteration:
            pass


def three_lines(a, b):
    total = a + b
    total += 1
    return total


def call_three_lines(times):
    for _ in repeat(None, times):
        three_lines(1, 2)


def many_lines(rounds):
    total = 0
    for number in range(rounds):
        total += number
        total ^= 1
        total &= 0xFFFF
    return total


def call_many_lines(times):
    for _ in repeat(None, times):
        many_lines(50)


def nested(number):
    return number


def body(length):
    """A body as long as you like: `length` nested calls."""
    total = 0
    for number in range(length):
        total += nested(number)
    return total


def call_body(length, times):
    for _ in repeat(None, times):
        body(length)
