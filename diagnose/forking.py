"""What this library does around a fork, in one order.

Before a fork, each layer takes its lock, from the outermost to the innermost, so that the child
finds whole what the locks guard. After it they are given back the other way round; in the child,
what belongs to threads that are not there is made anew on the way. Threads begin last of all.
"""

from __future__ import annotations

import logging  # noqa: F401 - its hooks come before these, which may log
import operator
import os
import threading
from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Layer", "register", "resume"]


class Layer(IntEnum):
    """In the order in which locks are taken, also apart from forks."""

    PROGRAM = 0
    """What the program is in: breakpoints, the children of multiprocessing."""
    MANAGERS = 1
    """They make threads of their own anew, which may use all that is below."""
    STATE = 2
    """What needs no lock, and is made anew in the child."""
    PROBES = 3
    IMPORTS = 4
    TIMERS = 5


class _Hooks(NamedTuple):
    layer: Layer
    before: Callable[[], object]
    in_parent: Callable[[], object]
    in_child: Callable[[], object]


def _nothing() -> None:
    return None


_registered: tuple[_Hooks, ...] = ()
_registering = threading.Lock()
# Another thread may register more while this one forks: what was begun with is ended with.
_begun: dict[int, tuple[_Hooks, ...]] = {}
_ident = threading.get_ident  # taken now: it may itself be probed


def register(
    layer: Layer,
    *,
    before: Callable[[], object] = _nothing,
    in_parent: Callable[[], object] = _nothing,
    in_child: Callable[[], object] = _nothing,
) -> None:
    """Have functions called around each fork from now on.

    Args:
        layer: its place in the order.
        before: called before the fork, by the thread that forks.
        in_parent: called behind it, also if the fork failed.
        in_child: called in the child, by its only thread.
    """
    global _registered  # noqa: PLW0603 - of the process
    with _registering:
        hooks = _Hooks(layer, before, in_parent, in_child)
        _registered = tuple(sorted((*_registered, hooks), key=operator.attrgetter("layer")))


def resume(function: Callable[[], object]) -> None:
    """Have a function called in each forked child, after all that was registered by now.

    It may start threads: whatever these use has been made anew, also by hooks of other libraries
    (those of the MongoDB driver, say) if they were imported before.
    """
    os.register_at_fork(after_in_child=function)


def _run(calls: Iterable[Callable[[], object]]) -> None:
    """Call them all, whatever one of them raises; the first error is raised at the end."""
    # In C: a signal handler can interrupt one of them, but not come between two.
    left = map(operator.call, calls)
    first: BaseException | None = None
    while True:
        try:
            deque(left, maxlen=0)
        except BaseException as error:  # noqa: BLE001
            first = first or error
        else:
            break
    if first is not None:
        raise first


def _before() -> None:
    hooks = _begun[_ident()] = _registered
    _run([each.before for each in hooks])


def _after_in_parent() -> None:
    hooks = _begun.pop(_ident(), ())
    _run([each.in_parent for each in reversed(hooks)])


def _after_in_child() -> None:
    global _registering  # noqa: PLW0603 - of the process
    _registering = threading.Lock()
    hooks = _begun.get(_ident(), ())
    _begun.clear()
    _run([each.in_child for each in reversed(hooks)])


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
