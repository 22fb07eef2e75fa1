"""Threads of this library's own: no signal is delivered to them.

A program that blocks a signal in its threads and waits for it (``signal.sigwait``) would be ended by
it if there were one more thread that does not: the kernel would deliver it there. A thread begins
with the signals blocked that are blocked in the one that starts it.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["without_signals"]

# Taken now: they may be probed, and then their module has stand-ins for them.
_mask, _block, _set = signal.pthread_sigmask, signal.SIG_BLOCK, signal.SIG_SETMASK
_all = signal.valid_signals() - {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


@contextmanager
def without_signals() -> Iterator[None]:
    """Let threads that are started in it get no signals; what comes meanwhile comes after it."""
    before = _mask(_block, _all)
    try:
        yield
    finally:
        _mask(_set, before)
