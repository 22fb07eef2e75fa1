"""Writes handlers.

Every generated function has the same envelope::

    try:
        turn the hit away
        what leaving needs = None
        try: enter the quiet state, serve the hit
        finally: take note of the time, and then leave the quiet state
    except BaseException: the instrument's, or else raise it again (it belongs to the program)

So nothing of a handler stands outside of the ``try``; what gets past it all the same is contained
by the woven code (:mod:`diagnose.bytecode.containment`). Nothing is compiled at a hit.
"""

from __future__ import annotations

import ast
import functools
import opcode
import random
import sys
import threading
import time
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from diagnose import forking
from diagnose.bytecode import weaving
from diagnose.bytecode.containment import drop
from diagnose.errors import ProbeError, UnknownNameError
from diagnose.forking import Layer
from diagnose.handlers import acting
from diagnose.handlers.binding import Binding, absent_local
from diagnose.handlers.plans import Act, Append, Emit, Fire
from diagnose.handlers.templates import (
    HERE,
    PLAIN_CHECK,
    PLAIN_SIFT,
    fill,
    filled,
    is_plain,
    name_of,
    statements_of,
)
from diagnose.limits import Limits
from diagnose.reentrancy import BUSY
from diagnose.tokens import Rate, hit_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diagnose.handlers.plans import Plan, Scope, Span

__all__ = ["disarm", "text", "write"]

# Taken now: one of them may itself be probed, and then its module has a stand-in for it.
_ident, _next = threading.get_ident, next
_clock, _getframe = time.perf_counter, sys._getframe
_random = random.Random()  # not the program's, which would see that numbers are drawn
forking.register(Layer.STATE, in_child=_random.seed)


def write(plan: Plan, scope: Scope, name: str, spent: dict[str, Any] | None = None) -> weaving.Hook:
    """Write the handler of ``plan`` for hits in ``scope``.

    Args:
        plan: what to evaluate and where to hand it.
        scope: what names mean.
        name: shown as the file in tracebacks out of expressions.
        spent: what is left of the limits; of a handler that takes the place of another, the dict
            that was given for that one.

    Returns:
        A hook for :func:`diagnose.bytecode.weaving.weave`.

    Raises:
        UnknownNameError: an expression uses a name that means nothing there.
    """
    return _Writer(plan, scope, name, {} if spent is None else spent).hook()


def text(plan: Plan, scope: Scope) -> str:
    """The functions that :func:`write` would make, as text with marks: for reading.

    ``C·x`` stands for a constant, ``E·x`` for an expression, ``d·x`` for a local variable.
    """
    writer = _Writer(plan, scope, "", {})
    writer.texts = []
    writer.hook()
    return "\n\n".join(writer.texts)


def disarm(hook: weaving.Hook) -> None:
    """Make a hook's functions do nothing from now on, for calls already inside too.

    An audit hook of the program may raise at that; then it is tried once more.
    """
    sift = None if hook.sift is None else hook.sift[0]
    for function in (hook.handler, hook.prelude, sift):
        if isinstance(function, FunctionType):
            for _ in range(2):
                try:
                    function.__code__ = _nothing(function.__code__.co_argcount)
                except Exception as error:
                    if not drop(error):
                        raise
                else:
                    break


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
    """Writes the functions of one hook."""

    def __init__(self, plan: Plan, scope: Scope, name: str, spent: dict[str, Any]) -> None:
        self.spent = spent
        self.texts: list[str] | None = None
        self.plan = plan
        self.scope = scope
        self.name = name
        self.constants: dict[str, object] = {
            "busy": BUSY,
            "ident": _ident,
            "enter": BUSY.add,
            "leave": BUSY.discard,
            "BaseException": BaseException,
            "passes": drop,
            "MISSING": weaving.MISSING,
            "float": float,
            "int": int,
            "next": _next,
            "type": type,
            "fail": plan.fail,
            "hit": plan.hit,
            # No dicts: tools use code objects as keys, which hashes their constants.
            "namespace": scope.namespace.__getitem__,
            "globals": globals,
            **{f"reject_{reason}": tally for reason, tally in plan.reject.items()},
        }
        self.bind = Binding(scope, self.constants, name, is_late=type(plan.delivery) is Act)

    def fetch_delivered(self, fetched: set[str]) -> list[ast.stmt]:
        """Statements that give the names of what is delivered their values."""
        plan = self.plan
        given = () if type(plan.delivery) is Fire else (plan.value, plan.tags)
        return [
            statement
            for each in given
            if each is not None
            for statement in self.bind.fetch(each, fetched)
        ]

    # --- code ---

    def hook(self) -> weaving.Hook:
        if self.plan.span is not None:
            return self.span_hook(self.plan.span)
        check = None if self.scope.event == "line" else self.plan.check
        handler = self.handler(has_verdict=check is not None)
        prelude = None
        if check is not None:
            self.constants["check"] = check
            body = statements_of("return C·check(args, kwargs)")
            prelude = self.function(["args", "kwargs"], self.envelope(body))
        acts = type(self.plan.delivery) is Act
        return weaving.Hook(
            handler,
            tuple(self.bind.arguments),
            prelude,
            ("args", "kwargs") if prelude else (),
            self.quick(),
            self.sift(),
            self.plan.defect,
            sets=self.parameters.names if acts and self.scope.event == "call" else None,
            replaces=acts and self.scope.event == "return",
        )

    @property
    def parameters(self) -> weaving.Parameters:
        """Those of the code that is woven: a stand-in's, if the target has none."""
        return self.scope.parameters or weaving.Parameters(star="args", double_star="kwargs")

    def span_hook(self, span: Span) -> weaving.Hook:
        """A hook that decides at the begin of a call, and is served at its end."""
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
            self.bind.argument("args")
            self.bind.argument("kwargs")
            text = "if not C·check(args, kwargs):\n C·next(C·reject_check)\n return"
            body += statements_of(text)
        if plan.when is not None:
            if plan.when.names & weaving.EXIT_NAMES:
                message = (
                    f"'when' of a {span.name!r} is decided before the call: it can't use "
                    f"{', '.join(sorted(plan.when.names & weaving.EXIT_NAMES))}"
                )
                raise UnknownNameError(message)
            body += self.bind.fetch(plan.when, set())
            body += statements_of("if not E·when:\n C·next(C·reject_condition)\n return")
        body += self.guards()
        body += statements_of("d·span = C·begin(C·frame_of(1))")
        if plan.limits.hits is not None:
            body += statements_of("if d·span is not None:\n d·span.is_last = not d·more")
        body += statements_of("return d·span")
        if self.bind.wants_all:
            body[:0] = self.bind.all_names({"start"} & self.bind.call_names)
        prelude = self.function(self.bind.arguments, self.envelope(body))
        names = tuple(self.bind.arguments)
        self.bind = Binding(self.scope, self.constants, self.name)

        body, fetched = [], {span.name}
        body += self.fetch_delivered(fetched)
        body += self.delivery() + self.last_words("d·verdict.is_last")
        if self.bind.wants_all or type(plan.delivery) is Fire:
            body[:0] = self.bind.all_names(self.cheap_names, span.name)
        # What was begun is finished in any case.
        first = f"if d·verdict is None:\n return\n{span.name} = C·finish(d·verdict)"
        handler = self.function(
            ["d·verdict", *self.bind.arguments], self.envelope(body, first=first)
        )
        return weaving.Hook(handler, tuple(self.bind.arguments), prelude, names, judge=plan.defect)

    def last_words(self, is_last: str) -> list[ast.stmt]:
        """Statements for the end of a served hit."""
        text = ""
        if self.plan.finish is not None:
            self.constants["finish_hit"] = self.plan.finish
            text += "C·finish_hit()\n"
        if self.plan.limits.hits is not None:
            self.constants["done"] = self.plan.done
            text += f"if {is_last}:\n C·done()"
        return statements_of(text)

    def handler(self, *, has_verdict: bool = False) -> FunctionType:
        """The function that serves a hit."""
        plan = self.plan
        fetched = {self.number_name} if self.number_name else set()
        ahead, body = [], []
        if has_verdict:
            ahead += statements_of("if not d·verdict:\n C·next(C·reject_check)\n return")
        elif plan.check is not None:
            self.constants["check"] = plan.check
            body += statements_of("if not C·check():\n C·next(C·reject_check)\n return")
        if plan.when is None:
            ahead += self.guards()
        else:
            condition = self.bind.fetch(plan.when, fetched)
            condition += statements_of("if not E·when:\n C·next(C·reject_condition)\n return")
            if self.plain_condition:
                ahead += statements_of(PLAIN_CHECK.replace("P·plain", self.plain_condition))
                (first,) = statements_of("if not d·passed:\n pass")
                first.body = condition  # type: ignore[attr-defined]
                condition = [first]
            body += condition + self.guards()
        body += self.fetch_delivered(fetched)
        body += self.delivery() + self.last_words("not d·more")
        if type(plan.delivery) is Act:
            body += statements_of("return d·outcome")
        if self.bind.wants_all or type(plan.delivery) in {Act, Fire}:
            body[:0] = self.bind.all_names(self.cheap_names)
        if self.is_given_the_time:
            self.bind.argument(weaving.NOW)
        parameters = ["d·verdict"] if has_verdict else []
        parameters += [_PARAMETERS.get(name, name) for name in self.bind.arguments]
        statements = self.envelope(
            body, ahead, is_safe=self.is_safe(), is_given_the_time=self.is_given_the_time
        )
        return self.function(parameters, statements)

    def delivery(self) -> list[ast.stmt]:
        """Statements that hand a hit's value on."""
        tags = "{}" if self.plan.tags is None else "E·tags"
        if self.plan.get_tags is not None:
            self.constants["get_tags"] = self.plan.get_tags
            tags = f"{{**C·get_tags(), **{tags}}}"
        match self.plan.delivery:
            case Append(append, number, freeze):
                self.constants |= {"append": append, "freeze": freeze}
                self.constants.setdefault("number", number)
                if self.has_tags:
                    return statements_of(f"C·append((E·number, C·freeze({tags})))")
                return statements_of("C·append(E·number)")
            case Emit(emit, name):
                self.constants |= {"emit": emit, "name": name}
                return statements_of(f"C·hit()\nC·emit(C·name, E·value, {tags})")
            case Fire(fire):
                self.constants["fire"] = fire
                return statements_of("C·hit()\nC·fire(C·globals(), d·all)")
            case Act(act):
                is_call = self.scope.event == "call"
                self.constants["act"] = (
                    acting.on_call(act, self.parameters) if is_call else acting.on_return(act)
                )
                return statements_of("C·hit()\nd·outcome = C·act(E·value, d·all)")

    @property
    def has_tags(self) -> bool:
        """Whether tags are made for each hit."""
        return self.plan.tags is not None or self.plan.get_tags is not None

    def envelope(
        self,
        body: list[ast.stmt],
        ahead: Sequence[ast.stmt] = (),
        *,
        first: str = "",
        is_safe: bool = False,
        is_given_the_time: bool = False,
    ) -> list[ast.stmt]:
        """What stands around a body: see the module.

        Args:
            body: what is done in the quiet state.
            ahead: statements that run no code of the program, before the quiet state.
            first: what is done whether the hit is turned away or not.
            is_safe: the body runs no code of the program either.
            is_given_the_time: ``d·began`` is an argument.
        """
        # Bound to a name first: the truth of a constant is decided by the compiler.
        head = statements_of(
            f"{first}\n"
            "if (d·busy := C·busy) and C·ident() in d·busy:\n C·next(C·reject_reentrant)\n return"
        )
        text = (
            "try:\n pass\nexcept C·BaseException as d·error:\n if not C·fail(d·error):\n  raise\n"
        )
        whole = _block(text)
        if not is_safe:
            # The thread is asked for before anything is entered, and a call stands only in a try
            # whose end is to leave: there a signal handler may raise.
            inner = _block(f"try:\n pass\nfinally:\n if d·ident is not None:\n{self.leaving()}")
            enter, own = self.entering(is_given_the_time=is_given_the_time)
            inner.body = [*enter, *body]
            body = [*own, inner]
        whole.body = [*head, *ahead, *body]
        return [whole]

    def entering(self, *, is_given_the_time: bool) -> tuple[list[ast.stmt], list[ast.stmt]]:
        """Statements that enter the quiet state, and those that set what leaving it needs."""
        text, own = "d·ident = C·ident()\nC·enter(d·ident)", "d·ident = "
        watch = self.plan.watch
        if watch is not None:
            self.constants |= {"clock": _clock, "note": watch.note, "measure": watch.begin}
            self.constants |= {"pending": watch.pending, "longest": watch.longest_seconds}
            text += "\nif (d·pending := C·pending):\n d·begun = C·measure()"
            own += "d·begun = "
            if not is_given_the_time:
                text = "d·began = C·clock()\n" + text
        return statements_of(text), statements_of(f"{own}None")

    def leaving(self) -> str:
        """Text, in a block, of what leaves the quiet state, after the time was noted."""
        if self.plan.watch is None:
            return "  C·leave(d·ident)"
        return (
            "  try:\n"
            "   d·spent = C·clock() - d·began\n"
            "   if d·begun or d·spent > C·longest:\n"
            "    C·note(d·spent, d·begun)\n"
            "  finally:\n"
            "   C·leave(d·ident)\n"
        )

    @functools.cached_property
    def is_given_the_time(self) -> bool:
        """Whether the clock's reading is an argument of the handler.

        So it is where it is read anyway, or where no condition turns hits away before it is
        needed.
        """
        plan = self.plan
        if plan.watch is None or plan.span is not None or self.is_safe():
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
        if when is None or when.constants:
            return ""
        if not when.names <= {*self.scope.names, *self.bind.call_names} or not is_plain(when.tree):
            return ""
        # By identity: to compare types runs code of their metaclasses.
        self.constants |= {"str": str, "bool": bool, "bytes": bytes, "none": type(None)}
        kinds = " or ".join(
            f"d·t is C·{kind}" for kind in ("float", "str", "bool", "none", "bytes")
        )
        check = f"((d·t := C·type({{0}})) is C·int or {kinds})"
        return " and ".join(map(check.format, sorted(when.names))) or "True"

    def sift(self) -> tuple[FunctionType, tuple[str, ...]] | None:
        """For ``return``: what says at the call that its condition will be false."""
        when = self.plan.when
        if when is None or self.scope.event != "return" or not self.plain_condition:
            return None
        if type(self.plan.delivery) is Act:  # it is called by other code, which looks at no sift
            return None
        names = sorted(when.names)
        # A parameter of the name of a result is that of the result by the end.
        later = {"args", "kwargs", *weaving.EXIT_NAMES}
        if not names or not set(names) <= set(self.scope.names) - later:
            return None
        text = PLAIN_SIFT.replace("P·plain", self.plain_condition)
        return self.function(names, statements_of(text)), tuple(names)

    def quick(self) -> tuple[Callable[[Any], object], str | float] | None:
        """What stands for the handler where it can neither fail nor run user code.

        So it is for clocks and literals. It can't be disarmed: what calls that are inside
        when it is taken off still append is dropped by the instrument.
        """
        plan = self.plan
        if not self.is_safe() or plan.value is None or plan.limits != Limits():
            return None
        if not isinstance(plan.delivery, Append):
            return None
        append, tree = plan.delivery.append, plan.value.tree
        if isinstance(tree, ast.Name) and tree.id in self.bind.clocks():
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
            self.constants |= {"random": _random.random, "sample": limits.sample}
            texts.append("if C·random() >= C·sample:\n C·next(C·reject_sample)\n return")
        if limits.rate is not None:
            self.constants["clock"] = _clock
            self.constants["rate"] = self.spent.setdefault("rate", Rate(limits.rate))
            now = "d·began" if self.is_given_the_time else "C·clock()"
            texts.append(f"if {now} >= C·rate.until:\n C·rate.roll()")
            texts.append("if not C·next(C·rate.tokens, False):\n C·next(C·reject_rate)\n return")
        if limits.hits is not None:
            self.constants["done"] = self.plan.done
            self.constants["tokens"] = self.spent.setdefault("tokens", hit_tokens(limits.hits))
            texts.append("d·more = C·next(C·tokens, None)")
            texts.append("if d·more is None:\n C·next(C·reject_hits)\n return")
        if self.plan.allotment is not None:
            take = (
                "try:\n d·allotment.pop()\nexcept C·IndexError:\n C·next(C·reject_fleet)\n return"
            )
            texts.append(take)
        return statements_of("\n".join(texts))

    def is_safe(self) -> bool:
        """Whether nothing in the handler can run user code: then it need not be guarded.

        So it is for a bare name (what is not a number is made one under a guard of its
        own) and for arithmetic on clocks.
        """
        plan, scope = self.plan, self.scope
        if type(plan.delivery) is not Append or self.has_tags or plan.when is not None:
            return False
        if plan.check is not None or plan.finish is not None:
            return False
        value = plan.value
        if value is None or not value.safe:
            return False
        if isinstance(value.tree, ast.Name):
            return scope.signature is None or value.tree.id in scope.names
        return value.names <= self.bind.clocks()

    @functools.cached_property
    def number_name(self) -> str | None:
        """The variable whose number is all that is wanted, so that it is looked at only once."""
        value = self.plan.value
        if not (self.scope.is_inside and self.is_safe()) or value is None:
            return None
        name = value.tree.id if isinstance(value.tree, ast.Name) else None
        if name not in self.scope.names:
            return None
        self.bind.argument(name)
        if not isinstance(self.plan.delivery, Append):
            return None
        number = self.plan.delivery.number

        def present(value: object) -> object:
            if value is weaving.MISSING:
                absent_local(name)
            return number(value)

        self.constants["number"] = present
        return name

    def number(self) -> ast.expr:
        """The value, made a number where it isn't sure to be one."""
        value = self.plan.value
        if value is not None:
            tree = value.tree
            is_clock = isinstance(tree, ast.Name) and tree.id in self.bind.clocks()
            is_literal = isinstance(tree, ast.Constant) and type(tree.value) in (int, float)
            if is_clock or is_literal:
                return name_of("E·value")
        text = (
            "d·value if C·type(d·value := E·value) is C·float or C·type(d·value) is C·int "
            "else C·number(d·value)"
        )
        return ast.parse(text, mode="eval").body

    @property
    def cheap_names(self) -> set[str]:
        """Names of the call that are not reckoned from others."""
        named = {name for each in (self.plan.value, self.plan.tags) if each for name in each.names}
        cheap = {"start", "result", "exception", "elapsed", "end"} & self.bind.call_names
        return cheap | ({"hotspots"} & named & self.bind.call_names)

    def function(self, parameters: list[str], statements: list[ast.stmt]) -> FunctionType:
        """Compile a function, its marks replaced by constants and expressions."""
        definition = ast.parse("def handler(): pass").body[0]
        if not isinstance(definition, ast.FunctionDef):
            raise TypeError
        definition.args.args = [ast.arg(name, **HERE) for name in parameters]
        definition.body = statements
        if self.texts is not None:
            self.texts.append(ast.unparse(definition))
        plan = self.plan
        given = {"value": plan.value, "tags": plan.tags, "when": plan.when}
        expressions = {name: each for name, each in given.items() if each is not None}
        used = fill(definition, self.constants, expressions, self.number)
        module = ast.Module([definition], [])
        try:
            compiled = compile(module, self.name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError) as error:
            message = f"the expression can't be used with this function: {error}"
            raise ProbeError(message, code="expression") from error
        code = next(value for value in compiled.co_consts if isinstance(value, CodeType))
        has_use = type(plan.delivery) is Fire or _uses_globals(code)
        globals_ = self.scope.globals_ if has_use else {}
        return FunctionType(filled(code, used), globals_, "handler")


_LOAD_GLOBAL = opcode.opmap["LOAD_GLOBAL"]


def _uses_globals(code: CodeType) -> bool:
    """Whether it looks up any: if not, it must not keep a module's alive.

    A generator that is suspended keeps the code that it began with, so the handlers in it, also
    past the end of the probe; and the collector does not see what code refers to.
    """
    inner = (value for value in code.co_consts if isinstance(value, CodeType))
    return _LOAD_GLOBAL in code.co_code[::2] or any(map(_uses_globals, inner))


def _block(text: str) -> ast.Try:
    (statement,) = statements_of(text)
    if not isinstance(statement, ast.Try):
        raise TypeError
    return statement


_PARAMETERS = {weaving.NOW: "d·began"}
