"""Writes what is done with a program: calls, steps of generators, and changes of probes between.

A script is a list of operations, each a dict of plain values. Places in it are open until it is
run (``{0}`` is one of the function's variables, ``line:?7`` the seventh of its lines, counted
round), so that it goes on meaning something while a program is made smaller.
"""

from __future__ import annotations

STEPS = ("next", "next", "next", "send", "throw", "close")
THROWN = ("ValueError", "KeyError", "Odd", "GeneratorExit", "StopIteration")

# An instrument that keeps what it gets may get these: nothing is kept alive by them.
NUMBERS = ("1", "elapsed", "len(args)", "frame.f_lineno", "start", "watched()")
VALUES = {
    "1": 3, "elapsed": 2, "len(args)": 1, "frame.f_lineno": 2, "start": 1, "watched()": 4,
    "{0}": 8, "{1}": 4, "({0}, {1})": 3, "str({0})": 2, "{0} ^ 1": 3, "same({0})": 2,
    "[v for v in ({0}, {1})]": 2, "[{0} for {0} in (1, 2)]": 1, "(lambda v: {0})(1)": 1,
    "sum(n for n in ({0}, 1))": 1, "1 // 0": 1, "{0}.nothing": 1, "nowhere": 0.5, "raises({0})": 1,
    "raises_odd()": 0.5, "result": 4, "exception": 2, "(result, exception)": 1, "kwargs": 1,
    "(args, kwargs)": 1, "hotspots": 1, "hotspots.worst": 1, "now": 1, "{pure}(1)": 2,
    "sorted(locals())": 0.5, "type({0})": 1, "f'{{0}!r:.9}'": 1, "len([*args, *kwargs])": 0.5,
}  # fmt: skip
CONDITIONS = {
    None: 12, "{0} == 1": 3, "{0} is None": 2, "{0} > 2": 2, "elapsed < 1": 1, "exception is None": 1,
    "same(False)": 1, "watched()": 1, "1 // 0": 0.5, "raises()": 0.5,
}  # fmt: skip
EVENTS = {"call": 4, "return": 5, "end": 4, "line": 10}
KINDS = {
    "test": 3, "hist": 4, "incr": 2, "log": 3, "emit": 2, "emit_raises": 1, "fire": 2, "check": 1,
    "check_raises": 0.5, "tags": 1, "asked": 1, "calltree": 1.5, "finish": 1,
}  # fmt: skip
LIMITS = {None: 8, "hits": 2, "rate": 1, "sample": 1}
TAGS = {None: 6, "{'t': {0}}": 1, "{'t': 1, 'k': str({1})}": 1, "{'t': 1 // 0}": 0.5, "{0}": 0.5}
KEYS = ("x", "y", "z")


def script(random, functions):
    """Operations for a program with these functions."""
    writer = _Writer(random, functions)
    operations = [writer.probe(), writer.probe()]
    operations += [writer.operation() for _ in range(random.randint(10, 22))]
    return operations


class _Writer:
    def __init__(self, random, functions):
        self.random = random
        self.functions = functions
        self.slots = 0
        self.pure = [each.path for each in functions if each.pure] or ["same"]
        # Some are probed more than others, so that several instruments meet.
        self.often = random.sample(functions, min(2, len(functions)))

    def pick(self, table):
        return self.random.choices(list(table), list(table.values()))[0]

    def operation(self):
        form = self.pick({"call": 14, "make": 2, "step": 5, "drop": 1, "probe": 6, "change": 3})
        if form in ("step", "drop") and not self.slots:
            form = "make"
        return getattr(self, form)()

    def call(self):
        function = self.function()
        steps = [self.one_step() for _ in range(self.random.randint(2, 8))]
        return {"do": "call", **self.called(function), "steps": steps}

    def make(self):
        function = self.function("generator", "coroutine", "asyncgen")
        self.slots += 1
        return {"do": "make", "slot": self.slots, **self.called(function)}

    def step(self):
        return {"do": "step", "slot": self.random.randint(1, self.slots), "step": self.one_step()}

    def drop(self):
        return {"do": "drop", "slot": self.random.randint(1, self.slots)}

    def one_step(self):
        how = self.random.choice(STEPS)
        if how == "throw":
            return [how, self.random.choice(THROWN)]
        return [how, self.random.randint(0, 3)]

    def function(self, *kinds):
        found = [each for each in self.functions if each.kind in kinds] or self.functions
        often = [each for each in self.often if each in found]
        return self.random.choice(often if often and self.random.random() < 0.75 else found)

    def called(self, function):
        count = function.required + self.random.randint(0, function.optional)
        if self.random.random() < 0.06:
            count += self.random.choice([-1, 1])
        args = [self.random.choice([0, 1, 2, 3, 1, 2, 5, 4, None]) for _ in range(max(count, 0))]
        kwargs = {each: self.random.randint(0, 4) for each in function.keywords}
        if function.more_kwargs and self.random.random() < 0.3:
            kwargs["extra"] = 1
        if function.more_args and count == function.required + function.optional:
            args += [7] * self.random.randint(0, 2)
        return {"path": function.path, "args": args, "kwargs": kwargs}

    # --- probes ---

    def probe(self):
        event = self.pick(EVENTS)
        if event == "line":
            event = f"line:?{self.random.randint(0, 30)}"
        kind = self.pick(KINDS)
        if kind == "calltree":
            event = self.random.choice(["return", "return", "return", event])
        value = self.pick(VALUES)
        if kind in ("incr", "calltree") and self.random.random() < 0.7:
            value = {"incr": "1", "calltree": "tree"}[kind]
        limit = self.pick(LIMITS)
        pure = self.random.choice(self.pure)
        return {
            "do": self.pick({"attach": 8, "put": 1, "every_line": 1}), "path": self.function().path,
            "key": self.random.choice(KEYS), "kind": kind, "event": event,
            "value": value.replace("{pure}", pure), "when": self.pick(CONDITIONS),
            "limit": limit, "most": self.random.choice([1, 2, 1000]), "tags": self.pick(TAGS),
            "names": [self.random.randint(0, 30), self.random.randint(0, 30)],
        }  # fmt: skip

    def change(self):
        do = self.pick({"start": 3, "stop": 3, "detach": 3, "stop_all": 1})
        return {"do": do, "path": self.function().path, "key": self.random.choice(KEYS)}
