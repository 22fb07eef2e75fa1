from __future__ import annotations

import asyncio
import functools
import inspect
from datetime import UTC, datetime

import pytest
from stage import Stage, probed

from diagnose import attach_to, targets
from diagnose.breakpoints import Breakpoint
from diagnose.errors import ProbeError
from diagnose.instruments import LogInstrument, ProbeTestInstrument
from diagnose.managers import InstrumentManager

# Behind decorators, `call` and `return` are what callers see; `end`, lines and hotspots belong to
# the function that was written.

SHOP = """
import asyncio, contextlib, functools, wrapt

def plus(f):
    @functools.wraps(f)
    def wrapper(self, x):
        outside = "outside"
        return f(self, x + 100)
    return wrapper

@wrapt.decorator
def plus_wrapt(wrapped, instance, args, kwargs):
    return wrapped(args[0] + 100)

def plus_class(f):
    class Wrapper:
        def __init__(self, f):
            functools.update_wrapper(self, f)
        def __call__(self, x):
            return self.__wrapped__(x + 100)
    return Wrapper(f)

class Cart:
    @plus
    @plus
    def twice(self, x):
        total = x + 5
        return total

    @plus_wrapt
    @plus
    def mixed(self, x):
        total = x + 5
        return total

    @plus_wrapt
    def by_wrapt(self, x):
        total = x + 5
        return total

    @functools.lru_cache
    def cached(self, x):
        total = x + 5
        return total

    @staticmethod
    @plus_wrapt
    def static(x):
        total = x + 5
        return total

    @classmethod
    @plus
    def of_class(cls, x):
        total = x + 5
        return total

    @property
    @functools.wraps(lambda: None)
    def lying(self):
        inside = 1
        return inside

@plus_class
def by_class(x):
    total = x + 5
    return total

@functools.lru_cache
def remembered(x):
    total = x + 5
    return total

def plain_body(self):
    total = 7
    return total

class Prop:
    @property
    @functools.wraps(plain_body)
    def total(self):
        return plain_body(self)

    wrapped_property = wrapt.FunctionWrapper(property(plain_body), lambda w, i, a, k: w(*a, **k))

@contextlib.contextmanager
def opened(x):
    handle = x * 2
    yield handle

def retry(f):
    @functools.wraps(f)
    async def wrapper(x):
        return await f(x + 100)
    return wrapper

@retry
async def fetch(x):
    got = x + 1
    await asyncio.sleep(0)
    return got
"""


@pytest.fixture
def shop():
    with Stage() as stage:
        module = stage.script(SHOP)
        module.path = module.__name__
        yield module


def line_of(function, text):
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


CASES = {
    "Cart.twice": (lambda shop: shop.Cart().twice(1), 206, 2),
    "Cart.mixed": (lambda shop: shop.Cart().mixed(1), 206, 2),
    "Cart.by_wrapt": (lambda shop: shop.Cart().by_wrapt(1), 106, 1),
    "Cart.cached": (lambda shop: shop.Cart().cached(1), 6, 1),
    "Cart.of_class": (lambda shop: shop.Cart.of_class(1), 106, 1),
    "by_class": (lambda shop: shop.by_class(1), 106, 1),
    "remembered": (lambda shop: shop.remembered(1), 6, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_inside_means_the_function_that_was_written_and_call_what_callers_see(shop, name):
    call, total, _ = CASES[name]
    path = f"{shop.path}.{name}"
    bare = call(shop)
    for cached in (shop.remembered, shop.Cart.cached):
        cached.cache_clear()
    body = targets.resolve(path, import_modules=False).body
    line = line_of(body, "return total")
    with (
        probed(path, "total", "end") as at_end,
        probed(path, "(x, total)", f"line:{line}") as at_line,
        probed(path, "(x, total)", "line:+2") as at_counted_line,
        probed(path, "args[-1]", "call") as at_call,
        probed(path, "(args[-1], result)") as at_return,
        probed(path, "(x, result, hotspots.worst.line)", when="hotspots") as timed,
    ):
        assert call(shop) == bare == total
    assert at_end.results == [total]
    assert at_line.results == at_counted_line.results == [(total - 5, total)]
    # What wrapt makes binds to an instance as it likes, so that callers don't call it itself.
    binds_plainly = name not in {"Cart.mixed", "Cart.by_wrapt"}
    assert at_call.results == [1] * binds_plainly
    assert at_return.results == [(1, bare)] * binds_plainly
    [(x, result, worst)] = timed.results
    assert (x, result) == (total - 5, total)
    assert worst in {line - 1, line}
    assert call(shop) == bare
    with probed(path, "args", "call"):
        said = "".join(attach_to(path).warnings)
    assert ("binds to instances in its own way" in said) != binds_plainly


@pytest.mark.parametrize("name", CASES)
def test_the_entry_says_which_code_is_meant_where_there_is_a_choice(shop, name):
    _, _, decorators = CASES[name]
    path = f"{shop.path}.{name}"
    body = targets.resolve(path, import_modules=False).body
    many = "a decorator" if decorators == 1 else f"{decorators} decorators"
    where = f"<{shop.path}>:{body.__code__.co_firstlineno}, behind {many}"
    with probed(path, "1", "end"), probed(path, "hotspots", "return"), probed(path, "1", "call"):
        warnings = [text for text in attach_to(path).warnings if " is inside " in text]
    assert [text.partition(" is inside ")[0] for text in warnings] == ["'end'", "'hotspots'"]
    assert all(text.endswith(where) and body.__qualname__ in text for text in warnings)


def document(target, event, value, **more):
    return {
        "target": target,
        "lifespan": 1,
        "lastmodified": datetime.now(UTC),
        "instrument": {"type": "log", "value": value, "event": event},
        **more,
    }


def applied(**documents):
    manager = InstrumentManager("p-1")
    manager.specs.update(documents)
    manager.apply()
    try:
        return {key: doc["applied"]["p-1"] for key, doc in manager.specs.items()}
    finally:
        manager.specs.clear()
        manager.apply()


def test_a_spec_is_told_of_its_own_event_alone_and_so_is_a_dry_run(shop):
    path = f"{shop.path}.Cart.twice"
    entries = applied(
        end=document(path, "end", "total"),
        call=document(path, "call", "x"),
        dry=document(path, "line:+2", "total", validate=True),
        plain=document(f"{shop.path}.plain_body", "end", "total"),
    )
    assert {key: entry["err"] for key, entry in entries.items()} == dict.fromkeys(entries)
    said = {key: "".join(entry.get("warnings", ())) for key, entry in entries.items()}
    body = shop.Cart.twice.__wrapped__.__wrapped__
    where = f"is inside {shop.path}.Cart.twice, <{shop.path}>:{body.__code__.co_firstlineno}"
    assert said["end"] == f"'end' {where}, behind 2 decorators"
    assert said["dry"] == f"'line:+2' {where}, behind 2 decorators"
    assert said["call"] == said["plain"] == ""
    found = entries["dry"]["found"]
    assert found["line"] == body.__code__.co_firstlineno
    assert line_of(body, "return total") in found["lines"]


def test_the_fingerprint_is_that_of_the_function_that_was_written(shop):
    find = lambda path: targets.resolve(f"{shop.path}.{path}", import_modules=False)
    prints = [targets.fingerprint(find(path)) for path in ("Cart.twice", "by_class", "remembered")]
    assert len(set(prints)) == 3
    assert prints[0] == targets.fingerprint(find("Cart.twice.__wrapped__.__wrapped__"))
    path = f"{shop.path}.Cart.twice"
    with probed(path, "total", "end"):
        assert targets.fingerprint(find("Cart.twice")) == prints[0]
    entries = applied(
        same=document(path, "end", "total", fingerprint=prints[0]),
        other=document(path, "end", "total", fingerprint=prints[1]),
    )
    assert (entries["same"]["state"], entries["other"]["state"]) == ("installed", "drifted")


def test_properties_and_context_managers_are_looked_into(shop):
    with probed(f"{shop.path}.Prop.total", "total", "end") as seen:
        assert shop.Prop().total == 7
    with probed(f"{shop.path}.opened", "handle", "end") as opened:
        with shop.opened(4) as got:
            assert (got, opened.results) == (8, [])
    assert (seen.results, opened.results) == ([7], [8])
    assert targets.resolve(f"{shop.path}.Prop.wrapped_property", import_modules=False).body is (
        shop.plain_body
    )


def test_a_coroutine_behind_a_decorator_is_looked_into(shop):
    path = f"{shop.path}.fetch"
    with probed(path, "(x, got)", "end") as seen, probed(path, "x", "call") as called:
        assert asyncio.run(shop.fetch(1)) == 102
    assert (seen.results, called.results) == ([(101, 102)], [1])


def test_a_path_that_ends_in_wrapped_means_what_stands_there(shop):
    with probed(f"{shop.path}.Cart.twice.__wrapped__", "outside", "end") as seen:
        assert shop.Cart().twice(1) == 206
    assert seen.results == ["outside"]


def test_a_line_of_the_wrapper_is_no_line_of_the_function(shop):
    line = line_of(shop.plus, "outside =")
    with pytest.raises(ProbeError, match=r"no code of 'Cart\.twice'") as raised:
        with probed(f"{shop.path}.Cart.twice", "1", f"line:{line}"):
            pass
    assert raised.value.code == "line-without-code"


def test_a_wrapped_that_is_no_function_is_not_looked_into(shop):
    def make():
        def wrapper(x):
            inside = x + 1
            return inside

        return wrapper

    class Raises:
        def __getattribute__(self, name):
            raise RuntimeError(name)

    class RaisesToo:
        @property
        def __wrapped__(self):
            raise RuntimeError

    circle, other = make(), make()
    circle.__wrapped__, other.__wrapped__ = other, circle
    itself = make()
    itself.__wrapped__ = itself
    odd = [circle, itself]
    for value in (None, 3, "text", print, int, Raises(), RaisesToo(), [make()]):
        odd.append(make())
        odd[-1].__wrapped__ = value
    for number, function in enumerate(odd):
        setattr(shop, f"odd_{number}", function)
        path = f"{shop.path}.odd_{number}"
        with (
            probed(path, "inside", "end") as seen,
            probed(path, "result") as returned,
            probed(path, "args", "call") as called,
        ):
            assert function(1) == 2
            assert not [text for text in attach_to(path).warnings if "behind" in text]
        assert (seen.results, returned.results, called.results) == ([2], [2], [(1,)])


def test_a_chain_of_any_length_is_followed(shop):
    def body(x):
        inside = x
        return inside

    wrapper = body
    for _ in range(200):

        def outer(x, inner=wrapper):
            return inner(x)

        wrapper = functools.update_wrapper(outer, wrapper)
    shop.deep = wrapper
    with probed(f"{shop.path}.deep", "inside", "end") as seen:
        assert shop.deep(3) == 3
        assert any(
            "behind 200 decorators" in text for text in attach_to(f"{shop.path}.deep").warnings
        )
    assert seen.results == [3]


def test_a_function_that_two_wrappers_share_is_seen_through_both(shop):
    def body(x):
        inside = x
        return inside

    def wrap(function):
        @functools.wraps(function)
        def wrapper(x):
            return function(x)

        return wrapper

    shop.one, shop.two = wrap(body), wrap(body)
    with (
        probed(f"{shop.path}.one", "inside", "end") as one,
        probed(f"{shop.path}.two", "inside", "end") as two,
        probed(f"{shop.path}.one", "x", "call") as called,
    ):
        assert (shop.one(1), shop.two(2), body(3)) == (1, 2, 3)
    assert one.results == two.results == [1, 2, 3]
    assert called.results == [1]


def test_an_instrument_moves_from_the_wrapper_to_the_body_when_its_event_changes(shop):
    path = f"{shop.path}.Cart.twice"
    wrapper, body = shop.Cart.twice, shop.Cart.twice.__wrapped__.__wrapped__
    codes = wrapper.__code__, body.__code__
    probe = attach_to(path)
    probe.attach("k", ProbeTestInstrument("n", "x", "call"))
    assert (wrapper.__code__ is codes[0], body.__code__ is codes[1]) == (False, True)
    probe.attach("k", ProbeTestInstrument("n", "total", "end"))
    assert (wrapper.__code__ is codes[0], body.__code__ is codes[1]) == (True, False)
    probe.detach("k")
    assert (wrapper.__code__ is codes[0], body.__code__ is codes[1]) == (True, True)


def test_an_instrument_as_a_decorator_looks_into_what_is_decorated_already(shop, capsys):
    instrument = LogInstrument("n", "total", "end")
    instrument(shop.Cart.__dict__["twice"])
    path = f"{shop.path}.Cart.twice"
    try:
        assert shop.Cart().twice(1) == 206
        assert instrument.status.hits == 1
    finally:
        attach_to(path).stop()


def test_a_breakpoint_at_the_end_stands_in_the_function_that_was_written(shop):
    seen = []

    def note(call):
        seen.append((call.frame.f_locals["total"], call.args, call.frame.f_lineno))

    path = f"{shop.path}.Cart.twice"
    body = shop.Cart.twice.__wrapped__.__wrapped__
    with Breakpoint(path, "end", fire=note, condition=lambda x: x == 201):
        shop.Cart().twice(1)
    assert [each[0] for each in seen] == [206]
    line = line_of(body, "return total")
    with Breakpoint(path, f"line:{line}", fire=note):
        shop.Cart().twice(1)
    assert seen[1][2] == line


def test_a_breakpoint_on_one_attribute_stays_on_that_one(shop):
    class Sub(shop.Cart):
        pass

    seen = []
    with Breakpoint((Sub, "twice"), "end", fire=lambda call: seen.append(call.args)):
        shop.Cart().twice(1)
        assert not seen
        Sub().twice(1)
    assert len(seen) == 1
