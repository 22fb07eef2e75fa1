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
"""

from __future__ import annotations

import ast
import builtins
import datetime as dt
import difflib
import functools
import math
import operator
import re
import reprlib
import time
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Number
from types import (
    AsyncGeneratorType,
    BuiltinFunctionType,
    CellType,
    ClassMethodDescriptorType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    MappingProxyType,
    MethodDescriptorType,
    ModuleType,
    TracebackType,
    UnionType,
)
from typing import TYPE_CHECKING, Any, Literal

from diagnose.errors import (
    ExpressionError,
    ExpressionNotAdmittedError,
    ExpressionSyntaxError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

__all__ = ["BUILTINS", "Expression", "Policy", "compile_function", "parse", "suggest"]

Policy = Literal["python", "restricted"]

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
    source = _Source(text)
    try:
        if policy == "restricted":
            source.limit()
        root = source.parse()
        _refuse_what_cannot_be_inlined(root, source)
        safe = _is_safe(root)
        constants: dict[str, object] = {}
        if policy == "restricted":
            admission = _Admission(source, namespace)
            root = ast.fix_missing_locations(admission.visit(root))
            names, constants = admission.names, admission.constants
        else:
            names = _free_names(root)
        # Some mistakes (a repeated keyword, a repeated parameter) are found only now.
        compile(ast.Expression(_lambda([], root)), "<expression>", "eval", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        if isinstance(error, ExpressionError):
            raise
        raise source.does_not_parse(error) from error
    return Expression(text, root, frozenset(names), MappingProxyType(constants), safe)


def compile_function(
    expression: Expression, parameters: Sequence[str], globals_: dict[str, object]
) -> FunctionType:
    """Make a function of exactly ``parameters`` that returns the expression's value.

    Args:
        expression: what to evaluate.
        parameters: names, in order; those that the expression does not use too.
        globals_: where its other names are looked up, before builtins. Not copied; as
            ``eval`` does, this adds ``__builtins__`` if it has none.
    """
    # Without them what imports something for itself fails, such as strftime.
    globals_.setdefault("__builtins__", builtins)
    # The constants become free variables of the function, so they need no global names.
    inner = _lambda(parameters, expression.tree)
    outer = ast.fix_missing_locations(ast.Expression(_lambda(list(expression.constants), inner)))
    code = compile(outer, "<expression>", "eval", dont_inherit=True)
    for _ in range(2):
        code = next(value for value in code.co_consts if isinstance(value, CodeType))
    cells = tuple(CellType(expression.constants[name]) for name in code.co_freevars)
    return FunctionType(code, globals_, "expression", None, cells)


def suggest(name: str, known: Iterable[str]) -> str:
    """Give ``"; did you mean 'x'?"`` for a near miss among ``known``, or ``""``."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _lambda(parameters: Sequence[str], body: ast.expr) -> ast.expr:
    arguments = ast.arguments(
        posonlyargs=[],
        args=[ast.arg(arg=name) for name in parameters],
        kwonlyargs=[],
        kw_defaults=[],
        defaults=[],
    )
    return ast.fix_missing_locations(ast.Lambda(args=arguments, body=body))


# --- text and tree ---


class _Source:
    """The text of an expression, and where things are in it."""

    def __init__(self, text: object) -> None:
        if not isinstance(text, str):
            message = f"an expression must be text, not {_short(text)} ({type(text).__name__})"
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
        if "\0" in self.text:
            raise ValueError("it has a NUL character")
        return ast.parse(self.stripped, "<expression>", "eval").body

    def limit(self) -> None:
        if len(self.text) > MAX_LENGTH:
            message = f"the expression {_short(self.text)} has {len(self.text):,} characters"
            message += f", and a restricted one may have {MAX_LENGTH:,}; {_WIDEN}"
            raise ExpressionNotAdmittedError(message)

    def does_not_parse(self, error: BaseException) -> ExpressionSyntaxError:
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
        message = f"the expression {_short(self.text)} does not parse: {reason}{where}; "
        return ExpressionSyntaxError(f"{message}write one Python expression, such as 'len(items)'")

    def place(self, line: int, column: int) -> str:
        """Line from 1 and column from 0, in the stripped text -> words, for the whole text."""
        if line == 1:
            column += self.first_column
        column += 1
        line += self.first_line
        return f"column {column}" if "\n" not in self.text else f"line {line}, column {column}"

    def at(self, node: ast.expr | ast.keyword, *, end: bool = False) -> str:
        line, column = node.lineno, node.col_offset
        if end and node.end_lineno is not None and node.end_col_offset is not None:
            line, column = node.end_lineno, node.end_col_offset + 1
        lines = self.stripped.split("\n")
        # Before 3.12 what stands inside an f-string has a place of its own counting.
        if line <= len(lines):
            # The parser counts bytes of UTF-8.
            column = len(lines[line - 1].encode()[:column].decode(errors="replace"))
        return self.place(line, column)

    def refused(
        self, what: str, where: ast.expr | ast.keyword | str, advice: str = _WIDEN
    ) -> ExpressionNotAdmittedError:
        if not isinstance(where, str):
            where = self.at(where)
        return _refused(f"{what} in {_short(self.text)}", where, advice)


_LONGEST = 250  # a name can be as long as the expression


def _short(value: object) -> str:
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 80
    return shortener.repr(value)


def _refused(what: str, where: str, advice: str = _WIDEN) -> ExpressionNotAdmittedError:
    if len(what) > _LONGEST:
        what = what[:_LONGEST] + "…"
    return ExpressionNotAdmittedError(f"{what} is not admitted ({where}): {advice}")


_KIND = "it would change what kind of function evaluates the expression; leave it out"


def _refuse_what_cannot_be_inlined(root: ast.expr, source: _Source) -> None:
    # Not recursive: the parser takes deeper trees than Python's recursion limit.
    waiting: list[tuple[ast.AST, int]] = [(root, 1)]
    while waiting:
        node, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise RecursionError
        if isinstance(node, ast.Await):
            raise source.refused("'await'", node, _KIND)
        if isinstance(node, ast.Yield | ast.YieldFrom):
            raise source.refused("'yield'", node, _KIND)
        if isinstance(node, ast.comprehension) and node.is_async:
            raise source.refused("'async for'", node.target, _KIND)
        if isinstance(node, ast.NamedExpr):
            advice = "its name would leak into other expressions; write the value twice"
            raise source.refused("an assignment with ':='", node, advice)
        waiting += [(child, depth + 1) for child in ast.iter_child_nodes(node)]


def _free_names(root: ast.expr) -> set[str]:
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
                return all(_is_safe(side) for side in (left, *others))
            sides_are_numbers = all(_is_number(side) for side in (left, *others))
            return sides_are_numbers and not any(isinstance(op, ast.In | ast.NotIn) for op in ops)
        case ast.BoolOp(values=values):
            return all(_is_number(value) for value in values)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return all(_is_number(part) for part in (test, body, orelse))
    return False


def _is_safe(node: ast.expr) -> bool:
    match node:
        case ast.Name() | ast.Constant():
            return True
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return all(_is_safe(element) for element in elements)
        case ast.Dict(keys=keys, values=values):
            # Keys are hashed; constants hash by themselves.
            constant = all(isinstance(key, ast.Constant) for key in keys)
            return constant and all(_is_safe(value) for value in values)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _is_number(test) and _is_safe(body) and _is_safe(orelse)
    return _is_number(node)


def _constant(value: Any) -> ast.expr:
    return ast.Constant(value=value)


# --- restricted: what may stand in the tree ---

_PLAIN = frozenset(
    {
        *(ast.Load, ast.And, ast.Or, ast.Not, ast.UAdd, ast.USub, ast.Invert),
        *(ast.Add, ast.Div, ast.FloorDiv, ast.RShift),
        *(ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Is, ast.IsNot),
        *(ast.BoolOp, ast.UnaryOp, ast.IfExp, ast.Tuple, ast.List, ast.Set, ast.JoinedStr),
    }
)
"""Nodes with nothing to look at but their children."""

_WORDS: Mapping[type[ast.AST], str] = {
    ast.Lambda: "a lambda",
    ast.Starred: "unpacking with '*'",
    ast.Pow: "the operator '**'",
    ast.MatMult: "the operator '@'",
}

_SEALED = frozenset(
    {ModuleType, FrameType, CodeType, TracebackType}
    | {GeneratorType, CoroutineType, AsyncGeneratorType}
)
"""Types whose attributes lead out of the data of a call: to globals, to code."""

_DENIED = frozenset(
    {"mro", "format_map", "func_closure", "func_code", "func_defaults", "func_dict", "func_globals"}
    | {"im_class", "im_func", "im_self", "gr_frame", "f_generator"}
    | {name for kind in _SEALED for name in dir(kind) if re.match(r"(ag|co|cr|f|gi|tb)_", name)}
)
"""Attributes that need no underscore to lead there, on whatever object."""

_FORMAT_SPEC = re.compile(
    # Of numbers and text: fill, sign, width, precision, kind. Three digits are width enough.
    r"(.?[<>=^])?[-+ ]?z?#?0?\d{0,3}[_,]?(\.\d{1,3})?[bcdeEfFgGnosxX%]?"
    # Of dates and times: no width at all.
    r"|(%[-_^#]?[A-Za-z%]|[-:/., T])+"
)

_ITERATING = frozenset(
    {"all", "any", "enumerate", "frozenset", "list", "max", "min", "reversed"}
    | {"set", "sorted", "sum", "tuple", "zip"}
)
_KEYED = frozenset({"max", "min", "sorted"})
_KEYS = frozenset({"abs", "bool", "float", "int", "len", "repr", "str"})


class _Admission(ast.NodeTransformer):
    """Goes over a tree once: refuses what isn't listed, and puts the guards in."""

    def __init__(self, source: _Source, namespace: Mapping[str, object]) -> None:
        self.source = source
        self.namespace = namespace
        self.names: set[str] = set()
        self.constants: dict[str, object] = {}
        self.bound: frozenset[str] = frozenset()
        self.in_comprehension = False
        self.nodes = 0

    def visit(self, node: ast.AST) -> Any:
        kind = type(node)
        if isinstance(node, ast.expr | ast.comprehension | ast.keyword):
            self.nodes += 1
            if self.nodes > MAX_NODES:
                what = f"an expression of more than {MAX_NODES} parts"
                raise self.source.refused(what, node if isinstance(node, ast.expr) else "its end")
        if kind in _PLAIN:
            return self.generic_visit(node)
        visitor = getattr(self, f"visit_{kind.__name__}", None)
        if visitor is None:
            what = _WORDS.get(kind, f"syntax of the kind {kind.__name__}")
            raise self.source.refused(what, node if isinstance(node, ast.expr) else "an operator")
        return visitor(node)

    # --- pieces ---

    def public(self, name: str, where: ast.expr | ast.keyword | str, what: str) -> None:
        if name.startswith("_"):
            what = f"the {what} {name!r}, private by its underscore,"
            raise self.source.refused(what, where)
        if name[1:2] == "·":
            # That is how generated code writes names of its own.
            raise self.source.refused(f"the {what} {name!r}, with a middle dot,", where)

    def constant(self, name: str, value: object) -> ast.Name:
        self.constants[name] = value
        return ast.Name(id=name, ctx=ast.Load())

    def guard(self, function: Callable[..., object], at: ast.expr, *args: object) -> ast.expr:
        """A call of a guard in the place of ``at``; arguments that are no nodes are constants."""
        name = self.constant("@" + function.__name__.strip("_"), function)
        nodes = [arg if isinstance(arg, ast.expr) else _constant(arg) for arg in args]
        return ast.copy_location(ast.Call(func=name, args=nodes, keywords=[]), at)

    # --- data ---

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        self.public(node.id, node, "name")
        if node.id not in self.bound:
            self.names.add(node.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        value, name, where = node.value, node.attr, self.source.at(node.value, end=True)
        match value:
            case ast.Call(func=ast.Name(id="type"), args=[_], keywords=[]) if name == "__name__":
                if "type" not in self.namespace:
                    return self.guard(_class_name, node, self.visit(value))
        self.public(name, where, "attribute")
        if name in _DENIED:
            raise self.source.refused(f"the attribute {name!r}", where)
        if isinstance(value, ast.Name) and self.is_applications(value.id):
            reader = functools.partial(_read_member, self.namespace, value.id)
            call = self.guard(_read, node, self.visit(value), name, where)
            assert isinstance(call, ast.Call)
            call.func = self.constant(f"@{value.id}.", reader)
            return call
        return self.guard(_read, node, self.visit(value), name, where)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        return self.guard(_item, node, self.visit(node.value), self.visit(node.slice))

    def visit_Slice(self, node: ast.Slice) -> ast.expr:
        parts = [part and self.visit(part) for part in (node.lower, node.upper, node.step)]
        return self.guard(slice, node, *parts)

    def visit_Dict(self, node: ast.Dict) -> ast.expr:
        if None in node.keys:
            raise self.source.refused("unpacking with '**'", node)
        return self.generic_visit(node)  # type: ignore[return-value]

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.expr:
        spec = node.format_spec
        if spec is not None:
            assert isinstance(spec, ast.JoinedStr)
            texts = [part.value for part in spec.values if isinstance(part, ast.Constant)]
            if len(texts) != len(spec.values):
                raise self.source.refused("a format that is computed", node)
            if not _FORMAT_SPEC.fullmatch("".join(map(str, texts))):
                raise self.source.refused(f"the format {''.join(map(str, texts))!r}", node)
        node.value = self.guard(_formatted, node.value, self.visit(node.value))
        return node

    # --- operators ---

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        sides = self.visit(node.left), self.visit(node.right)
        guard = _GUARDED_OPERATORS.get(type(node.op))
        if guard is not None:
            return self.guard(guard, node, *sides, self.source.at(node))
        if type(node.op) not in _PLAIN:
            raise self.source.refused(_WORDS.get(type(node.op), "this operator"), node)
        node.left, node.right = sides
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        if not any(isinstance(op, ast.In | ast.NotIn) for op in node.ops):
            return self.generic_visit(node)  # type: ignore[return-value]
        if len(node.ops) > 1:
            advice = "write two comparisons with 'and'"
            raise self.source.refused("'in' within a chain of comparisons", node, advice)
        sides = self.visit(node.left), self.visit(node.comparators[0])
        found = self.guard(_contains, node, *sides, self.source.at(node))
        if isinstance(node.ops[0], ast.In):
            return found
        return ast.copy_location(ast.UnaryOp(op=ast.Not(), operand=found), node)

    # --- comprehensions ---

    def comprehension(self, node: Any) -> ast.expr:
        advice = "write two expressions, or " + _WIDEN
        if self.in_comprehension:
            raise self.source.refused("a comprehension inside another", node, advice)
        if len(node.generators) > 1:
            raise self.source.refused("more than one 'for' in a comprehension", node, advice)
        self.in_comprehension = True
        part = node.generators[0]
        target = part.target
        flat = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        names = set()
        for name in flat:
            # Anything else would store: "for self.admin in [True]".
            if not isinstance(name, ast.Name):
                what = "a loop variable that is no name or tuple of names"
                raise self.source.refused(what, name)
            self.public(name.id, name, "name")
            names.add(name.id)
        where, rows = self.source.at(part.iter), flat != [target]
        part.iter = self.guard(_each, part.iter, self.visit(part.iter), where, rows)
        self.bound = frozenset(names)
        part.ifs = [self.visit(condition) for condition in part.ifs]
        for field in ("key", "value", "elt"):
            if hasattr(node, field):
                setattr(node, field, self.visit(getattr(node, field)))
        self.bound = frozenset()
        self.in_comprehension = False
        return node  # type: ignore[no-any-return]

    def visit_ListComp(self, node: ast.ListComp) -> ast.expr:
        return self.comprehension(node)

    def visit_SetComp(self, node: ast.SetComp) -> ast.expr:
        return self.comprehension(node)

    def visit_DictComp(self, node: ast.DictComp) -> ast.expr:
        return self.comprehension(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.expr:
        advice = "it can stand in a call such as sum(…) only; elsewhere write a list: […]"
        raise self.source.refused("a generator", node, advice)

    def argument(self, node: ast.expr, *, iterated: bool) -> Any:
        if iterated and isinstance(node, ast.GeneratorExp):
            self.nodes += 1
            return self.guard(_Own, node, self.comprehension(node))
        return self.visit(node)

    # --- calls ---

    def is_applications(self, name: str) -> bool:
        return name in self.namespace and name not in self.bound

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.nodes += len(node.keywords)
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self.source.refused("unpacking with '**'", keyword)
            self.public(keyword.arg, keyword, "name")
        path = _path(node.func)
        if path is not None and self.is_applications(path[0]):
            if _is_application_call(self.namespace, path):
                return self.call_application(node, path)
        elif isinstance(node.func, ast.Name):
            return self.call_builtin(node, node.func.id)
        if isinstance(node.func, ast.Attribute):
            return self.call_method(node, node.func)
        raise self.source.refused("a call of what is no name or method", node)

    def call_application(self, node: ast.Call, path: tuple[str, ...]) -> ast.expr:
        for name in path:
            self.public(name, node, "name")
            if name in _DENIED:
                raise self.source.refused(f"the attribute {name!r}", node)
        function = _application_call(self.namespace, path, self.source.at(node))
        return self.called(node, f"@{'.'.join(path)}()", function)

    def call_builtin(self, node: ast.Call, name: str) -> ast.expr:
        self.public(name, node, "name")
        if name in self.bound:
            raise self.source.refused(f"a call of the loop variable {name!r}", node)
        if name not in BUILTINS:
            near = suggest(name, [*BUILTINS, *self.namespace])
            raise self.source.refused(f"a call of {name!r}", node, _WIDEN + near)
        keys = [word for word in node.keywords if word.arg == "key" and name in _KEYED]
        for keyword in keys:
            key = keyword.value
            if isinstance(key, ast.Constant) and key.value is None:
                continue
            # A key is a call without brackets.
            if not isinstance(key, ast.Name) or key.id not in _KEYS or key.id in self.bound:
                advice = f"use one of {', '.join(sorted(_KEYS))}; {_WIDEN}"
                raise self.source.refused("this key", key, advice)
            # Not as "@len()": that can be the application's.
            keyword.value = self.constant(f"@key {key.id}", BUILTINS[key.id])
        return self.called(node, f"@{name}()", BUILTINS[name], keys, iterated=name in _ITERATING)

    def call_method(self, node: ast.Call, func: ast.Attribute) -> ast.expr:
        where = self.source.at(func.value, end=True)
        if func.attr not in _METHOD_NAMES:
            near = suggest(func.attr, _METHOD_NAMES)
            raise self.source.refused(f"a call of the method {func.attr!r}", where, _WIDEN + near)
        receiver = self.visit(func.value)
        iterated = func.attr == "join" or func.attr in _SET_METHODS.split()
        self.called(node, "@call", _call, iterated=iterated)
        given = ast.Constant(value=func.attr), ast.Constant(value=where)
        node.args = [receiver, *given, *node.args]
        return node

    def called(
        self,
        node: ast.Call,
        name: str,
        function: object,
        done: Collection[ast.keyword] = (),
        *,
        iterated: bool = False,
    ) -> ast.expr:
        node.args = [self.argument(arg, iterated=iterated) for arg in node.args]
        for keyword in node.keywords:
            if keyword not in done:
                keyword.value = self.visit(keyword.value)
        node.func = self.constant(name, function)
        return node


def _path(node: ast.expr) -> tuple[str, ...] | None:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute) and (path := _path(node.value)) is not None:
        return (*path, node.attr)
    return None


# --- restricted: what runs ---


def _class_name(kind: type) -> str:
    """``kind.__name__``, whatever the metaclass says."""
    return type.__dict__["__name__"].__get__(kind)  # type: ignore[no-any-return]


_SEALED_IDS = frozenset(map(id, _SEALED))


def _read(value: object, name: str, where: str) -> object:
    kind = type(value)
    # By id: a metaclass can have a __hash__ of its own.
    if id(kind) in _SEALED_IDS or issubclass(kind, ModuleType):
        raise _refused(f"reading {name!r} of a {_class_name(kind)}", where)
    return getattr(value, name)


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


# Builtins.


def _over_items(function: Callable[..., object]) -> Callable[..., object]:
    where = f"in {function.__name__}()"
    hashed = function in _HASHED

    def call(items: object = (), /, **keywords: object) -> object:
        return function(_items(items, where, hashed=hashed), **keywords)

    return call


def _extreme(function: Callable[..., object]) -> Callable[..., object]:
    where = f"in {function.__name__}()"

    def call(*values: object, **keywords: object) -> object:
        return function(*([_items(values[0], where)] if len(values) == 1 else values), **keywords)

    return call


def _sum(items: object, /, start: Any = 0) -> object:
    # Lists and texts would grow with the square of the number of items.
    _bits(start, "sum", "in sum()")
    return sum(_items(items, "in sum()"), start)


def _enumerate(items: object, start: int = 0) -> list[tuple[int, object]]:
    return list(enumerate(_items(items, "in enumerate()"), start))


def _reversed(items: object, /) -> list[object]:
    return list(_items(items, "in reversed()"))[::-1]


def _zip(*columns: object, strict: bool = False) -> list[tuple[object, ...]]:
    return list(zip(*[_items(column, "in zip()") for column in columns], strict=strict))


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    # len() can't say how many, and numbers[…] can.
    if len(numbers[: MAX_RANGE + 1]) > MAX_RANGE:
        raise _refused(f"a range of more than {MAX_RANGE:,} numbers", "in range()")
    return numbers


def _dict(given: Any = (), /, **entries: object) -> dict[object, object]:
    if isinstance(given, dict):
        return {**dict(dict.items(given)), **entries}
    # Not dict(…): it would go through a row to its end before it counts.
    pairs = {key: value for key, value in _each(given, "in dict()", rows=True)}  # noqa: C416
    return {**pairs, **entries}


def _int(value: Any = 0, /, base: int | None = None) -> int:
    _refuse_huge(value, "in int()")
    return int(value) if base is None else int(value, base)


def _float(value: Any = 0.0, /) -> float:
    _refuse_huge(value, "in float()")
    return float(value)


def _round(number: Any, ndigits: Any = None) -> object:
    _refuse_huge(number, "in round()")
    # round(1, -n) computes 10 ** n.
    if ndigits is not None and not -MAX_DEPTH <= ndigits <= MAX_DEPTH:
        raise _refused(f"round() to {_short(ndigits)} digits", "in round()")
    return round(number, ndigits)


def _str(value: object = "", /) -> str:
    if not isinstance(value, str):
        _refuse_huge(value, "in str()")
    return str(value)


def _repr(value: object, /) -> str:
    if not isinstance(value, str):
        _refuse_huge(value, "in repr()")
    return repr(value)


def _type(value: object, /) -> type:
    return type(value)


def _isinstance(value: object, kinds: Any, /) -> bool:
    for kind in kinds if type(kinds) is tuple else (kinds,):
        if not issubclass(type(kind), type | UnionType):
            what = f"a {_class_name(type(kind))} in the place of a class"
            raise _refused(what, "in isinstance()")
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
    texts: list[str] = list(_items(parts, "in join()"))
    size = sum(map(len, texts)) + len(separator) * len(texts)
    if size > MAX_CHARACTERS:
        raise _refused(f"a text of {size:,} characters", "in join()")
    return str.join(separator, texts)


def _replace(text: str, old: str, new: str, count: int = -1, /) -> str:
    times = str.count(text, old)
    if count >= 0:
        times = min(times, count)
    size = len(text) + times * (len(new) - len(old))
    if size > max(MAX_CHARACTERS, len(text)):
        raise _refused(f"a text of {size:,} characters", "in replace()")
    return str.replace(text, old, new, count)


def _padded(method: Callable[..., Any]) -> Callable[..., object]:
    def call(text: str, width: int, /, *fill: str) -> object:
        if width > MAX_WIDTH:
            raise _refused(f"a width of {_short(width)}", f"in {method.__name__}()")
        return method(text, width, *fill)

    return call


def _coded(method: Callable[..., object]) -> Callable[..., object]:
    # Any other name would be looked for as a module, or run what somebody registered.
    def call(value: object, encoding: object = "utf-8", errors: object = "strict") -> object:
        if encoding not in {"utf-8", "utf8", "ascii", "latin-1"}:
            raise _refused(f"the encoding {_short(encoding)}", f"in {method.__name__}()")
        if errors not in {"strict", "ignore", "replace", "backslashreplace"}:
            raise _refused(f"errors={_short(errors)}", f"in {method.__name__}()")
        return method(value, encoding, errors)

    return call


def _with_items(method: Callable[..., object]) -> Callable[..., object]:
    where = f"in {method.__name__}()"

    def call(value: object, /, *others: object) -> object:
        return method(value, *[_items(other, where, hashed=True) for other in others])

    return call


def _searching(method: Callable[..., object]) -> Callable[..., object]:
    # Looking from the right, and stripping, takes the product of both lengths.
    def call(text: Any, /, *args: Any, **keywords: Any) -> object:
        for given in (*args, *keywords.values()):
            if isinstance(given, str | bytes) and len(given) * len(text) > MAX_STEPS:
                what = f"a search for {len(given):,} in {len(text):,} characters"
                raise _refused(what, f"in {method.__name__}()")
        return method(text, *args, **keywords)

    return call


_TEXT_METHODS = (
    "count endswith find index isalnum isalpha isascii isdigit islower isspace istitle isupper "
    "lower partition removeprefix removesuffix split splitlines startswith swapcase title upper"
)
_SEARCHING_METHODS = "lstrip rfind rindex rpartition rsplit rstrip strip"
_STR_METHODS = "capitalize casefold isdecimal isidentifier isnumeric isprintable"
_SET_METHODS = "difference intersection isdisjoint issubset issuperset symmetric_difference union"


def _own(kind: type, names: str) -> dict[str, Callable[..., object]]:
    return {name: getattr(kind, name) for name in names.split()}


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
    set: {name: _with_items(m) for name, m in _own(set, _SET_METHODS).items()},
    frozenset: {name: _with_items(m) for name, m in _own(frozenset, _SET_METHODS).items()},
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

_METHOD_NAMES = frozenset(name for methods in METHODS.values() for name in methods)


def _call(
    receiver: object, method: str, where: str, /, *args: object, **keywords: object
) -> object:
    kind = type(receiver)
    for base, methods in METHODS.items():
        # Builtin types have no __subclasscheck__ of their own, so nobody can pretend.
        if issubclass(kind, base) and method in methods:
            return methods[method](receiver, *args, **keywords)
    raise _refused(f"the method {method!r} of a {_class_name(kind)}", where)


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
        raise _refused(f"{name!r} of the module {module.__name__!r}", where)
    return member


def _read_member(
    namespace: Mapping[str, object], root: str, value: object, name: str, where: str
) -> object:
    # The call may have a variable of that name, and then it is that one which is meant.
    if isinstance(value, ModuleType) and value is namespace.get(root):
        return _member(value, name, where)
    return _read(value, name, where)


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
        raise _refused(what, where)
    return getattr(kind, name)


def _is_application_call(namespace: Mapping[str, object], path: tuple[str, ...]) -> bool:
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
            raise _refused(f"a call of {'.'.join(path)!r}", where)
    if not callable(found):
        raise _refused(f"a call of {'.'.join(path)!r}, which can't be called,", where)
    return found


def _application_call(
    namespace: Mapping[str, object], path: tuple[str, ...], where: str
) -> Callable[..., object]:
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
            if callable(given) or hasattr(type(given), "__next__"):
                raise _refused(f"handing over a {_class_name(type(given))}", where)
            _refuse_huge(given, where, texts=False)
        return function(*args, **keywords)

    return call
