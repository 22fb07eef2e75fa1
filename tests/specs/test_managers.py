from __future__ import annotations

import copy
import io
import logging
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modules import document as spec
from modules import loaded
from stage import timers_ran
from waiting import in_child

import diagnose
from diagnose import probes, targets
from diagnose.instruments import Instrument, ProbeTestInstrument
from diagnose.managers import InstrumentManager, mag

SOURCE = """
def double(x):
    y = x * 2
    return y

def halve(x):
    return x / 2

class Cart:
    def total(self, n):
        return n
"""
DEADLINE_SECONDS = 20


class Seen(ProbeTestInstrument):
    """Keeps what all of its kind saw, by name."""

    results_by_name: ClassVar[dict[str, list]] = {}

    def emit(self, name, value, tags):
        self.results_by_name.setdefault(name, []).append(value)


class ManagerWithClock(InstrumentManager):
    moment = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)

    def now(self):
        return self.moment


@pytest.fixture
def manager(shop):
    Seen.results_by_name = {}
    made = InstrumentManager("me")
    made.instrument_classes["seen"] = Seen
    yield made
    made.stop()


def entry(manager, key="a"):
    return manager.specs[key]["applied"]["me"]


def seen(name="n"):
    return Seen.results_by_name.get(name, [])


def test_a_spec_is_applied_and_its_entry_says_so(shop, manager):
    manager.specs["a"] = spec()
    manager.apply()
    assert shop.double(4) == 8
    assert seen() == [8]
    found = entry(manager)
    assert found["lm"] is manager.specs["a"]["lastmodified"]
    assert found["err"] is None
    assert found["state"] == "installed"
    assert found["at"].tzinfo is None
    assert "code" not in found
    assert "warnings" not in found


def test_an_entry_says_emitting_after_the_first_hit(shop, manager):
    manager.specs["a"] = spec()
    manager.apply()
    shop.double(1)
    manager.apply()
    assert entry(manager)["state"] == "emitting"


def test_applying_again_changes_nothing(shop, manager):
    manager.specs["a"] = spec()
    manager.apply()
    before, code = entry(manager), shop.double.__code__
    instrument = next(iter(probes.active_probes["probed_shop.double"].instruments.values()))
    for _ in range(3):
        manager.apply()
    assert entry(manager) is before
    assert shop.double.__code__ is code
    assert list(probes.active_probes["probed_shop.double"].instruments.values()) == [instrument]


def test_what_is_left_out_of_a_spec_has_the_usual_meaning(shop, manager):
    made = spec()
    made["instrument"] = {"type": "seen", "value": "result"}
    manager.specs["the-id"] = made
    manager.apply()
    shop.double(2)
    assert seen("the-id") == [4]


def test_a_removed_spec_is_taken_off(shop, manager):
    original = shop.double.__code__
    manager.specs["a"] = spec()
    manager.apply()
    del manager.specs["a"]
    manager.apply()
    assert shop.double.__code__ is original
    assert not probes.active_probes


def test_a_changed_spec_replaces_the_one_before(shop, manager):
    manager.specs["a"] = spec(value="result")
    manager.apply()
    shop.double(1)
    manager.specs["a"] = spec(value="result * 100")
    manager.apply()
    shop.double(1)
    assert seen() == [2, 200]


def test_the_version_before_goes_on_until_the_new_one_is_in_place(shop, manager):
    class Slow(Seen):
        def __init__(self, *args, **kwargs):
            shop.double(len(seen()))
            super().__init__(*args, **kwargs)

    manager.specs["a"] = spec()
    manager.apply()
    manager.instrument_classes["seen"] = Slow
    manager.specs["a"]["lastmodified"] += timedelta(seconds=1)
    manager.apply()
    assert seen() == [0]
    shop.double(7)
    assert seen() == [0, 14]


def test_a_spec_moves_to_another_target(shop, manager):
    manager.specs["a"] = spec()
    manager.apply()
    manager.specs["a"]["target"] = "probed_shop.halve"
    manager.apply()
    shop.double(1), shop.halve(8)
    assert seen() == [4]
    assert list(probes.active_probes) == ["probed_shop.halve"]


def test_an_edit_whose_author_forgot_lastmodified_is_noticed(shop, manager):
    manager.specs["a"] = spec()
    manager.apply()
    manager.specs["a"]["instrument"]["value"] = "result + 1"
    manager.apply()
    shop.double(1)
    assert seen() == [3]


def test_a_new_version_that_fails_ends_the_one_before(shop, manager):
    original = shop.double.__code__
    manager.specs["a"] = spec()
    manager.apply()
    manager.specs["a"] = spec(value="result +")
    manager.apply()
    assert entry(manager)["state"] == "error"
    assert entry(manager)["code"] == "expression-syntax"
    assert shop.double.__code__ is original


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"target": None}, "missing-target"),
        ({"target": "probed_shop.doubel"}, "target-not-found"),
        ({"target": "probed_shop"}, "target-is-module"),
        ({"target": "probed_shop.Cart"}, "target-is-class"),
        ({"target": "no_such_module_at_all.f"}, "module-not-found"),
        ({"target": "not a path"}, "target-syntax"),
        ({"instrument": {"type": "nope", "value": "1"}}, "unknown-type"),
        ({"instrument": {"type": "seen", "value": "1", "event": "retrun"}}, "unknown-event"),
        ({"instrument": {"type": "seen", "value": "(" * 5}}, "expression-syntax"),
        ({"when": "x +"}, "expression-syntax"),
        ({"lastmodified": None}, "lastmodified-missing"),
        ({"lifespan": -1}, "bad-lifespan"),
        ({"select": {"sevice": "web"}}, "unknown-label"),
    ],
)
def test_a_bad_spec_is_an_error_of_that_spec_alone(shop, manager, changes, code):
    manager.specs["bad"] = spec() | changes
    manager.specs["a"] = spec()
    manager.apply()
    bad = entry(manager, "bad")
    assert bad["state"] == "error"
    assert bad["code"] == code
    assert bad["err"]
    assert bad["lm"] == (manager.specs["bad"]["lastmodified"])
    assert entry(manager)["state"] == "installed"
    assert shop.double(2) == 4
    assert seen() == [4]


def test_a_spec_waits_for_its_module_and_never_imports_it(shop, manager):
    module = sys.modules.pop("probed_shop")
    unused = "wsgiref.handlers"
    assert unused not in sys.modules
    manager.specs["a"] = spec(target=f"{unused}.format_date_time")
    manager.apply()
    assert entry(manager)["state"] == "pending"
    assert entry(manager)["code"] == "module-not-imported"
    assert unused not in sys.modules
    sys.modules[unused] = module
    try:
        manager.specs["a"]["target"] = f"{unused}.double"
        manager.apply()
        assert entry(manager)["state"] == "installed"
        module.double(3)
        assert seen() == [6]
        manager.stop()
    finally:
        del sys.modules[unused]


def test_a_spec_is_applied_once_its_module_is_imported(tmp_path, monkeypatch, manager):
    (tmp_path / "imported_late.py").write_text("def f():\n    return 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    manager.specs["a"] = spec(target="imported_late.f")
    manager.apply()
    assert entry(manager)["state"] == "pending"
    import imported_late

    manager.apply()
    imported_late.f()
    assert seen() == [5]
    del sys.modules["imported_late"]


def test_a_target_that_comes_to_exist_later_is_found(shop, manager):
    manager.specs["a"] = spec(target="probed_shop.later")
    manager.apply()
    assert entry(manager)["code"] == "target-not-found"
    shop.later = shop.halve
    for _ in range(3):
        manager.apply()
    assert entry(manager)["state"] == "installed"


def test_what_keeps_failing_is_tried_ever_more_rarely(shop, manager, monkeypatch):
    tries = []
    resolve = targets.resolve

    def counted(path, **kwargs):
        tries.append(path)
        return resolve(path, **kwargs)

    monkeypatch.setattr(targets, "resolve", counted)
    manager.specs["a"] = spec(target="probed_shop.nothing")
    for _ in range(200):
        manager.apply()
    assert 5 < len(tries) < 15


def test_a_type_that_the_program_adds_later_is_taken(shop, manager):
    manager.specs["a"] = spec(instrument={"type": "own", "value": "result"})
    manager.apply()
    assert entry(manager)["code"] == "unknown-type"
    manager.instrument_classes["own"] = Seen
    manager.apply()
    manager.apply()
    assert entry(manager)["state"] == "installed"


def test_an_error_at_run_time_reaches_the_entry(shop, manager, caplog):
    manager.specs["a"] = spec(value="1 / (x - 5)")
    manager.specs["b"] = spec()
    manager.apply()
    with caplog.at_level(logging.ERROR, logger="diagnose.managers"):
        assert shop.double(5) == 10
        timers_ran()
    (record,) = [r for r in caplog.records if r.name == "diagnose.managers"]
    assert record.exc_info[0] is ZeroDivisionError
    manager.apply()
    found = entry(manager)
    assert found["state"] == "error"
    assert found["code"] == "runtime-error"
    assert "ZeroDivisionError" in found["err"]
    shop.double(6)
    assert seen() == [10, 12]
    for _ in range(3):
        manager.apply()
    assert entry(manager) is found
    manager.specs["a"] = spec(value="x", lastmodified=datetime.now(UTC) + timedelta(seconds=1))
    manager.apply()
    assert entry(manager)["state"] == "installed"


def test_a_lifespan_counts_from_lastmodified_and_an_old_spec_is_not_armed(shop, manager):
    manager.specs["old"] = spec(lastmodified=datetime.now(UTC) - timedelta(minutes=11))
    manager.specs["naive"] = spec(
        lastmodified=datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=9)
    )
    manager.apply()
    assert entry(manager, "old")["state"] == "expired"
    assert entry(manager, "naive")["state"] == "installed"
    shop.double(1)
    assert seen() == [2]


def test_a_lifespan_that_ends_leaves_the_function_as_it_was_and_is_reported(shop, manager):
    original = shop.double.__code__
    ended = threading.Event()

    class Ending(Seen):
        def detached(self):
            super().detached()
            ended.set()

    manager.instrument_classes["seen"] = Ending
    manager.specs["a"] = spec(lifespan=0.1 / 60)
    manager.apply()
    assert entry(manager)["state"] == "installed"
    assert ended.wait(DEADLINE_SECONDS)
    assert shop.double.__code__ is original
    manager.apply()
    assert entry(manager)["state"] == "expired"
    assert entry(manager)["err"] is None


def test_a_clock_that_is_put_forward_ends_lifespans_too(shop):
    manager = ManagerWithClock("me")
    manager.specs["a"] = spec(lastmodified=manager.moment) | {
        "instrument": {"type": "log", "name": "n", "value": "result"}
    }
    manager.apply()
    assert entry(manager)["state"] == "installed"
    manager.moment += timedelta(minutes=10)
    manager.apply()
    assert entry(manager)["state"] == "expired"
    assert not probes.active_probes


def test_a_spec_without_lifespan_end_stays_until_it_is_removed(shop, manager):
    manager.specs["a"] = spec(lifespan=None, lastmodified=datetime(1980, 1, 1))
    manager.apply()
    assert entry(manager)["state"] == "installed"


@pytest.mark.parametrize("target", ["not_imported_yet.work", "os.no_such_function"])
def test_what_failed_before_all_was_switched_off_is_tried_again_after_it(manager, target):
    document = manager.specs["a"] = spec(target=target)
    manager.apply()
    before = document["applied"][manager.process_id]
    for why in ("all probes of the fleet are paused", None):
        manager._switched_off = lambda why=why: why
        manager.apply()
        entry = document["applied"][manager.process_id]
        assert entry["state"] == ("disabled" if why else before["state"])
    assert entry["err"] == before["err"]


def test_a_disabled_spec_is_not_armed_until_it_is_enabled(shop, manager):
    manager.specs["a"] = spec(enabled=False)
    manager.apply()
    assert entry(manager)["state"] == "disabled"
    assert not probes.active_probes
    manager.specs["a"]["enabled"] = True
    manager.apply()
    assert entry(manager)["state"] == "installed"
    manager.specs["a"]["enabled"] = False
    manager.apply()
    assert not probes.active_probes


def test_a_spec_for_other_processes_leaves_no_entry(shop, manager):
    manager.labels["service"] = "web"
    manager.specs["a"] = spec(select={"service": "api"})
    manager.specs["b"] = spec(select={"service": "w*"})
    manager.apply()
    assert "applied" not in manager.specs["a"]
    assert entry(manager, "b")["state"] == "installed"
    manager.specs["b"]["select"] = {"service": "api"}
    manager.apply()
    assert manager.specs["b"]["applied"] == {}
    assert not probes.active_probes


def test_what_has_no_effect_is_named_on_the_entry(shop, manager):
    manager.specs["a"] = spec(lifspan=3)
    manager.apply()
    assert entry(manager)["state"] == "installed"
    assert entry(manager)["warnings"] == [
        "lifspan is not a known field: ignored; did you mean 'lifespan'?",
    ]


def test_a_condition_is_asked_first(shop, manager):
    manager.specs["a"] = spec(when="x > 2")
    manager.apply()
    shop.double(1), shop.double(3)
    assert seen() == [6]


def test_after_its_last_hit_a_spec_is_done(shop, manager):
    original = shop.double.__code__
    manager.specs["a"] = spec(limits={"hits": 2})
    manager.apply()
    for x in range(4):
        shop.double(x)
    manager.apply()
    assert seen() == [0, 2]
    assert entry(manager)["state"] == "done"
    assert shop.double.__code__ is original
    manager.apply()
    assert entry(manager)["state"] == "done"


def test_tags_of_the_manager_and_of_the_spec_meet(shop):
    class Tagging(InstrumentManager):
        def get_tags(self):
            return {"service": "web", "tier": "none"}

    manager, out = Tagging("me"), io.StringIO()
    manager.instrument_classes["log"] = type(
        "Log", (diagnose.LogInstrument,), {"out": staticmethod(out)}
    )
    manager.specs["a"] = spec(
        instrument={
            "type": "log",
            "name": "n",
            "value": "result",
            "custom": {"tags": "{'tier': mag(x)}"},
        }
    )
    manager.apply()
    shop.double(123)
    manager.stop()
    assert "tier" in out.getvalue()
    assert "'service': 'web'" in out.getvalue()


def test_expressions_follow_the_managers_policy(shop):
    for policy, state in (("python", "installed"), ("restricted", "error")):
        manager = InstrumentManager("me", expression_policy=policy)
        manager.specs["a"] = spec(
            instrument={"type": "log", "name": "n", "value": "x.__class__.__mro__"}
        )
        manager.apply()
        assert entry(manager)["state"] == state
        manager.stop()


def test_no_document_widens_the_policy(shop):
    manager = InstrumentManager("me", expression_policy="restricted")
    manager.specs["a"] = spec(
        policy="python",
        instrument={
            "type": "log",
            "name": "n",
            "value": "x.__class__",
            "policy": "python",
            "mgr": None,
            "limits": None,
        },
    )
    manager.apply()
    assert entry(manager)["code"] == "expression-not-admitted"
    warnings = entry(manager)["warnings"]
    assert any(text.startswith("instrument.policy") for text in warnings)
    assert any(text.startswith("policy") for text in warnings)


# --- kinds of instrument classes ----------------------------------------------------------------


def test_a_subclass_that_is_older_than_an_argument_gets_it_all_the_same(shop, manager):
    class Old(Seen):
        def __init__(self, name, value, event="return", expires=None, custom=None, mgr=None):
            super().__init__(name, value, event, expires, custom, mgr)

    manager.instrument_classes["old"] = Old
    manager.expression_policy = "restricted"
    manager.specs["a"] = spec(
        instrument={"type": "old", "value": "x.real"}, when="x > 2", limits={"hits": 1}
    )
    manager.specs["b"] = spec(instrument={"type": "old", "value": "x.__class__"})
    manager.apply()
    shop.double(1), shop.double(3), shop.double(4)
    assert seen("a") == [3]
    assert entry(manager, "b")["code"] == "expression-not-admitted"


def test_a_field_that_a_class_asks_for_is_given_to_it_and_to_no_other(shop, manager):
    class Bounded(Seen):
        def __init__(self, *args, bounds=(), **kwargs):
            super().__init__(*args, **kwargs)
            self.bounds = bounds

    manager.instrument_classes["bounded"] = Bounded
    manager.specs["a"] = spec(instrument={"type": "bounded", "value": "x", "bounds": [1, 2]})
    manager.specs["b"] = spec(instrument={"type": "seen", "value": "x", "bounds": [1, 2]})
    manager.apply()
    kinds = [
        getattr(one, "bounds", None)
        for one in probes.active_probes["probed_shop.double"].instruments.values()
    ]
    assert kinds == [[1, 2], None]
    assert entry(manager, "b")["warnings"] == ["instrument.bounds is not a known field: ignored"]


def test_a_class_that_can_not_be_made_is_that_specs_error(shop, manager):
    class Broken(Instrument):
        def __init__(self, *args, **kwargs):
            raise KeyError("what")

    manager.instrument_classes["broken"] = Broken
    manager.instrument_classes["int"] = int
    manager.specs["a"] = spec(instrument={"type": "broken", "value": "x"})
    manager.specs["b"] = spec(instrument={"type": "int", "value": "x"})
    manager.specs["c"] = spec()
    manager.apply()
    assert entry(manager)["code"] == "instrument-failed"
    assert "KeyError: 'what'" in entry(manager)["err"]
    assert entry(manager, "b")["state"] == "error"
    assert entry(manager, "c")["state"] == "installed"


# --- telling ------------------------------------------------------------------------------------


def test_mark_is_called_for_each_change_and_in_an_except_block_for_failures(shop):
    class Marking(InstrumentManager):
        def __init__(self):
            super().__init__("me")
            self.marks = []

        def mark(self, id, doc, exception=False):  # noqa: A002
            self.marks.append((id, exception, sys.exc_info()[0] is not None))
            super().mark(id, doc, exception)

    manager = Marking()
    manager.specs["a"] = spec() | {"instrument": {"type": "log", "name": "n", "value": "x"}}
    manager.specs["b"] = spec(
        target="probed_shop.nothing", instrument={"type": "log", "value": "x"}
    )
    manager.apply()
    manager.apply()
    assert manager.marks == [("a", False, False), ("b", True, True)]
    assert entry(manager, "b")["code"] == "target-not-found"
    manager.stop()


def test_mark_can_be_called_by_programs(shop, manager):
    doc = spec()
    manager.mark("x", doc)
    assert doc["applied"]["me"]["err"] is None
    assert doc["applied"]["me"]["lm"] == doc["lastmodified"]
    try:
        raise KeyError("mine")
    except KeyError:
        manager.mark("x", doc, exception=True)
    assert doc["applied"]["me"]["state"] == "error"
    assert "mine" in doc["applied"]["me"]["err"]


def test_a_mark_that_raises_harms_nobody(shop, caplog):
    class Raising(InstrumentManager):
        def mark(self, id, doc, exception=False):  # noqa: A002
            if id == "a":
                raise OSError("database down")
            super().mark(id, doc, exception)

    manager = Raising("me")
    for key in "ab":
        manager.specs[key] = spec(instrument={"type": "log", "name": "n", "value": "x"})
    manager.apply()
    assert entry(manager, "b")["state"] == "installed"
    assert "database down" in caplog.text
    manager.stop()


def test_a_document_put_in_anothers_place_is_told_about_too(shop, manager):
    made = spec()
    manager.specs["a"] = copy.deepcopy(made)
    manager.apply()
    manager.specs["a"] = copy.deepcopy(made)
    manager.apply()
    assert entry(manager)["state"] == "installed"


@pytest.mark.parametrize("applied", [None, 5, [], "x"])
def test_an_applied_that_is_no_document_is_made_one(shop, manager, applied):
    manager.specs["a"] = spec(applied=applied)
    manager.apply()
    assert entry(manager)["state"] == "installed"


def test_a_handler_of_errors_that_raises_harms_nobody(shop):
    class Raising(InstrumentManager):
        def handle_error(self, probe=None, instrument=None):
            raise OSError("no log")

    manager = Raising("me")
    manager.specs["a"] = spec(instrument={"type": "hist", "name": "n", "value": "1 / 0"})
    manager.apply()
    assert shop.double(1) == 2
    manager.apply()
    assert entry(manager)["code"] == "runtime-error"
    manager.stop()


# --- whatever a spec holds ----------------------------------------------------------------------

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=5)
    | st.datetimes()
    | st.just(object())
    | st.sampled_from(
        ["probed_shop.double", "probed_shop.Cart.total", "x", "return", "seen", "log"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
TOP = ["target", "instrument", "lifespan", "lastmodified", "when", "enabled", "select", "limits"]
INNER = ["type", "name", "value", "event", "custom"]


@given(
    st.dictionaries(st.sampled_from([*TOP, "applied", "comment", "canary"]) | st.text(), junk),
    st.dictionaries(st.sampled_from(INNER), junk),
    junk,
)
def test_no_document_however_malformed_gets_an_exception_out_of_apply(top, inner, whole):
    manager = InstrumentManager("me")
    manager.instrument_classes["seen"] = Seen
    bad = spec()
    bad["instrument"] |= inner
    manager.specs = {"bad": bad | top, "whole": whole, None: spec(), ("t", 1): spec(), "a": spec()}
    with loaded("probed_shop", SOURCE) as module:
        try:
            for _ in range(2):
                manager.apply()
            assert entry(manager)["state"] == "installed"
            assert entry(manager, None)["code"] == "id-missing"
            assert entry(manager, ("t", 1))["state"] == "installed"
            assert module.double(2) == 4
            manager.apply()
        finally:
            manager.stop()
    assert not probes.active_probes


# --- several managers, several threads ----------------------------------------------------------


def test_stop_takes_off_what_this_manager_put_on_and_nothing_else(shop, manager):
    other = InstrumentManager("other")
    other.instrument_classes["seen"] = Seen
    for each in (manager, other):
        each.specs["a"] = spec(instrument={"type": "seen", "name": each.process_id, "value": "x"})
        each.apply()
    mine = Seen("code", "x", mgr=manager)
    probes.attach_to("probed_shop.double").instruments["mine"] = mine
    manager.stop()
    shop.double(7)
    assert Seen.results_by_name == {"other": [7], "code": [7]}
    assert manager.specs["a"]["applied"] == {}
    manager.stop()
    manager.apply()
    shop.double(8)
    assert seen("me") == [8]
    probes.attach_to("probed_shop.double").detach("mine")
    other.stop()


def test_an_instrument_that_code_took_off_is_put_on_again(shop, manager):
    manager.specs["a"] = spec()
    manager.apply()
    probes.active_probes["probed_shop.double"].stop()
    manager.apply()
    shop.double(1)
    assert seen() == [2]


def test_threads_may_apply_change_and_stop_at_once(shop, manager):
    errors, go = [], threading.Barrier(4)

    def work(number):
        try:
            go.wait(DEADLINE_SECONDS)
            for i in range(40):
                manager.specs[f"s{(number + i) % 3}"] = spec(value=f"x + {i}")
                manager.apply()
                shop.double(i)
                manager.specs.pop(f"s{i % 3}", None)
                if number == 3 and i % 10 == 0:
                    manager.stop()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(DEADLINE_SECONDS)
    assert not errors
    manager.specs.clear()
    manager.apply()
    assert not probes.active_probes


# --- in the background --------------------------------------------------------------------------


class Announcing(InstrumentManager):
    def __init__(self, *args):
        super().__init__(*args)
        self.applied = threading.Semaphore(0)

    def apply(self):
        super().apply()
        self.applied.release()


def test_apply_in_background_applies_at_once_and_then_again(shop):
    manager = Announcing("me")
    manager.specs["a"] = spec(instrument={"type": "log", "name": "n", "value": "x"})
    manager.apply_in_background(period=0.01)
    assert manager.applied.acquire(timeout=DEADLINE_SECONDS)
    assert entry(manager)["state"] == "installed"
    assert manager.applied.acquire(timeout=DEADLINE_SECONDS)
    manager.stop()
    assert not probes.active_probes


def test_stop_wakes_the_background_thread(shop):
    manager = Announcing("me")
    manager.apply_in_background(period=3600)
    thread = manager._background
    assert manager.applied.acquire(timeout=DEADLINE_SECONDS)
    manager.stop()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


def test_a_background_apply_that_waited_for_stop_arms_nothing(shop):
    manager = InstrumentManager("me")
    manager.specs["a"] = spec(instrument={"type": "log", "name": "n", "value": "x"})
    with manager._lock:
        manager.apply_in_background(period=3600)
        thread = manager._background
        manager.stop()
    thread.join(DEADLINE_SECONDS)
    assert not probes.active_probes


def test_an_apply_that_raises_does_not_end_the_background(shop, caplog):
    class Failing(Announcing):
        fails = 1

        def apply(self):
            super().apply()
            if self.fails:
                self.fails -= 1
                raise OSError("database down")

    manager = Failing("me")
    manager.apply_in_background(period=0.01)
    for _ in range(2):
        assert manager.applied.acquire(timeout=DEADLINE_SECONDS)
    manager.stop()
    assert "database down" in caplog.text


# --- fork ---------------------------------------------------------------------------------------


def test_a_forked_child_keeps_what_is_armed_and_reports_as_itself(shop):
    manager = InstrumentManager()
    manager.instrument_classes["seen"] = Seen
    Seen.results_by_name = {}
    manager.specs["a"] = spec()
    manager.apply()
    parents_id = manager.process_id

    def child():
        armed = next(iter(probes.active_probes["probed_shop.double"].instruments.values()))
        assert shop.double(3) == 6
        assert seen() == [6]
        manager.apply()
        assert list(probes.active_probes["probed_shop.double"].instruments.values()) == [armed]
        assert manager.process_id != parents_id
        assert manager.specs["a"]["applied"][manager.process_id]["state"] == "emitting"
        manager.stop()
        assert not probes.active_probes

    in_child(child)
    assert list(manager.specs["a"]["applied"]) == [parents_id]
    assert seen() == []
    manager.stop()


def test_a_given_process_id_stays_in_a_child(shop):
    manager = InstrumentManager("me")
    assert in_child(lambda: manager.process_id) == "me"


def test_the_background_goes_on_in_a_child(shop):
    manager = Announcing("me")
    manager.apply_in_background(period=0.01)
    assert manager.applied.acquire(timeout=DEADLINE_SECONDS)

    def child():
        manager.applied = threading.Semaphore(0)
        manager.specs["late"] = spec(instrument={"type": "log", "name": "n", "value": "x"})
        for _ in range(2):
            assert manager.applied.acquire(timeout=DEADLINE_SECONDS)
        assert entry(manager, "late")["state"] == "installed"
        manager.stop()

    in_child(child)
    manager.stop()


def test_a_fork_while_another_thread_applies_leaves_the_child_whole(shop, manager):
    stop = threading.Event()

    def work():
        number = 0
        while not stop.is_set():
            number += 1
            manager.specs["a"] = spec(value=f"x + {number}")
            manager.apply()

    worker = threading.Thread(target=work)
    worker.start()

    def child():
        manager.specs["b"] = spec()
        manager.apply()
        assert entry(manager, "b")["state"] == "installed"
        shop.double(1)
        manager.stop()
        assert not probes.active_probes

    try:
        for _ in range(10):
            in_child(child)
    finally:
        stop.set()
        worker.join(DEADLINE_SECONDS)


def test_a_manager_that_is_dropped_goes_away():
    import gc
    import weakref

    manager = InstrumentManager()
    ref = weakref.ref(manager)
    del manager
    gc.collect()
    assert ref() is None


# --- small things -------------------------------------------------------------------------------


def test_mag_is_the_power_of_ten():
    assert [mag(x) for x in (0.01, 0.5, 1, 9.9, 1234, 10**6, 0, -3)] == [-2, 0, 0, 0, 3, 6, -1, -1]


def test_the_names_of_the_global_namespace(shop, manager):
    assert set(manager.global_namespace) == {"datetime", "math", "time", "mag"}
    manager.global_namespace.update(seven=7)
    assert "seven" not in InstrumentManager().global_namespace
    manager.specs["a"] = spec(value="seven + math.floor(1.5)")
    manager.apply()
    shop.double(1)
    assert seen() == [8]


def test_the_usual_types_are_there(manager):
    assert {k: v.__name__ for k, v in manager.instrument_classes.items() if k != "seen"} == {
        "log": "LogInstrument",
        "hist": "HistogramInstrument",
        "incr": "IncrementInstrument",
        "calltree": "CallTreeInstrument",
        "hunter": "HunterInstrument",
    }
    assert manager.check_call(None, None, 1, a=2) is True
    assert dict(manager.get_tags()) == {}
    assert isinstance(manager.sinks, list)
