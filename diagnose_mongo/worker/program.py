"""The managers of a program: which of them works, and how they end and go on in children.

A program has one as a rule. One that was put into it from outside (``diagnose run``) gives way to
one that the program starts itself; in a forked child each goes on, and in a child that
multiprocessing ends, which runs nothing of :mod:`atexit`, each is stopped all the same.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Protocol

# Before the call of forking.resume() below: the driver's own hook has to run first.
import diagnose_mongo.store  # noqa: F401
from diagnose import forking
from diagnose.threads import without_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Member", "enrol", "has_one_of_its_own", "starting"]

log = logging.getLogger(__name__)

_LAST_PRIORITY = -1000  # of multiprocessing's finalizers


class Member(Protocol):
    """What a manager is to its program."""

    @property
    def gives_way(self) -> bool:
        """Whether it stops when the program starts another."""

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not stopped."""

    def stop(self) -> None:
        """End it."""

    def resume_in_child(self) -> None:
        """Go on in a forked child, if it was running in the parent."""


_members: weakref.WeakValueDictionary[int, Member] = weakref.WeakValueDictionary()
_has_one_of_its_own = False
_is_following = False
_starts = threading.Lock()
"""Held while a manager starts."""


def enrol(member: Member) -> None:
    """Have a manager go on in forked children, and end with them."""
    _members[id(member)] = member


def has_one_of_its_own() -> bool:
    """Whether the program has started a manager itself."""
    return _has_one_of_its_own


@contextlib.contextmanager
def starting(member: Member) -> Iterator[bool]:
    """For the time that a manager starts, if it may; those that give way to it are stopped.

    Yields:
        Whether it may: it does not give way to another one.
    """
    with _starts:
        yield _may_start(member)
    _follow_multiprocessing()


def _may_start(member: Member) -> bool:
    global _has_one_of_its_own  # noqa: PLW0603 - of the program
    if member.gives_way:
        return not _has_one_of_its_own
    _has_one_of_its_own = True
    for other in _all():
        if other.gives_way and other.is_running:
            log.info("%r gives way to %r", other, member)
            # It says good-bye to the server, which may take a while.
            with without_signals():
                threading.Thread(target=other.stop, name="diagnose-stop", daemon=True).start()
    return True


def _all() -> list[Member]:
    return [member for ref in _members.valuerefs() if (member := ref()) is not None]


# --- children -----------------------------------------------------------------------------------


def _follow_multiprocessing() -> None:
    """See to it that managers stop in multiprocessing's children.

    Those end by ``os._exit``, so not with what `atexit` knows, but with multiprocessing's own
    finalizers. They begin by forgetting these, and then do what is to be done after a fork.
    """
    global _is_following  # noqa: PLW0603 - of the program, children included
    util = sys.modules.get("multiprocessing.util")
    if util is not None and hasattr(util, "register_after_fork") and not _is_following:
        _is_following = True
        _stop_with_finalizers(_stop_all)
        util.register_after_fork(_stop_all, _stop_with_finalizers)


def _stop_with_finalizers(stop: Callable[[], None]) -> None:
    util = sys.modules["multiprocessing.util"]
    util.Finalize(None, stop, exitpriority=_LAST_PRIORITY)


def _stop_all() -> None:
    for member in _all():
        if member.is_running:
            member.stop()


def _after_fork_in_child() -> None:
    global _starts  # noqa: PLW0603 - of this process
    _starts = threading.Lock()
    _follow_multiprocessing()
    for member in _all():
        try:
            member.resume_in_child()
        except Exception:
            log.exception("%r could not take up polling in a forked child", member)


forking.resume(_after_fork_in_child)
