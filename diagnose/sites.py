"""The place where a function is probed: one per function, shared by all its probes.

A :class:`CodeSite` swaps the code of a Python function. A :class:`ReferenceSite` stands
for a callable that has no code to swap (a C builtin, an ``lru_cache`` wrapper): it puts a
stand-in wherever modules and classes refer to it.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Protocol

from diagnose import internals, trampoline
from diagnose.errors import ProbeError, TargetKindError
from diagnose.handlers import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from diagnose.internals import Fire, Watch
    from diagnose.targets import Target
    from diagnose.trampoline import Hook

__all__ = ["Armed", "CodeSite", "ReferenceSite", "Site", "site_of"]

log = logging.getLogger(__name__)


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

    def update(self, armed: Sequence[Armed]) -> None:
        """Make exactly these hooks be called; none of them: put everything back.

        Raises:
            ProbeError: it can't be done; then nothing has changed.
        """


_sites: dict[int, Site] = {}


def site_of(target: Target) -> Site:
    """The site of a target's function, which may have been reached on another path.

    Raises:
        TargetKindError: the target can't be called.
    """
    subject: Any = target.found if target.function is None else target.function
    while isinstance(subject, _Standin):
        subject = object.__getattribute__(subject, "_found")
    site = _sites.get(id(subject))
    if site is not None:
        return site
    if target.function is not None:
        return CodeSite(target.function)
    return ReferenceSite(target, subject)


def _select(armed: Sequence[Armed], event: str) -> tuple[Hook, ...]:
    return tuple(one.hook for one in armed if one.event == event)


def _fan_out(hooks: tuple[Hook, ...]) -> Fire:
    handlers = tuple(hook.handler for hook in hooks)
    if len(handlers) == 1:
        return handlers[0]

    def fire(locals_: Mapping[str, Any]) -> None:
        for handler in handlers:
            handler(locals_)

    return fire


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        return None


class CodeSite:
    """Probes a Python function by swapping its code."""

    coverage = "code"

    def __init__(self, function: FunctionType) -> None:
        self._function = function
        self._base = function.__code__
        self._plain: FunctionType | None = None
        self._watch: Watch | None = None
        self._ours: CodeType | None = None
        self.warnings: tuple[str, ...] = ()

    def scope(self, event: str, namespace: Mapping[str, object]) -> Scope:
        """See :class:`Site`."""
        code = self._function.__code__
        if code is self._ours:
            code = self._base
        if event == "end":
            names = (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
        else:
            names = tuple(trampoline.Parameters.of(code))
        wraps = hasattr(self._function, "__wrapped__") and event != "end"
        return Scope(
            event=event,
            names=names,
            globals_=self._function.__globals__,
            namespace=namespace,
            signature=_signature(self._function) if wraps else None,
            keywords=trampoline.Parameters.of(code).double_star,
        )

    def update(self, armed: Sequence[Armed]) -> None:
        """See :class:`Site`."""
        if not armed:
            self._restore()
            return
        if self._ours is None or self._function.__code__ is not self._ours:
            # New here, or somebody else put code over ours: theirs is the base now.
            self._rebase()
        ends = _select(armed, "end")
        original, on_error = self._original(ends)
        code = trampoline.write(
            self._base,
            original,
            before=_select(armed, "call"),
            after=_select(armed, "return"),
            on_error=on_error,
        )
        if self._watch is not None:
            if ends:
                self._watch.arm(_fan_out(ends))
            else:
                self._watch.disarm()
        _sites[id(self._function)] = self
        self._function.__code__ = self._ours = code

    def _rebase(self) -> None:
        if self._watch is not None:
            self._watch.disarm()
        self._base = self._function.__code__
        self._plain = self._watch = None

    def _original(
        self, ends: tuple[Hook, ...]
    ) -> tuple[FunctionType, Callable[[BaseException], object] | None]:
        if not ends:
            if self._plain is None:
                self._plain = trampoline.copy_function(self._function, self._base.replace())
            self.warnings = ()
            return self._plain, None
        if self._watch is None:
            self._watch = internals.watch(self._function, self._base)
        watch = self._watch
        self.warnings = () if watch.coverage is None else (watch.coverage,)
        if watch.sees_errors:
            return watch.original, None
        watched, fire = watch.original.__code__, _fan_out(ends)

        def on_error(error: BaseException) -> None:
            # The frame that raised last is the first of the traceback. It is over, but
            # the traceback keeps its locals. A StopIteration that leaves a generator or
            # coroutine is made a RuntimeError outside of the frame: its cause was inside.
            found: BaseException | None = error
            if type(error) is RuntimeError and error.__traceback__ is None:
                found = error.__cause__
            trace = None if found is None else found.__traceback__
            if trace is not None and trace.tb_frame.f_code is watched:
                fire(trace.tb_frame.f_locals)

        return watch.original, on_error

    def _restore(self) -> None:
        if self._watch is not None:
            self._watch.disarm()
        if self._ours is not None:
            if self._function.__code__ is self._ours:
                self._function.__code__ = self._base
            else:
                log.warning(
                    "the code of %r was replaced by somebody else while it was probed; it is "
                    "left as it is, and calls may go through a trampoline that does nothing",
                    self._function,
                )
        self._ours = None
        if _sites.get(id(self._function)) is self:
            del _sites[id(self._function)]


class _Standin:
    """What references point at while a callable without code is probed.

    It looks like what it stands for: attributes, ``isinstance``, equality and pickling
    are those of the original. Each one is of a subclass with its own ``__call__``.
    """

    __slots__ = ("_found",)

    def __init__(self, found: Any) -> None:
        object.__setattr__(self, "_found", found)

    def __getattribute__(self, name: str) -> Any:
        if name == "__wrapped__":
            return object.__getattribute__(self, "_found")
        return getattr(object.__getattribute__(self, "_found"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_found"), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(object.__getattribute__(self, "_found"), name)

    def __eq__(self, other: object) -> bool:
        found = object.__getattribute__(self, "_found")
        return other is self or bool(found == other)

    def __hash__(self) -> int:
        return hash(object.__getattribute__(self, "_found"))

    def __repr__(self) -> str:
        return repr(object.__getattribute__(self, "_found"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__getattribute__(self, "_found").__reduce_ex__(protocol)


class _BindingStandin(_Standin):
    """For what binds to an instance as a method does (``lru_cache`` wrappers)."""

    __slots__ = ()

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        found = object.__getattribute__(self, "_found")
        bound = type(found).__get__(found, instance, owner)
        if bound is found:
            return self
        if type(bound) is MethodType and bound.__func__ is found:
            return MethodType(self, bound.__self__)  # type: ignore[arg-type]
        return bound


class ReferenceSite:
    """Probes a callable without Python code by replacing references to it."""

    coverage = "reference"
    warnings: tuple[str, ...] = (
        (
            "it has no Python code: references in loaded modules and classes are covered, "
            "those kept elsewhere (containers, instances, C code) are not"
        ),
    )

    def __init__(self, target: Target, found: Any) -> None:
        if not callable(found):
            message = (
                f"{target.path!r} is {found!r:.100}, which can't be called as it stands; name "
                "the function behind it"
            )
            raise TargetKindError(message)
        self._target = target
        self._found = found
        binds = hasattr(type(found), "__get__")
        base = _BindingStandin if binds else _Standin

        def call(_self: object, /, *args: Any, **kwargs: Any) -> Any:
            return found(*args, **kwargs)

        self._call = call
        self._plain = call.__code__.replace(co_name=getattr(found, "__name__", "call"))
        self._standin = type("Standin", (base,), {"__slots__": (), "__call__": call})(found)
        self._placed = False

    def scope(self, event: str, namespace: Mapping[str, object]) -> Scope:
        """See :class:`Site`; there is no ``end`` in what has no frame."""
        if event == "end":
            message = (
                f"{self._target.path!r} has no Python code, so there is no event 'end' in it; "
                "use 'return'"
            )
            raise ProbeError(message, code="end-unavailable")
        return Scope(
            event=event,
            names=("args", "kwargs"),
            globals_={},
            namespace=namespace,
            signature=_signature(self._found),
        )

    def update(self, armed: Sequence[Armed]) -> None:
        """See :class:`Site`."""
        if not armed:
            self._replace(self._standin, self._found)
            self._placed = False
            _sites.pop(id(self._found), None)
            self._call.__code__ = self._plain
            return
        self._call.__code__ = trampoline.write(
            self._plain,
            self._found,
            before=_select(armed, "call"),
            after=_select(armed, "return"),
            parameters=trampoline.Parameters(
                positional_only=("d·self",), star="args", double_star="kwargs"
            ),
        )
        if not self._placed:
            owner: Any = self._target.owner
            try:
                setattr(owner, self._target.name, self._standin)
            except Exception as error:
                message = f"{self._target.path!r} can't be replaced on {owner!r}: {error}"
                raise TargetKindError(message, code="target-immutable") from error
            self._placed = True
            _sites[id(self._found)] = self
            self._replace(self._found, self._standin)

    def _replace(self, old: object, new: object) -> None:
        """Replace every reference that a loaded module or a class in one holds."""
        owners: list[Any] = [self._target.owner]
        seen: set[int] = set()
        for name, module in list(sys.modules.items()):
            # What this library itself uses stays: it must not probe its own work.
            if isinstance(module, type(sys)) and name.partition(".")[0] != "diagnose":
                owners.append(module)
                inside = list(vars(module).values())
                owners += [value for value in inside if issubclass(type(value), type)]
        for owner in owners:
            if id(owner) in seen:
                continue
            seen.add(id(owner))
            for name, value in list(getattr(owner, "__dict__", {}).items()):
                if value is old:
                    # Some refuse, as built-in types do, and some have a __setattr__ of
                    # their own, which may raise anything.
                    with contextlib.suppress(Exception):
                        setattr(owner, name, new)
