"""What references point at while a callable without Python code is probed.

A stand-in is of a class that is made for it. This has each special method that the type of the
callable has and no other, and is equal to that type, for those who keep types in dicts. Frames of
its methods are hidden (see :mod:`diagnose.bytecode.weaving`): nobody finds one in between.

What can't be had: C code that looks into an object of its own kind (of subclasses of ``str``,
``int``, ``dict`` …) does not take a stand-in for one, and ``type(x) is T`` tells it.
"""

from __future__ import annotations

import copy
import functools
import operator
import sys
import weakref
from types import (
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    WrapperDescriptorType,
)
from typing import TYPE_CHECKING, Any

from diagnose.bytecode import weaving
from diagnose.originals import StandIn
from diagnose.targets.lookup import read_class_dict, read_mro

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FRAMES_HIDE", "keep_for_weakrefs", "make", "plain_call"]


# --- does this interpreter hide frames without RESUME? ---------------------------------


def _hides_frames() -> bool:
    """Try on a small function whether frames without ``RESUME`` stay unseen."""
    seen: list[object] = []

    def look(*, flag: bool) -> object:
        seen.append(sys._getframe(1).f_code)
        if flag:
            raise LookupError
        return None

    def call(_self: object, /, *args: Any, **kwargs: Any) -> object:
        return look(*args, **kwargs)

    hook = weaving.Hook(lambda _result: None, ("result",))
    try:
        call.__code__ = weaving.weave(call.__code__, after=(hook,), hidden=True)
        here = sys._getframe().f_code
        call(None, flag=False)
        try:
            call(None, flag=True)
        except LookupError as error:
            trace: Any = error.__traceback__
            depth = 0
            while trace is not None:
                depth, trace = depth + 1, trace.tb_next
            if depth != 2:  # noqa: PLR2004  (this function and `look`: no third)
                return False
        return seen == [here, here]
    except Exception:  # noqa: BLE001  (whatever it is: use what surely works)
        return False


FRAMES_HIDE = sys.implementation.name == "cpython" and _hides_frames()
"""Whether the frames of stand-ins are invisible on this interpreter."""


@functools.cache
def _hidden(code: CodeType) -> CodeType:
    return weaving.weave(code, hidden=True) if FRAMES_HIDE else code


def _hide(function: Any) -> Any:
    """The same function, whose frame nobody sees."""
    code = _hidden(function.__code__)
    return FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )


# --- the classes --------------------------------------------------------------------------


class _Kind(type):
    """Of the classes of stand-ins: each is equal to the type of what it stands for.

    So ``copy``, ``pickle`` and whoever else keeps types in a dict find the right one.
    """

    @_hide
    def __eq__(cls, other: object) -> Any:
        return _meant(cls) == (_meant(other) if type(other) is _Kind else other)

    @_hide
    def __ne__(cls, other: object) -> Any:
        return _meant(cls) != (_meant(other) if type(other) is _Kind else other)

    @_hide
    def __hash__(cls) -> int:
        return hash(_meant(cls))

    @_hide
    def __instancecheck__(cls, value: object) -> Any:
        return isinstance(value, _meant(cls))

    @_hide
    def __subclasscheck__(cls, other: Any) -> Any:
        return issubclass(_meant(other) if type(other) is _Kind else other, _meant(cls))

    @_hide
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return _meant(cls)(*args, **kwargs)

    @_hide
    def __getattr__(cls, name: str) -> Any:
        return getattr(_meant(cls), name)


class _Standin(StandIn, metaclass=_Kind):
    """Base of all classes of stand-ins."""

    __slots__ = ()


_read: Any = StandIn.__dict__["_found"].__get__
_set_found: Any = StandIn.__dict__["_found"].__set__


def _meant(kind: Any) -> Any:
    """The type that the class of a stand-in is for."""
    return read_class_dict(kind).get("_meant", object)


_meant = _hide(_meant)


def _bare(value: Any) -> Any:
    """What a stand-in stands for; any other value as it is."""
    return _read(value) if type(type(value)) is _Kind else value


_bare = _hide(_bare)


def make(found: Any, call: FunctionType) -> Any:
    """Make the stand-in of a callable.

    Args:
        found: the callable.
        call: its class's ``__call__``, of which :func:`plain_call` gives the code.
    """
    kind = type(found)
    names: dict[str, Any] = {
        "__slots__": ("__weakref__",) if _read_type("__weakrefoffset__", kind) else (),
        "__module__": _read_type("__module__", kind),
        "__qualname__": _read_type("__qualname__", kind),
        "__doc__": _read_type("__doc__", kind),
        "_meant": kind,
        "__call__": call,
        **_attribute_methods(kind),
    }
    for cls in reversed(read_mro(kind)):
        for name, raw in read_class_dict(cls).items():
            if name.startswith("__") and name.endswith("__") and name not in _NOT_FORWARDED:
                _forward(names, kind, name, raw)
    for name, operate in _OPERATORS.items():
        own, reflected = f"__{name}__" in names, f"__r{name}__" in names
        if own or reflected:
            names[f"__{name}__"] = _operation(operate, is_own=own)
            names[f"__r{name}__"] = _reflected(operate, is_own=reflected)
    # So that `inspect.signature` finds the parameters.
    call.__wrapped__ = kind.__call__  # type: ignore[attr-defined]
    standin = object.__new__(type.__call__(_Kind, _read_type("__name__", kind), (_Standin,), names))
    _set_found(standin, found)
    return standin


def plain_call(name: str) -> tuple[FunctionType, CodeType]:
    """A function for :func:`make` that calls what it stands for, and code to weave hooks into.

    Args:
        name: of the callable.
    """

    def call(_self: object, /, *args: Any, **kwargs: Any) -> Any:
        result = _read(_self)(*args, **kwargs)
        return _self if result is _read(_self) else result

    code = call.__code__.replace(co_name=name)
    call.__code__ = _hidden(code)
    return call, code  # type: ignore[return-value]


_kept: list[object] = []


def keep_for_weakrefs(standin: object) -> None:
    """Keep what weak references point at, once nobody else does.

    What it stands for lives on, and the holder of a weak reference must not be told otherwise.
    """
    if weakref.getweakrefcount(standin):
        _kept.append(standin)


def _read_type(name: str, kind: type) -> Any:
    """What `type` itself says of a class, whatever its metaclass does."""
    return type.__dict__[name].__get__(kind)


_NOT_FORWARDED = frozenset(
    f"__{name}__"
    for name in """
    abstractmethods annotate annotations annotations_cache basicsize buffer call class
    class_getitem classcell del delattr dict doc firstlineno getattr getattribute init
    init_subclass module new orig_bases parameters qualname release_buffer setattr slots
    static_attributes subclasshook type_params weakref
    """.split()  # noqa: SIM905
)
"""What belongs to a class itself, or is served otherwise."""

_SPECIAL = frozenset(
    f"__{name}__"
    for name in """
    abs aenter aexit aiter anext await bool bytes ceil complex contains copy deepcopy delete
    delitem dir enter eq exit float floor format fspath ge get getitem getnewargs getnewargs_ex
    getstate gt hash iadd iand ifloordiv ilshift imatmul imod imul index instancecheck int invert
    ior ipow irshift isub iter itruediv ixor le len length_hint lt missing ne neg next pos reduce
    reduce_ex replace repr reversed round set set_name setitem setstate sizeof str subclasscheck
    trunc
    add and divmod floordiv lshift matmul mod mul or pow rshift sub truediv xor
    radd rand rdivmod rfloordiv rlshift rmatmul rmod rmul ror rpow rrshift rsub rtruediv rxor
    """.split()  # noqa: SIM905
)
"""What Python itself calls (Data model, "Special method names"), by whatever descriptor it is."""

_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "and": operator.and_,
    "divmod": divmod,
    "floordiv": operator.floordiv,
    "lshift": operator.lshift,
    "matmul": operator.matmul,
    "mod": operator.mod,
    "mul": operator.mul,
    "or": operator.or_,
    "pow": pow,
    "rshift": operator.rshift,
    "sub": operator.sub,
    "truediv": operator.truediv,
    "xor": operator.xor,
}

_COMPARISONS: dict[str, Callable[..., Any]] = {
    f"__{each.__name__}__": each
    for each in (operator.eq, operator.ge, operator.gt, operator.le, operator.lt, operator.ne)
}


def _forward(names: dict[str, Any], kind: type, name: str, raw: Any) -> None:
    """Enter a special method into a class that is being made."""
    if raw is None:  # which says that there is none
        names[name] = None
    elif issubclass(type(raw), staticmethod | classmethod):
        names[name] = staticmethod(getattr(kind, name))
    elif name == "__get__":
        names[name] = _hide(_get)
    elif name in _COMPARISONS:
        names[name] = _operation(_COMPARISONS[name], is_own=True)
    elif type(raw) in _BOUND_BY_CALLING:
        names[name] = _method(name, kind)
    elif callable(raw) or name in _SPECIAL:
        names[name] = _method(name)
    elif not hasattr(type(raw), "__get__"):
        names[name] = raw


_BOUND_BY_CALLING = frozenset({FunctionType, WrapperDescriptorType, MethodDescriptorType})


def _method(name: str, kind: Any = None) -> Any:
    """Serves a special method by what the type has under its name, or else the callable."""
    if kind is not None:

        def special_of_type(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            found = _read(self)
            result = getattr(kind, name)(found, *map(_bare, args), **kwargs)
            return self if result is found else result

        return _hide(special_of_type)

    def special(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        found = _read(self)
        result = getattr(found, name)(*map(_bare, args), **kwargs)
        return self if result is found else result

    return _hide(special)


def _operation(operate: Callable[..., Any], *, is_own: bool) -> Any:
    """Serves an operator: with the bare operands the interpreter does the whole of it.

    So types that know only their own kind are content.

    Args:
        operate: what does it.
        is_own: whether the type has the method. If not, it may have the other one of the two,
            and slots that only C code has: those are tried here first, and then by the caller.
    """

    def special(self: Any, other: Any, /, *rest: Any) -> Any:
        found = _read(self)
        try:
            result = operate(found, _bare(other), *rest)
        except TypeError:
            if is_own:
                raise
            return NotImplemented
        return self if result is found else result

    return _hide(special)


def _reflected(operate: Callable[..., Any], *, is_own: bool) -> Any:
    def special(self: Any, other: Any, /, *rest: Any) -> Any:
        found = _read(self)
        try:
            result = operate(_bare(other), found, *rest)
        except TypeError:
            if is_own:
                raise
            return NotImplemented
        return self if result is found else result

    return _hide(special)


def _get(self: Any, instance: object, owner: type | None = None) -> Any:
    found = _read(self)
    bound = type(found).__get__(found, instance, owner)
    if bound is found:
        return self
    if type(bound) is MethodType and bound.__func__ is found:
        return MethodType(self, bound.__self__)
    return bound


_copy, _deepcopy = copy.copy, copy.deepcopy
_COPIED_BY_NAME = frozenset(
    {MethodDescriptorType, WrapperDescriptorType, MethodWrapperType, ClassMethodDescriptorType}
)


def _attribute_methods(kind: type) -> dict[str, Any]:
    """The methods that have to do with attributes, and the buffer protocol."""

    # Where a copy is the very same object, it is the stand-in.
    def __copy__(self: Any, /) -> Any:  # noqa: N807
        found = _read(self)
        made = _copy(found)
        return self if made is found else made

    def __deepcopy__(self: Any, memo: Any, /) -> Any:  # noqa: N807
        found = _read(self)
        made = _deepcopy(found, memo)
        return self if made is found else made

    deepcopy = _hide(__deepcopy__)

    def __getattribute__(self: Any, name: str, /) -> Any:  # noqa: N807
        return getattr(_read(self), name)

    def __getattribute_or_copy__(self: Any, name: str, /) -> Any:  # noqa: N807
        if name == "__deepcopy__":
            return MethodType(deepcopy, self)
        return getattr(_read(self), name)

    def __setattr__(self: Any, name: str, value: Any, /) -> None:  # noqa: N807
        setattr(_read(self), name, value)

    def __delattr__(self: Any, name: str, /) -> None:  # noqa: N807
        delattr(_read(self), name)

    def __buffer__(self: Any, _flags: int, /) -> memoryview:  # noqa: N807
        return memoryview(_read(self))

    copies = kind in _COPIED_BY_NAME or any(
        "__deepcopy__" in read_class_dict(cls) for cls in read_mro(kind)
    )
    methods = {
        "__getattribute__": __getattribute_or_copy__ if copies else __getattribute__,
        "__setattr__": __setattr__,
        "__delattr__": __delattr__,
    }
    if kind in _COPIED_BY_NAME:
        methods["__copy__"] = __copy__
    if any("__buffer__" in read_class_dict(cls) for cls in read_mro(kind)):
        methods["__buffer__"] = __buffer__
    return {name: _hide(method) for name, method in methods.items()}
