"""Values, errors and hints in messages: short, and whatever the objects themselves do."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING

from diagnose.introspection import read_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["described", "did_you_mean", "shortened", "shown", "shown_with_type", "suggest"]

_LONGEST_NAME = 80
"""Characters of a name that near misses are looked for by: it takes quadratic time."""


def shortened(text: str, most: int = 80) -> str:
    """A text of at most ``most`` characters, with dots at the end of one that was cut."""
    return text if len(text) <= most else f"{text[: max(most - 3, 0)]}..."


def shown(value: object, most: int = 80) -> str:
    """The ``repr`` of a value in at most ``most`` characters, also where it raises."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = most
    try:
        return shortened(shortener.repr(value), most)
    except Exception:  # noqa: BLE001 - the repr of anything at all
        return f"<{read_name(type(value))}>"


def shown_with_type(value: object) -> str:
    """A value and the name of its type."""
    return f"{shown(value)} ({read_name(type(value))})"


def described(error: BaseException, most: int = 200) -> str:
    """The class of an exception and at most ``most`` characters of its text."""
    try:
        text = shortened(str(error), most)
    except Exception:  # noqa: BLE001 - an exception class of the program
        text = ""
    return f"{read_name(type(error))}: {text}" if text else read_name(type(error))


def did_you_mean(names: Sequence[str]) -> str:
    """``"; did you mean 'x' or 'y'?"``, or ``""`` where there are no names."""
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def suggest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for a near miss among ``known``, or ``""``."""
    import difflib  # noqa: PLC0415 - for an error only; import diagnose is to be quick

    return did_you_mean(difflib.get_close_matches(name[:_LONGEST_NAME], list(known), n=1))
