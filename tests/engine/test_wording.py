"""How messages show values, errors and hints."""

from __future__ import annotations

import pytest

from diagnose.wording import described, shortened, shown, shown_with_type, suggest


class Mute:
    def __repr__(self):
        raise ZeroDivisionError

    __str__ = __repr__


class MuteError(Exception):
    def __str__(self):
        raise ZeroDivisionError


class Renaming(type):
    @property
    def __name__(cls):
        raise ZeroDivisionError


class Renamed(Exception, metaclass=Renaming):
    pass


def test_a_text_is_cut_only_where_it_is_too_long():
    assert shortened("a" * 80) == "a" * 80
    assert shortened("a" * 81) == "a" * 77 + "..."
    assert shortened("abcdef", 5) == "ab..."


@pytest.mark.parametrize("value", ["a" * 10_000, ["long" * 30] * 9, {1: "x" * 300}, 10**500])
def test_a_value_is_shown_in_a_line_of_so_many_characters(value):
    assert len(shown(value)) <= 80
    assert shown(value, 100)[:10] == repr(value)[:10]
    assert len(shown(value, 100)) <= 100


def test_a_small_value_is_shown_as_it_is():
    assert shown({"a": [1, "two"]}) == "{'a': [1, 'two']}"
    assert shown_with_type(5) == "5 (int)"


def test_a_value_whose_repr_raises_is_shown_by_its_class():
    assert "Mute" in shown(Mute())
    assert shown_with_type(Mute()).endswith(" (Mute)")


def test_an_error_is_described_by_its_class_and_text():
    assert described(ValueError("no")) == "ValueError: no"
    assert described(ValueError()) == "ValueError"
    assert described(ValueError("a" * 1000), 100) == "ValueError: " + "a" * 97 + "..."


def test_an_error_is_described_without_what_its_class_spoils():
    assert described(MuteError()) == "MuteError"
    assert described(Renamed("no")) == "Renamed: no"


def test_suggest_names_a_near_miss_or_nothing():
    assert suggest("elapsd", ["elapsed", "end"]) == "; did you mean 'elapsed'?"
    assert suggest("zzz", {"elapsed": 1}) == ""
    assert suggest("zzz", []) == ""
