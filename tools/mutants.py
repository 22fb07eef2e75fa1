"""The mutants of a module: its text with one small mistake each, at known places.

Not made are those that are equal by construction, or that say nothing about the code: docstrings,
annotations, ``__all__`` and other names that only declare, what stands under ``TYPE_CHECKING``,
what is for another version of Python than that which runs this (an ``if`` or a part of it that
asks for the version, or for an instruction that this one has not), and texts for people (a string with a blank in it), but for text that is code itself: that of
handlers, with the marks of :mod:`diagnose.handlers.templates` in it.
"""

from __future__ import annotations

import ast
import dis
import functools
import opcode
import re
import sys
from dataclasses import dataclass
from pathlib import Path

COMPARISONS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.In: ("in", "not in"), ast.NotIn: (r"not\s+in", "in"),
    ast.Is: ("is", "is not"), ast.IsNot: (r"is\s+not", "is"),
}  # fmt: skip
ARITHMETIC = {ast.Add: (r"\+", "-"), ast.Sub: ("-", "+"), ast.Mult: (r"\*", "//")}
IN_CODE = [
    ("not ", ""), (" is not ", " is "), (" and ", " or "), (" or ", " and "), (" >= ", " < "), (" > ", " < "),
    ("= True", "= False"), ("= False", "= True"), ("return\n", "pass\n"), ("return\\n", "pass\\n"),
]  # fmt: skip
MARK = "·"
DECLARING = {"__all__", "__slots__", "__hash__"}
ROOT = Path(__file__).parents[1]
# What tells one version from another; a name of a module that is made of these alone does, too.
OF_THE_VERSION = {"sys": sys, "opcode": opcode, "dis": dis}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake: bytes from ``begin`` to ``end`` of a file are ``instead``."""

    path: str
    line: int
    begin: int
    end: int
    instead: bytes
    what: str

    def apply(self, source):
        """The file's text with the mistake."""
        return source[: self.begin] + self.instead + source[self.end :]


def mutants(path, source):
    """All mutants of a file that are still Python."""
    tree = ast.parse(source)
    finder = _Finder(path, source, _facts(tree))
    finder.visit(tree)
    return [each for each in finder.found if _compiles(each.apply(source))]


def _compiles(source):
    try:
        compile(source, "<mutant>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


class _Finder(ast.NodeVisitor):
    def __init__(self, path, source, facts):
        self.path = path
        self.facts = facts
        self.source = source
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.found = []

    # --- places ---

    def begin(self, node):
        return self.lines[node.lineno - 1] + node.col_offset

    def end(self, node):
        return self.lines[node.end_lineno - 1] + node.end_col_offset

    def text(self, node):
        return self.source[self.begin(node) : self.end(node)].decode()

    def replace(self, node, instead, what):
        self.put(node.lineno, self.begin(node), self.end(node), instead, what)

    def put(self, line, begin, end, instead, what):
        self.found.append(Mutant(self.path, line, begin, end, instead.encode(), what))

    def between(self, left, right, pattern, instead, what):
        """Change an operator: what stands between its operands, brackets and all."""
        begin, end = self.end(left), self.begin(right)
        text = self.source[begin:end].decode()
        changed, count = re.subn(pattern, lambda _: instead, text, count=1)
        if count:
            line = left.end_lineno + text[: re.search(pattern, text).start()].count("\n")
            self.put(line, begin, end, changed, what)

    # --- what is left as it is ---

    def visit_arg(self, node):
        """Annotations say nothing at run time."""

    def visit_AnnAssign(self, node):
        if node.value is not None and not _declares([node.target]):
            self.statement(node)
            self.visit(node.value)

    def visit_JoinedStr(self, node):
        """A text for people, mostly."""

    def visit_FunctionDef(self, node):
        self.visit(node.args)
        self.block(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        self.block(node)

    def visit_Module(self, node):
        self.block(node)

    def block(self, node):
        """The statements of a thing that may have a docstring."""
        first = 1 if ast.get_docstring(node, clean=False) is not None else 0
        for each in node.body[first:]:
            self.visit(each)
            if (
                isinstance(each, ast.If)
                and self.holds(each.test)
                and isinstance(each.body[-1], ast.Return)
            ):
                return  # in this version nothing comes behind it

    # --- statements ---

    def statement(self, node):
        """It may be missing."""
        self.replace(node, "pass", "statement deleted")

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant):
            return
        if not _only_says(node.value):
            self.statement(node)
            self.generic_visit(node)

    def visit_Assign(self, node):
        if _declares(node.targets):
            return
        self.statement(node)
        self.visit(node.value)

    def visit_AugAssign(self, node):
        self.statement(node)
        self.visit(node.value)

    def visit_Raise(self, node):
        self.statement(node)

    def visit_Delete(self, node):
        self.statement(node)

    def visit_Break(self, node):
        self.statement(node)

    visit_Continue = visit_Break

    def visit_Return(self, node):
        if node.value is None:
            self.statement(node)
        elif not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self.replace(node, "return None", "returns None")
            self.visit(node.value)

    # --- expressions ---

    def visit_If(self, node):
        is_true = False if "TYPE_CHECKING" in self.text(node.test) else self.holds(node.test)
        if is_true is None:
            self.condition(node.test)
            self.generic_visit(node)
            return
        for each in node.body if is_true else node.orelse:
            self.visit(each)

    def visit_While(self, node):
        if not isinstance(node.test, ast.Constant):
            self.condition(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node):
        is_true = self.holds(node.test)
        if is_true is not None:
            self.visit(node.body if is_true else node.orelse)
            return
        self.condition(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node):
        for test in node.ifs:
            self.condition(test)
        self.generic_visit(node)

    def holds(self, test):
        """Whether a condition is true in this version; None: that is about something else."""
        if isinstance(test, ast.BoolOp):
            is_and = isinstance(test.op, ast.And)
            known = [self.holds(each) for each in test.values]
            if (not is_and) in known:  # and where the program decides the rest, it is as if alone
                return not is_and
            return is_and if None not in known else None
        names = {each.id for each in ast.walk(test) if isinstance(each, ast.Name)}
        if not names & self.facts.keys() or not names <= self.facts.keys():
            return None
        return bool(_value(test, self.facts))

    def condition(self, test):
        """The opposite."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            self.replace(test, f"({self.text(test.operand)})", "condition negated")
        elif not isinstance(test, ast.Compare) or len(test.ops) > 1:
            self.replace(test, f"(not ({self.text(test)}))", "condition negated")

    def visit_Compare(self, node):
        if self.holds(node) is not None:
            return
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            old, new = COMPARISONS[type(operator)]
            self.between(left, right, old, new, "comparison changed")
            left = right
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        if self.holds(node) is not None:
            return
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, rf"\b{old}\b", new, f"{old} is {new}")
        self.generic_visit(node)

    def visit_BinOp(self, node):
        if type(node.op) in ARITHMETIC:
            old, new = ARITHMETIC[type(node.op)]
            self.between(node.left, node.right, old, new, "operator changed")
        self.generic_visit(node)

    def visit_Call(self, node):
        if _is_of_version(node, self.facts) and _value(node, self.facts) is None:
            return  # an instruction that this version has not
        # Of the positional ones the last: without another one the call rarely fits.
        last = [len(node.args) - 1] if node.args else []
        for number in [*last, *range(len(node.args), len(node.args) + len(node.keywords))]:
            every = [*map(ast.unparse, node.args), *map(ast.unparse, node.keywords)]
            del every[number]
            text = f"{self.text(node.func)}({', '.join(every)})"
            self.replace(node, text, "argument dropped")
        self.generic_visit(node)

    def visit_Constant(self, node):
        value = node.value
        if isinstance(value, bool):
            self.replace(node, str(not value), "constant changed")
        elif isinstance(value, int | float):
            self.replace(node, "0" if value == 1 else repr(value + 1), "constant changed")
        elif isinstance(value, str) and MARK in value:
            self.code(node)
        elif isinstance(value, str) and " " not in value:
            self.replace(node, repr(value + "x" if value else "x"), "constant changed")

    def code(self, node):
        """Text of a handler: the mistakes that can be made in a line of it."""
        text = self.text(node)
        for old, new in IN_CODE:
            for found in re.finditer(re.escape(old), text):
                begin = self.begin(node) + len(text[: found.start()].encode())
                line = node.lineno + text[: found.start()].count("\n")
                self.put(
                    line, begin, begin + len(old.encode()), new, f"handler: {old!r} is {new!r}"
                )


def _declares(targets):
    names = {each.id for each in targets if isinstance(each, ast.Name)}
    return bool(names & DECLARING)


def _facts(tree):
    """The names of a module that are of the version of Python alone, and their values."""
    facts = dict(OF_THE_VERSION)
    for each in tree.body:
        if isinstance(each, ast.ImportFrom) and (each.module or "").startswith("diagnose"):
            known = _facts_of(each.module)
            facts |= {
                name.asname or name.name: known[name.name]
                for name in each.names
                if name.name in known
            }
        if isinstance(each, ast.Assign) and _is_of_version(each.value, facts):
            values = _value(each.value, facts)
            (target,) = each.targets
            if isinstance(target, ast.Name):
                facts[target.id] = values
            elif isinstance(each.value, ast.Tuple):
                facts |= {one.id: value for one, value in zip(target.elts, values, strict=True)}
        elif isinstance(each, ast.AnnAssign) and each.value and _is_of_version(each.value, facts):
            facts[each.target.id] = _value(each.value, facts)
    return facts


@functools.cache
def _facts_of(module):
    path = ROOT / f"{module.replace('.', '/')}.py"
    own = _facts(ast.parse(path.read_bytes())) if path.is_file() else {}
    return {name: value for name, value in own.items() if name not in OF_THE_VERSION}


def _is_of_version(expression, facts):
    names = [each.id for each in ast.walk(expression) if isinstance(each, ast.Name)]
    return bool(names) and all(name in facts for name in names)


def _value(expression, facts):
    return eval(compile(ast.Expression(expression), "<version>", "eval"), dict(facts))


def _only_says(node):
    """Whether a call is one of a logger."""
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")
