"""What ``act`` may return, and what the woven code is handed for it."""

from __future__ import annotations

from collections import UserDict

import pytest

from diagnose.bytecode.weaving import MISSING, Parameters
from diagnose.handlers.acting import Raise, Result, on_call, on_return

ALL = Parameters(("a", "b"), ("c",), "rest", "more")  # in the order a, b, c, rest, more


def before(chosen, parameters=ALL):
    return on_call(lambda value, names: chosen, parameters)("value", {"a": 1})


def after(chosen):
    return on_return(lambda value, names: chosen)("value", {"a": 1})


def test_it_is_handed_the_value_and_the_names():
    seen = []
    names = {"a": 1}
    for run in (
        on_call(lambda *given: seen.append(given), ALL),
        on_return(lambda *given: seen.append(given)),
    ):
        assert run(5, names) is None
    assert seen == [(5, names)] * 2
    assert seen[0][1] is names


@pytest.mark.parametrize(
    ("chosen", "values"),
    [
        ({}, (MISSING,) * 5),
        ({"a": 1}, (1, MISSING, MISSING, MISSING, MISSING)),
        ({"b": None, "c": 3}, (MISSING, None, 3, MISSING, MISSING)),
        ({"rest": [1, 2]}, (MISSING, MISSING, MISSING, (1, 2), MISSING)),
        ({"more": {"x": 1}}, (MISSING, MISSING, MISSING, MISSING, {"x": 1})),
        (UserDict(a=1), (1, MISSING, MISSING, MISSING, MISSING)),
    ],
)
def test_new_values_of_parameters_stand_in_their_places(chosen, values):
    assert before(chosen) == (None, values)


def test_what_double_star_takes_is_a_dict_of_its_own():
    given = {"x": 1}
    _, values = before({"more": given})
    assert values[-1] == given
    assert values[-1] is not given
    with pytest.raises(TypeError):
        before({"more": {5: 1}})


@pytest.mark.parametrize(
    "chosen", [5, "a", {"zzz": 1}, {"a": 1, "zzz": 1}, Result(1), [("a", 1)], {5: 1}]
)
def test_another_thing_on_call_is_an_error_that_names_the_parameters(chosen):
    with pytest.raises(TypeError, match=r"on 'call' it has to return .*\(a, b, c, rest, more\)"):
        before(chosen)


def test_a_function_without_parameters_says_so():
    assert before({}, Parameters()) == (None, ())
    with pytest.raises(TypeError, match="there are none"):
        before({"a": 1}, Parameters())


@pytest.mark.parametrize("chosen", [5, {}, {"a": 1}, "x", True])
def test_another_thing_on_return_is_an_error(chosen):
    with pytest.raises(TypeError, match=r"on 'return' it has to return None, Result"):
        after(chosen)


def test_a_result_takes_the_place_of_the_result():
    box = object()
    assert after(Result(box)) == (False, box)
    assert after(Result(None)) == (False, None)


def test_an_exception_is_raised_as_it_is_and_a_class_is_made_one():
    error = ValueError("no")
    assert before(Raise(error)) == (error, ())
    assert after(Raise(error)) == (True, error)
    for found in (before(Raise(KeyError))[0], after(Raise(KeyError))[1]):
        assert type(found) is KeyError
        assert found.args == ()


class Odd(Exception):
    def __new__(cls):
        return "no exception"


@pytest.mark.parametrize("run", [before, after])
def test_a_class_that_makes_no_exception_is_an_error_of_the_instrument(run):
    with pytest.raises(TypeError, match=r"gives 'no exception', which is no exception"):
        run(Raise(Odd))


@pytest.mark.parametrize("thing", [5, "x", int, None, object()])
def test_nothing_but_exceptions_can_be_raised(thing):
    with pytest.raises(TypeError, match="give Raise an exception or a class of them"):
        Raise(thing)


def test_what_it_says_can_be_read():
    assert repr(Result([1])) == "Result([1])"
    assert repr(Raise(KeyError)) == "Raise(<class 'KeyError'>)"
    assert Raise(KeyError).error is KeyError
