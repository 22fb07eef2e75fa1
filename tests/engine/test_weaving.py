from __future__ import annotations

import _thread
import asyncio
import contextvars
import dis
import functools
import gc
import inspect
import itertools
import opcode
import sys
import threading
import types

import pytest
from stage import (
    DEADLINE_SECONDS,
    EVENTS,
    events,
    outcome,
    picture,
    probed,
    timers_ran,
)
from waiting import wait_until

from diagnose import sites
from diagnose.bytecode import assembly, flow, weaving
from diagnose.errors import ProbeError, UnknownNameError

# ``place(function)`` puts it into a module of its own and returns the path.


def test_this_interpreter_hides_the_frames_of_stand_ins():
    assert sites.hides_frames()


@pytest.mark.parametrize("hooks", [(), (weaving.Hook(lambda _result: None, ("result",)),)])
def test_a_hidden_frame_has_no_line_for_a_tracer_but_where_it_shows_itself(hooks):
    def call(_self, /, *args, **kwargs):
        for each in args:
            try:
                kwargs[each]()
            except KeyError:
                return each
        return None

    code = weaving.weave(call.__code__, after=hooks, hidden=True)
    on_lines = [one for one in dis.get_instructions(code) if one.positions.lineno is not None]
    assert {one.opname for one in on_lines} <= {"RESUME", "RERAISE"}
    assert {one.positions.lineno for one in on_lines} <= {code.co_firstlineno}
    resumed = [one for one in dis.get_instructions(code) if one.opname == "RESUME"]
    assert all(one.positions.lineno for one in resumed)


# --- kinds of functions -----------------------------------------------------------------------


def test_every_reference_to_a_function_is_covered(place):
    def add(a, b=2):
        return a + b

    class Cart:
        plus = add

    alias, partial, bound = add, functools.partial(add, 10), types.MethodType(add, 5)
    in_a_list = [add]
    with probed(place(add), "(a, b, result)") as seen:
        assert add(1) == 3
        assert alias(1, b=3) == 4
        assert partial() == 12
        assert bound() == 7
        assert in_a_list[0](0) == 2
        assert list(map(add, [1, 2])) == [3, 4]
        assert Cart.plus(7) == 9
    assert seen.results == [
        (1, 2, 3),
        (1, 3, 4),
        (10, 2, 12),
        (5, 2, 7),
        (0, 2, 2),
        (1, 2, 3),
        (2, 2, 4),
        (7, 2, 9),
    ]


def test_methods_of_all_kinds_are_covered_also_when_they_were_bound_before(place):
    class Cart:
        size = 3

        def items(self, factor=1):
            return self.size * factor

        @staticmethod
        def tax(amount):
            return amount / 5

        @classmethod
        def empty(cls):
            return cls.__name__

        @property
        def total(self):
            return self.size + 1

        @functools.cached_property
        def cached(self):
            return self.size + 2

    class Basket(Cart):
        pass

    path = place(Cart)
    cart = Cart()
    items, tax, empty = cart.items, cart.tax, Basket.empty
    with probed(f"{path}.items", "(type(self).__name__, factor)") as seen:
        assert (items(2), Cart.items(cart), Basket().items(factor=3)) == (6, 3, 9)
        assert seen.results == [("Cart", 2), ("Cart", 1), ("Basket", 3)]
    with probed(f"{path}.tax", "amount") as seen:
        assert (tax(5), Cart.tax(10), cart.tax(15)) == (1, 2, 3)
        assert seen.results == [5, 10, 15]
    with probed(f"{path}.empty", "cls.__name__") as seen:
        assert (empty(), Cart.empty(), cart.empty()) == ("Basket", "Cart", "Cart")
        assert seen.results == ["Basket", "Cart", "Cart"]
    with probed(f"{path}.total") as seen:
        assert cart.total == 4
        assert seen.results == [4]
    with probed(f"{path}.cached") as seen:
        assert (cart.cached, cart.cached) == (5, 5)
        assert seen.results == [5]


def test_of_closures_that_share_a_code_object_only_one_is_probed(place):
    def make(factor, offset):
        def scale(x):
            return x * factor + offset

        return scale

    one, other = make(2, 1), make(3, 0)
    code = one.__code__
    assert other.__code__ is code
    with probed(place(one), "(x, result)") as seen:
        assert (one(5), other(5)) == (11, 15)
        assert other.__code__ is code
        assert one.__code__.co_freevars == code.co_freevars
    assert seen.results == [(5, 11)]
    assert one.__code__ is code


def test_free_variables_may_change_while_a_function_is_probed(place):
    def make():
        count = 0

        def step():
            nonlocal count
            count += 1
            return count

        def reset():
            nonlocal count
            count = 10

        return step, reset

    step, reset = make()
    with probed(place(step)) as seen:
        step()
        reset()
        assert step() == 11
    assert step() == 12
    assert seen.results == [1, 11]


def test_zero_argument_super_and_class_cells_work(place):
    class Base:
        def name(self):
            return "base"

    class Derived(Base):
        def name(self):
            return super().name() + __class__.__name__

    with events(f"{place(Derived)}.name") as seen:
        assert Derived().name() == "baseDerived"
    assert seen == ["call", "end", "return"]


def test_private_names_are_written_as_python_mangles_them(place):
    class C:
        def check(self, __x, *, __flag=1):  # noqa: PYI063
            return __x, __flag

    with probed(f"{place(C)}.check", "(_C__x, _C__flag, kwargs)") as seen:
        assert C().check(3) == (3, 1)
        assert C().check(3, _C__flag=2) == (3, 2)
    assert seen.results == [(3, 1, {"_C__flag": 1}), (3, 2, {"_C__flag": 2})]


def test_a_decorated_function_is_probed_by_the_names_of_what_it_wraps(place):
    def retry(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    @retry
    def charge(user, amount=5, *rest, fee=1, **more):
        return amount

    path = place(charge)
    with probed(path, "(user, amount, rest, fee, more)") as seen:
        charge("ann")
        charge("bob", 7, 8, fee=2, tip=3)
        charge(amount=1, user="eve")
    assert seen.results == [
        ("ann", 5, (), 1, {}),
        ("bob", 7, (8,), 2, {"tip": 3}),
        ("eve", 1, (), 1, {}),
    ]
    with probed(f"{path}.__wrapped__", "user") as seen:
        charge("ann")
    assert seen.results == ["ann"]


def test_a_name_that_nothing_behind_a_decorator_has_is_refused_with_the_one_that_was_meant(place):
    def reader(shelf, reader=None):
        return reader

    @functools.wraps(reader)
    def wrapper(*args, **kwargs):
        return reader(*args, **kwargs)

    with (
        pytest.raises(UnknownNameError, match="did you mean 'reader'"),
        probed(place(wrapper), "raeder"),
    ):
        pass


def test_wrapping_a_probed_function_copies_no_trace_of_the_probe(place):
    def plain(a, b=1):
        return a

    names = set(vars(plain))
    with probed(place(plain)):

        @functools.wraps(plain)
        def wrapper(*args):
            return plain(*args)

        assert set(vars(plain)) == names
    assert wrapper.__wrapped__ is plain
    assert inspect.signature(wrapper) == inspect.signature(plain)


def test_a_lambda_is_a_function_like_others(place):
    double = lambda x, *, by=2: x * by
    with probed(place(double=double), "(x, by)") as seen:
        assert double(4) == 8
    assert seen.results == [(4, 2)]


def test_recursion_is_seen_call_by_call(place):
    def fact(n):
        return 1 if n < 2 else n * fact(n - 1)

    with probed(place(fact), "(n, result)") as seen:
        assert fact(4) == 24
    assert seen.results == [(1, 1), (2, 2), (3, 6), (4, 24)]


def test_mutual_recursion_of_two_probed_functions(place):
    def even(n):
        return True if n == 0 else odd(n - 1)

    def odd(n):
        return False if n == 0 else even(n - 1)

    with events(place(even)) as evens, events(place(odd)) as odds:
        assert even(10) is True
    assert len(evens) == 3 * 6
    assert len(odds) == 3 * 5


def test_the_inside_of_an_lru_cache_is_probed_where_it_is_missed(place):
    @functools.lru_cache
    def square(n):
        return n * n

    with probed(f"{place(square)}.__wrapped__", "n") as seen:
        assert [square(3), square(3), square(4)] == [9, 9, 16]
    assert seen.results == [3, 4]


@pytest.mark.parametrize(
    "names",
    [
        ["self"],
        ["cls", "self"],
        ["args"],
        ["kwargs"],
        ["args", "kwargs"],
        ["start", "end", "now", "elapsed", "frame"],
        ["result", "exception"],
        ["value", "tags", "handler", "error", "locals", "globals"],
        ["ä", "名前", "ﬁ"],
        ["__debug", "__", "_"],
        ["print", "len", "type", "dict"],
    ],
)
@pytest.mark.parametrize("shape", ["{}", "{}, /", "*, {}", "*rest, {}", "{}, **more"])
def test_parameters_of_any_name_reach_the_body(stage, names, shape):
    listed = ", ".join(names)
    module = stage.script(f"""
        def subject({shape.format(listed)}):
            return [{listed}]
    """)
    parameters = inspect.signature(module.subject).parameters.values()
    plain = [
        each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    values = list(range(len(names)))
    if plain[0].kind is plain[0].KEYWORD_ONLY:
        args, kwargs = (), {each.name: value for each, value in zip(plain, values, strict=True)}
    else:
        args, kwargs = values, {}
    with events(f"{module.__name__}.subject") as seen:
        assert module.subject(*args, **kwargs) == values
    assert seen == ["call", "end", "return"]


def test_hundreds_of_parameters_are_handed_on(stage):
    names = [f"p{number}" for number in range(400)]
    module = stage.script(f"""
        def many({", ".join(names[:300])}, *, {", ".join(names[300:])}):
            return [{", ".join(names)}]
    """)
    values = list(range(400))
    keywords = dict(zip(names[300:], values[300:], strict=True))
    with probed(f"{module.__name__}.many", "(p0, p399, len(args), len(kwargs))") as seen:
        assert module.many(*values[:300], **keywords) == values
    assert seen.results == [(0, 399, 300, 100)]


def test_hundreds_of_free_variables_are_kept(stage):
    names = [f"v{number}" for number in range(300)]
    module = stage.script(f"""
        def make():
            {" = ".join(names)} = 1
            def inner(a):
                return a + {" + ".join(names)}
            return inner
        inner = make()
    """)
    with probed(f"{module.__name__}.inner") as seen:
        assert module.inner(1) == 301
    assert seen.results == [301]


@pytest.mark.parametrize("filename", ["", "<string>", "no such file.py", "a\nb", "ümläut é.py"])
def test_code_may_come_from_any_file(stage, filename):
    module = stage.script("def f(x):\n    return 1 // x\n", filename)
    bare = outcome(module.f, 0)
    with events(f"{module.__name__}.f") as seen:
        assert module.f(1) == 1
        assert outcome(module.f, 0) == bare
    assert len(seen) == 6


def test_defaults_are_those_of_the_function_also_when_they_change(place):
    def f(a, b=1, *, c=2):
        return a, b, c

    with probed(place(f), "(a, b, c)") as seen:
        assert f(0) == (0, 1, 2)
        f.__defaults__ = (5, 6)
        f.__kwdefaults__ = {"c": 7}
        assert f() == (5, 6, 7)
        f.__defaults__ = None
        with pytest.raises(
            TypeError, match=r"missing 2 required positional arguments: 'a' and 'b'"
        ):
            f()
    assert seen.results == [(0, 1, 2), (5, 6, 7)]
    f.__defaults__ = (8, 9)
    assert f() == (8, 9, 7)


def test_a_wrong_call_fails_as_it_would_without_a_probe(place):
    def f(a, /, b, *, c):
        return a

    calls = [((), {}), ((1,), {"a": 1}), ((1, 2, 3), {}), ((1, 2), {"c": 1, "d": 2})]
    bare = [outcome(f, *args, **kwargs) for args, kwargs in calls]
    with events(place(f)) as seen:
        assert [outcome(f, *args, **kwargs) for args, kwargs in calls] == bare
    assert seen == []


def test_a_signature_that_no_source_has_makes_no_difference(place):
    def f(a):
        return a

    odd = f.__code__.replace(co_varnames=("not a name",))
    f.__code__ = odd
    with probed(place(f), "(args, result)") as seen:
        assert f(3) == 3
    assert seen.results == [((3,), 3)]
    assert f.__code__ is odd


# --- generators -------------------------------------------------------------------------------


def echo(start):
    got = []
    try:
        while True:
            try:
                got.append((yield start + len(got)))
            except KeyError as error:
                got.append(error)
    except ValueError as error:
        return error, got
    finally:
        got.append("closed")


@pytest.mark.parametrize("names", EVENTS)
def test_a_generator_is_driven_by_all_its_methods(place, names):
    with events(place(echo), names) as seen:
        generator = echo(1)
        assert inspect.isgenerator(generator)
        assert next(generator) == 1
        assert generator.send("a") == 2
        assert next(generator) == 3
        key_error, value_error = KeyError(1), ValueError(2)
        assert generator.throw(key_error) == 4
        with pytest.raises(StopIteration) as stop:
            generator.throw(value_error)
        error, got = stop.value.value
        assert error is value_error
        assert got == ["a", None, key_error, "closed"]
        with pytest.raises(StopIteration):
            next(generator)
    assert seen == [name for name in ("call", "end", "return") if name in names]


def test_a_generator_that_is_not_started_has_no_events(place):
    with events(place(echo)) as seen:
        generator = echo(1)
        generator.close()
        del generator
        generator = echo(1)
        with pytest.raises(KeyError):
            generator.throw(KeyError(1))
    assert seen == []


def test_a_generator_that_is_closed_or_dropped_comes_to_its_end(place):
    with probed(place(echo), "type(exception)") as seen:
        generator = echo(1)
        next(generator)
        generator.close()
        generator = echo(1)
        next(generator)
        del generator
        gc.collect()
    assert seen.results == [GeneratorExit, GeneratorExit]


def test_elapsed_of_a_generator_counts_until_it_has_finished(place):
    def two():
        yield 1
        yield 2
        return 3

    with probed(place(two), "(result, elapsed >= 0, end >= start)") as seen:
        generator = two()
        next(generator)
        assert seen.results == []
        assert list(generator) == [2]
    assert seen.results == [(3, True, True)]


@pytest.mark.parametrize("names", EVENTS)
def test_delegating_to_a_probed_generator(place, names):
    def outer(start):
        result = yield from echo(start)
        yield result

    def drive():
        generator = outer(5)
        seen = [next(generator), generator.send(1), next(generator)]
        seen.append(repr(generator.throw(ValueError(3))))
        generator.close()
        return seen

    bare = drive()
    with events(place(echo), names):
        assert drive() == bare


def test_a_generator_may_refuse_to_be_closed(place):
    def stubborn():
        try:
            yield 1
        except GeneratorExit:
            yield 2

    def close():
        generator = stubborn()
        next(generator)
        return generator.close()

    def throw():
        generator = stubborn()
        next(generator)
        return generator.throw(GeneratorExit)

    bare = outcome(close), outcome(throw)
    with events(place(stubborn)):
        assert (outcome(close), outcome(throw)) == bare


def test_what_a_generator_returns_when_it_is_closed(place):
    def returning():
        try:
            yield 1
        except GeneratorExit:
            return 7

    def close():
        generator = returning()
        next(generator)
        return generator.close()

    bare = close()  # 7 since 3.13, None before
    with probed(place(returning)) as seen:
        assert close() == bare
    assert seen.results == [7]


def test_a_generator_that_runs_already_says_so(place):
    def itself():
        yield next(box[0])

    box = [itself()]
    bare = outcome(next, box[0])
    with events(place(itself)):
        box = [itself()]
        assert outcome(next, box[0]) == bare


def test_stop_iteration_out_of_a_generator_is_a_runtime_error(place):
    def stops():
        yield 1
        raise StopIteration(2)  # noqa: PLR1708

    def drive():
        return list(stops())

    bare = outcome(drive)
    assert bare[1]["type"] is RuntimeError
    with events(place(stops)):
        assert outcome(drive) == bare


def test_locals_of_a_suspended_generator_can_be_read(stage):
    # Free variables in the trampoline's frame that hold nothing crash 3.11 and 3.12.
    module = stage.script("""
        def make(a, b):
            def count(n):
                yield a + b + n
            return count
        count = make(1, 2)
    """)
    with events(f"{module.__name__}.count"):
        generator = module.count(3)
        assert next(generator) == 6
        assert generator.gi_frame.f_locals["n"] == 3
        assert inspect.getgeneratorlocals(generator)["a"] == 1
        assert inspect.getgeneratorstate(generator) == "GEN_SUSPENDED"


def test_generators_keep_their_names_and_code_names(place):
    with events(place(echo)):
        generator = echo(1)
        assert generator.__name__ == "echo"
        assert generator.__qualname__ == "echo"
        assert generator.gi_code.co_name == "echo"
        assert generator.gi_code.co_filename == __file__
        assert generator.gi_code.co_firstlineno == echo.__code__.co_firstlineno


def test_what_is_sent_is_not_kept_alive(place):
    class Thing:
        pass

    def sink():
        while True:
            try:
                yield
            except KeyError:
                pass

    with events(place(sink)):
        generator = sink()
        next(generator)
        generator.throw(KeyError(Thing()))
        gc.collect()
        assert not [each for each in gc.get_objects() if type(each) is Thing]
        generator.close()


# --- coroutines -------------------------------------------------------------------------------


@pytest.mark.parametrize("names", EVENTS)
def test_a_coroutine_is_awaited_cancelled_and_fails_as_before(place, names):
    variable = contextvars.ContextVar("variable", default=0)

    async def work(mode):
        variable.set(variable.get() + 1)
        try:
            await asyncio.sleep(0)
            if mode == "wait":
                await asyncio.Event().wait()
            if mode == "fail":
                raise ValueError(mode)
        finally:
            await asyncio.sleep(0)
        return variable.get()

    async def main():
        seen = [await work("ok"), await work("ok"), variable.get()]
        task = asyncio.create_task(work("wait"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel("enough")
        for awaitable in (task, work("fail"), asyncio.wait_for(work("wait"), 0.001)):
            try:
                await awaitable
            except BaseException as error:
                seen.append(picture(error))
        return seen

    bare = asyncio.run(main())
    with events(place(work), names) as seen:
        assert asyncio.run(main()) == bare
    assert sorted(seen) == sorted([*names] * 5)


def test_return_of_a_coroutine_is_when_it_finishes(place):
    async def work():
        await asyncio.sleep(0)
        return 5

    async def main():
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        assert seen.results == []
        await task

    with probed(place(work), "(result, elapsed > 0)") as seen:
        asyncio.run(main())
    assert seen.results == [(5, True)]


def test_a_coroutine_that_is_closed_early_comes_to_its_end(place):
    async def work():
        await asyncio.sleep(0)

    with probed(place(work), "type(exception)") as seen:
        coroutine = work()
        coroutine.send(None)
        coroutine.close()
    assert seen.results == [GeneratorExit]


@pytest.mark.parametrize("is_probed", [False, True])
def test_a_coroutine_that_is_never_awaited_is_warned_about(place, is_probed):
    async def forgotten():
        pass

    def forget():
        with pytest.warns(RuntimeWarning) as caught:  # noqa: PT031
            forgotten()
            gc.collect()
        return [str(each.message) for each in caught]

    bare = forget()
    with events(place(forgotten)) as seen:
        assert forget() == bare
    assert "forgotten' was never awaited" in bare[0]
    assert seen == []


def test_generator_based_coroutines_can_be_awaited(place):
    @types.coroutine
    def switch(value):
        got = yield value
        return got

    async def main():
        return await switch(3)

    flags = switch.__code__.co_flags
    with events(place(switch)) as seen:
        assert switch.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE
        coroutine = main()
        assert coroutine.send(None) == 3
        with pytest.raises(StopIteration) as stop:
            coroutine.send(4)
        assert stop.value.value == 4
    assert seen == ["call", "end", "return"]
    assert switch.__code__.co_flags == flags


def test_a_coroutine_function_stays_one_and_its_code_names_too(place):
    async def work():
        pass

    with events(place(work)):
        assert inspect.iscoroutinefunction(work)
        coroutine = work()
        assert coroutine.cr_code.co_name == "work"
        assert coroutine.__qualname__.endswith("work")
        coroutine.close()


# --- asynchronous generators ------------------------------------------------------------------


async def ticks(count):
    got = []
    try:
        for number in range(count):
            await asyncio.sleep(0)
            try:
                got.append((yield number))
            except KeyError as error:
                got.append(repr(error))
    finally:
        await asyncio.sleep(0)
        log.append(got)


log = []


async def drive_ticks():
    log.clear()
    seen = [[number async for number in ticks(3)]]
    generator = ticks(9)
    seen.append(await generator.asend(None))
    seen.append(await generator.asend("a"))
    seen.append(await generator.athrow(KeyError(1)))
    await generator.aclose()
    seen.append(await anext(generator, "over"))
    generator = ticks(9)
    await anext(generator)
    try:
        await generator.athrow(ValueError(2))
    except ValueError as error:
        seen.append(picture(error))
    async for number in ticks(9):
        if number == 1:
            break
    try:
        await ticks(2).asend(5)
    except TypeError as error:
        seen.append(str(error))
    await ticks(2).aclose()
    await asyncio.sleep(0)
    return seen, list(log)


@pytest.mark.parametrize("names", EVENTS)
def test_an_asynchronous_generator_is_driven_by_all_its_methods(place, names):
    bare = asyncio.run(drive_ticks())
    with events(place(ticks), names) as seen:
        assert asyncio.run(drive_ticks()) == bare
        gc.collect()
    assert [name for name in seen if name == names[0]] == [names[0]] * 4


def test_an_event_loop_closes_an_asynchronous_generator_once(place):
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context["message"]))
        kept.append(ticks(5))
        await anext(kept[-1])

    errors, kept = [], []
    with probed(place(ticks), "type(exception)") as seen:
        asyncio.run(main())
    assert errors == []
    assert seen.results == [GeneratorExit]


def test_an_asynchronous_generator_may_refuse_to_be_closed(place):
    async def stubborn(again):
        try:
            yield 1
        except GeneratorExit:
            if again:
                yield 2
        raise ValueError(3)

    async def main():
        seen = []
        for again in (False, True):
            for close in ("aclose", "athrow"):
                generator = stubborn(again)
                await anext(generator)
                arguments = (GeneratorExit,) if close == "athrow" else ()
                try:
                    seen.append(await getattr(generator, close)(*arguments))
                except Exception as error:
                    seen.append(picture(error))
        return seen

    bare = asyncio.run(main())
    with events(place(stubborn)):
        assert asyncio.run(main()) == bare


def test_hooks_for_asynchronous_generators_are_called_once_for_each(place):
    async def one():
        yield 1

    def drive():
        first, last = [], []
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(
            first.append, lambda generator: last.append(generator.ag_code.co_name)
        )
        try:
            generator = one()
            with pytest.raises(StopIteration):
                generator.asend(None).send(None)
            assert sys.get_asyncgen_hooks().firstiter == first.append
            count, seen = len(first), first[0] is generator
            first.clear()
            del generator
            gc.collect()
            return count, seen, last
        finally:
            sys.set_asyncgen_hooks(*hooks)

    bare = drive()
    assert bare == (1, True, ["one"])
    with events(place(one)):
        assert drive() == bare


# --- names ------------------------------------------------------------------------------------


def test_a_call_names_parameters_and_what_is_known_at_entry(place):
    def f(a, b=2, *rest, c=3, **more):
        return None

    value = "(a, b, rest, c, more, args, kwargs, type(start), now.tzinfo, frame.f_code.co_name)"
    with probed(place(f), value, "call") as seen:
        f(1)
        f(1, 5, 6, 7, c=8, d=9)
    me = "test_a_call_names_parameters_and_what_is_known_at_entry"
    assert seen.results == [
        (1, 2, (), 3, {}, (1, 2), {"c": 3}, float, None, me),
        (1, 5, (6, 7), 8, {"d": 9}, (1, 5, 6, 7), {"c": 8, "d": 9}, float, None, me),
    ]


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("event", ["call", "return"])
def test_frame_is_the_callers_whatever_the_kind(stage, kind, event):
    body = {"def": "yield 1"}.get(kind, "pass")
    module = stage.script(f"{kind} f():\n    {body}\n")
    with probed(f"{module.__name__}.f", "frame.f_code.co_name", event) as seen:
        if kind == "def":
            list(module.f())
        else:
            with pytest.raises(StopIteration):
                module.f().send(None)
    assert seen.results == ["test_frame_is_the_callers_whatever_the_kind"]


def test_a_return_names_the_result_or_the_exception_and_the_times(place):
    def f(x):
        return 1 / x

    value = "(x, result, exception, elapsed >= 0, end >= start)"
    with probed(place(f), value) as seen:
        f(1)
        with pytest.raises(ZeroDivisionError) as raised:
            f(0)
    assert seen.results == [(1, 1.0, None, True, True), (0, raised.value, raised.value, True, True)]


def test_parameters_go_before_entry_names_and_exit_names_before_parameters(place):
    def f(start, now, frame, result, exception, elapsed, end):
        return "out"

    path = place(f)
    every = "(start, now, frame, result, exception, elapsed, end)"
    with probed(path, every, "call") as entry, probed(path, every) as leaving:
        f(1, 2, 3, 4, 5, 6, 7)
    assert entry.results == [(1, 2, 3, 4, 5, 6, 7)]
    (seen,) = leaving.results
    assert seen[:5] == (1, 2, 3, "out", None)
    assert 0 <= seen[5] < 60
    assert seen[6] > 1e9


@pytest.mark.parametrize(
    "signature", ["args, kwargs", "*args, **kwargs", "kwargs, *args", "*kwargs, args"]
)
def test_args_and_kwargs_are_always_all_arguments(stage, signature):
    module = stage.script(f"def f({signature}): pass")
    bound = inspect.signature(module.f).bind
    with probed(f"{module.__name__}.f", "(args, kwargs)") as seen:
        for args, kwargs in [((1, 2), {}), ((1,), {"args": 3}), ((), {"args": 1, "kwargs": 2})]:
            try:
                wanted = bound(*args, **kwargs)
            except TypeError:
                continue
            module.f(*args, **kwargs)
            assert seen.results[-1] == (wanted.args, wanted.kwargs)
    assert seen.results


def test_a_parameter_keeps_its_value_of_the_call_when_the_body_changes_it(place):
    def f(x):
        x += 1
        return x

    path = place(f)
    with probed(path, "(x, result)") as leaving, probed(path, "x", "end") as inside:
        f(1)
    assert leaving.results == [(1, 2)]
    assert inside.results == [2]


def test_entries_of_keyword_arguments_can_be_named(place):
    def f(**options):
        return None

    with probed(place(f), "(tier, options)") as seen:
        f(tier="gold")
        f(tier="tin", other=1)
    assert seen.results == [("gold", {"tier": "gold"}), ("tin", {"tier": "tin", "other": 1})]


def test_a_keyword_argument_that_a_call_has_not_is_called_by_its_name(place):
    def f(**options):
        return None

    with probed(place(f), "tier") as seen:
        f(other=1)
    assert "this call has no argument 'tier'" in seen.status.error
    assert "kwargs.get('tier')" in seen.status.error


def test_other_names_are_the_namespaces_then_the_modules_then_builtins(stage):
    from diagnose.managers import InstrumentManager

    manager = InstrumentManager()
    manager.global_namespace["limit"] = "namespace"
    manager.global_namespace["x"] = "namespace"
    module = stage.script("limit = x = 'module'\nrate = 1\nsum = max\ndef f(x): pass")
    with probed(
        f"{module.__name__}.f", "(x, limit, rate, sum([1, 2]), min(1, 2))", mgr=manager
    ) as seen:
        module.f("parameter")
        module.rate = 2
        manager.global_namespace["limit"] = "changed"
        module.f(0)
    assert seen.results == [("parameter", "namespace", 1, 2, 1), (0, "changed", 2, 2, 1)]


@pytest.mark.parametrize(
    ("value", "event", "hint"),
    [
        ("usr.tier", "call", "did you mean 'user'"),
        ("resullt", "return", "did you mean 'result'"),
        ("result", "call", "use a parameter, or one of start, now, args, kwargs, frame"),
        ("elapsed", "end", "use a local variable of the function or a global of its module"),
        ("totl", "end", "did you mean 'total'"),
        ("[y for y in user if z]", "call", "'z' means nothing"),
    ],
)
def test_an_unknown_name_is_an_error_at_once_with_a_near_miss(place, value, event, hint):
    def f(user):
        total = len(user)
        return total

    path = place(f)
    code = f.__code__
    with probed(path, "total", "end") as other:
        armed = f.__code__
        with pytest.raises(UnknownNameError, match=hint):
            with probed(path, value, event):
                pass
        assert f.__code__ is armed
        assert f("abc") == 3
    assert other.results == [3]
    assert f.__code__ is code


def test_names_of_comprehensions_and_lambdas_are_their_own(place):
    def f(rows, limit):
        return None

    value = "sorted((n for n in rows if n < limit), key=lambda n: -n * limit)"
    with probed(place(f), value) as seen:
        f([1, 5, 3, 9], 6)
    assert seen.results == [[5, 3, 1]]


def test_nothing_that_a_user_names_collides_with_the_engines_own_names(place):
    def f(ident, error, all, value, began, result_, step, agen, send, C, d, E, D):  # noqa: A002
        return ident

    names = "ident, error, all, value, began, result_, step, agen, send, C, d, E, D"
    path = place(f)
    values = tuple(range(13))
    tags = {"tags": f"{{'all': ({names})}}"}
    with (
        probed(path, f"({names})", "call") as entry,
        probed(path, f"({names}, elapsed >= 0)", when="all == 2", custom=tags) as leaving,
        probed(path, f"({names})", "end") as inside,
    ):
        f(*values)
    assert entry.results == inside.results == [values]
    assert leaving.log == [({"all": values}, (*values, True))]


# --- changes from outside ---------------------------------------------------------------------


@pytest.mark.replaces_code
def test_code_that_somebody_else_put_in_meanwhile_is_left_alone(place, caplog):
    def f(a):
        return a

    theirs = (lambda a: a * 100).__code__
    with probed(place(f), "result") as seen:
        f(1)
        f.__code__ = theirs
        assert f(2) == 200
    assert f.__code__ is theirs
    assert seen.results == [1]
    timers_ran()
    assert "replaced by somebody else" in caplog.text


@pytest.mark.replaces_code
def test_an_instrument_that_is_added_later_covers_the_code_that_is_there_then(place):
    def f(a):
        return a

    path = place(f)
    theirs = (lambda a: a * 100).__code__
    with probed(path, "(a, result)") as first:
        f.__code__ = theirs
        with probed(path, "(a, result)") as second:
            assert f(2) == 200
    assert f.__code__ is theirs
    assert first.results == second.results == [(2, 200)]


@pytest.mark.replaces_code
def test_new_code_without_the_parameters_that_instruments_name_gets_no_probe(place):
    def f(a, b):
        return a + b

    path = place(f)
    theirs = (lambda x: x * 100).__code__
    with probed(path, "a") as stale, probed(path, "b") as other:
        f.__code__ = theirs
        with pytest.raises(ProbeError, match="no parameter 'a': the code of"):
            with probed(path, "x"):
                pass
        assert f(2) == 200
    assert f.__code__ is theirs
    assert stale.results == other.results == []
    with probed(path, "x") as seen:
        f(3)
    assert seen.results == [3]
    assert f.__code__ is theirs


def code_like(function, **changes):
    """A function of other code, as generators of code make them."""
    return types.FunctionType(function.__code__.replace(**changes), {}, function.__name__)


def varint(value):
    """A number as tables of lines have it."""
    out = bytearray()
    while value >> 6:
        out.append(0x40 | value & 0x3F)
        value >>= 6
    return bytes([*out, value])


@pytest.mark.parametrize("event", ["call", "return"])
@pytest.mark.parametrize("value", ["frame", "elapsed and frame"])
def test_the_first_function_of_a_thread_has_no_caller(place, event, value):
    done = threading.Event()

    def subject(x):
        done.set()

    if event == "call":
        value = value.replace("elapsed", "x")
    with probed(place(subject), value, event) as seen:
        _thread.start_new_thread(subject, (1,))
        assert done.wait(DEADLINE_SECONDS)
        wait_until(lambda: seen.results)
    assert seen.results == [None]
    assert seen.status.error is None


def test_code_without_a_table_of_lines_is_probed(place):
    def subject(x):
        y = x + 1
        return y

    table = subject.__code__.co_linetable
    for lines in (b"", table[: len(table) // 2]):
        subject = code_like(subject, co_linetable=lines)
        for event in ("call", "return", "end"):
            with probed(place(subject), "x", event) as seen:
                assert subject(1) == 2
            assert seen.results == [1]


def test_lines_that_end_before_they_begin_are_written(place):
    def subject(x):
        return x

    units = len(subject.__code__.co_code) // 2
    entry = varint(0) + varint((1 << 32) - 1) + varint(1) + varint(2)
    table = b"".join(
        bytes([0xF0 | min(units - done, 8) - 1]) + entry for done in range(0, units, 8)
    )
    subject = code_like(subject, co_linetable=table)
    line, last, *_ = next(subject.__code__.co_positions())
    assert last < line
    with probed(place(subject), "hotspots and x") as seen:
        assert subject(1) == 1
    assert seen.results == [1]


@pytest.mark.parametrize("event", ["call", "return", "end"])
def test_code_that_no_compiler_made_is_an_error_that_says_so(place, event):
    def subject(x):
        return x

    code = subject.__code__
    unit = code.co_code.index(opcode.opmap["RESUME"]) // 2
    units = 1 + assembly.CACHES[opcode.opmap["RESUME"]]
    raw = bytearray(code.co_code)
    raw[2 * unit : 2 * (unit + units)] = bytes([opcode.opmap["NOP"], 0] * units)
    subject = code_like(subject, co_code=bytes(raw))
    assert subject(1) == 1
    with pytest.raises(ProbeError, match=r"subject.* can't be probed: .* no RESUME"):
        with probed(place(subject), "x", event):
            pass
    assert subject(1) == 1


@pytest.mark.parametrize("count", range(1, 6))
def test_a_generator_expression_is_woven_as_it_is(count):
    # No path leads to one, but since 3.15 there is something on its stack when its body begins.
    def around(numbers):
        return (
            (number, pulled.append(number))[0] for number in numbers if number % 2 or number > 4
        )

    (code,) = (each for each in around.__code__.co_consts if isinstance(each, types.CodeType))
    starts = flow.line_starts(assembly.read(code))
    kept = ("start", "now", "frame", "hotspots", "elapsed")[:count]
    seen, looked, pulled, before = [], [], [], []
    hook = weaving.Hook(lambda *values: seen.append(len(values)), (*kept, "result"))
    prelude = weaving.Hook(lambda *_: before.append("called"), (), lambda: "prelude", ())
    looks = weaving.Hook(
        lambda value: value is weaving.MISSING or looked.append(value), ("number",)
    )

    def woven(**hooks):
        made = weaving.weave(code, report=lambda *_: "hotspots", **hooks)
        return types.FunctionType(
            made, globals(), closure=tuple(types.CellType(pulled) for _ in code.co_freevars)
        )

    for hooks in (
        {"before": [prelude]},
        {"after": [hook]},
        {"before": [prelude], "after": [hook], "ends": [looks]},
        {"after": [hook], "lines": [(line, looks) for line in starts]},
        {"lines": [(line, looks) for line in starts]},
    ):
        function = woven(**hooks)
        # What the call is given is an iterable since 3.15, and was an iterator.
        assert list(function(iter(range(1, 7)))) == [1, 3, 5, 6]
        generator = function(iter(range(1, 7)))
        assert next(generator) == 1
        generator.close()
    assert pulled == [1, 3, 5, 6, 1] * 5
    assert before == ["called"] * 4
    assert seen == [count + 1] * 6
    assert set(looked) == {1, 2, 3, 4, 5, 6}


def test_a_condition_on_a_name_that_a_parameter_has_too_is_decided_by_the_result(place):
    def subject(result, elapsed=None):
        return result + 10

    with probed(place(subject), "result", when="result > 5") as seen:
        subject(1)
    assert seen.results == [11]
    with probed(place(subject), "result", when="elapsed == None") as seen:
        subject(1)
    assert seen.results == []


def test_woven_code_and_handlers_can_be_keys_of_dicts(place):
    # Tools (profilers, coverage) keep what they know by code object.
    from diagnose.instruments import Instrument

    class Everything(Instrument):
        def fire(self, _globals, _locals):
            frames.append(sys._getframe(1).f_code)

    def f(x):
        frames.append(sys._getframe(1).f_code)
        return x

    from stage import attached

    frames = []
    with attached(place(f), Everything("n", "math.pi + x"), Everything("n", "x", "end")):
        f(1)
        frames.append(f.__code__)
    assert len(frames) == 4
    assert len(dict.fromkeys(frames, True)) == 4


def test_parameters_are_read_off_a_code_object():
    def f(a, b, /, c, *d, e, **g):
        local = a
        return local

    parameters = weaving.Parameters.of(f.__code__)
    assert parameters == weaving.Parameters(("a", "b", "c"), ("e",), "d", "g")
    assert parameters.names == ("a", "b", "c", "e", "d", "g")


@pytest.mark.parametrize("size", range(4))
def test_all_combinations_of_parameter_kinds(stage, size):
    pieces = ["a, /", "b", "c=3", "*d", "e", "f=6", "**g"]
    for chosen in itertools.combinations(pieces, size):
        if "c=3" in chosen and "*d" not in chosen and {"e", "f=6"} & set(chosen):
            continue
        names = [piece.strip("*").split("=")[0].split(",")[0] for piece in chosen]
        module = stage.script(f"def f({', '.join(chosen)}):\n    return [{', '.join(names)}]")
        calls = [((1,), {}), ((1, 2), {}), ((), {}), ((1,), {"e": 5, "b": 2, "x": 9})]
        bare = [outcome(module.f, *args, **kwargs) for args, kwargs in calls]
        with events(f"{module.__name__}.f"):
            assert [outcome(module.f, *args, **kwargs) for args, kwargs in calls] == bare
