"""Writes the code that stands in for one function, and puts it in place.

A probe does not wrap a function and does not look for references to it. It gives the
function object another code object, the *trampoline*: same signature, same kind, same
names and lines, but its body calls a copy of the original and, around it, the handlers
of the instruments. Whoever holds the function (an alias, a bound method, a partial, a
closure) calls the trampoline from then on; putting the saved code back undoes it.

Handlers, the copy and the clock are constants of the trampoline's code, so a probed
call looks up no global and no closure. For plain functions the trampoline's frame is
invisible: CPython (3.11 to 3.14) takes a frame for complete once it is past its first
``RESUME`` instruction, and leaves incomplete frames out of ``sys._getframe``,
tracebacks and ``inspect``. Ours has none before it calls the original. That is a detail
of CPython, so :func:`hides_frames` tries it once at import, and visible frames are used
where it does not hold.
"""

from __future__ import annotations

import ast
import dis
import inspect
import re
import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from diagnose.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping

__all__ = ["ENTRY_NAMES", "EXIT_NAMES", "Hook", "Parameters", "copy_function", "write"]

ENTRY_NAMES = frozenset({"start", "now", "args", "kwargs", "frame"})
"""What a ``call`` can name besides the parameters."""

EXIT_NAMES = frozenset({"result", "exception", "elapsed", "end"})
"""What a ``return`` can name besides what a ``call`` can."""

# Tracers and profilers written in C (coverage, cProfile) keep a stack of frames. They are
# told of the end of a frame without a RESUME although they were not told of its begin: on
# 3.11 of every one, on 3.12 of every one that was instrumented before, later of those that
# an exception leaves. So there is a RESUME there, at the very end, which makes a begin.
_BEGINS_BEFORE_RETURN = sys.version_info < (3, 13)
_BEGIN_LINE = 2
_RESUME = dis.opmap["RESUME"]
_RETURN = dis.opmap["RETURN_VALUE"]
_RERAISE = dis.opmap["RERAISE"]
_POP_EXCEPT = dis.opmap["POP_EXCEPT"]
_NOP = dis.opmap["NOP"]
# Taken now: one of them may itself be probed, and then its module has a stand-in for it.
_clock, _time, _getframe = time.perf_counter, time.time, sys._getframe
_KINDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
# Marks that a decorator (types.coroutine) may have put on the code; they say how others
# may use it, so the stand-in has to carry them too.
_MARKS = inspect.CO_ITERABLE_COROUTINE


@dataclass(frozen=True, slots=True, eq=False)
class Hook:
    """One handler's place in a trampoline.

    Attributes:
        handler: called with the values of ``names``, by position. It must not raise.
        names: parameters of the function, or names of :data:`ENTRY_NAMES` and
            :data:`EXIT_NAMES`.
        prelude: if given, called with the values of ``prelude_names`` before the body;
            what it returns is handed to ``handler`` as one more, first argument.
        prelude_names: as ``names``, without :data:`EXIT_NAMES`.
        inline: if given, statements to be run in place of a call of ``handler`` (which saves
            a third of what a metric costs). In it ``C·x`` stands for ``constants["x"]``, and
            ``N·x`` for the value of the name ``x``.
        constants: for ``inline``.
    """

    handler: Callable[..., object]
    names: tuple[str, ...] = ()
    prelude: Callable[..., object] | None = None
    prelude_names: tuple[str, ...] = ()
    inline: str = ""
    constants: Mapping[str, object] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        """What the text of a trampoline depends on."""
        return self.names, self.prelude is not None, self.prelude_names, self.inline


@dataclass(frozen=True, slots=True)
class Parameters:
    """A signature without its defaults (those stay on the function object)."""

    positional_only: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()
    keyword_only: tuple[str, ...] = ()
    star: str | None = None
    double_star: str | None = None

    @classmethod
    def of(cls, code: CodeType) -> Parameters:
        """Read the signature off a code object."""
        names = code.co_varnames
        count, only = code.co_argcount, code.co_posonlyargcount
        end = count + code.co_kwonlyargcount
        star = double_star = None
        rest = end
        if code.co_flags & inspect.CO_VARARGS:
            star = names[rest]
            rest += 1
        if code.co_flags & inspect.CO_VARKEYWORDS:
            double_star = names[rest]
        return cls(names[:only], names[only:count], names[count:end], star, double_star)

    def __iter__(self) -> Iterator[str]:
        yield from self.positional_only
        yield from self.positional
        yield from self.keyword_only
        if self.star is not None:
            yield self.star
        if self.double_star is not None:
            yield self.double_star


def copy_function(function: FunctionType, code: CodeType) -> FunctionType:
    """Make the *original*: what ``function`` was, under a code object of its own.

    Closures made by one ``def`` share a code object; events armed inside the copy's code
    (``sys.monitoring``) touch this one function only. The copy needs no defaults: the
    trampoline hands it every argument.
    """
    copy = FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)
    copy.__qualname__ = function.__qualname__
    copy.__module__ = function.__module__
    return copy


# --- writing --------------------------------------------------------------------------
#
# The text is cached by its shape: parameters, kind and the names that hooks want. Names
# that begin with "C·" become constants, those with "d·" become locals that no
# parameter can collide with ("@result" is no identifier, but it is a good name for a
# local once the text is parsed).


def write(
    code: CodeType,
    original: Callable[..., Any],
    *,
    before: tuple[Hook, ...] = (),
    after: tuple[Hook, ...] = (),
    on_error: Callable[[BaseException], object] | None = None,
    parameters: Parameters | None = None,
) -> CodeType:
    """Write a trampoline for the function whose code is ``code``.

    Args:
        code: the function's own code: names, lines, kind and free variables are its.
        original: what the trampoline calls with all the arguments.
        before: hooks that run before the body.
        after: hooks that run when it has returned or raised.
        on_error: called first with the exception when the body raised (``end`` events
            read the dead frame's locals off its traceback).
        parameters: the signature, if not that of ``code``; one that begins with
            ``d·self`` is a method whose ``self`` is not handed on.

    Raises:
        ProbeError: the signature has names that no source text can have.
    """
    parameters = parameters or Parameters.of(code)
    shape = (
        parameters,
        code.co_flags & _KINDS,
        tuple(hook.shape for hook in before),
        tuple(hook.shape for hook in after),
        on_error is not None,
        len(code.co_freevars),
    )
    template = _template(*shape)
    constants: dict[object, object] = {
        "@original": original,
        "@clock": _clock,
        "@time": _time,
        "@frame": _getframe,
        "@now": _utcnow,
        "@forget_frame": _forget_frame,
        "@first_step": _first_step,
        "@BaseException": BaseException,
        "@StopIteration": StopIteration,
        "@StopAsyncIteration": StopAsyncIteration,
        "@on_error": on_error,
    }
    for kind, hooks in (("before", before), ("after", after)):
        for number, hook in enumerate(hooks):
            constants[f"@{kind}{number}"] = hook.handler
            constants[f"@prelude_{kind}{number}"] = hook.prelude
            for name, value in hook.constants.items():
                constants[f"@{name}·{kind}{number}"] = value
    flags = template.co_flags | (code.co_flags & _MARKS)
    return template.replace(
        co_name=code.co_name,
        co_qualname=code.co_qualname,
        co_filename=code.co_filename,
        co_firstlineno=code.co_firstlineno,
        co_flags=flags,
        co_freevars=code.co_freevars,
        co_consts=tuple(
            constants.get(value, value) if isinstance(value, str) else value
            for value in template.co_consts
        ),
    )


def _utcnow() -> Any:
    from datetime import UTC, datetime  # noqa: PLC0415  (wanted only by those who name it)

    return datetime.now(UTC).replace(tzinfo=None)


def _forget_frame(error: BaseException) -> None:
    """Take the calling trampoline's entry off the front of a traceback."""
    trace = error.__traceback__
    if trace is not None and trace.tb_frame is _getframe(1):
        error.__traceback__ = trace.tb_next


def _first_step(agen: AsyncGenerator[Any, Any]) -> Awaitable[Any]:
    """Start an async generator behind the event loop's back.

    A loop keeps a list of those that it has to close. The trampoline's is on it; the
    original behind that must not be, or the loop closes both at the same time.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return agen.asend(None)
    finally:
        sys.set_asyncgen_hooks(*hooks)


Shape = tuple[tuple[str, ...], bool, tuple[str, ...], str]


@lru_cache(maxsize=512)
def _template(  # noqa: PLR0917  (all of it is the key of the cache)
    parameters: Parameters,
    kind: int,
    before: tuple[Shape, ...],
    after: tuple[Shape, ...],
    ends: bool,  # noqa: FBT001
    free: int,
) -> CodeType:
    body = _body(parameters, kind, before, after, ends=ends)
    signature = _signature(parameters)
    prefix = "async def" if kind & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR) else "def"
    lines = [f"{prefix} d·trampoline({signature}):", *_indented(body)]
    if free:
        # Free variables must be as many as the function's closure has cells. Nothing here
        # reads them, but the compiler has to see them: where their slots stay empty,
        # ``f_locals`` of the frame crashes 3.11 and 3.12.
        cells = ", ".join(f"d·free{number}" for number in range(free))
        lines.insert(1, f"    if 0: {cells}")
        lines = ["def d·outer():", f"    for {cells} in (): pass", *_indented(lines)]
    text = "\n".join(lines)
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        message = (
            f"no trampoline can be written for the signature ({signature}): {error.msg}; "
            "a probe needs parameters that are ordinary identifiers"
        )
        raise ProbeError(message) from error
    _Namer().visit(tree)
    module = compile(tree, "<diagnose>", "exec", dont_inherit=True)
    code = _inner(_inner(module) if free else module)
    if not kind and _frames_hide:
        return _hidden(code)
    return code


def _inner(code: CodeType) -> CodeType:
    return next(value for value in code.co_consts if isinstance(value, CodeType))


class _Namer(ast.NodeTransformer):
    """Turns ``C·x`` into the constant "@x" and ``d·x`` into a local named "@x".

    Everything is put on line 1 of the text, the ``def`` itself, so that after
    ``replace(co_firstlineno=…)`` no line of the trampoline lies elsewhere.
    """

    def visit(self, node: ast.AST) -> ast.AST:
        if "lineno" in node._attributes:
            node.lineno = node.end_lineno = 1  # type: ignore[attr-defined]
            node.col_offset = node.end_col_offset = 0  # type: ignore[attr-defined]
        return super().visit(node)  # type: ignore[no-any-return]

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id == "d·begin":
            # A constant on a line of its own is compiled to one NOP.
            node.value = ast.copy_location(ast.Constant(None), node)
            for part in (node, node.value):
                part.lineno = part.end_lineno = _BEGIN_LINE
            return node
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id.startswith("C·"):
            # Called as it is, a constant string would draw a SyntaxWarning; the compiler
            # folds the condition away and leaves one LOAD_CONST.
            constant = ast.Constant("@" + node.id[2:])
            chosen = ast.IfExp(ast.Constant(value=True), constant, ast.Constant(None))
            for part in (chosen, chosen.test, constant, chosen.orelse):
                ast.copy_location(part, node)
            return chosen
        node.id = self._local(node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.arg = self._local(node.arg)
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        if node.name:
            node.name = self._local(node.name)
        return self.generic_visit(node)

    @staticmethod
    def _local(name: str) -> str:
        return "@" + name[2:] if name.startswith("d·") else name


def _hidden(code: CodeType) -> CodeType:
    """Make the frame incomplete, and without lines, until it comes to a begin."""
    raw = bytearray(code.co_code)
    begins = {
        start
        for start, _, line in code.co_lines()
        if line == code.co_firstlineno + _BEGIN_LINE - 1 and raw[start] == _NOP
    }
    first = next(index for index in range(0, len(raw), 2) if raw[index] == _RESUME)
    raw[first : first + 2] = bytes((_NOP, 0))
    table = bytearray()
    shown = False
    for index in range(0, len(raw), 2):
        if index in begins:
            # As after an await: there no signal is looked for.
            raw[index : index + 2] = bytes((_RESUME, 2))
            shown = True
        # Objects/locations.md of CPython: one unit on the line of the
        # "def" without columns, or without any location.
        table += bytes((0x80 | 13 << 3, 0)) if shown else bytes((0x80 | 15 << 3,))
        if raw[index] == _RETURN or (raw[index] == _RERAISE and raw[index - 2] == _POP_EXCEPT):
            shown = False
    return code.replace(co_code=bytes(raw), co_linetable=bytes(table))


def _signature(parameters: Parameters) -> str:
    parts = list(parameters.positional_only)
    if parts:
        parts.append("/")
    parts += parameters.positional
    if parameters.star is not None:
        parts.append("*" + parameters.star)
    elif parameters.keyword_only:
        parts.append("*")
    parts += parameters.keyword_only
    if parameters.double_star is not None:
        parts.append("**" + parameters.double_star)
    return ", ".join(parts)


def _call(parameters: Parameters) -> str:
    positional = (*parameters.positional_only, *parameters.positional)
    parts = [name for name in positional if name != "d·self"]
    if parameters.star is not None:
        parts.append("*" + parameters.star)
    parts += [f"{name}={name}" for name in parameters.keyword_only]
    if parameters.double_star is not None:
        parts.append("**" + parameters.double_star)
    return f"C·original({', '.join(parts)})"


def _all_args(parameters: Parameters) -> str:
    positional = (*parameters.positional_only, *parameters.positional)
    parts = [name for name in positional if name != "d·self"]
    if parameters.star is not None:
        parts.append("*" + parameters.star)
    return f"({', '.join(parts)},)" if parts else "()"


def _all_kwargs(parameters: Parameters) -> str:
    parts = [f"{name!r}: {name}" for name in parameters.keyword_only]
    if parameters.double_star is not None:
        parts.append("**" + parameters.double_star)
    return "{" + ", ".join(parts) + "}"


def _body(
    parameters: Parameters,
    kind: int,
    before: tuple[Shape, ...],
    after: tuple[Shape, ...],
    *,
    ends: bool,
) -> list[str]:
    at_entry = {name for names, _, prelude, _ in before for name in (*names, *prelude)}
    at_entry |= {name for _, _, prelude, _ in after for name in prelude}
    at_exit = {name for names, _, _, _ in after for name in names}
    # "args" and "kwargs" are always all of the arguments; every other parameter hides the
    # entry name it is spelled like, while names of the exit hide parameters.
    plain = set(parameters) - {"args", "kwargs"}
    wanted = at_entry | (at_exit - EXIT_NAMES)

    source = {
        "args": _all_args(parameters),
        "kwargs": _all_kwargs(parameters),
        "start": "d·start",
        "now": "d·now",
        # Number 0 would be the trampoline's own frame, complete or not.
        "frame": "C·frame(1)",
    }
    leaving = {"result": "d·result", "exception": "None"}
    leaving |= {"elapsed": "d·elapsed", "end": "d·end"}
    raising = leaving | {"result": "d·error", "exception": "d·error"}

    def spell(names: tuple[str, ...], extra: dict[str, str]) -> str:
        return ", ".join(
            extra.get(name) or (name if name in plain else source[name]) for name in names
        )

    gone = sorted(wanted - plain - set(source))
    if gone:
        message = (
            f"the function has no parameter {gone[0]!r} any more: its code was replaced while it "
            "was probed; take the instruments that name it off, or change them"
        )
        raise ProbeError(message)

    def calls(what: str, shapes: tuple[Shape, ...], extra: dict[str, str]) -> list[str]:
        lines = []
        for number, (names, prelude, _, inline) in enumerate(shapes):
            if inline:
                text = re.sub(r"C·(\w+)", rf"C·\1·{what}{number}", inline)
                text = re.sub(r"N·(\w+)", lambda match: spell((match[1],), extra), text)
                lines += text.splitlines()
                continue
            first = f"d·prelude_{what}{number}, " if prelude else ""
            lines.append(f"C·{what}{number}({first}{spell(names, extra)})")
        return lines

    head: list[str] = []
    if "start" in wanted and "start" not in plain:
        head.append("d·start = C·time()")
    if "now" in wanted and "now" not in plain:
        head.append("d·now = C·now()")
    for what, shapes in (("before", before), ("after", after)):
        for number, (_, prelude, names, _) in enumerate(shapes):
            if prelude:
                target = f"d·prelude_{what}{number}"
                head.append(f"{target} = C·prelude_{what}{number}({spell(names, {})})")
    head += calls("before", before, {})
    if "elapsed" in at_exit:
        head.append("d·began = C·clock()")

    tail: list[str] = []
    if "elapsed" in at_exit:
        tail.append("d·elapsed = C·clock() - d·began")
    if "end" in at_exit:
        tail.append("d·end = C·time()")

    call = _call(parameters)
    visible = bool(kind) or not _frames_hide
    begin = [] if visible else ["d·begin"]
    failed = []
    if visible:
        # A bare ``raise`` does not add our frame to the traceback again.
        failed.append("C·forget_frame(d·error)")
    # The clock is read before anything else is done, so that no handler is measured.
    failed = tail + failed + (["C·on_error(d·error)"] if ends else [])
    failed += [*calls("after", after, raising), *begin, "raise"]
    passed = [*tail, *calls("after", after, leaving)]
    if not kind & inspect.CO_ASYNC_GENERATOR:
        passed += [*(begin if _BEGINS_BEFORE_RETURN else []), "return d·result"]
    return [
        *head,
        "try:",
        *_indented(_delegate(call, kind)),
        "except C·BaseException as d·error:",
        *_indented(failed),
        # Here and not behind it, for so it stands before the except clause on 3.11 too.
        "else:",
        *_indented(passed or ["pass"]),
    ]


def _indented(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


def _delegate(call: str, kind: int) -> list[str]:
    """Run the original to its end, whatever kind it is."""
    if kind & inspect.CO_ASYNC_GENERATOR:
        # There is no "async yield from": values, throws and closes are handed on by hand. A
        # close is thrown like any other exception, for the original may refuse it. What is
        # handed on is never in a variable while the generator waits: it would live longer
        # than it did. Nothing is run inside an except block, where it would see our
        # exception as the one being handled.
        return [
            f"d·agen = {call}",
            "d·box = [C·first_step(d·agen)]",
            "try:",
            "    while True:",
            "        try:",
            "            d·sent = yield await d·box.pop()",
            "            d·box.append(d·agen.asend(d·sent))",
            "            d·sent = None",
            "        except C·BaseException as d·error:",
            "            if d·agen.ag_frame is None:",
            "                raise",
            "            C·forget_frame(d·error)",
            "            d·box.append(d·agen.athrow(d·error))",
            "except C·StopAsyncIteration:",
            "    d·result = None",
        ]
    if kind & inspect.CO_GENERATOR:
        # Not "yield from": that turns a GeneratorExit into a close, which the original
        # can't refuse, and whose result is lost. The rest as above.
        return [
            f"d·gen = {call}",
            "d·send = d·step = d·gen.send",
            "d·box = []",
            "d·sent = None",
            "try:",
            "    while True:",
            "        try:",
            "            if d·sent is None:",
            "                d·sent = yield d·send(None)",
            "            else:",
            "                d·box.append(d·step(d·sent))",
            "                d·sent, d·step = None, d·send",
            "                d·sent = yield d·box.pop()",
            "        except C·BaseException as d·error:",
            "            if d·gen.gi_frame is None:",
            "                d·sent = None  # maybe this very exception: they would keep each other",
            "                raise",
            "            C·forget_frame(d·error)",
            "            d·sent, d·step = d·error, d·gen.throw",
            "except C·StopIteration as d·stop:",
            "    d·result = d·stop.value",
        ]
    return [f"d·result = {'await ' if kind else ''}{call}"]


# --- does this interpreter hide frames without RESUME? ---------------------------------


def _hides_frames() -> bool:
    """Try on a small function whether frames without ``RESUME`` stay unseen."""
    seen: list[object] = []

    def look(*, flag: bool) -> object:
        frame: Any = sys._getframe(1)
        seen.append(frame.f_code)
        if flag:
            raise LookupError
        return frame.f_code

    try:
        subject: Any = look
        saved = look.__code__
        original = copy_function(subject, saved.replace())
        hook = Hook(lambda _result: None, ("result",))
        look.__code__ = write(saved, original, after=(hook,))
        try:
            here = sys._getframe().f_code
            look(flag=False)
            try:
                look(flag=True)
            except LookupError as error:
                trace: Any = error.__traceback__
                depth = 0
                while trace is not None:
                    depth, trace = depth + 1, trace.tb_next
                if depth != 2:  # noqa: PLR2004  (this function and the original: no third)
                    return False
            return seen == [here, here]
        finally:
            look.__code__ = saved
    except Exception:  # noqa: BLE001  (whatever it is: use what surely works)
        return False


_frames_hide = sys.implementation.name == "cpython"
_frames_hide = _frames_hide and _hides_frames()
_template.cache_clear()


def hides_frames() -> bool:
    """Whether the frames of plain trampolines are invisible on this interpreter."""
    return _frames_hide
