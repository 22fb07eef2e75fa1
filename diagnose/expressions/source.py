"""The text of an expression, where things are in it, and what its tree says for any policy."""

from __future__ import annotations

import ast
import contextlib
from typing import TYPE_CHECKING, TypeVar

from diagnose.errors import (
    ExpressionNotAdmittedError,
    ExpressionSyntaxError,
)
from diagnose.expressions.guards import HOW_TO_WIDEN, MAX_DEPTH, MAX_LENGTH, refusal
from diagnose.wording import shown, shown_with_type

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_PARSES = 5


def parsing(make: Callable[[], T]) -> T:
    """What ``make`` returns, which parses Python; if another thread spoiled that, made again.

    On 3.11 all threads of an interpreter count how deep a syntax tree is in one number; where
    they take turns amid that, one of them gets a SystemError (CPython's gh-106905).
    """
    for _ in range(_PARSES - 1):
        with contextlib.suppress(SystemError):
            return make()
    return make()


class Source:
    """The text of an expression, and where things are in it.

    Raises:
        ExpressionSyntaxError: it is no text, or empty.
    """

    def __init__(self, text: object) -> None:
        if not isinstance(text, str):
            message = f"an expression must be text, not {shown_with_type(text)}"
            raise ExpressionSyntaxError(f"{message}; write it as a string, such as 'result'")
        self.text = text
        self.stripped = text.strip()
        if not self.stripped:
            message = f"the expression {text!r:.40} is empty; write one, such as 'result'"
            raise ExpressionSyntaxError(message)
        before = text[: len(text) - len(text.lstrip())]
        self.first_line = before.count("\n")
        self.first_column = len(before) - (before.rfind("\n") + 1)

    def parse(self) -> ast.expr:
        """The syntax tree; raises what Python's parser does."""
        if "\0" in self.text:
            raise ValueError("it has a NUL character")
        return ast.parse(self.stripped, "<expression>", "eval").body

    def limit(self) -> None:
        """Refuse a text that is too long for a restricted expression."""
        if len(self.text) > MAX_LENGTH:
            message = f"the expression {shown(self.text)} has {len(self.text):,} characters"
            message += f", and a restricted one may have {MAX_LENGTH:,}; {HOW_TO_WIDEN}"
            raise ExpressionNotAdmittedError(message)

    def does_not_parse(self, error: BaseException) -> ExpressionSyntaxError:
        """The error for a text that Python's parser or compiler turned down."""
        reason = str(error) or type(error).__name__
        where = ""
        if isinstance(error, SyntaxError):
            reason = error.msg
            if error.lineno and error.offset:
                where = f" ({self.place(error.lineno, error.offset - 1)})"
        elif isinstance(error, RecursionError | MemoryError):
            reason = f"it is nested too deeply (at most {MAX_DEPTH} levels)"
        elif isinstance(error, UnicodeEncodeError):
            reason = "it has half of a surrogate pair"
        message = f"the expression {shown(self.text)} does not parse: {reason}{where}; "
        return ExpressionSyntaxError(f"{message}write one Python expression, such as 'len(items)'")

    def place(self, line: int, column: int) -> str:
        """Line from 1 and column from 0, in the stripped text -> words, for the whole text."""
        if line == 1:
            column += self.first_column
        column += 1
        line += self.first_line
        return f"column {column}" if "\n" not in self.text else f"line {line}, column {column}"

    def at(self, node: ast.expr | ast.keyword, *, end: bool = False) -> str:
        """Where a node begins, or ends, in words."""
        line, column = node.lineno, node.col_offset
        if end and node.end_lineno is not None and node.end_col_offset is not None:
            line, column = node.end_lineno, node.end_col_offset + 1
        lines = self.stripped.split("\n")
        # Before 3.12 what stands inside an f-string has a place of its own counting.
        if line <= len(lines):
            # The parser counts bytes of UTF-8.
            column = len(lines[line - 1].encode()[:column].decode(errors="replace"))
        return self.place(line, column)

    def refusal(
        self, what: str, where: ast.expr | ast.keyword | str, advice: str = HOW_TO_WIDEN
    ) -> ExpressionNotAdmittedError:
        """The error that says what in this text is not admitted, and where it stands."""
        if not isinstance(where, str):
            where = self.at(where)
        return refusal(f"{what} in {shown(self.text)}", where, advice)


_KIND = "it would change what kind of function evaluates the expression; leave it out"


def require_inlinable(root: ast.expr, source: Source) -> None:
    """Refuse a tree that means another thing, or nothing, within a function's own code.

    Raises:
        ExpressionNotAdmittedError: it awaits, yields or assigns.
        RecursionError: it is nested too deeply.
    """
    # Not recursive: the parser takes deeper trees than Python's recursion limit.
    waiting: list[tuple[ast.AST, int]] = [(root, 1)]
    while waiting:
        node, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise RecursionError
        if isinstance(node, ast.Await):
            raise source.refusal("'await'", node, _KIND)
        if isinstance(node, ast.Yield | ast.YieldFrom):
            raise source.refusal("'yield'", node, _KIND)
        if isinstance(node, ast.comprehension) and node.is_async:
            raise source.refusal("'async for'", node.target, _KIND)
        if isinstance(node, ast.NamedExpr):
            advice = "its name would leak into other expressions; write the value twice"
            raise source.refusal("an assignment with ':='", node, advice)
        waiting += [(child, depth + 1) for child in ast.iter_child_nodes(node)]


def free_names(root: ast.expr) -> set[str]:
    """The names that a tree reads and does not bind itself."""
    names: set[str] = set()
    waiting: list[tuple[ast.AST, frozenset[str]]] = [(root, frozenset())]
    while waiting:
        node, bound = waiting.pop()
        if isinstance(node, ast.Name):
            if node.id not in bound and node.id != "__debug__":
                names.add(node.id)
            continue
        inside = bound
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Lambda):
            given = node.args
            outside: list[ast.AST] = [*given.defaults, *(d for d in given.kw_defaults if d)]
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            arguments += [extra for extra in (given.vararg, given.kwarg) if extra]
            inside = bound | {argument.arg for argument in arguments}
            children = [node.body]
        elif isinstance(node, _COMPREHENSIONS):
            # Only the first iterable is evaluated outside of the comprehension's scope.
            outside = [node.generators[0].iter]
            inside = bound | {name for part in node.generators for name in _stored(part.target)}
            children = [child for child in children if not isinstance(child, ast.comprehension)]
            for number, part in enumerate(node.generators):
                children += [part.target, *part.ifs, *([part.iter] if number else [])]
        else:
            outside = []
        waiting += [(child, bound) for child in outside]
        waiting += [(child, inside) for child in children]
    return names


_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _stored(target: ast.expr) -> set[str]:
    nodes = ast.walk(target)
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


_FLOATS = frozenset({"elapsed", "start", "end"})
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)


def _is_number(node: ast.expr) -> bool:
    """Whether the value is a number of Python's own, and getting it runs no user code."""
    match node:
        case ast.Constant(value=value):
            return isinstance(value, int | float)
        case ast.Name(id=name):
            return name in _FLOATS
        case ast.UnaryOp(op=op, operand=operand):
            return _is_number(operand) and not isinstance(op, ast.Invert)
        case ast.BinOp(left=left, op=op, right=right):
            return isinstance(op, _ARITHMETIC) and _is_number(left) and _is_number(right)
        case ast.Compare(left=left, ops=ops, comparators=others):
            if all(isinstance(op, ast.Is | ast.IsNot) for op in ops):
                return all(is_safe(side) for side in (left, *others))
            sides_are_numbers = all(_is_number(side) for side in (left, *others))
            return sides_are_numbers and not any(isinstance(op, ast.In | ast.NotIn) for op in ops)
        case ast.BoolOp(values=values):
            return all(_is_number(value) for value in values)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return all(_is_number(part) for part in (test, body, orelse))
    return False


def is_safe(node: ast.expr) -> bool:
    """Whether evaluating it runs no code of the program; see ``Expression.safe``."""
    match node:
        case ast.Name() | ast.Constant():
            return True
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return all(is_safe(element) for element in elements)
        case ast.Dict(keys=keys, values=values):
            # Keys are hashed; constants hash by themselves.
            constant = all(isinstance(key, ast.Constant) for key in keys)
            return constant and all(is_safe(value) for value in values)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _is_number(test) and is_safe(body) and is_safe(orelse)
    return _is_number(node)
