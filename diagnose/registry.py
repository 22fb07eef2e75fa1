"""Which hooks are on which function, and the lock that every change of that takes."""

from __future__ import annotations

import functools
import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

from diagnose import forking
from diagnose.clockwork import Clockwork
from diagnose.errors import DiagnoseError
from diagnose.forking import Layer
from diagnose.reentrancy import Quiet
from diagnose.sites import Armed, happens_inside, site_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from diagnose.bytecode.weaving import Hook
    from diagnose.sites import Site
    from diagnose.targets import Target

__all__ = ["Hooked", "Placed", "clear", "close", "lock", "place", "timers", "update"]

P = TypeVar("P", bound="Placed")

log = logging.getLogger(__name__)

timers = Clockwork("diagnose-timers", Quiet)
"""What calls at deadlines: lifespans, budgets. It has a thread as long as anything is attached,
since a hit, which must not start one, may want something done."""

lock = threading.RLock()
"""Guards every change of what is probed.

Held for microseconds, never while user code or the network is waited for (so probes are silent in
its holder, which may itself call what is probed); a fork waits for it, so that a child finds no
half-made probe.
"""


class Placed(Protocol):
    """What may have a hook on a site; of two with the same place the later one counts."""

    armed: bool
    hook: Hook

    @property
    def event(self) -> str:
        """The event that the hook is on."""

    @property
    def place(self) -> Hashable:
        """What tells it from others."""


_on_site: dict[Site, list[Placed]] = {}
_has_ended = False


def place(site: Site, news: Sequence[P]) -> dict[P, Exception]:
    """Bring what is new to a site, all at once; what can't be there, with the reason."""
    try:
        update(site, news)
    except Exception as error:  # noqa: BLE001  (it is told as the outcome of one of them)
        if len(news) == 1:
            return {news[0]: error}
    else:
        return {}
    # One of them is to blame: the others are not to suffer for it.
    middle = len(news) // 2
    return place(site, news[:middle]) | place(site, news[middle:])


def update(site: Site, news: Sequence[Placed] = ()) -> None:
    """Bring a site's hooks in line with what is armed; if it raises, nothing changed."""
    if _has_ended and news:
        return  # a background thread still applies what it knows; the code stays as it is
    attachments = _on_site.get(site, [])
    places = {new.place for new in news}
    kept = [one for one in attachments if one.armed and one.place not in places]
    if not news and len(kept) == len(attachments):
        return
    kept += news
    if news:
        # First: after an interrupt in the middle of it, whoever takes it off finds it here.
        _on_site[site] = kept
    try:
        said = site.update([Armed(one.event, one.hook) for one in kept])
    except Exception as error:
        if news:
            _note(site, attachments)
            if not isinstance(error, DiagnoseError):
                _try_again(site)
            raise
        _try_again(site)
    else:
        _say(said)
    _note(site, kept)


def close() -> list[Placed]:
    """Put nothing on any more, since the program ends; returns all that is on. For the lock's holder."""
    global _has_ended  # noqa: PLW0603
    _has_ended = True
    return [one for each in list(_on_site.values()) for one in each]


def clear() -> None:
    """Take off all that is left. For the lock's holder."""
    for site, each in list(_on_site.items()):
        for one in each:
            one.armed = False
        with suppress(Exception):
            update(site)


def _note(site: Site, placed: list[Placed]) -> None:
    if placed:
        _on_site[site] = placed
    else:
        _on_site.pop(site, None)


def _try_again(site: Site) -> None:
    """Bring a site to what is noted, after something has failed in the midst of a change.

    An audit hook of the program may have raised, at any step. What is to go is disarmed anyway.
    """
    placed = [Armed(one.event, one.hook) for one in _on_site.get(site, []) if one.armed]
    try:
        _say(site.update(placed))
    except Exception as error:  # noqa: BLE001
        # Somebody else replaced the code, or forbids us to; also to start a thread.
        with suppress(Exception):
            _say(f"{site!r} could not be brought up to date: {error}")


def _say(text: str | None) -> None:
    """Log a warning, not here: a thread that waits for our lock may hold that of a log handler."""
    if text is not None:
        timers.after(0, functools.partial(log.warning, "%s", text))


class Hooked:
    """A hook that is on a function, without an instrument: what breakpoints are made of.

    Args:
        target: whose function.
        event: ``"call"``, ``"return"``, ``"end"`` or ``"line:N"``.
        hook: what is called there.

    Raises:
        DiagnoseError: there is no such event in it.
    """

    __slots__ = ("_site", "armed", "event", "hook")

    def __init__(self, target: Target, event: str, hook: Hook) -> None:
        self._site = site_of(target, inside=happens_inside(event))
        self._site.scope(event, {})  # raises if there is no such event
        self.event, self.hook = event, hook
        self.armed = False

    def put_on(self) -> None:
        """Put it there.

        Raises:
            DiagnoseError: it can't be; then everything is as it was.
        """
        self.armed = True
        with Quiet(), lock:
            update(self._site, [self])

    @property
    def place(self) -> Hashable:
        """Each is one of its own."""
        return self

    def take_off(self) -> None:
        """Put back what was there before; idempotent."""
        with Quiet(), lock:
            self.armed = False
            update(self._site)


forking.register(
    Layer.PROBES,
    before=lock.acquire,
    # In the child too: its only thread is the one that took it.
    in_parent=lock.release,
    in_child=lock.release,
)
