"""What the names in an instrument's expressions mean in a handler, and where they come from."""

from __future__ import annotations

import ast
import builtins
from typing import TYPE_CHECKING

from diagnose.bytecode import weaving
from diagnose.errors import UnknownNameError
from diagnose.handlers.names import ABOUT_NAMES, Names, NamesSource
from diagnose.handlers.templates import HERE, item, name_of, statements_of
from diagnose.wording import suggest

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Mapping

    from diagnose.expressions import Expression
    from diagnose.handlers.plans import Scope

__all__ = ["Binding", "absent_local"]


class Binding:
    """The names that one function that serves hits has been found to need.

    Args:
        scope: what names mean.
        constants: what is needed besides is added.
        name: shown as the file in tracebacks out of expressions.

    Attributes:
        arguments: what the function is to be given, in this order.
        call_names: names of the call besides parameters and variables.
        wants_all: whether ``d·all`` is needed, see :meth:`all_names`.
    """

    def __init__(
        self, scope: Scope, constants: dict[str, object], name: str, *, is_late: bool = False
    ) -> None:
        self.scope = scope
        self.constants = constants
        self.name = name
        self.arguments: list[str] = []
        self.wants_all = False
        self.call_names = {
            "call": weaving.ENTRY_NAMES,
            "return": weaving.ENTRY_NAMES | weaving.EXIT_NAMES,
        }.get(scope.event, frozenset())
        if is_late:  # its hits come when lines are not measured any more
            self.call_names -= {"hotspots"}

    def fetch(self, expression: Expression, fetched: set[str]) -> list[ast.stmt]:
        """Statements that give the expression's names their values."""
        statements: list[ast.stmt] = []
        for name in sorted(expression.names):
            if name in fetched:
                continue
            fetched.add(name)
            source = self.source(name)
            if source is not None:
                statements += self.assign(name, source)
            elif self.scope.is_inside and name in self.arguments:
                self.constants["absent"] = absent_local
                statements += statements_of(f"if {name} is C·MISSING:\n C·absent({name!r})")
        return statements

    def assign(self, name: str, source: ast.expr) -> list[ast.stmt]:
        """Statements for one name; what its mapping lacks at a hit is called by its name."""
        assignment = ast.Assign([name_of(name, ast.Store())], source, **HERE)
        if not isinstance(source, ast.Subscript):
            return [assignment]
        self.constants |= {"KeyError": KeyError, "absent": _absent_keyword}
        text = f"try:\n pass\nexcept C·KeyError:\n C·absent({name!r})"
        statements = statements_of(text)
        statements[0].body = [assignment]  # type: ignore[attr-defined]
        return statements

    def source(self, name: str) -> ast.expr | None:
        """Where a name's value comes from; None: it is an argument or a global."""
        scope = self.scope
        if name in scope.names or name in self.call_names:
            self.argument(name)
            return None
        if scope.signature is not None and name in scope.signature.parameters:
            self.argument("args")
            self.argument("kwargs")
            self.constants["bind"] = _binder(scope.signature)
            return ast.parse(f"C·bind(args, kwargs)[{name!r}]", mode="eval").body
        if name in scope.namespace:
            return ast.parse(f"C·namespace({name!r})", mode="eval").body
        if name in scope.globals_:
            return None
        if name in ABOUT_NAMES:
            self.constants[name] = ABOUT_NAMES[name]
            self.wants_all = True
            return ast.parse(f"C·{name}(d·all)", mode="eval").body
        if hasattr(builtins, name):
            return None
        if scope.keywords is not None and not scope.is_inside and self._takes_any_keyword():
            self.argument(scope.keywords)
            return item(scope.keywords, name)
        known = {*scope.names, *self.call_names, *scope.namespace, *scope.globals_}
        if scope.signature is not None:
            known |= set(scope.signature.parameters)
        public = [word for word in known if not word.startswith("__")]
        inside = "a local variable of the function or a global of its module"
        where = {
            "end": inside,
            "line": inside,
            "call": "a parameter, or one of start, now, args, kwargs, frame",
        }.get(
            scope.event,
            "a parameter, or one of result, exception, elapsed, hotspots, start, end, now, "
            "args, kwargs, frame",
        )
        message = (
            f"name {name!r} means nothing for the event {scope.event!r} of this function"
            f"{suggest(name, public)}; use {where}"
        )
        raise UnknownNameError(message)

    def _takes_any_keyword(self) -> bool:
        """Whether callers may give names that are known at a hit only."""
        signature = self.scope.signature
        return signature is None or any(
            each.kind is each.VAR_KEYWORD for each in signature.parameters.values()
        )

    def argument(self, name: str) -> None:
        """Ask for an argument."""
        if name not in self.arguments:
            self.arguments.append(name)

    def clocks(self) -> set[str]:
        """The names that are floats whatever the call was."""
        clocks = {"elapsed", "end"} if self.scope.event == "return" else set()
        if not self.scope.is_inside and "start" not in self.scope.names:
            clocks.add("start")
        return clocks

    def all_names(self, cheap: set[str], made: str | None = None) -> list[ast.stmt]:
        """Statements that give ``d·all`` a mapping of all names of the call.

        Args:
            cheap: what is listed besides the parameters or variables.
            made: one more, which has its value already.
        """
        names = sorted({*self.scope.names, *cheap} - {made})
        for name in names:
            self.argument(name)
        known = tuple(name for name in (*names, *filter(None, [made])) if name.isidentifier())
        source = NamesSource(known, self.scope, self.name)
        self.constants |= {"Names": Names, "source": source}
        values = ", ".join(known) + ("," if known else "")
        return statements_of(f"d·all = C·Names(({values}), C·source)")


def absent_local(name: str) -> None:
    """Raise what a variable without a value raises; called at a hit."""
    message = (
        f"{name!r} has no value there: it is set later, or on other ways through the function; name "
        "what every way has set by then"
    )
    raise NameError(message) from None


def _absent_keyword(name: str) -> None:
    message = (
        f"this call has no argument {name!r}; if others have it, write kwargs.get({name!r}), and for "
        "a local variable use the event 'end'"
    )
    raise NameError(message) from None


def _binder(signature: inspect.Signature) -> Callable[..., Mapping[str, object]]:
    """Bind a wrapper's ``*args, **kwargs`` to the names of what it stands before."""

    def bind(args: tuple[object, ...], kwargs: dict[str, object]) -> Mapping[str, object]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    return bind
