"""At the recursion limit a probed function does what the bare one does."""

from __future__ import annotations

import functools
import itertools
import sys
import threading

import pytest
from stage import attached, outcome, probed

from diagnose import reentrancy
from diagnose.bytecode import assembly, flow
from diagnose.instruments import ProbeTestInstrument

ROOM = 40
"""How many calls fit. All that a probe may need fits several times."""


@pytest.fixture(autouse=True)
def nobody_is_left_busy():
    yield
    assert threading.get_ident() not in reentrancy.BUSY


PROGRAMS = {
    "returns": """
        def subject(n, x=1, *rest):
            m = n
            if n:
                m = subject(n - 1, x)
            x = 2
            return m

        run = subject
    """,
    "calls C functions": """
        def subject(n, x=1):
            m = len(str(n))
            if n:
                return abs(subject(n - 1, x)) + m
            return m

        run = subject
    """,
    "raises": """
        def subject(n, x=1):
            m = n
            if not n:
                m = 1 / n
            m = subject(n - 1, x)
            return m

        run = subject
    """,
    "handles errors": """
        three = 3

        def subject(n, x=1):
            m = []
            try:
                if not n:
                    m = 1 / n
                m = subject(n - 1, x)
            except ZeroDivisionError as error:
                m = ["zero"]
                if n is three:
                    raise
            except RecursionError as error:
                m = ["RecursionError", n, error.__traceback__.tb_next is None]
            finally:
                x = 2
            return m

        run = subject
    """,
    "leaves blocks": """
        class Block:
            def __enter__(self):
                return self

            def __exit__(self, kind, error, trace):
                seen.append(kind)
                return kind is ZeroDivisionError

        seen = []

        def subject(n, x=1):
            m = n
            with Block() as block:
                for m in [n]:
                    if not n:
                        m = 1 / n
                    m = subject(n - 1, x)
            return m

        def run(n):
            seen.clear()
            return subject(n), list(seen)
    """,
    "generator": """
        def subject(n, x=1):
            m = n
            yield m
            if n:
                yield from subject(n - 1, x)
            x = 2
            yield -m

        def run(n):
            return list(subject(n))
    """,
    "coroutine": """
        async def subject(n, x=1):
            m = n
            if n:
                m = await subject(n - 1, x)
            x = 2
            return m

        def run(n):
            try:
                subject(n).send(None)
            except StopIteration as end:
                return end.value
    """,
    "asynchronous generator": """
        async def subject(n, x=1):
            m = n
            yield m
            if n:
                async for m in subject(n - 1, x):
                    yield m
            x = 2

        async def collect(n):
            return [each async for each in subject(n)]

        def run(n):
            try:
                collect(n).send(None)
            except StopIteration as end:
                return end.value
    """,
}

HITS = {
    "call": [("call", "n")],
    "call, when": [("call", "(n, args, kwargs)")],
    "return": [("return", "(n, x)")],
    "elapsed": [("return", "elapsed")],
    "times": [("return", "(start, now, end, elapsed)")],
    "frames": [("call", "frame"), ("return", "(frame, kwargs)")],
    "end": [("end", "m")],
    "all variables": [("end", "locals()")],
    "line": [("line:+2", "m"), ("line:+3", "n")],
    "hotspots": [("return", "hotspots.worst")],
    "all": [
        ("call", "now"),
        ("return", "(result, kwargs)"),
        ("return", "elapsed"),
        ("end", "m"),
        ("line:+2", "x"),
        ("return", "hotspots"),
    ],
}

CONDITIONS = [None, "n > 2", "str(n) != '3'"]


class Quiet(ProbeTestInstrument):
    def handle_error(self, probe):
        """Stay on: what it evaluates does not fit."""


class Checked(Quiet):
    def check_call(self, probe, /, *args, **kwargs):
        return True


def outcomes(module, rooms=(ROOM,)):
    """What calls do that fit easily, that just do, and that do not."""
    depth = sum(1 for _ in iter_frames())
    before = sys.getrecursionlimit()
    found = []
    for room in rooms:
        for n in [*range(3, room - 20, 4), *range(room - 20, room + 2)]:
            sys.setrecursionlimit(depth + room)
            try:
                got = outcome(module.run, n)
            finally:
                sys.setrecursionlimit(before)
            found.append((n, got))
    return found


def iter_frames():
    frame = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def made(stage, program):
    module = stage.script(PROGRAMS[program])
    # Calls of a function whose code was ever set are not specialised from 3.13 on, and 3.13
    # does not look at the limit in some of those that are.
    module.subject.__code__ = module.subject.__code__.replace()
    outcomes(module)  # 3.11 counts calls of C functions as long as they are not specialised
    return module


@pytest.mark.parametrize("hits", HITS)
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.replaces_code
def test_a_probed_function_goes_as_deep_as_the_bare_one(stage, program, hits):
    module = made(stage, program)
    bare = outcomes(module)
    assert repr(bare[-1]).count("RecursionError") > repr(bare[0]).count("RecursionError")
    for kind, when in itertools.product([Quiet, Checked], CONDITIONS):
        instruments = [kind("n", value, event, when=when) for event, value in HITS[hits]]
        with attached(f"{module.__name__}.subject", *instruments):
            outcomes(module)
            probed = outcomes(module)
        assert probed == bare, (kind, when)
        for instrument in instruments:
            assert instrument.results or when


@pytest.mark.replaces_code
def test_an_error_of_the_function_itself_right_behind_a_line_probe_is_its_own(stage):
    module = stage.script("""
    class Thing:
        @property
        def next(self):
            return subject(self.n - 1)

    def subject(n):
        thing = Thing()
        thing.n = n
        found = n and (thing
            .next)
        return found

    run = subject
    """)
    module.subject.__code__ = module.subject.__code__.replace()
    calls = functools.partial(outcomes, module, rooms=(ROOM, ROOM + 1))
    calls()
    bare = calls()
    lines = flow.line_starts(assembly.read(module.subject.__code__))
    assert len(lines) == 5
    for line in lines:
        with probed(f"{module.__name__}.subject", "n", f"line:{line}") as seen:
            calls()
            assert calls() == bare, line
        assert seen.results


@pytest.mark.parametrize(
    "value", ["elapsed", "start", "now", "frame", "kwargs", "hotspots", "(n, hotspots, elapsed)"]
)
def test_what_began_without_room_is_not_served_at_its_end(stage, value):
    module = stage.script("""
    def subject(n, **more):
        n = yield n
        return n

    def deep(n, generator):
        return deep(n - 1, generator) if n else next(generator)
    """)
    depth, before = sum(1 for _ in iter_frames()), sys.getrecursionlimit()
    failed = 0
    with probed(f"{module.__name__}.subject", value) as seen:
        for n in range(ROOM - 20, ROOM):
            for generator in (module.subject(n), module.subject(n, more=1)):
                sys.setrecursionlimit(depth + ROOM)
                try:
                    started = outcome(module.deep, n, generator)[0] == "returned"
                finally:
                    sys.setrecursionlimit(before)
                if started:
                    assert next(generator, "over") == "over"
                else:
                    failed += 1
    assert seen.status.error is None
    assert failed > 0
    assert 0 < len(seen.results) <= 40 - failed
    if value == "elapsed":
        assert all(0 < each < 30 for each in seen.results)


def test_what_an_instrument_raises_stays_inside_at_the_limit_too(stage):
    class Stop(BaseException):
        pass

    class Stopped:
        def __str__(self):
            raise Stop

    module = stage.script("""
    def subject(n, x):
        return subject(n - 1, x) if n else n
    """)
    depth, before = sum(1 for _ in iter_frames()), sys.getrecursionlimit()
    for event in ("call", "return", "end", "line:+1"):
        for n in range(ROOM - 20, ROOM + 2):
            with attached(f"{module.__name__}.subject", Quiet("n", "str(x)", event, when="n == 0")):
                sys.setrecursionlimit(depth + ROOM)
                try:
                    module.subject(n, Stopped())
                except RecursionError:
                    pass
                finally:
                    sys.setrecursionlimit(before)
