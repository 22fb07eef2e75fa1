"""Where breakpoints are put: on a function for all its references, or on one attribute alone."""

from __future__ import annotations

import inspect
import logging
import sys
from functools import cached_property
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from diagnose import expressions, targets
from diagnose.breakpoints.calls import shown
from diagnose.errors import TargetKindError, TargetNotFoundError
from diagnose.sites import happens_inside
from diagnose.targets import Target, TargetKind

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Place", "check", "describe", "is_function", "place_of"]

log = logging.getLogger(__name__)


class Place:
    """A function that a breakpoint's hook goes on.

    Attributes:
        target: the function.
        text: its name in messages.
    """

    def __init__(self, target: Target, text: str, replaced: _Replaced | None = None) -> None:
        self.target = target
        self.text = text
        self._replaced = replaced

    def put_on(self) -> None:
        """Put the function where it is to be called.

        Raises:
            TargetKindError: it can't be.
        """
        if self._replaced is not None:
            self._replaced.put_on()

    def undo(self) -> None:
        """Put back what was replaced; idempotent."""
        if self._replaced is not None:
            self._replaced.undo()

    def function(self, event: str) -> FunctionType | None:
        """The function that an event is in: behind decorators, the one that callers see or not."""
        return self.target.body if happens_inside(event) else self.target.function

    def signature(self, event: str) -> inspect.Signature | None:
        """That of the function, if it has one that can be read."""
        subject: Any = self.function(event) or self.target.found
        try:
            return inspect.signature(subject, follow_wrapped=False)
        except Exception:  # noqa: BLE001  (it asks objects of the program)
            return None


def is_function(target: object) -> bool:
    """Whether it is itself what is called, and no object with functions in it."""
    return inspect.isroutine(target)


def describe(target: object) -> str:
    """A target in words."""
    if is_function(target):
        return targets.path_of(target)
    if isinstance(target, tuple):
        owner, name = target
        if isinstance(owner, (type, ModuleType)):
            return f"{owner.__name__}.{name}"
        return f"{type(owner).__name__} object's {name}"
    return str(target)


def check(target: object) -> None:
    """Say what is wrong with something that can be no target.

    Raises:
        TargetKindError: it is neither a path nor a function nor a pair.
    """
    if isinstance(target, str) or is_function(target):
        return
    if isinstance(target, tuple) and len(target) == 2 and isinstance(target[1], str):  # noqa: PLR2004
        return
    message = (
        f"target {target!r:.100} is neither a path such as 'shop.cart.Cart.checkout' or the "
        "function (every reference to it) nor an object and an attribute's name, such as "
        "(Cart, 'checkout') (that attribute only)"
    )
    raise TargetKindError(message)


def place_of(target: Any) -> Place:
    """Find, or make, the function that a breakpoint goes on.

    Args:
        target: a dotted path; its module is imported if need be. Or the function. Or an object
            and the name of an attribute: there, a copy of the function takes its place from
            ``put_on`` to ``undo``.

    Raises:
        DiagnoseError: there is no such function.
    """
    if isinstance(target, str):
        return Place(targets.resolve(target, import_modules=True), target)
    if is_function(target):
        return Place(_given(target), describe(target))
    owner, name = target
    try:
        raw = inspect.getattr_static(owner, name)
    except AttributeError:
        raise TargetNotFoundError(_absent(owner, name)) from None
    function, replacement = _copied(owner, name, raw)
    text = describe(target)
    # Without what is behind a decorator: that is not called through this one alone.
    found = Target(text, owner, name, TargetKind.FUNCTION, function, function)
    return Place(found, text, _Replaced(owner, name, replacement))


def _given(function: Any) -> Target:
    owner = getattr(function, "__self__", None)
    kind = type(function)  # a wrapper may claim another
    if kind is MethodType and not isinstance(owner, type):
        message = (
            f"{function!r:.100} is a method of one object: give ({type(owner).__name__}, "
            f"{function.__name__!r}) or its function for all calls, or the object and "
            f"{function.__name__!r} for those of that object alone"
        )
        raise TargetKindError(message)
    if kind in {FunctionType, MethodType}:
        return targets.target_of(function)
    # What has no code of its own is covered by reference, and those are found by its path.
    path = targets.path_of(function)
    found = targets.find(path)
    if found is None or found.subject is not function:
        message = (
            f"{function!r:.100} is no plain function, and is not what {path!r} leads to; name it by "
            "a path that does, or give the object that has it and its name there"
        )
        raise TargetKindError(message)
    return found


def _absent(owner: Any, name: str) -> str:
    hint = expressions.suggest(name, [each for each in dir(owner) if each not in {name, "call"}])
    if hasattr(owner if isinstance(owner, ModuleType) else type(owner), "__getattr__"):
        hint = "; what its __getattr__ makes can't be stopped, name the function behind it"
    elif name == "call":  # what the parameter `event` is, if it is not given
        hint = "; give the name of one of its functions: Breakpoint(Cart, 'checkout')"
    return f"{shown(owner)} has no attribute {name!r} of its own{hint}"


def _copied(owner: object, name: str, raw: Any) -> tuple[FunctionType, object]:
    """A copy of the function, and what has to be put on the owner so that it is called."""
    is_instance = not isinstance(owner, (type, ModuleType))
    if isinstance(owner, type) and not any(name in vars(each) for each in owner.__mro__):
        is_instance = True  # of its metaclass, which has the function
    is_own = is_instance and name in getattr(owner, "__dict__", {})
    if isinstance(raw, property) and not is_instance and isinstance(raw.fget, FunctionType):
        function = _copy(raw.fget)
        return function, property(function, raw.fset, raw.fdel, raw.__doc__)
    if isinstance(raw, (staticmethod, classmethod)) and isinstance(raw.__func__, FunctionType):
        function = _copy(raw.__func__)
        if not is_instance:
            return function, type(raw)(function)
        bound = isinstance(raw, classmethod)
        return function, MethodType(function, type(owner)) if bound else function
    if isinstance(raw, FunctionType):
        function = _copy(raw)
        return function, MethodType(function, owner) if is_instance and not is_own else function
    if isinstance(raw, MethodType) and isinstance(raw.__func__, FunctionType):
        function = _copy(raw.__func__)
        return function, MethodType(function, raw.__self__)
    if isinstance(raw, cached_property) and not is_instance and isinstance(raw.func, FunctionType):
        function = _copy(raw.func)
        instead: cached_property[Any] = cached_property(function)
        instead.__set_name__(owner, name)  # type: ignore[arg-type]
        return function, instead
    found = getattr(owner, name)
    if not callable(found):
        message = (
            f"{describe((owner, name))} is {found!r:.100}, which can't be called; name a function, "
            "a method or another callable"
        )
        raise TargetKindError(message)
    if isinstance(found, type):
        message = (
            f"{describe((owner, name))} is the class {found!r}; name one of its functions, such as "
            f"({found.__name__}, '__init__')"
        )
        raise TargetKindError(message)
    is_bound = isinstance(raw, (staticmethod, classmethod)) or not hasattr(type(raw), "__get__")
    if not isinstance(owner, type):
        function = _forwarding(found, name)
        return function, function
    if is_bound:
        function = _forwarding(found, name)
        return function, staticmethod(function)
    function = _binding(raw, name)
    return function, function


def _copy(function: FunctionType) -> FunctionType:
    made = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    made.__doc__ = function.__doc__
    if sys.version_info >= (3, 14):
        made.__annotate__ = function.__annotate__
    else:
        made.__annotations__ = function.__annotations__
    made.__dict__.update(function.__dict__)
    return made


def _forwarding(found: Callable[..., Any], name: str) -> FunctionType:
    def call(*args: Any, **kwargs: Any) -> Any:
        return found(*args, **kwargs)

    return _named(call, name)


def _binding(found: Any, name: str) -> FunctionType:
    def call(self: object, /, *args: Any, **kwargs: Any) -> Any:
        return found.__get__(self, type(self))(*args, **kwargs)

    return _named(call, name)


def _named(function: Any, name: str) -> FunctionType:
    function.__name__ = function.__qualname__ = name
    return function  # type: ignore[no-any-return]


_ABSENT = object()


class _Replaced:
    """A replacement on an attribute, and the value that was there before."""

    def __init__(self, owner: Any, name: str, replacement: object) -> None:
        self._owner, self._name, self._replacement = owner, name, replacement
        self._before = self._present

    @property
    def _present(self) -> object:
        return getattr(self._owner, "__dict__", {}).get(self._name, _ABSENT)

    def put_on(self) -> None:
        """Put it there."""
        _replaced.append(self)
        try:
            setattr(self._owner, self._name, self._replacement)
        except Exception as error:
            message = (
                f"{describe((self._owner, self._name))} can't be replaced: {error}; name the "
                "function by its path, such as 'shop.cart.Cart.checkout'"
            )
            raise TargetKindError(message, code="target-immutable") from error

    def undo(self) -> None:
        """Put back what was there; idempotent."""
        if self not in _replaced:
            return
        present = self._present
        later = [each for each in _replaced if each._before is self._replacement]
        if present is self._replacement:
            if self._before is _ABSENT:
                delattr(self._owner, self._name)
            else:
                setattr(self._owner, self._name, self._before)
        elif later:
            # A breakpoint that was put on after this one, and is left after it.
            later[0]._before = self._before
        elif present is not self._before:
            log.warning(
                "%s was replaced by somebody else while a breakpoint was on it; it is left as it is",
                describe((self._owner, self._name)),
            )
        _replaced.remove(self)


_replaced: list[_Replaced] = []
"""The replacements that are put on now."""
