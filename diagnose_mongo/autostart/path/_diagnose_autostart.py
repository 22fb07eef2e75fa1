"""Starts a manager in a program that knows nothing of it: soon, but not at once.

Imported before the program's first line, under ``diagnose run``. All that happens then is that
a thread begins to wait. A moment later it imports the manager and starts it: a program that
ends before has lost nothing, and one that monkey-patches (gevent) has done so by then.

Forked children that come before that wait anew; those that come after it are followed by the
manager itself.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
import time

TYPE_CHECKING = False  # of typing, which takes a while to import
if TYPE_CHECKING:
    from collections.abc import Callable

__all__: list[str] = []

VARIABLE = "DIAGNOSE_AUTOSTART"  # set by diagnose_mongo.autostart.run
_WITHIN_SECONDS = 1.0
_LONGEST_HOLD_SECONDS = 10.0
_LIBRARIES = {
    *("diagnose", "diagnose_mongo", "pymongo", "bson", "gridfs", "apscheduler", "tzlocal"),
    *("hunter", "manhole"),
}

# Before anybody replaces them.
_allocate_lock, _get_ident = threading.Lock, threading.get_ident
_start_new_thread = _thread.start_new_thread

# Held while modules are imported. A child that is forked meanwhile would wait for ever for a
# module that nobody goes on importing, and so might a program that ends.
_importing = _allocate_lock()
_holders: dict[int, bool] = {}  # threads that fork: whether they have the lock
_is_over = False
_busy_until = float("-inf")  # on the clock of time.monotonic; inf while it is
_NARROW_SECONDS = 1.0


class _Elsewhere:
    """Finds our libraries, and no others, in the environment that ``diagnose run`` came from.

    It stands last in ``sys.meta_path``: what the program's own environment has is taken.
    """

    def __init__(self, paths: list[str], names: set[str]) -> None:
        self._paths = paths
        self._names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        from importlib.machinery import PathFinder  # noqa: PLC0415 - not at every start

        return PathFinder.find_spec(name, self._paths) if name in self._names else None

    def find_distributions(self, context: object = None) -> object:
        # APScheduler asks for its own version.
        from importlib.metadata import DistributionFinder, MetadataPathFinder  # noqa: PLC0415

        name = (getattr(context, "name", None) or "").lower()
        if name not in self._names | {"diagnose-mongo"}:
            return ()
        return MetadataPathFinder.find_distributions(
            DistributionFinder.Context(name=name, path=self._paths)
        )


def _look_elsewhere() -> None:
    """Make the library importable, if it is not.

    Raises:
        ImportError: it can't be.
    """
    from importlib.util import find_spec  # noqa: PLC0415 - not at every start

    if all(find_spec(name) for name in ("diagnose_mongo", "pymongo", "apscheduler")):
        return
    version, *paths = os.environ.get(VARIABLE, "").split(os.pathsep)
    if version != f"{sys.implementation.cache_tag}{sys.abiflags}" or not paths:
        raise ImportError(
            f"diagnose-mongo is not installed for {sys.executable}, and `diagnose run` is of "
            f"another Python ({version or 'unknown'}): {sys.executable} -m pip install "
            "'diagnose-mongo[mongo]'"
        )
    names = set(_LIBRARIES)
    if "+srv" in os.environ.get("DIAGNOSE_MONGODB_URI", ""):
        names.add("dns")
    sys.meta_path.append(_Elsewhere(paths, names))  # type: ignore[arg-type]


def _wait(seconds: float) -> None:
    # Of the kind that gevent does not replace: this waits in a thread, not in a greenlet.
    never = _allocate_lock()
    never.acquire()
    never.acquire(timeout=seconds)


def _start(seconds: float) -> None:
    global _is_over, _busy_until  # noqa: PLW0603 - of this process
    _wait(seconds)
    if _thread.start_new_thread is not _start_new_thread:
        _keep_out()
    _busy_until = float("inf")
    try:
        with _importing:
            start = _import()
        with _importing:
            start()
            _is_over = True
    except Exception as exc:  # noqa: BLE001 - whatever it is, the program goes on
        _is_over = True
        if not _is_ending():
            _say(" ".join(f"{type(exc).__name__}: {exc}".split()))
    finally:
        _busy_until = time.monotonic()


def _is_ending() -> bool:
    """Whether the program is: much fails then, for no other reason."""
    # This flag is set before any of that, and has no public name.
    return (
        getattr(threading, "_SHUTTING_DOWN", False)
        or not threading.main_thread().is_alive()
        or sys.is_finalizing()
    )


def _keep_out() -> None:
    """Do nothing, for ever: threads are greenlets now, which run in the program's own ones only."""
    program = sys.modules.get("diagnose_mongo.worker.program")
    if program is None or not program.has_one_of_its_own():
        _say(
            "its threads are patched (gevent, eventlet): call diagnose_mongo.start() in the "
            "program, after that"
        )
    # A thread that ends would look for itself under another id.
    _wait(threading.TIMEOUT_MAX)


def _say(reason: str) -> None:
    try:
        sys.stderr.write(f"diagnose: no probes in process {os.getpid()}: {reason}\n")
    except Exception:  # noqa: BLE001 - there is none, or it is closed
        pass


def _import() -> Callable[[], object]:
    """Import all that is needed; returns what starts the manager.

    A fork waits for this, and does so before it takes any lock that the import may need: what is
    to be done before a fork is done in the reverse order of registration, and some of it takes
    locks for the time of the fork (that of `logging`, for one).

    Raises:
        ImportError: it is not installed.
    """
    register = os.register_at_fork

    def register_at_fork(
        *,
        before: Callable[[], object] = _nothing,
        after_in_parent: Callable[[], object] = _nothing,
        after_in_child: Callable[[], object] = _nothing,
    ) -> None:
        # A fork that waits for us now will only do the latter two of what is registered
        # meanwhile, and these rely on the first.
        begun = set()

        def wait_first() -> None:
            _hold()
            begun.add(_get_ident())
            before()

        def end() -> None:
            if _get_ident() not in begun:
                before()
            begun.discard(_get_ident())
            after_in_parent()

        def begin_anew() -> None:
            if _get_ident() not in begun:
                before()
            begun.clear()
            after_in_child()

        register(before=wait_first, after_in_parent=end, after_in_child=begin_anew)

    register(before=_hold)
    os.register_at_fork = register_at_fork  # type: ignore[assignment]
    try:
        _look_elsewhere()
        from diagnose_mongo.autostart.start import start_from_environment  # noqa: PLC0415
    finally:
        os.register_at_fork = register
    return start_from_environment


def _nothing() -> None:
    pass


def _begin() -> None:
    try:
        seconds = min(float(os.environ.get("DIAGNOSE_PERIOD") or "inf"), _WITHIN_SECONDS)
    except ValueError:
        seconds = _WITHIN_SECONDS  # start_from_environment says so
    # As in diagnose.threads, which is not imported yet: no signal is delivered to it, nor to the
    # threads that it starts.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        threading.Thread(
            target=_start, args=(max(seconds, 0.0),), name="diagnose-start", daemon=True
        ).start()
    except RuntimeError:
        pass  # where no thread can be started, there is no manager
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hold() -> None:
    thread = _get_ident()
    if thread not in _holders:
        _holders[thread] = _importing.acquire(timeout=_LONGEST_HOLD_SECONDS)


def _at_exit() -> None:
    """Nothing of ours goes on behind the back of a program that ends, nor changes how it does."""
    _hold()
    # CPython ends a program by SIGINT if KeyboardInterrupt came out of the last text that it
    # evaluated (`unhandled_keyboard_interrupt` in pythonrun.c), whichever thread did. Many modules
    # evaluate some when they are imported.
    was_interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
    if was_interrupted and time.monotonic() < _busy_until + _NARROW_SECONDS:
        try:
            exec("raise KeyboardInterrupt")  # this tells it again
        except KeyboardInterrupt:
            pass


def _after_fork_in_parent() -> None:
    if _holders.pop(_get_ident(), False):
        _importing.release()


def _after_fork_in_child() -> None:
    global _importing, _busy_until  # noqa: PLW0603 - of this process
    _busy_until = float("-inf")
    has_whole_modules = _holders.get(_get_ident(), False)
    _importing = _allocate_lock()
    _holders.clear()
    if has_whole_modules and not _is_over:
        _begin()


def _is_run_for(work: str) -> bool:
    """Whether this is a helper process of multiprocessing's (or loky's), not one of a program."""
    return any(f".{work} import " in argument for argument in sys.orig_argv[1:])


if not _is_run_for("resource_tracker"):
    os.register_at_fork(
        before=_hold,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
    atexit.register(_at_exit)
    # The fork server is no process that anybody meant; what it forks are.
    if not _is_run_for("forkserver"):
        _begin()
