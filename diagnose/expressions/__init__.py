"""Expressions that people write into instruments: admitted once, then inlined.

:func:`parse` turns the text of a ``value``, ``when`` or ``custom.tags`` into a syntax tree
that a handler can hold, and the names that the tree needs. Nothing is evaluated here, and
nothing goes through ``eval``.

Two policies. ``python`` admits every expression that can stand in a plain function.
``restricted`` is for text from a store, whose authors must not run code of their choice:

- Only kinds of nodes that are listed get through, and no private name. Walls that a
  tree alone can't hold become calls of guard functions, written into the tree under names
  that are no identifiers (``"@call"``), so nothing in a text or a call can replace them.
- What is called is a listed builtin, a listed method of a builtin type (always the builtin
  type's own, not a subclass's), or comes from the application's namespace.
- Nothing may grow without bound, and nothing that the program iterates over is consumed.

What is accepted: code of the objects themselves that Python runs for an attribute (a
property), an operator, a comparison, an index, iteration, ``str()`` and the like. Whoever can
write an expression can also *read* whatever public attributes lead to.

Inside: ``source`` (text and tree, for any policy), ``admission`` (which trees get through the
restricted policy, and where guards go), ``calls`` and ``guards`` (what they call).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from diagnose.errors import (
    ExpressionError,
)
from diagnose.expressions.admission import admit
from diagnose.expressions.calls import BUILTINS
from diagnose.expressions.source import (
    Source,
    free_names,
    is_safe,
    parsing,
    require_inlinable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = ["BUILTINS", "Expression", "Policy", "parse", "parsing"]

Policy = Literal["python", "restricted"]


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """An admitted expression.

    Attributes:
        text: as it was given.
        tree: its syntax, with guards where the policy wants them. Shared: copy it before
            changing it. Locations are those within ``text``.
        names: the free names that it reads. The caller gives them their values. What a
            restricted expression *calls* is not among them but in ``constants``, so no
            variable of the call can take its place.
        constants: the objects for the names in ``tree`` that start with ``"@"``. The
            caller puts them in their places.
        safe: evaluating it runs no code of the program or of a library, if those of
            ``elapsed``, ``start`` and ``end`` that it names are floats. It can still raise
            (``1 / 0``).
    """

    text: str
    tree: ast.expr
    names: frozenset[str]
    constants: Mapping[str, object]
    safe: bool


def parse(
    text: str, *, policy: Policy = "python", namespace: Mapping[str, object] = MappingProxyType({})
) -> Expression:
    """Admit an expression, or say what is wrong with it.

    Args:
        text: one Python expression; white space around it is ignored, and it may span lines
            inside brackets.
        policy: what may stand in it.
        namespace: what a restricted expression may call besides builtins, and whose
            modules it may read. It is kept, and looked up again when it changes. Functions
            in it may be called; of a module its public functions and classes (``__all__``,
            or what the module itself defines), and their class and static methods.

    Raises:
        ExpressionSyntaxError: it is no text, is empty, or does not parse.
        ExpressionNotAdmittedError: it parses, and the policy does not admit it.
        UnknownNameError: a restricted expression calls a member that its module or class
            in the namespace does not have.
    """
    if policy not in ("python", "restricted"):
        message = f"there is no policy {policy!r}; use 'python' or 'restricted'"
        raise ExpressionError(message)
    source = Source(text)
    try:
        if policy == "restricted":
            source.limit()
        root = source.parse()
        require_inlinable(root, source)
        safe = is_safe(root)
        constants: dict[str, object] = {}
        if policy == "restricted":
            root, names, constants = admit(root, source, namespace)
        else:
            names = free_names(root)
        # Some mistakes (a repeated keyword, a repeated parameter) are found only now.
        compile(_in_function(root), "<expression>", "eval", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        if isinstance(error, ExpressionError):
            raise
        raise source.does_not_parse(error) from error
    return Expression(text, root, frozenset(names), MappingProxyType(constants), safe)


def _in_function(body: ast.expr) -> ast.Expression:
    """A function that returns it, as a tree: what can't stand in one does not compile."""
    none = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.fix_missing_locations(ast.Expression(ast.Lambda(args=none, body=body)))
