"""The instruments that scripts put on the functions of a program."""

from __future__ import annotations

import io
import itertools

from diagnose.instruments import (
    CallTreeInstrument,
    HistogramInstrument,
    IncrementInstrument,
    Instrument,
    LogInstrument,
    ProbeTestInstrument,
)
from diagnose.limits import Limits
from diagnose.managers import InstrumentManager
from diagnose.sinks.stream import StreamSink
from random_programs import scripts
from random_programs.world import show


class Quiet(InstrumentManager):
    """Says nothing about errors, for there are many."""

    def __init__(self):
        super().__init__("random programs")
        self.sinks.append(StreamSink(io.StringIO()))

    def handle_error(self, probe=None, instrument=None):
        """Do nothing."""


class Tagging(Quiet):
    """An application with tags of its own."""

    def get_tags(self):
        return {"service": "shop"}


class Asked(Quiet):
    """An application that has a word in which calls are served."""

    def __init__(self):
        super().__init__()
        self.answers = itertools.cycle([True, False, LookupError("asked")])

    def check_call(self, probe, instrument, *args, **kwargs):
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Keeping(ProbeTestInstrument):
    """Keeps text, so that nothing of the program is kept alive."""

    def emit(self, name, value, tags):
        super().emit(name, show(value), {})


class Emitting(Instrument):
    def emit(self, name, value, tags):
        show(value)


class EmitRaises(Instrument):
    def emit(self, name, value, tags):
        if self.status.hits > 1:
            raise ValueError(name)


class Firing(Instrument):
    def fire(self, _globals, _locals):
        show(dict(_locals))
        super().fire(_globals, _locals)


class Checking(HistogramInstrument):
    calls = 0

    def check_call(self, probe, /, *args, **kwargs):
        self.calls += 1
        return self.calls % 2 == 0


class CheckRaises(HistogramInstrument):
    def check_call(self, probe, /, *args, **kwargs):
        raise LookupError


class FinishRaises(HistogramInstrument):
    def finish(self):
        raise ValueError


class Log(LogInstrument):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.out = io.StringIO()


class Tree(CallTreeInstrument):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.out = io.StringIO()


KINDS = {
    "test": Keeping,
    "hist": HistogramInstrument,
    "incr": IncrementInstrument,
    "log": Log,
    "emit": Emitting,
    "emit_raises": EmitRaises,
    "fire": Firing,
    "check": Checking,
    "check_raises": CheckRaises,
    "tags": Log,
    "asked": IncrementInstrument,
    "calltree": Tree,
    "finish": FinishRaises,
}
assert KINDS.keys() == scripts.KINDS.keys()


def instrument(operation, event, names):
    """The instrument that an operation means, for a function with these variables.

    Raises:
        DiagnoseError: there can be no such one.
    """
    first, second = (names[number % len(names)] for number in operation["names"])

    def filled(text):
        return text and text.replace("{0}", first).replace("{1}", second)

    value = filled(operation["value"])
    kind = KINDS[operation["kind"]]
    if kind is Keeping and value in scripts.NUMBERS:
        kind = ProbeTestInstrument
    limits = None
    if operation["limit"] is not None:
        most = operation["most"]
        limits = Limits(**{operation["limit"]: 0.5 if operation["limit"] == "sample" else most})
    elif kind is Tree:
        limits = Limits(rate=1000)
    custom = {"tags": filled(operation["tags"])} if operation["tags"] else None
    manager = {"tags": Tagging, "asked": Asked}.get(operation["kind"], Quiet)()
    return kind(
        "n", value, event, custom=custom, mgr=manager, when=filled(operation["when"]), limits=limits
    )
