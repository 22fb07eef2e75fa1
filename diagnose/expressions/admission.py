"""The restricted policy: which trees get through, and where the guards go in them."""

from __future__ import annotations

import ast
import functools
import re
from typing import TYPE_CHECKING, Any

from diagnose.expressions.calls import (
    BUILTINS,
    METHOD_NAMES,
    SET_METHODS,
    call_builtin_method,
    guarded_application_call,
    is_application_call,
    read_application_member,
)
from diagnose.expressions.guards import (
    GUARDED_OPERATORS,
    HOW_TO_WIDEN,
    MAX_NODES,
    SEALED_TYPES,
    OwnGenerator,
    contains,
    formattable,
    iterate,
    read_attribute,
    read_item,
)
from diagnose.introspection import read_name
from diagnose.wording import suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from diagnose.expressions.source import Source


def _constant(value: Any) -> ast.expr:
    return ast.Constant(value=value)


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


_DENIED = frozenset(
    {"mro", "format_map", "func_closure", "func_code", "func_defaults", "func_dict", "func_globals"}
    | {"im_class", "im_func", "im_self", "gr_frame", "f_generator"}
    | {
        name
        for kind in SEALED_TYPES
        for name in dir(kind)
        if re.match(r"(ag|co|cr|f|gi|tb)_", name)
    }
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


def admit(
    root: ast.expr, source: Source, namespace: Mapping[str, object]
) -> tuple[ast.expr, set[str], dict[str, object]]:
    """Put the guards into a tree, if all that it consists of is listed.

    Returns:
        The tree, which is changed; the names that it reads; and the objects for the names that
        start with ``"@"``.

    Raises:
        ExpressionNotAdmittedError: the policy does not admit it.
        UnknownNameError: it calls a member that its module or class in the namespace has not.
    """
    admission = _Admission(source, namespace)
    tree = ast.fix_missing_locations(admission.visit(root))
    return tree, admission.names, admission.constants


class _Admission(ast.NodeTransformer):
    """Goes over a tree once: refuses what isn't listed, and puts the guards in."""

    def __init__(self, source: Source, namespace: Mapping[str, object]) -> None:
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
                raise self.source.refusal(what, node if isinstance(node, ast.expr) else "its end")
        if kind in _PLAIN:
            return self.generic_visit(node)
        visitor = getattr(self, f"visit_{kind.__name__}", None)
        if visitor is None:
            what = _WORDS.get(kind, f"syntax of the kind {kind.__name__}")
            raise self.source.refusal(what, node if isinstance(node, ast.expr) else "an operator")
        return visitor(node)

    # --- pieces ---

    def public(self, name: str, where: ast.expr | ast.keyword | str, what: str) -> None:
        if name.startswith("_"):
            what = f"the {what} {name!r}, private by its underscore,"
            raise self.source.refusal(what, where)
        if name[1:2] == "·":
            # That is how generated code writes names of its own.
            raise self.source.refusal(f"the {what} {name!r}, with a middle dot,", where)

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
                    return self.guard(read_name, node, self.visit(value))
        self.public(name, where, "attribute")
        if name in _DENIED:
            raise self.source.refusal(f"the attribute {name!r}", where)
        if isinstance(value, ast.Name) and self.is_applications(value.id):
            reader = functools.partial(read_application_member, self.namespace, value.id)
            call = self.guard(read_attribute, node, self.visit(value), name, where)
            assert isinstance(call, ast.Call)
            call.func = self.constant(f"@{value.id}.", reader)
            return call
        return self.guard(read_attribute, node, self.visit(value), name, where)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        return self.guard(read_item, node, self.visit(node.value), self.visit(node.slice))

    def visit_Slice(self, node: ast.Slice) -> ast.expr:
        parts = [part and self.visit(part) for part in (node.lower, node.upper, node.step)]
        return self.guard(slice, node, *parts)

    def visit_Dict(self, node: ast.Dict) -> ast.expr:
        if None in node.keys:
            raise self.source.refusal("unpacking with '**'", node)
        return self.generic_visit(node)  # type: ignore[return-value]

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.expr:
        spec = node.format_spec
        if spec is not None:
            assert isinstance(spec, ast.JoinedStr)
            texts = [part.value for part in spec.values if isinstance(part, ast.Constant)]
            if len(texts) != len(spec.values):
                raise self.source.refusal("a format that is computed", node)
            if not _FORMAT_SPEC.fullmatch("".join(map(str, texts))):
                raise self.source.refusal(f"the format {''.join(map(str, texts))!r}", node)
        node.value = self.guard(formattable, node.value, self.visit(node.value))
        return node

    # --- operators ---

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        sides = self.visit(node.left), self.visit(node.right)
        guard = GUARDED_OPERATORS.get(type(node.op))
        if guard is not None:
            return self.guard(guard, node, *sides, self.source.at(node))
        if type(node.op) not in _PLAIN:
            raise self.source.refusal(_WORDS.get(type(node.op), "this operator"), node)
        node.left, node.right = sides
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        if not any(isinstance(op, ast.In | ast.NotIn) for op in node.ops):
            return self.generic_visit(node)  # type: ignore[return-value]
        if len(node.ops) > 1:
            advice = "write two comparisons with 'and'"
            raise self.source.refusal("'in' within a chain of comparisons", node, advice)
        sides = self.visit(node.left), self.visit(node.comparators[0])
        found = self.guard(contains, node, *sides, self.source.at(node))
        if isinstance(node.ops[0], ast.In):
            return found
        return ast.copy_location(ast.UnaryOp(op=ast.Not(), operand=found), node)

    # --- comprehensions ---

    def comprehension(self, node: Any) -> ast.expr:
        advice = "write two expressions, or " + HOW_TO_WIDEN
        if self.in_comprehension:
            raise self.source.refusal("a comprehension inside another", node, advice)
        if len(node.generators) > 1:
            raise self.source.refusal("more than one 'for' in a comprehension", node, advice)
        self.in_comprehension = True
        part = node.generators[0]
        target = part.target
        flat = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        names = set()
        for name in flat:
            # Anything else would store: "for self.admin in [True]".
            if not isinstance(name, ast.Name):
                what = "a loop variable that is no name or tuple of names"
                raise self.source.refusal(what, name)
            self.public(name.id, name, "name")
            names.add(name.id)
        where, rows = self.source.at(part.iter), flat != [target]
        part.iter = self.guard(iterate, part.iter, self.visit(part.iter), where, rows)
        self.bound = frozenset(names)
        part.ifs = [self.visit(condition) for condition in part.ifs]
        for field in ("key", "value", "elt"):
            if getattr(node, field, node) is None:  # since 3.15: {**each for each in several}
                raise self.source.refusal("unpacking with '**'", node)
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
        raise self.source.refusal("a generator", node, advice)

    def argument(self, node: ast.expr, *, iterated: bool) -> Any:
        if iterated and isinstance(node, ast.GeneratorExp):
            self.nodes += 1
            return self.guard(OwnGenerator, node, self.comprehension(node))
        return self.visit(node)

    # --- calls ---

    def is_applications(self, name: str) -> bool:
        return name in self.namespace and name not in self.bound

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.nodes += len(node.keywords)
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self.source.refusal("unpacking with '**'", keyword)
            self.public(keyword.arg, keyword, "name")
        path = _path(node.func)
        if path is not None and self.is_applications(path[0]):
            if is_application_call(self.namespace, path):
                return self.call_application(node, path)
        elif isinstance(node.func, ast.Name):
            return self.call_builtin(node, node.func.id)
        if isinstance(node.func, ast.Attribute):
            return self.call_method(node, node.func)
        raise self.source.refusal("a call of what is no name or method", node)

    def call_application(self, node: ast.Call, path: tuple[str, ...]) -> ast.expr:
        for name in path:
            self.public(name, node, "name")
            if name in _DENIED:
                raise self.source.refusal(f"the attribute {name!r}", node)
        function = guarded_application_call(self.namespace, path, self.source.at(node))
        return self.called(node, f"@{'.'.join(path)}()", function)

    def call_builtin(self, node: ast.Call, name: str) -> ast.expr:
        self.public(name, node, "name")
        if name in self.bound:
            raise self.source.refusal(f"a call of the loop variable {name!r}", node)
        if name not in BUILTINS:
            near = suggest(name, [*BUILTINS, *self.namespace])
            raise self.source.refusal(f"a call of {name!r}", node, HOW_TO_WIDEN + near)
        keys = [word for word in node.keywords if word.arg == "key" and name in _KEYED]
        for keyword in keys:
            key = keyword.value
            if isinstance(key, ast.Constant) and key.value is None:
                continue
            # A key is a call without brackets.
            if not isinstance(key, ast.Name) or key.id not in _KEYS or key.id in self.bound:
                advice = f"use one of {', '.join(sorted(_KEYS))}; {HOW_TO_WIDEN}"
                raise self.source.refusal("this key", key, advice)
            # Not as "@len()": that can be the application's.
            keyword.value = self.constant(f"@key {key.id}", BUILTINS[key.id])
        return self.called(node, f"@{name}()", BUILTINS[name], keys, iterated=name in _ITERATING)

    def call_method(self, node: ast.Call, func: ast.Attribute) -> ast.expr:
        where = self.source.at(func.value, end=True)
        if func.attr not in METHOD_NAMES:
            near = suggest(func.attr, METHOD_NAMES)
            raise self.source.refusal(
                f"a call of the method {func.attr!r}", where, HOW_TO_WIDEN + near
            )
        receiver = self.visit(func.value)
        iterated = func.attr == "join" or func.attr in SET_METHODS
        self.called(node, "@call", call_builtin_method, iterated=iterated)
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
