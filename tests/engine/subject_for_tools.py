"""Functions of all shapes, and a way through them: what tools see of it is compared.

Where an expression or a statement stands on which line matters, so the formatter keeps off.
"""
# fmt: off
# ruff: noqa

from __future__ import annotations

import asyncio
import contextlib
import functools


def loops(items, fee=1):
    total = 0
    for price in items:
        if price > 5:
            continue
        elif price < 0: break
        total += price
    else:
        total += fee
    while total > 10:
        total -= 4
        if total == 7:
            break
    else:
        total = -total
    return (total,
            fee)


def begins_with_a_loop(n):
    while n:
        n -= 1


def begins_with_for(items):
    for each in items: pass


def one_line(x): return x and x + 1


def handles(x):
    done = []
    try:
        ratio = 100 / x
    except ZeroDivisionError:
        ratio = None
    except TypeError as error:
        done.append(str(error))
        raise ValueError(x) from error
    else:
        done.append("else")
    finally:
        done.append("finally")
        for each in (1, 2):
            done.append(each)
    return ratio, done


def returns_in_try(x):
    for each in range(x):
        try:
            if each == 1:
                return each
            elif each == 2:
                continue
        finally:
            x -= 1
    return None


def raises(x):
    if x:
        raise KeyError(
            x
        )


def manages(error):
    with contextlib.suppress(LookupError), contextlib.nullcontext(3) as three:
        three += 1
        if error:
            raise error
        return three
    with contextlib.nullcontext(5) as five:
        five += 1
    return five


def comprehends(n):
    squares = [each * each
               for each in range(n)
               if each % 2]
    pairs = {each: [other for other in range(each)] for each in squares}
    some = {each for each in pairs if each}
    return sum(each for each in some), any(x > 3 for x in squares)


def chooses(a, b=None):
    match a:
        case 1 | 2:
            kind = "small"
        case [x, *rest] if rest:
            kind = x
        case {"k": v}:
            kind = v
        case _:
            kind = None
    both = a if (a and
                 b) else b
    if ((kind := kind or both) and not b) or a == 3:
        kind = (kind,
                a)
    assert a != 9, "nine"
    return kind


def numbers(n):
    got = None
    for each in range(n):
        try:
            got = yield each, got
        except KeyError:
            yield "caught"
        finally:
            n -= 1
    return got


def delegates(n):
    result = yield from numbers(n)
    yield result
    yield from [1, 2]


async def waits(n):
    for each in range(n):
        await asyncio.sleep(0)
    async with managed() as m:
        async for each in ticks(n):
            if each > 1:
                m += each
    return [each async for each in ticks(m)]


@contextlib.asynccontextmanager
async def managed():
    try:
        yield 1
    finally:
        await asyncio.sleep(0)


async def ticks(n):
    for each in range(n):
        yield each
        await asyncio.sleep(0)


def recursive(n):
    if n:
        return recursive(n - 1) + 1
    return 0


def closes_over(x):
    factor = 2

    def inner(y):
        nonlocal factor
        factor += 1
        return y * factor * x
    key = lambda v: (
        v + factor)
    return inner(x) + key(x)


def decorate(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        finally:
            calls.append(function.__name__)
    return wrapper


calls = []


@decorate
def decorated(a, *args, b=1, **kwargs):
    del a
    return b, args, \
        kwargs


class Cart:
    def __init__(self, size):
        self.size = size

    @property
    def half(self):
        return self.size // 2

    @classmethod
    def made(cls, size):
        return cls(size)

    @staticmethod
    def sized(size):
        return size


def safely(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return repr(error)


def drive(function, *args, script="nnnn"):
    generator, seen = function(*args), []
    for step in script:
        if step == "n":
            seen.append(safely(next, generator))
        elif step == "s":
            seen.append(safely(generator.send, 5))
        elif step == "t":
            seen.append(safely(generator.throw, KeyError(1)))
        else:
            seen.append(safely(generator.close))
    return seen


def run():
    return [
        safely(loops, [1, 2]), safely(loops, [9, 9, 4, 20]), safely(loops, [8, -1, 3]),
        safely(loops, [5, 5, 1]), safely(loops, [5, 5, 5]), safely(loops, None),
        safely(begins_with_a_loop, 3), safely(begins_with_a_loop, 0),
        safely(begins_with_for, [1, 2]), safely(begins_with_for, []),
        safely(one_line, 0), safely(one_line, 1),
        safely(handles, 0), safely(handles, 5), safely(handles, "x"),
        safely(returns_in_try, 0), safely(returns_in_try, 1), safely(returns_in_try, 4),
        safely(raises, 0), safely(raises, 1),
        safely(manages, None), safely(manages, KeyError(1)), safely(manages, ValueError(1)),
        safely(comprehends, 0), safely(comprehends, 6),
        *[safely(chooses, each) for each in (1, [2, 3], {"k": 4}, 0, 3, 9, "x")],
        safely(chooses, 1, 2), safely(chooses, 0, 3),
        drive(numbers, 3), drive(numbers, 3, script="nsts"), drive(numbers, 3, script="nnc"),
        drive(delegates, 1), drive(delegates, 2, script="nstc"), drive(numbers, 0, script="t"),
        safely(asyncio.run, waits(3)), safely(asyncio.run, waits(0)),
        safely(recursive, 4), safely(closes_over, 3),
        safely(decorated, 1), safely(decorated, 1, 2, b=3, c=4), safely(decorated),
        Cart(3).half, Cart.made(4).half, Cart.sized(5),
    ]
