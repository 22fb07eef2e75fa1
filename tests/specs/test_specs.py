from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnose.errors import SpecError
from diagnose.limits import Limits
from diagnose.specs import DEFAULT_LIFESPAN, Select, State, content_of, parse

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
TYPES = {"log": frozenset(), "hist": frozenset({"buckets"})}


def document(**changes):
    made = {
        "_id": "cart-latency",
        "target": "shop.cart.Cart.checkout",
        "instrument": {"type": "hist", "name": "cart.checkout", "value": "elapsed"},
        "lifespan": 10,
        "lastmodified": NOW.replace(tzinfo=None),
    }
    made.update(changes)
    return made


def instrument(**changes):
    return document(instrument={"type": "log", "name": "n", "value": "result"} | changes)


def parsed(doc, spec_id="cart-latency"):
    return parse(spec_id, doc, instrument_types=TYPES)


def code_and_message(doc, spec_id="cart-latency"):
    with pytest.raises(SpecError) as caught:
        parsed(doc, spec_id)
    return caught.value.code, str(caught.value)


def test_what_existing_users_have_is_understood_as_it_is():
    spec = parsed(
        document(
            instrument={
                "type": "hist",
                "name": "cart.checkout",
                "value": "elapsed",
                "event": "call",
                "custom": {"tags": "{'tier': user.tier}", "mine": object},
            },
            applied={"web1": {"lm": None, "err": None}},
        )
    )
    assert spec.target == "shop.cart.Cart.checkout"
    assert (spec.instrument_type, spec.name, spec.value) == ("hist", "cart.checkout", "elapsed")
    assert spec.event == "call"
    assert spec.custom == {"tags": "{'tier': user.tier}", "mine": object}
    assert spec.lifespan == timedelta(minutes=10)
    assert spec.lastmodified == NOW
    assert spec.enabled is True
    assert spec.warnings == ()


def test_event_custom_name_and_applied_may_be_left_out_or_null():
    for doc in (
        document(instrument={"type": "log", "value": "result"}),
        document(
            instrument={
                "type": "log",
                "value": "result",
                "event": None,
                "custom": None,
                "name": None,
            },
            when=None,
            enabled=None,
            select=None,
            limits=None,
        ),
    ):
        spec = parsed(doc)
        assert (spec.event, spec.custom, spec.name) == ("return", {}, "cart-latency")
        assert (spec.when, spec.enabled, spec.select) == (None, True, None)
        assert spec.warnings == ()


@pytest.mark.parametrize(
    ("doc", "code", "parts"),
    [
        ({}, "missing-target", []),
        (document(target=None), "missing-target", ["dotted path"]),
        (document(target=""), "missing-target", []),
        (document(target=5), "target-type", ["5", "int", "dotted path"]),
        (document(target=["a"]), "target-type", ["['a']", "list"]),
        (document(instrument=None), "missing-instrument", ["type, name and value"]),
        (document(instrument={}), "missing-instrument", []),
        (document(instrument="log"), "wrong-type", ["instrument", "'log'", "str", "a document"]),
        (document(instrument={"value": "1"}), "missing-type", ["instrument.type", "hist, log"]),
        (instrument(type=5), "wrong-type", ["instrument.type", "5", "int"]),
        (instrument(type="histt"), "unknown-type", ["'histt'", "did you mean 'hist'?"]),
        (instrument(value=None), "missing-value", ["instrument.value", "'elapsed'"]),
        (instrument(value=1), "wrong-type", ["instrument.value", "1 (int)", "expression"]),
        (instrument(name=1), "wrong-type", ["instrument.name", "1 (int)", "a text"]),
        (instrument(event=1), "wrong-type", ["instrument.event"]),
        (instrument(custom="tags"), "wrong-type", ["instrument.custom", "a document"]),
        (instrument(custom={"tags": {}}), "wrong-type", ["instrument.custom.tags", "{} (dict)"]),
        (document(when=True), "wrong-type", ["when", "True (bool)"]),
        (document(enabled="no"), "wrong-type", ["enabled", "'no' (str)", "true or false"]),
        (document(select="web"), "wrong-type", ["select", "a document"]),
        (document(select={"service": 5}), "wrong-type", ["select.service", "5 (int)"]),
        (document(select={"service": ["a", 5]}), "wrong-type", ["select.service", "list of texts"]),
        (document(select={"percent": 101}), "wrong-type", ["select.percent", "0 to 100"]),
        (document(select={"percent": True}), "wrong-type", ["select.percent"]),
        (document(select={"percent": float("nan")}), "wrong-type", ["select.percent"]),
        (document(limits=5), "wrong-type", ["limits"]),
        (document(limits={"rate": "5"}), "wrong-type", ["limits.rate", "'5' (str)"]),
        (document(limits={"rate": float("inf")}), "wrong-type", ["limits.rate"]),
        (document(limits={"rate": 10**400}), "wrong-type", ["limits.rate"]),
        (document(limits={"sample": 1.5}), "wrong-type", ["limits.sample"]),
        (document(limits={"hits": 1.5}), "wrong-type", ["limits.hits"]),
        (document(limits={"hits": True}), "wrong-type", ["limits.hits"]),
        (document(lastmodified=None), "lastmodified-missing", ["$currentDate", "new Date()"]),
        (document(lastmodified="2026"), "wrong-type", ["lastmodified", "'2026' (str)", "date"]),
        (document(lastmodified=5), "wrong-type", ["lastmodified"]),
        (
            document(lastmodified=datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))),
            "wrong-type",
            ["lastmodified"],
        ),
    ],
)
def test_a_mistake_is_named_with_its_path_its_value_and_what_is_wanted(doc, code, parts):
    found, message = code_and_message(doc)
    assert found == code
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "minutes",
    [float("nan"), float("inf"), -1, -0.5, True, "10", [], 1e300, 10**400, 10**9, 5_270_401],
)
def test_a_lifespan_that_is_no_sensible_number_of_minutes_is_an_error(minutes):
    code, message = code_and_message(document(lifespan=minutes))
    assert code == "bad-lifespan"
    assert "null" in message


def test_lifespans_are_minutes_or_null_and_ten_minutes_with_a_warning_if_missing():
    assert parsed(document(lifespan=0.5)).lifespan == timedelta(seconds=30)
    assert parsed(document(lifespan=0)).lifespan == timedelta()
    assert parsed(document(lifespan=None)).lifespan is None
    doc = document()
    del doc["lifespan"]
    spec = parsed(doc)
    assert spec.lifespan == DEFAULT_LIFESPAN
    assert "10 minutes" in spec.warnings[0]


def test_lastmodified_may_be_naive_or_aware_and_naive_is_utc():
    east = NOW.astimezone(timezone(timedelta(hours=9)))
    assert parsed(document(lastmodified=east)).lastmodified == NOW
    assert parsed(document(lastmodified=NOW.replace(tzinfo=None))).lastmodified == NOW


def test_the_time_that_remains_counts_from_lastmodified_and_is_never_more_than_the_lifespan():
    spec = parsed(document(lifespan=10))
    assert spec.remaining(NOW + timedelta(minutes=4)) == timedelta(minutes=6)
    assert spec.remaining(NOW + timedelta(minutes=11)) == timedelta(minutes=-1)
    assert spec.remaining(NOW - timedelta(days=900)) == timedelta(minutes=10)
    assert parsed(document(lifespan=None)).remaining(NOW) is None
    extreme = parsed(document(lastmodified=datetime.max))
    assert extreme.remaining(NOW) == timedelta(minutes=10)
    assert parsed(document(lastmodified=datetime.min)).remaining(NOW) < timedelta()


def test_a_lastmodified_from_a_clock_that_is_ahead_is_warned_about():
    spec = parsed(document())
    assert spec.warnings_at(NOW - timedelta(seconds=30)) == ()
    (warning,) = spec.warnings_at(NOW - timedelta(minutes=5))
    assert "300 s in the future" in warning


@pytest.mark.parametrize("spec_id", [None, ""])
def test_a_spec_without_an_id_is_an_error(spec_id):
    code, message = code_and_message(document(), spec_id)
    assert code == "id-missing"
    assert "_id" in message


@pytest.mark.parametrize("doc", [None, 5, "spec", [1], object()])
def test_what_is_no_document_is_an_error(doc):
    assert code_and_message(doc)[0] == "not-a-document"


def test_fields_without_effect_are_each_named_in_a_warning_with_near_misses():
    doc = document(
        lifspan=3,
        **{"a.b": 1},
        limits={"rat": 5},
        select={"service": "web"},
    )
    doc["instrument"]["evnt"] = "call"
    warnings = parsed(doc).warnings
    assert "lifspan is not a known field: ignored; did you mean 'lifespan'?" in warnings
    assert "instrument.evnt is not a known field: ignored; did you mean 'event'?" in warnings
    assert "limits.rat is not a known field: ignored; did you mean 'rate'?" in warnings
    assert any(text.startswith("a.b is not") for text in warnings)
    assert len(warnings) == 4


def test_many_unknown_fields_do_not_flood_the_entry():
    warnings = parsed(document(**{f"x{i}" * 100: 1 for i in range(500)})).warnings
    assert len(warnings) == 11
    assert warnings[-1] == "and 490 more"
    assert max(map(len, warnings)) < 200


def test_fields_that_the_instruments_class_asks_for_are_handed_to_it():
    doc = document()
    doc["instrument"]["buckets"] = [1, 2]
    spec = parsed(doc)
    assert spec.extra == {"buckets": [1, 2]}
    assert spec.warnings == ()


def test_limits_are_understood_and_what_is_null_is_not_limited():
    spec = parsed(document(limits={"rate": 5, "sample": None, "hits": 3}))
    assert spec.limits == Limits(rate=5, hits=3)
    assert parsed(document()).limits == Limits()


# --- select -----------------------------------------------------------------------------------

LABELS = {"service": "web", "env": "prod", "host": "web17.example", "region": "eu"}


@pytest.mark.parametrize(
    ("select", "meant"),
    [
        ({}, True),
        (None, True),
        ({"service": "web"}, True),
        ({"service": "api"}, False),
        ({"service": ["api", "web"]}, True),
        ({"service": []}, False),
        ({"service": None}, True),
        ({"host": "web1*"}, True),
        ({"host": "WEB1*"}, False),
        ({"host": ["db*", "web?7.*"]}, True),
        ({"service": "web", "env": "test"}, False),
        ({"version": "*"}, False),  # this process has no version
        ({"region": "e?"}, True),  # a label of the application's own
        ({"percent": 100}, True),
        ({"percent": 0}, False),
        ({"service": "api", "percent": 100}, False),
    ],
)
def test_select_takes_literals_lists_and_globs_for_each_label(select, meant):
    assert parsed(document(select=select)).selects(LABELS, "p-1") is meant


def test_a_pattern_that_looks_like_a_glob_matches_itself():
    spec = parsed(document(select={"version": "1.0[rc]"}))
    assert spec.selects({"version": "1.0[rc]"}, "p-1")


def test_selecting_by_an_unknown_label_is_an_error_and_never_widens_the_choice():
    spec = parsed(document(select={"sevice": "web"}))
    with pytest.raises(SpecError, match="did you mean 'service'") as caught:
        spec.selects(LABELS, "p-1")
    assert caught.value.code == "unknown-label"


def test_percent_takes_about_so_many_processes_and_more_percent_only_adds():
    processes = [f"web{i}-{i}-x" for i in range(2000)]

    def chosen(percent, spec_id="spec"):
        return {p for p in processes if Select({}, percent).matches(spec_id, {}, p)}

    assert 130 < len(chosen(10)) < 270
    assert chosen(10) < chosen(30) < chosen(100) == set(processes)
    assert chosen(10) != chosen(10, "another spec")


def test_percent_is_the_same_on_every_machine():
    assert Select({}, 73).matches("cart-latency", {}, "web1-4711-k3x9") is True
    assert Select({}, 72).matches("cart-latency", {}, "web1-4711-k3x9") is False


# --- fingerprints -----------------------------------------------------------------------------


def test_a_fingerprint_changes_with_the_content_but_not_with_applied():
    before = content_of(document())
    assert content_of(document(applied={"p": 1})) == before
    assert content_of(document(lifespan=10.0)) != before
    assert content_of(document(lifespan=True)) != content_of(document(lifespan=1))
    assert content_of(instrument(value="a")) != content_of(instrument(value="b"))
    assert content_of(document(lifespan=float("nan"))) == content_of(
        document(lifespan=float("nan"))
    )


def test_a_fingerprint_of_something_endless_or_hostile_is_taken_all_the_same():
    loop = {}
    loop["self"] = [loop, loop, loop]

    class Hostile:
        def __repr__(self):
            raise RuntimeError

        def __eq__(self, other):
            raise RuntimeError

        __hash__ = None

    class HostileDict(dict):
        def items(self):
            raise RuntimeError

    hostile = Hostile()
    for value in (loop, {"a": hostile}, HostileDict(a=1)):
        assert content_of(value) == content_of(value)


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=10,
)
FIELDS = ["target", "instrument", "lifespan", "lastmodified", "when", "enabled", "select", "limits"]


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(), junk), junk)
def test_anything_at_all_is_a_spec_or_a_spec_error(changes, inner):
    good = document()
    good["instrument"] |= inner if isinstance(inner, dict) else {"custom": inner}
    try:
        spec = parsed(good | changes)
    except SpecError as exc:
        assert exc.code
        assert str(exc)
    else:
        assert isinstance(spec.target, str)
        assert spec.lastmodified.tzinfo is UTC
        spec.remaining(NOW)
        spec.warnings_at(NOW)
    assert content_of(changes) == content_of(changes)


def test_states_are_plain_words():
    assert [str(state) for state in State] == [
        "new",
        "stopped",
        "pending",
        "installed",
        "emitting",
        "error",
        "done",
        "expired",
        "suspended",
        "drifted",
        "disabled",
        "validated",
    ]
