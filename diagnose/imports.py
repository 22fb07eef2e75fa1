"""Says when a module has been imported: after its code has run, before anybody can use it.

A :class:`Watch` waits for modules by name. While there is any, a finder stands first in
``sys.meta_path``. It finds nothing by itself: it asks the finders behind it, and hands on
what they found. Nothing is imported by it.

**How the end of an import is seen.** ``importlib`` sets ``spec._initializing`` to True before
a module is executed, and to False after; other threads that import the module wait as long
as it is True (``_load_unlocked`` and ``_find_and_load`` in ``importlib/_bootstrap.py``, the
same from 3.11 to 3.14). So an awaited spec is given a class of its own, in which that
attribute is a property. Loader, ``__spec__``, ``__loader__`` and traceback are those of any
import, also while the module is executed; when it is over, or nobody waits any more, the spec
has its own class back. If some other tool makes a spec of its own instead, nothing happens:
a waiting caller should look into ``sys.modules`` now and then, too.

**Locks.** The thread that imports holds the module's import lock, and perhaps locks of the
program. It runs nothing but this module, and takes no lock but those of the worker's queue,
whose holders wait for nobody: the callbacks run in another thread, and the import waits for
them at most :data:`HOLD_SECONDS`. So no deadlock is possible, whatever the callbacks wait for (a
manager that waits for this very import, a log handler that imports);
at worst an import takes that much longer, and its first caller is not seen. Callbacks are to
be quick (arming an instrument takes one to four milliseconds), and import nothing.

Errors of ours are logged, in that other thread, and the import goes on.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import sys
import threading
import weakref
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from diagnose import forking
from diagnose.clockwork import Clockwork
from diagnose.forking import Layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from importlib.machinery import ModuleSpec

__all__ = ["FINDER", "HOLD_SECONDS", "Watch", "stand_first"]

log = logging.getLogger(__name__)

HOLD_SECONDS = 2.0
"""How long an import waits for callbacks, at most."""

# importlib.util.LazyLoader's modules are executed at the first access to an attribute.
_LAZY_MODULE: type = getattr(importlib.util, "_LazyModule", type("_NoLazyModule", (), {}))

_worker = Clockwork("diagnose-imports")

# Guards changes of what is watched; held for a few dictionary operations. Threads that
# import only read, without it: each value is replaced as a whole.
_lock = threading.RLock()
_watches: dict[str, tuple[_Ref, ...]] = {}
_trapped: dict[int, weakref.ref[Any]] = {}
_delayed: dict[str, tuple[Any, ...]] = {}
_ending: set[int] = set()


class Watch:
    """Waits for modules once it is started, until it is closed or nobody holds it any more.

    Args:
        names: of the modules, in full. One that is imported already is not waited for, one
            that is being executed is.
        arrived: called with a module's name each time that one of them has been executed, in
            a thread of this module, while the import waits; see there for what it must not do.
    """

    __slots__ = ("__weakref__", "_arrived", "_names", "_ref")

    def __init__(self, names: Iterable[str], arrived: Callable[[str], None]) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._arrived = arrived
        self._ref: _Ref | None = None

    def start(self) -> None:
        """Begin to wait; to be called once. The first callback may come before it returns."""
        self._ref = ref = _Ref(self, _forget)
        ref.names = self._names
        with _lock:
            for name in ref.names:
                _watches[name] = (*_watches.get(name, ()), ref)
            stand_first()
            # Under the lock, so that a close() right after finds everything to undo.
            for name in ref.names:
                _quietly(_watch_loaded, name)

    def close(self) -> None:
        """Wait no more. Idempotent; a callback that is running is not waited for."""
        ref, self._ref = self._ref, None
        if ref is not None:
            _forget(ref)


class _Ref(weakref.ref["Watch"]):
    """To a watch; it knows the names for when that is gone.

    Attributes:
        names: empty if an interrupt came before they were set.
    """

    names: tuple[str, ...] = ()


def _forget(gone: _Ref) -> None:
    with _lock:
        for name in gone.names:
            kept = tuple(ref for ref in _watches.get(name, ()) if ref is not gone)
            if kept:
                _watches[name] = kept
                continue
            _watches.pop(name, None)
            for loader in _delayed.pop(name, ()):
                _restore_loader(loader)
            for trapped in list(_trapped.values()):
                spec = trapped()
                if spec is not None and spec.name == name:
                    _release(spec)
        stand_first()


# --- the finder -------------------------------------------------------------------------------


class _Finder:
    """Takes note of the specs that are awaited; finds nothing that others don't find."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if target is not None or name not in _watches:  # a target: it is reloaded
            return None
        finders = itertools.dropwhile(lambda each: each is not self, list(sys.meta_path))
        for finder in itertools.islice(finders, 1, None):
            find = getattr(finder, "find_spec", None)
            if find is None:  # 3.11 asks such a one in another way
                return None
            spec: ModuleSpec | None = find(name, path, target)
            if spec is not None:
                _quietly(_trap, spec)
                if name not in _watches:  # closed just now
                    _quietly(_release, spec)
                return spec
        return None


FINDER = _Finder()
"""The one that stands in ``sys.meta_path`` while anything is awaited."""


def stand_first() -> None:
    """Put the finder before all others while anything is awaited, and take it out otherwise.

    First, so that what any other finder finds passes through it. Programs put finders there,
    too; so whoever watches for long calls this now and then.
    """
    with _lock:
        finders: list[Any] | None = sys.meta_path
        if finders is None:
            return  # the interpreter is shutting down
        if _watches and finders and finders[0] is FINDER:
            return
        while any(each is FINDER for each in finders):
            finders.remove(FINDER)
        if _watches:
            finders.insert(0, FINDER)


# --- the trap in a spec -----------------------------------------------------------------------

_classes: dict[type, type] = {}


def _trapping(base: type) -> type:
    """A subclass of a spec's class that looks the same and notices when execution ends."""
    if base not in _classes:
        content = {
            "__slots__": (),
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "_initializing": property(_is_initializing, _set_initializing),
        }
        _classes[base] = type(base)(base.__name__, (base,), content)
    return _classes[base]


def _is_initializing(spec: Any) -> bool:
    # While the callbacks run, other threads have to go on waiting. The spec's own dictionary
    # says already that it is over, for those callbacks. It is asked first: by the time that it
    # says so, the spec is in the set.
    return vars(spec).get("_initializing", False) or id(spec) in _ending


def _set_initializing(spec: Any, value: bool) -> None:  # noqa: FBT001 - a property's setter
    key = id(spec)
    if value or key not in _trapped:  # not: a copy that somebody made
        vars(spec)["_initializing"] = value
        return
    _ending.add(key)
    try:
        vars(spec)["_initializing"] = value
        _quietly(_execution_ended, spec)
    finally:
        _quietly(_release, spec)
        _ending.discard(key)


def _trap(spec: Any) -> None:
    key, base = id(spec), type(spec)
    if key not in _trapped:
        _trapped[key] = weakref.ref(spec, lambda _: _trapped.pop(key, None))
        try:
            spec.__class__ = _trapping(base)
        except BaseException:
            _trapped.pop(key, None)
            raise


def _release(spec: Any) -> None:
    if _trapped.pop(id(spec), None) is not None:
        spec.__class__ = type(spec).__base__


def _execution_ended(spec: Any) -> None:
    module = sys.modules.get(spec.name)
    if module is None:
        return  # it failed; the next attempt finds a new spec
    if issubclass(type(module), _LAZY_MODULE):
        _delay(spec, module)
    else:
        _announce(spec.name)


def _watch_loaded(name: str) -> None:
    """Watch a module that is there already, if it is not complete."""
    module = sys.modules.get(name)
    if not issubclass(type(module), ModuleType):
        return
    # Read without running a module's own __getattr__ or a lazy module's load.
    spec = vars(ModuleType)["__dict__"].__get__(module).get("__spec__")
    if issubclass(type(module), _LAZY_MODULE):
        _delay(spec, module)
    elif getattr(spec, "__dict__", {}).get("_initializing") is True:
        _trap(spec)
        if vars(spec).get("_initializing") is not True and id(spec) not in _ending:
            _release(spec)  # it ended just now; whoever watches looks once more


# --- lazy modules -----------------------------------------------------------------------------


def _delay(spec: Any, module: Any) -> None:
    """Wait for the moment when a lazy module is executed: ``spec.loader`` does it then."""
    loader = spec.loader
    if isinstance(loader, type) or "exec_module" in vars(loader):
        return  # a class serves many modules
    execute, name = loader.exec_module, spec.name

    def exec_module(given: Any) -> None:
        if given is not module:
            execute(given)
            return
        _quietly(_restore_loader, loader)
        try:
            execute(given)
        except BaseException as error:
            # Tracebacks look as they would without this frame; a bare raise adds no entry.
            if error.__traceback__ is not None:
                error.__traceback__ = error.__traceback__.tb_next
            raise
        _quietly(_announce, name)

    _delayed[name] = (*_delayed.get(name, ()), loader)
    loader.exec_module = exec_module


def _restore_loader(loader: Any) -> None:
    vars(loader).pop("exec_module", None)


# --- callbacks --------------------------------------------------------------------------------


def _announce(name: str) -> None:
    """Have the callbacks called, and wait for them; called by the thread that imports."""
    watches = [watch for ref in _watches.get(name, ()) if (watch := ref()) is not None]
    if not watches:
        return
    done = threading.Event()

    def call() -> None:
        try:
            for watch in watches:
                try:
                    watch._arrived(name)
                except Exception:
                    log.exception("%r failed when %r was imported", watch._arrived, name)
        finally:
            done.set()

    if threading.current_thread() is _worker.thread:
        call()  # a callback imports; nobody else could call this one
        return
    _worker.after(0, call)
    # Without a thread (the interpreter is shutting down) it would be a wait for nothing.
    if _worker.thread is not None or done.is_set():
        done.wait(HOLD_SECONDS)


def _quietly(work: Callable[[Any], None], argument: Any) -> None:
    """Let no error of ours into an import; it is logged by a thread that imports nothing."""
    try:
        work(argument)
    except Exception as exc:  # noqa: BLE001 - whatever it is, the program imports a module
        _worker.after(0, partial(log.error, "%r failed on %r", work, argument, exc_info=exc))


# --- fork -------------------------------------------------------------------------------------


def _after_fork_in_child() -> None:
    _lock.release()
    # Imports of other threads do not go on here: nobody would ever say that they are over.
    _ending.clear()


forking.register(
    Layer.IMPORTS, before=_lock.acquire, in_parent=_lock.release, in_child=_after_fork_in_child
)
