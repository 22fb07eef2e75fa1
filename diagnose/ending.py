"""The end of the program: all probes are taken off before the interpreter takes it apart."""

from __future__ import annotations

import atexit
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from diagnose import forking, registry
from diagnose.attachments import Attachment
from diagnose.forking import Layer
from diagnose.probes import Changes, FunctionProbe, active_probes
from diagnose.reentrancy import Quiet
from diagnose.sinks.standard import STANDARD_OUTPUT

if TYPE_CHECKING:
    from collections.abc import Callable


def _end() -> None:
    """Take everything off, so that the program comes apart as if nothing had been there.

    Code that calls handlers keeps alive what these refer to, and the collector can't see it, as
    code takes no part in collection: files would not be flushed, finalizers not run.
    """
    # Whatever happens here (an interrupt from the keyboard, a hook of the application's) is not
    # to be seen: the program has done all that it had to do.
    with suppress(BaseException), Quiet():
        if not registry.lock.acquire(timeout=_END_WAIT_SECONDS):
            return
        try:
            placed = registry.close()
            on = {each.probe for each in placed if isinstance(each, Attachment)}
            live = {each for each in on if isinstance(each, FunctionProbe)}
            with Changes() as changes:
                for probe in live.union(active_probes.values()):
                    with suppress(Exception):
                        probe.leave(changes)
            registry.clear()
        finally:
            registry.lock.release()
        # What is still to be told holds instruments, and by them what they are on.
        registry.timers.settle(_END_WAIT_SECONDS, lambda: None)
        STANDARD_OUTPUT.settle()


_END_WAIT_SECONDS = 1.0
_LAST_PRIORITY = -2000  # behind managers, which say good-bye to their server
_is_following = False
# It is called after what the program registered since this was imported.
atexit.register(_end)


def _follow_multiprocessing() -> None:
    """See to it that all is taken off at the end of multiprocessing's children.

    These end by ``os._exit``, so not with what `atexit` knows, but with finalizers; they begin by
    forgetting their parent's, and then do what is to be done after a fork.
    """
    global _is_following  # noqa: PLW0603 - of the program, children included
    with suppress(Exception):  # this is somebody else's module
        util = sys.modules.get("multiprocessing.util")
        if util is not None and hasattr(util, "register_after_fork") and not _is_following:
            _is_following = True
            util.register_after_fork(_end, _end_with_finalizers)


def _end_with_finalizers(end: Callable[[], None]) -> None:
    sys.modules["multiprocessing.util"].Finalize(None, end, exitpriority=_LAST_PRIORITY)


forking.register(Layer.PROGRAM, before=_follow_multiprocessing)
