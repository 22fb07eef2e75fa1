from __future__ import annotations

import asyncio
import copy
import functools
import math
import pickle
import sys
import textwrap
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from stage import (
    DEADLINE_SECONDS,
    Interrupt,
    attached,
    in_thread,
    interrupts,
    probed,
    timers_ran,
)
from waiting import in_child, wait_until

import diagnose
from diagnose import attach_to, reentrancy, registry, sensor
from diagnose.errors import (
    DiagnoseError,
    InstrumentError,
    TargetKindError,
    TargetNotFoundError,
    TargetNotImportedError,
    UnknownNameError,
)
from diagnose.instruments import HistogramInstrument, Instrument, ProbeTestInstrument
from diagnose.managers import InstrumentManager
from diagnose.probes import FunctionProbe, active_probes, start_all


@pytest.fixture
def shop(stage):
    """A module with functions to probe; ``shop.path`` leads to ``shop.double``."""

    def double(x):
        return x * 2

    def triple(x):
        return x * 3

    module = stage.module(double, triple)
    module.path = f"{module.__name__}.double"
    module.code = double.__code__
    return module


class Detached(ProbeTestInstrument):
    """Tells when it is off its last function."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.is_off = threading.Event()

    def detached(self):
        super().detached()
        self.is_off.set()


def recorder(value="x", event="return", **options):
    return ProbeTestInstrument("test", value, event, **options)


# --- start and stop ---------------------------------------------------------------------------


def test_a_probe_is_put_in_place_by_start_and_taken_back_by_stop(shop):
    probe = attach_to(shop.path)
    seen = probe.instruments["seen"] = recorder("(x, result)")
    assert shop.double.__code__ is shop.code
    assert seen.status.state == "new"
    probe.start()
    assert shop.double.__code__ is not shop.code
    assert seen.status.state == "installed"
    assert not seen.finish_called
    assert shop.double(2) == 4
    assert seen.finish_called
    assert seen.status.state == "emitting"
    assert seen.status.hits == 1
    probe.stop()
    assert shop.double.__code__ is shop.code
    assert seen.status.state == "stopped"
    assert shop.double(3) == 6
    assert seen.results == [(2, 4)]
    assert active_probes == {}


def test_starting_and_stopping_again_and_twice_is_allowed(shop):
    probe = attach_to(shop.path)
    seen = probe.instruments["seen"] = recorder()
    for number in range(3):
        probe.start()
        probe.start()
        assert active_probes == {shop.path: probe}
        shop.double(number)
        probe.stop()
        probe.stop()
        assert active_probes == {}
        assert probe.instruments["seen"] is seen
    assert seen.results == [0, 1, 2]


def test_a_probe_without_instruments_costs_nothing(shop):
    probe = attach_to(shop.path)
    probe.start()
    assert shop.double.__code__ is shop.code
    assert active_probes == {shop.path: probe}
    probe.stop()


def test_the_same_target_is_the_same_probe_while_it_lives(shop):
    probe = attach_to(shop.path)
    assert attach_to(shop.path) is probe
    probe.start()
    assert attach_to(shop.path) is probe
    probe.stop()
    other = attach_to(shop.path)
    assert other is not probe
    other.stop()


def test_a_start_that_fails_arms_nothing(shop):
    probe = attach_to(shop.path)
    good = probe.instruments["good"] = recorder()
    probe.instruments["bad"] = recorder("no_such_name")
    with pytest.raises(UnknownNameError, match="no_such_name"):
        probe.start()
    assert shop.double.__code__ is shop.code
    assert active_probes == {}
    assert not probe.started
    del probe.instruments["bad"]
    probe.start()
    shop.double(1)
    probe.stop()
    assert good.results == [1]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("{}.doubel", TargetNotFoundError),
        ("no_such_module_at_all.f", TargetNotFoundError),
        ("{}", TargetKindError),
    ],
)
def test_a_target_that_is_not_there_is_an_error_of_start(shop, path, error):
    probe = FunctionProbe(path.format(shop.__name__), {"k": recorder()})
    with pytest.raises(error):
        probe.start()
    assert active_probes == {}


def test_start_imports_the_module_and_attach_does_not(tmp_path, monkeypatch):
    (tmp_path / "late_module_for_probes.py").write_text("def f(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    probe = attach_to("late_module_for_probes.f")
    with pytest.raises(TargetNotImportedError):
        probe.attach("k", recorder())
    assert "late_module_for_probes" not in sys.modules
    assert active_probes == {}
    seen = probe.instruments["k"] = recorder()
    try:
        probe.start()
        sys.modules["late_module_for_probes"].f(5)
        probe.stop()
    finally:
        sys.modules.pop("late_module_for_probes", None)
    assert seen.results == [5]


def test_all_probes_can_be_started_at_once_and_a_bad_one_stops_no_other(shop):
    good = attach_to(shop.path)
    bad = attach_to(f"{shop.__name__}.no_such")
    other = attach_to(f"{shop.__name__}.triple")
    instruments = [recorder() for _ in range(3)]
    for probe, instrument in zip((good, bad, other), instruments, strict=True):
        probe.instruments["k"] = instrument
    with pytest.raises(TargetNotFoundError, match="no_such"):
        start_all()
    shop.double(1)
    shop.triple(2)
    assert [each.results for each in instruments] == [[1], [], [2]]
    for probe in (good, bad, other):
        probe.stop()


# --- attach, detach, replace ------------------------------------------------------------------


def test_attach_arms_at_once_and_detach_is_idempotent(shop):
    probe = attach_to(shop.path)
    seen = recorder()
    probe.attach("k", seen)
    assert probe.instruments == {"k": seen}
    shop.double(1)
    probe.detach("k")
    probe.detach("k")
    probe.detach("never there")
    assert (seen.results, seen.status.state) == ([1], "stopped")
    assert active_probes == {}
    assert shop.double.__code__ is shop.code


def test_what_is_attached_under_a_key_takes_the_place_of_what_was_there(shop):
    probe = attach_to(shop.path)
    first, second = recorder(), recorder("result")
    probe.attach("k", first)
    shop.double(1)
    probe.attach("k", second)
    shop.double(2)
    assert first.status.state == "stopped"
    assert (first.results, second.results) == ([1], [4])
    probe.detach("k")


def test_a_replacement_that_fails_leaves_what_was_there(shop):
    probe = attach_to(shop.path)
    first = recorder()
    probe.attach("k", first)
    armed = shop.double.__code__
    for bad in (recorder("nowhere"), recorder("nowhere", "end"), recorder("x", when="nowhere")):
        with pytest.raises(UnknownNameError):
            probe.attach("k", bad)
        assert bad.status.state == "new"
    with pytest.raises(InstrumentError, match=r"custom\.tags"):
        probe.attach("k", recorder(custom={"tags": {"not": "text"}}))
    assert shop.double.__code__ is armed
    assert probe.instruments == {"k": first}
    shop.double(1)
    assert first.results == [1]
    probe.detach("k")


def test_an_instrument_that_is_attached_again_goes_on(shop):
    probe = attach_to(shop.path)
    seen = Detached("n", "x")
    probe.attach("k", seen)
    shop.double(1)
    probe.attach("k", seen)
    shop.double(2)
    assert seen.results == [1, 2]
    assert seen.status.state == "emitting"
    assert not seen.is_off.is_set()
    probe.detach("k")
    assert seen.is_off.is_set()
    assert seen.status.state == "stopped"


def test_an_instrument_on_two_functions_ends_with_the_last(shop):
    seen = Detached("n", "x")
    one, other = attach_to(shop.path), attach_to(f"{shop.__name__}.triple")
    one.attach("k", seen)
    other.attach("k", seen)
    shop.double(1)
    shop.triple(2)
    one.detach("k")
    shop.double(3)
    shop.triple(4)
    assert not seen.is_off.is_set()
    assert seen.status.state == "emitting"
    other.detach("k")
    assert seen.is_off.is_set()
    assert (seen.results, seen.status.state) == ([1, 2, 4], "stopped")


def test_an_instrument_under_two_keys_fires_twice(shop):
    seen = recorder()
    probe = attach_to(shop.path)
    probe.attach("a", seen)
    probe.attach("b", seen)
    shop.double(1)
    probe.detach("a")
    shop.double(2)
    probe.detach("b")
    assert seen.results == [1, 1, 2]


def test_two_paths_to_one_function_share_it(stage, shop):
    alias = stage.module(again=shop.double)

    class Holder:
        method = shop.double

    stage.module(Holder)
    one, other = attach_to(shop.path), attach_to(f"{alias.__name__}.again")
    a, b = recorder(), recorder("result")
    one.attach("k", a)
    other.attach("k", b)
    shop.double(1)
    one.stop()
    alias.again(2)
    other.stop()
    assert (a.results, b.results) == ([1], [2, 4])
    assert shop.double.__code__ is shop.code


def test_instruments_may_be_changed_by_an_instrument(shop):
    class Once(ProbeTestInstrument):
        def emit(self, name, value, tags):
            super().emit(name, value, tags)
            attach_to(shop.path).detach("once")

    once, other = Once("n", "x"), recorder()
    probe = attach_to(shop.path)
    probe.attach("once", once)
    probe.attach("other", other)
    shop.double(1)
    shop.double(2)
    probe.detach("other")
    assert (once.results, other.results) == ([1], [1, 2])


def test_instruments_of_a_started_probe_are_a_dict_that_takes_effect_at_once(shop):
    probe = attach_to(shop.path)
    probe.start()
    first = probe.instruments["a"] = recorder()
    shop.double(1)
    second = probe.instruments["a"] = recorder("result")
    shop.double(2)
    with pytest.raises(UnknownNameError):
        probe.instruments["a"] = recorder("nowhere")
    with pytest.raises(UnknownNameError):
        probe.instruments["b"] = recorder("nowhere")
    assert probe.instruments == {"a": second}
    probe.instruments.update(b=first, c=recorder())
    assert list(probe.instruments) == ["a", "b", "c"]
    assert len(probe.instruments) == 3
    shop.double(3)
    del probe.instruments["a"]
    with pytest.raises(KeyError):
        del probe.instruments["a"]
    assert probe.instruments.pop("b") is first
    assert probe.instruments.pop("b", None) is None
    shop.double(4)
    probe.instruments.clear()
    assert shop.double.__code__ is shop.code
    assert probe.started
    shop.double(5)
    late = probe.instruments.setdefault("d", recorder())
    shop.double(6)
    assert repr(probe.instruments) == repr({"d": late})
    probe.stop()
    assert (first.results, second.results, late.results) == ([1, 3], [4, 6], [6])


def test_instruments_of_a_probe_that_is_not_started_are_only_listed(shop):
    probe = FunctionProbe(shop.path, {"a": recorder("nowhere")})
    probe.instruments["a"] = recorder()
    probe.instruments["b"] = recorder("nowhere")
    del probe.instruments["b"]
    assert list(probe.instruments) == ["a"]
    assert active_probes == {}
    assert shop.double.__code__ is shop.code


def test_a_probe_says_what_a_user_may_not_expect(stage):
    class Base:
        def work(self):
            return 1

    class Cart(Base):
        pass

    path = f"{stage.place(Cart)}.work"
    with attached(path, recorder("self")) as probe:
        assert probe.coverage == "code"
        assert any("inherited from" in text for text in probe.warnings)
        assert repr(probe).startswith(f"FunctionProbe({path!r}")


# --- expiry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lifespan", "aware", "naive", "other zone"])
def test_an_instrument_ends_by_itself(shop, kind):
    soon = datetime.now(UTC) + timedelta(seconds=0.05)
    expires = {
        "aware": soon,
        "naive": soon.replace(tzinfo=None),
        "other zone": soon.astimezone(datetime.strptime("+0530", "%z").tzinfo),
    }.get(kind)
    seen = Detached("n", "x", expires=expires)
    probe = attach_to(shop.path)
    probe.attach("k", seen, lifespan=timedelta(seconds=0.05) if kind == "lifespan" else None)
    shop.double(1)
    assert seen.is_off.wait(DEADLINE_SECONDS)
    assert seen.status.state == "expired"
    assert shop.double.__code__ is shop.code
    shop.double(2)
    assert seen.results == [1]
    assert probe.instruments == {}
    assert active_probes == {}


def test_what_has_expired_already_is_not_armed(shop):
    seen = recorder(expires=datetime(2001, 1, 1))
    probe = attach_to(shop.path)
    probe.attach("k", seen)
    assert shop.double.__code__ is shop.code
    assert seen.status.state == "expired"
    assert active_probes == {}
    other = recorder()
    probe.attach("k", other)
    probe.attach("k", recorder(), lifespan=timedelta(0))
    assert shop.double.__code__ is shop.code
    assert other.status.state == "stopped"


def test_one_instrument_expires_and_the_others_go_on(shop):
    short, long = Detached("n", "x"), recorder()
    probe = attach_to(shop.path)
    probe.attach("long", long, lifespan=timedelta(days=4000))
    probe.attach("short", short, lifespan=timedelta(seconds=0.02))
    assert short.is_off.wait(DEADLINE_SECONDS)
    shop.double(1)
    assert (short.results, long.results) == ([], [1])
    assert list(probe.instruments) == ["long"]
    probe.stop()


def test_a_replacement_does_not_inherit_the_deadline(shop):
    probe = attach_to(shop.path)
    probe.attach("k", recorder(), lifespan=timedelta(seconds=0.03))
    later, marker = recorder(), Detached("n", "x")
    probe.attach("k", later)
    other = attach_to(f"{shop.__name__}.triple")
    other.attach("k", marker, lifespan=timedelta(seconds=0.06))
    assert marker.is_off.wait(DEADLINE_SECONDS)
    shop.double(1)
    assert later.results == [1]
    probe.stop()


def test_a_started_probe_whose_instruments_have_expired_has_ended(shop):
    probe = attach_to(shop.path)
    seen = probe.instruments["k"] = Detached(
        "n", "x", expires=datetime.now(UTC) + timedelta(seconds=0.05)
    )
    probe.start()
    assert seen.is_off.wait(DEADLINE_SECONDS)
    assert not probe.started
    assert active_probes == {}


# --- errors of instruments --------------------------------------------------------------------


class Noted(InstrumentManager):
    """Notes what it is told, and what exception was being handled then."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def handle_error(self, probe=None, instrument=None):
        self.noted.append((probe, instrument, type(sys.exception())))


class Failing(ProbeTestInstrument):
    def __init__(self, what, error=ZeroDivisionError, event="return", **options):
        values = {"value": "1 // 0", "when": "x", "tags": "x"}
        super().__init__(
            "n",
            values.get(what, "x") if what == "value" else "x",
            event,
            custom={"tags": "{'a': 1 // 0}"} if what == "tags" else None,
            when="1 // 0" if what == "when" else None,
            **options,
        )
        self.what = what
        self.error = error
        if what == "fire":
            self.fire = self.failing
        if what == "evaluate":
            self.evaluate = self.failing
        if what == "merge_tags":
            self.merge_tags = self.failing
        if what == "check_call":
            self.check_call = self.failing

    def failing(self, *args, **kwargs):
        raise self.error("failing")

    def emit(self, name, value, tags):
        if self.what == "emit":
            self.failing()
        super().emit(name, value, tags)

    def finish(self):
        super().finish()
        if self.what == "finish":
            self.failing()


WHAT_FAILS = ["value", "when", "tags", "emit", "fire", "evaluate", "merge_tags", "check_call"]
WHAT_FAILS += ["finish"]


@pytest.mark.parametrize("event", ["call", "return", "end"])
@pytest.mark.parametrize("what", WHAT_FAILS)
def test_an_instrument_that_raises_is_disarmed_reported_and_harms_nobody(shop, what, event):
    manager = Noted()
    failing = Failing(what, event=event, mgr=manager)
    good = recorder(event=event, mgr=manager)
    probe = attach_to(shop.path)
    probe.attach("failing", failing)
    probe.attach("good", good)
    assert [shop.double(number) for number in range(3)] == [0, 2, 4]
    assert failing.status.suppressed["error"] == 1
    timers_ran()
    assert manager.noted == [(probe, failing, ZeroDivisionError)]
    assert failing.results == ([0] if what == "finish" else [])
    assert failing.status.state == "error"
    assert failing.status.code == "runtime-error"
    assert "ZeroDivisionError" in failing.status.error
    assert "change the spec to arm it again" in failing.status.error
    assert good.results == [0, 1, 2]
    assert good.status.error is None
    probe.detach("good")
    assert shop.double.__code__ is shop.code
    assert probe.instruments == {"failing": failing}
    probe.detach("failing")
    assert failing.status.state == "error"
    assert threading.get_ident() not in reentrancy.BUSY


def test_a_disarmed_instrument_costs_nothing_once_the_timer_ran(shop):
    manager = Noted()
    with attached(shop.path, Failing("value", mgr=manager)):
        assert shop.double(1) == 2
        timers_ran()
        assert shop.double.__code__ is shop.code


def test_an_instrument_is_armed_again_by_attaching_it_again(shop):
    failing = Failing("emit", mgr=Noted())
    probe = attach_to(shop.path)
    probe.attach("k", failing)
    shop.double(1)
    timers_ran()
    assert failing.status.state == "error"
    failing.what = "nothing"
    probe.attach("k", failing)
    assert failing.status.state in {"installed", "emitting"}
    assert (failing.status.code, failing.status.error) == (None, None)
    shop.double(2)
    assert failing.results == [2]
    probe.detach("k")


@pytest.mark.parametrize("what", ["emit", "fire", "check_call", "finish", "handle_error"])
def test_interrupts_that_a_signal_handler_raises_are_the_programs(shop, what):
    class Sending(Failing):
        def failing(self, *args, **kwargs):
            send()
            return True

    class Manager(Noted):
        def handle_error(self, probe=None, instrument=None):
            in_main.append(threading.current_thread() is threading.main_thread())

    in_main = []
    failing = (Failing if what == "handle_error" else Sending)(
        "value" if what == "handle_error" else what, mgr=Manager()
    )
    with interrupts() as send, attached(shop.path, failing):
        if what == "handle_error":  # it runs where no signal is delivered
            assert shop.double(1) == 2
            timers_ran()
            assert in_main == [False]
            return
        for _ in range(2):
            with pytest.raises(Interrupt):
                shop.double(1)
            assert threading.get_ident() not in reentrancy.BUSY
        timers_ran()
        assert failing.status.error is None
        assert in_main == []


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]
)
@pytest.mark.parametrize("what", WHAT_FAILS)
def test_no_exception_that_an_instrument_raises_reaches_the_program(shop, what, error):
    manager = Noted()
    failing = Failing("emit" if what in {"value", "when", "tags"} else what, error, mgr=manager)
    with attached(shop.path, failing):
        assert [shop.double(number) for number in range(2)] == [0, 2]
        assert threading.get_ident() not in reentrancy.BUSY
        timers_ran()
    assert [kind for _, _, kind in manager.noted] == [error]
    assert (failing.status.state, failing.status.code) == ("error", "runtime-error")
    assert error.__name__ in failing.status.error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_broken_error_handler_harms_nobody(shop, caplog, error):
    class Manager(Noted):
        def handle_error(self, probe=None, instrument=None):
            raise error("handle_error is broken")

    with attached(shop.path, Failing("value", mgr=Manager())):
        assert shop.double(1) == 2
        timers_ran()
        assert "handle_error is broken" in caplog.text
        assert shop.double.__code__ is shop.code


def test_an_exception_whose_text_fails_is_reported_all_the_same(shop):
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    failing = Failing("emit", Mute, mgr=Noted())
    with attached(shop.path, failing):
        assert shop.double(1) == 2
    assert "Mute" in failing.status.error


def test_an_error_in_an_instrument_does_not_become_the_context_of_the_programs(place):
    def fail(x):
        raise KeyError(x)

    with attached(
        place(fail), Failing("value", mgr=Noted()), Failing("emit", event="end", mgr=Noted())
    ):
        with pytest.raises(KeyError) as raised:
            fail(1)
    assert raised.value.__context__ is None


def test_an_exception_that_the_program_raises_meanwhile_keeps_its_traceback(stage):
    own = ValueError("the program's own")

    def fail():
        raise own

    told, gate = [], threading.Event()

    class Told(InstrumentManager):
        def handle_error(self, probe=None, instrument=None):
            told.append(sys.exception())

    module = stage.script("def work(x):\n    return x")
    module.fail = fail
    with attached(f"{module.__name__}.work", recorder("fail()", mgr=Told())):
        registry.timers.after(0, lambda: gate.wait(DEADLINE_SECONDS))
        assert module.work(1) == 1
        assert own.__traceback__ is None
        try:
            fail()
        except ValueError as error:
            trace = error.__traceback__
            gate.set()
            timers_ran()
            assert [(type(each), each.args) for each in told] == [(type(own), own.args)]
            assert own.__traceback__ is trace


def test_threads_that_fail_at_once_report_once(shop):
    manager = Noted()
    barrier = threading.Barrier(2)

    class Slow:
        """Stands in for the flag: whoever asks, the other asks as well before either goes on."""

        def __bool__(self):
            barrier.wait(DEADLINE_SECONDS)
            return True

    with attached(shop.path, Failing("value", mgr=manager)) as probe:
        (attachment,) = probe._attachments.values()
        attachment.armed = Slow()
        threads = [threading.Thread(target=shop.double, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
    timers_ran()
    assert len(manager.noted) == 1


def test_a_failing_hit_waits_for_nobody(shop):
    # Whoever changes probes may be waiting for a lock that the program's thread holds.
    with attached(shop.path, Failing("value", mgr=Noted())):
        with registry.lock:
            assert in_thread(shop.double, 2) == 4


def test_what_the_first_hit_says_is_not_lost(shop, monkeypatch):
    update = registry.update

    def update_and_call(site, news=()):
        update(site, news)
        if news:  # it is armed: another thread may be there at once
            in_thread(shop.double, 1)

    monkeypatch.setattr(registry, "update", update_and_call)
    failing = Failing("value", mgr=Noted())
    with attached(shop.path, failing):
        assert (failing.status.state, failing.status.code) == ("error", "runtime-error")


@pytest.mark.parametrize(
    "path", ["ast.parse", "inspect.signature", "ast.NodeVisitor.generic_visit"]
)
def test_the_engines_own_work_is_not_probed(shop, path):
    # It is done while a lock is held, and what an instrument does may need that lock.
    class Attaching(ProbeTestInstrument):
        def emit(self, name, value, tags):
            super().emit(name, value, tags)
            in_thread(lambda: attach_to(f"{shop.__name__}.triple").stop())

    attaching = Attaching("n", "1", mgr=Noted())
    with attached(path, attaching):
        with probed(shop.path, "x"), probed(shop.path, "x", "end"):
            shop.double(1)
        assert attaching.results == []
    assert attaching.status.error is None


def test_a_call_that_is_refused_is_not_served(shop):
    class Picky(InstrumentManager):
        def check_call(self, probe, instrument, *args, **kwargs):
            asked.append((probe.target, instrument.name, args, kwargs))
            return args[0] > 1

    asked = []
    picky = Picky()
    for event in ("call", "return", "end"):
        asked.clear()
        with probed(shop.path, "x", event, mgr=picky) as seen:
            shop.double(1)
            shop.double(x=2)
        assert seen.results == [2]
        assert seen.status.suppressed == {"check": 1}
        assert asked == [(shop.path, "test", (1,), {}), (shop.path, "test", (2,), {})]


@pytest.mark.parametrize("event", ["call", "return", "end"])
@pytest.mark.parametrize("others", [(), ("return", "end", "return", "end")])
def test_calls_are_checked_before_the_body_with_what_the_caller_gave(place, event, others):
    def work(x, /, args, *rest, y=2, **kwargs):
        order.append("body")
        found.append(lambda: (args, y))
        x, y = "other", "another"
        del kwargs
        if x == "never":
            yield
        raise KeyError(y)

    class Picky(InstrumentManager):
        def check_call(self, probe, instrument, *args, **kwargs):
            order.append((instrument.event, args, kwargs))
            return True

    order, found = [], []
    seen = [ProbeTestInstrument("n", "1", each, mgr=Picky()) for each in (event, *others)]
    with attached(place(work), *seen):
        generator = work(1, 2, 3, z=4)
        with pytest.raises(KeyError):
            next(generator)
    *checks, body = order
    assert body == "body"
    asked = sorted((each, (1, 2, 3), {"y": 2, "z": 4}) for each in (event, *others))
    assert sorted(checks, key=lambda check: check[0]) == asked
    assert [each.results for each in seen] == [[1]] * len(seen)
    assert found[0]() == (2, "another")


def test_a_line_is_checked_when_it_is_reached_without_arguments(place):
    def work(x):
        order.append("body")
        return x

    class Picky(InstrumentManager):
        def check_call(self, probe, instrument, *args, **kwargs):
            order.append((args, kwargs))
            return True

    order = []
    with probed(place(work), "x", "line:+2", mgr=Picky()) as seen:
        work(1)
    assert order == ["body", ((), {})]
    assert seen.results == [1]


def test_arguments_may_have_the_names_of_check_calls_own(place):
    def work(**options):
        return options

    class Picky(ProbeTestInstrument):
        def check_call(self, probe, /, *args, **kwargs):
            return super().check_call(probe, *args, **kwargs)

    class Manager(InstrumentManager):
        def check_call(self, probe, instrument, /, *args, **kwargs):
            return True

    seen = Picky("n", "options", mgr=Manager())
    with attached(place(work), seen):
        work(self=1, probe=2, instrument=3)
    assert seen.results == [{"self": 1, "probe": 2, "instrument": 3}]


# --- re-entrancy, calls in flight -------------------------------------------------------------


@pytest.mark.parametrize("event", ["call", "return", "end"])
def test_an_instrument_may_call_what_it_is_on(shop, event):
    class Calling(ProbeTestInstrument):
        def emit(self, name, value, tags):
            super().emit(name, (value, shop.double(value + 1), shop.triple(1)), tags)

    calling, other = Calling("n", "x", event), recorder()
    quick = [HistogramInstrument("n", value) for value in ("elapsed", "1", "x")]
    with attached(shop.path, calling, *quick), attached(f"{shop.__name__}.triple", other):
        assert shop.double(1) == 2
        assert shop.triple(5) == 15
    # Those that are after it in line, and that run no code of anybody, are called all the same.
    assert [each.status.hits for each in quick] == [1, 1, 1]
    assert [each.status.suppressed for each in quick] == [{"reentrant": 1}] * 3
    assert calling.results == [(1, 4, 3)]
    if event != "end" or sys.version_info < (3, 12):  # sys.monitoring is silent in its callbacks
        assert calling.status.suppressed == {"reentrant": 1}
    assert other.results == [5]
    assert other.status.suppressed == {"reentrant": 1}


def test_an_expression_may_call_what_it_is_on(shop):
    manager = InstrumentManager()
    manager.global_namespace["double"] = shop.double
    quick = HistogramInstrument("n", "double(x)", mgr=manager)
    with (
        attached(shop.path, quick),
        probed(shop.path, "double(x)", when="double(x)", mgr=manager) as seen,
    ):
        shop.double(2)
    assert seen.results == [4]
    assert quick.status.hits == 1


def test_other_threads_fire_while_an_instrument_runs(shop):
    class Waiting(ProbeTestInstrument):
        def emit(self, name, value, tags):
            super().emit(name, value, tags)
            if value == 1:
                in_thread(shop.double, 2)

    seen = Waiting("n", "x")
    with attached(shop.path, seen):
        shop.double(1)
    assert seen.results == [1, 2]
    assert seen.status.suppressed == {}


@pytest.mark.parametrize(
    ("kind", "value", "event"),
    [
        (ProbeTestInstrument, "x", "return"),
        (ProbeTestInstrument, "x", "end"),
        (HistogramInstrument, "x", "return"),
        (HistogramInstrument, "x", "end"),
        (HistogramInstrument, "elapsed", "return"),
        (HistogramInstrument, "1", "return"),
    ],
)
def test_a_call_that_is_inside_when_the_probe_stops_does_not_emit(place, kind, value, event):
    entered, leave = threading.Event(), threading.Event()

    def work(x):
        entered.set()
        leave.wait(DEADLINE_SECONDS)
        return x

    code = work.__code__
    seen, stays = kind("n", value, event), kind("n", value, event)
    probe = attach_to(place(work))
    probe.attach("seen", seen)
    probe.attach("stays", stays)
    thread = threading.Thread(target=work, args=(1,))
    thread.start()
    assert entered.wait(DEADLINE_SECONDS)
    probe.detach("seen")
    leave.set()
    thread.join(DEADLINE_SECONDS)
    stays.flush()
    assert (seen.status.hits, stays.status.hits) == (0, 1)
    # Nor is it counted later, when the same instrument is put on again.
    probe.attach("seen", seen)
    work(1)
    seen.flush()
    assert seen.status.hits == 1
    probe.stop()
    assert work.__code__ is code


def test_a_call_that_was_inside_when_the_probe_started_is_not_seen(place):
    def work(step):
        step()
        return 1

    seen = recorder("step")
    probe = attach_to(place(work))
    assert work(lambda: probe.attach("k", seen)) == 1
    assert seen.results == []
    work(int)
    assert seen.results == [int]
    probe.detach("k")


def test_a_generator_goes_on_as_it_began_when_probes_change(place):
    def numbers(n):
        for number in range(n):
            yield number * 1
        return "done"

    path = place(numbers)
    early = numbers(3)
    next(early)
    with probed(path, "n", "call") as calls, probed(path, "result") as returns:
        inside = numbers(4)
        assert [next(early), next(inside)] == [1, 0]
    assert list(early) == [2]
    assert list(inside) == [1, 2, 3]
    assert (calls.results, returns.results) == ([4], [])


# --- decorator and sensor ---------------------------------------------------------------------


def test_an_instrument_is_a_decorator_that_attaches_itself():
    seen = recorder("(x, result)")

    @seen
    def work(x):
        return x + 1

    path = f"{__name__}.{work.__qualname__}"
    try:
        assert work(1) == 2
        assert seen.results == [(1, 2)]
        assert list(active_probes) == [path]
        assert active_probes[path].coverage == "code"
    finally:
        active_probes[path].stop()
    assert work(2) == 3
    assert seen.results == [(1, 2)]


def test_decorating_returns_the_function_itself_whatever_its_kind():
    seen = recorder("result")
    before = []

    class Cart:
        @seen
        def method(self):
            return 1

        @seen
        @staticmethod
        def static():
            return 2

        @staticmethod
        @seen
        def inner_static():
            return 3

        @seen
        @classmethod
        def of_class(cls):
            return 4

        @seen
        @property
        def prop(self):
            return 5

    before = list(active_probes.values())
    try:
        cart = Cart()
        assert [cart.method(), cart.static(), cart.inner_static()] == [1, 2, 3]
        assert [cart.of_class(), cart.prop] == [4, 5]
        assert isinstance(vars(Cart)["static"], staticmethod)
        assert isinstance(vars(Cart)["prop"], property)
        assert seen.results == [1, 2, 3, 4, 5]
    finally:
        for probe in before:
            probe.stop()


def test_decorating_what_has_no_function_in_it_is_an_error():
    for thing in (len, 5, functools.partial(print), property()):
        with pytest.raises(TargetKindError, match="no Python function"):
            recorder("result")(thing)
    assert active_probes == {}


def test_a_decorated_function_is_found_by_its_path(stage):
    module = stage.module()
    text = """
        from diagnose import ProbeTestInstrument
        seen = ProbeTestInstrument("n", "x")

        @seen
        def work(x):
            return x
    """
    module.__dict__["__name__"] = module.__name__
    exec(textwrap.dedent(text), vars(module))
    probe = attach_to(f"{module.__name__}.work")
    assert list(probe.instruments.values()) == [module.seen]
    other = recorder("result")
    probe.attach("other", other)
    module.work(1)
    probe.stop()
    module.work(2)
    assert (module.seen.results, other.results) == ([1], [1])


def test_a_sensor_watches_within_its_block(shop):
    with sensor(shop.path) as seen:
        shop.double(1)
        with sensor(shop.path, "x", name="mine", event="call") as inner:
            shop.double(2)
        shop.double(3)
    shop.double(4)
    assert seen.results == [2, 4, 6]
    assert seen.log[0] == ({}, 2)
    assert (inner.results, inner.name) == ([2], "mine")
    assert active_probes == {}


def test_a_sensor_imports_the_module_and_ends_with_an_exception(shop):
    with pytest.raises(KeyError):
        with sensor(shop.path) as seen:
            shop.double(1)
            raise KeyError
    shop.double(2)
    assert seen.results == [2]
    for path, value in (("no_such_module_at_all.f", "1"), (shop.path, "nowhere")):
        with pytest.raises(DiagnoseError):
            with sensor(path, value):
                pass
    assert active_probes == {}
    assert shop.double.__code__ is shop.code


# --- fork -------------------------------------------------------------------------------------


class ListSink:
    def __init__(self):
        self.got = []
        self.arrived = threading.Event()

    def histogram(self, name, values, tags):
        self.got.append((name, list(values), dict(tags)))
        self.arrived.set()

    def counter(self, name, total, tags):
        self.got.append((name, total, dict(tags)))
        self.arrived.set()

    def close(self):
        pass


def test_a_forked_child_keeps_its_probes_and_has_timers_and_drains_of_its_own(shop):
    manager = InstrumentManager()
    sink = ListSink()
    manager.sinks.append(sink)
    metric = HistogramInstrument("n", "x", mgr=manager)
    short = Detached("n", "x")
    probe = attach_to(shop.path)
    probe.attach("metric", metric)
    probe.attach("short", short, lifespan=timedelta(seconds=0.3))
    shop.double(7)  # in the buffer: the parent sends it

    def child():
        # What the parent was quick enough to send before the fork is not the child's.
        del sink.got[:]
        sink.arrived.clear()
        shop.double(8)
        assert sink.arrived.wait(10), "the drain does not run"
        assert short.is_off.wait(10), "the timers do not run"
        probe.attach("new", Detached("n", "x"), lifespan=timedelta(seconds=0.01))
        wait_until(lambda: "new" not in probe.instruments, seconds=10)
        probe.stop()
        assert shop.double.__code__ is shop.code
        return [values for _, values, _ in sink.got]

    assert in_child(child) == "[[8]]"
    assert sink.arrived.wait(DEADLINE_SECONDS)
    assert [values for _, values, _ in sink.got] == [[7]]
    probe.stop()


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="without the GIL a child may find the lock of any dict taken, whoever reads it",
)
def test_forks_amid_changes_of_probes_do_not_deadlock(shop):
    stop = threading.Event()
    errors = []

    one, other = attach_to(shop.path), attach_to(f"{shop.__name__}.triple")
    one.start()
    other.start()

    def change(number):
        probe = (one, other)[number % 2]
        try:
            while not stop.is_set():
                metric = HistogramInstrument("n", "x", mgr=InstrumentManager())
                probe.attach(f"k{number}", metric, lifespan=timedelta(seconds=0.0005 * number))
                shop.double(1)
                shop.triple(1)
                probe.detach(f"k{number}")
        except BaseException as error:
            errors.append(error)

    def child():
        seen = Detached("n", "x")
        one.attach("mine", seen, lifespan=timedelta(seconds=0.001))
        assert shop.double(2) == 4
        assert seen.is_off.wait(10), "the timers do not run"
        # Those of the threads that were left behind in the parent expire here as well.
        wait_until(lambda: not one.instruments and not other.instruments, seconds=10)
        assert shop.double.__code__ is shop.code
        return "fine"

    threads = [threading.Thread(target=change, args=(n,), daemon=True) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            assert in_child(child) == "fine"
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        one.stop()
        other.stop()
    assert errors == []
    assert shop.double.__code__ is shop.code


def test_a_fork_within_an_instrument_leaves_both_sides_working(shop):
    class Forking(ProbeTestInstrument):
        def emit(self, name, value, tags):
            super().emit(name, value, tags)
            if value == 1:
                answers.append(in_child(child))

    def child():
        shop.double(2)  # the instrument still runs
        return len(forking.results), forking.status.suppressed["reentrant"]

    answers, forking = [], Forking("n", "x")
    with attached(shop.path, forking):
        shop.double(1)
        shop.double(3)
    assert answers == ["(1, 1)"]
    assert forking.results == [1, 3]
    assert threading.get_ident() not in reentrancy.BUSY


def test_threads_that_a_fork_left_behind_in_an_instrument_silence_nobody(shop):
    inside, leave = threading.Event(), threading.Event()

    class Waiting(ProbeTestInstrument):
        def emit(self, name, value, tags):
            inside.set()
            leave.wait(DEADLINE_SECONDS)

    with attached(shop.path, Waiting("n", "x")):
        thread = threading.Thread(target=shop.double, args=(1,))
        thread.start()
        assert inside.wait(DEADLINE_SECONDS)
        assert len(reentrancy.BUSY) >= 1
        assert in_child(lambda: len(reentrancy.BUSY)) == "0"
        leave.set()
        thread.join(DEADLINE_SECONDS)


def test_probes_are_gone_with_the_process_also_when_it_ends_amid_calls(tmp_path):
    import subprocess

    script = tmp_path / "script.py"
    script.write_text(
        """
import threading, diagnose, textwrap
probe = diagnose.attach_to("textwrap.dedent")
probe.instruments["k"] = diagnose.HistogramInstrument("n", "elapsed")
probe.instruments["l"] = diagnose.LogInstrument("n", "1 // 0")
probe.start()

def work():
    while True:
        textwrap.dedent(" a")

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
for _ in range(100):
    textwrap.dedent(" b")
"""
    )
    answer = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(diagnose.__file__).parent.parent,
        env={"PYTHONPATH": str(Path(diagnose.__file__).parent.parent)},
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert "Fatal" not in answer.stderr


# --- subclasses -------------------------------------------------------------------------------


def test_a_subclass_that_fires_gets_complete_globals_and_locals(stage):
    class Everything(Instrument):
        def fire(self, _globals, _locals):
            got.append((_globals, _locals))

    got = []
    module = stage.script("rate = 3\ndef work(a, *rest, b=2):\n    c = a + b\n    return c")
    for event in ("call", "return", "end"):
        with attached(f"{module.__name__}.work", Everything("n", "a", event)):
            module.work(1, 5)
    for globals_, locals_ in got:
        assert globals_ is vars(module)
        assert locals_["math"] is math  # of the manager's namespace, which is not listed
    call, leaving, end = (locals_ for _, locals_ in got)
    assert {"a", "rest", "b", "args", "kwargs", "start", "now", "frame"} == set(call)
    assert (call["args"], call["kwargs"], call["rest"]) == ((1, 5), {"b": 2}, (5,))
    assert set(leaving) == set(call) | {"result", "exception", "elapsed", "end"}
    assert leaving["result"] == 3
    assert end == {"a": 1, "rest": (5,), "b": 2, "c": 3}


@pytest.mark.parametrize(
    "way",
    [
        dict,
        copy.copy,
        copy.deepcopy,
        lambda names: pickle.loads(pickle.dumps(names)),
        lambda names: {**names},
        lambda names: {} | names,
        lambda names: dict(**names),
        lambda names: dict(zip(reversed(names), reversed(names.values()), strict=True)),
        lambda names: {name: names[name] for name in names},
        lambda names: eval(repr(names)),
    ],
)
def test_mappings_that_are_made_when_looked_at_can_be_copied(shop, way):
    class Copying(ProbeTestInstrument):
        def fire(self, _globals, _locals):
            copied = way(_locals)
            got.append((type(copied), copied, way(self.custom)))
            _locals.clear()
            got.append(dict(_locals))

    got = []
    with attached(shop.path, Copying("n", "x", "end", custom={"tags": "{'x': x}"})):
        shop.double(3)
    assert got == [(dict, {"x": 3}, {"tags": "{'x': x}"}), {}]


@pytest.mark.parametrize(
    "value", ["math.floor(x + rate + more)", "max(math.floor(x + rate + y) for y in [more])"]
)
def test_a_subclass_that_fires_may_evaluate_with_names_of_its_own(stage, value):
    class Adding(ProbeTestInstrument):
        def fire(self, _globals, _locals):
            copies = {**_globals, "more": 0.5}, dict(_locals), {**_locals, "more": 0.5}
            ways = (copies[0], _locals), (copies[0], copies[1]), (_globals, copies[2])
            got.extend(self.evaluate(value, *way) for way in ways)
            got.append(self.evaluate("math.inf", _globals, {}))

    got = []
    module = stage.script("rate = 3\ndef work(x):\n    return x")
    with attached(f"{module.__name__}.work", Adding("n", "x")) as probe:
        module.work(1.5)
        (instrument,) = probe.instruments.values()
        assert instrument.status.error is None
    assert got == [5, 5, 5, math.inf]


def test_tags_of_the_manager_are_overlaid_by_the_instruments_own(shop):
    class Tagging(InstrumentManager):
        def get_tags(self):
            return {"host": "web1", "tier": "none"}

    with probed(shop.path, mgr=Tagging(), custom={"tags": "{'tier': x}"}) as seen:
        shop.double(1)
    assert seen.log == [({"host": "web1", "tier": 1}, 2)]


def test_counts_say_how_often_and_why_not(shop):
    with probed(shop.path, "x", when="x > 1") as seen:
        for number in range(4):
            shop.double(number)
        assert seen.status.hits == 2
        assert seen.status.suppressed == {"condition": 2}
