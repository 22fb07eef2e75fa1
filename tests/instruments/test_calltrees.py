from __future__ import annotations

import asyncio
import cProfile
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
from stage import DEADLINE_SECONDS, attached, in_thread, outcome, timers_ran

from diagnose import attach_to
from diagnose.errors import (
    ExpressionNotAdmittedError,
    ExpressionSyntaxError,
    InstrumentError,
    ProbeError,
    UnknownNameError,
)
from diagnose.instruments import CallTreeInstrument, HunterInstrument, ProbeTestInstrument
from diagnose.limits import Limits
from diagnose.managers import InstrumentManager

FAST = Limits(rate=1e6)


def recorder(seen, limits=FAST):
    """An instrument that keeps its trees."""

    class Recorder(CallTreeInstrument):
        longest_seconds = None

        def emit(self, _name, value, _tags):
            seen.append(value)

    return Recorder("n", limits=limits)


@pytest.fixture(autouse=True)
def nothing_watches_at_the_end():
    before = sys.getprofile(), sys.gettrace()
    yield
    assert (sys.getprofile(), sys.gettrace()) == before
    if sys.version_info >= (3, 12):
        assert "diagnose" not in [sys.monitoring.get_tool(number) for number in range(6)]


SHOP = """\
def leaf(n):
    return n

def middle(n):
    return [leaf(each) for each in range(n)]

def recursive(n):
    return n and recursive(n - 1)

def numbers(n):
    for each in range(n):
        leaf(each)
        yield each

def fails():
    leaf(1)
    raise ValueError

def top(n):
    middle(n)
    middle(2)
    recursive(3)
    for each in numbers(2):
        leaf(each)
    try:
        fails()
    except ValueError:
        pass
    return n

def breaks(n):
    fails()

async def waits(n):
    import asyncio
    for each in range(n):
        await asyncio.sleep(0)
        leaf(each)

def calls(function):
    leaf(0)
    function()
    leaf(0)
    return 1
"""


class Tree(CallTreeInstrument):
    """Keeps trees."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.trees = []

    def emit(self, name, value, tags):
        self.trees.append(value)


def tree_of(stage, shop, path, *calls, limits=FAST, **options):
    instrument = Tree("t", limits=limits, **{"modules": [shop.__name__], **options})
    with attached(f"{shop.__name__}.{path}", instrument):
        for call in calls:
            call()
    assert instrument.status.error is None
    return instrument.trees


def shape(data):
    name = data["function"].partition(".")[2].replace(".<locals>.<listcomp>", "[]")
    return name, data["count"], sorted(shape(each) for each in data["children"])


def flat(data):
    return [data, *(each for child in data["children"] for each in flat(child))]


def test_the_tree_has_every_call_with_its_count_and_times(stage):
    shop = stage.script(SHOP)
    (tree,) = tree_of(stage, shop, "top", lambda: shop.top(3))
    data = tree.data()
    name, count, children = shape(data)
    assert (name, count) == ("top", 1)
    by_name = {each[0]: each for each in children}
    assert sorted(by_name) == ["fails", "leaf", "middle", "numbers", "recursive"]
    assert by_name["middle"][1] == 2
    assert by_name["leaf"][1] == 2
    assert by_name["numbers"] == ("numbers", 1, [("leaf", 2, [])])
    assert by_name["fails"] == ("fails", 1, [("leaf", 1, [])])
    once = ("recursive", 1, [])
    assert by_name["recursive"] == (
        "recursive", 1, [("recursive", 1, [("recursive", 1, [once])])],
    )  # fmt: skip
    leaves = [each for each in flat(data) if each["function"].endswith(".leaf")]
    assert sum(each["count"] for each in leaves) == 5 + 2 + 2 + 1
    for each in flat(data):
        inside = sum(child["total"] for child in each["children"])
        assert each["total"] >= each["own"] >= 0
        assert abs(each["total"] - each["own"] - inside) < 1e-9
        assert each["longest"] <= each["total"]
        assert each["file"] == shop.top.__code__.co_filename
    assert data["line"] == shop.top.__code__.co_firstlineno


def test_the_tree_is_drawn_longest_branch_first(stage, capsys):
    shop = stage.script(SHOP)
    trees = []

    class Both(CallTreeInstrument):
        def emit(self, name, value, tags):
            trees.append(value)
            super().emit(name, value, tags)

    with attached(f"{shop.__name__}.top", Both("t", modules=[shop.__name__], limits=FAST)):
        shop.top(50)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Probe (t)[tags={}] = "
    assert lines[1].startswith(f"{shop.__name__}.top  ")
    branches = trees[0].data()["children"]
    branches.sort(key=lambda branch: branch["total"], reverse=True)
    drawn = [line for line in lines[2:] if line.startswith(("├─ ", "└─ "))]
    assert [line.split()[1] for line in drawn] == [each["function"] for each in branches]
    assert drawn[-1].startswith("└─ ")
    (middle,) = (line for line in drawn if line.split()[1] == f"{shop.__name__}.middle")
    assert middle.endswith(", 2 calls")
    assert "(own " in middle


def test_depth_cuts_the_tree_and_says_so(stage):
    shop = stage.script(SHOP)
    (tree,) = tree_of(stage, shop, "top", lambda: shop.top(3), depth=1)
    assert all(not each["children"] for each in tree.data()["children"])
    assert tree.left_out >= 5 + 3 + 2 + 1
    assert "calls deeper than wanted" in str(tree)


def test_branches_below_the_least_duration_are_summed_up(stage):
    shop = stage.script(SHOP)
    (tree,) = tree_of(stage, shop, "top", lambda: shop.top(3), min_ms=10_000)
    assert tree.data()["children"] == []
    assert "calls below 10 s" in str(tree)


def test_only_chosen_modules_are_shown(stage):
    shop, other = stage.script(SHOP), stage.script("def far(f):\n    return f()")
    call = lambda: shop.calls(lambda: other.far(lambda: shop.leaf(2)))
    (tree,) = tree_of(stage, shop, "calls", call)
    assert {each["function"] for each in flat(tree.data())} == {
        f"{shop.__name__}.calls",
        f"{shop.__name__}.leaf",
    }
    (tree,) = tree_of(stage, shop, "calls", call, modules=[other.__name__])
    assert [each["function"] for each in tree.data()["children"]] == [f"{other.__name__}.far"]
    (tree,) = tree_of(stage, shop, "calls", call, modules=None)
    assert len(flat(tree.data())) >= 5


def test_a_tree_of_too_many_functions_is_cut(stage, monkeypatch):
    from diagnose.calltrees.collector import Options

    shop = stage.script(SHOP)
    instrument = Tree("t", limits=FAST, modules=[shop.__name__])
    instrument.options = Options(modules=(shop.__name__,), most_nodes=3)
    with attached(f"{shop.__name__}.top", instrument):
        assert shop.top(5) == 5
    (tree,) = instrument.trees
    assert len(flat(tree.data())) == 3
    assert tree.left_out > 0


def test_a_call_that_raises_has_a_tree_and_raises_as_before(stage):
    shop = stage.script(SHOP)
    bare = outcome(shop.breaks, 1)
    instrument = Tree("t", "(tree, exception)", limits=FAST, modules=[shop.__name__])
    with attached(f"{shop.__name__}.breaks", instrument):
        assert outcome(shop.breaks, 1) == bare
    ((tree, error),) = instrument.trees
    assert isinstance(error, ValueError)
    assert shape(tree.data())[2] == [("fails", 1, [("leaf", 1, [])])]


def test_what_others_do_while_a_coroutine_waits_is_not_in_its_tree(stage):
    shop = stage.script(SHOP)

    async def other():
        for _ in range(10):
            await asyncio.sleep(0)
            shop.middle(3)

    async def main():
        await asyncio.gather(shop.waits(3), other())

    (tree,) = tree_of(stage, shop, "waits", lambda: asyncio.run(main()))
    assert shape(tree.data())[2] == [("leaf", 3, [])]


def test_generators_have_a_tree_of_all_their_steps(stage):
    shop = stage.script(SHOP)

    def call():
        for _ in shop.numbers(3):
            shop.middle(2)

    (tree,) = tree_of(stage, shop, "numbers", call)
    assert shape(tree.data())[2] == [("leaf", 3, [])]


@pytest.mark.parametrize("event", ["call", "return", "end"])
def test_what_serves_a_hit_of_another_probe_is_not_in_the_tree(stage, event):
    shop = stage.script(SHOP)
    name = shop.__name__
    seen = []
    other = ProbeTestInstrument("n", "[middle(1), recursive(1), n]", event)
    with attached(f"{name}.leaf", other), attached(f"{name}.middle", recorder(seen)):
        shop.middle(3)
    (tree,) = seen
    assert [each[-1] for each in other.results] == [0, 1, 2]
    below = tree.data()
    while "leaf" not in below["function"]:  # on 3.11 a comprehension is a function, too
        (below,) = below["children"]
    assert (below["count"], below["children"]) == (3, [])
    assert not any(word in str(tree) for word in ("recursive", "emit", "probe"))


def test_other_threads_are_not_in_the_tree(stage):
    shop = stage.script(SHOP)

    def call():
        thread = threading.Thread(target=shop.middle, args=(5,))
        shop.calls(lambda: (thread.start(), thread.join()))

    (tree,) = tree_of(stage, shop, "calls", call)
    names = [each["function"] for each in flat(tree.data())]
    assert f"{shop.__name__}.middle" not in names


def test_several_threads_are_watched_at_once(stage):
    shop = stage.script(SHOP)
    gate = threading.Barrier(4)

    def call():
        threads = [
            threading.Thread(target=shop.calls, args=(lambda n=n: (gate.wait(30), shop.middle(n)),))
            for n in range(4)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()

    trees = tree_of(stage, shop, "calls", call)
    assert len(trees) == 4
    for tree in trees:
        counts = {each["function"].rpartition(".")[2]: each["count"] for each in flat(tree.data())}
        assert counts["middle"] == 1


def test_a_tree_within_a_tree_is_not_watched(stage):
    shop = stage.script(SHOP)
    trees = tree_of(stage, shop, "recursive", lambda: shop.recursive(3))
    assert len(trees) == 1
    assert len(flat(trees[0].data())) == 4


def test_conditions_and_limits_are_decided_before_anything_is_watched(stage):
    shop = stage.script(SHOP)
    calls = [lambda n=n: shop.top(n) for n in range(5)]
    assert len(tree_of(stage, shop, "top", *calls, when="n > 2")) == 2
    instrument = Tree("t", modules=[shop.__name__])
    with attached(f"{shop.__name__}.top", instrument):
        for call in calls:
            call()
        assert instrument.status.suppressed["rate"] == 4
    assert len(instrument.trees) == 1
    with pytest.raises(UnknownNameError, match="decided before the call"):
        with attached(f"{shop.__name__}.top", Tree("t", when="elapsed > 1")):
            pass


@pytest.mark.parametrize(
    ("options", "counted", "tags"),
    [
        ({"value": "sorted(locals())"}, 3, {}),
        ({"value": "eval('n')", "custom": {"tags": "{'n': dict(vars())['n']}"}}, 3, {"n": 1}),
        ({"value": "n", "when": "locals()['n'] == 1 and 'start' in dir()"}, 1, {}),
    ],
)
def test_locals_and_the_like_mean_the_calls_names(stage, options, counted, tags):
    kept = []

    class Keeping(CallTreeInstrument):
        def emit(self, name, value, tags):
            kept.append((value, tags))

    shop = stage.script(SHOP)
    instrument = Keeping("n", limits=FAST, **options)
    with attached(f"{shop.__name__}.leaf", instrument):
        for n in (1, 2, 3):
            shop.leaf(n)
    assert instrument.status.error is None
    assert len(kept) == counted
    value, seen = kept[0]
    assert seen == tags
    if options["value"] == "sorted(locals())":
        assert {"tree", "n", "result", "elapsed", "args", "frame"} <= set(value)
    else:
        assert value == 1


@pytest.mark.parametrize("what", ["fire", "evaluate", "merge_tags"])
def test_a_subclass_may_override_how_a_hit_is_served(stage, what):
    def fire(self, _globals, _locals):
        self.trees.append(_locals["tree"])

    def evaluate(self, value, _globals, _locals):
        return Tree.evaluate(self, f"({value}, n)", _globals, _locals)[0]

    def merge_tags(self, _globals, _locals):
        return {"n": _locals["n"]}

    own = {"fire": fire, "evaluate": evaluate, "merge_tags": merge_tags}[what]
    shop = stage.script(SHOP)
    instrument = type("Own", (Tree,), {what: own})("t", limits=FAST)
    with attached(f"{shop.__name__}.middle", instrument):
        shop.middle(2)
    assert instrument.status.error is None
    (tree,) = instrument.trees
    assert shape(tree.data())[0] == "middle"


def test_it_is_done_after_its_hits(stage):
    shop = stage.script(SHOP)
    code = shop.top.__code__
    instrument = Tree("t", limits=Limits(rate=1e6, hits=2))
    probe = attach_to(f"{shop.__name__}.top")
    probe.attach("t", instrument)
    for _ in range(4):
        shop.top(1)
    timers_ran()
    assert len(instrument.trees) == 2
    assert instrument.status.state == "done"
    assert shop.top.__code__ is code
    probe.detach("t")


def test_taking_it_off_inside_the_call_ends_the_watch(stage):
    shop = stage.script(SHOP)
    instrument = Tree("t", limits=FAST)
    probe = attach_to(f"{shop.__name__}.calls")
    probe.attach("t", instrument)
    assert shop.calls(lambda: probe.detach("t")) == 1
    assert instrument.trees == []


SUBJECT = """\
def leaf():
    return 1

def subject(inside=None):
    if inside is not None:
        inside()
    return leaf()
"""


def test_a_call_that_is_inside_when_it_is_done_or_suspended_is_not_watched_on(stage):
    module = stage.script(SUBJECT)

    def at_rest():
        return sys.getprofile() is None and (
            sys.version_info < (3, 12)
            or "diagnose" not in [sys.monitoring.get_tool(number) for number in range(6)]
        )

    seen = []
    tree = recorder(seen)
    with attached(f"{module.__name__}.subject", tree) as probe:
        (attachment,) = probe._attachments.values()

        def suspend():
            attachment.suspend("for a test")
            in_thread(module.leaf)

        module.subject(suspend)
        assert at_rest()
        attachment.resume()
        module.subject()
        assert [each.root.children != {} for each in seen] == [True]  # in this thread too
    seen.clear()
    with attached(f"{module.__name__}.subject", recorder(seen, limits=Limits(rate=1e6, hits=2))):
        module.subject(lambda: in_thread(module.subject))
        assert at_rest()
    assert len(seen) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_watches_for_itself(stage):
    module = stage.script(SUBJECT)
    inside, go_on = threading.Event(), threading.Event()

    def wait():
        inside.set()
        assert go_on.wait(DEADLINE_SECONDS)

    seen = []
    tree = recorder(seen)
    with attached(f"{module.__name__}.subject", tree):
        thread = threading.Thread(target=module.subject, args=(wait,))
        thread.start()
        assert inside.wait(DEADLINE_SECONDS)
        child = os.fork()
        if child == 0:
            try:
                module.subject()
                fine = len(seen) == 1
                if sys.version_info >= (3, 12):
                    names = [sys.monitoring.get_tool(number) for number in range(6)]
                    fine = fine and "diagnose" not in names
                os._exit(0 if fine else 3)
            finally:
                os._exit(4)
        assert os.waitpid(child, 0)[1] == 0
        go_on.set()
        thread.join(DEADLINE_SECONDS)


# On 3.11 one thread at a time may change its profiler; hunter's is ended at the next event then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_taking_it_off_amid_calls_raises_nothing_in_them(stage):
    module = stage.script(SUBJECT)
    errors, stopped = [], threading.Event()

    def work():
        try:
            while not stopped.is_set():
                module.subject(module.leaf)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(200):
            with attached(f"{module.__name__}.subject", recorder([])):
                time.sleep(0.0005)
    finally:
        stopped.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        sys.setswitchinterval(before)
    assert errors == []


def test_an_expression_that_fails_ends_the_watch_too(stage):
    shop = stage.script(SHOP)
    instrument = Tree("t", "tree.nothing", limits=FAST)
    with attached(f"{shop.__name__}.top", instrument):
        assert shop.top(1) == 1
    assert "AttributeError" in instrument.status.error


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="3.12 has room for several")
def test_another_profiler_is_left_alone_on_3_11(stage):
    shop = stage.script(SHOP)
    instrument = Tree("t", limits=FAST)
    profile = cProfile.Profile()
    with attached(f"{shop.__name__}.top", instrument):
        profile.enable()
        try:
            assert shop.top(1) == 1
            assert sys.getprofile() is profile
        finally:
            profile.disable()
    assert "another profiler" in instrument.status.error


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in 3.12")
def test_where_no_tool_id_is_free_it_says_so(stage):
    shop = stage.script(SHOP)
    taken = [number for number in range(6) if sys.monitoring.get_tool(number) is None]
    for number in taken:
        sys.monitoring.use_tool_id(number, f"other {number}")
    try:
        instrument = Tree("t", limits=FAST)
        with attached(f"{shop.__name__}.top", instrument):
            assert shop.top(1) == 1
        assert "tool ids (5, 3, 4) of sys.monitoring are in use" in instrument.status.error
    finally:
        for number in taken:
            sys.monitoring.free_tool_id(number)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"depth": True}, "depth is True"),
        ({"depth": "3"}, "depth is '3'"),
        ({"min_ms": -1}, "min_ms is -1"),
        ({"modules": [3]}, r"modules is \[3\]"),
        ({"event": "call"}, "has to be 'return'"),
    ],
)
def test_options_that_make_no_sense_are_errors(options, match):
    with pytest.raises(InstrumentError, match=match):
        CallTreeInstrument("t", **options)


def test_what_has_no_frame_has_no_tree():
    with pytest.raises(ProbeError, match="no Python code"):
        with attached("math.floor", Tree("t")):
            pass


def document(path, **instrument):
    return {
        "target": path,
        "instrument": {"name": "n", **instrument},
        "lifespan": 10,
        "lastmodified": datetime.now(UTC),
    }


def test_a_spec_may_ask_for_a_tree_and_need_not_give_a_value(stage, capsys):
    shop = stage.script(SHOP)
    manager = InstrumentManager("me", expression_policy="restricted")
    path = f"{shop.__name__}.top"
    manager.specs["t"] = document(path, type="calltree", depth=2, modules=[shop.__name__])
    manager.specs["wrong"] = document(path, type="calltree", depth="x")
    manager.specs["data"] = document(path, type="calltree", value="tree.root.count")
    manager.specs["hunt"] = document(path, type="hunter", query="Q()")
    manager.apply()
    shop.top(2)
    manager.apply()
    applied = {key: each["applied"]["me"] for key, each in manager.specs.items()}
    manager.stop()
    assert (applied["t"]["state"], applied["t"]["err"]) == ("emitting", None)
    assert "warnings" not in applied["t"]
    assert "depth is 'x'" in applied["wrong"]["err"]
    assert applied["hunt"]["code"] == "expression-not-admitted"
    assert "├─ " in capsys.readouterr().out


# --- nothing of it reaches the program --------------------------------------------------------


class BadText(Exception):
    def __str__(self):
        raise RuntimeError


ERRORS = [
    NameError, MemoryError, RecursionError, KeyError, BadText, StopIteration, GeneratorExit,
    asyncio.CancelledError,
]  # fmt: skip


def uses(shop):
    """All that there is to see of some calls."""
    calls = [
        lambda: shop.top(3),
        lambda: shop.breaks(1),
        lambda: shop.calls(shop.fails),
        lambda: list(shop.numbers(3)),
        lambda: asyncio.run(shop.waits(2)),
        lambda: next(shop.numbers(1)),
    ]
    return [outcome(call) for call in calls]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", ["wants", "enter", "leave", "_pop", "end", "abandon", "__init__"])
def test_what_a_collector_raises_does_not_reach_the_program(stage, monkeypatch, place, error):
    shop = stage.script(SHOP)
    bare = uses(shop)
    way = "monitoring" if sys.version_info >= (3, 12) else "profiling"
    module = sys.modules[f"diagnose.calltrees.{way}"]
    cls = module.MonitoredCollector if way == "monitoring" else module.ProfiledCollector
    original, raised = getattr(cls, place), []

    def raises(self, *args, **kwargs):
        if place == "abandon" or threading.current_thread() is threading.main_thread():
            raised.append(error)
            if place in {"end", "abandon"}:
                original(self, *args, **kwargs)
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(cls, place, raises)
    names = ["top", "breaks", "calls", "numbers", "waits"]
    trees = {name: Tree("t", limits=FAST) for name in names}
    for name in names:
        attach_to(f"{shop.__name__}.{name}").attach("t", trees[name])
    try:
        assert uses(shop) == bare
    finally:
        for name in names:
            attach_to(f"{shop.__name__}.{name}").stop()
    assert raised or place == "abandon"
    failed = [tree for tree in trees.values() if tree.status.error]
    # At the recursion limit an event is lost; all else is said.
    is_lost = error in {RecursionError, MemoryError} and place in {
        "wants",
        "enter",
        "leave",
        "_pop",
    }
    if way == "monitoring" or place != "abandon":
        assert bool(failed) != is_lost or place == "_pop"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in 3.12")
@pytest.mark.parametrize("name", ["register_callback", "set_events", "use_tool_id"])
def test_where_nothing_can_be_watched_nothing_is_left_behind(stage, monkeypatch, name):
    shop = stage.script(SHOP)
    bare = uses(shop)
    tree = Tree("t", limits=FAST)

    class Monitoring:
        def __getattr__(self, asked):
            if asked == name:
                raise OSError(asked)
            return getattr(sys.monitoring, asked)

    from diagnose.calltrees import monitoring

    with monkeypatch.context() as patch:
        patch.setattr(monitoring, "_monitoring", Monitoring())
        with attached(f"{shop.__name__}.top", tree):
            assert uses(shop) == bare
    assert "OSError" in tree.status.error
    assert monitoring._tool is None
    for number in range(6):
        if sys.monitoring.get_tool(number) == "diagnose":  # it could not be given back
            sys.monitoring.free_tool_id(number)


def test_what_a_signal_handler_raises_while_a_call_is_collected_is_the_programs(stage, monkeypatch):
    from diagnose.calltrees.collector import Collector

    shop = stage.script(SHOP)

    def interrupt(*_):
        raise KeyboardInterrupt

    def enter(*_, **__):
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        tree = Tree("t", limits=FAST)
        with attached(f"{shop.__name__}.top", tree):
            shop.top(1)
            with monkeypatch.context() as patch:
                patch.setattr(Collector, "enter", enter)
                with pytest.raises(KeyboardInterrupt):
                    shop.top(1)
            shop.top(1)
        assert tree.status.error is None
        assert len(tree.trees) >= 2
    finally:
        signal.signal(signal.SIGUSR1, before)


DEEP = """\
def deep(n):
    global reached
    reached = n
    deep(n + 1)

def other(n):
    global reached
    reached = n
    deep_too(n + 1)

def deep_too(n):
    global reached
    reached = n
    other(n + 1)

def run(function):
    try:
        function(0)
    except RecursionError:
        pass
    return reached
"""


@pytest.mark.parametrize("name", ["deep", "other"])
def test_a_recursion_gets_as_deep_as_without_a_tree_but_for_one_call(stage, name):
    module = stage.script(DEEP)
    function = getattr(module, name)
    bare = in_thread(module.run, function)
    tree = Tree("t", limits=FAST, depth=100)
    counter = ProbeTestInstrument("n", "1", "call")
    with attached(f"{module.__name__}.run", counter):
        probed = in_thread(module.run, function)
    with attached(f"{module.__name__}.run", tree):
        watched = in_thread(module.run, function)
    assert tree.status.error is None
    assert len(tree.trees) == 1
    assert probed - watched <= 1
    assert bare - watched <= 2


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in 3.12")
def test_the_program_finds_its_tool_ids_free_while_a_call_is_watched(stage):
    shop = stage.script(SHOP)
    used = []

    def use():
        for number in (0, 1, 2, 3, 4):
            if sys.monitoring.get_tool(number) is None:
                sys.monitoring.use_tool_id(number, "of the program")
                used.append(number)
                sys.monitoring.free_tool_id(number)

    tree = Tree("t", limits=FAST)
    with attached(f"{shop.__name__}.calls", tree):
        assert shop.calls(use) == 1
    assert {3, 4} <= set(used)
    assert len(tree.trees) == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in 3.12")
def test_what_another_tool_has_switched_off_stays_switched_off(stage):
    shop = stage.script(SHOP)
    monitoring, events = sys.monitoring, sys.monitoring.events
    seen = []

    def on_start(code, _offset):
        if code.co_filename == shop.leaf.__code__.co_filename:
            seen.append(code.co_name)
        return monitoring.DISABLE

    monitoring.use_tool_id(4, "of the program")
    try:
        monitoring.register_callback(4, events.PY_START, on_start)
        monitoring.set_events(4, events.PY_START)
        shop.calls(shop.recursive.__get__(3))
        bare = list(seen)
        tree = Tree("t", limits=FAST, modules=[shop.__name__])
        with attached(f"{shop.__name__}.top", tree):
            for _ in range(3):
                shop.leaf(1)
                shop.recursive(2)
                shop.top(2)
                shop.calls(shop.fails) if False else None
        assert len(tree.trees) == 3
        counts = {name: seen.count(name) for name in ("leaf", "recursive", "calls")}
        assert counts == {name: bare.count(name) for name in counts}
        assert bare.count("leaf") == 1
    finally:
        monitoring.set_events(4, 0)
        monitoring.register_callback(4, events.PY_START, None)
        monitoring.free_tool_id(4)
    # And each tree is whole, whatever the one before it did not want.
    whole = shape(tree.trees[0].data())
    assert [shape(each.data()) for each in tree.trees] == [whole] * 3


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="3.12 has another way")
def test_a_profiler_that_the_program_sets_inside_the_call_stays(stage):
    shop = stage.script(SHOP)
    profile = lambda *_: None
    tree = Tree("t", limits=FAST)
    try:
        with attached(f"{shop.__name__}.calls", tree):
            shop.calls(lambda: sys.setprofile(profile))
            assert sys.getprofile() is profile
            sys.setprofile(None)
            kept = []
            shop.calls(lambda: kept.append(sys.getprofile()))
            assert sys.getprofile() is None
            sys.setprofile(kept[0])  # it puts back what it found, too late
            shop.leaf(1)
            assert sys.getprofile() is None
    finally:
        sys.setprofile(None)
    assert tree.status.error is None


def test_a_daemon_thread_inside_a_watched_call_at_the_end_of_the_process_says_nothing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys, threading, time, types
from diagnose import attach_to
from diagnose.limits import Limits
from diagnose.instruments import CallTreeInstrument

inside = threading.Event()

def leaf():
    return 1

def subject(wait):
    while True:
        leaf()
        if wait:
            inside.set()
            time.sleep(0.001)

class Late:
    def __del__(self):
        leaf_too()

def leaf_too():
    print("late")

shop = types.ModuleType("shop_daemon")
shop.subject, shop.late = subject, Late()
shop.itself = shop
sys.modules["shop_daemon"] = shop
if sys.argv[1:]:
    tree = CallTreeInstrument("t", limits=Limits(rate=1e6))
    attach_to("shop_daemon.subject").attach("t", tree)
threading.Thread(target=subject, args=(True,), daemon=True).start()
inside.wait()
sys.late = Late()
"""
    )
    bare, probed = (
        subprocess.run(
            [sys.executable, str(script), *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        for arguments in ([], ["probed"])
    )
    assert (bare.returncode, bare.stderr) == (0, "")
    assert "late" in bare.stdout
    assert (probed.returncode, probed.stdout, probed.stderr) == (0, bare.stdout, "")


# --- hunter -----------------------------------------------------------------------------------


class Hunt(HunterInstrument):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, limits=FAST, **kwargs)
        self.seen = []

    def emit(self, name, value, tags):
        self.seen.append(value)


def test_a_hunt_writes_the_events_that_its_query_selects(stage):
    shop = stage.script(SHOP)
    hunt = Hunt("h", query=f"Q(module={shop.__name__!r}, kind='call', function='leaf')")
    bare = shop.top(2)
    with attached(f"{shop.__name__}.top", hunt):
        assert shop.top(2) == bare
        assert sys.gettrace() is None
    (events,) = hunt.seen
    assert len(events) == 2 + 2 + 2 + 2 + 1
    assert events[0] == f"{shop.__name__}:1     call      def leaf(n):"


def test_a_hunt_ends_after_so_many_events(stage):
    shop = stage.script(SHOP)
    hunt = Hunt("h", "(len(events), sys.gettrace())", query="Q(kind='line')", max_events=3)
    hunt.mgr.global_namespace["sys"] = sys
    try:
        with attached(f"{shop.__name__}.top", hunt):
            shop.top(20)
    finally:
        del hunt.mgr.global_namespace["sys"]
    assert hunt.seen == [(3, None)]


def test_a_hunt_leaves_other_tracers_alone(stage):
    shop = stage.script(SHOP)
    hunt = Hunt("h")
    trace = lambda *_: None
    before = sys.gettrace()
    with attached(f"{shop.__name__}.top", hunt):
        sys.settrace(trace)
        try:
            assert shop.top(1) == 1
            assert sys.gettrace() is trace
        finally:
            sys.settrace(before)
    assert "another tracer is active" in hunt.status.error


@pytest.mark.parametrize("query", ["", "Q(", "Q(nothing_='x')", "1", "open('x')", "Q().y", 3])
def test_what_is_no_query_is_an_error_that_shows_one(query):
    with pytest.raises(ExpressionSyntaxError, match="hunter query"):
        HunterInstrument("h", query=query)


def test_where_hunter_is_not_installed_it_says_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "hunter", None)
    with pytest.raises(InstrumentError, match=r"pip install 'diagnose-mongo\[hunter\]'") as caught:
        HunterInstrument("h")
    assert caught.value.code == "not-installed"
    manager = InstrumentManager("me", expression_policy="python")
    manager.specs["a"] = document("statistics.mean", type="hunter", query="Q()")
    manager.apply()
    assert manager.specs["a"]["applied"]["me"]["code"] == "not-installed"


def test_a_hunt_needs_the_policy_for_any_python():
    with pytest.raises(ExpressionNotAdmittedError, match="expression_policy='python'"):
        HunterInstrument("h", policy="restricted")


def test_taking_a_hunt_off_inside_the_call_ends_it(stage):
    shop = stage.script(SHOP)
    probe = attach_to(f"{shop.__name__}.calls")
    hunt = Hunt("h")
    probe.attach("h", hunt)
    assert shop.calls(lambda: probe.detach("h")) == 1
    assert hunt.seen == []


def test_a_tracer_that_the_program_sets_inside_the_call_stays_and_sees_what_it_would(stage):
    shop = stage.script(SHOP)
    before = sys.gettrace()
    seen = []

    def trace(frame, event, _arg):
        if frame.f_code.co_filename == shop.leaf.__code__.co_filename:
            seen.append((frame.f_code.co_name, event))
        return trace

    def use():
        suspended = shop.numbers(3)
        next(suspended)
        sys.settrace(trace)
        next(suspended)
        shop.leaf(1)

    def run():
        shop.calls(use)
        is_there = sys.gettrace() is trace
        shop.leaf(2)
        sys.settrace(before)
        return is_there

    assert run()
    bare, seen = seen, []
    hunt = Hunt("h", query="Q(kind='call')")
    with attached(f"{shop.__name__}.calls", hunt):
        assert run()
    assert seen == bare
    assert len(hunt.seen) == 1
    assert hunt.seen[0]


def test_a_frame_that_a_hunt_has_seen_does_not_take_off_a_later_tracer(stage):
    shop = stage.script(SHOP)
    before = sys.gettrace()
    kept = []

    def use():
        generator = shop.numbers(3)
        next(generator)
        kept.append((generator, sys.gettrace()))

    with attached(f"{shop.__name__}.calls", Hunt("h", query="Q(kind='line')")):
        shop.calls(use)
    assert sys.gettrace() is before
    trace = lambda *_: trace
    ((generator, hunters),) = kept
    try:
        sys.settrace(trace)
        assert list(generator) == [1, 2]
        assert sys.gettrace() is trace
        hunters(sys._getframe(), "line", None)  # as the interpreter calls what a frame has
        assert sys.gettrace() is trace
        sys.settrace(hunters)  # somebody puts back what was there
        shop.leaf(1)
        assert sys.gettrace() is None
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("error", ERRORS)
def test_what_a_hunts_query_raises_does_not_reach_the_program(stage, monkeypatch, capfd, error):
    shop = stage.script(SHOP)
    bare = uses(shop)
    hunt = Hunt("h", query="Q(kind='call')")

    def query(_event):
        raise error

    hunt.query = query
    with attached(f"{shop.__name__}.top", hunt):
        assert uses(shop) == bare
    assert capfd.readouterr().err.count("Disabling tracer") == 0
    is_lost = error in {RecursionError, MemoryError}
    assert (hunt.status.error is None) == is_lost
    assert sys.gettrace() is None


def test_what_a_signal_handler_raises_amid_a_hunt_comes_at_the_end_of_the_call(stage):
    shop = stage.script(SHOP)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    hunt = Hunt("h", query="Q(kind='call')")
    hunt.query = lambda _event: signal.raise_signal(signal.SIGUSR1)
    try:
        with attached(f"{shop.__name__}.top", hunt):
            with pytest.raises(KeyboardInterrupt):
                shop.top(1)
            hunt.query = lambda _event: False
            assert shop.top(1) == 1
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert hunt.status.error is None
    assert sys.gettrace() is None
