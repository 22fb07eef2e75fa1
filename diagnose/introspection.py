"""Reads the program's objects without running their code.

A metaclass can have a ``__mro__`` of its own, an instance a ``__class__``, an exception class an
``args``. So all of these are read with the descriptors of the builtin types.
"""

from __future__ import annotations

from types import GetSetDescriptorType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MISSING",
    "entry_of",
    "is_a",
    "namespace_of",
    "read_args",
    "read_class_dict",
    "read_flags",
    "read_mro",
    "read_name",
    "read_qualname",
    "read_traceback",
]

MISSING = object()
"""Stands for what is not there."""

_TYPE: Any = type.__dict__
_get_name = _TYPE["__name__"].__get__
_get_mro = _TYPE["__mro__"].__get__
_get_class_dict = _TYPE["__dict__"].__get__

# Without a Python call around them: some are used where the stack has no room left.
read_qualname = _TYPE["__qualname__"].__get__
read_flags = _TYPE["__flags__"].__get__
read_traceback: Any = BaseException.__dict__["__traceback__"].__get__
read_args: Any = BaseException.__dict__["args"].__get__


def read_name(cls: object) -> str:
    """The ``__name__`` of a class."""
    return _get_name(cls)  # type: ignore[no-any-return]


def read_mro(cls: object) -> tuple[type, ...]:
    """A class and those that it inherits from."""
    # A type of an extension module that was never made ready has None.
    return _get_mro(cls) or ()


def read_class_dict(cls: object) -> Mapping[str, object]:
    """What stands in a class itself."""
    return _get_class_dict(cls) or {}


def is_a(value: object, kind: type) -> bool:
    """Like isinstance, which would also ask the value's ``__class__``."""
    return issubclass(type(value), kind)


def namespace_of(holder: object) -> Mapping[str, object]:
    """The dictionary of a module, class or instance, read without running its code."""
    kind = type(holder)
    if issubclass(kind, type):
        return read_class_dict(holder)
    for cls in read_mro(kind):
        descriptor: Any = entry_of(read_class_dict(cls), "__dict__")
        if descriptor is MISSING:
            continue
        if type(descriptor) not in (GetSetDescriptorType, MemberDescriptorType):
            continue  # a property of that name: its code is not run
        try:
            found = descriptor.__get__(holder, kind)
        except AttributeError:  # mypyc's classes have the descriptor, but no dictionary
            break
        if not is_a(found, dict):
            break
        # A subclass may have methods of its own; its entries are read without them.
        return cast("dict[str, object]", found) if type(found) is dict else dict(dict.items(found))
    return {}


def entry_of(namespace: Mapping[str, object], name: str) -> object:
    """What a name stands for there, or MISSING."""
    return namespace.get(name, MISSING)
