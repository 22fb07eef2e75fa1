"""Makes functions of expressions, so that tests can evaluate them without a probe."""

from __future__ import annotations

import ast
import builtins
from types import CellType, CodeType, FunctionType


def function_of(expression, parameters, globals_):
    """A function of exactly these parameters that returns the expression's value."""
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


def _lambda(parameters, body):
    names = [ast.arg(arg=name) for name in parameters]
    arguments = ast.arguments(
        posonlyargs=[], args=names, kwonlyargs=[], kw_defaults=[], defaults=[]
    )
    return ast.Lambda(args=arguments, body=body)
