"""The guards that stand in a restricted expression in place of syntax.

Each does what the piece of syntax would do, or refuses to:

- attributes and items: `read_attribute`, `read_item` (refused: what leads out of the data of a
  call, and what would make an item);
- iteration, ``in``: `iterate`, `items_of`, `contains`, `OwnGenerator` (refused: what would be used
  up, what takes long);
- operators and sizes: `GUARDED_OPERATORS`, `size_in_bits`, `refuse_huge`, `formattable` (refused:
  what grows without bound).

With them the limits (``MAX_…``) and `refusal`, which says what was refused. What an expression
calls by its name stands in ``calls``.
"""

from __future__ import annotations

import ast
import datetime as dt
import operator
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
from diagnose.introspection import read_name

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

HOW_TO_WIDEN = "only the application can widen this: put a function into manager.global_namespace"
"""What to do next, for nearly all refusals."""

_LONGEST = 250  # a name can be as long as the expression


def refusal(what: str, where: str, advice: str = HOW_TO_WIDEN) -> ExpressionNotAdmittedError:
    """The error that says what is not admitted, where in the expression, and what to do next."""
    if len(what) > _LONGEST:
        what = what[:_LONGEST] + "…"
    return ExpressionNotAdmittedError(f"{what} is not admitted ({where}): {advice}")


SEALED_TYPES = frozenset(
    {ModuleType, FrameType, CodeType, TracebackType}
    | {GeneratorType, CoroutineType, AsyncGeneratorType}
)
"""Types whose attributes lead out of the data of a call: to globals, to code."""


_SEALED_IDS = frozenset(map(id, SEALED_TYPES))


def read_attribute(value: object, name: str, where: str) -> object:
    """``value.name``.

    Raises:
        ExpressionNotAdmittedError: the value is of `SEALED_TYPES`, or a module.
    """
    # Not a call of is_sealed: this runs once for each dot.
    kind = type(value)
    if id(kind) in _SEALED_IDS or issubclass(kind, ModuleType):
        raise refusal(f"reading {name!r} of a {read_name(kind)}", where)
    return getattr(value, name)


def is_sealed(value: object) -> bool:
    """Whether it is of `SEALED_TYPES`, or of a subclass of the type of modules."""
    # By id: a metaclass can have a __hash__ of its own.
    return id(type(value)) in _SEALED_IDS or issubclass(type(value), ModuleType)


def read_item(value: Any, key: object) -> object:
    """``value[key]``; a KeyError where a defaultdict would make the item."""
    if issubclass(type(value), defaultdict) and not dict.__contains__(value, key):
        # Reading would run its factory and store what that gives.
        raise KeyError(key)
    return value[key]


def _refuse_iterator(value: object, where: str) -> None:
    if hasattr(type(value), "__next__"):
        what = f"iterating over a {read_name(type(value))}, which would be used up by it,"
        raise refusal(what, where)


class OwnGenerator:
    """A generator that the expression itself has made: it may be used up."""

    __slots__ = ("generator",)

    def __init__(self, generator: Iterator[object]) -> None:
        self.generator = generator


_CONTAINERS = (list, tuple, dict, set, frozenset, str, bytes, range)
HASHED_TYPES = (dict, set, frozenset)
"""The builtin types that hash their items."""


def items_of(source: Any, where: str, *, hashed: bool = False) -> Iterable[Any]:
    """What a builtin may go through, for an argument that it was given.

    Args:
        source: the argument.
        where: the builtin, in words.
        hashed: whether the builtin puts the items into a hash table.

    Returns:
        A small builtin container itself; for all else what `iterate` gives.
    """
    kind = type(source)
    if kind is OwnGenerator:
        return source.generator  # type: ignore[no-any-return]
    # Adding items of one hash takes quadratic time, so what is hashed anew is timed.
    quick = HASHED_TYPES if hashed else _CONTAINERS
    if any(kind is container for container in quick) and len(source) <= MAX_ITEMS:
        return source  # type: ignore[no-any-return]
    return iterate(source, where)


def iterate(source: Iterable[Any], where: str, rows: bool = False) -> Iterator[Any]:  # noqa: FBT001, FBT002
    """Go through ``source``, for so many items and so long.

    Args:
        source: what stands behind ``in``.
        where: its place, in words.
        rows: whether each item is unpacked, so that it must not be used up by that either.

    Raises:
        ExpressionNotAdmittedError: it is an iterator, or a limit was passed.
    """
    _refuse_iterator(source, where)
    used = time.thread_time()
    began = now = time.perf_counter()
    # A thread that waits for its turn is not to blame, so look at its own clock in the end.
    look = began + MAX_CPU_SECONDS
    for number, item in enumerate(source):
        if number == MAX_ITEMS:
            raise refusal(f"going through more than {MAX_ITEMS:,} items", where)
        if rows:
            _refuse_iterator(item, where)
        yield item
        now = time.perf_counter()
        if now > look:
            left = MAX_CPU_SECONDS - (time.thread_time() - used)
            if left < 0 or now - began > MAX_SECONDS:
                raise refusal(f"taking longer ({number + 1:,} items so far)", where)
            look = now + left


def contains(item: object, container: Any, where: str) -> bool:
    """``item in container``, within the limits of `iterate`."""
    if hasattr(type(container), "__contains__"):
        return item in container
    return any(each is item or each == item for each in iterate(container, where))


# Growth.


def size_in_bits(value: Any, operator: str, where: str) -> int:
    """The size of a number.

    Raises:
        ExpressionNotAdmittedError: it is no number.
    """
    if isinstance(value, int):
        return int.bit_length(value)
    if isinstance(value, Fraction):
        return value.numerator.bit_length() + value.denominator.bit_length()
    if isinstance(value, float | dt.timedelta | Number):
        return 64
    what = f"the operator {operator!r} of a {read_name(type(value))}, which is no number,"
    raise refusal(what, where)


def _multiply(left: Any, right: Any, where: str) -> object:
    # The first line is for the one product that everybody writes: elapsed * 1000.
    if type(left) is float and (type(right) is int or type(right) is float):
        return left * right
    if size_in_bits(left, "*", where) + size_in_bits(right, "*", where) > MAX_BITS:
        raise refusal(f"a product of more than {MAX_BITS:,} bits", where)
    return left * right


def _modulo(left: Any, right: Any, where: str) -> object:
    if max(size_in_bits(left, "%", where), size_in_bits(right, "%", where)) > MAX_BITS:
        raise refusal(f"'%' of numbers of more than {MAX_BITS:,} bits", where)
    return left % right


def _shift(left: Any, right: Any, where: str) -> object:
    if not isinstance(left, int) or not isinstance(right, int):
        raise refusal("'<<' of what are no integers", where)
    if int.bit_length(left) + int(right) > MAX_BITS:
        raise refusal(f"a shift to more than {MAX_BITS:,} bits", where)
    return left << right


def refuse_huge(value: object, where: str, *, texts: bool = True) -> None:
    """Refuse what makes a huge number, or a huge text of one."""
    if isinstance(value, Decimal):
        huge = abs(value.adjusted()) > MAX_LENGTH
    elif isinstance(value, str | bytes):
        huge = texts and len(value) > MAX_LENGTH
    else:
        huge = isinstance(value, int) and int.bit_length(value) > MAX_BITS
    if huge:
        raise refusal(f"a {read_name(type(value))} of that size", where)


def formattable(value: object) -> object:
    """The value itself, which stands in an f-string, if it makes no huge text."""
    refuse_huge(value, "in an f-string", texts=False)
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
                    what = f"{word!r} of a view of a dict and a {read_name(type(other))}"
                    raise refusal(what, where)
        return operate(left, right)

    call.__name__ = operate.__name__
    return call


GUARDED_OPERATORS: Mapping[type[ast.operator], Callable[..., object]] = {
    ast.Mult: _multiply,
    ast.Mod: _modulo,
    ast.LShift: _shift,
    ast.Sub: _guarded(operator.sub, "-"),
    ast.BitAnd: _guarded(operator.and_, "&"),
    ast.BitOr: _guarded(operator.or_, "|"),
    ast.BitXor: _guarded(operator.xor, "^"),
}
"""The guards of the operators that need one: called with both sides and the place."""
