"""A program whose own time limits fall due while its functions are probed.

``python time_limited.py probed|bare NUMBER KIND …`` lets NUMBER limits of each kind fall due at
random moments, for each event and expression, and writes as JSON what became of them. See
test_time_limits.py, and limited_celery.py, which does likewise in Celery's child.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import random
import signal
import sys
import threading
import time

from diagnose import attach_to
from diagnose.instruments import Instrument

EVENTS = ("call", "return", "end", "line:+2")
# Nothing to evaluate; little; a loop in Python; a wait in C.
EXPRESSIONS = ("1", "len(thing.name)", "thing.total", "thing.rest")
LATEST_SECONDS = 0.0015


class Thing:
    name = "a thing"

    @property
    def total(self):
        total = 0
        for number in range(200):
            total += number
        return total

    @property
    def rest(self):
        time.sleep(0.0002)


def step(thing):
    total = 1
    return total + 1


class Counting(Instrument):
    """Its own code is in the way of limits as well."""

    longest_seconds = None  # this machine may be busy
    count = 0

    def emit(self, name, value, tags):
        self.count += 1


class Limit(Exception):
    pass


class HardLimit(BaseException):
    pass


# --- limits -------------------------------------------------------------------------------------


def function(number, frame):
    raise Limit(number)


def make_closure(error):
    def handler(number, frame):
        def text():
            return f"{number} {frame.f_lineno}"

        raise error(text())

    return handler


class Handlers:
    def method(self, number, frame):
        self.give_up("method")

    def give_up(self, why):
        raise Limit(why)

    def __call__(self, number, frame):
        raise Limit("object")

    @staticmethod
    def with_more(more, *_):
        raise Limit(more)

    @classmethod
    def of_class(cls, *arguments):
        raise Limit(arguments)


def resetting(number, frame):
    signal.signal(number, signal.SIG_DFL)
    raise Limit("once")


def without_frame(number, frame):
    del frame  # as is done lest it keep things alive
    raise Limit(number)


def wrapped(handler):
    @functools.wraps(handler)
    def outer(*arguments):
        return handler(*arguments)

    return outer


def interrupting(number, frame):
    signal.raise_signal(signal.SIGINT)


def ending(number, frame):
    sys.exit(7)


HANDLERS = {
    "function": (function, Limit),
    "bound method": (Handlers().method, Limit),
    "callable object": (Handlers(), Limit),
    "class method": (Handlers.of_class, Limit),
    "closure": (make_closure(Limit), Limit),
    "closure that raises a BaseException": (make_closure(HardLimit), HardLimit),
    "partial": (functools.partial(Handlers.with_more, "more"), Limit),
    "decorated": (wrapped(function), Limit),
    "one that resets the signal": (resetting, Limit),
    "one that deletes its frame": (without_frame, Limit),
    "default_int_handler": (signal.default_int_handler, KeyboardInterrupt),
    "one that raises SIGINT": (interrupting, KeyboardInterrupt),
    "sys.exit": (ending, SystemExit),
}


class Timer:
    """A signal by ``setitimer``, or from another thread to the main one or to the process."""

    signal = signal.SIGALRM

    def __init__(self, kind):
        self.handler, self.kind = HANDLERS[kind]
        self.others = Others()
        self.turn = 0

    def arm(self, seconds):
        signal.signal(self.signal, self.handler)
        self.turn += 1
        main = threading.main_thread().ident
        if self.turn % 3 == 0 and self.signal == signal.SIGALRM:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        elif self.turn % 3 == 1:
            self.others.after(seconds, lambda: signal.pthread_kill(main, self.signal))
        else:
            self.others.after(seconds, lambda: os.kill(os.getpid(), self.signal))


class Terminated(Timer):
    signal = signal.SIGTERM


class Interrupted(Timer):
    """Ctrl-C."""

    signal = signal.SIGINT


class DeathPenalty:
    """As rq's for one job: takes its handler away when the job is over."""

    kind = Limit

    def handle(self, number, frame):
        raise self.kind("the job exceeded its time")

    def arm(self, seconds):
        signal.signal(signal.SIGALRM, self.handle)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def over(self):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


class Injected:
    """By another thread, as dramatiq's limits and func_timeout's."""

    def __init__(self, kind):
        self.kind = kind
        self.others = Others()

    def arm(self, seconds):
        thread = ctypes.c_ulong(threading.get_ident())
        inject = ctypes.pythonapi.PyThreadState_SetAsyncExc
        self.others.after(seconds, lambda: inject(thread, ctypes.py_object(self.kind)))


class Others:
    """A thread that does what it is told, a moment later."""

    def __init__(self):
        self.told = threading.Event()
        threading.Thread(target=self.work, daemon=True).start()

    def after(self, seconds, action):
        self.seconds, self.action = seconds, action
        self.told.set()

    def work(self):
        while True:
            self.told.wait()
            self.told.clear()
            end = time.perf_counter() + self.seconds
            while time.perf_counter() < end:
                time.sleep(0)
            self.action()


def make_limit(kind):
    if kind == "rq":
        return DeathPenalty()
    if kind.startswith("injected"):
        return Injected(HardLimit if "BaseException" in kind else Limit)
    if kind == "SIGTERM":
        limit = Terminated("sys.exit")
    elif kind == "SIGINT":
        limit = Interrupted("default_int_handler")
    else:
        limit = Timer(kind)
    return limit


KINDS = (
    *HANDLERS,
    *("rq", "SIGTERM", "SIGINT", "injected", "injected BaseException", "injected into a thread"),
)


# --- storms -------------------------------------------------------------------------------------


class Storm:
    """Lets limits fall due while :func:`step` is called over and over."""

    def __init__(self, limit, chance, *, lost_after_seconds=0.5):
        self.limit = limit
        self.chance = chance
        self.lost_after_seconds = lost_after_seconds
        self.thing = Thing()

    def one(self):
        """What became of one limit: None if it arrived, else a text."""
        seconds = self.chance.uniform(1e-6, LATEST_SECONDS)
        over = getattr(self.limit, "over", None)
        # All of this is within `try`, which does not cover all of its own function's loops.
        try:
            self.until_it_comes(seconds)
        except self.limit.kind:
            return None
        except BaseException as exc:
            return repr(exc)
        finally:
            if over is not None:
                over()
        return "lost"

    def until_it_comes(self, seconds):
        self.limit.arm(seconds)
        end = time.perf_counter() + seconds + self.lost_after_seconds
        while time.perf_counter() < end:
            step(self.thing)

    def blow(self, number):
        """The limits that did not arrive, by what became of them instead."""
        found = {}
        for _ in range(number):
            fate = self.one()
            if fate is not None:
                found[fate] = found.get(fate, 0) + 1
        return found

    def blow_over_all(self, number, *, probed):
        """By event and expression what was not as it should be."""
        found = {}
        for event in EVENTS:
            for expression in EXPRESSIONS if probed else ("1",):
                wrong = self.blow_probed(number, event, expression) if probed else self.blow(number)
                if wrong:
                    found[f"{event} {expression}"] = wrong
        return found

    def blow_probed(self, number, event, expression):
        probe = attach_to(f"{step.__module__}.step")
        seen = probe.instruments["a"] = Counting("n", expression, event=event)
        probe.start()
        try:
            wrong = self.blow(number)
            before = seen.count
            step(self.thing)
            if seen.status.error is not None:
                wrong["error"] = seen.status.error
            if seen.count != before + 1:
                wrong["hits"] = seen.count - before
        finally:
            probe.stop()
            del probe.instruments["a"]
        return wrong


def main(way, number, *kinds):
    # Shorter than all that is done in one go.
    sys.setswitchinterval(1e-4)
    found = {}
    for kind in kinds:

        def storm(kind=kind):
            limit = make_limit(kind)
            blown = Storm(limit, random.Random(kind))
            found[kind] = blown.blow_over_all(int(number), probed=way == "probed")

        if kind.endswith("a thread"):
            thread = threading.Thread(target=storm)
            thread.start()
            thread.join()
        else:
            storm()
    print(json.dumps(found))


if __name__ == "__main__":
    import time_limited

    time_limited.main(*sys.argv[1:])
