"""What is probed in combinations: a function of each kind, how it is called, and with what."""

from __future__ import annotations

SUBJECTS = """
    import functools, types

    ODD = None

    @types.coroutine
    def pause(value):
        return (yield value)

    def plain(x, odd):
        y = x * 2
        odd.act()
        return x, y, sorted(locals())

    class C:
        def __init__(self, x, odd):
            self.x, self.odd = x, odd

        def method(self, x, odd):
            y = x * 2
            odd.act()
            return x, y, sorted(locals())

        @staticmethod
        def static(x, odd):
            y = x * 2
            odd.act()
            return x, y, sorted(locals())

        @classmethod
        def made(cls, x, odd):
            y = x * 2
            odd.act()
            return x, y, sorted(locals())

        @property
        def prop(self):
            y = self.x * 2
            self.odd.act()
            return y, sorted(locals())

        def __call__(self, x, odd):
            y = x * 2
            odd.act()
            return x, y, sorted(locals())

    instance = C(0, None)

    def numbers(x, odd):
        y = x * 2
        yield y
        odd.act()
        yield sorted(locals())
        return y

    async def work(x, odd):
        y = x * 2
        await pause(y)
        odd.act()
        return y, sorted(locals())

    async def ticks(x, odd):
        y = x * 2
        yield y
        await pause(y)
        odd.act()
        yield sorted(locals())

    def make(base):
        def closure(x, odd):
            y = x * base
            odd.act()
            later = lambda: y
            return later(), sorted(locals())

        return closure

    closure = make(3)

    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            done = function(*args, **kwargs)
            return done, sorted(locals())

        return wrapper

    @decorate
    def decorated(x, odd):
        y = x * 2
        odd.act()
        return x, y, sorted(locals())

    small = lambda x, odd: (
        odd.act(),
        x * 2,
        sorted(locals()),
    )

    def walk(x, odd):
        y = x * 2
        if x:
            return walk(x - 1, odd), y
        odd.act()
        return y, sorted(locals())
"""

# By kind: the path, how it is called, and what expressions call the two arguments.
KINDS = {
    "plain": ("plain", lambda m, x, odd: m.plain(x, odd), "x", "odd"),
    "method": ("C.method", lambda m, x, odd: m.instance.method(x, odd), "x", "odd"),
    "static": ("C.static", lambda m, x, odd: m.C.static(x, odd=odd), "x", "odd"),
    "class": ("C.made", lambda m, x, odd: m.C.made(x, odd), "x", "odd"),
    "property": ("C.prop", lambda m, x, odd: m.C(x, odd).prop, "self.x", "self.odd"),
    "special": ("C.__call__", lambda m, x, odd: m.instance(x, odd), "x", "odd"),
    "generator": ("numbers", lambda m, x, odd: list(m.numbers(x, odd)), "x", "odd"),
    "coroutine": ("work", lambda m, x, odd: _drive(m.work(x, odd)), "x", "odd"),
    "asyncgen": ("ticks", lambda m, x, odd: _drive(_all_of(m.ticks(x, odd))), "x", "odd"),
    "closure": ("closure", lambda m, x, odd: m.closure(x, odd), "x", "odd"),
    "decorated": ("decorated", lambda m, x, odd: m.decorated(x, odd=odd), "x", "odd"),
    "lambda": ("small", lambda m, x, odd: m.small(x, odd), "x", "odd"),
    "recursive": ("walk", lambda m, x, odd: m.walk(x, odd), "x", "odd"),
    "instance": ("instance", lambda m, x, odd: m.instance(x, odd), "x", "odd"),
    "builtin": ("inv", lambda m, x, odd: m.inv(odd), "args[0].x", "args[0]"),
}
BY_REFERENCE = {"instance", "builtin"}
XS = (0, 1, 2)


def _drive(coroutine):
    yielded = []
    try:
        while True:
            yielded.append(coroutine.send(None))
    except StopIteration as stop:
        return yielded, stop.value


async def _all_of(generator):
    return [each async for each in generator]


class Quit(BaseException):
    """Of the program's own."""


class Unspeakable(Exception):
    """It can't be shown."""

    def __str__(self):
        raise ValueError("no text")

    __repr__ = __str__


class Unusable:
    """It has no truth, no text and no length."""

    def __bool__(self):
        raise ValueError("no truth")

    def __str__(self):
        raise ValueError("no text")

    __repr__ = __len__ = __str__


class Answer:
    """Is true, and no bool."""

    __slots__ = ()


class Odd:
    """An argument: it does what the call is to do, and compares in ways of its own."""

    __hash__ = None

    def __init__(self, x, how):
        self.x = x
        self.error = {"returns": None, "raises": ValueError("theirs", x), "quits": Quit(x)}[how]

    def act(self):
        if self.error is not None:
            raise self.error

    def __eq__(self, other):
        return Answer()

    def __lt__(self, other):
        raise Quit("compared")

    def __invert__(self):
        self.act()
        return self.x
