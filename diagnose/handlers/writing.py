"""Writes handlers."""

from __future__ import annotations

import ast
import builtins
import functools
import opcode
import random
import sys
import threading
import time
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from diagnose import expressions, guards
from diagnose.bytecode import weaving
from diagnose.errors import ProbeError, UnknownNameError
from diagnose.guards import Limits
from diagnose.handlers.quiet import BUSY, Quiet, parsing
from diagnose.handlers.templates import (
    _PLAIN,
    _PLAIN_CHECK,
    _PLAIN_SIFT,
    _filled,
    _Filler,
    _is_plain,
    _item,
    _statements,
)

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Mapping, Sequence

    from diagnose.expressions import Expression
    from diagnose.handlers.plans import Plan, Scope, Span

__all__ = ["disarm", "write"]

# Taken now: one of them may itself be probed, and then its module has a stand-in for it.
_ident, _next = threading.get_ident, next
_clock, _random, _getframe = time.perf_counter, random.random, sys._getframe


def write(plan: Plan, scope: Scope, name: str) -> weaving.Hook:
    """Write the handler of ``plan`` for hits in ``scope``.

    Args:
        plan: what to evaluate and where to hand it.
        scope: what names mean.
        name: shown as the file in tracebacks out of expressions.

    Returns:
        A hook for :func:`diagnose.bytecode.weaving.weave`.

    Raises:
        UnknownNameError: an expression uses a name that means nothing there.
    """
    return _Writer(plan, scope, name).hook()


def disarm(hook: weaving.Hook) -> None:
    """Make a hook's functions do nothing from now on, for calls already inside too."""
    sift = None if hook.sift is None else hook.sift[0]
    for function in (hook.handler, hook.prelude, hook.absent, sift):
        if isinstance(function, FunctionType):
            function.__code__ = _nothing(function.__code__.co_argcount)


@functools.cache
def _nothing(count: int) -> CodeType:
    """Code with so many parameters that does nothing.

    Without the GIL a call that begins as the code is exchanged lays out its arguments by the new
    one in the frame of the old one: the interpreter crashes if they have other parameters.
    """
    names = tuple(f"_{number}" for number in range(count))
    code = (lambda: None).__code__
    return code.replace(co_argcount=count, co_nlocals=count, co_varnames=names)


class _Writer:
    """Writes one handler.

    Args:
        by_mapping: let it take one argument, a mapping of the frame's variables, and read
            from it what it comes to: for calls in which not every variable has a value.
    """

    def __init__(self, plan: Plan, scope: Scope, name: str, *, by_mapping: bool = False) -> None:
        self.plan = plan
        self.scope = scope
        self.name = name
        self.by_mapping = by_mapping
        self.arguments: list[str] = []
        self.constants: dict[str, object] = {
            "busy": BUSY,
            "ident": _ident,
            "enter": BUSY.add,
            "leave": BUSY.discard,
            "Exception": Exception,
            "dict": dict,
            "float": float,
            "int": int,
            "next": _next,
            "type": type,
            "fail": plan.fail,
            # No dicts: tools use code objects as keys, which hashes their constants.
            "namespace": scope.namespace.__getitem__,
            "globals": lambda: {**scope.globals_, **scope.namespace},
            **{f"reject_{reason}": tally for reason, tally in plan.reject.items()},
            **plan.constants,
        }
        self.call_names = {
            "call": weaving.ENTRY_NAMES,
            "return": weaving.ENTRY_NAMES | weaving.EXIT_NAMES,
        }.get(scope.event, frozenset())

    # --- names ---

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
        return statements

    def assign(self, name: str, source: ast.expr) -> list[ast.stmt]:
        """Statements for one name; what its mapping lacks at a hit is called by its name."""
        assignment = ast.Assign([ast.Name(name, ast.Store())], source)
        if not isinstance(source, ast.Subscript):
            return [assignment]
        self.constants |= {"KeyError": KeyError, "absent": _ABSENT[self.scope.event]}
        text = f"try:\n pass\nexcept C·KeyError:\n C·absent({name!r})"
        statements = _statements(text)
        statements[0].body = [assignment]  # type: ignore[attr-defined]
        return statements

    def source(self, name: str) -> ast.expr | None:
        """Where a name's value comes from; None: it is an argument or a global."""
        scope = self.scope
        if self.by_mapping:
            if name in scope.names:
                return _item("d·locals", name)
        elif name in scope.names or name in self.call_names:
            self.argument(name)
            return None
        if scope.signature is not None and name in scope.signature.parameters:
            self.argument("args")
            self.argument("kwargs")
            self.constants["bind"] = _binder(scope.signature)
            return ast.parse(f"C·bind(args, kwargs)[{name!r}]", mode="eval").body
        if name in scope.namespace:
            return ast.parse(f"C·namespace({name!r})", mode="eval").body
        if name in scope.globals_ or hasattr(builtins, name):
            return None
        if scope.keywords is not None and not scope.is_inside:
            self.argument(scope.keywords)
            return _item(scope.keywords, name)
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
            f"{expressions.suggest(name, public)}; use {where}"
        )
        raise UnknownNameError(message)

    def argument(self, name: str) -> None:
        if name not in self.arguments:
            self.arguments.append(name)

    # --- code ---

    def hook(self) -> weaving.Hook:
        if self.plan.span is not None:
            return self.span_hook(self.plan.span)
        check = None if self.scope.is_inside else self.plan.check
        handler = self.handler(has_verdict=check is not None)
        prelude = absent = None
        if check is not None:
            self.constants["check"] = check
            body = _statements("return C·check(args, kwargs)")
            prelude = self.function(["args", "kwargs"], self.frame(), body)
        elif self.scope.is_inside and self.arguments:
            absent = self.absent()
        return weaving.Hook(
            handler,
            tuple(self.arguments),
            prelude,
            ("args", "kwargs") if prelude else (),
            self.quick(),
            absent,
            self.sift(),
        )

    def span_hook(self, span: Span) -> weaving.Hook:
        """One that decides at the begin of a call, and is served at its end."""
        plan = self.plan
        if not self.scope.has_frame:
            message = (
                "the target has no Python code: there is no frame whose calls could be watched"
            )
            raise ProbeError(message, code="calltree-unavailable")
        self.constants |= {"begin": span.begin, "finish": span.finish, "frame_of": _getframe}
        body: list[ast.stmt] = []
        if plan.check is not None:
            self.constants["check"] = plan.check
            self.argument("args")
            self.argument("kwargs")
            text = "if not C·check(args, kwargs):\n C·next(C·reject_check)\n return"
            body += _statements(text)
        if plan.when is not None:
            if plan.when.names & weaving.EXIT_NAMES:
                message = (
                    f"'when' of a {span.name!r} is decided before the call: it can't use "
                    f"{', '.join(sorted(plan.when.names & weaving.EXIT_NAMES))}"
                )
                raise UnknownNameError(message)
            body += self.fetch(plan.when, set())
            body += _statements("if not E·when:\n C·next(C·reject_condition)\n return")
        body += self.guards()
        body += _statements("d·span = C·begin(C·frame_of(1))")
        if plan.limits.hits is not None:
            body += _statements("if d·span is not None:\n d·span.is_last = not d·more")
        body += _statements("return d·span")
        prelude = self.function(self.arguments, self.frame(), body)
        names, self.arguments = tuple(self.arguments), []

        body = [ast.Assign([ast.Name(span.name, ast.Store())], ast.Name("d·made", ast.Load()))]
        body += _statements(plan.deliver) if "D·locals" not in plan.deliver else []
        fetched = {span.name}
        for expression in (plan.value, plan.tags):
            if expression is not None:
                body[1:1] = self.fetch(expression, fetched)
        if plan.limits.hits is not None:
            body += _statements("if d·verdict.is_last:\n C·done()")
        frame = _statements("if d·verdict is None:\n return\nd·made = C·finish(d·verdict)")
        frame += self.frame()
        handler = self.function(["d·verdict", *self.arguments], frame, body)
        return weaving.Hook(handler, tuple(self.arguments), prelude, names)

    def handler(self, *, has_verdict: bool = False) -> FunctionType:
        """The function that serves a hit."""
        plan = self.plan
        fetched: set[str] = set()
        ahead, body = [], []
        if plan.check is not None and not has_verdict:
            self.constants["check"] = plan.check
            body += _statements("if not C·check():\n C·next(C·reject_check)\n return")
        if plan.when is None:
            ahead += self.guards()
        else:
            condition = self.fetch(plan.when, fetched)
            condition += _statements("if not E·when:\n C·next(C·reject_condition)\n return")
            if self.plain_condition:
                ahead += _statements(_PLAIN_CHECK.replace("P·plain", self.plain_condition))
                first = ast.If(ast.parse("not d·passed", mode="eval").body, condition, [])
                condition = [first]
            body += condition + self.guards()
        whole = "D·locals" in plan.deliver
        deliver = _statements(plan.deliver.replace("D·globals", "C·globals()"))
        if whole:
            body += self.whole_locals()
        else:
            for expression in (plan.value, plan.tags):
                if expression is not None:
                    body += self.fetch(expression, fetched)
        body += deliver
        if plan.limits.hits is not None:
            body += _statements("if not d·more:\n C·done()")
        if self.is_given_the_time:
            self.argument(weaving.NOW)
        frame = self.frame(ahead, has_verdict=has_verdict, is_safe=self.is_safe())
        parameters = ["d·verdict"] if has_verdict else []
        parameters += [_PARAMETERS.get(name, name) for name in self.arguments]
        if self.by_mapping:
            parameters = ["d·locals"]
        return self.function(parameters, frame, body)

    def frame(
        self, ahead: Sequence[ast.stmt] = (), *, has_verdict: bool = False, is_safe: bool = False
    ) -> list[ast.stmt]:
        """What stands around the body: nobody's probe fires in it, and no error leaves it.

        Args:
            ahead: statements that can do no harm, to be run before anything is entered.
            has_verdict: the first argument says whether the call is to be served.
            is_safe: so can the body.
        """
        # Bound to a name first: the truth of a constant is decided by the compiler.
        text = (
            "if (d·busy := C·busy) and C·ident() in d·busy:\n C·next(C·reject_reentrant)\n return\n"
        )
        if has_verdict:
            text += "if not d·verdict:\n C·next(C·reject_check)\n return\n"
        head = [*_statements(text), *ahead]
        # What serves an error may itself meet the recursion limit.
        text = (
            "try:\n E·body\n"
            "except C·Exception as d·error:\n"
            " try:\n  C·fail(d·error)\n except C·Exception:\n  pass\n"
        )
        if is_safe:
            return [*head, *_statements(text)]
        # The thread is asked for before anything is entered: between the start of the
        # finally clause and the call in it no signal handler can raise.
        text = text.replace("try:\n", "d·ident = C·ident()\ntry:\n C·enter(d·ident)\n", 1)
        text += "finally:\n C·leave(d·ident)\n"
        watch = self.plan.watch
        if watch is not None:
            self.constants |= {"clock": _clock, "note": watch.note, "pending": watch.pending}
            self.constants["longest"] = watch.longest_seconds
            if weaving.NOW not in self.arguments:
                text = "d·began = C·clock()\n" + text
            text += (
                " d·spent = C·clock() - d·began\n"
                " if d·spent > C·longest or (d·pending := C·pending):\n"
                "  try:\n   C·note(d·spent)\n  except C·Exception:\n   pass\n"
            )
        return [*head, *_statements(text)]

    @functools.cached_property
    def is_given_the_time(self) -> bool:
        """Whether the clock's reading is an argument of the handler.

        So it is where it is read anyway, or where no condition turns hits away before it is
        needed.
        """
        plan = self.plan
        if plan.watch is None or plan.span is not None or self.by_mapping or self.is_safe():
            return False
        named = {name for each in (plan.value, plan.tags, plan.when) if each for name in each.names}
        shares = self.scope.event == "return" and "elapsed" in named
        return shares or plan.when is None

    @functools.cached_property
    def plain_condition(self) -> str:
        """Text that says whether ``when`` is a matter of numbers and strings alone.

        If it is true, evaluating the condition runs no code of the program, so nothing has
        to be entered, and it gives the same at any time. Empty: never.
        """
        when = self.plan.when
        if when is None or self.by_mapping or when.constants:
            return ""
        if not when.names <= {*self.scope.names, *self.call_names} or not _is_plain(when.tree):
            return ""
        self.constants["plain"] = _PLAIN
        check = "((d·t := C·type({0})) is C·int or d·t is C·float or d·t in C·plain)"
        return " and ".join(map(check.format, sorted(when.names))) or "True"

    def sift(self) -> tuple[FunctionType, tuple[str, ...]] | None:
        """For ``return``: what says at the call that its condition will be false."""
        when = self.plan.when
        if when is None or self.scope.event != "return" or not self.plain_condition:
            return None
        names = sorted(when.names)
        # A parameter of the name of a result is that of the result by the end.
        later = {"args", "kwargs", *weaving.EXIT_NAMES}
        if not names or not set(names) <= set(self.scope.names) - later:
            return None
        text = _PLAIN_SIFT.replace("P·plain", self.plain_condition)
        return self.function(names, _statements(text), []), tuple(names)

    def absent(self) -> FunctionType:
        """What serves a hit in which a variable has no value; written when there is one."""

        @functools.cache
        def make() -> FunctionType:
            with Quiet():
                writer = _Writer(self.plan, self.scope, self.name, by_mapping=True)
                shared = self.constants.keys() & {"rate", "tokens"}
                writer.constants |= {name: self.constants[name] for name in shared}
                return parsing(writer.handler)

        self.constants |= {"make": make, "frame_of": _getframe}
        return self.function([], _statements("C·make()(C·frame_of(1).f_locals)"), [])

    def quick(self) -> tuple[Callable[[Any], object], str | float] | None:
        """What stands for the handler where it can neither fail nor run user code.

        So it is for clocks and literals. It can't be disarmed: what calls that are inside
        when it is taken off still append is dropped by the instrument.
        """
        plan = self.plan
        if not self.is_safe() or plan.value is None or plan.limits != Limits():
            return None
        append: Any = self.constants["append"]
        tree = plan.value.tree
        if isinstance(tree, ast.Name) and tree.id in self.clocks():
            return append, tree.id
        if isinstance(tree, ast.Constant) and type(tree.value) in {int, float}:
            return append, tree.value  # type: ignore[return-value]
        return None

    def guards(self) -> list[ast.stmt]:
        """Statements that turn hits away, the cheapest first."""
        limits, texts = self.plan.limits, []
        if self.plan.allotment is not None:
            # Bound to a name first, as above.
            self.constants |= {"allotment": self.plan.allotment, "IndexError": IndexError}
            texts.append("if not (d·allotment := C·allotment):\n C·next(C·reject_fleet)\n return")
        if limits.sample is not None:
            self.constants |= {"random": _random, "sample": limits.sample}
            texts.append("if C·random() >= C·sample:\n C·next(C·reject_sample)\n return")
        if limits.rate is not None:
            self.constants["clock"] = _clock
            self.constants.setdefault("rate", guards.Rate(limits.rate))
            now = "d·began" if self.is_given_the_time else "C·clock()"
            texts.append(f"if {now} >= C·rate.until:\n C·rate.roll()")
            texts.append("if not C·next(C·rate.tokens, False):\n C·next(C·reject_rate)\n return")
        if limits.hits is not None:
            self.constants["done"] = self.plan.done
            self.constants.setdefault("tokens", guards.hit_tokens(limits.hits))
            texts.append("d·more = C·next(C·tokens, None)")
            texts.append("if d·more is None:\n C·next(C·reject_hits)\n return")
        if self.plan.allotment is not None:
            take = (
                "try:\n d·allotment.pop()\nexcept C·IndexError:\n C·next(C·reject_fleet)\n return"
            )
            texts.append(take)
        return _statements("\n".join(texts))

    def is_safe(self) -> bool:
        """Whether nothing in the handler can run user code: then it need not be guarded.

        So it is for a bare name (what is not a number is made one under a guard of its
        own) and for arithmetic on clocks.
        """
        plan, scope = self.plan, self.scope
        if not plan.quick or plan.when is not None or plan.tags is not None or plan.check:
            return False
        value = plan.value
        if value is None or not value.safe:
            return False
        if isinstance(value.tree, ast.Name):
            return scope.signature is None or value.tree.id in scope.names
        return value.names <= self.clocks()

    def clocks(self) -> set[str]:
        """The names that are floats whatever the call was."""
        clocks = {"elapsed", "end"} if self.scope.event == "return" else set()
        if not self.scope.is_inside and "start" not in self.scope.names:
            clocks.add("start")
        return clocks

    def number(self) -> ast.expr:
        """The value, made a number where it isn't sure to be one."""
        value = self.plan.value
        if value is not None:
            tree = value.tree
            is_clock = isinstance(tree, ast.Name) and tree.id in self.clocks()
            is_literal = isinstance(tree, ast.Constant) and type(tree.value) in (int, float)
            if is_clock or is_literal:
                return ast.Name("E·value", ast.Load())
        text = (
            "d·value if C·type(d·value := E·value) is C·float or C·type(d·value) is C·int "
            "else C·number(d·value)"
        )
        return ast.parse(text, mode="eval").body

    def whole_locals(self) -> list[ast.stmt]:
        if self.scope.is_inside:
            if not self.by_mapping:
                self.argument(weaving.LOCALS)
            return _statements("d·all = C·dict(d·locals)")
        # What measures every line is there only for those who name it.
        named = {name for each in (self.plan.value, self.plan.tags) if each for name in each.names}
        names = sorted({*self.call_names, *self.scope.names} - ({"hotspots"} - named))
        for name in names:
            self.argument(name)
        values: list[ast.expr] = [ast.Name(name, ast.Load()) for name in names]
        keys: list[ast.expr | None] = [ast.Constant(name) for name in names]
        return [ast.Assign([ast.Name("d·all", ast.Store())], ast.Dict(keys, values))]

    def function(
        self, parameters: list[str], frame: list[ast.stmt], body: list[ast.stmt]
    ) -> FunctionType:
        """Compile a function, its marks replaced by constants and expressions."""
        definition = ast.parse("def handler(): pass").body[0]
        if not isinstance(definition, ast.FunctionDef):
            raise TypeError
        definition.args.args = [ast.arg(name) for name in parameters]
        filler = _Filler(self, body)
        definition.body = frame
        definition = filler.visit(definition)
        module = ast.fix_missing_locations(ast.Module([definition], []))
        try:
            compiled = compile(module, self.name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError) as error:
            message = f"the expression can't be used with this function: {error}"
            raise ProbeError(message, code="expression") from error
        code = next(value for value in compiled.co_consts if isinstance(value, CodeType))
        globals_ = self.scope.globals_ if _uses_globals(code) else {}
        return FunctionType(_filled(code, filler.used), globals_, "handler")


_LOAD_GLOBAL = opcode.opmap["LOAD_GLOBAL"]


def _uses_globals(code: CodeType) -> bool:
    """Whether it looks up any: if not, it must not keep a module's alive.

    A generator that is suspended keeps the code that it began with, so the handlers in it, also
    past the end of the probe; and the collector does not see what code refers to.
    """
    inner = (value for value in code.co_consts if isinstance(value, CodeType))
    return _LOAD_GLOBAL in code.co_code[::2] or any(map(_uses_globals, inner))


def _absent_local(name: str) -> None:
    message = (
        f"{name!r} has no value there: it is set on other ways through the function; name "
        "what every way sets"
    )
    raise NameError(message) from None


def _absent_keyword(name: str) -> None:
    message = f"this call has no argument {name!r}; write kwargs.get({name!r}) instead"
    raise NameError(message) from None


_ABSENT = {
    "call": _absent_keyword,
    "return": _absent_keyword,
    "end": _absent_local,
    "line": _absent_local,
}
_PARAMETERS = {weaving.LOCALS: "d·locals", weaving.NOW: "d·began"}


def _binder(signature: inspect.Signature) -> Callable[..., Mapping[str, object]]:
    """Bind a wrapper's ``*args, **kwargs`` to the names of what it stands before."""

    def bind(args: tuple[object, ...], kwargs: dict[str, object]) -> Mapping[str, object]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    return bind
