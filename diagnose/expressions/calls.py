"""What a restricted expression may call: builtins, methods, and what the application gave it."""

from __future__ import annotations

import datetime as dt
import math
import time
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    MappingProxyType,
    MethodDescriptorType,
    ModuleType,
    UnionType,
)
from typing import TYPE_CHECKING, Any

from diagnose.errors import (
    UnknownNameError,
)
from diagnose.expressions.guards import (
    HASHED_TYPES,
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_RANGE,
    MAX_STEPS,
    MAX_WIDTH,
    is_sealed,
    items_of,
    iterate,
    read_attribute,
    refusal,
    refuse_huge,
    size_in_bits,
)
from diagnose.introspection import read_name
from diagnose.wording import shown, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


# Builtins.


def _over_items(function: Callable[..., object]) -> Callable[..., object]:
    where = f"in {function.__name__}()"
    hashed = function in HASHED_TYPES

    def call(items: object = (), /, **keywords: object) -> object:
        return function(items_of(items, where, hashed=hashed), **keywords)

    return call


def _extreme(function: Callable[..., object]) -> Callable[..., object]:
    where = f"in {function.__name__}()"

    def call(*values: object, **keywords: object) -> object:
        return function(*([items_of(values[0], where)] if len(values) == 1 else values), **keywords)

    return call


def _sum(items: object, /, start: Any = 0) -> object:
    # Lists and texts would grow with the square of the number of items.
    size_in_bits(start, "sum", "in sum()")
    return sum(items_of(items, "in sum()"), start)


def _enumerate(items: object, start: int = 0) -> list[tuple[int, object]]:
    return list(enumerate(items_of(items, "in enumerate()"), start))


def _reversed(items: object, /) -> list[object]:
    return list(items_of(items, "in reversed()"))[::-1]


def _zip(*columns: object, strict: bool = False) -> list[tuple[object, ...]]:
    return list(zip(*[items_of(column, "in zip()") for column in columns], strict=strict))


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    # len() can't say how many, and numbers[…] can.
    if len(numbers[: MAX_RANGE + 1]) > MAX_RANGE:
        raise refusal(f"a range of more than {MAX_RANGE:,} numbers", "in range()")
    return numbers


def _dict(given: Any = (), /, **entries: object) -> dict[object, object]:
    if isinstance(given, dict):
        return {**dict(dict.items(given)), **entries}
    # Not dict(…): it would go through a row to its end before it counts.
    pairs = {key: value for key, value in iterate(given, "in dict()", rows=True)}  # noqa: C416
    return {**pairs, **entries}


def _int(value: Any = 0, /, base: int | None = None) -> int:
    refuse_huge(value, "in int()")
    return int(value) if base is None else int(value, base)


def _float(value: Any = 0.0, /) -> float:
    refuse_huge(value, "in float()")
    return float(value)


def _round(number: Any, ndigits: Any = None) -> object:
    refuse_huge(number, "in round()")
    # round(1, -n) computes 10 ** n.
    if ndigits is not None and not -MAX_DEPTH <= ndigits <= MAX_DEPTH:
        raise refusal(f"round() to {shown(ndigits)} digits", "in round()")
    return round(number, ndigits)


def _str(value: object = "", /) -> str:
    if not isinstance(value, str):
        refuse_huge(value, "in str()")
    return str(value)


def _repr(value: object, /) -> str:
    if not isinstance(value, str):
        refuse_huge(value, "in repr()")
    return repr(value)


def _type(value: object, /) -> type:
    return type(value)


def _isinstance(value: object, kinds: Any, /) -> bool:
    for kind in kinds if type(kinds) is tuple else (kinds,):
        if not issubclass(type(kind), type | UnionType):
            what = f"a {read_name(type(kind))} in the place of a class"
            raise refusal(what, "in isinstance()")
    return isinstance(value, kinds)


BUILTINS: Mapping[str, Callable[..., object]] = MappingProxyType(
    {
        **{f.__name__: f for f in (abs, bool, bin, callable, chr, hex, len, oct, ord)},
        **{f.__name__: _over_items(f) for f in (all, any, frozenset, list, set, sorted, tuple)},
        **{f.__name__: _extreme(f) for f in (max, min)},
        "dict": _dict,
        "enumerate": _enumerate,
        "float": _float,
        "int": _int,
        "isinstance": _isinstance,
        "range": _range,
        "repr": _repr,
        "reversed": _reversed,
        "round": _round,
        "str": _str,
        "sum": _sum,
        "type": _type,
        "zip": _zip,
    }
)
"""What a restricted expression may call: builtins, bounded in what they take and give.

``enumerate``, ``reversed`` and ``zip`` give lists.
"""


# Methods.


def _join(separator: str, parts: object, /) -> str:
    texts: list[str] = list(items_of(parts, "in join()"))
    size = sum(map(len, texts)) + len(separator) * len(texts)
    if size > MAX_CHARACTERS:
        raise refusal(f"a text of {size:,} characters", "in join()")
    return str.join(separator, texts)


def _replace(text: str, old: str, new: str, count: int = -1, /) -> str:
    times = str.count(text, old)
    if count >= 0:
        times = min(times, count)
    size = len(text) + times * (len(new) - len(old))
    if size > max(MAX_CHARACTERS, len(text)):
        raise refusal(f"a text of {size:,} characters", "in replace()")
    return str.replace(text, old, new, count)


def _padded(method: Callable[..., Any]) -> Callable[..., object]:
    def call(text: str, width: int, /, *fill: str) -> object:
        if width > MAX_WIDTH:
            raise refusal(f"a width of {shown(width)}", f"in {method.__name__}()")
        return method(text, width, *fill)

    return call


def _coded(method: Callable[..., object]) -> Callable[..., object]:
    # Any other name would be looked for as a module, or run what somebody registered.
    def call(value: object, encoding: object = "utf-8", errors: object = "strict") -> object:
        if encoding not in {"utf-8", "utf8", "ascii", "latin-1"}:
            raise refusal(f"the encoding {shown(encoding)}", f"in {method.__name__}()")
        if errors not in {"strict", "ignore", "replace", "backslashreplace"}:
            raise refusal(f"errors={shown(errors)}", f"in {method.__name__}()")
        return method(value, encoding, errors)

    return call


def _with_items(method: Callable[..., object]) -> Callable[..., object]:
    where = f"in {method.__name__}()"

    def call(value: object, /, *others: object) -> object:
        return method(value, *[items_of(other, where, hashed=True) for other in others])

    return call


def _searching(method: Callable[..., object]) -> Callable[..., object]:
    # Looking from the right, and stripping, takes the product of both lengths.
    def call(text: Any, /, *args: Any, **keywords: Any) -> object:
        for given in (*args, *keywords.values()):
            if isinstance(given, str | bytes) and len(given) * len(text) > MAX_STEPS:
                what = f"a search for {len(given):,} in {len(text):,} characters"
                raise refusal(what, f"in {method.__name__}()")
        return method(text, *args, **keywords)

    return call


_TEXT_METHODS = (
    "count endswith find index isalnum isalpha isascii isdigit islower isspace istitle isupper "
    "lower partition removeprefix removesuffix split splitlines startswith swapcase title upper"
)
_SEARCHING_METHODS = "lstrip rfind rindex rpartition rsplit rstrip strip"
_STR_METHODS = "capitalize casefold isdecimal isidentifier isnumeric isprintable"
SET_METHODS = (
    "difference",
    "intersection",
    "isdisjoint",
    "issubset",
    "issuperset",
    "symmetric_difference",
    "union",
)
"""The methods of sets that go through what they are given."""


def _own(kind: type, names: str) -> dict[str, Callable[..., object]]:
    return {name: getattr(kind, name) for name in names.split()}


def _set_methods(kind: type) -> dict[str, Callable[..., object]]:
    return {name: _with_items(getattr(kind, name)) for name in SET_METHODS}


METHODS: Mapping[type, Mapping[str, Callable[..., object]]] = {
    dict: _own(dict, "copy get items keys values"),
    str: {
        **_own(str, f"{_TEXT_METHODS} {_STR_METHODS}"),
        **{name: _searching(m) for name, m in _own(str, _SEARCHING_METHODS).items()},
        **{name: _padded(m) for name, m in _own(str, "center ljust rjust zfill").items()},
        "encode": _coded(str.encode),
        "join": _join,
        "replace": _replace,
    },
    list: _own(list, "copy count index"),
    tuple: _own(tuple, "count index"),
    set: _set_methods(set),
    frozenset: _set_methods(frozenset),
    bytes: {
        **_own(bytes, _TEXT_METHODS),
        **{name: _searching(m) for name, m in _own(bytes, _SEARCHING_METHODS).items()},
        "decode": _coded(bytes.decode),
        "hex": bytes.hex,
    },
}
"""The methods that a restricted expression may call, by the type that defines them.

None changes the object that it is called on. An object of a subclass gets the method of the
builtin type: its own would be code of the program.
"""

METHOD_NAMES = frozenset(name for methods in METHODS.values() for name in methods)
"""The names of all of them."""


def call_builtin_method(
    receiver: object, method: str, where: str, /, *args: object, **keywords: object
) -> object:
    """``receiver.method(…)``, by the builtin type's own method.

    Raises:
        ExpressionNotAdmittedError: `METHODS` lists none of that name for the receiver's type.
    """
    kind = type(receiver)
    for base, methods in METHODS.items():
        # Builtin types have no __subclasscheck__ of their own, so nobody can pretend.
        if issubclass(kind, base) and method in methods:
            return methods[method](receiver, *args, **keywords)
    raise refusal(f"the method {method!r} of a {read_name(kind)}", where)


# What the application put into the namespace.

_MISSING = object()

_DATA_CLASSES = (dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone)
"""Their instances can't change, so their instance methods may be called through the class."""

_MATH = (
    "acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh degrees e erf erfc exp "
    "exp2 expm1 fabs floor fmod frexp gamma hypot inf isclose isfinite isinf isnan isqrt ldexp "
    "lgamma log log10 log1p log2 modf nan pi pow radians remainder sin sinh sqrt tan tanh tau "
    "trunc ulp"
)
_TIME = (
    "asctime ctime gmtime localtime mktime monotonic monotonic_ns perf_counter perf_counter_ns "
    "process_time process_time_ns strftime thread_time thread_time_ns time time_ns timezone tzname"
)
_STANDARD = ((math, frozenset(_MATH.split())), (time, frozenset(_TIME.split())))
"""They are in every namespace, and time.sleep, time.clock_settime, math.factorial… with them."""


def _member(module: ModuleType, name: str, where: str) -> object:
    # Not getattr: a module's __getattr__ may import others.
    members = module.__dict__
    if name not in members:
        near = suggest(name, (word for word in members if not word.startswith("_")))
        message = f"module {module.__name__!r} of the application's namespace has no {name!r}{near or '; correct the name'}"
        raise UnknownNameError(message)
    member = members[name]
    exported = members.get("__all__")
    for standard, names in _STANDARD:
        if module is standard:
            exported = names
    if issubclass(type(member), ModuleType):
        public = False
    elif exported is not None:
        public = name in exported
    elif callable(member):
        home = str(getattr(member, "__module__", None))
        public = home == module.__name__ or home.startswith(module.__name__ + ".")
    else:
        public = True
    if not public:
        raise refusal(f"{name!r} of the module {module.__name__!r}", where)
    return member


def read_application_member(
    namespace: Mapping[str, object], root: str, value: object, name: str, where: str
) -> object:
    """``value.name``, where ``value`` may be the module that the namespace has under ``root``.

    Raises:
        ExpressionNotAdmittedError: the module has it, and does not make it public.
        UnknownNameError: the module has no such name.
    """
    # The call may have a variable of that name, and then it is that one which is meant.
    if isinstance(value, ModuleType) and value is namespace.get(root):
        return _member(value, name, where)
    return read_attribute(value, name, where)


def _class_member(kind: type, name: str, where: str) -> object:
    raw = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
    of_class = isinstance(
        raw, classmethod | staticmethod | ClassMethodDescriptorType | BuiltinFunctionType
    )
    if not of_class and not (kind in _DATA_CLASSES and isinstance(raw, MethodDescriptorType)):
        if raw is None:
            message = f"class {kind.__qualname__!r} has no {name!r}"
            raise UnknownNameError(message + (suggest(name, dir(kind)) or "; correct the name"))
        what = f"{name!r}, which is no class or static method of {kind.__qualname__!r},"
        raise refusal(what, where)
    return getattr(kind, name)


def is_application_call(namespace: Mapping[str, object], path: tuple[str, ...]) -> bool:
    """Whether a path leads to something of the application's, or to a method of its data."""
    match namespace[path[0]], path[1:]:
        case (_, ()) | (ModuleType() | type(), (_,)):
            return True
        case ModuleType() as module, (name, _):
            return isinstance(module.__dict__.get(name), type)
    return False


def _resolve(root: object, path: tuple[str, ...], where: str) -> Callable[..., object]:
    found = root
    for name in path[1:]:
        if isinstance(found, ModuleType):
            found = _member(found, name, where)
        elif isinstance(found, type):
            found = _class_member(found, name, where)
        else:
            raise refusal(f"a call of {'.'.join(path)!r}", where)
    if not callable(found):
        raise refusal(f"a call of {'.'.join(path)!r}, which can't be called,", where)
    return found


def guarded_application_call(
    namespace: Mapping[str, object], path: tuple[str, ...], where: str
) -> Callable[..., object]:
    """Make a guard that calls what a path leads to, looked up again when the namespace changes.

    Raises:
        ExpressionNotAdmittedError: it leads to nothing that may be called.
        UnknownNameError: a module or class on the way has no such name.
    """
    name = path[0]
    root = namespace[name]
    function = _resolve(root, path, where)
    # One guard may serve several calls in an expression, so it doesn't say which.
    where = f"in {'.'.join(path)}()"

    def call(*args: object, **keywords: object) -> object:
        nonlocal root, function
        now = namespace.get(name, _MISSING)
        if now is not root:
            if now is _MISSING:
                message = f"the application has taken {name!r} out of its namespace"
                raise UnknownNameError(f"{message}; put it back, or change the expression")
            function = _resolve(now, path, where)
            root = now
        for given in (*args, *keywords.values()):
            # Handing over something to call is a hidden call of it.
            if callable(given) or hasattr(type(given), "__next__") or is_sealed(given):
                raise refusal(f"handing over a {read_name(type(given))}", where)
            refuse_huge(given, where, texts=False)
        return function(*args, **keywords)

    return call
