"""Values in messages, shortened, and hints at names that were meant."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["hint", "short", "shown", "shown_with_type"]


def hint(name: str, known: Collection[str]) -> str:
    """What was meant by a name, if one is near; begins with a semicolon."""
    import difflib  # noqa: PLC0415 - for an error only; import diagnose is to be quick

    near = difflib.get_close_matches(name[:80], known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def shown(value: object) -> str:
    """A value, whatever its ``repr`` does."""
    try:
        return short(reprlib.repr(value))
    except Exception:  # noqa: BLE001 - the repr of anything at all
        return f"<{type(value).__name__}>"


def shown_with_type(value: object) -> str:
    """A value and the name of its type."""
    return f"{shown(value)} ({type(value).__name__})"


def short(text: str) -> str:
    """A text of at most 80 characters."""
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004
