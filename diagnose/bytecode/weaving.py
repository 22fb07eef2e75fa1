"""Puts the calls of probes into a function's own code.

A probe does not wrap a function and does not look for references to it. It gives the
function object another code object: the same instructions, with calls of the instruments'
handlers between them. Whoever holds the function (an alias, a bound method, a partial, a
closure) runs that code from then on; putting the saved code back undoes it. No frame is
added, so there is nothing to hide: callers, tracebacks, generators, coroutines, ``super()``,
``locals()`` and debuggers are what they were.

What is put in::

    RESUME
    + values to be kept until the end  -> the bottom of the stack, where nothing else looks
    + calls for ``call``
    the function's instructions
      + before each return:   calls for ``end`` and ``return``, then the kept values are dropped
      + before a line:        calls for ``line:N``
    + where no handler takes an exception: calls for ``end`` and ``return``, raise it again

Kept values are on the stack since nobody sees it: a local variable would be in ``locals()``.
The function's own instructions count from the top of the stack and do not notice.

What is raised again keeps its traceback and its place: a ``RERAISE`` adds no entry and sets
the frame back to the instruction that raised.

What any call of ours raises is contained (:mod:`diagnose.bytecode.containment`), and every
instruction of ours is on the line of where it stands: at the begin the first of the body, at a
return its own, and for exceptions that leave the function there is a copy for each line that may
raise one.
"""

from __future__ import annotations

import contextlib
import inspect
import opcode
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from diagnose.bytecode import assembly
from diagnose.bytecode.assembly import Handler, Instruction
from diagnose.bytecode.containment import LOST, Containment, Stretch, all_of, drop
from diagnose.bytecode.emitter import NOWHERE, Constants, Emitter
from diagnose.bytecode.flow import (
    RESUMES_AT,
    depths,
    effect,
    line_starts,
    may_be_set,
    plain_cells,
    stored,
)
from diagnose.bytecode.hooks import (
    ENTRY_NAMES,
    EXIT_NAMES,
    MISSING,
    NOW,
    Hook,
    Parameters,
    body_begin,
    places,
    variables,
)
from diagnose.bytecode.timing import Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from types import CodeType

    from diagnose.bytecode.assembly import Location


__all__ = [
    "ENTRY_NAMES",
    "EXIT_NAMES",
    "MISSING",
    "NOW",
    "Hook",
    "Parameters",
    "variables",
    "weave",
]

_op = opcode.opmap
_RESUME, _NOP = _op["RESUME"], _op["NOP"]
_RETURN, _RETURN_CONST, _LOAD_CONST = (
    _op["RETURN_VALUE"],
    _op.get("RETURN_CONST"),
    _op["LOAD_CONST"],
)
_POP_TOP = _op["POP_TOP"]
_RERAISE, _YIELD = _op["RERAISE"], _op["YIELD_VALUE"]
_PUSH_EXC_INFO, _POP_EXCEPT = _op["PUSH_EXC_INFO"], _op["POP_EXCEPT"]
_BUILD_LIST, _LIST_APPEND = _op["BUILD_LIST"], _op["LIST_APPEND"]
_MOST_COPIES = 400
"""Calls of hooks where exceptions leave, over all lines; if there would be more, all are on one."""
_MOST_KEPT, _LIST, _RAISED = 4, "@list", "@raised"
_CHANGES = frozenset(
    number
    for name, number in _op.items()
    if name.startswith(("STORE_FAST", "DELETE_FAST", "LOAD_FAST_AND_CLEAR"))
)
# Tracers and profilers written in C (coverage, cProfile) keep a stack of frames. They are told of
# the end of a hidden frame although they were not told of its begin: on 3.11 of every one, on
# 3.12 of every one that was instrumented before, later of those that an exception leaves. So
# there is a RESUME at the very end, which makes a begin.
_BEGINS_BEFORE_RETURN = sys.version_info < (3, 13)
_AFTER_AWAIT = 2  # of a RESUME: there no signal is looked for

_CALLED_FOR = frozenset({"kwargs", "start", "now", "frame", "hotspots"})
"""Names whose values need a call at the begin, for which there may be no room."""

# Taken now: one of them may itself be probed, and then its module has a stand-in for it.
_time, _getframe = time.time, sys._getframe


def weave(
    code: CodeType,
    *,
    before: Sequence[Hook] = (),
    after: Sequence[Hook] = (),
    ends: Sequence[Hook] = (),
    lines: Iterable[tuple[int, Hook]] = (),
    busy: Collection[object] = (),
    report: Callable[[tuple[int, ...], Any], object] | None = None,
    hidden: bool = False,
) -> CodeType:
    """Put hooks into a function's code.

    Args:
        code: the function's own.
        before: hooks to be called before the body.
        after: hooks to be called when it has returned or raised: with ``result``.
        ends: hooks to be called just before, with the frame's variables.
        lines: hooks to be called before a line of the file runs.
        busy: as long as it is empty, ``quick`` of a hook stands for its handler.
        report: makes ``hotspots`` of the lines' numbers and what was measured; see
            :func:`diagnose.bytecode.timing.line_totals`.
        hidden: let the frame not be seen by anybody (a stand-in's, which adds one).

    Raises:
        ValueError: a line has no code, or a hook names what the function does not have.
    """
    weaver = _Weaver(code, busy, report, hidden=hidden)
    return weaver.weave(before, after, ends, tuple(lines))


class _Weaver:
    def __init__(
        self,
        code: CodeType,
        busy: Collection[object],
        report: Callable[[tuple[int, ...], Any], object] | None,
        *,
        hidden: bool,
    ) -> None:
        self.code = code
        self.busy = busy
        self.report = report
        self.timing: Timing | None = None
        self.hidden = hidden
        self.constants = Constants(code)
        self.listing = assembly.read(code)
        self.parameters = Parameters.of(code)
        begin = body_begin(self.listing)
        self.prologue, self.body = self.listing[:begin], self.listing[begin:]
        # Since 3.15 the iterator of a generator expression is there before its body begins.
        self.there = sum(map(effect, self.prologue))
        self.index = places(code, self.listing)
        # Since 3.12: what makes a StopIteration that leaves a generator a RuntimeError.
        taking = (one.handler for one in self.listing if one.handler is not None)
        self.wrapper = next(filter(_is_wrapper, taking), None)
        self.raising: list[Instruction] = []
        self.changed = self._changed()
        self.plain: dict[int, frozenset[int]] = {}
        self.set: dict[int, int] = {}
        # By name: where it is on the stack; or its number in the list that is there.
        self.kept: dict[str, int] = {}
        self.listed: dict[str, int] = {}
        self.stubs: list[Emitter] = []
        self.containment = Containment(self.constants)
        self.judge: Callable[[BaseException], bool] = drop
        self.only: Hook | None = None
        self.keeps = False
        self.deepest = code.co_stacksize

    def _changed(self) -> set[int]:
        """The local variables that the body gives another value, or none."""
        changed: set[int] = set()
        for one in self.body:
            if one.opcode in _CHANGES:
                changed |= stored(one) or {one.argument}
        return changed

    def weave(
        self,
        before: Sequence[Hook],
        after: Sequence[Hook],
        ends: Sequence[Hook],
        lines: Sequence[tuple[int, Hook]],
    ) -> CodeType:
        wants_timing = any("hotspots" in hook.names for hook in after)
        depth = depths(self.listing) if lines or wants_timing else {}
        # Now: what else is put in changes where jumps lead to.
        starts = line_starts(self.listing) if lines else {}
        cells = {number for number, is_cell in self.index.values() if is_cell}
        self.plain = plain_cells(self.listing, cells, depth) if lines else {}
        if lines or ends:
            given = range(len(self.parameters.names))
            self.set = may_be_set(self.listing, given, len(self.code.co_varnames))
        handlers = {id(one.handler.target) for one in self.listing if one.handler is not None}
        self.judge = all_of(hook.judge or drop for hook in after if not hook.may_raise)
        if wants_timing:
            self.timing = Timing(self.constants, self.body, depth)
        if len(after) == 1 and not ends and after[0].sift and not after[0].replaces:
            self.only = after[0]
        entry = Emitter(self.constants, self.there, self._at(self._first_line()))
        self.keeps = bool(after or ends)
        # Instruments that watch see what the caller gave.
        self.changed |= {self.index[name][0] for hook in before for name in hook.sets or ()}
        self._enter(entry, before, after, ends)
        entry.end(self.body[0])
        leaving: list[Emitter] = []
        woven: dict[int, list[Instruction]] = {}
        behind: dict[int, list[Instruction]] = {}
        if self.keeps:
            leaving = self._watch_exceptions(after, ends)
        if self.timing is not None:
            self.timing.weave(len(self.kept), woven, behind)
            self.stubs[:0] = self.timing.stubs  # near: the function's jumps lead there
            pieces = [*woven.values(), *behind.values(), *(each.out for each in self.timing.stubs)]
            self.containment.each_call(
                (one for piece in pieces for one in piece),
                lambda stub: stub.copy(len(self.kept) - 1),  # no time went by
                self.judge,
            )
            self.deepest = max(self.deepest, self.timing.deepest + 1)
        self._weave_lines(lines, starts, handlers, depth, woven, behind)
        if self.keeps:
            self._weave_returns(after, ends, woven)
        listing = [*self.prologue, *entry.out]
        for one in self.body:
            listing += woven.get(id(one), ())
            listing.append(one)
            listing += behind.get(id(one), ())
        for emitter in (*leaving, *self.stubs):
            listing += emitter.out
        self.containment.finish(listing)
        for emitter in self.containment.stubs:
            listing += emitter.out
        for emitter in (entry, *leaving, *self.stubs, *self.containment.stubs):
            self.deepest = max(self.deepest, emitter.deepest + 1)
        if self.hidden:
            self._hide(listing)
        return assembly.write(
            self.code,
            listing,
            constants=self.constants.added,
            # What is kept lies below all that the function has there.
            stack_size=max(self.deepest, self.code.co_stacksize + len(self.kept)),
        )

    def _first_line(self) -> int | None:
        """The line that the begin is on: the first of the body.

        Tracers are told of the line of whatever comes behind the RESUME, so a line of its own
        would be seen. A debugger's jump to it leads to the very begin, where nothing is kept yet.
        """
        own = (one.location[0] for one in (*self.body, self.prologue[-1]))
        return next((line for line in own if line is not None), None)

    def _at(self, line: int | None) -> Location:
        """The location of what stands on a line; nobody sees the lines of a hidden frame."""
        return NOWHERE if self.hidden or line is None else (line, line, None, None)

    # --- the begin ---

    def _enter(
        self, emit: Emitter, before: Sequence[Hook], after: Sequence[Hook], ends: Sequence[Hook]
    ) -> None:
        parameters = set(self.parameters.names) - {"args", "kwargs"}
        exit_names = dict.fromkeys(name for hook in after for name in hook.names)
        for name in exit_names:
            if name in EXIT_NAMES or name == NOW or (name == "frame" and name not in parameters):
                continue
            if name in parameters and not self._may_change(name):
                continue
            if name in _CALLED_FOR:
                with self.containment.pushing(emit, LOST, self.judge):
                    self._entry_value(emit, name)
            else:
                self._entry_value(emit, name)
            self._keep(emit, name)
        for hooks in (before, after, ends):
            for hook in hooks:
                if hook.prelude is not None:
                    with self.containment.pushing(emit, None, hook.judge or drop) as stretch:
                        self._need(emit, stretch, hook.prelude_names)
                        emit.begin_call(hook.prelude)
                        for name in hook.prelude_names:
                            self._entry_value(emit, name)
                        emit.end_call(len(hook.prelude_names))
                    self._keep(emit, _prelude(hook))
        for hook in after:
            if hook.sift is not None:
                function, names = hook.sift
                with self.containment.pushing(emit, instead=True, judge=hook.judge or drop):
                    emit.begin_call(function)
                    for name in names:
                        self._parameter(emit, name)
                    emit.end_call(len(names))
                self._keep(emit, _sifted(hook))
        acting = [hook for hook in before if hook.sets is not None]
        for hook in before:
            if hook.sets is None and not hook.may_raise:
                with self.containment.passing(emit, hook.judge or drop) as stretch:
                    self._need(emit, stretch, hook.names)
                    self._call_hook(emit, hook, self._entry_value)
        if acting:
            self._act_on_call(emit, acting)
        for hook in before:
            if hook.may_raise:
                self._call_handler(emit, hook, self._entry_value)
        if not self.keeps:
            if acting:
                self._raise_in_place_of_body(emit)
            while emit.depth > self.there:
                emit.pop()
            self.kept.clear()
            self.listed.clear()
        if "elapsed" in exit_names:
            with self.containment.pushing(emit, LOST, self.judge):
                self._read_time(emit)
            self._keep(emit, "@began")
        if self.timing is not None:
            self._enter_timing(emit, self.timing)
        if acting and self.keeps:
            self._raise_in_place_of_body(emit)

    def _act_on_call(self, emit: Emitter, acting: Sequence[Hook]) -> None:
        """Call hooks that act; keep what is to be raised, or None.

        It is raised once all that is kept is there: so who looks at the end sees it, and what was
        begun is ended.
        """
        raises = Instruction(_NOP, 0, emit.location, emit.handler)
        for hook in acting:
            self._set_parameters(emit, hook, hook.sets or (), raises)
        emit.constant(None)
        emit.place(raises)
        self._keep(emit, _RAISED)

    def _set_parameters(
        self, emit: Emitter, hook: Hook, names: Sequence[str], raises: Instruction
    ) -> None:
        """Call a hook and do what it says: give parameters other values, or go on at ``raises``."""
        nothing = Instruction(_POP_TOP, 0, emit.location, emit.handler)
        self._push_outcome(emit, hook, self._value_now, nothing)
        emit.unpack(2)
        goes_on = Instruction(_POP_TOP, 0, emit.location, emit.handler)
        emit.copy(emit.depth - 1)
        emit.jump_if_is(None, goes_on)
        emit.drop_second()
        emit.go(raises)
        emit.place(goes_on)
        emit.unpack(len(names))
        for name in names:
            index, is_cell = self.index[name]
            kept = Instruction(_POP_TOP, 0, emit.location, emit.handler)
            emit.copy(emit.depth - 1)
            emit.jump_if_is(MISSING, kept)
            emit.copy(emit.depth - 1)
            emit.store(index, is_cell=is_cell)
            emit.place(kept)
            emit.depth -= 1
        # Behind it is what pops the None.
        emit.constant(None)
        emit.place(nothing)
        emit.depth -= 1

    def _raise_in_place_of_body(self, emit: Emitter) -> None:
        goes_on = Instruction(_POP_TOP, 0, emit.location, emit.handler)
        self._push_kept(emit, _RAISED)
        emit.copy(emit.depth - 1)
        emit.jump_if_is(None, goes_on)
        emit.raise_it()
        # Where it goes if somebody looks at the end is not written yet.
        self.raising.append(emit.out[-1])
        if not self.keeps:
            emit.out[-1].handler = self._way_out(emit.location, 0, None)
        emit.place(goes_on)

    def _way_out(self, location: Location, depth: int, around: Handler | None) -> Handler | None:
        """Where goes what is raised in the function's stead, as if its own code had raised it.

        Args:
            location: of what raises it.
            depth: of the stack, as far as it is left.
            around: what takes it in the end.
        """
        if self.wrapper is not None:
            return Handler(
                self._copy(self.wrapper, location, depth, around).out[0], depth, keeps_place=True
            )
        if self.hidden and around is None:
            stub = Emitter(self.constants, depth + 2, location)
            self._show(stub)
            stub.add(_RERAISE, 0, -1)
            self.stubs.append(stub)
            return Handler(stub.out[0], depth, keeps_place=True)
        return around

    def _push_outcome(
        self,
        emit: Emitter,
        hook: Hook,
        push: Callable[[Emitter, str], None],
        nothing: Instruction,
    ) -> None:
        """Push what a hook returns, but go on at ``nothing`` if that is None."""
        with self.containment.pushing(emit, None, hook.judge or drop) as stretch:
            self._need(emit, stretch, hook.names)
            self._call_handler(emit, hook, push, drops=False)
        emit.copy(emit.depth - 1)
        emit.jump_if_is(None, nothing)

    def _enter_timing(self, emit: Emitter, timing: Timing) -> None:
        position = self.kept["hotspots"] = emit.depth - self.there
        emit.constant(None)
        emit.sink(self.there)
        begin = len(emit.out)
        for number in range(timing.enter(emit, self.there)):
            self.kept[f"@timing {number}"] = -1

        def lose(stub: Emitter) -> None:
            stub.constant(LOST)
            stub.swap(stub.depth - position)
            stub.pop()
            stub.constant(0.0)

        self.containment.each_call(emit.out[begin:], lose, self.judge)

    def _read_time(self, emit: Emitter) -> None:
        position = emit.depth
        if self.only is None:
            emit.read_clock()
        else:
            # A hook that is not going to be called needs no time.
            busy = Emitter(self.constants, position, emit.location, emit.handler)
            busy.read_clock()
            idle = Emitter(self.constants, position, emit.location, emit.handler)
            idle.constant(None)
            self._push_kept(emit, _sifted(self.only))
            emit.choose(busy, idle)

    def _keep(self, emit: Emitter, name: str) -> None:
        """Keep the topmost value until the end: on the stack, from the fourth on in a list there.

        When a debugger jumps (``frame.f_lineno = N``), CPython reckons what is on the stack, and a
        SWAP where more than eleven values are makes it forget the lowest: it jumps with too much
        on the stack, or too little (``stack_swap`` of ``frameobject.c``, 3.11 to 3.15).
        """
        below = self.there if self.keeps else 0
        if len(self.kept) < _MOST_KEPT - 1:
            self.kept[name] = emit.depth - 1 - below
            emit.sink(below)
            return
        if not self.listed:
            self.kept[_LIST] = emit.depth - 1 - below
            emit.add(_BUILD_LIST, 1)
            emit.sink(below)
        else:
            emit.add(_LIST_APPEND, emit.depth - 1 - self.kept[_LIST], -1)
        self.listed[name] = len(self.listed)

    def _push_kept(self, emit: Emitter, name: str) -> None:
        if name in self.listed:
            emit.copy(self.kept[_LIST])
            emit.item(self.listed[name])
        else:
            emit.copy(self.kept[name])

    def _may_change(self, name: str) -> bool:
        index, is_cell = self.index[name]
        return is_cell or index in self.changed

    def _entry_value(self, emit: Emitter, name: str) -> None:
        if name in self.kept or name in self.listed:
            self._push_kept(emit, name)
        elif name == NOW:
            emit.read_clock()
        elif name in self.parameters.names and name not in {"args", "kwargs"}:
            self._parameter(emit, name)
        elif name == "args":
            self._all_args(emit)
        elif name == "kwargs":
            self._all_keywords(emit)
        elif name == "start":
            emit.call(_time)
        elif name == "now":
            emit.call(_utcnow)
        elif name == "frame":
            self._frame(emit)
        else:
            message = f"the function has no parameter {name!r}"
            raise ValueError(message)

    def _value_now(self, emit: Emitter, name: str) -> None:
        """Push what a name means at the begin, after others that act; not what was kept."""
        if name == "args":
            self._all_args(emit)
        elif name == "kwargs":
            self._all_keywords(emit)
        elif name in self.parameters.names:
            self._parameter(emit, name)
        else:
            self._entry_value(emit, name)

    def _frame(self, emit: Emitter) -> None:
        # A thread's first function has no caller, and asking for it is an error.
        begin, around = emit.depth, emit.handler
        stub = Emitter(self.constants, begin + 1, emit.location, around)
        stub.begin_call(_no_caller)
        stub.copy(begin)
        stub.end_call(1)
        stub.drop_second()
        self.stubs.append(stub)
        emit.handler = Handler(stub.out[0], begin, keeps_place=False)
        emit.begin_call(_getframe)
        emit.constant(1)  # number 0 is the function's own
        emit.end_call(1)
        emit.handler = around
        emit.land(stub.jump_back())

    def _all_args(self, emit: Emitter) -> None:
        given = self.parameters.positional
        if self.hidden:
            given = given[1:]  # a stand-in's "self" is not handed on
        star = self.parameters.star
        if given or star is None:
            for name in given:
                self._parameter(emit, name)
            emit.tuple_of(len(given))
        if star is not None:
            self._parameter(emit, star)
            if given:
                emit.concatenate()

    def _all_keywords(self, emit: Emitter) -> None:
        names, more = self.parameters.keyword_only, self.parameters.double_star
        emit.begin_call(_keywords)
        emit.constant(names)
        for name in names:
            self._parameter(emit, name)
        emit.tuple_of(len(names))
        if more is None:
            emit.constant(())
        else:
            self._parameter(emit, more)
        emit.end_call(3)

    def _parameter(self, emit: Emitter, name: str) -> None:
        index, is_cell = self.index[name]
        emit.local(index, is_cell=is_cell, is_sure=True)

    def _need(self, emit: Emitter, stretch: Stretch, names: Iterable[str]) -> None:
        """Let the stretch be skipped if one of these values was lost at the begin."""
        for name in _CALLED_FOR.intersection(names, {*self.kept, *self.listed}):
            self._push_kept(emit, name)
            stretch.skip_if_lost(emit)

    # --- hooks ---

    def _call_hook(self, emit: Emitter, hook: Hook, push: Callable[[Emitter, str], None]) -> None:
        if hook.quick is None:
            self._call_handler(emit, hook, push)
            return
        begin = emit.depth
        handled = Emitter(self.constants, begin, emit.location, emit.handler)
        self._call_handler(handled, hook, push)
        quick = Emitter(self.constants, begin, emit.location, emit.handler)
        function, argument = hook.quick
        quick.begin_call(function)
        if isinstance(argument, str):
            push(quick, argument)
        else:
            quick.constant(argument)
        quick.end_call(1)
        quick.pop()
        emit.constant(self.busy)
        emit.choose(quick, handled)

    def _call_handler(
        self,
        emit: Emitter,
        hook: Hook,
        push: Callable[[Emitter, str], None],
        *,
        drops: bool = True,
    ) -> None:
        emit.begin_call(hook.handler)
        count = len(hook.names)
        if hook.prelude is not None:
            self._push_kept(emit, _prelude(hook))
            count += 1
        for name in hook.names:
            push(emit, name)
        emit.end_call(count)
        if hook.awaits and self.code.co_flags & _CAN_AWAIT:
            emit.wait()
        if drops:
            emit.pop()

    def _look(self, emit: Emitter, hook: Hook, at: Instruction | None) -> None:
        """Call a hook with the values that the frame's variables have now, in front of ``at``."""

        def push(out: Emitter, name: str) -> None:
            self._variable(out, name, at)

        if hook.may_raise:
            self._call_handler(emit, hook, push)
            return
        with self.containment.passing(emit, hook.judge or drop):
            self._call_hook(emit, hook, push)

    def _variable(self, emit: Emitter, name: str, at: Instruction | None) -> None:
        if name == NOW:
            emit.read_clock()
            return
        if name not in self.index:
            message = f"the function has no variable {name!r}"
            raise ValueError(message)
        index, is_cell = self.index[name]
        is_cell = is_cell and index not in self.plain.get(id(at), ())
        if name in self.parameters.names and not is_cell and index not in self.changed:
            emit.local(index, is_cell=False, is_sure=True)
            return
        if not is_cell and not self.set.get(id(at), -1) >> index & 1:
            emit.constant(MISSING)
            return
        # What a missing value raises is taken by a stub, which pushes another one.
        around = emit.handler
        stub = Emitter(self.constants, emit.depth + 1, emit.location, around)
        stub.pop()
        stub.constant(MISSING)
        self.stubs.append(stub)
        emit.handler = Handler(stub.out[0], emit.depth, keeps_place=False)
        emit.local(index, is_cell=is_cell, is_sure=False)
        emit.handler = around
        emit.land(stub.jump_back())

    # --- the end ---

    def _leave(
        self,
        emit: Emitter,
        after: Sequence[Hook],
        ends: Sequence[Hook],
        by: Instruction | None = None,
    ) -> None:
        """Call what is to be called at the end; the result or, without ``by``, error is topmost."""
        quiet = [hook for hook in after if not hook.may_raise and not hook.replaces]
        if quiet or self.timing is not None:
            with self.containment.passing(emit, self.judge) as stretch:
                if self.timing is not None and by is not None:
                    self.timing.end_run(emit, by, None)
                self._call_at_end(emit, stretch, quiet, ends, by)
        else:
            for hook in ends:
                if not hook.may_raise:
                    self._look(emit, hook, by)
        for hook in ends:
            if hook.may_raise:
                self._look(emit, hook, by)
        acting = [hook for hook in after if hook.replaces]
        self._decide(emit, acting, [hook for hook in after if hook.may_raise], raised=by is None)

    def _decide(
        self, emit: Emitter, acting: Sequence[Hook], stops: Sequence[Hook], *, raised: bool
    ) -> None:
        """Call what has a say in how the function ends: those that act, then those that stop."""
        result = emit.depth - 1

        def push(out: Emitter, name: str) -> None:
            if name == ("exception" if raised else "result"):
                out.copy(result)
            elif name == "elapsed":
                out.read_clock()
                self._push_kept(out, "@began")
                out.subtract()
            elif name == "end":
                out.call(_time)
            elif name in EXIT_NAMES:
                out.constant(None)
            else:
                self._entry_value(out, name)

        for number, hook in enumerate(acting, 1):
            self._replace_result(emit, hook, push, acting[number:], stops, raised=raised)
        for hook in stops:
            self._call_handler(emit, hook, push)

    def _replace_result(
        self,
        emit: Emitter,
        hook: Hook,
        push: Callable[[Emitter, str], None],
        acting: Sequence[Hook],
        stops: Sequence[Hook],
        *,
        raised: bool,
    ) -> None:
        """Call a hook and do what it says: raise, or let the function return something else."""
        nothing = Instruction(_POP_TOP, 0, emit.location, emit.handler)
        self._push_outcome(emit, hook, push, nothing)
        emit.unpack(2)
        raises = Instruction(_NOP, 0, emit.location, emit.handler)
        emit.jump_if(raises, is_bool=True)
        if raised:
            # On the stack: what is kept, the place that raised, the exception before, this one.
            returning = Emitter(self.constants, emit.depth, emit.location)
            returning.drop_second()
            returning.swap()
            returning.add(_POP_EXCEPT, 0, -1)
            returning.drop_second()
            self._return_nothing_else(returning)
            self._decide(returning, acting, stops, raised=False)
            for _ in self.kept:
                returning.drop_second()
            if self.hidden and _BEGINS_BEFORE_RETURN:
                self._show(returning)
            returning.end(returning.add(_RETURN, 0, -1))
            emit.out += returning.out
            emit.deepest = max(emit.deepest, returning.deepest)
        else:
            emit.drop_second()
            self._return_nothing_else(emit)
            emit.constant(None)
            emit.go(nothing)
        # As deep as there: each of both ways has one value more than in the end.
        emit.place(raises)
        emit.raise_it()
        depth = len(self.kept) + (2 if raised else 0)
        emit.out[-1].handler = self._way_out(emit.location, depth, emit.handler)
        emit.place(nothing)

    def _return_nothing_else(self, emit: Emitter) -> None:
        """Let the topmost value be None in an asynchronous generator, which returns no other."""
        if self.code.co_flags & inspect.CO_ASYNC_GENERATOR:
            emit.pop()
            emit.constant(None)

    def _call_at_end(
        self,
        emit: Emitter,
        stretch: Stretch,
        after: Sequence[Hook],
        ends: Sequence[Hook],
        by: Instruction | None,
    ) -> None:
        raised = by is None
        over = Instruction(_NOP, 0, emit.location, emit.handler)
        if self.only is not None:
            self._push_kept(emit, _sifted(self.only))
            emit.jump_if(over)
        places = dict(self.kept)
        places["result"] = emit.depth - 1
        wanted = {name for hook in after for name in hook.names}
        self._need(emit, stretch, wanted)
        # Read before anything else is done, so that no handler is measured.
        if "elapsed" in wanted:
            places[NOW] = emit.depth
            emit.read_clock()
            places["elapsed"] = emit.depth
            emit.copy(places[NOW])
            self._push_kept(emit, "@began")
            emit.subtract()
        if "end" in wanted:
            places["end"] = emit.depth
            emit.call(_time)
        if self.timing is not None:
            if raised:
                emit.copy(places["result"])
                self.timing.raised(emit)
                emit.pop()
            places["hotspots"] = emit.depth
            emit.begin_call(self.report)
            emit.constant(self.timing.lines)
            emit.copy(self.timing.runs)
            emit.end_call(2)
        if raised:
            places["exception"] = places["result"]

        def push(out: Emitter, name: str) -> None:
            if name == NOW and (ends or hook is not after[0]):
                # What others did since the clock was read is not this one's.
                out.read_clock()
            elif name in places:
                out.copy(places[name])
            elif name == "exception":
                out.constant(None)
            else:
                self._entry_value(out, name)

        for hook in ends:
            if not hook.may_raise:
                self._look(emit, hook, by)
        for hook in after:
            # One alone: the stretch around all is its own.
            inner = (
                contextlib.nullcontext()
                if len(after) == 1 and not ends
                else self.containment.passing(emit, hook.judge or drop)
            )
            if hook.sift is not None and hook is not self.only:
                skipped = Instruction(_NOP, 0, emit.location, emit.handler)
                self._push_kept(emit, _sifted(hook))
                emit.jump_if(skipped)
                with inner:
                    self._call_hook(emit, hook, push)
                emit.place(skipped)
            else:
                with inner:
                    self._call_hook(emit, hook, push)
        while emit.depth > places["result"] + 1:
            emit.pop()
        if self.only is not None:
            emit.place(over)

    def _weave_returns(
        self, after: Sequence[Hook], ends: Sequence[Hook], woven: dict[int, list[Instruction]]
    ) -> None:
        for one in self.body:
            if one.opcode == _RETURN_CONST:
                emit = Emitter(self.constants, len(self.kept), one.location)
                emit.add(_LOAD_CONST, one.argument, 1)
                one.become(_RETURN)
            elif one.opcode == _RETURN:
                emit = Emitter(self.constants, len(self.kept) + 1, one.location)
            else:
                continue
            if self.hidden:
                emit.location = NOWHERE
            self._leave(emit, after, ends, one)
            for _ in self.kept:
                emit.drop_second()
            if self.hidden and _BEGINS_BEFORE_RETURN:
                self._show(emit)
            self._put(woven, one, emit)
            # What a tracer raises there must not go to a handler: those count on what is kept.
            one.handler = None

    def _put(self, woven: dict[int, list[Instruction]], one: Instruction, emit: Emitter) -> None:
        """Put what was written in front of an instruction, for those who jump there too."""
        self.deepest = max(self.deepest, emit.deepest)
        emit.end(one)
        there = woven.setdefault(id(one), [])
        there += emit.out
        if there:
            one.front = there[0]

    def _leave_by_exception(
        self, after: Sequence[Hook], ends: Sequence[Hook], line: int | None
    ) -> Emitter:
        """What is done with an exception that nothing in the function takes."""
        kept, location = len(self.kept), self._at(line)
        # On the stack: what is kept, the place that raised, the exception.
        emit = Emitter(self.constants, kept + 2, location)
        emit.add(_PUSH_EXC_INFO, 0, 1)
        # Where a handler is interrupted: another exception is on its way out.
        interrupted = Emitter(self.constants, kept + 4, location)
        interrupted.swap()
        interrupted.add(_POP_EXCEPT, 0, -1)
        if self.hidden:
            self._show(interrupted)
        interrupted.add(_RERAISE, 0, -1)
        self.stubs.append(interrupted)
        emit.handler = Handler(interrupted.out[0], kept + 2, keeps_place=False)
        self._leave(emit, after, ends)
        emit.handler = None
        emit.swap()
        emit.add(_POP_EXCEPT, 0, -1)
        if self.hidden:
            self._show(emit)
            emit.add(_RERAISE, 0, -1)
        else:
            emit.add(_RERAISE, 1, -1)
        return emit

    def _watch_exceptions(self, after: Sequence[Hook], ends: Sequence[Hook]) -> list[Emitter]:
        """Send what nothing takes to what is done then; let all handlers keep what is kept.

        Returns:
            What is done then, once for each line.
        """
        kept = len(self.kept)
        leaving: dict[int | None, tuple[Emitter, Handler]] = {}
        deeper: dict[int, Handler] = {}
        wrappers: dict[tuple[int, int | None], Handler] = {}
        line = self._first_line()
        lines = {one.location[0] for one in self.body}
        is_per_line = not self.hidden and len(lines) * len((*after, *ends)) <= _MOST_COPIES
        handlers = (one.handler for one in self.body if one.handler is not None)
        targets = {id(handler.target) for handler in handlers if _is_wrapper(handler)}

        def last() -> Handler:
            if line not in leaving:
                emit = self._leave_by_exception(after, ends, line)
                leaving[line] = emit, Handler(emit.out[0], kept, keeps_place=True)
            return leaving[line][1]

        for one in self.body:
            if is_per_line:
                line = one.location[0] or line
            handler = one.handler
            if handler is None:
                one.handler = last()
            elif id(handler.target) in targets:
                place = id(handler), line
                if place not in wrappers:
                    copy = self._copy(handler, self._at(line), kept, last())
                    wrappers[place] = Handler(
                        copy.out[0], handler.depth + kept, handler.keeps_place
                    )
                one.handler = wrappers[place]
            elif kept:
                moved = deeper.get(id(handler))
                if moved is None:
                    moved = deeper[id(handler)] = handler._replace(depth=handler.depth + kept)
                one.handler = moved
        line = self._first_line()
        for one in self.raising:
            one.handler = self._way_out(one.location, kept, last())
        self._watch_begin()
        if self.code.co_flags & _SUSPENDABLE:
            self._let_close()
        return [emit for emit, _ in leaving.values()]

    def _copy(
        self, handler: Handler, location: Location, kept: int = 0, around: Handler | None = None
    ) -> Emitter:
        """Write anew what a handler does until it raises again."""
        copy = Emitter(self.constants, handler.depth + kept + 2, location, around)
        at = self.listing.index(handler.target)
        for each in self.listing[at:]:
            copy.add(each.opcode, each.argument)
            if each.opcode == _RERAISE:
                break
        self.stubs.append(copy)
        return copy

    def _watch_begin(self) -> None:
        """Give the begin a handler of its own, where it has one: nothing is kept there yet.

        Since 3.12 that is what makes a ``StopIteration`` that leaves a generator a
        ``RuntimeError``, also one that is thrown into it before it has begun.
        """
        copies: dict[int, Handler] = {}
        for one in self.prologue:
            handler = one.handler
            if handler is None:
                continue
            if id(handler) not in copies:
                copy = self._copy(handler, self._at(self._first_line()))
                copies[id(handler)] = handler._replace(target=copy.out[0])
            one.handler = copies[id(handler)]

    def _let_close(self) -> None:
        """Let ``close()`` of a suspended frame raise in it, as it did before 3.12.

        Since then it drops the frame at once where no ``try`` is around the ``yield``, but
        for the one that the compiler puts around all: ``RESUME`` (3.12: ``YIELD_VALUE``) says
        so.
        """
        for one in self.body:
            if one.opcode == _RESUME:
                one.argument &= RESUMES_AT
            elif one.opcode == _YIELD and sys.version_info[:2] == (3, 12) and one.argument == 1:
                one.argument = 2

    # --- lines ---

    def _weave_lines(  # noqa: PLR0917  (what was found before anything was put in)
        self,
        lines: Sequence[tuple[int, Hook]],
        starts: dict[int, list[Instruction]],
        handlers: set[int],
        depth: dict[int, int],
        woven: dict[int, list[Instruction]],
        behind: dict[int, list[Instruction]],
    ) -> None:
        for line, hook in lines:
            if line not in starts:
                message = f"there is no code on line {line}"
                raise ValueError(message)
            stores = self._only_stores(hook, line, starts[line][0])
            if stores:
                self._look_behind(hook, stores, depth, behind)
                continue
            for one in starts[line]:
                if id(one) not in depth:
                    continue  # it is never reached
                begin = depth[id(one)] + len(self.kept)
                emit = Emitter(self.constants, begin, one.location, one.handler)
                stub = emit.guard_error() if id(one) in handlers else None
                self._look(emit, hook, one)
                if stub is not None:
                    emit.end_guard(stub)
                    self.stubs.append(stub)
                self._put(woven, one, emit)

    def _only_stores(self, hook: Hook, line: int, start: Instruction) -> list[Instruction]:
        """Where a line gives values to variables of a hook that can have none before it.

        None of them: the hook is called before the line. Else behind the last one, since before
        it there would be nothing to see.
        """
        found = []
        for name in () if hook.may_raise else hook.names:
            index, is_cell = self.index.get(name, (0, True))
            if is_cell or self.set.get(id(start), 0) >> index & 1:
                continue
            found += [one for one in self.body if one.location[0] == line and index in stored(one)]
        return found

    def _look_behind(
        self,
        hook: Hook,
        stores: Sequence[Instruction],
        depth: dict[int, int],
        behind: dict[int, list[Instruction]],
    ) -> None:
        """Call a hook behind the last of these instructions."""
        number = max(map(self.body.index, stores))
        last, following = self.body[number : number + 2]
        if id(following) not in depth:
            return
        begin = depth[id(following)] + len(self.kept)
        emit = Emitter(self.constants, begin, last.location, last.handler)
        self._look(emit, hook, following)
        emit.end(following)
        behind.setdefault(id(last), []).extend(emit.out)
        self.deepest = max(self.deepest, emit.deepest)

    # --- hidden frames ---

    def _show(self, emit: Emitter) -> None:
        emit.location = (self.code.co_firstlineno, self.code.co_firstlineno, None, None)
        emit.add(_RESUME, _AFTER_AWAIT)

    def _hide(self, listing: Sequence[Instruction]) -> None:
        """Let the frame never be complete, as CPython has it, until its very end.

        A frame is complete once it is past the first RESUME of its code (3.11 to 3.14);
        ``sys._getframe``, tracebacks and ``inspect`` leave out what is not. Verified at
        import by :mod:`diagnose.sites`.
        """
        self.prologue[-1].become(_NOP)
        for one in listing:
            if one.opcode != _RESUME and one.location[1:] != (self.code.co_firstlineno, None, None):
                one.location = NOWHERE


_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_CAN_AWAIT = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_INTRINSIC = _op.get("CALL_INTRINSIC_1")


def _is_wrapper(handler: Handler) -> bool:
    """Whether it makes a ``StopIteration`` that leaves the function a ``RuntimeError``."""
    return handler.target.opcode == _INTRINSIC and handler.target.handler is None


def _prelude(hook: Hook) -> str:
    return f"@prelude {id(hook)}"


def _sifted(hook: Hook) -> str:
    return f"@sifted {id(hook)}"


# --- what is called from inside the code ---


def _utcnow() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def _no_caller(error: BaseException) -> None:
    """Stand for the caller's frame; what is another error (a signal's) goes on."""
    if not isinstance(error, ValueError):
        raise error


def _keywords(names: tuple[str, ...], values: tuple[object, ...], more: Any) -> dict[str, object]:
    return {**dict(zip(names, values, strict=True)), **dict(more)}
