"""Handlers as text with marks, and what comes in the places of the marks."""

from __future__ import annotations

import ast
import copy
import os
from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from diagnose.expressions import Expression

# "C·x", "d·x" and "E·x" are identifiers, so the pieces of a handler can be written as
# text; nobody names a parameter like that. Placeholders in co_consts
# carry a token, so that no string in a user's expression can be equal to one.
_PLACE = f"diagnose {os.urandom(8).hex()} "


def filled(code: CodeType, constants: Mapping[str, object]) -> CodeType:
    """Put the objects in the places of their placeholders, in inner functions too."""
    return code.replace(
        co_consts=tuple(
            filled(value, constants)
            if isinstance(value, CodeType)
            else constants.get(value, value)
            if isinstance(value, str)
            else value
            for value in code.co_consts
        )
    )


def fill(
    definition: ast.FunctionDef,
    constants: Mapping[str, object],
    expressions: Mapping[str, Expression],
    number: Callable[[], ast.expr],
) -> dict[str, object]:
    """Put expressions and placeholders of constants in the places of their marks.

    Args:
        definition: it is changed.
        constants: by name.
        expressions: by name.
        number: gives the value, made a number.

    Returns:
        The constants that are used, by their placeholders, for :func:`filled`.
    """
    filler = _Filler(constants, expressions, number)
    filler.visit(definition)
    return filler.used


class _Filler(ast.NodeTransformer):
    def __init__(
        self,
        constants: Mapping[str, object],
        expressions: Mapping[str, Expression],
        number: Callable[[], ast.expr],
    ) -> None:
        self.constants = constants
        self.expressions = expressions
        self.number = number
        self.used: dict[str, object] = {}

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.arg = _local(node.arg)
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        node.name = _local(node.name) if node.name else None
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id.startswith("C·"):
            return self.constant(node.id[2:], self.constants[node.id[2:]])
        if node.id == "E·number":
            return self.visit(self.number())  # type: ignore[no-any-return]
        if node.id.startswith("E·"):
            expression = self.expressions[node.id[2:]]
            return _Guards(self, expression).visit(_copy(expression.tree))  # type: ignore[no-any-return]
        node.id = _local(node.id)
        return node

    def constant(self, name: str, value: object) -> ast.expr:
        place = _PLACE + name
        self.used[place] = value
        # The condition is folded away; a bare constant that is called draws a warning.
        return ast.IfExp(_constant(value=True), _constant(place), _constant(None), **HERE)


class _Guards(ast.NodeTransformer):
    """Puts the policy's guard functions in the places that the parser marked."""

    def __init__(self, filler: _Filler, expression: Expression) -> None:
        self.filler = filler
        self.constants = expression.constants

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.constants:
            return self.filler.constant(node.id, self.constants[node.id])
        return node


def _copy(tree: ast.expr) -> ast.expr:
    # An expression is used in several handlers, and filling changes nodes.
    return copy.deepcopy(tree)


def _local(name: str) -> str:
    # "@x" is no identifier: nothing that a user writes can collide with it.
    return "@" + name[2:] if name.startswith("d·") else name


def statements_of(text: str) -> list[ast.stmt]:
    """The statements of a text with marks."""
    return ast.parse(text).body if text else []


def item(mapping: str, name: str) -> ast.expr:
    """An item of what a variable holds."""
    return ast.Subscript(name_of(mapping), _constant(name), ast.Load(), **HERE)


# Locations are given here, since to look through a whole tree for missing ones takes long.
HERE: dict[str, Any] = {"lineno": 1, "col_offset": 0}


def _constant(value: Any) -> ast.expr:
    return ast.Constant(value, **HERE)


def name_of(name: str, context: ast.expr_context | None = None) -> ast.expr:
    """A name; by default it is read."""
    return ast.Name(name, context or ast.Load(), **HERE)


_PLAIN = (int, float, bool, str, bytes, type(None))
PLAIN_CHECK = """\
d·passed = False
if P·plain:
    try:
        if not E·when:
            C·next(C·reject_condition)
            return
        d·passed = True
    except C·BaseException as d·error:
        if not C·passes(d·error):
            raise
"""
PLAIN_SIFT = """\
if P·plain:
    try:
        if not E·when:
            C·next(C·reject_condition)
            return True
    except C·BaseException as d·error:
        if not C·passes(d·error):
            raise
return False
"""
_PLAIN_OPERATORS = (ast.Add, ast.Sub, ast.Div, ast.FloorDiv, ast.UAdd, ast.USub, ast.Not)


def is_plain(node: ast.expr) -> bool:
    """Whether an expression of plain values is cheap and runs no code of anybody's."""
    match node:
        case ast.Name():
            return True
        case ast.Constant(value=value):
            return type(value) in _PLAIN
        case ast.Tuple(elts=parts) | ast.Set(elts=parts):
            return all(isinstance(part, ast.Constant) for part in parts)
        case ast.UnaryOp(op=op, operand=operand):
            return isinstance(op, _PLAIN_OPERATORS) and is_plain(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return isinstance(op, _PLAIN_OPERATORS) and is_plain(left) and is_plain(right)
        case ast.BoolOp(values=parts):
            return all(is_plain(part) for part in parts)
        case ast.Compare(left=left, comparators=others):
            return is_plain(left) and all(is_plain(other) for other in others)
    return False
