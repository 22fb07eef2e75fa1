"""wrapt: wrappers that deliver nothing, so the least that any wrapper of this kind costs."""

from __future__ import annotations

import contextlib
import sys
import time

import wrapt

from sides.arrivals import BUFFER, Arrivals

clock = time.perf_counter


def does_nothing(wrapped, instance, args, kwargs):
    return wrapped(*args, **kwargs)


def reads_clocks(wrapped, instance, args, kwargs):
    clock()
    result = wrapped(*args, **kwargs)
    clock()
    return result


def counts(wrapped, instance, args, kwargs):
    BUFFER.append(None)
    return wrapped(*args, **kwargs)


class Side(Arrivals):
    file = wrapt.__file__

    def probe(self, target, work, expires=None):
        module, _, name = target.rpartition(".")
        is_empty = work["variant"] == "nothing"
        self.made = Wrapped(sys.modules[module], name, does_nothing if is_empty else reads_clocks)
        return self.made

    @contextlib.contextmanager
    def counting(self):
        made = self.made
        made.stop()
        made.start(counts)
        yield
        made.stop()
        made.start()


class Wrapped:
    def __init__(self, module, name, wrapper):
        self.module = module
        self.name = name
        self.wrapper = wrapper

    def start(self, wrapper=None):
        self.original = getattr(self.module, self.name)
        wrapt.wrap_function_wrapper(self.module, self.name, wrapper or self.wrapper)

    def stop(self):
        setattr(self.module, self.name, self.original)
