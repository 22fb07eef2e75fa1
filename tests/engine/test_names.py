"""The names of a call as a mapping that is made when it is looked at."""

from __future__ import annotations

import copy
import inspect
import pickle
from datetime import UTC, datetime

import pytest

from diagnose.bytecode import weaving
from diagnose.handlers import Scope
from diagnose.handlers.names import ABOUT_NAMES, Names, NamesSource


def example(a, /, b, *rest, c=3, **more):
    return a


BEGUN = 1_700_000_000.25
CALL = {"a": 1, "b": 2, "rest": (4, 5), "c": 6, "more": {"d": 7}, "start": BEGUN}


def scope(event="return", **changes):
    made = {
        "event": event,
        "names": ("a", "b", "rest", "c", "more"),
        "globals_": {"g": "global", "a": "hidden"},
        "namespace": {"n": "of the manager", "g": "hides"},
        "parameters": weaving.Parameters.of(example.__code__),
    }
    return Scope(**made | changes)


def made(values=CALL, **changes):
    """What was handed over, in a mapping that nobody has looked at."""
    where = changes.pop("scope", None) or scope(**changes)
    return Names(tuple(values.values()), NamesSource(values, where, "<probe n>"))


def plain(names):
    """All of it but the frame, which this test has not."""
    found = dict(names.items())
    assert found.pop("frame", None) is None
    return found


WHOLE = CALL | {
    "now": datetime.fromtimestamp(BEGUN, UTC).replace(tzinfo=None),
    "args": (1, 2, 4, 5),
    "kwargs": {"c": 6, "d": 7},
}


def test_it_has_what_was_handed_over_and_what_is_reckoned_from_that():
    assert plain(made()) == WHOLE
    inside = made({"a": 1, "start": 5}, event="line")
    assert plain(inside) == {"a": 1, "start": 5}


def test_a_single_name_is_found_without_making_the_others():
    names = made()
    assert names["b"] == 2
    assert dict.__len__(names) == 0
    assert names["args"] == (1, 2, 4, 5)
    assert dict.__len__(names) == len(WHOLE) + 1
    assert names["b"] == 2


def test_the_managers_names_are_found_and_not_listed():
    names = made()
    assert names["n"] == "of the manager"
    assert "n" not in names
    assert names.get("n") is None
    with pytest.raises(KeyError, match="zzz"):
        names["zzz"]
    assert names.everything() == {"g": "hides", "n": "of the manager", "frame": None} | WHOLE


def test_a_variable_without_a_value_is_not_there():
    names = made({"a": weaving.MISSING, "b": 2}, event="line")
    with pytest.raises(KeyError):
        names["a"]
    assert plain(names) == {"b": 2}


def test_names_of_the_function_itself_are_not_replaced():
    values = {"start": "mine", "now": "my now", "args": "my args", "kwargs": "k", "frame": "f"}
    where = scope(
        names=tuple(values),
        parameters=weaving.Parameters(("start", "now", "args", "kwargs", "frame")),
    )
    names = made(values, scope=where)
    assert dict(names.items()) == values


def test_without_a_begin_now_is_now():
    before = datetime.now(UTC).replace(tzinfo=None)
    found = made({"a": 1}, scope=scope(event="call", names=("a",), parameters=None))["now"]
    assert before <= found <= datetime.now(UTC).replace(tzinfo=None)
    assert found.tzinfo is None


def test_a_wrappers_arguments_have_the_names_of_what_it_wraps():
    def inner(x, y=5, *, z=6):
        return x

    where = scope(names=("args", "kwargs"), parameters=None, signature=inspect.signature(inner))
    names = made({"args": (1,), "kwargs": {"z": 2}}, scope=where)
    assert (names["x"], names["y"], names["z"]) == (1, 5, 2)
    unfit = made({"args": (1, 2, 3, 4), "kwargs": {}}, scope=where)
    assert "x" not in unfit
    assert unfit["args"] == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("look", "found"),
    [
        (len, 2),
        (list, ["a", "b"]),
        (lambda n: list(reversed(n)), ["b", "a"]),
        (lambda n: "a" in n, True),
        (lambda n: n == {"a": 1, "b": 2}, True),
        (lambda n: n != {"a": 1, "b": 2}, False),
        (lambda n: n | {"c": 3}, {"a": 1, "b": 2, "c": 3}),
        (lambda n: {"c": 3} | n, {"a": 1, "b": 2, "c": 3}),
        (repr, "{'a': 1, 'b': 2}"),
        (lambda n: n.copy(), {"a": 1, "b": 2}),
        (lambda n: n.get("b"), 2),
        (lambda n: n.get("z", 5), 5),
        (lambda n: list(n.items()), [("a", 1), ("b", 2)]),
        (lambda n: list(n.keys()), ["a", "b"]),
        (lambda n: list(n.values()), [1, 2]),
        (lambda n: n.pop("a"), 1),
        (lambda n: n.popitem(), ("b", 2)),
        (lambda n: n.setdefault("a", 9), 1),
        (copy.copy, {"a": 1, "b": 2}),
        (copy.deepcopy, {"a": 1, "b": 2}),
        (lambda n: pickle.loads(pickle.dumps(n)), {"a": 1, "b": 2}),
        (lambda n: {**n}, {"a": 1, "b": 2}),
        (dict, {"a": 1, "b": 2}),
    ],
)
def test_every_way_to_look_at_it_finds_it_whole(look, found):
    names = made({"a": 1, "b": 2}, event="line")
    assert look(names) == found
    assert type(copy.copy(names)) is dict


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (lambda n: n.__setitem__("b", 9), {"a": 1, "b": 9}),
        (lambda n: n.__delitem__("a"), {"b": 2}),
        (lambda n: n.update(c=3), {"a": 1, "b": 2, "c": 3}),
        (lambda n: n.__ior__({"c": 3}), {"a": 1, "b": 2, "c": 3}),
        (lambda n: n.clear(), {}),
    ],
)
def test_every_way_to_change_it_changes_what_is_there(change, after):
    names = made({"a": 1, "b": 2}, event="line")
    change(names)
    assert dict(names.items()) == after


# --- builtins that are about the names of their caller's frame ------------------------------------


def about(name, **values):
    return ABOUT_NAMES[name](made(values or {"a": 1, "b": 2}, event="line"))


class Thing:
    def __init__(self):
        self.own = 5


def test_the_names_of_the_call_are_what_builtins_about_names_mean():
    assert about("locals")() == {"a": 1, "b": 2}
    assert type(about("locals")()) is dict
    assert about("vars")() == {"a": 1, "b": 2}
    assert about("vars")(Thing()) == {"own": 5}
    assert about("dir")() == ["a", "b"]
    assert "own" in about("dir")(Thing())
    assert about("eval")("a + b + len(g)") == 8
    assert about("eval")("a", {"a": 7}) == 7
    assert about("eval")("n") == "of the manager"
    box = []
    about("exec", box=box, x=3)("box.append(x)")
    about("exec", box=box)("box.append(x)", {"box": box, "x": 4})
    assert box == [3, 4]


def test_keywords_of_eval_and_exec_are_theirs():
    with pytest.raises(TypeError):
        about("eval")("a", nothing={})
    with pytest.raises(TypeError):
        about("exec")("a", nothing={})
