"""Which exceptions belong to the program, although they came up while our code ran."""

from __future__ import annotations

__all__ = ["belongs_to_program"]


def belongs_to_program(error: BaseException) -> bool:
    """Whether an exception that was caught in our code is one that the program has to get."""
    return isinstance(error, KeyboardInterrupt | SystemExit)
