"""What people write on the command line, and what it means: durations, percents, selections."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["canary", "minutes", "seconds", "select"]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)([smhd]?)")
_ALL = 100.0


def seconds(text: str, unit: str = "s") -> float:
    """A duration such as ``90s``, ``10m``, ``2h`` or ``1d``; a plain number is in ``unit``.

    Raises:
        ValueError: it is none.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no duration; write it as 90s, 10m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2] or unit]


def minutes(text: str) -> float | int:
    """A duration in minutes; a plain number is in minutes.

    Raises:
        ValueError: it is none.
    """
    found = seconds(text, "m") / 60
    return int(found) if found.is_integer() else found


def percent(text: str) -> float | int:
    """A percentage, such as ``5%`` or ``5``.

    Raises:
        ValueError: it is none.
    """
    try:
        found = float(text.strip().removesuffix("%"))
    except ValueError:
        found = -1.0
    if not 0 <= found <= _ALL:
        raise ValueError(f"{text!r} is no percentage; write a number from 0 to 100, such as 5%")
    return int(found) if found.is_integer() else found


def canary(text: str) -> dict[str, Any]:
    """A canary: the percentage, and after a colon for how long: ``5%`` or ``5%:10m``.

    Raises:
        ValueError: it is none.
    """
    share, colon, time = text.partition(":")
    return {"percent": percent(share)} | ({"for": minutes(time)} if colon else {})


def select(texts: Iterable[str]) -> dict[str, Any]:
    """A selection, of texts such as ``service=web``; what comes twice is an alternative.

    Raises:
        ValueError: a text is none.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(
                f"{text!r} selects nothing; write it as service=web, host='web1*' or percent=10"
            )
        if name == "percent":
            found[name] = percent(value)
        else:
            found.setdefault(name, []).append(value)
    return {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name, value in found.items()
    }
