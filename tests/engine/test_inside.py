# ruff: noqa: F841 - probes look at locals that nobody else uses
from __future__ import annotations

import asyncio
import contextlib
import dis
import json.decoder
import logging
import sys
import tarfile
import tokenize
from pathlib import Path
from types import CodeType

import pytest
from stage import attached, outcome, probed

from diagnose import attach_to
from diagnose.bytecode import assembly, weaving
from diagnose.errors import UnknownNameError
from diagnose.instruments import ProbeTestInstrument

# --- what is seen -----------------------------------------------------------------------------


def test_every_local_is_there_at_the_end(place):
    def outer(base):
        free = base + 1

        def work(a, *rest, b=2, **more):
            local = a + b
            index = 2
            shared = [free + each for each in rest]
            later = lambda: shared
            return later() and local

        return work

    work = outer(10)
    value = "(a, rest, b, more, local, index, shared, free, callable(later), __name__)"
    with probed(place(work), value, "end") as seen:
        work(1, 5, b=3, c=4)
    assert seen.results == [(1, (5,), 3, {"c": 4}, 4, 2, [16], 11, True, __name__)]


def test_locals_are_those_of_the_moment_before_the_return(place):
    def work(x):
        y = x
        try:
            return y
        finally:
            y += 100

    with probed(place(work), "(x, y)", "end") as seen:
        assert work(1) == 1
    assert seen.results == [(1, 101)]


WAYS_OUT = """
    import contextlib

    def plain(x):
        step = 0
        if x == 1:
            return "one"
        step = 1
        for step in range(2, 9):
            if step == x:
                return step
            if x == 9 and step == 4:
                raise ValueError(step)
        else:
            step = 10
        return

    def clean_up(x):
        step = 0
        try:
            step = 1
            if x < 3:
                return 10 // x
            [][x]
        except ZeroDivisionError:
            step = 2
            return "zero"
        except IndexError:
            step = 3
            if x == 4:
                raise
            if x == 5:
                raise LookupError from None
        else:
            step = 4
        finally:
            step += 100
            if x == 6:
                return "swallowed"
        return "end"

    def managed(x):
        step = 0
        with contextlib.suppress(KeyError), open("/dev/null") as file:
            step = 1
            if x == 1:
                return 1
            with file:
                step = 2
                if x == 2:
                    raise KeyError
                if x == 3:
                    raise ValueError
                return step
        return "suppressed"

    def matched(x):
        step = 0
        match x:
            case 0 | 1:
                return "small"
            case [first, *rest]:
                step = first
            case {"step": step}:
                return step
            case int() if x > 5:
                raise ValueError
        return step

    def nested(x):
        step = x
        inner = lambda y: [[a * b * step for a in range(y)] for b in range(y)]
        while True:
            step += 1
            if step > 5:
                return inner(step - 4) if x % 2 else {k: v for k, v in [(step, x)]}

    def looped_tries(x):
        step = 0
        for step in range(3):
            try:
                try:
                    raise KeyError(step)
                except KeyError as error:
                    if step == x:
                        return step
                    raise TypeError(step)
            except Exception as error:
                last = error
        try:
            try:
                raise last
            finally:
                step = 20
        except* TypeError as group:
            step = 30
        return step
"""


@pytest.mark.parametrize(
    "name", ["plain", "clean_up", "managed", "matched", "nested", "looped_tries"]
)
def test_every_way_out_is_one_end(stage, name):
    module = stage.script(WAYS_OUT)
    function = getattr(module, name)
    arguments = [*range(10), [4, 5], {"step": 7}]
    bare = [outcome(function, each) for each in arguments]
    with probed(f"{module.__name__}.{name}", "(x, step)", "end") as seen:
        assert [outcome(function, each) for each in arguments] == bare
    assert [x for x, _ in seen.results] == arguments
    assert len({str(step) for _, step in seen.results}) > 1


def test_an_exception_is_an_end_with_the_locals_that_there_were(place):
    def work(x):
        doubled = x * 2
        raise ValueError(doubled)

    with probed(place(work), "(x, doubled)", "end") as seen:
        for number in range(3):
            with pytest.raises(ValueError, match=str(number * 2)):
                work(number)
    assert seen.results == [(0, 0), (1, 2), (2, 4)]


def test_an_exception_of_a_callee_is_the_callers_end_too_with_its_own_locals(place):
    def inner(x):
        mine = x + 1
        raise KeyError(mine)

    def outer(x):
        mine = x + 100
        return inner(mine)

    path = place(outer)
    with probed(path, "mine", "end") as of_outer, probed(place(inner), "mine", "end") as of_inner:
        with pytest.raises(KeyError):
            outer(1)
    assert (of_outer.results, of_inner.results) == ([101], [102])


def test_ends_of_a_recursion_are_those_of_each_call(place):
    def walk(n):
        mine = n * 10
        if n == 0:
            raise LookupError
        try:
            walk(n - 1)
        except LookupError:
            if n == 2:
                return "caught"
            raise
        return mine

    with probed(place(walk), "mine", "end") as seen:
        assert walk(4) == 40
    assert seen.results == [0, 10, 20, 30, 40]


def test_generators_and_coroutines_end_once(place):
    def numbers(n):
        total = 0
        for number in range(n):
            total += yield number
        return total

    async def work(n):
        total = n
        await asyncio.sleep(0)
        if n > 5:
            raise ValueError
        return total

    async def ticks(n):
        for tick in range(n):
            await asyncio.sleep(0)
            yield tick

    async def main():
        for each in (1, 9):
            with contextlib.suppress(ValueError):
                await work(each)
        async for _ in ticks(3):
            pass
        generator = ticks(3)
        await anext(generator)
        await generator.aclose()

    path = place(numbers)
    with probed(path, "(n, total)", "end") as seen:
        generator = numbers(3)
        next(generator)
        assert (generator.send(5), generator.send(6)) == (1, 2)
        assert seen.results == []
        with pytest.raises(StopIteration):
            generator.send(7)
        generator = numbers(2)
        next(generator)
        generator.close()
    assert seen.results == [(3, 18), (2, 0)]
    with (
        probed(place(work), "(n, total)", "end") as ends,
        probed(place(ticks), "tick", "end") as last,
    ):
        asyncio.run(main())
    assert ends.results == [(1, 1), (9, 9)]
    assert last.results == [2, 0]


def test_a_local_that_has_no_value_is_called_by_its_name(place, caplog):
    def work(x):
        if x:
            total = 1
        return x

    with probed(place(work), "total", "end") as seen:
        assert (work(1), work(0), work(1)) == (1, 0, 1)
    assert seen.results == [1]
    assert seen.status.code == "runtime-error"
    assert "'total' has no value there" in seen.status.error


def test_a_local_that_was_deleted_has_no_value(place):
    def work(x):
        del x

    with probed(place(work), "x", "end") as seen:
        work(1)
    assert "'x' has no value there" in seen.status.error


def test_several_ends_on_one_function_see_the_same_frame_and_fail_apart(place):
    def work(x):
        y = x + 1
        return y

    path = place(work)
    with (
        probed(path, "x", "end") as one,
        probed(path, "1 // x", "end") as failing,
        probed(path, "y", "end", when="x > 0") as other,
    ):
        work(0)
        work(1)
    assert one.results == [0, 1]
    assert other.results == [1 + 1]
    assert failing.status.state == "error"
    assert other.status.suppressed == {"condition": 1}


def test_ends_may_come_and_go_beside_other_events(place):
    def work(x):
        y = x + 1
        return y

    path = place(work)
    original = work.__code__
    seen = []
    with probed(path, "x", "call") as calls:
        seen.append(work(0))
        with probed(path, "y", "end") as first:
            seen.append(work(1))
            with probed(path, "y", "end") as second:
                seen.append(work(2))
            seen.append(work(3))
        seen.append(work(4))
        with probed(path, "y", "end") as third:
            seen.append(work(5))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert calls.results == [0, 1, 2, 3, 4, 5]
    assert (first.results, second.results, third.results) == ([2, 3, 4], [3], [6])
    assert work.__code__ is original


def test_names_of_a_call_mean_nothing_at_the_end(place):
    def work(x):
        return x

    for name in ("result", "args", "elapsed", "frame"):
        with pytest.raises(UnknownNameError, match="use a local variable"):
            with probed(place(work), name, "end"):
                pass


def test_what_an_end_raises_stays_inside_whatever_class_it_is(place):
    class Stop(ProbeTestInstrument):
        def emit(self, name, value, tags):
            raise KeyboardInterrupt

    def work(x):
        return x

    stop = Stop("n", "x", "end")
    with attached(place(work), stop):
        assert work(1) == 1
    assert "KeyboardInterrupt" in stop.status.error


def test_a_call_that_is_inside_when_the_end_is_taken_off_does_not_fire(place):
    def work(step):
        step()
        return 1

    probe = attach_to(place(work))
    seen = ProbeTestInstrument("n", "step", "end")
    probe.attach("end", seen)
    assert work(lambda: probe.detach("end")) == 1
    assert seen.results == []


def test_frames_and_locals_are_not_kept_alive(place):
    import gc
    import weakref

    class Thing:
        pass

    def work(fail):
        thing = Thing()
        died.append(weakref.ref(thing))
        if fail:
            raise ValueError

    died = []
    with probed(place(work), "type(thing).__name__", "end") as seen:
        work(False)
        assert died[0]() is None
        with contextlib.suppress(ValueError):
            work(True)
        gc.collect()
        assert died[1]() is None
    assert seen.results == ["Thing", "Thing"]


# --- the byte code ----------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in 3.12")
def test_no_tool_id_is_taken(place):
    def work(x):
        return x

    taken = [number for number in range(6) if sys.monitoring.get_tool(number) is None]
    for number in taken:
        sys.monitoring.use_tool_id(number, f"other {number}")
    try:
        with probed(place(work), "x", "end") as seen:
            work(3)
        assert seen.results == [3]
    finally:
        for number in taken:
            sys.monitoring.free_tool_id(number)


def nothing():
    pass


HOOK = weaving.Hook(nothing)


def listing(code):
    """Operations, where they jump, their places in the text, what handles their exceptions."""
    found = []
    instructions = assembly.read(code)
    numbers = {id(each): number for number, each in enumerate(instructions)}
    for each in instructions:
        handler = each.handler
        if handler is not None:
            handler = numbers[id(handler.target)], handler.depth, handler.keeps_place
        jump = each.argument if each.target is None else numbers[id(each.target)]
        found.append((dis.opname[each.opcode], jump, each.location, handler))
    return found


def all_codes(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from all_codes(constant)


@pytest.mark.parametrize(
    "module", [json.decoder, logging, tarfile, tokenize, dis, asyncio.events, contextlib]
)
def test_code_that_is_read_and_written_is_the_same(module):
    text = Path(module.__file__).read_text()
    compiled = compile(text, module.__file__, "exec", dont_inherit=True)
    count = 0
    for code in all_codes(compiled):
        written = assembly.write(code, assembly.read(code))
        assert written.co_code == code.co_code
        assert list(written.co_positions()) == list(code.co_positions())
        assert listing(written) == listing(code)
        count += 1
    assert count > 10


@pytest.mark.parametrize("size", [30, 120, 300, 12_000])
def test_long_jumps_and_many_constants_are_kept(stage, size):
    # Bodies around the sizes where a jump or a constant needs one more EXTENDED_ARG.
    for extra in range(0, 24, 3):
        body = "\n".join(f"            total += {1000 + n}" for n in range(size + extra))
        module = stage.script(f"""
        def work(x):
            total = 0
            for each in x:
                if each == 2:
                    return total
                try:
                    total += 10 // each
                except ZeroDivisionError:
                    continue
                if each == 3:
                    return -total
{body.replace("            ", "                ")}
            return total
        """)
        bare = [module.work(each) for each in ([1, 0, 2], [1, 3], [0], [1, 1])]
        with (
            probed(f"{module.__name__}.work", "total", "end") as seen,
            probed(f"{module.__name__}.work", "elapsed"),
            probed(f"{module.__name__}.work", "total", "line:+2") as lines,
        ):
            assert [module.work(each) for each in ([1, 0, 2], [1, 3], [0], [1, 1])] == bare
        assert [abs(each) for each in seen.results] == [abs(each) for each in bare]
        assert len(lines.results) >= 4
        if size > 1000:
            break


def test_code_without_columns_is_woven_too():
    code = logging.Formatter.format.__code__
    bare = code.replace(co_linetable=bytes([0x80 | 13 << 3 | 7, 0] * (len(code.co_code) // 16 + 1)))
    assert assembly.write(bare, assembly.read(bare)).co_code == code.co_code
    weaving.weave(bare, after=[HOOK], ends=[HOOK])
