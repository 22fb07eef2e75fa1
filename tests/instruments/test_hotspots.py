from __future__ import annotations

import asyncio
import sys
import threading
import time
import weakref

import pytest
from stage import Interrupt, attached, in_thread, interrupts, outcome, probed

from diagnose.bytecode import timing
from diagnose.instruments import HistogramInstrument, LogInstrument, ProbeTestInstrument

WORK = """\
import time

def work(n, pause=0.0):
    total = 0
    for each in range(n):
        if each % 2:
            total += each
        else:
            total -= 1
    while n > 0:
        n -= 1
    time.sleep(pause)
    return total

def fails(pause):
    try:
        time.sleep(pause); raise ValueError
    except ValueError:
        pass
    for each in [1]:
        raise KeyError(each)

def numbers(n):
    for each in range(n):
        yield each

async def waits(n):
    import asyncio
    for _ in range(n):
        await asyncio.sleep(0)
    async for _ in ticks():
        n += 1
    return n

async def ticks():
    yield 1
    yield 2

def recursive(n):
    if n:
        return recursive(n - 1)
    return 0

def comprehends(n):
    return [x
            for x in range(n)
            if x % 2]

def one(x): return x

def managed(manager):
    with manager:
        raise ValueError

def branches(a, b):
    if (a and
            b):
        a = 1
    elif a or b: b = 2
    else:
        pass
    while True:
        if a: break
        a = 1
        continue
    return a, b
"""


def counts(hotspots):
    return {each.line: each.count for each in hotspots}


def test_each_line_is_counted_and_timed(stage):
    shop = stage.script(WORK)
    with probed(f"{shop.__name__}.work", "hotspots") as seen:
        assert shop.work(10, 0.02) == 20
    (hotspots,) = seen.results
    found = counts(hotspots)
    assert {line: found[line] for line in (4, 6, 7, 9, 11, 12, 13)} == {
        4: 1, 6: 10, 7: 5, 9: 5, 11: 10, 12: 1, 13: 1,
    }  # fmt: skip
    assert found[5] == 11
    assert found[10] == 11
    assert hotspots.worst.line == hotspots.slowest.line == 12
    assert hotspots.worst.source == "time.sleep(pause)"
    assert 0.02 <= hotspots.worst.total < 2
    assert hotspots.worst.longest == hotspots.worst.total
    assert [each.line for each in hotspots] == sorted(found)
    assert all(each.total >= each.longest > 0 for each in hotspots)


def test_times_add_up_to_the_time_of_the_call(stage):
    shop = stage.script(WORK)
    with probed(
        f"{shop.__name__}.work", "(elapsed, sum([x.total for x in hotspots.lines]))"
    ) as seen:
        for _ in range(20):
            shop.work(200)
    # The least of several: a thread may be interrupted between the two clock reads.
    assert min(abs(a - b) / a for a, b in seen.results) < 0.2


def test_a_loop_of_any_length_keeps_lists_short(stage, monkeypatch):
    monkeypatch.setattr(timing, "_FOLD_AT", 10)
    shop = stage.script(WORK)
    with probed(f"{shop.__name__}.work", "(hotspots, [len(x) for x in hotspots._runs])") as seen:
        shop.work(5000)
    ((hotspots, lengths),) = seen.results
    assert counts(hotspots)[6] == 5000
    assert counts(hotspots)[5] == 5001
    assert max(lengths) < 100


@pytest.mark.parametrize(
    "loop",
    [
        """for x in range(n): max(x,
                1)""",
        """[max(x,
                1) for x in range(n)]""",
        """while n:
            with contextlib.suppress(KeyError):
                n -= 1
                {}[n]""",
    ],
)
def test_any_form_of_loop_keeps_lists_short(stage, monkeypatch, loop):
    monkeypatch.setattr(timing, "_FOLD_AT", 10)
    text = f"import contextlib\n\ndef subject(n):\n        {loop}\n"
    shop = stage.script(text)
    with probed(f"{shop.__name__}.subject", "[len(x) for x in hotspots._runs]") as seen:
        shop.subject(500)
    assert max(seen.results[0]) < 100


def test_time_until_an_exception_goes_to_the_line_that_raised(stage):
    shop = stage.script(WORK)
    with probed(f"{shop.__name__}.fails", "hotspots") as seen:
        with pytest.raises(KeyError):
            shop.fails(0.01)
    (hotspots,) = seen.results
    assert hotspots.worst.line == 17
    assert counts(hotspots)[21] == 1


LEFT = """
class Manager:
    def __enter__(self):
        log.append("enter")

    def __exit__(self, *exc):
        log.append(exc[0].__name__)

log = []

def subject(boom):
    with Manager():
        return boom()

def boom():
    raise KeyError
"""


def test_what_interrupts_the_timing_of_an_exception_leaves_with_blocks(stage, monkeypatch):
    with interrupts() as interrupt:
        monkeypatch.setattr(timing, "_note_error", lambda *_: interrupt())
        module = stage.script(LEFT)
        with probed(f"{module.__name__}.subject", "len(hotspots)"):
            with pytest.raises(Interrupt):
                module.subject(module.boom)
    assert module.log == ["enter", "Interrupt"]
    assert sys.exception() is None


def test_what_timing_an_exception_raises_is_not_noticed(stage, monkeypatch):
    def note_error(*_):
        raise LookupError

    monkeypatch.setattr(timing, "_note_error", note_error)
    module = stage.script(LEFT)
    with probed(f"{module.__name__}.subject", "len(hotspots)") as seen:
        with pytest.raises(KeyError):
            module.subject(module.boom)
        assert seen.status.code == "defect"
    assert module.log == ["enter", "KeyError"]


def test_an_exception_at_the_recursion_limit_is_not_handled_for_ever(stage):
    module = stage.script("""
    def subject(n):
        try:
            return subject(n + 1)
        except RecursionError:
            return n
    """)
    with probed(f"{module.__name__}.subject", "1 if hotspots else 0"):
        assert in_thread(lambda: (module.subject(0) > 0, sys.exception())) == (True, None)


def test_generators_coroutines_and_recursion_have_times_of_their_own(stage):
    shop = stage.script(WORK)
    with probed(f"{shop.__name__}.numbers", "hotspots") as seen:
        one, other = shop.numbers(3), shop.numbers(5)
        for _ in zip(one, other, strict=False):
            pass
        list(other)
    assert sorted(counts(each)[25] for each in seen.results) == [3, 5]
    with probed(f"{shop.__name__}.waits", "hotspots") as seen:
        assert asyncio.run(shop.waits(4)) == 6
    assert counts(seen.results[0])[30] == 4
    assert counts(seen.results[0])[32] == 2
    with probed(f"{shop.__name__}.recursive", "hotspots") as seen:
        shop.recursive(3)
    assert [sorted(counts(each)) for each in seen.results] == [[40, 42], *[[40, 41]] * 3]


def test_threads_do_not_meet(stage):
    shop = stage.script(WORK)
    with probed(f"{shop.__name__}.work", "hotspots") as seen:
        threads = [threading.Thread(target=shop.work, args=(n,)) for n in range(0, 400, 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(counts(each).get(6, 0) for each in seen.results) == list(range(0, 400, 50))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("comprehends", (6,)),
        ("one", (3,)),
        ("branches", (0, 1)),
        ("branches", (1, 0)),
        ("branches", (1, 1)),
        ("branches", (0, 0)),
        ("work", (0,)),
        ("fails", (0,)),
        ("work", ("x",)),
    ],
)
def test_measuring_changes_nothing(stage, name, args):
    shop = stage.script(WORK)
    function = getattr(shop, name)
    bare = outcome(function, *args)
    with probed(f"{shop.__name__}.{name}", "hotspots") as seen:
        assert outcome(function, *args) == bare
        assert outcome(function, *args) == bare
    assert len(seen.results) == 2


def test_only_who_names_it_pays_for_it(stage):
    shop = stage.script(WORK)

    class Everything(ProbeTestInstrument):
        def fire(self, _globals, _locals):
            self.log.append(({}, sorted(_locals)))

    code = shop.one.__code__
    plain, everything = ProbeTestInstrument("n", "x"), Everything("n", "x")
    with attached(f"{shop.__name__}.one", plain, everything):
        shop.one(1)
        assert time.perf_counter not in shop.one.__code__.co_consts or "elapsed" in str(
            everything.log
        )
        assert timing._note_error not in shop.one.__code__.co_consts
    assert "hotspots" not in everything.log[0][1]
    assert "elapsed" in everything.log[0][1]
    assert shop.one.__code__ is code


LONG = "def long(n):\n    a = each = 0\n" + "".join(f"    a += {each}\n" for each in range(40))
LONG += """\
    for each in range(n):
        try:
            a += each
        except ValueError:
            a = 0
    return a
"""
# From where, and where to; forwards, backwards, out of the loop and (refused) into it.
JUMPS = [(3, 42), (42, 3), (5, 43), (45, 3), (44, 48), (45, 48), (48, 2), (3, 45), (43, 47)]


@pytest.mark.parametrize("are_others_on", [False, True])
@pytest.mark.parametrize("jump", JUMPS)
def test_a_debugger_may_jump_where_lines_are_timed(stage, jump, are_others_on):
    shop = stage.script(LONG)
    code_name, (begin, end) = shop.long.__code__.co_name, jump

    def jumped():
        told = []

        def trace(frame, event, argument):
            if frame.f_code.co_name != code_name:
                return None
            if event == "line" and frame.f_lineno == begin and not told:
                told.append("jumped")
                try:
                    frame.f_lineno = end
                except ValueError as error:
                    told.append(str(error))
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            return shop.long(3), told
        finally:
            sys.settrace(before)

    bare = jumped()
    assert bare[1]
    made = [ProbeTestInstrument("n", "len(hotspots) > 0")]
    if are_others_on:
        made += [ProbeTestInstrument("n", "1", each) for each in ("call", "return", "end")]
        made += [ProbeTestInstrument("n", "1", f"line:{line}") for line in (3, 43, 45, 48)]
        made += [HistogramInstrument("n", "elapsed", when=f"n > {each}") for each in range(30)]
    with attached(f"{shop.__name__}.long", *made):
        assert jumped() == bare
    assert made[0].results == [True]
    assert [each.status.error for each in made] == [None] * len(made)


def test_it_is_text_that_can_be_read(stage, capsys):
    shop = stage.script(WORK)
    with attached(f"{shop.__name__}.work", LogInstrument("hot", "hotspots")):
        shop.work(3, 0.002)
    out = capsys.readouterr().out
    title, head, *rows = out.splitlines()
    assert title == "Probe (hot)[tags={}] = "
    assert head.split() == ["line", "runs", "total", "longest"]
    first_cells = [row.split()[0] for row in (head, *rows)]
    assert {
        row.index(cell) + len(cell) for row, cell in zip((head, *rows), first_cells, strict=True)
    } == {len("line")}
    assert "time.sleep(pause)" in out
    with probed(f"{shop.__name__}.work", "str(hotspots.worst)") as seen:
        shop.work(0, 0.002)
    assert seen.results[0].startswith("line 12: ")
    assert seen.results[0].endswith("s (once): time.sleep(pause)")


def test_what_was_measured_dies_with_the_value(stage):
    class Noting(ProbeTestInstrument):
        def emit(self, name, value, tags):
            noted.append(weakref.ref(value))

    noted = []
    shop = stage.script(WORK)
    with attached(f"{shop.__name__}.work", Noting("n", "hotspots")):
        shop.work(100)
        # Without the collector: there are no cycles.
        assert [each() for each in noted] == [None]
