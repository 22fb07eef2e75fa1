"""The functions that `overhead.py` puts probes on, and the loops that call them."""

from __future__ import annotations

import functools
import time
from itertools import repeat

clock = time.perf_counter


def add(a, b):
    total = a + b
    return total  # noqa: RET504 - the local is what `end` instruments look at


def call_add(times):
    for _ in repeat(None, times):
        add(1, 2)


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


class Holder:
    """Has `add` as a method too: bound methods are references to it."""

    method = add
