"""What restricted expressions run instead of bare Python: reading, iterating, operators.

Each guard takes the place of a piece of syntax and either does what that would do, or refuses:
what leads out of the data of a call, what uses something up, what grows without bound. Here are
the limits too, and how a refusal is worded.
"""

from __future__ import annotations

import ast
import datetime as dt
import operator
import reprlib
import time
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction
from numbers import Number
from types import (
    AsyncGeneratorType,
    CodeType,
    CoroutineType,
    FrameType,
    GeneratorType,
    ModuleType,
    TracebackType,
)
from typing import TYPE_CHECKING, Any

from diagnose.errors import (
    ExpressionNotAdmittedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


MAX_DEPTH = 100
"""Levels of nesting of any expression: whoever copies or compiles a tree recurses."""
MAX_LENGTH = 1_000
"""Characters of a restricted expression."""
MAX_NODES = 100
"""Names, constants, calls, operators' sides… of a restricted expression."""
MAX_BITS = 4_096
"""Size of the integers that ``*``, ``%`` and ``<<`` take and give."""
MAX_ITEMS = 100_000
"""Items that a comprehension or a builtin goes through."""
MAX_RANGE = 10_000
"""Length of a ``range``. With more, what an expression makes itself could keep it busy."""
MAX_CHARACTERS = 10_000
"""Length of what ``join`` and ``replace`` give (``replace`` may also keep what it has)."""
MAX_WIDTH = 1_000
"""Width for ``ljust`` and the like."""
MAX_STEPS = 10_000_000
"""Characters of a text times those of what is looked for, where the search is that slow."""
MAX_CPU_SECONDS = 0.05
MAX_SECONDS = 1.0
"""A comprehension ends with an error once it used that much of its thread or of the clock."""

_WIDEN = "only the application can widen this: put a function into manager.global_namespace"


_LONGEST = 250  # a name can be as long as the expression


def _short(value: object) -> str:
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 80
    return shortener.repr(value)


def _refused(what: str, where: str, advice: str = _WIDEN) -> ExpressionNotAdmittedError:
    if len(what) > _LONGEST:
        what = what[:_LONGEST] + "…"
    return ExpressionNotAdmittedError(f"{what} is not admitted ({where}): {advice}")


def suggest(name: str, known: Iterable[str]) -> str:
    """Give ``"; did you mean 'x'?"`` for a near miss among ``known``, or ``""``."""
    import difflib  # noqa: PLC0415 - for an error only; import diagnose is to be quick

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


_SEALED = frozenset(
    {ModuleType, FrameType, CodeType, TracebackType}
    | {GeneratorType, CoroutineType, AsyncGeneratorType}
)
"""Types whose attributes lead out of the data of a call: to globals, to code."""


def _class_name(kind: type) -> str:
    """``kind.__name__``, whatever the metaclass says."""
    return type.__dict__["__name__"].__get__(kind)  # type: ignore[no-any-return]


_SEALED_IDS = frozenset(map(id, _SEALED))


def _read(value: object, name: str, where: str) -> object:
    # Not a call of _is_sealed: this runs once for each dot.
    kind = type(value)
    if id(kind) in _SEALED_IDS or issubclass(kind, ModuleType):
        raise _refused(f"reading {name!r} of a {_class_name(kind)}", where)
    return getattr(value, name)


def _is_sealed(value: object) -> bool:
    # By id: a metaclass can have a __hash__ of its own.
    return id(type(value)) in _SEALED_IDS or issubclass(type(value), ModuleType)


def _item(value: Any, key: object) -> object:
    if issubclass(type(value), defaultdict) and not dict.__contains__(value, key):
        # Reading would run its factory and store what that gives.
        raise KeyError(key)
    return value[key]


def _refuse_iterator(value: object, where: str) -> None:
    if hasattr(type(value), "__next__"):
        what = f"iterating over a {_class_name(type(value))}, which would be used up by it,"
        raise _refused(what, where)


class _Own:
    """A generator that the expression itself has made: it may be used up."""

    __slots__ = ("generator",)

    def __init__(self, generator: Iterator[object]) -> None:
        self.generator = generator


_CONTAINERS = (list, tuple, dict, set, frozenset, str, bytes, range)
_HASHED = (dict, set, frozenset)


def _items(source: Any, where: str, *, hashed: bool = False) -> Iterable[Any]:
    """What a builtin may go through; ``hashed`` if it puts the items into a hash table."""
    kind = type(source)
    if kind is _Own:
        return source.generator  # type: ignore[no-any-return]
    # Adding items of one hash takes quadratic time, so what is hashed anew is timed.
    quick = _HASHED if hashed else _CONTAINERS
    if any(kind is container for container in quick) and len(source) <= MAX_ITEMS:
        return source  # type: ignore[no-any-return]
    return _each(source, where)


def _each(source: Iterable[Any], where: str, rows: bool = False) -> Iterator[Any]:  # noqa: FBT001, FBT002
    """Go through ``source`` for so long; ``rows`` will be unpacked."""
    _refuse_iterator(source, where)
    used = time.thread_time()
    began = now = time.perf_counter()
    # A thread that waits for its turn is not to blame, so look at its own clock in the end.
    look = began + MAX_CPU_SECONDS
    for number, item in enumerate(source):
        if number == MAX_ITEMS:
            raise _refused(f"going through more than {MAX_ITEMS:,} items", where)
        if rows:
            _refuse_iterator(item, where)
        yield item
        now = time.perf_counter()
        if now > look:
            left = MAX_CPU_SECONDS - (time.thread_time() - used)
            if left < 0 or now - began > MAX_SECONDS:
                raise _refused(f"taking longer ({number + 1:,} items so far)", where)
            look = now + left


def _contains(item: object, container: Any, where: str) -> bool:
    if hasattr(type(container), "__contains__"):
        return item in container
    return any(each is item or each == item for each in _each(container, where))


# Growth.


def _bits(value: Any, operator: str, where: str) -> int:
    if isinstance(value, int):
        return int.bit_length(value)
    if isinstance(value, Fraction):
        return value.numerator.bit_length() + value.denominator.bit_length()
    if isinstance(value, float | dt.timedelta | Number):
        return 64
    what = f"the operator {operator!r} of a {_class_name(type(value))}, which is no number,"
    raise _refused(what, where)


def _multiply(left: Any, right: Any, where: str) -> object:
    # The first line is for the one product that everybody writes: elapsed * 1000.
    if type(left) is float and (type(right) is int or type(right) is float):
        return left * right
    if _bits(left, "*", where) + _bits(right, "*", where) > MAX_BITS:
        raise _refused(f"a product of more than {MAX_BITS:,} bits", where)
    return left * right


def _modulo(left: Any, right: Any, where: str) -> object:
    if max(_bits(left, "%", where), _bits(right, "%", where)) > MAX_BITS:
        raise _refused(f"'%' of numbers of more than {MAX_BITS:,} bits", where)
    return left % right


def _shift(left: Any, right: Any, where: str) -> object:
    if not isinstance(left, int) or not isinstance(right, int):
        raise _refused("'<<' of what are no integers", where)
    if int.bit_length(left) + int(right) > MAX_BITS:
        raise _refused(f"a shift to more than {MAX_BITS:,} bits", where)
    return left << right


def _refuse_huge(value: object, where: str, *, texts: bool = True) -> None:
    """Refuse what makes a huge number, or a huge text of one."""
    if isinstance(value, Decimal):
        huge = abs(value.adjusted()) > MAX_LENGTH
    elif isinstance(value, str | bytes):
        huge = texts and len(value) > MAX_LENGTH
    else:
        huge = isinstance(value, int) and int.bit_length(value) > MAX_BITS
    if huge:
        raise _refused(f"a {_class_name(type(value))} of that size", where)


def _formatted(value: object) -> object:
    _refuse_huge(value, "in an f-string", texts=False)
    return value


_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.items()))
_SETS = (set, frozenset, *_VIEWS)


def _guarded(operate: Callable[[Any, Any], object], word: str) -> Callable[..., object]:
    """Guard an operator of sets: a view of a dict takes whatever can be iterated over."""

    def call(left: object, right: object, where: str) -> object:
        if type(left) is not float and type(left) is not int:
            for side, other in ((left, right), (right, left)):
                _refuse_iterator(side, where)
                if issubclass(type(side), _VIEWS) and not issubclass(type(other), _SETS):
                    what = f"{word!r} of a view of a dict and a {_class_name(type(other))}"
                    raise _refused(what, where)
        return operate(left, right)

    call.__name__ = operate.__name__
    return call


_GUARDED_OPERATORS: Mapping[type[ast.operator], Callable[..., object]] = {
    ast.Mult: _multiply,
    ast.Mod: _modulo,
    ast.LShift: _shift,
    ast.Sub: _guarded(operator.sub, "-"),
    ast.BitAnd: _guarded(operator.and_, "&"),
    ast.BitOr: _guarded(operator.or_, "|"),
    ast.BitXor: _guarded(operator.xor, "^"),
}
