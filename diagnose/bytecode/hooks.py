"""What is put into a function's code: calls, and the names of the values that they get."""

from __future__ import annotations

import inspect
import opcode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diagnose.bytecode import assembly
from diagnose.bytecode.flow import begins_body

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import CodeType

    from diagnose.bytecode.assembly import Instruction

__all__ = [
    "ENTRY_NAMES",
    "EXIT_NAMES",
    "MISSING",
    "NOW",
    "Hook",
    "Parameters",
    "body_begin",
    "places",
    "variables",
]

ENTRY_NAMES = frozenset({"start", "now", "args", "kwargs", "frame"})
"""What a ``call`` can name besides the parameters."""

EXIT_NAMES = frozenset({"result", "exception", "elapsed", "end", "hotspots"})
"""What a ``return`` can name besides what a ``call`` can."""

MISSING = type("Missing", (), {"__repr__": lambda _: "(no value)", "__slots__": ()})()
"""What a hook is given for a variable that has no value."""

NOW = "@now"
"""A hook's name for the clock's reading (``time.perf_counter``) when it is called."""

_MAKE_CELL = opcode.opmap["MAKE_CELL"]


@dataclass(frozen=True, slots=True, eq=False)
class Hook:
    """One handler's calls.

    Attributes:
        handler: called with the values of ``names``, by position.
        names: at ``call`` and ``return`` parameters of the function, or names of
            :data:`ENTRY_NAMES` and :data:`EXIT_NAMES`; at ``end`` and at a line the
            variables of its frame: :data:`MISSING` for those that have no value.
        prelude: if given (not for lines), called with the values of ``prelude_names`` before the
            body; what it returns is handed to ``handler`` as one more, first argument.
        prelude_names: names that there are at ``call``.
        quick: if given, what is called in place of ``handler`` as long as no instrument
            runs anywhere: a function that runs no user code, and its only argument: one of
            ``names``, or a number.
        sift: for ``return``, if given: a function and names of parameters; it is called
            before the body, and if it returns true, ``handler`` is not.
        judge: called with what one of its functions raised; True: it goes no further, False: it
            belongs to the program, and is raised. None: all that does not belong to the program
            is dropped.
        sets: for ``call``, if given: names of parameters. ``handler`` returns None, or a pair of
            what is to be raised in place of the body, or None, and a tuple of new values for these
            parameters, :data:`MISSING` for those that keep theirs. Behind one that raises no other
            such hook is called.
        replaces: for ``return``: ``handler`` returns None, or a pair of whether it is to be raised,
            and what the function returns or raises. The next such hook gets what this one has the
            function return; behind one that raises no other is called.
        may_raise: what ``handler`` raises is raised by the function, where it is called; and it
            is called also where there is no room for it. Such a hook has no ``prelude`` and
            no ``sift``, and is called behind all others.
        awaits: in coroutines and asynchronous generators, what ``handler`` returns is awaited;
            with ``may_raise`` only.
    """

    handler: Callable[..., object]
    names: tuple[str, ...] = ()
    prelude: Callable[..., object] | None = None
    prelude_names: tuple[str, ...] = ()
    quick: tuple[Callable[[Any], object], str | float] | None = None
    sift: tuple[Callable[..., object], tuple[str, ...]] | None = None
    judge: Callable[[BaseException], bool] | None = None
    sets: tuple[str, ...] | None = None
    replaces: bool = False
    may_raise: bool = False
    awaits: bool = False


@dataclass(frozen=True, slots=True)
class Parameters:
    """A signature without its defaults (those stay on the function object)."""

    positional: tuple[str, ...] = ()
    keyword_only: tuple[str, ...] = ()
    star: str | None = None
    double_star: str | None = None

    @classmethod
    def of(cls, code: CodeType) -> Parameters:
        """Read the signature off a code object."""
        names, count = code.co_varnames, code.co_argcount
        rest = count + code.co_kwonlyargcount
        star = double_star = None
        keyword_only = names[count:rest]
        if code.co_flags & inspect.CO_VARARGS:
            star = names[rest]
            rest += 1
        if code.co_flags & inspect.CO_VARKEYWORDS:
            double_star = names[rest]
        return cls(names[:count], keyword_only, star, double_star)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        stars = tuple(name for name in (self.star, self.double_star) if name is not None)
        return (*self.positional, *self.keyword_only, *stars)


def variables(code: CodeType) -> tuple[str, ...]:
    """What ``end`` and lines can name: local variables, those of closures included."""
    return tuple(places(code, assembly.read(code)))


def places(code: CodeType, listing: Sequence[Instruction]) -> dict[str, tuple[int, bool]]:
    """By variable: its number in the frame, and whether it is a cell."""
    made = {one.argument for one in listing[: body_begin(listing)] if one.opcode == _MAKE_CELL}
    names = (*code.co_varnames, *(c for c in code.co_cellvars if c not in code.co_varnames))
    places = {}
    for number, name in enumerate(names):
        is_cell = name in code.co_cellvars
        # Since 3.12 those of comprehensions are there too, and have a cell only in it.
        if not is_cell or number in made:
            places[name] = number, is_cell
    for number, name in enumerate(code.co_freevars, len(names)):
        places[name] = number, True
    return places


def body_begin(listing: Sequence[Instruction]) -> int:
    """Where the body begins."""
    for number, one in enumerate(listing, 1):
        if begins_body(one):
            return number
    message = "its code was not made by the compiler of this Python: it has no RESUME"
    raise ValueError(message)
