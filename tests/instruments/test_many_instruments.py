"""Many instruments: a function's code is made once for all of them, and there is a limit."""

from __future__ import annotations

import sys
import threading
from datetime import UTC, datetime
from typing import ClassVar

import mongomock
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage import Stage, in_thread
from waiting import wait_until

from diagnose import attach_to, probes, registry, sites
from diagnose.errors import ProbeError
from diagnose.instruments import Instrument, ProbeTestInstrument
from diagnose.managers import InstrumentManager
from diagnose.records import Record
from diagnose_mongo import MongoInstrumentManager

SOURCE = """
def work(x):
    y = x + 1
    return y

def other(x):
    return x
"""


@pytest.fixture
def shop(stage):
    return stage.script(SOURCE)


class Seen(Instrument):
    """Notes the name of each that serves a hit."""

    names: ClassVar[list[str]] = []

    def emit(self, name, value, tags):
        self.names.append(name)


@pytest.fixture
def manager():
    Seen.names.clear()
    made = make()
    yield made
    made.stop()


def make(**options):
    manager = InstrumentManager("me", **options)
    manager.instrument_classes["seen"] = Seen
    return manager


def spec(shop, name, target="work", event="return", value="x", **more):
    return {
        "target": f"{shop.__name__}.{target}",
        "instrument": {"type": "seen", "name": name, "value": value, "event": event},
        "lifespan": 10,
        "lastmodified": datetime.now(UTC),
        **more,
    }


def put(manager, shop, names, **more):
    for name in names:
        manager.specs[name] = spec(shop, name, **more)


def states(manager):
    found = {}
    for key, document in manager.specs.items():
        entry = document["applied"]["me"]
        found[key] = entry.get("code", entry["state"]) if entry["err"] else entry["state"]
    return found


def serving(function):
    Seen.names.clear()
    function(1)
    return sorted(Seen.names)


@pytest.fixture
def woven(monkeypatch):
    """The names of the functions whose code was made, in order."""
    names = []
    weave = sites.weaving.weave

    def count(code, **hooks):
        names.append(code.co_name)
        return weave(code, **hooks)

    monkeypatch.setattr(sites.weaving, "weave", count)
    return names


# --- once for all -----------------------------------------------------------------------------


def test_apply_makes_the_code_of_each_function_once(shop, manager, woven):
    code = shop.work.__code__
    put(manager, shop, "abcdefghij")
    put(manager, shop, "uvwxyz", target="other")
    manager.apply()
    assert sorted(woven) == ["other", "work"]
    assert set(states(manager).values()) == {"installed"}
    assert serving(shop.work) == list("abcdefghij")
    assert serving(shop.other) == list("uvwxyz")
    woven.clear()
    manager.apply()
    assert woven == []
    for name in "abc":
        del manager.specs[name]
    put(manager, shop, "defk", value="x + 1")
    manager.apply()
    assert woven == ["work"]
    assert serving(shop.work) == list("defghijk")
    woven.clear()
    manager.stop()
    assert woven == []
    assert shop.work.__code__ is code


def test_specs_that_move_to_another_function_make_the_code_of_both_once(shop, manager, woven):
    put(manager, shop, "abcdef")
    manager.apply()
    woven.clear()
    put(manager, shop, "abc", target="other")
    manager.apply()
    assert woven == ["other", "work"]
    assert serving(shop.work) == list("def")
    assert serving(shop.other) == list("abc")


def test_a_redefined_function_gets_its_code_once(shop, manager, woven):
    put(manager, shop, "abcdef")
    manager.apply()
    old, code = shop.work, shop.work.__code__
    exec(SOURCE, vars(shop))
    woven.clear()
    manager.apply()
    assert woven == ["work"]
    assert serving(shop.work) == list("abcdef")
    assert serving(old) == []
    assert old.__code__ is not code
    assert len(manager.places._counts) == 1


def test_start_and_stop_make_the_code_once(shop, woven):
    code = shop.work.__code__
    probe = attach_to(f"{shop.__name__}.work")
    for name in "abcdef":
        probe.instruments[name] = Seen(name, "x")
    probe.start()
    assert woven == ["work"]
    assert serving(shop.work) == list("abcdef")
    probe.stop()
    assert woven == ["work"]
    assert shop.work.__code__ is code


def test_the_budget_makes_the_code_once_for_all_that_it_suspends(shop, woven):
    manager = make()
    put(manager, shop, "abcdef")
    manager.apply()
    woven.clear()
    accounts = list(manager.budget._accounts.values())
    # All that was to be done in the timers' thread waits until all are told.
    begun, all_told = threading.Event(), threading.Event()
    registry.timers.soon(lambda: (begun.set(), all_told.wait(30)))
    assert begun.wait(30)
    for account in accounts[:3]:
        account.item.suspend("why")
    assert serving(shop.work) == list("def")
    all_told.set()
    in_thread(lambda: [account.item._leave_site() for account in accounts])
    assert woven == ["work"]
    manager.stop()


# --- who is to blame --------------------------------------------------------------------------


@pytest.fixture
def refusing(monkeypatch):
    """Sites take no hook on the event ``end``; how often one was asked."""
    asked = []
    update = sites.CodeSite.update

    def refuse(self, armed):
        asked.append(len(armed))
        if any(one.event == "end" for one in armed):
            raise ProbeError("no end here", code="no-end")
        update(self, armed)

    monkeypatch.setattr(sites.CodeSite, "update", refuse)
    return asked


@pytest.mark.usefixtures("refusing")
@given(bad=st.sets(st.sampled_from("abcdefgh")))
def test_what_can_not_be_woven_is_an_error_of_its_own(bad):
    with Stage() as stage:
        shop, manager = stage.script(SOURCE), make()
        try:
            for name in "abcdefgh":
                event = "end" if name in bad else "return"
                manager.specs[name] = spec(shop, name, event=event)
            manager.apply()
            assert states(manager) == {
                name: "no-end" if name in bad else "installed" for name in "abcdefgh"
            }
            assert serving(shop.work) == sorted(set("abcdefgh") - bad)
        finally:
            manager.stop()
        assert registry._on_site == {}


def test_to_find_one_among_many_takes_few_tries(shop, refusing):
    manager = make(most_per_function=None)
    put(manager, shop, map(str, range(64)))
    manager.specs["bad"] = spec(shop, "bad", event="end")
    manager.apply()
    assert len(refusing) < 20
    assert len(serving(shop.work)) == 64
    manager.stop()


def test_a_line_without_code_is_an_error_of_its_spec_alone(shop, manager):
    put(manager, shop, "abc")
    manager.specs["l"] = spec(shop, "l", event="line:+1")
    manager.specs["m"] = spec(shop, "m", event="line:99")
    manager.apply()
    assert states(manager)["m"] == "line-without-code"
    assert serving(shop.work) == list("abcl")


@pytest.mark.usefixtures("refusing")
def test_nothing_is_said_to_be_installed_that_is_not(shop, manager):
    code = shop.work.__code__
    put(manager, shop, "abc", event="end")
    told = []
    manager.mark = lambda key, document, exception=False: told.append((key, exception))
    manager.apply()
    assert told == [(name, True) for name in "abc"]
    assert shop.work.__code__ is code
    probe = attach_to(f"{shop.__name__}.work")
    good, bad = Seen("good", "x"), Seen("bad", "x", "end")
    probe.instruments.update({"good": good, "bad": bad})
    with pytest.raises(ProbeError, match="no end here"):
        probe.start()
    assert (good.status.state, bad.status.state) == ("stopped", "new")
    assert shop.work.__code__ is code
    assert probes.active_probes == {}


@pytest.mark.usefixtures("refusing")
def test_what_was_there_before_goes_on_if_the_new_one_can_not_be_woven(shop):
    probe = attach_to(f"{shop.__name__}.work")
    old = Seen("old", "x")
    probe.attach("k", old)
    with pytest.raises(ProbeError):
        probe.attach("k", Seen("new", "x", "end"))
    assert serving(shop.work) == ["old"]
    assert old.status.state == "emitting"
    probe.stop()


def test_an_instrument_whose_own_hooks_raise_harms_no_other(shop, manager, caplog):
    class Raising(Seen):
        def attached(self):
            if self.name == "b":
                raise ValueError("attached")

        def detached(self):
            raise ValueError("detached")

    manager.instrument_classes["seen"] = Raising
    put(manager, shop, "abc")
    manager.apply()
    assert states(manager) == {"a": "installed", "b": "instrument-failed", "c": "installed"}
    assert serving(shop.work) == ["a", "c"]
    manager.stop()
    assert serving(shop.work) == []
    assert "detached" in caplog.text


def test_a_hook_that_forbids_to_put_code_back_is_logged(shop, manager, monkeypatch, caplog):
    put(manager, shop, "ab")
    manager.apply()

    def forbid(function, code):
        raise PermissionError("hands off")

    with monkeypatch.context() as patch:
        patch.setattr(sites, "_exchange", forbid)
        del manager.specs["a"]
        manager.apply()
        assert serving(shop.work) == ["b"]
    wait_until(lambda: "hands off" in caplog.text)
    manager.stop()


# --- exceptions in the middle -----------------------------------------------------------------


def test_changes_that_an_exception_ends_put_nothing_on_and_take_all_off(shop):
    code = shop.work.__code__
    probe = attach_to(f"{shop.__name__}.work")
    old, new = Seen("old", "x"), Seen("new", "x")
    probe.attach("old", old)

    noted = []

    def change():
        with probes.Changes() as changes:
            changes.attach(probe, "new", new)
            changes.detach(probe, "old")
            assert serving(shop.work) == []
            (newcomer,) = changes._coming.values()
            noted.append(newcomer.attachment)
            raise LookupError

    with pytest.raises(LookupError):
        change()
    assert shop.work.__code__ is code
    assert (old.status.state, new.status.state) == ("stopped", "new")
    assert not noted[0].armed
    assert probes.active_probes == {}


def test_what_is_noted_and_taken_back_never_comes(shop):
    code = shop.work.__code__
    probe = attach_to(f"{shop.__name__}.work")
    first, second = Seen("first", "x"), Seen("second", "x")
    with probes.Changes() as changes:
        changes.attach(probe, "k", first)
        changes.attach(probe, "k", second)
        changes.attach(probe, "l", first)
        changes.detach(probe, "l")
        assert shop.work.__code__ is code
    assert serving(shop.work) == ["second"]
    assert first.status.state == "new"
    probe.stop()


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_an_interrupt_amid_the_exchange_leaves_what_was_there(shop, monkeypatch, before, held):
    code = shop.work.__code__
    probe = attach_to(f"{shop.__name__}.work")
    if held:
        probe.attach("held", Seen("held", "x"))
        probe.attach("a", Seen("older", "x"))
    exchange, interrupted = sites._exchange, []

    def interrupt(function, new):
        if not before or interrupted:
            exchange(function, new)
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(sites, "_exchange", interrupt)

    def change():
        with probes.Changes() as changes:
            for name in "abc":
                changes.attach(probe, name, Seen(name, "x"))

    with pytest.raises(KeyboardInterrupt):
        change()
    assert serving(shop.work) == (["held", "older"] if held else [])
    change()
    assert serving(shop.work) == ["a", "b", "c", *(["held"] if held else [])]
    probe.stop()
    assert shop.work.__code__ is code
    assert registry._on_site == {}


@pytest.mark.parametrize("before", [True, False])
def test_an_interrupted_apply_is_made_good_by_the_next(shop, manager, monkeypatch, before):
    code = shop.work.__code__
    put(manager, shop, "abc")
    put(manager, shop, "xyz", target="other")
    exchange, interrupted = sites._exchange, []

    def interrupt(function, new):
        if not before:
            exchange(function, new)
        if function is shop.other and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        if before:
            exchange(function, new)

    monkeypatch.setattr(sites, "_exchange", interrupt)
    with pytest.raises(KeyboardInterrupt):
        manager.apply()
    assert serving(shop.other) == []
    manager.apply()
    assert set(states(manager).values()) == {"installed"}
    assert serving(shop.work) == list("abc")
    assert serving(shop.other) == list("xyz")
    manager.stop()
    assert shop.work.__code__ is code
    assert registry._on_site == {}


def test_what_an_interrupt_kept_from_being_armed_is_not_said_to_be(shop, manager, monkeypatch):
    put(manager, shop, "a", target="late")
    for _ in range(3):  # it is tried ever more rarely
        manager.apply()
    shop.late = shop.other

    def interrupt(function, code):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sites, "_exchange", interrupt)
        with pytest.raises(KeyboardInterrupt):
            manager.apply()
    manager.apply()
    assert serving(shop.other) == (["a"] if states(manager)["a"] == "installed" else [])


def test_a_version_that_an_interrupt_left_behind_goes_with_the_next(shop, manager, monkeypatch):
    put(manager, shop, "a")
    monkeypatch.setattr(Record, "welcome", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        manager.apply()
    monkeypatch.undo()
    put(manager, shop, "a", target="other")
    manager.apply()
    assert serving(shop.work) == []
    assert serving(shop.other) == ["a"]


# --- limits -----------------------------------------------------------------------------------


def test_one_more_than_a_function_may_have_waits_until_another_goes(shop):
    manager = make(most_per_function=3)
    put(manager, shop, "abcde")
    put(manager, shop, "z", target="other")
    manager.apply()
    assert states(manager) == {
        **dict.fromkeys("abcz", "installed"),
        **dict.fromkeys("de", "too-many"),
    }
    assert serving(shop.work) == list("abc")
    said = manager.specs["d"]["applied"]["me"]["err"]
    assert f"3 specs are armed on '{shop.__name__}.work'" in said
    assert "most_per_function" in said
    before = manager.specs["d"]["applied"]["me"]
    for _ in range(5):
        manager.apply()
    assert manager.specs["d"]["applied"]["me"] is before
    del manager.specs["b"]
    manager.apply()
    assert serving(shop.work) == list("acd")
    assert states(manager)["e"] == "too-many"
    manager.stop()
    assert manager.places._subjects == {}
    assert manager.places._counts == {}


def test_one_more_than_a_process_may_have_waits_until_another_goes(shop):
    manager = make(most_per_process=2)
    put(manager, shop, "ab")
    put(manager, shop, "cd", target="other")
    manager.apply()
    assert states(manager) == {"a": "installed", "b": "installed", "c": "too-many", "d": "too-many"}
    made = []
    manager.instrument_classes["seen"] = lambda *args, **options: made.append(args)
    for _ in range(3):
        manager.apply()
    assert made == []  # those that wait cost nothing
    manager.instrument_classes["seen"] = Seen
    assert "2 specs are armed in this process" in manager.specs["c"]["applied"]["me"]["err"]
    manager.specs["a"]["enabled"] = False
    manager.apply()
    assert serving(shop.work) == ["b"]
    assert serving(shop.other) == ["c"]
    manager.stop()


def test_twenty_a_function_and_two_hundred_a_process_are_the_usual_limits(shop, manager):
    assert manager.places.most_per_function == 20
    assert manager.places.most_per_process == 200
    put(manager, shop, map(str, range(21)))
    manager.apply()
    assert list(states(manager).values()).count("installed") == 20
    assert states(manager)["20"] == "too-many"


def test_limits_can_be_raised_and_taken_away_at_any_time(shop):
    manager = make(most_per_function=1, most_per_process=2)
    put(manager, shop, "abcd")
    manager.apply()
    assert serving(shop.work) == ["a"]
    manager.places.most_per_function = 5
    manager.apply()
    assert serving(shop.work) == ["a", "b"]
    manager.places.most_per_process = None
    manager.apply()
    assert serving(shop.work) == list("abcd")
    manager.places.most_per_function = 1
    manager.apply()
    assert serving(shop.work) == list("abcd")
    manager.stop()


def test_a_new_version_keeps_its_place(shop):
    manager = make(most_per_function=2, most_per_process=2)
    put(manager, shop, "abc")
    manager.apply()
    put(manager, shop, "ab", value="x + 1")
    manager.apply()
    assert states(manager) == {"a": "installed", "b": "installed", "c": "too-many"}
    manager.stop()


def test_what_has_ended_gives_its_place_away(shop):
    manager = make(most_per_function=1)
    put(manager, shop, "a", limits={"hits": 1})
    put(manager, shop, "b")
    manager.apply()
    assert serving(shop.work) == ["a"]
    manager.apply()
    assert states(manager)["a"] == "done"
    manager.apply()
    assert serving(shop.work) == ["b"]
    manager.stop()


def test_what_the_budget_has_suspended_keeps_its_place(shop):
    manager = make(most_per_function=1)
    put(manager, shop, "ab")
    manager.apply()
    (account,) = manager.budget._accounts.values()
    account.item.suspend("why")
    manager.apply()
    assert states(manager) == {"a": "cpu-budget", "b": "too-many"}
    account.item.resume()
    assert serving(shop.work) == ["a"]
    manager.stop()


def test_what_is_not_armed_takes_no_place(shop):
    manager = make(most_per_function=1, most_per_process=1)
    manager.specs["off"] = spec(shop, "off", enabled=False)
    manager.specs["wrong"] = spec(shop, "wrong", value="nothing_of_the_kind")
    manager.specs["nowhere"] = spec(shop, "nowhere", target="nowhere")
    manager.specs["elsewhere"] = spec(shop, "elsewhere", select={"host": "elsewhere"})
    manager.specs["waits"] = {**spec(shop, "waits"), "target": "not_imported_yet.work"}
    manager.specs["dry"] = spec(shop, "dry", validate=True)
    manager.specs["a"] = spec(shop, "a")
    manager.apply()
    assert manager.specs["a"]["applied"]["me"]["state"] == "installed"
    assert serving(shop.work) == ["a"]
    manager.stop()


def test_what_is_attached_in_code_does_not_count(shop):
    manager = make(most_per_function=1)
    probe = attach_to(f"{shop.__name__}.work")
    for number in range(3):
        probe.attach(str(number), Seen("mine", "x"))
    put(manager, shop, "ab")
    manager.apply()
    assert serving(shop.work) == ["a", "mine", "mine", "mine"]
    probe.attach("3", ProbeTestInstrument("n", "x"))
    manager.stop()
    probe.stop()


def test_each_manager_has_places_of_its_own(shop):
    first, second = make(most_per_function=1), make(most_per_function=1)
    put(first, shop, "a")
    put(second, shop, "b")
    first.apply()
    second.apply()
    assert serving(shop.work) == ["a", "b"]
    first.stop()
    second.stop()


def test_two_paths_to_one_function_share_its_places(shop):
    shop.alias = shop.work
    manager = make(most_per_function=2)
    put(manager, shop, "ab")
    put(manager, shop, "c", target="alias")
    manager.apply()
    assert states(manager)["c"] == "too-many"
    manager.stop()


def test_a_function_that_takes_the_place_of_a_full_one_has_places_again(shop):
    manager = make(most_per_function=1)
    shop.alias = shop.work
    put(manager, shop, "a")
    put(manager, shop, "b", target="alias")
    manager.apply()
    assert states(manager)["b"] == "too-many"
    shop.alias = shop.other
    manager.apply()
    assert serving(shop.other) == ["b"]
    manager.stop()


def test_what_waits_for_a_module_finds_its_places_taken(shop, tmp_path, monkeypatch):
    (tmp_path / "comes_later.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    manager = make(most_per_function=2)
    for name in "abc":
        manager.specs[name] = {**spec(shop, name), "target": "comes_later.work"}
    manager.apply()
    try:
        import comes_later

        assert len(serving(comes_later.work)) == 2
        manager.apply()
        assert sorted(states(manager).values()) == ["emitting", "emitting", "too-many"]
        del manager.specs[next(key for key, state in states(manager).items() if state[0] == "e")]
        manager.apply()
        assert len(serving(comes_later.work)) == 2
    finally:
        manager.stop()
        sys.modules.pop("comes_later", None)


def test_the_manager_of_a_fleet_hands_limits_on():
    collection = mongomock.MongoClient()["diagnose"]["specs"]
    manager = MongoInstrumentManager(collection, most_per_function=3, most_per_process=None)
    assert manager.places.most_per_function == 3
    assert manager.places.most_per_process is None
