"""The register of breakpoints that are set, and the calls that stand at each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diagnose.breakpoints.calls import Call

__all__ = ["Entered", "entered", "standing_calls"]


class Entered(Protocol):
    """A breakpoint that is set."""

    def told(self) -> tuple[Sequence[Call], Sequence[str]]:
        """The calls whose threads stand there; what its tasks do, in words.

        It takes no lock: a signal handler may ask, in the middle of anything.
        """


entered: set[Entered] = set()
"""The breakpoints that are set. It is changed and copied in single steps, so without a lock: a
signal handler may look at it in the middle of anything."""


def standing_calls() -> tuple[list[tuple[Call, str]], list[str]]:
    """The calls that stand in threads, each with the breakpoint's name; what tasks do, in words."""
    standing, tasks = [], []
    for each in list(entered):
        calls, texts = each.told()
        standing += [(call, repr(each)) for call in calls]
        tasks += [f"{text}, of {each!r}" for text in texts]
    return standing, tasks
