"""Where breakpoints are put: on a function for all its references, or on one attribute alone."""

from __future__ import annotations

import inspect
import logging
import sys
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from diagnose import expressions, targets
from diagnose.errors import TargetKindError, TargetNotFoundError
from diagnose.targets import Target, TargetKind

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Place", "place_of"]

log = logging.getLogger(__name__)


class Place:
    """A function that a breakpoint's hook goes on.

    Attributes:
        target: the function.
        text: what it is called in messages.
        undo: puts back what was replaced to have it.
    """

    def __init__(self, target: Target, text: str, undo: Callable[[], None]) -> None:
        self.target = target
        self.text = text
        self.undo = undo

    @property
    def signature(self) -> inspect.Signature | None:
        """That of the function, if it has one that can be read."""
        subject: Any = self.target.function or self.target.found
        try:
            return inspect.signature(subject, follow_wrapped=False)
        except (TypeError, ValueError):
            return None


def describe(target: object) -> str:
    """A target in words."""
    if isinstance(target, tuple):
        owner, name = target
        if isinstance(owner, (type, ModuleType)):
            return f"{owner.__name__}.{name}"
        return f"{type(owner).__name__} object's {name}"
    return str(target)


def check(target: object) -> None:
    """Say what is wrong with something that can be no target.

    Raises:
        TargetKindError: it is neither a path nor a pair.
    """
    if isinstance(target, str):
        return
    if isinstance(target, tuple) and len(target) == 2 and isinstance(target[1], str):  # noqa: PLR2004
        return
    message = (
        f"target {target!r:.100} is neither a path such as 'shop.cart.Cart.checkout' (every "
        "reference to the function) nor an object and an attribute's name, such as "
        "(Cart, 'checkout') (that attribute only)"
    )
    raise TargetKindError(message)


def place_of(target: str | tuple[object, str]) -> Place:
    """Find, or make, the function that a breakpoint goes on.

    Args:
        target: a dotted path; its module is imported if need be. Or an object and the name of an
            attribute: there, a copy of the function takes its place until ``undo`` is called.

    Raises:
        DiagnoseError: there is no such function.
    """
    if isinstance(target, str):
        return Place(targets.resolve(target, import_modules=True), target, lambda: None)
    owner, name = target
    try:
        raw = inspect.getattr_static(owner, name)
    except AttributeError:
        near = expressions.suggest(name, [each for each in dir(owner) if each[:1] != "_"])
        message = f"{owner!r:.100} has no attribute {name!r}{near}"
        raise TargetNotFoundError(message) from None
    function, replacement = _copied(owner, name, raw)
    undo = _put(owner, name, replacement)
    text = describe(target)
    found = Target(text, owner, name, TargetKind.FUNCTION, function, function)
    return Place(found, text, undo)


def _copied(owner: object, name: str, raw: Any) -> tuple[FunctionType, object]:
    """A copy of the function, and what has to be put on the owner so that it is called."""
    is_instance = not isinstance(owner, (type, ModuleType))
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


def _put(owner: Any, name: str, replacement: object) -> Callable[[], None]:
    """Put something on an attribute; returns what puts back what was there."""
    before = getattr(owner, "__dict__", {}).get(name, _ABSENT)
    try:
        setattr(owner, name, replacement)
    except Exception as error:
        message = (
            f"{describe((owner, name))} can't be replaced: {error}; name the function by its path, "
            "such as 'shop.cart.Cart.checkout'"
        )
        raise TargetKindError(message, code="target-immutable") from error

    def undo() -> None:
        if owner.__dict__.get(name, _ABSENT) is not replacement:
            log.warning(
                "%s was replaced by somebody else while a breakpoint was on it; it is left as it is",
                describe((owner, name)),
            )
        elif before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    return undo
