"""Writes random programs: modules of functions of all kinds, made of statements of all kinds.

A program comes to an end by construction: ``for`` runs over a few things, and each ``while`` and
each call of one of the program's own functions asks ``go_on()``.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from random_programs.parts import Function, Node, Place, Program, one
from random_programs.writing import Expressions

KINDS = ("plain", "generator", "coroutine", "asyncgen")


# The first are for numbers, so that most operations work; the others for anything.
LOCALS = ("a", "b", "c", "d", "e")
NUMBERS = LOCALS[:3]
PARAMETERS = ("p", "q", "r", "s", "t")
ERRORS = ("ValueError", "KeyError", "Odd", "StopIteration", "GeneratorExit", "LookupError")
CAUGHT = (*ERRORS[:4], "Exception", "(TypeError, ValueError)", "BaseException", "NameError")


class Writer(Expressions):
    """Writes one program out of a source of random numbers."""

    def __init__(self, random):
        self.random = random
        self.numbers = itertools.count(1)
        self.callable: list[Function] = []
        self.left = 0

    # --- modules ---

    def program(self):
        program = Program([one("from random_programs.world import *"), one("g = h = 0")])
        for number in range(self.random.randint(1, 3)):
            nodes, functions = self.definition(f"f{number}")
            program.nodes += nodes
            program.functions += functions
            self.callable += functions
        return program

    def definition(self, name):
        """A function at the level of the module, of any shape."""
        shape = self.pick(plain=6, one_line=2, closure=2, methods=3, recursive=1)
        if shape == "methods":
            return self.class_of_methods(f"C{name[1:]}")
        if shape == "one_line":
            return self.one_line(name)
        kind = self.kind()
        head, function, names = self.head(name, kind)
        place = Place(kind, names, own=frozenset(names))
        if shape == "closure":
            place = replace(place, names=[*names, "z"], nested=1)
            inner = Node([(head, self.body(place, shared=("z",)))])
            maker = Node([("def make(z):", [inner, one("mark(1, z)"), one(f"return {name}")])])
            return [maker, one(f"{name} = make(3)")], [function]
        body = self.body(place)
        if shape == "recursive":
            arguments = self.arguments(function, place)
            called = {
                "plain": f"{name}({arguments})",
                "generator": f"list(itertools.islice({name}({arguments}), 3))",
                "coroutine": f"await {name}({arguments})",
                "asyncgen": f"await collect({name}({arguments}))",
            }[kind]
            body.insert(self.random.randint(0, len(body)), one(f"e = {called} if go_on() else 0"))
        node = Node([(head, body)])
        if self.chance(0.3):
            decorator = self.random.choice(self.decorators(kind))
            node.clauses.insert(0, (f"@{decorator}", None))
        return [node], [function]

    def decorators(self, kind):
        found = ["noted", "passed", "twice"]
        if kind == "plain":
            found.append("functools.lru_cache")
        return found

    def one_line(self, name):
        head, function, names = self.head(name, "plain")
        place = Place("plain", names)
        value = self.number(place, calls=False)
        function = replace(function, pure=True)
        if self.chance(0.5):
            parameters = head[len(f"def {name}(") : -2]
            return [one(f"{name} = lambda {parameters}: {value}")], [function]
        return [one(f"{head} return {value}")], [function]

    def class_of_methods(self, name):
        block, functions = [one("count = 0")], []
        for number in range(self.random.randint(1, 3)):
            kind, method = self.kind(), f"m{number}"
            how = self.pick(method=5, static=1, class_=1, special=1)
            if how == "special":
                kind, method = "plain", "__call__"
            first = {"static": "", "class_": "cls"}.get(how, "self")
            head, function, names = self.head(method, kind, first)
            place = Place(kind, names, own=frozenset(names))
            body = self.body(place)
            if first == "self":
                body.insert(0, one("self.count += 1"))
                if self.chance(0.3):
                    body.append(one("mark('class', __class__)"))
            node = Node([(head, body)])
            decorator = {"static": "staticmethod", "class_": "classmethod"}.get(how)
            if decorator:
                node.clauses.insert(0, (f"@{decorator}", None))
            block.append(node)
            functions.append(replace(function, path=f"{name}.{method}"))
        nodes = [Node([(f"class {name}:", block)])]
        if self.chance(0.3):
            kind = self.kind("plain", "coroutine")
            head, function, names = self.head("m0", kind, "self")
            body = self.body(Place(kind, names, own=frozenset(names)))
            body.insert(0, one("mark('super', super().count)"))
            nodes.append(Node([(f"class D{name}({name}):", [Node([(head, body)])])]))
            functions.append(replace(function, path=f"D{name}.m0"))
        return nodes, functions

    def kind(self, *of):
        if of:
            return self.random.choice(of)
        return self.pick(plain=6, generator=3, coroutine=2, asyncgen=2)

    def head(self, name, kind, first=""):
        """The line of the ``def``; the function; the names of its parameters."""
        count = self.random.randint(0, 4)
        names = list(PARAMETERS[:count])
        by_place = self.random.randint(0, count)
        required = self.random.randint(0, by_place)
        positional = [
            each if number < required else f"{each}={number + 5}"
            for number, each in enumerate(names[:by_place])
        ]
        pieces = ([first] if first else []) + positional
        if pieces and self.chance(0.2):
            pieces.insert(self.random.randint(1, len(pieces)), "/")
        star = self.pick(none=3, args=2)
        if star == "args":
            pieces.append("*args")
        elif by_place < count:
            pieces.append("*")
        keywords = names[by_place:]
        pieces += [each if self.chance(0.4) else f"{each}=7" for each in keywords]
        extra = self.chance(0.25)
        if extra:
            pieces.append("**kwargs")
        bound = [first] * bool(first) + names + ["args"] * (star == "args") + ["kwargs"] * extra
        word = "async def" if kind in ("coroutine", "asyncgen") else "def"
        function = Function(
            name, kind, required, by_place - required, tuple(keywords), star == "args", extra
        )
        return f"{word} {name}({', '.join(pieces)}):", function, bound

    def body(self, place, shared=()):
        """A function's statements; one makes it of its kind."""
        nodes = []
        declared = set()
        if self.chance(0.2):
            declared = {"g"}
            nodes.append(one("global g"))
        if shared and self.chance(0.6):
            nodes.append(one(f"nonlocal {', '.join(shared)}"))
        place = replace(place, names=[*place.names, *declared], globals_=frozenset(declared))
        if self.chance(0.7):
            name = self.random.choice(LOCALS)
            nodes.append(one(f"{name} = {self.value(place)}"))
            place.names.append(name)
        self.left = self.random.randint(2, 12)
        nodes += self.block(place, most=5)
        if place.kind in ("generator", "asyncgen"):
            nodes.insert(
                self.random.randint(bool(declared) + bool(shared), len(nodes)), one("yield 'first'")
            )
        return nodes

    # --- statements ---

    def block(self, place, most=3):
        nodes = []
        for _ in range(self.random.randint(1, most)):
            nodes += self.statement(place)
        return nodes

    def statement(self, place):
        self.left -= 1
        table = COMPOUND if place.depth < 4 and self.left > 0 and self.chance(0.45) else SIMPLE
        while True:
            name = self.random.choices(list(table), list(table.values()))[0]
            made = getattr(self, f"_{name}")(place)
            if made is not None:
                return made if isinstance(made, list) else [made]

    def maybe(self, place, node):
        """A statement after which nothing comes: mostly under a condition."""
        if self.chance(0.12):
            return node
        return Node([(f"if {self.name(place)} == {self.random.randint(0, 4)}:", [node])])

    def target(self, place, *, number=False):
        """A name to be given a value; it is known from then on."""
        pool = [*NUMBERS, *NUMBERS, *self.usable(place)] if number else LOCALS[len(NUMBERS) :]
        if self.chance(0.04):
            pool = [*LOCALS, *place.names]
        name = self.random.choice(pool)
        if name not in place.names:
            place.names.append(name)
        return name

    def _assign(self, place):
        is_number = self.chance(0.6)
        value = self.number(place) if is_number else self.value(place)
        return one(f"{self.target(place, number=is_number)} = {value}")

    def _unpack(self, place):
        value = self.random.choice(
            [f"[1, *{self.items(place)}]", "(1, 2)", f"({self.number(place)}, 2)"]
        )
        first, second = self.target(place, number=True), self.target(place)
        return one(f"{first}, {'*' if '*' in value else ''}{second} = {value}")

    def _augment(self, place):
        return one(
            f"{self.name(place)} {self.random.choice(['-', '^', '%', '|'])}= {self.number(place)}"
        )

    def _delete(self, place):
        names = set(place.names) - {"self", "cls", *place.globals_}
        if not names:
            return None
        name = self.random.choice(sorted(names))
        # What is gone is not used again, mostly.
        if self.chance(0.8) and name in place.names:
            place.names.remove(name)
        return one(f"del {name}")

    def _mark(self, place):
        number = next(self.numbers)
        what = self.random.choice(["locals()", "locals()", "sys.exception()", self.value(place)])
        if what == "locals()" and place.in_class:
            what = "sorted(locals())"
        return one(f"mark({number}, {what})")

    def _here(self, place):
        return one(
            self.random.choice(
                ["here()", "print('out', end=' ')", "mark('random', random.random())"]
            )
        )

    def _assert(self, place):
        return one(f"assert {self.test(place)}, {self.number(place)}")

    def _raise(self, place):
        if not place.tries and self.chance(0.7):
            return None
        if place.handles and self.chance(0.4):
            return one("raise")
        error = f"{self.random.choice(ERRORS)}({next(self.numbers)})"
        if self.chance(0.2):
            error = f"ExceptionGroup('group', [{error.replace('Odd', 'OSError').replace('GeneratorExit', 'OSError')}, TypeError(1)])"
        cause = self.random.choice(
            ["", "", " from None", " from sys.exception()", " from KeyError(3)"]
        )
        return self.maybe(place, one(f"raise {error}{cause}"))

    def _return(self, place):
        if not place.may_return or place.in_class:
            return None
        value = "" if place.kind == "asyncgen" else f" {self.value(place)}"
        return self.maybe(place, one(f"return{value}"))

    def _leave_loop(self, place):
        if not place.in_loop:
            return None
        word = self.random.choice(["break", "continue"])
        return self.maybe(place, one(word))

    def _suspend(self, place):
        if place.in_class or place.kind == "plain":
            return None
        number = self.number(place)
        ways = {
            "generator": [f"yield {number}", f"yield from numbers({self.random.randint(0, 3)})"],
            "coroutine": [f"await pause({number})"],
            "asyncgen": [f"yield {number}", f"await pause({number})"],
        }[place.kind]
        way = self.random.choice(ways)
        return one(f"{self.target(place, number='pause' in way)} = {way}")

    def _call(self, place):
        called = self.call(place)
        return None if called is None else one(f"{self.target(place)} = {called}")

    def _token(self, place):
        return one(f"{self.target(place)} = Token({next(self.numbers)})")

    def _cell(self, place):
        """Makes a variable a cell, which a comprehension takes for its own."""
        name = self.target(place, number=True)
        lent = one(f"{self.target(place)} = lambda: {name}")
        # Not in a class: there CPython 3.13 crashes by itself.
        if place.in_class or name in place.globals_ or self.chance(0.3):
            return lent
        made = f"{self.target(place)} = [\n {name}\n for {name} in {self.items(place, calls=False)}"
        test = f"\n if {name} != {self.random.randint(0, 2)}" if self.chance(0.5) else ""
        return [lent, one(f"{made}{test}]")]

    def _attribute(self, place):
        if "self" in place.names and self.chance(0.5):
            return one(f"self.count ^= {self.number(place)}")
        return [
            one("box = Box(x=1, items=[1, 2])"),
            one(
                self.random.choice(
                    [
                        f"box.x ^= {self.number(place)}",
                        "del box.x",
                        f"box.items[{self.number(place)} & 1] ^= 3",
                    ]
                )
            ),
            one("mark('box', box)"),
        ]

    def _snapshot(self, place):
        if place.in_class:
            return None
        return [
            one("kept = locals()"),
            *self.statement(place.inner()),
            one(f"mark({next(self.numbers)}, kept)"),
        ]

    def _if(self, place):
        clauses = [(f"if {self.test(place)}:", self.block(place.inner()))]
        if self.chance(0.4):
            clauses.append((f"elif {self.test(place)}:", self.block(place.inner())))
        if self.chance(0.5):
            clauses.append(("else:", self.block(place.inner())))
        return Node(clauses)

    def _while(self, place):
        clauses = [
            (f"while go_on() and ({self.test(place)}):", self.block(place.inner(in_loop=True)))
        ]
        if self.chance(0.4):
            clauses.append(("else:", self.block(place.inner())))
        return Node(clauses)

    def _for(self, place):
        items = self.items(place)
        name = self.target(place, number=True)
        word = "for"
        if place.is_async and not place.in_class and self.chance(0.5):
            word, items = "async for", f"Ticks({self.random.randint(0, 3)})"
        clauses = [(f"{word} {name} in {items}:", self.block(place.inner(in_loop=True)))]
        if self.chance(0.4):
            clauses.append(("else:", self.block(place.inner())))
        return Node(clauses)

    def _try(self, place):
        clauses = [("try:", self.block(place.inner(tries=True)))]
        form = self.pick(catches=5, finally_=2, both=2)
        if form != "finally_":
            for error in self.random.sample(CAUGHT, self.random.randint(1, 2)):
                inner = place.inner(handles=True)
                name = ""
                if self.chance(0.6):
                    name = f" as {self.random.choice(['caught', 'caught', 'd', 'e', 'a'])}"
                clauses.append((f"except {error}{name}:", self.block(inner)))
            if self.chance(0.3):
                clauses.append(("else:", self.block(place.inner())))
        if form != "catches":
            clauses.append(("finally:", self.block(place.inner())))
        return Node(clauses)

    def _try_star(self, place):
        clauses = [("try:", self.block(place.inner(tries=True)))]
        for error in self.random.sample(["ValueError", "KeyError", "TypeError", "Exception"], 2):
            inner = place.inner(handles=True, in_loop=False, may_return=False)
            name = f" as {self.random.choice(['caught', 'd', 'a'])}" if self.chance(0.5) else ""
            clauses.append((f"except* {error}{name}:", self.block(inner)))
        if self.chance(0.4):
            clauses.append(("finally:", self.block(place.inner())))
        return Node(clauses)

    def _with(self, place):
        word, kinds = "with", ["Manager"]
        if place.is_async and not place.in_class and self.chance(0.5):
            word, kinds = "async with", ["AsyncManager"]
        items = []
        for _ in range(self.random.randint(1, 2)):
            name = f" as {self.target(place, number=True)}" if self.chance(0.5) else ""
            number = self.random.choice([0, 1, 1, 1, 2, 3, 3, 8, 9])
            items.append(f"{kinds[0]}({number}){name}")
        return Node([(f"{word} {', '.join(items)}:", self.block(place.inner()))])

    def _match(self, place):
        subject = self.random.choice([
            self.number(place), self.items(place), f"{{'k': {self.number(place)}, 'm': 2}}",
            f"Point({self.number(place)}, 2)", "'blue'", f"({self.number(place)}, {self.items(place)})",
        ])  # fmt: skip
        cases = []
        for form in self.random.sample(PATTERNS, self.random.randint(1, 4)):
            x, y = self.random.sample(LOCALS, 2)
            pattern = form.replace("@x", x).replace("@y", y)
            guard = f" if {self.test(place)}" if self.chance(0.25) else ""
            place.names.extend(
                each for each in (x, y) if each in pattern and each not in place.names
            )
            cases.append(Node([(f"case {pattern}{guard}:", self.block(place.inner()))]))
        if self.chance(0.5):
            last = self.random.choice(["_", self.target(place)])
            cases.append(Node([(f"case {last}:", self.block(place.inner()))]))
        return Node([(f"match {subject}:", cases)])

    def _nested(self, place):
        if place.nested >= 2 or place.in_class:
            return None
        kind = self.kind("plain", "generator", "coroutine")
        name = f"inner{next(self.numbers)}"
        head, function, names = self.head(name, kind)
        outer = [
            each for each in place.names
            if each not in names and each not in place.globals_ and each != "self"
        ]  # fmt: skip
        lent = [each for each in outer if each not in ("cls", "args", "kwargs")]
        inner = Place(kind, [*names, *outer], nested=place.nested + 1, own=frozenset(names))
        shared = (self.random.choice(lent),) if lent and self.chance(0.4) else ()
        # What is lent has to have a value somewhere in the function around.
        lending = [Node([("if 0:", [one(f"{each} = 0") for each in shared])])] if shared else []
        call = self.called(function, f"{name}({self.arguments(function, place)})", place.kind)
        node = Node([(head, self.body(inner, shared))])
        return [*lending, node, one(f"{self.target(place)} = {call} if go_on() else 1")]

    def _class(self, place):
        if place.in_class or place.nested >= 2:
            return None
        name = f"K{next(self.numbers)}"
        inner = place.inner(in_class=True, in_loop=False, may_return=False)
        return [
            Node([(f"class {name}:", self.block(inner))]),
            one(
                f"mark({next(self.numbers)}, sorted(each for each in vars({name}) if each[0] != '_'))"
            ),
        ]

    def _import(self, place):
        return one(
            self.random.choice(
                ["import math as e", "from math import pi as d", "e: int = 3", "c: int", "..."]
            )
        )


SIMPLE = {
    "assign": 8, "unpack": 3, "augment": 4, "delete": 2, "mark": 8, "here": 3, "assert": 1, "raise": 2,
    "return": 2, "leave_loop": 5, "suspend": 8, "call": 4, "token": 3, "attribute": 2, "snapshot": 1,
    "import": 1, "cell": 4,
}  # fmt: skip
COMPOUND = {
    "if": 5, "while": 3, "for": 5, "try": 6, "try_star": 2, "with": 4, "match": 3, "nested": 3,
    "class": 1,
}  # fmt: skip
PATTERNS = (
    "1", "-1 | 2 | 3", "int(@x)", "[@x, *@y]", "[1, @x]", "[_, _, *_]", "{'k': @x}", "{'k': 1, **@y}",
    "Point(@x, 2)", "Point(x=0, y=@y)", "Color.BLUE", "None | True", "(1 | 2) as @x", "str() | bytes()",
    "(@x, [*@y])",
)  # fmt: skip
