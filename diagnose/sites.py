"""The place where a function is probed: one per function, shared by all its probes.

A :class:`CodeSite` gives a Python function other code. A :class:`ReferenceSite` stands for a
callable that has no code (a C builtin, an ``lru_cache`` wrapper): it puts a stand-in wherever
modules and classes refer to it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from diagnose import hotspots, muffling, readers, standins, stepping
from diagnose.bytecode import lines, weaving
from diagnose.errors import ProbeError, TargetKindError
from diagnose.handlers import Scope
from diagnose.originals import marked
from diagnose.reentrancy import BUSY
from diagnose.targets.lookup import namespace_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from diagnose.bytecode.weaving import Hook
    from diagnose.targets import Target

__all__ = [
    "Armed",
    "CodeSite",
    "ReferenceSite",
    "Site",
    "happens_inside",
    "hides_frames",
    "site_of",
]


@dataclass(frozen=True, slots=True, eq=False)
class Armed:
    """A hook and the event that it is on."""

    event: str
    hook: Hook


class Site(Protocol):
    """Where hooks are put on one function.

    Attributes:
        coverage: ``"code"`` (every reference is covered) or ``"reference"``.
        warnings: what a user should know about how it is probed.
    """

    coverage: str
    warnings: tuple[str, ...]

    def scope(self, event: str, namespace: Mapping[str, object]) -> Scope:
        """What names mean for expressions on ``event`` here."""

    def update(self, armed: Sequence[Armed]) -> str | None:
        """Make exactly these hooks be called; none of them: put everything back.

        Returns:
            What an operator should know about it. It is not logged here: the caller holds a
            lock that a thread inside of a log handler may be waiting for.

        Raises:
            ProbeError: it can't be done; then nothing has changed.
        """


_sites: dict[int, Site] = {}


def site_of(target: Target, *, inside: bool) -> Site:
    """The site of a target's function, which may have been reached on another path.

    Args:
        target: where to look.
        inside: whether what happens inside the function is meant (its lines, its variables, its
            end), which behind decorators is the innermost one; or what callers see.

    Raises:
        TargetKindError: the target can't be called.
    """
    function = target.function
    if inside and target.body is not None:
        function = target.body
    subject: Any = target.subject if function is None else function
    site = _sites.get(id(subject))
    if site is not None:
        return site
    if function is not None:
        return CodeSite(function)
    return ReferenceSite(target, subject)


def _enter(subject: object, site: Site) -> None:
    _sites[id(subject)] = site
    readers.serve()
    stepping.begin()
    muffling.begin()


def _remove(subject: object) -> None:
    _sites.pop(id(subject), None)
    if not _sites:
        readers.unserve()
        stepping.end()
        muffling.end()


def happens_inside(event: str) -> bool:
    """Whether an event is one inside the function's body."""
    return event.partition(":")[0] in {"end", "line"}


def _select(armed: Sequence[Armed], event: str) -> tuple[Hook, ...]:
    return tuple(one.hook for one in armed if one.event == event)


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except Exception:  # noqa: BLE001  (it asks what decorators have put behind ``__wrapped__``)
        return None


class CodeSite:
    """Probes a Python function by giving it other code."""

    coverage = "code"
    warnings: tuple[str, ...] = ()

    def __init__(self, function: FunctionType) -> None:
        self._function = function
        self._base = function.__code__
        self._ours: CodeType | None = None
        self._coming: CodeType | None = None

    def scope(self, event: str, namespace: Mapping[str, object]) -> Scope:
        """See :class:`Site`."""
        code = self._function.__code__
        if code is self._ours:
            code = self._base
        parameters = weaving.Parameters.of(code)
        kind = event.partition(":")[0]
        is_inside = happens_inside(event)
        if kind == "line":
            lines.number(code, event)
        wraps = hasattr(self._function, "__wrapped__") and not is_inside
        try:
            names = weaving.variables(code) if is_inside else parameters.names
        except ValueError as error:
            raise _unusable(self._function, error) from error
        return Scope(
            event=kind,
            names=names,
            globals_=self._function.__globals__,
            namespace=namespace,
            signature=_signature(self._function) if wraps else None,
            keywords=parameters.double_star,
            parameters=None if is_inside else parameters,
        )

    def update(self, armed: Sequence[Armed]) -> str | None:
        """See :class:`Site`."""
        if not armed:
            return self._restore()
        self._see_interrupt()
        base = self._base
        if self._ours is None or self._function.__code__ is not self._ours:
            # New here, or somebody else put code over ours: theirs is the base now.
            base = self._function.__code__
        try:
            woven = weaving.weave(
                base,
                before=_select(armed, "call"),
                after=_select(armed, "return"),
                ends=_select(armed, "end"),
                lines=[
                    (lines.number(base, one.event), one.hook)
                    for one in armed
                    if one.event.startswith("line:")
                ],
                busy=BUSY,
                report=hotspots.reporter(base),
            )
        except (ValueError, KeyError) as error:
            if base is self._base:
                raise _unusable(self._function, error) from error
            message = (
                f"{error.args[0]}: the code of {self._function!r} was replaced while it was "
                "probed; take the instruments that name it off, or change them"
            )
            raise ProbeError(message) from error
        code = marked(woven, base)
        self._base = base
        _enter(self._function, self)
        self._coming = code  # an interrupt may come after the exchange, before all else is noted
        _exchange(self._function, code)
        self._ours = code
        return None

    def _see_interrupt(self) -> None:
        """Take note of an exchange that an interrupt kept from being noted."""
        if self._coming is not None and self._function.__code__ is self._coming:
            self._ours = self._coming

    def _restore(self) -> str | None:
        said = None
        self._see_interrupt()
        if self._ours is not None:
            if self._function.__code__ is self._ours:
                _exchange(self._function, self._base)
            elif self._function.__code__ is self._base:
                pass  # an interrupt came before the exchange, or after it was undone
            else:
                said = (
                    f"the code of {self._function!r} was replaced by somebody else while it was "
                    "probed; it is left as it is, and may go on calling handlers that do nothing"
                )
        self._ours = self._coming = None
        if _sites.get(id(self._function)) is self:
            _remove(self._function)
        return said


_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()


def _exchange(function: FunctionType, code: CodeType) -> None:
    """Give a function other code that takes the same arguments."""
    before = function.__code__
    _keep_local_events(before, code)
    if not _HAS_GIL and code.co_flags & _SUSPENDABLE and before.co_stacksize > code.co_stacksize:
        # A call that begins just now puts a frame of the size that the old code needs into a
        # generator of the size that the new one says (gh-145272). So it says the same, until
        # every thread was stopped once, which is what this look at all of them does.
        function.__code__ = code.replace(co_stacksize=before.co_stacksize)
        sys._current_exceptions()
    function.__code__ = code


if sys.version_info >= (3, 12):

    def _keep_local_events(before: CodeType, after: CodeType) -> None:
        """Let tools that watch one code object (``sys.monitoring``) watch the other one too."""
        for tool in range(6):
            if sys.monitoring.get_tool(tool) is not None:
                events = sys.monitoring.get_local_events(tool, before)
                if events != sys.monitoring.get_local_events(tool, after):
                    sys.monitoring.set_local_events(tool, after, events)

else:

    def _keep_local_events(before: CodeType, after: CodeType) -> None:
        """Do nothing: ``sys.monitoring`` is new in 3.12."""


def _unusable(function: FunctionType, error: Exception) -> ProbeError:
    return ProbeError(f"{function!r} can't be probed: {error.args[0]}")


_BIND_AS_FUNCTIONS_DO = {type(functools.lru_cache(id)), functools.partial}


class ReferenceSite:
    """Probes a callable without Python code by replacing references to it."""

    coverage = "reference"

    def __init__(self, target: Target, found: Any) -> None:
        if not callable(found):
            message = (
                f"{target.path!r} is {found!r:.100}, which can't be called as it stands; name "
                "the function behind it"
            )
            raise TargetKindError(message)
        self._target = target
        self._found = found
        self.warnings: tuple[str, ...] = (
            (
                "it has no Python code: references in loaded modules and classes are covered, "
                "those kept elsewhere (containers, instances, C code) are not"
            ),
        )
        if (
            issubclass(type(target.owner), type)
            and hasattr(type(found), "__get__")
            and type(found) not in _BIND_AS_FUNCTIONS_DO
        ):
            self.warnings += (
                (
                    f"it is a {type(found).__name__}, which binds to instances in its own way: "
                    "calls through them may not be seen; 'end' sees those of the function behind it"
                ),
            )
        self._call, self._plain = standins.plain_call(target.name)
        self._bare_call = self._call.__code__
        self._standin = standins.make(found, self._call)
        self._placed = False

    def scope(self, event: str, namespace: Mapping[str, object]) -> Scope:
        """See :class:`Site`; there is no ``end`` in what has no frame."""
        if happens_inside(event):
            message = (
                f"{self._target.path!r} has no Python code, so there is no event {event!r} in it; "
                "use 'return'"
            )
            raise ProbeError(message, code="end-unavailable")
        return Scope(
            event=event,
            names=("args", "kwargs"),
            globals_={},
            namespace=namespace,
            signature=_signature(self._found),
            has_frame=False,
        )

    def update(self, armed: Sequence[Armed]) -> str | None:
        """See :class:`Site`."""
        if not armed:
            self._replace(self._standin, self._found)
            self._placed = False
            _remove(self._found)
            self._call.__code__ = self._bare_call
            standins.keep_for_weakrefs(self._standin)
            return None
        woven = weaving.weave(
            self._plain,
            before=_select(armed, "call"),
            after=_select(armed, "return"),
            busy=BUSY,
            hidden=standins.FRAMES_HIDE,
        )
        self._call.__code__ = marked(woven, self._plain)
        if not self._placed:
            owner: Any = self._target.owner
            try:
                _assign(owner, self._target.name, self._standin)
            except Exception as error:
                message = f"{self._target.path!r} can't be replaced on {owner!r}: {error}"
                raise TargetKindError(message, code="target-immutable") from error
            self._placed = True
            _enter(self._found, self)
            self._replace(self._found, self._standin)
        return None

    def _replace(self, old: object, new: object) -> None:
        """Replace every reference that a loaded module or a class in one holds."""
        owners: list[Any] = [self._target.owner]
        seen: set[int] = set()
        for name, module in list(sys.modules.items()):
            # What this library itself uses stays: it must not probe its own work.
            if issubclass(type(module), ModuleType) and name.partition(".")[0] != "diagnose":
                owners.append(module)
                # Not vars(): of a lazy module that would load it.
                inside = list(namespace_of(module).values())
                owners += [value for value in inside if issubclass(type(value), type)]
        for owner in owners:
            if id(owner) in seen:
                continue
            seen.add(id(owner))
            for name, value in list(namespace_of(owner).items()):
                if value is old:
                    # Some refuse, as built-in types do, and some have a __setattr__ of
                    # their own, which may raise anything.
                    with contextlib.suppress(Exception):
                        _assign(owner, name, new)


def _assign(owner: Any, name: str, value: object) -> None:
    """Set an attribute; on a class without asking its metaclass, whose code is the program's."""
    if issubclass(type(owner), type):
        try:
            type.__setattr__(owner, name, value)
        except TypeError:  # of a metaclass in C, which has to be asked
            pass
        else:
            return
    setattr(owner, name, value)


def hides_frames() -> bool:
    """Whether the frames of stand-ins are invisible on this interpreter."""
    return standins.FRAMES_HIDE
