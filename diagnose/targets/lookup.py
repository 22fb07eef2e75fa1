"""Finds attributes, and what is inside of them, without running the program's code."""

from __future__ import annotations

from types import (
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any, NamedTuple

from diagnose.introspection import (
    MISSING,
    entry_of,
    is_a,
    namespace_of,
    read_class_dict,
    read_mro,
    read_name,
    read_qualname,
)
from diagnose.originals import seen_through

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Step", "class_name", "look_up", "read_wrapped", "unwrapped"]

_read_static_function = staticmethod.__dict__["__func__"].__get__
_read_class_function = classmethod.__dict__["__func__"].__get__


class Step(NamedTuple):
    """One attribute: the object that holds it, its name there, and what it is."""

    owner: object
    name: str
    value: object


def _in_classes(classes: Iterable[type], name: str) -> Step | None:
    for cls in classes:
        value = entry_of(read_class_dict(cls), name)
        if value is not MISSING:
            return Step(cls, name, value)
    return None


def look_up(holder: object, name: str) -> Step | None:
    """Find an attribute as Python would, but run nothing; None if there is none."""
    spellings = [name]
    if name.startswith("__") and not name.endswith("__"):
        classes = read_mro(holder if is_a(holder, type) else type(holder))
        prefixes = [read_name(cls).lstrip("_") for cls in classes]
        spellings += [f"_{prefix}{name}" for prefix in prefixes if prefix]
    steps = (_look_up_spelling(holder, spelling) for spelling in spellings)
    return next((step for step in steps if step is not None), None)


def _look_up_spelling(holder: object, name: str) -> Step | None:
    kind = type(holder)
    if issubclass(kind, type):
        return _in_classes(read_mro(holder), name) or _in_classes(read_mro(kind), name)
    classes = read_mro(kind)
    if issubclass(kind, ModuleType):
        # What every module inherits (__init__, __repr__ ...) is nothing that anyone means.
        classes = tuple(cls for cls in classes if cls is not ModuleType and cls is not object)
    on_class = _in_classes(classes, name)
    if on_class is not None:
        descriptor: Any = on_class.value
        if type(descriptor) is MemberDescriptorType:  # a slot: reading it runs no Python code
            try:
                return Step(holder, name, descriptor.__get__(holder, kind))
            except AttributeError:
                return None
        methods = read_mro(type(descriptor))
        if _in_classes(methods, "__set__") or _in_classes(methods, "__delete__"):
            return on_class  # a data descriptor goes before the instance's own dictionary
    value = entry_of(namespace_of(holder), name)
    return on_class if value is MISSING else Step(holder, name, value)


def unwrapped(value: object) -> object:
    """The function inside a static, class or bound method; any other value as it is.

    On the way it looks through stand-ins: what they stand for is what the path means.
    """
    value = seen_through(value)
    if is_a(value, staticmethod):
        value = _read_static_function(value)
    elif is_a(value, classmethod):
        value = _read_class_function(value)
    elif type(value) is MethodType:
        value = value.__func__
    return seen_through(value)


def read_wrapped(value: object) -> object:
    """What a wrapper has as its ``__wrapped__``; `MISSING` if that is not to be read so."""
    kind = type(value)
    if not issubclass(kind, type) and _in_classes(read_mro(kind), "__wrapped__") is None:
        # From its own dictionary, if it has one: looking at that by its name would make it.
        try:
            return object.__getattribute__(value, "__wrapped__")
        except AttributeError:
            return MISSING
    step = look_up(value, "__wrapped__")
    if step is None:
        return MISSING
    found: Any = step.value
    if type(found) is GetSetDescriptorType:  # of an extension module: wrapt's object proxies
        try:
            return found.__get__(value, type(value))
        except Exception:  # noqa: BLE001 - a proxy that was never made ready
            return MISSING
    if step.owner is not value and not is_a(value, type):
        methods = read_mro(type(found))
        if _in_classes(methods, "__get__"):
            return MISSING  # a property, say: what it would give is only known when it runs
    return found


def class_name(cls: object) -> str:
    """A class as users write it: with its module, but for builtins."""
    module = entry_of(read_class_dict(cls), "__module__")
    name = read_qualname(cls)
    return f"{module}.{name}" if type(module) is str and module != "builtins" else name
