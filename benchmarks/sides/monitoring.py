"""`sys.monitoring` bare, from 3.12 on: Python callbacks that do nothing, on one code object."""

from __future__ import annotations

import contextlib
import sys

from sides.arrivals import BUFFER, Arrivals

monitoring = sys.monitoring
TOOL = 4
LINE, PY_RETURN = monitoring.events.LINE, monitoring.events.PY_RETURN


def on_return(code, offset, value):
    pass


def on_every_line(code, line):
    pass


def on_one_line(wanted):
    def on_line(code, line):
        return None if line == wanted else monitoring.DISABLE

    return on_line


class Side(Arrivals):
    file = "sys.monitoring"

    def __init__(self):
        monitoring.use_tool_id(TOOL, "benchmark")

    def probe(self, target, work, expires=None):
        module, _, name = target.rpartition(".")
        code = getattr(sys.modules[module], name).__code__
        if work["value"].startswith("hotspots"):
            self.made = Armed(code, LINE, on_every_line, code.co_firstlineno + 1)
        elif work["event"] == "line":
            wanted = code.co_firstlineno + work["line"]
            self.made = Armed(code, LINE, on_one_line(wanted), wanted)
        else:
            self.made = Armed(code, PY_RETURN, on_return)
        return self.made

    @contextlib.contextmanager
    def counting(self):
        made = self.made

        def counts(code, at, *value):
            if made.line in {None, at}:
                BUFFER.append(at)

        monitoring.register_callback(TOOL, made.event, counts)
        yield
        monitoring.register_callback(TOOL, made.event, made.callback)


class Armed:
    """A callback for events of one code object; `line` is the one that stands for a hit."""

    def __init__(self, code, event, callback, line=None):
        self.code = code
        self.event = event
        self.callback = callback
        self.line = line

    def start(self):
        monitoring.register_callback(TOOL, self.event, self.callback)
        monitoring.set_local_events(TOOL, self.code, self.event)

    def stop(self):
        monitoring.set_local_events(TOOL, self.code, 0)
        monitoring.register_callback(TOOL, self.event, None)
