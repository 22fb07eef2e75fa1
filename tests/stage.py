"""Puts functions where a path leads to them, probes them, and says exactly what a call did."""

from __future__ import annotations

import itertools
import linecache
import signal
import sys
import sysconfig
import textwrap
import threading
import warnings
from contextlib import contextmanager
from types import ModuleType

import pytest

from diagnose import attach_to, probes, registry
from diagnose.instruments import ProbeTestInstrument

DEADLINE_SECONDS = 30.0

frees_code = pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")) and sys.version_info < (3, 14),
    reason="3.13 without the GIL keeps functions and code for ever, once there was a thread",
)

_numbers = itertools.count(1)


class Stage:
    """Modules of a test's own, gone when it is over."""

    def __init__(self):
        self.modules = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for module in self.modules:
            sys.modules.pop(module.__name__, None)
            linecache.cache.pop(f"<{module.__name__}>", None)

    def module(self, *things, **named):
        """A new importable module that holds these; functions and classes by their names."""
        module = ModuleType(f"stage_{next(_numbers)}")
        for thing in things:
            setattr(module, thing.__name__, thing)
        for name, thing in named.items():
            setattr(module, name, thing)
        sys.modules[module.__name__] = module
        self.modules.append(module)
        return module

    def place(self, *things, **named):
        """Put things into a new module; the path of the first one."""
        module = self.module(*things, **named)
        name = things[0].__name__ if things else next(iter(named))
        return f"{module.__name__}.{name}"

    def script(self, text, filename=None):
        """A new module out of source text."""
        module = self.module()
        text = textwrap.dedent(text)
        filename = filename or f"<{module.__name__}>"
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of 3.14: a return in finally
            exec(compile(text, filename, "exec", dont_inherit=True), vars(module))
        return module


@contextmanager
def probed(path, value="result", event="return", **options):
    """Attach one recording instrument; it is handed over, with its errors."""
    instrument = ProbeTestInstrument("test", value, event, **options)
    with attached(path, instrument):
        yield instrument


@contextmanager
def attached(path, *instruments):
    """Attach instruments, all at once, and take them off at the end."""
    probe = attach_to(path)
    keys = [f"stage {id(instrument)}" for instrument in instruments]
    try:
        with probes.Changes() as changes:
            arrivals = [
                changes.attach(probe, *each) for each in zip(keys, instruments, strict=True)
            ]
        for arrival in arrivals:
            arrival.check()
        yield probe
    finally:
        with probes.Changes() as changes:
            for key in keys:
                changes.detach(probe, key)
        if not probe.instruments:
            probe.stop()


EVENTS = [("call",), ("return",), ("end",), ("call", "return", "end")]


@contextmanager
def events(path, names=EVENTS[-1]):
    """Record, in order, the names of the events that happened."""
    seen = []

    class Recorder(ProbeTestInstrument):
        def emit(self, name, value, tags):
            seen.append(name)

    recorders = [Recorder(name, "0", name) for name in names]
    with attached(path, *recorders):
        yield seen
    assert [each.status.error for each in recorders] == [None] * len(recorders)


def timers_ran():
    """Wait until everything that was due for the probes' timer thread is done."""
    done = threading.Event()
    registry.timers.after(0, done.set)
    assert done.wait(DEADLINE_SECONDS)


def in_thread(work, *args):
    """Run ``work`` in another thread; what it returns or raises comes back, with a deadline."""
    box = []

    def run():
        try:
            box.append((work(*args), None))
        except BaseException as error:
            box.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE_SECONDS)
    assert box, f"{work} does not come to an end"
    result, error = box[0]
    if error is not None:
        raise error
    return result


# --- what a call did --------------------------------------------------------------------------


def picture(error, depth=4):
    """All that can be seen of an exception: kind, arguments, entries of the traceback, chain."""
    if error is None or depth == 0:
        return None
    seen = {
        "type": type(error),
        "args": repr(error.args),
        "trace": entries(error.__traceback__),
        "cause": picture(error.__cause__, depth - 1),
        "context": picture(error.__context__, depth - 1),
        "suppressed": error.__suppress_context__,
        "notes": getattr(error, "__notes__", None),
    }
    if isinstance(error, BaseExceptionGroup):
        seen["members"] = [picture(each, depth - 1) for each in error.exceptions]
    return seen


def entries(trace):
    """The entries of a traceback: file, function, line, and the columns of what raised."""
    found = []
    while trace is not None:
        code = trace.tb_frame.f_code
        positions = list(code.co_positions())[trace.tb_lasti // 2]
        found.append((code.co_filename, code.co_qualname, trace.tb_lineno, positions))
        trace = trace.tb_next
    return found


def outcome(function, *args, **kwargs):
    """What a call returns or raises, as a value that can be compared."""
    try:
        return "returned", function(*args, **kwargs)
    except BaseException as error:
        seen = picture(error)
        seen["trace"] = seen["trace"][1:]  # this frame
        return "raised", seen


class Interrupt(BaseException):
    """What the handler of :func:`interrupts` raises."""


@contextmanager
def interrupts():
    """Give ``SIGUSR1`` a handler that raises; yields what sends it to this very thread."""

    def handler(number, frame):
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield lambda: signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
