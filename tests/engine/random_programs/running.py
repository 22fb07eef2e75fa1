"""Does a script with a program, and says all that was to be seen."""

from __future__ import annotations

import builtins
import contextlib
import dis
import gc
import inspect
import io
import random
import sys
import threading
import types
import warnings
from dataclasses import dataclass

from diagnose import probes, registry
from diagnose.errors import DiagnoseError
from random_programs import instruments, world
from random_programs.parts import text
from random_programs.programs import Writer
from random_programs.scripts import script
from random_programs.world import is_exact, show

MODULE = "random_program"
FILE = f"<{MODULE}>"
DEADLINE_SECONDS = 30.0


@dataclass
class Case:
    """A program and a script for it."""

    seed: int
    nodes: list
    operations: list


def case(seed):
    """The case of a seed."""
    source = random.Random(seed)
    while True:
        # A few programs are none (a name that is global and more): the next one then.
        program = Writer(source).program()
        if compiled(text(program.nodes)) is not None:
            return Case(seed, program.nodes, script(source, program.functions))


def compiled(source):
    """The code of a program, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return compile(source, FILE, "exec", dont_inherit=True)
        except SyntaxError:
            return None


def difference(case):
    """Run bare, then probed; what differs, as text, or None.

    Raises:
        SyntaxError: the program is none.
    """
    code = compiled(text(case.nodes))
    if code is None:
        raise SyntaxError(case.seed)
    bare = Run(case, code, is_probed=False).seen
    run = Run(case, code, is_probed=True)
    for number, (mine, theirs) in enumerate(zip(bare, run.seen, strict=True)):
        if mine != theirs:
            what = case.operations[number] if number < len(case.operations) else "the end"
            pairs = zip([*mine, None], [*theirs, None], strict=False)
            one, other = next(pair for pair in pairs if pair[0] != pair[1])
            return f"operation {number}, {what}:\n  bare:   {one}\n  probed: {other}"
    if run.faults:
        return "\n".join(run.faults)
    return None


def picture(error, depth=4):
    """All that can be seen of an exception, with the columns of each traceback entry."""
    if error is None or depth == 0:
        return None
    seen = [
        type(error).__name__, show(error.args), entries(error),
        error.__suppress_context__, getattr(error, "__notes__", None),
        picture(error.__cause__, depth - 1), picture(error.__context__, depth - 1),
    ]  # fmt: skip
    if isinstance(error, BaseExceptionGroup):
        seen += [picture(each, depth - 1) for each in error.exceptions]
    return seen


def entries(error):
    """The entries of a traceback but for those of this file."""
    found = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename != __file__:
            positions = list(code.co_positions())[trace.tb_lasti // 2]
            if is_exact(error, trace):
                found.append((code.co_qualname, trace.tb_lineno, positions))
            else:
                found.append(code.co_qualname)
        trace = trace.tb_next
    return found


def outcome(function, *args, **kwargs):
    """What a call did; and the thing that it returned."""
    try:
        made = function(*args, **kwargs)
    except BaseException as error:
        return ("raised", picture(error)), None
    return ("returned", show(made)), made


class Run:
    """One run of a case, bare or probed.

    Attributes:
        seen: for each operation what was to be seen of it; and of the end.
        faults: what is wrong about the probes.
    """

    def __init__(self, case, code, *, is_probed):
        self.slots = {}
        self.seen = []
        self.faults = []
        self.is_probed = is_probed
        self.module = types.ModuleType(MODULE)
        sys.modules[MODULE] = self.module
        world.reset(MODULE)
        random.seed(case.seed)
        out = io.StringIO()
        hook, sys.unraisablehook = sys.unraisablehook, _note_unraisable
        # What goes when is seen too: so cycles go at the end.
        gc.disable()
        try:
            with contextlib.redirect_stdout(out), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(code, vars(self.module))
                self.codes = _codes(self.module)
                for operation in case.operations:
                    self._note(self._do(operation))
                self.slots.clear()
                self._note("end")
                self._end()
                vars(self.module).clear()
                gc.collect(0)  # all that was made meanwhile is young
                self._note(out.getvalue(), is_sorted=True)
        finally:
            sys.unraisablehook = hook
            gc.enable()
            del sys.modules[MODULE]
        self.faults += world.state.strange

    def _note(self, what, *, is_sorted=False):
        log, world.state.log = world.state.log, []
        self.seen.append([what, *(sorted(log, key=str) if is_sorted else log)])
        world.state.fuel = world.FUEL

    def _end(self):
        """Take off all probes; every function has its own code then."""
        if not self.is_probed:
            return
        stop_all()
        done = threading.Event()
        registry.timers.after(0, done.set)
        if not done.wait(DEADLINE_SECONDS):
            self.faults.append("the timers' thread does not come to an end")
        for function, code in self.codes:
            if function.__code__ is not code:
                self.faults.append(f"{function.__qualname__} has not its own code at the end")

    def _do(self, operation):
        do = operation["do"]
        if do in ("call", "make", "step", "drop"):
            return getattr(self, f"_{do}")(operation)
        if self.is_probed:
            try:
                getattr(self, f"_{do}")(operation)
            except DiagnoseError:
                pass  # refused in words
            except BaseException as error:
                self.faults.append(f"{operation} raised {show(error)}")
        return None

    # --- what is done with the program ---

    def _found(self, path):
        """The function to call; methods are those of an object of their class."""
        found = self.module
        for name in path.split("."):
            found = getattr(found, name)
            if isinstance(found, type):
                found = found()
        return found

    def _call(self, operation):
        seen, made = outcome(self._made, operation)
        return [seen, *(self._step_on(made, step) for step in operation["steps"])]

    def _made(self, operation):
        return self._found(operation["path"])(*operation["args"], **operation["kwargs"])

    def _make(self, operation):
        seen, self.slots[operation["slot"]] = outcome(self._made, operation)
        return seen

    def _step(self, operation):
        return self._step_on(self.slots.get(operation["slot"]), operation["step"])

    def _drop(self, operation):
        self.slots.pop(operation["slot"], None)

    def _step_on(self, thing, step):
        """One step of what a call made, and how it stands then."""
        how, value = step
        if how == "throw":
            value = getattr(builtins, value, world.Odd)("thrown")
        elif how == "next":
            value = None
        if isinstance(thing, types.AsyncGeneratorType):
            name = {"throw": "athrow", "close": "aclose"}.get(how, "asend")
            given = () if how == "close" else (value,)
            return [_driven(getattr(thing, name)(*given)), _stands(thing.ag_frame)]
        if not isinstance(thing, types.GeneratorType | types.CoroutineType):
            return None
        name = {"throw": "throw", "close": "close"}.get(how, "send")
        seen = outcome(getattr(thing, name), *(() if how == "close" else (value,)))[0]
        return [seen, _stands(thing.gi_frame if hasattr(thing, "gi_frame") else thing.cr_frame)]

    # --- what is done with probes ---

    def _instrument(self, operation, event=None):
        """The instrument, for the function as it stands behind its decorators."""
        code = self._code(operation)
        event = event or operation["event"]
        if event.startswith("line:?"):
            # Where variables get other values is of interest.
            lines = (_changing(code) if operation["names"][0] % 2 else []) or _lines(code)
            event = f"line:{lines[int(event[6:]) % len(lines)]}"
        names = [*code.co_varnames, *code.co_cellvars, *code.co_freevars] or ["g"]
        # What is in use at a line is of interest there.
        if event.startswith("line:") and operation["names"][1] % 2:
            names = _names_at(code, int(event[5:])) or names
        return instruments.instrument(operation, event, names)

    def _code(self, operation):
        found = self.module
        for name in operation["path"].split("."):
            found = inspect.getattr_static(found, name)
        return inspect.unwrap(getattr(found, "__func__", found)).__code__

    def _probe(self, operation):
        return probes.attach_to(f"{MODULE}.{operation['path']}")

    def _attach(self, operation):
        self._probe(operation).attach(operation["key"], self._instrument(operation))

    def _put(self, operation):
        self._probe(operation).instruments[operation["key"]] = self._instrument(operation)

    def _every_line(self, operation):
        # Some of them: each is woven anew with all that are there.
        lines = _lines(self._code(operation))
        for line in lines[operation["names"][0] % 3 :: max(1, len(lines) // 5)]:
            with contextlib.suppress(DiagnoseError):
                one = self._instrument(operation, f"line:{line}")
                self._probe(operation).attach(f"line {line}", one)

    def _start(self, operation):
        self._probe(operation).start()

    def _stop(self, operation):
        self._probe(operation).stop()

    def _detach(self, operation):
        self._probe(operation).detach(operation["key"])

    def _stop_all(self, _):
        stop_all()


def stop_all():
    """Take off every probe, and forget those that were asked for."""
    for probe in list(probes.active_probes.values()):
        probe.stop()
        for key in list(probe.instruments):
            probe.detach(key)
    probes.active_probes.clear()


def _lines(code):
    return sorted({line for *_, line in code.co_lines() if line}) or [1]


def _changing(code):
    """The lines of all instructions that change a variable; some have many."""
    lines = list(code.co_positions())
    changes = ("STORE_FAST", "DELETE_FAST", "STORE_DEREF", "LOAD_FAST_AND_CLEAR")
    found = (
        lines[one.offset // 2][0]
        for one in dis.get_instructions(code)
        if one.opname.startswith(changes)
    )
    return [line for line in found if line]


def _names_at(code, line):
    """The variables that a line of a function uses."""
    known = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    lines = list(code.co_positions())
    return sorted({
        one.argval
        for one in dis.get_instructions(code)
        if lines[one.offset // 2][0] == line and type(one.argval) is str and one.argval in known
    })  # fmt: skip


def _stands(frame):
    """Where a debugger sees what is suspended.

    Not with which variables: ``f_locals`` of a frame that waits inside an inlined comprehension
    crashes CPython 3.13 if a name there is a cell of the function.
    """
    return None if frame is None else frame.f_lineno


def _driven(awaitable):
    seen = []
    for _ in range(12):
        what, _ = outcome(awaitable.send, None)
        seen.append(what)
        if what[0] == "raised":
            return seen
    # Closed here: what it says to that is seen as well.
    return [*seen, outcome(getattr(awaitable, "close", int))[0]]


def _note_unraisable(unraisable):
    world.mark("unraisable", unraisable.exc_value)


def _codes(module):
    """Every function of a module, with its code."""
    found, waiting = {}, list(vars(module).values())
    while waiting:
        one = waiting.pop()
        one = getattr(one, "__func__", one)
        if isinstance(one, type) and one.__module__ == MODULE:
            waiting += vars(one).values()
        elif hasattr(one, "__wrapped__"):
            waiting.append(one.__wrapped__)
        if isinstance(one, types.FunctionType):
            found[id(one)] = one, one.__code__
    return list(found.values())
