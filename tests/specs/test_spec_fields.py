"""Every field of a spec at its bounds: on the bound, just inside, just outside."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest

from diagnose import fields
from diagnose.errors import SpecError
from diagnose.fields import LABELS, LONGEST_LIFESPAN
from diagnose.specs import (
    PERCENT_MODULUS,
    Canary,
    Select,
    Stage,
    content_of,
    parse,
    percent_factors,
    process_share,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
FINGERPRINT = "3.11-0f3a9c52d7be-42"
MONTH_IN_MINUTES = 60 * 24 * 30
# Of the spec "cart-latency", and of the process "web1-4711-k3x9".
FACTOR, SHIFT, SHARE = 810813844, 1875913567, 1304069610


def document(**changes):
    return {
        "target": "shop.cart.Cart.checkout",
        "instrument": {"type": "log", "name": "n", "value": "result"},
        "lifespan": 10,
        "lastmodified": NOW,
    } | changes


def with_field(path, value):
    """A document that has a value at a path, and what else has to be beside it."""
    made = document()
    *sections, name = path.split(".")
    place = made
    for section in sections:
        place = place.setdefault(section, {})
    if sections == ["canary"]:
        place["percent"] = 10
    place[name] = value
    return made


def parsed(doc, **options):
    return parse("a", doc, **({"instrument_types": {"log": ()}} | options))


FIELDS = {
    # path: (what is taken, what is refused, how the error says what is wanted)
    "select.percent": ([0, 0.001, 99.999, 100], [-0.001, 100.001, True, "5"], "from 0 to 100"),
    "canary.percent": ([0, 0.001, 99.999, 100], [-0.001, 100.001, True, "5"], "from 0 to 100"),
    "canary.for": (
        [1e-3, 1, MONTH_IN_MINUTES],
        [0, -1, MONTH_IN_MINUTES + 0.001, math.nan, True, "5"],
        "minutes above 0",
    ),
    "canary.max_cost": (
        [1e-9, 1, 64.0],
        [0, -0.1, math.inf, math.nan, True, "5"],
        "share of one core",
    ),
    "canary.max_errors": ([0, 1, 10**6], [-1, 1.0, True, "5"], "whole number, 0 or more"),
    "limits.rate": ([1e-9, 1, 1e9], [0, -1, 1e9 + 1, math.inf, True, "5"], "above 0 (per second)"),
    "limits.sample": ([1e-9, 0.5, 1], [0, -0.1, 1.001, True, "5"], "above 0, up to 1"),
    "limits.hits": ([1, 10**12], [0, -1, 1.0, True, "5"], "whole number above 0"),
    "limits.fleet_hits": ([1, 10**12], [0, -1, 1.0, True, "5"], "whole number above 0"),
    "lifespan": (
        [0, 0.001, LONGEST_LIFESPAN],
        [-0.001, LONGEST_LIFESPAN + 0.001, True, "5"],
        f"from 0 to {LONGEST_LIFESPAN}",
    ),
    "enabled": ([True, False], [0, 1, "true"], "true or false"),
    "validate": ([True, False], [0, 1, "true"], "true or false"),
    "when": (["x", ""], [True, 1, ["x"]], "an expression"),
    "instrument.value": (["x", ""], [True, 1, ["x"]], "an expression"),
    "instrument.name": (["x"], [True, 1, ["x"]], "a text"),
    "instrument.event": (["call"], [True, 1, ["x"]], "a text"),
    **dict.fromkeys(
        (f"select.{label}" for label in LABELS),
        (["web", ["web", "api"], ("web",)], [5, ["web", 5], True, {}], "texts"),
    ),
    "fingerprint": ([FINGERPRINT, [FINGERPRINT], [], None], [5, [5], True, {}], "texts"),
    "target": (["a.b"], [5, True, ["a.b"]], "dotted path"),
    "instrument": ([{"type": "log", "value": "1"}], [5, "x", []], "a document"),
    "instrument.type": (["log"], [5, True, ["log"]], "a text"),
    "instrument.custom": ([{}, {"x": 1}, None], [5, "x", []], "a document"),
    "instrument.custom.tags": (["x", None], [5, {}, True], "an expression"),
    "lastmodified": ([NOW, NOW.replace(tzinfo=None)], [5, "2026", True], "a date"),
    "canary": ([{"percent": 5}, None], [5, "x", []], "a document"),
    "limits": ([{}, None], [5, "x", []], "a document"),
    "select": ([{}, None], [5, "x", []], "a document"),
}


def cases(number):
    return [(path, value) for path, each in FIELDS.items() for value in each[number]]


@pytest.mark.parametrize(("path", "value"), cases(0))
def test_a_value_up_to_the_bound_of_its_field_is_taken(path, value):
    assert parsed(with_field(path, value)).warnings == ()


@pytest.mark.parametrize(("path", "value"), cases(1))
def test_a_value_beyond_the_bound_of_its_field_is_refused_with_what_is_wanted(path, value):
    with pytest.raises(SpecError) as caught:
        parsed(with_field(path, value))
    codes = {"bad-lifespan": "lifespan", "bad-fingerprint": "fingerprint", "target-type": "target"}
    assert codes.get(caught.value.code, path) == path
    assert caught.value.code in {*codes, "wrong-type"}
    message = str(caught.value)
    assert message.startswith(f"{path} must be ")
    assert FIELDS[path][2] in message
    assert message.endswith(f"({type(value).__name__})")


def test_no_field_of_the_table_is_left_out_here():
    checked = {
        path
        for path, field in fields.FIELDS.items()
        if field.kind.base != "any" and not field.is_ours
    }
    assert checked == FIELDS.keys()


def admits(schema, value):
    """What MongoDB's validator does with a bound."""
    kinds = {
        "int": int,
        "long": int,
        "double": float,
        "bool": bool,
        "string": str,
        "date": datetime,
    }
    kinds |= {"array": list, "object": dict}
    if not any(type(value) is kinds[name] for name in schema["bsonType"]):
        return False
    if isinstance(value, list):
        return all(
            admits(schema["items"] | {"bsonType": [schema["items"]["bsonType"]]}, each)
            for each in value
        )
    least, most = schema.get("minimum"), schema.get("maximum")
    is_above = schema.get("exclusiveMinimum", False)
    return (least is None or value > least or (value == least and not is_above)) and (
        most is None or value <= most
    )


@pytest.mark.parametrize(("number", "is_taken"), [(0, True), (1, False)])
def test_the_validator_of_the_collection_has_the_same_bounds(number, is_taken):
    for path, value in cases(number):
        # It need not know what no number is, and Python has one type more for lists.
        if (
            value is not None
            and type(value) is not tuple
            and not (type(value) is float and not math.isfinite(value))
        ):
            assert admits(fields.FIELDS[path].kind.schema(), value) is is_taken, (path, value)


def test_the_table_of_the_docs_says_of_each_field_what_it_may_be_and_what_is_taken_without_it():
    header, rule, *rows = fields.table().splitlines()
    assert header == "| field | type | if left out | meaning | code of the error |"
    assert rule == "|---|---|---|---|---|"
    by_path = {row.split("`")[1]: row.split(" | ")[1:] for row in rows}
    assert by_path.keys() == fields.FIELDS.keys()
    assert by_path["target"][1] == "the error `missing-target`"
    assert by_path["target"][-1] == "`target-type` |"
    assert by_path["validate"][:2] == ["true or false", "`false`"]
    assert by_path["canary.for"][:2] == ["a number of minutes above 0", "`5`"]
    assert by_path["limits.sample"][1] == "all"
    assert by_path["comment"] == ["any value", "", "for people", " |"]
    assert by_path["applied"][2:] == ["written by diagnose: an entry of each process", " |"]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("limits", {"rate", "sample", "hits", "fleet_hits"}),
        ("instrument", {"type", "name", "value", "event", "custom"}),
        ("instrument.custom", {"tags"}),
        ("limit", set()),
    ],
)
def test_a_document_has_the_names_of_its_own_fields_and_not_of_those_within(path, names):
    assert set(fields.names_in(path)) == names
    assert {"limits", "target", "_id"} < set(fields.names_in(""))
    assert not any("." in name for name in fields.names_in(""))


def test_every_value_is_handed_on_as_it_is_given():
    spec = parsed(
        document(
            when="x > 1",
            enabled=False,
            validate=True,
            lifespan=0.25,
            limits={"rate": 0.5, "sample": 0.25, "hits": 3, "fleet_hits": 4},
            fingerprint=FINGERPRINT,
            select={"service": "web", "env": ["a", "b"], "percent": 7},
        )
    )
    assert (spec.when, spec.enabled, spec.is_dry_run) == ("x > 1", False, True)
    assert spec.lifespan == timedelta(seconds=15)
    limits = spec.limits
    assert (limits.rate, limits.sample, limits.hits, limits.fleet_hits) == (0.5, 0.25, 3, 4)
    assert spec.fingerprints == (FINGERPRINT,)
    assert spec.select == Select({"service": ("web",), "env": ("a", "b")}, 7)
    assert (spec.canary, spec.stage, spec.reason, spec.began) == (None, None, None, NOW)


@pytest.mark.parametrize(
    "text", ["", "3.11", "3.11-0f3a9c52d7be", "3.11-0f3a9c52d7be-x", f"{FINGERPRINT} "]
)
def test_a_text_that_is_no_fingerprint_is_refused(text):
    for given in (text, [FINGERPRINT, text]):
        with pytest.raises(SpecError) as caught:
            parsed(document(fingerprint=given))
        assert caught.value.code == "bad-fingerprint"
        assert repr(text) in str(caught.value)


# --- canaries -----------------------------------------------------------------------------------


def test_a_canary_has_a_time_and_bounds_of_its_own_or_the_usual_ones():
    spec = parsed(document(canary={"percent": 5}))
    assert spec.canary == Canary(5, timedelta(minutes=5), None, 0)
    spec = parsed(document(canary={"percent": 5, "for": 0.5, "max_cost": 0.1, "max_errors": 2}))
    assert spec.canary == Canary(5, timedelta(seconds=30), 0.1, 2)


@pytest.mark.parametrize("canary", [{"for": 5}, {}])
def test_a_canary_without_percent_is_refused(canary):
    with pytest.raises(SpecError) as caught:
        parsed(document(canary=canary))
    assert caught.value.code == "missing-percent"
    assert str(caught.value).startswith("canary.percent is missing; it must be a number from 0")


@pytest.mark.parametrize(
    ("select", "percent"), [({}, 10), ({"percent": 50}, 5), ({"percent": 0}, 0)]
)
def test_a_canary_begins_on_its_share_of_those_whom_the_spec_is_for(select, percent):
    spec = parsed(document(select=select, canary={"percent": 10}))
    assert (spec.stage, spec.reason, spec.began) == (Stage.CANARY, None, NOW)
    assert spec.select == Select({}, percent)


def staged(**stage):
    stage = {"version": NOW, "name": "everywhere"} | stage
    return parsed(document(canary={"percent": 10}, select={"percent": 50}, stage=stage))


@pytest.mark.parametrize("name", ["everywhere", "taken back"])
def test_after_the_canary_the_spec_is_for_all_whom_it_selects(name):
    spec = staged(name=name)
    assert spec.stage == name
    assert spec.select == Select({}, 50)


def test_what_its_stage_says_about_this_version_is_taken():
    began = datetime(2026, 11, 23, 11, 30)
    spec = staged(name="canary", percent=30, reason="so it is", began=began)
    assert spec.stage is Stage.CANARY
    assert spec.canary.percent == 30.0
    assert spec.select == Select({}, 15)
    assert spec.reason == "so it is"
    assert spec.began == began.replace(tzinfo=UTC)
    assert spec.lastmodified == NOW
    assert spec.remaining(NOW) == timedelta(minutes=10) - timedelta(minutes=30)


@pytest.mark.parametrize(
    "stage",
    [
        {"version": NOW + timedelta(seconds=1)},
        {"version": None},
        {"name": "somewhere"},
        {"name": 5},
        {"name": "canary", "percent": 101, "reason": 5, "began": "x"},
    ],
)
def test_nonsense_in_a_stage_leaves_the_canary_at_its_begin(stage):
    spec = staged(**stage)
    assert (spec.stage, spec.reason, spec.began) == (Stage.CANARY, None, NOW)
    assert spec.canary.percent == 10


@pytest.mark.parametrize("stage", ["everywhere", None, []])
def test_a_stage_that_is_no_document_leaves_the_canary_at_its_begin(stage):
    spec = parsed(document(canary={"percent": 10}, stage=stage))
    assert (spec.stage, spec.began) == (Stage.CANARY, NOW)


def test_a_stage_without_a_canary_means_nothing():
    spec = parsed(document(stage={"version": NOW, "name": "taken back", "reason": "x"}))
    assert (spec.canary, spec.stage, spec.reason, spec.select) == (None, None, None, None)


# --- warnings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("tarjet", "target"),
        ("instrument.valeu", "value"),
        ("limits.smaple", "sample"),
        ("canary.max_eror", "max_errors"),
    ],
)
def test_a_field_without_effect_is_named_wherever_it_is(path, near):
    (warning,) = parsed(with_field(path, 1)).warnings
    assert warning == f"{path} is not a known field: ignored; did you mean '{near}'?"


def test_a_field_that_is_like_no_other_is_named_without_a_guess():
    (warning,) = parsed(document(zzzzzz=1)).warnings
    assert warning == "zzzzzz is not a known field: ignored"


@pytest.mark.parametrize(("count", "last"), [(10, "x9"), (11, "and 1 more"), (12, "and 2 more")])
def test_ten_warnings_are_shown_and_the_others_counted(count, last):
    warnings = parsed(document(**{f"x{i}": 1 for i in range(count)})).warnings
    assert len(warnings) == min(count, 11)
    assert warnings[-1].startswith(last)
    assert [text.split()[0] for text in warnings[:10]] == [f"x{i}" for i in range(10)]


@pytest.mark.parametrize(("length", "shown"), [(80, "y" * 80), (81, "y" * 77 + "...")])
def test_a_long_name_is_cut(length, shown):
    (warning,) = parsed(document(**{"y" * length: 1})).warnings
    assert warning == f"{shown} is not a known field: ignored"


@pytest.mark.parametrize(("seconds", "warns"), [(-1, False), (60, False), (60.5, True)])
def test_a_lastmodified_more_than_a_minute_ahead_is_warned_about(seconds, warns):
    found = parsed(document(extra=1)).warnings_at(NOW - timedelta(seconds=seconds))
    assert len(found) == 1 + warns
    assert found[0].startswith("extra is not")


# --- who asks applies no specs ------------------------------------------------------------------


def test_without_the_types_of_an_application_every_type_and_field_is_taken():
    doc = document(instrument={"type": "own", "buckets": [1]})
    spec = parsed(doc, instrument_types=None)
    assert (spec.instrument_type, spec.value, spec.warnings) == ("own", "", ())
    assert spec.extra == {"type": "own", "buckets": [1]}


def test_a_value_that_its_type_has_by_itself_may_be_left_out():
    doc = document(instrument={"type": "log"})
    assert parsed(doc, default_values={"log": "elapsed"}).value == "elapsed"
    with pytest.raises(SpecError) as caught:
        parsed(doc, default_values={"log": None})
    assert caught.value.code == "missing-value"


# --- who is meant -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "shown"), [({}, "labels here: none"), ({"b": "1", "a": "2"}, "labels here: a, b")]
)
def test_an_unknown_label_is_told_with_those_that_there_are(labels, shown):
    spec = parsed(document(select={"zone": "x"}))
    with pytest.raises(SpecError) as caught:
        spec.selects(labels, "p")
    assert str(caught.value).startswith("select.zone names no label of this process")
    assert str(caught.value).endswith(shown)


@pytest.mark.parametrize("near", ["servce", "hots", "verion", "percnt", "own_labl"])
def test_a_label_that_is_misspelt_is_guessed(near):
    spec = parsed(document(select={near: "x"}))
    with pytest.raises(SpecError, match=r"did you mean '(service|host|version|percent|own_label)'"):
        spec.selects({"own_label": "1"}, "p")


def test_the_place_of_a_process_is_the_same_for_all_who_reckon_it():
    # A database and processes of other versions have to come to the same.
    assert percent_factors("cart-latency") == (FACTOR, SHIFT)
    assert process_share("web1-4711-k3x9") == SHARE
    place = (FACTOR * SHARE + SHIFT) % PERCENT_MODULUS
    percent = place / PERCENT_MODULUS * 100
    assert not Select({}, percent - 1e-6).matches("cart-latency", {}, "web1-4711-k3x9")
    assert Select({}, percent + 1e-6).matches("cart-latency", {}, "web1-4711-k3x9")


def test_ids_that_are_no_unicode_have_a_place_too():
    assert 0 <= process_share("\ud800") < PERCENT_MODULUS
    assert all(0 <= each < PERCENT_MODULUS for each in percent_factors("\ud800"))


# --- content ------------------------------------------------------------------------------------


def nested(depth, value):
    for _ in range(depth):
        value = [value]
    return value


def test_content_counts_up_to_a_depth_and_below_it_its_type():
    assert content_of(nested(20, 1)) != content_of(nested(20, 2))
    assert content_of(nested(21, 1)) == content_of(nested(21, 2))
    assert content_of(nested(21, 1)) != content_of(nested(21, "1"))


def test_content_counts_up_to_a_number_of_values_and_beyond_it_their_types():
    many = [0] * 4998
    assert content_of([*many, 1]) != content_of([*many, 2])
    assert content_of([*many, 0, 1]) == content_of([*many, 0, 2])
    assert content_of([*many, 0, 1]) != content_of([*many, 0, "1"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"b": 1}),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
        ([1, 2], [2, 1]),
        ([1], (1,)),
        ([], {}),
        ("1", b"1"),
        (1, True),
        (1, 1.0),
        (None, "None"),
        (NOW, NOW + timedelta(microseconds=1)),
        (math.nan, math.inf),
    ],
)
def test_values_that_differ_in_any_way_are_other_content(one, other):
    assert content_of({"x": one}) == content_of({"x": one})
    assert content_of({"x": one}) != content_of({"x": other})


@pytest.mark.parametrize("name", ["applied", "counts"])
def test_what_processes_write_into_a_document_is_not_its_content(name):
    assert content_of(document(**{name: {"p": 1}})) == content_of(document())
    assert content_of(document(comment={name: 1})) != content_of(document(comment={}))
