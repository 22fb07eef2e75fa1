"""Writes random expressions, for programs."""

from __future__ import annotations

EXPRESSIONS = {
    "number": 8, "items": 4, "text": 2, "comprehension": 7, "lambda_": 2, "choice": 2, "walrus": 2,
    "pair": 2, "call": 2,
}  # fmt: skip


class Expressions:
    """What :class:`~random_programs.programs.Writer` writes values with."""

    def chance(self, share):
        return self.random.random() < share

    def pick(self, **weights):
        return self.random.choices(list(weights), list(weights.values()))[0]

    def usable(self, place):
        """The variables that are set somewhere before, and are mostly numbers."""
        others = {"self", "cls", "args", "kwargs", "d", "e"}
        return [each for each in place.names if each not in others]

    def name(self, place):
        """A variable: mostly one that has a value, and that is a number."""
        usable = self.usable(place)
        if self.chance(0.04):
            return self.random.choice(["a", "b", "d", "e"])
        return self.random.choice(usable or ["g", "h"])

    def number(self, place, *, calls=True):
        """Mostly a number. Only such operations as make nothing large out of what they get."""
        form = self.pick(literal=3, name=5, operation=4, length=1, random_=0.2 if calls else 0)
        if form == "literal":
            return str(self.random.randint(0, 4))
        if form == "name":
            return self.name(place)
        if form == "length":
            return f"len([*{self.items(place, calls=calls)}])"
        if form == "random_":
            return "random.randrange(3)"
        sign = self.random.choice(["^", "-", "&", "|", "%"])
        return f"({self.name(place)} {sign} {self.random.randint(1, 3)})"

    def test(self, place):
        """Something that is true or not."""
        name, number = self.name(place), self.random.randint(0, 3)
        return self.random.choice([
            f"{name}", f"not {name}", f"{name} == {number}", f"{number} <= {name} < 9", "True", "True",
            f"{name} in {self.items(place)}", f"{name} or {self.name(place)}", f"{name} != {number}",
            f"(d := {number}) != {name}" if not place.in_class else f"{number}", f"{name} is not None",
            f"any(n == {name} for n in {self.items(place)})",
        ])  # fmt: skip

    def items(self, place, *, calls=True):
        """Something to go over, with few items that are numbers."""
        known = [each for each in ("args", "kwargs") if each in place.names]
        choices = [
            f"range({self.random.randint(0, 3)})",
            "(1, 2, 3)",
            "[0, 5]",
            "{4: 1, 2: 2}",
            "(1,)",
        ]
        if calls:
            choices += [f"numbers({self.random.randint(0, 2)})", self.comprehension(place)]
        return self.random.choice([*choices, *known])

    def value(self, place):
        made = None
        while made is None:
            form = self.random.choices(list(EXPRESSIONS), list(EXPRESSIONS.values()))[0]
            made = getattr(self, form)(place)
        return made

    def text(self, place):
        name = self.random.choice(place.names or ["g"])
        return self.random.choice(
            [f"f'{{{name}!r:.9}}-{{{self.number(place, calls=False)}}}'[:20]", f"str({name})[:9]"]
        )

    def pair(self, place):
        atom = self.random.randint(0, 9)
        return self.random.choice(
            [f"({atom}, {self.name(place)} ^ 1)", f"Point({atom})", f"{{'k': {atom}}}"]
        )

    def lambda_(self, place):
        parameter = self.random.choice(["n", "a", "b"])
        return f"(lambda {parameter}=2, *m: {parameter} ^ {self.number(place)})()"

    def choice(self, place):
        return f"({self.number(place)} if {self.test(place)} else {self.number(place)})"

    def walrus(self, place):
        if place.in_class:
            return None
        return f"(e := {self.number(place)})"

    def comprehension(self, place):
        """Names of the function as names of it, and in it, and cells."""
        element = self.random.choice(["n", "a", "b", "p", "c"])
        # In a class a name that is a cell of the function around crashes CPython 3.13.
        if element in place.globals_ or place.in_class:
            element = "n"
        name = self.name(place)
        over = self.random.choice([f"range({self.random.randint(0, 3)})", "(1, 2, 3)"])
        test = self.random.choice(["", "", f" if {element} != {name}", f" if ({element} ^ 1)"])
        extra = self.random.choice(
            ["", "", f" for k in range({element} & 1)", f" for {element} in (1, {element})"]
        )
        result = self.random.choice([
            f"{element}", f"{element} ^ {self.random.randint(1, 3)}", f"({element} or {name}) ^ 1",
            f"(lambda: {element})()", f"mark('item', {element})", f"len([{element} for {element} in range({element} & 3)])",
        ])  # fmt: skip
        if not place.in_class and self.chance(0.1):
            result = f"(w := {element})"
        brackets = self.random.choice(["[]", "{}", "{:}", "list()", "[]"])
        # On lines of their own there are line events inside.
        if self.chance(0.4):
            result, test, extra = f"\n {result}\n", test and f"\n{test}", extra and f"\n{extra}"
        if place.is_async and not place.in_class and self.chance(0.3):
            if self.chance(0.5):
                return f"[{result} async for {element} in Ticks(2){test}]"
            return f"[await pause({result}) for {element} in {over}]"
        inside = f"for {element} in {over}{extra}{test}"
        if brackets == "{:}":
            return f"{{{element}: {result} {inside}}}"
        if brackets == "list()":
            return f"list({result} {inside})"
        return f"{brackets[0]}{result} {inside}{brackets[1]}"

    # --- calls of the program's own functions ---

    def arguments(self, function, place):
        """Arguments that mostly fit."""
        if self.chance(0.05):
            return "1, 2, 3, zzz=1"
        pieces = [self.number(place) for _ in range(function.required)]
        pieces += [self.number(place) for _ in range(self.random.randint(0, function.optional))]
        if (
            function.more_args
            and self.chance(0.3)
            and len(pieces) == function.required + function.optional
        ):
            pieces.append("*(1, 2)")
        pieces += [f"{each}={self.number(place)}" for each in function.keywords]
        return (",\n " if self.chance(0.1) else ", ").join(pieces)

    def called(self, function, text, kind):
        """A call in a function of ``kind``, as a number or so."""
        match function.kind:
            case "plain":
                return text
            case "generator":
                if kind == "generator" and self.chance(0.3):
                    return f"(yield from {text})"
                return f"list(itertools.islice({text}, 3))"
            case "coroutine":
                return f"await {text}" if kind in ("coroutine", "asyncgen") else f"run({text})"
        return f"run(collect({text}))"

    def call(self, place):
        """A call of a function that is there already, or None."""
        plain = [each for each in self.callable if "." not in each.path]
        if not plain or place.in_class:
            return None
        function = self.random.choice(plain)
        text = self.called(
            function, f"{function.path}({self.arguments(function, place)})", place.kind
        )
        return f"({text} if go_on() else 0)"
