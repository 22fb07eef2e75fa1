"""What an ``applied`` entry can say: each state with each warning and note that there is."""

from __future__ import annotations

import functools
import logging
from datetime import UTC, datetime, timedelta

import pytest
from stage import Stage

from diagnose.handlers.acting import Result
from diagnose.instruments import Instrument, ProbeTestInstrument
from diagnose.instruments.base import ACTS
from diagnose.managers import InstrumentManager

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SOURCE = """
import math

def double(x):
    return x * 2

def halve(x):
    return x / 2
"""
NOT_KNOWN = "zzz is not a known field: ignored"


class Manager(InstrumentManager):
    off = None
    moment = NOW

    def now(self):
        return self.moment

    def _switched_off(self):
        return self.off


class Acting(Instrument):
    acts = True

    def act(self, value, names):
        return Result(5)


@pytest.fixture
def shop():
    with Stage() as stage:
        yield stage.script(SOURCE)


@pytest.fixture
def manager():
    made = Manager("me")
    made.instrument_classes |= {"seen": ProbeTestInstrument, "acting": Acting}
    yield made
    made.stop()


@pytest.fixture
def entry(manager, shop):
    """Apply a spec; its entry."""

    def apply(target="double", kind="seen", **fields):
        instrument = {"type": kind, "name": "n", "value": "1"} | fields.pop("instrument", {})
        manager.specs["a"] = {
            "target": f"{shop.__name__}.{target}",
            "instrument": instrument,
            "lifespan": 10,
            "lastmodified": NOW,
        } | fields
        manager.apply()
        return manager.specs["a"].get("applied", {}).get("me")

    return apply


def without_times(found):
    return {name: value for name, value in found.items() if name not in {"lm", "at"}}


# --- states, each with what the document says besides -------------------------------------------

CANARY = {"canary": {"percent": 100}}
STAGE = {"version": NOW, "name": "taken back"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, {"state": "installed"}),
        ({"kind": "acting"}, {"state": "installed", "acts": True, "last": ACTS}),
        ({"enabled": False}, {"state": "disabled"}),
        ({"lifespan": 0}, {"state": "expired"}),
        (
            {**CANARY, "stage": STAGE},
            {"state": "disabled", "warnings": ["its canary was taken back"]},
        ),
        ({**CANARY, "stage": STAGE | {"reason": "why"}}, {"state": "disabled", "warnings": ["why"]}),
        (
            {"lastmodified": NOW + timedelta(minutes=2)},
            {
                "state": "installed",
                "last": "lastmodified is 120 s in the future; set it with the server's clock: "
                "{$currentDate: {lastmodified: true}}",
            },
        ),
    ],
)  # fmt: skip
def test_an_entry_has_its_state_and_each_warning_once(entry, fields, said):
    warnings = [*said.pop("warnings", []), NOT_KNOWN]
    warnings += [said.pop("last")] if "last" in said else []
    found = without_times(entry(**fields, zzz=1))
    assert found == {"err": None, "warnings": warnings} | said


@pytest.mark.parametrize(
    ("fields", "code", "state"),
    [
        ({"target": "doubel"}, "target-not-found", "error"),
        ({"instrument": {"value": "1 +"}}, "expression-syntax", "error"),
        ({"fingerprint": "3.11-0f3a9c52d7be-42"}, "drifted", "drifted"),
        ({"target": "double.x.y"}, "target-not-found", "error"),
    ],
)
def test_a_failure_has_its_code_and_the_warnings_of_the_document(entry, fields, code, state):
    found = without_times(entry(**fields, zzz=1))
    assert found.pop("err")
    assert found == {"state": state, "code": code, "warnings": [NOT_KNOWN]}


def test_a_document_that_is_no_spec_has_no_warnings(entry):
    found = without_times(entry(instrument={"value": 5}, zzz=1))
    assert "instrument.value" in found.pop("err")
    assert found == {"state": "error", "code": "wrong-type"}


def test_what_waits_for_its_module_says_so_with_the_warnings_of_the_document(
    manager, entry, tmp_path, monkeypatch
):
    (tmp_path / "not_imported_here.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    entry()
    manager.specs["a"] |= {"target": "not_imported_here.double", "zzz": 1}
    manager.apply()
    found = without_times(manager.specs["a"]["applied"]["me"])
    assert "not_imported_here" in found.pop("err")
    assert found == {"state": "pending", "code": "module-not-imported", "warnings": [NOT_KNOWN]}


def test_while_a_manager_is_switched_off_each_entry_says_why(manager, entry):
    manager.off = "the switch is off"
    found = without_times(entry(zzz=1))
    assert found == {
        "err": None,
        "state": "disabled",
        "warnings": ["the switch is off", NOT_KNOWN],
    }
    manager.off = None
    manager.apply()
    assert manager.specs["a"]["applied"]["me"]["state"] == "installed"


def test_what_is_not_meant_for_this_process_has_no_entry(manager, entry):
    assert entry()
    applied = manager.specs["a"]["applied"]
    assert entry(select={"host": "elsewhere"}, applied=applied | {"other": 1}) is None
    assert manager.specs["a"]["applied"] == {"other": 1}


def test_an_error_of_a_class_that_raises_is_told_by_its_type_and_text(manager, entry):
    class Odd(Exception):
        def __str__(self):
            raise RuntimeError

    def failing(error):
        def make(*args, **options):
            raise error

        return make

    for error, text in ((ValueError("no luck"), "ValueError: no luck"), (Odd(), "Odd")):
        manager.instrument_classes["failing"] = failing(error)
        found = without_times(entry(kind="failing"))
        assert found == {
            "err": f"the instrument could not be made: {text}",
            "state": "error",
            "code": "instrument-failed",
        }


# --- notes about how it is probed ---------------------------------------------------------------


def behind_decorators(count):
    def body(x):
        return x

    function = body
    for _ in range(count):

        @functools.wraps(function)
        def wrapper(*args, _inner=function):
            return _inner(*args)

        function = wrapper
    return body, function


@pytest.mark.parametrize(("count", "many"), [(1, "a decorator"), (3, "3 decorators")])
@pytest.mark.parametrize(
    ("instrument", "what"),
    [
        ({"event": "end"}, "'end'"),
        ({"event": "line:+1"}, "'line:+1'"),
        ({"value": "hotspots"}, "'hotspots'"),
        ({"custom": {"tags": "{'h': hotspots}"}}, "'hotspots'"),
    ],
)
def test_behind_decorators_an_entry_says_which_code_is_meant(
    shop, entry, count, many, instrument, what
):
    body, shop.double = behind_decorators(count)
    (note,) = entry(instrument=instrument)["warnings"]
    code = body.__code__
    where = f"{__name__}.behind_decorators.<locals>.body, {__file__}:{code.co_firstlineno}"
    assert note == f"{what} is inside {where}, behind {many}"
    (note,) = entry(instrument=instrument, validate=True)["warnings"]
    assert note.startswith(what)


@pytest.mark.parametrize("event", ["call", "return"])
def test_what_callers_see_of_a_decorated_function_needs_no_note(shop, entry, event):
    _, shop.double = behind_decorators(1)
    assert "warnings" not in entry(instrument={"event": event})
    assert "warnings" not in entry(when="elapsed != 'hotspots'", instrument={"event": "return"})


def test_a_condition_about_hotspots_is_inside_too(shop, entry):
    _, shop.double = behind_decorators(1)
    (note,) = entry(when="hotspots")["warnings"]
    assert note.startswith("'hotspots' is inside")


def test_what_is_covered_by_reference_says_so(shop, entry):
    (note,) = entry(target="math.sqrt")["warnings"]
    assert "references in loaded modules and classes are covered" in note


def test_a_metric_without_a_sink_says_that_values_are_dropped(entry):
    (note,) = entry(kind="hist")["warnings"]
    assert "no metric sink is configured" in note


def test_what_acts_says_so_before_it_does(entry):
    found = entry(kind="acting", validate=True)
    assert (found["state"], found["acts"]) == ("validated", True)
    assert found["warnings"] == [ACTS]
    assert found["found"]["kind"] == "function"


def test_notes_about_where_the_probe_is_now_come_and_go(shop, manager, entry):
    entry()
    old, bare = shop.double, shop.double.__code__
    shop.double = functools.wraps(old)(lambda x: old(x))
    manager.apply()
    (note,) = manager.specs["a"]["applied"]["me"]["warnings"]
    assert note.startswith(f"{shop.__name__}.double was wrapped by ")
    assert note.endswith("; the probe stays on the function inside")
    shop.double = shop.halve
    manager.apply()
    (note,) = manager.specs["a"]["applied"]["me"]["warnings"]
    assert note.startswith("the function was redefined; the probe moved to the new one at ")
    assert old.__code__ is not bare


# --- how an entry gets into the document --------------------------------------------------------


def test_without_an_entry_of_its_own_mark_says_what_it_is_told(manager, entry):
    entry()
    document = manager.specs["a"]
    manager.mark("a", document)
    assert without_times(document["applied"]["me"]) == {"err": None, "state": "installed"}
    try:
        raise ValueError("broken")
    except ValueError:
        manager.mark("a", document, exception=True)
    found = document["applied"]["me"]
    assert (found["lm"], found["at"]) == (NOW, NOW.replace(tzinfo=None))
    assert without_times(found) == {
        "err": "the instrument could not be made: ValueError: broken",
        "state": "error",
    }
    manager.mark("a", document, exception=True)
    assert without_times(document["applied"]["me"]) == {"err": None, "state": "error"}


def test_what_can_hold_no_entry_is_logged(manager, caplog):
    manager.specs["a"] = 5
    with caplog.at_level(logging.WARNING):
        manager.apply()
        manager.apply()
    assert caplog.text.count("spec 'a': a spec must be a document") == 1
