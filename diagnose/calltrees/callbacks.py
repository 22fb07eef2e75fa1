"""Makes functions that the interpreter can call at events of the program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diagnose.interrupts import belongs_to_program

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["contained"]


def contained(
    work: Callable[..., object],
    failed: Callable[[BaseException], object],
    belongs: Callable[[BaseException], bool] = belongs_to_program,
) -> Any:
    """Let ``work`` be called by the interpreter: whatever it raises does not reach the program.

    What belongs to the program does (a signal handler's). Where ``work`` has no room any more, at
    the recursion limit, the event is lost. The program itself is left all but one call.

    Args:
        work: gets what the interpreter passes; the program's frame is two above its own. What it
            returns is dropped: an event that a tool switches off can only be had again by
            `sys.monitoring.restart_events`, which switches it on for all tools.
        failed: is told of any other error.
        belongs: whether an error is to be raised.
    """
    # Bound here: at the end of a process a module's globals may be gone before its threads.
    base, no_room = BaseException, (RecursionError, MemoryError)

    def callback(*args: Any) -> None:
        try:
            work(*args)
        except no_room:
            pass
        except base as error:
            theirs = False
            try:
                theirs = belongs(error)
                if not theirs:
                    failed(error)
            except base:
                pass
            if theirs:
                raise

    return callback
