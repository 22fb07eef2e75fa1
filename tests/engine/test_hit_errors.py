"""What is told of an exception that an expression raised, and what is kept of it."""

from __future__ import annotations

import pytest

from diagnose import hit_errors


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def raised(error):
    """As it comes out of an expression that raises by itself: without an entry of other code."""
    try:
        exec(compile("raise error", "<probe n>", "exec"), {"error": error})
    except BaseException as caught:
        caught.__traceback__ = caught.__traceback__.tb_next
        return caught


def raised_here(error):
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "value", "text"),
    [
        (ValueError("no luck"), "f(x)", "'f(x)' raised ValueError: no luck"),
        (KeyError("k"), "d['k']", "\"d['k']\" raised KeyError: 'k'"),
        (ValueError(), "v", "'v' raised ValueError: "),
        (Unprintable(), "v", "'v' raised Unprintable"),
        (ValueError("y" * 2000), "v", f"'v' raised ValueError: {'y' * 988}"),
        (ValueError("z"), "v" * 300, f"{repr('v' * 300)[:200]} raised ValueError: z"),
    ],
)
def test_an_error_is_described_by_its_expression_type_and_text(error, value, text):
    assert hit_errors.describe(raised(error), value) == text


def test_where_an_error_came_up_is_told_if_it_is_in_code_that_was_called():
    error = raised_here(ValueError("no luck"))
    line = error.__traceback__.tb_lineno
    assert hit_errors.describe(error, "f()") == (
        f"'f()' raised ValueError: no luck (in raised_here, test_hit_errors.py:{line})"
    )


def test_what_came_up_in_code_of_the_library_is_not_located():
    code = compile("raise error", hit_errors.__file__, "exec")
    error = LookupError("x")
    try:
        exec(code, {"error": error})
    except LookupError:
        error.__traceback__ = error.__traceback__.tb_next
    assert hit_errors.describe(error, "v") == "'v' raised LookupError: x"


class _Repr:
    def __repr__(self):
        raise ValueError("of a value")


# --- what is told later ---------------------------------------------------------------------------


class Own(Exception):
    def __init__(self, one, two):
        super().__init__(one, two)


@pytest.mark.parametrize(
    ("error", "args"),
    [
        (ValueError("a", 1, 2.5, True, None), ("a", 1, 2.5, True, None)),
        (ValueError(object()), ("the text",)),
        (KeyError((1, 2)), ("the text",)),
        (ValueError("a", []), ("the text",)),
        (ValueError(type("Text", (str,), {})("a")), ("the text",)),
        (AttributeError("a", name="n", obj=object()), ("a",)),
    ],
)
def test_a_builtin_error_is_told_anew_without_objects_of_the_program(error, args):
    error.__cause__, error.mine = LookupError(), object()
    told = hit_errors.without_objects(error, "the text")
    assert told is not error
    assert (type(told), told.args) == (type(error), args)
    assert told.__cause__ is None
    assert not hasattr(told, "mine")
    if type(error) is AttributeError:
        assert told.obj is None


def test_a_builtin_error_that_wants_other_arguments_is_told_by_its_text():
    error = UnicodeDecodeError("utf-8", b"x", 0, 1, "why")
    told = hit_errors.without_objects(error, "the text")
    assert (type(told), told.args) == (RuntimeError, ("the text",))


def test_an_error_of_a_class_made_in_python_is_told_as_it_is():
    error = Own(object(), 2)
    assert hit_errors.without_objects(error, "the text") is error


# --- where it comes from --------------------------------------------------------------------------


def test_an_error_is_from_inside_if_a_call_was_entered():
    assert not hit_errors.is_from_inside(ValueError())
    assert not hit_errors.is_from_inside(raised_here(ValueError()))
    try:
        raised(LookupError())
        repr(_Repr())
    except ValueError as error:
        assert hit_errors.is_from_inside(error)


@pytest.mark.parametrize(
    ("kind", "is_so"),
    [
        (RecursionError, True),
        (MemoryError, True),
        (ValueError, False),
        (type("Own", (MemoryError,), {}), False),
    ],
)
def test_want_of_room_is_told_by_the_very_class(kind, is_so):
    assert hit_errors.is_want_of_room(kind()) is is_so


def test_an_error_has_the_context_of_the_program_if_a_caller_was_handling_it():
    def hit():
        raise ValueError

    def handles():
        try:
            raise KeyError
        except KeyError:
            hit()

    def handles_inside():
        try:
            try:
                raise KeyError
            except KeyError:
                raise ValueError  # noqa: B904
        except ValueError as error:
            return error

    with pytest.raises(ValueError) as caught:
        handles()
    error = caught.value.with_traceback(caught.value.__traceback__.tb_next.tb_next)
    assert hit_errors.has_context_of_program(error)
    assert not hit_errors.has_context_of_program(handles_inside())
    assert not hit_errors.has_context_of_program(ValueError())
    assert not hit_errors.has_context_of_program(raised_here(ValueError()))
