"""What expressions are admitted, what they give, and what is said of those that are not."""

from __future__ import annotations

import ast
import datetime
import decimal
import fractions
import math
import sys
import time
from collections import Counter, OrderedDict, namedtuple
from types import MappingProxyType, SimpleNamespace

import pytest
from evaluating import function_of
from hypothesis import given
from hypothesis import strategies as st

from diagnose.errors import (
    ExpressionError,
    ExpressionNotAdmittedError,
    ExpressionSyntaxError,
    UnknownNameError,
)
from diagnose.expressions import BUILTINS, parse


def double(x):
    return x * 2


NAMESPACE = {"datetime": datetime, "math": math, "time": time, "double": double}

Point = namedtuple("Point", "x y")


class Cart:
    tier = "gold"

    def __init__(self):
        self.items = [Item(1), Item(2), Item(3)]
        self.prices = {"pear": 1.5, "fig": 2.5}
        self.count = 3
        self.format = "json"

    @property
    def total(self):
        return sum(item.price for item in self.items)


class Item:
    def __init__(self, price):
        self.price = price


def variables():
    return {
        "self": Cart(),
        "result": "ok",
        "exception": KeyError("pear"),
        "elapsed": 0.25,
        "start": 100.0,
        "end": 100.25,
        "args": (1, 2, 3),
        "kwargs": {"a": 1, "b": None},
        "items": [3, 1, 2],
        "words": ["pear", "fig", "apple"],
        "text": "  Hello World ",
        "data": b"caf\xc3\xa9",
        "when": datetime.datetime(2026, 1, 2, 3, 4, 5),
        "point": Point(3, 4),
        "tags": {"x", "y"},
        "n": 7,
        "counter": Counter("aab"),
        "ordered": OrderedDict(a=1),
        "money": decimal.Decimal("1.50"),
        "third": fractions.Fraction(1, 3),
    }


def value_of(text, policy="restricted", namespace=NAMESPACE, **more):
    names = {**variables(), **more}
    expression = parse(text, policy=policy, namespace=namespace)
    function = function_of(expression, list(names), dict(namespace))
    return function(**names)


# --- both policies ----------------------------------------------------------------------------

ADMITTED = [
    # names and constants
    ("result", "ok"),
    ("None", None),
    ("True", True),
    ("'a' 'b'", "ab"),
    ("1_000", 1000),
    ("0x10", 16),
    ("1.5e3", 1500.0),
    ("2j", 2j),
    ("b'x'", b"x"),
    ("...", ...),
    ("  result\n", "ok"),
    ("\n  (result,\n   n)\n", ("ok", 7)),
    ("result  # what came of it", "ok"),
    # attributes and items
    ("self.tier", "gold"),
    ("self.total", 6),
    ("self.items[0].price", 1),
    ("self.items[-1:][0].price", 3),
    ("items[::2]", [3, 2]),
    ("items[slice_from:]", [1, 2]),
    ("kwargs['a']", 1),
    ("point.x", 3),
    ("point[1]", 4),
    ("exception.args[0]", "pear"),
    ("self.format", "json"),
    ("ordered['a']", 1),
    ("counter['missing']", 0),
    # operators
    ("elapsed * 1000", 250.0),
    ("1000 * elapsed", 250.0),
    ("end - start", 0.25),
    ("-n + +n", 0),
    ("~n", -8),
    ("n / 2", 3.5),
    ("n // 2", 3),
    ("n % 4", 3),
    ("n * n", 49),
    ("n << 3", 56),
    ("n >> 1", 3),
    ("n & 3 | 8 ^ 1", 11),
    ("tags | {'z'} == {'x', 'y', 'z'}", True),
    ("money * 2", decimal.Decimal("3.00")),
    ("third * 3 == 1", True),
    ("money % 1", decimal.Decimal("0.50")),
    ("result + '!'", "ok!"),
    ("n * True", 7),
    ("not items", False),
    ("items and items[0]", 3),
    ("kwargs['b'] or 'none'", "none"),
    ("'slow' if elapsed > 0.2 else 'fast'", "slow"),
    ("1 < n <= 7", True),
    ("n == 7 != 8", True),
    ("exception is not None", True),
    ("'a' in kwargs", True),
    ("'z' not in kwargs", True),
    ("3 in items", True),
    ("'Hello' in text", True),
    # displays
    ("{'tier': self.tier, 'n': n}", {"tier": "gold", "n": 7}),
    ("{1, n}", {1, 7}),
    ("[n, [n], (n,)]", [7, [7], (7,)]),
    ("{}", {}),
    ("()", ()),
    # f-strings
    ("f'{n}'", "7"),
    ("f'{n!r:>4}|'", "   7|"),
    ("f'{elapsed:.1f} {elapsed:8.3f} {n:03d} {n:x}'", "0.2    0.250 007 7"),
    ("f'{elapsed:.0%} {n:,} {n:+d} {n:#x}'", "25% 7 +7 0x7"),
    ("f'{when:%Y-%m-%d %H:%M:%S}'", "2026-01-02 03:04:05"),
    ("f'{when:%-d %b}'", "2 Jan"),
    ("f'{{}}{self.tier}'", "{}gold"),
    ("f'{n=}'", "n=7"),
    # comprehensions
    ("[x + 1 for x in items]", [4, 2, 3]),
    ("[x for x in items if x > 1 if x < 3]", [2]),
    ("{x: x * 2 for x in items}", {1: 2, 2: 4, 3: 6}),
    ("{len(word) for word in words}", {3, 4, 5}),
    ("[k for k, v in self.prices.items() if v > 2]", ["fig"]),
    ("[a for [a, b] in [(1, 2)]]", [1]),
    ("sum(item.price for item in self.items)", 6),
    ("max((item.price for item in self.items), default=0)", 3),
    ("[n for n in items] + [n]", [3, 1, 2, 7]),
    ("any(x > 2 for x in items) and all(x for x in items)", True),
    ("', '.join(word.upper() for word in words)", "PEAR, FIG, APPLE"),
    ("', '.join(str(x) for x in items)", "3, 1, 2"),
    ("tags.union(word for word in words) == {'x', 'y', 'pear', 'fig', 'apple'}", True),
    ("[word.strip() for word in words][0]", "pear"),
    # builtins
    ("abs(-n)", 7),
    ("all(items)", True),
    ("any([])", False),
    ("bin(5) + oct(8) + hex(255)", "0b1010o100xff"),
    ("bool(items)", True),
    ("callable(self)", False),
    ("chr(97) + str(ord('a'))", "a97"),
    ("dict(a=n)", {"a": 7}),
    ("dict(kwargs, b=2)", {"a": 1, "b": 2}),
    ("dict([(1, 2)])", {1: 2}),
    ("dict()", {}),
    ("list(enumerate('ab', 1))", [(1, "a"), (2, "b")]),
    ("list(enumerate('ab', start=1))", [(1, "a"), (2, "b")]),
    ("float('1.5')", 1.5),
    ("frozenset(items)", frozenset({1, 2, 3})),
    ("int('12') + int(3.9) + int('ff', 16) + int('11', base=2)", 12 + 3 + 255 + 3),
    ("int()", 0),
    ("isinstance(n, int)", True),
    ("isinstance(exception, (KeyError, ValueError))", True),
    ("isinstance(n, int | str)", True),
    ("isinstance(exception, Exception)", True),
    ("len(items)", 3),
    ("list(kwargs)", ["a", "b"]),
    ("list()", []),
    ("max(items), min(items)", (3, 1)),
    ("max(1, n), min(1, n)", (7, 1)),
    ("max([], default=None)", None),
    ("max(words, key=len)", "apple"),
    ("list(range(3)), list(range(1, 9, 4))", ([0, 1, 2], [1, 5])),
    ("repr(result)", "'ok'"),
    ("list(reversed(items))", [2, 1, 3]),
    ("round(elapsed, 1), round(2.6), round(1234, -2)", (0.2, 3, 1200)),
    ("set(items)", {1, 2, 3}),
    ("sorted(items)", [1, 2, 3]),
    ("sorted(items, reverse=True)", [3, 2, 1]),
    ("sorted(words, key=len, reverse=True)", ["apple", "pear", "fig"]),
    ("sorted(words, key=None)", ["apple", "fig", "pear"]),
    ("sorted(kwargs.keys())", ["a", "b"]),
    ("str(n) + str()", "7"),
    ("sum(items)", 6),
    ("sum([elapsed], 0.0)", 0.25),
    ("sum([when - when], datetime.timedelta(1))", datetime.timedelta(1)),
    ("tuple(items)", (3, 1, 2)),
    ("type(n) is int", True),
    ("type(exception).__name__", "KeyError"),
    ("list(zip(items, words))", [(3, "pear"), (1, "fig"), (2, "apple")]),
    # methods
    ("text.strip().lower().split(' ')", ["hello", "world"]),
    ("text.replace('l', 'LL')", "  HeLLLLo WorLLd "),
    ("text.replace('l', '', 1)", "  Helo World "),
    ("'7'.zfill(3) + 'a'.ljust(3, '.') + 'a'.rjust(3) + 'a'.center(3)", "007a..  a a "),
    ("'a,b'.split(sep=',', maxsplit=1)", ["a", "b"]),
    ("'x'.encode() + 'x'.encode('ascii', errors='ignore')", b"xx"),
    ("data.decode()", "café"),
    ("data.decode('latin-1')", "cafÃ©"),
    ("data.hex()", "636166c3a9"),
    ("data.startswith(b'c')", True),
    ("kwargs.get('z', 'no')", "no"),
    ("ordered.get('a')", 1),
    ("counter.get('a')", 2),
    ("list(self.prices.values())", [1.5, 2.5]),
    ("items.index(1)", 1),
    ("args.count(2)", 1),
    ("point.index(4)", 1),
    ("tags.isdisjoint(['z'])", True),
    ("tags.intersection({'x': 1}, 'xy')", {"x"}),
    # the application's
    ("double(n)", 14),
    ("double(x=n)", 14),
    ("math.floor(3.7)", 3),
    ("math.pi > 3", True),
    ("math.sqrt(n * n)", 7.0),
    ("time.time() > 0", True),
    ("datetime.datetime(2026, 1, 1).year", 2026),
    ("datetime.datetime.now(datetime.timezone.utc).tzinfo", datetime.UTC),
    ("datetime.datetime.fromtimestamp(start, tz=datetime.timezone.utc).year", 1970),
    ("datetime.timedelta.total_seconds(when - when)", 0.0),
    ("datetime.datetime.isoformat(when)", "2026-01-02T03:04:05"),
    ("(when - when) / datetime.timedelta(seconds=1)", 0.0),
]


@pytest.mark.parametrize(("text", "expected"), ADMITTED, ids=[text for text, _ in ADMITTED])
@pytest.mark.parametrize("policy", ["python", "restricted"])
def test_an_admitted_expression_gives_its_value(text, expected, policy):
    value = value_of(text, policy, slice_from=1)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(lambda x, *y, z=n, **w: x + z)(1)", 8),
        ("[x * y for x in items for y in items if x != y]", [3, 6, 3, 2, 6, 2]),
        ("[[x for x in items] for _ in range(2)]", [[3, 1, 2], [3, 1, 2]]),
        ("n ** 2", 49),
        ("self.__class__.__name__", "Cart"),
        ("'{:>3}'.format(n)", "  7"),
        ("'%03d' % n", "007"),
        ("f'{n:{n}}'", "      7"),
        ("[*items, *args]", [3, 1, 2, 1, 2, 3]),
        ("max(*items)", 3),
        ("{**kwargs, 'c': 1}", {"a": 1, "b": None, "c": 1}),
        ("getattr(self, 'tier')", "gold"),
        ("items * 2", [3, 1, 2, 3, 1, 2]),
        ("sorted(words, key=lambda word: word[-1])", ["apple", "fig", "pear"]),
        ("(lambda: [n for _ in items])()", [7, 7, 7]),
        ("list(map(double, items))", [6, 2, 4]),
        ("__debug__", True),
        ("__import__('math').floor(1.5)", 1),
    ],
)
def test_the_python_policy_admits_all_of_python(text, expected):
    assert value_of(text, "python") == expected


def test_the_restricted_policy_gives_lists_where_python_gives_iterators():
    assert value_of("enumerate('a')") == [(0, "a")]
    assert value_of("zip('a', 'b')") == [("a", "b")]
    assert value_of("reversed([1, 2])") == [2, 1]


def test_a_very_long_python_expression_is_admitted():
    text = "[" + ", ".join(map(str, range(20_000))) + "]"
    assert value_of(text, "python") == list(range(20_000))
    assert value_of(repr("x" * 1_000_000), "python") == "x" * 1_000_000


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["python", "restricted"])
@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1", set()),
        ("a.b[c]", {"a", "c"}),
        ("[x for x in a if x > b]", {"a", "b"}),
        ("[x for x in x]", {"x"}),
        ("[y for x in a] + [x]", {"a", "x", "y"}),
        ("{k: v for k, v in d.items()}", {"d"}),
        ("sum(x for x in a)", {"a"}),
        ("f'{a} {b!r:>5}'", {"a", "b"}),
        ("x if c else y", {"x", "c", "y"}),
        ("math.pi", {"math"}),
    ],
)
def test_names_are_those_that_are_free(text, names, policy):
    found = parse(text, policy=policy, namespace=NAMESPACE).names
    assert found - {"sum"} == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("lambda x, /, y, *z, k=d, **w: (x, y, z, k, w, free)", {"d", "free"}),
        ("lambda x=x: x", {"x"}),
        ("lambda *, k, j=free: k + j", {"free"}),
        ("[a for b in c for a in b]", {"c"}),
        ("[a for a in c for b in a if b for d in e]", {"c", "e"}),
        ("[lambda: x for x in y]", {"y"}),
        ("[0 for a.b in c]", {"a", "c"}),
        ("[0 for a[i], *b in c]", {"a", "i", "c"}),
        ("(x for x in (y for y in z))", {"z"}),
        ("f(a, *b, k=c, **d)", {"f", "a", "b", "c", "d"}),
        ("__debug__", set()),
        ("ｘ + x", {"x"}),
    ],
)
def test_names_of_python_expressions_follow_scopes(text, names):
    assert parse(text).names == names


def test_what_a_restricted_expression_calls_is_no_name_that_the_call_could_give():
    expression = parse(
        "len(a) + double(b) + math.floor(c)", policy="restricted", namespace=NAMESPACE
    )
    assert expression.names == {"a", "b", "c"}
    free = {node.id for node in ast.walk(expression.tree) if isinstance(node, ast.Name)}
    assert free == expression.names | set(expression.constants)
    assert not any(name.isidentifier() for name in expression.constants)
    assert expression.constants["@len()"] is len


def test_a_parameter_does_not_take_the_place_of_what_is_called():
    called = []
    evil = SimpleNamespace(floor=called.append)
    assert value_of("len(items)", len=called.append) == 3
    assert value_of("len(items) + len", len=4) == 7
    assert value_of("math.floor(1.5)", math=evil) == 1
    assert value_of("double(n)", double=called.append) == 14
    assert value_of("sorted(words, key=len)", len=called.append) == ["fig", "pear", "apple"]
    assert called == []


def test_a_parameter_is_read_before_the_application_s_thing_of_that_name():
    assert value_of("time.hour", time=SimpleNamespace(hour=5)) == 5
    assert value_of("math + 1", math=1) == 2


def test_the_namespace_comes_before_builtins():
    assert value_of("len(items)", namespace={"len": lambda items: "mine"}) == "mine"


def test_a_change_of_the_namespace_is_followed():
    namespace = {"rate": lambda: 1, "math": math}
    expression = parse("rate()", policy="restricted", namespace=namespace)
    function = function_of(expression, [], {})
    assert function() == 1
    namespace["rate"] = lambda: 2
    assert function() == 2
    namespace["rate"] = 5
    with pytest.raises(ExpressionNotAdmittedError, match="can't be called"):
        function()
    del namespace["rate"]
    with pytest.raises(UnknownNameError, match="'rate'"):
        function()


def test_methods_of_the_application_s_data_are_methods_of_data():
    namespace = {"TIERS": {1: "gold"}, "settings": SimpleNamespace(TIERS={1: "silver"})}
    assert value_of("TIERS.get(1)", namespace=namespace) == "gold"
    assert value_of("settings.TIERS.get(1)", namespace=namespace) == "silver"


def test_a_class_in_the_namespace_can_be_made_and_its_class_methods_called():
    class Money:
        def __init__(self, amount):
            self.amount = amount

        @classmethod
        def zero(cls):
            return cls(0)

        @staticmethod
        def currency():
            return "EUR"

    namespace = {"Money": Money}
    assert value_of("Money(5).amount", namespace=namespace) == 5
    assert value_of("Money.zero().amount", namespace=namespace) == 0
    assert value_of("Money.currency()", namespace=namespace) == "EUR"


def test_the_base_type_s_method_is_called_not_the_subclass_s():
    class Loud(dict):
        def get(self, *args):
            raise AssertionError

    assert value_of("loud.get('a')", loud=Loud(a=1)) == 1


# --- safe -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["python", "restricted"])
@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("result", True),
        ("elapsed", True),
        ("1", True),
        ("'x'", True),
        ("elapsed * 1000", True),
        ("-(end - start) / 2 + 1", True),
        ("elapsed > 0.5", True),
        ("0 < elapsed < 1", True),
        ("elapsed > 1 and end > 2 or not start", True),
        ("1 if elapsed > 0.5 else 0", True),
        ("result if exception is None else 0", True),
        ("exception is None", True),
        ("(result, elapsed)", True),
        ("{'a': result}", True),
        ("result + 1", False),
        ("elapsed * n", False),
        ("result > 1", False),
        ("not result", False),
        ("result.x", False),
        ("result[0]", False),
        ("f'{result}'", False),
        ("len(result)", False),
        ("result is elapsed.x", False),
        ("{result: 1}", False),
        ("{result}", False),
        ("1 if result else 0", False),
        ("elapsed in result", False),
        ("'a' + 'b'", False),
        ("[x for x in result]", False),
        ("result == None", False),
        ("1 << 5", False),
    ],
)
def test_safe_says_whether_code_of_others_can_run(text, safe, policy):
    assert parse(text, policy=policy).safe is safe


def test_safe_is_never_said_of_what_runs_code_of_the_program():
    class Alarm:
        def __getattribute__(self, name):
            raise AssertionError(name)

        __eq__ = __lt__ = __gt__ = __add__ = __bool__ = __hash__ = __getattribute__

    for text, _ in ADMITTED:
        for policy in ("python", "restricted"):
            expression = parse(text, policy=policy, namespace=NAMESPACE)
            if expression.safe:
                names = {name: Alarm() for name in expression.names}
                clocks = dict.fromkeys(expression.names & {"elapsed", "start", "end"}, 1.0)
                names.update(clocks)
                function_of(expression, list(names), {})(**names)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["python", "restricted"])
@pytest.mark.parametrize(
    "text",
    [
        None,
        1,
        1.5,
        b"result",
        ["result"],
        {"a": 1},
        "",
        "   \n\t ",
        "a b",
        "a =",
        "a = 1",
        "import os",
        "a; b",
        "a\nb",
        "(",
        ")",
        "'",
        "f'{'",
        "f'{a!x}'",
        "if a: b",
        "for x in y: z",
        "x\0y",
        "\0",
        "'\ud800'",
        "\udfff",
        "dict(a=1, a=2)",
        "f(**k, *a)",
        *(["{**x for x in y}"] if sys.version_info < (3, 15) else []),
        "*a",
        "9" * 900 + "x",
        "(" * 300 + "1" + ")" * 300,
        "-" * 500 + "1",
        "not " * 200 + "1",
        "a" + ".a" * 300,
        "[" * 150 + "]" * 150,
        "1" + "+1" * 300,
        "\ufeff a",
        "$.a",
        "a ? b : c",
        "None.x = 1",
        "print 'x'",
        "\\",
        "a \\",
        "#",
        "async x",
    ],
)
def test_what_does_not_parse_gives_a_syntax_error_that_says_what_to_do(text, policy):
    with pytest.raises(ExpressionSyntaxError) as caught:
        parse(text, policy=policy)
    assert caught.value.code == "expression-syntax"
    assert len(caught.value.message) < 400
    assert "; write " in caught.value.message


@pytest.mark.skipif(sys.version_info < (3, 15), reason="3.15 has this syntax first")
@pytest.mark.parametrize(
    ("text", "what", "value"),
    [
        ("{**each for each in maps}", "'\\*\\*'", {"a": 1, "b": 2}),
        ("[*each for each in maps]", "'\\*'", ["a", "b"]),
        ("{*each for each in maps}", "'\\*'", {"a", "b"}),
        ("sum(*each for each in maps)", "'\\*'", None),
    ],
)
def test_a_comprehension_that_unpacks_is_for_the_policy_python_only(text, what, value):
    with pytest.raises(
        ExpressionNotAdmittedError, match=f"unpacking with {what} in .* is not admitted"
    ):
        parse(text, policy="restricted")
    if value is not None:
        assert value_of(text, "python", maps=[{"a": 1}, {"b": 2}]) == value


@pytest.mark.parametrize(
    "text",
    [
        "lambda x, x: 0",
        "lambda __debug__: 0",
        "f(__debug__=1)",
        "[x for x in y",
        "9" * 5_000,
        "-" * 100_000 + "1",
        "lambda:" * 5_000 + "1",
        "a" + ".a" * 50_000,
        "((" * 100_000,
    ],
)
def test_late_and_huge_mistakes_are_syntax_errors_too(text):
    with pytest.raises(ExpressionSyntaxError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a b", "column 3"),
        ("   a b", "column 6"),
        ("(a,\n b c)", "line 2, column 2"),
        ("\n\n  a b", "line 3, column 5"),
    ],
)
def test_a_syntax_error_says_where(text, where):
    with pytest.raises(ExpressionSyntaxError, match=where.replace("2, column 2", "2, column")):
        parse(text)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("open(x)", r"\(column 1\)"),
        ("x + open(x)", r"\(column 5\)"),
        ("  x + open(x)", r"\(column 7\)"),
        ("'äöü' + open(x)", r"\(column 9\)"),
        ("(x,\n  _y)", r"\(line 2, column 3\)"),
        ("\n  x._y", r"\(line 2, column 5\)"),
        ("x.y._z", r"\(column 5\)"),
        ("x.delete()", r"\(column 3\)"),
        ("[0 for _x in y]", r"\(column 8\)"),
        ("f(**k)", r"\(column 3\)"),
    ],
)
def test_a_rejection_says_where_and_what_to_do(text, where):
    with pytest.raises(ExpressionNotAdmittedError, match=where) as caught:
        parse(text, policy="restricted")
    assert "only the application can widen this" in caught.value.message
    assert "manager.global_namespace" in caught.value.message
    assert caught.value.code == "expression-not-admitted"


def test_a_refusal_at_run_time_says_where_too():
    with pytest.raises(ExpressionNotAdmittedError, match=r"'get' of a Cart .*\(column 10\)"):
        value_of("n + self.get(1)")
    with pytest.raises(ExpressionNotAdmittedError, match=r"'sep' of a module .*\(column 4\)"):
        value_of("os.sep", os=__import__("os"))


@pytest.mark.parametrize("policy", ["python", "restricted"])
@pytest.mark.parametrize(
    "text",
    [
        "(x := 1)",
        "[y := 1]",
        "[(y := x) for x in z]",
        "f(x := 1)",
        "await x",
        "[await x for x in y]",
        "(yield)",
        "(yield x)",
        "(yield from x)",
        "[x async for x in y]",
        "(x async for x in y)",
        "lambda: (yield)",
        "f'{(x := 1)}'",
    ],
)
def test_no_policy_admits_what_would_change_the_function_around_it(text, policy):
    with pytest.raises(ExpressionNotAdmittedError, match=r"\(column \d+\)"):
        parse(text, policy=policy)


def test_there_is_no_third_policy():
    for policy in ("Restricted", "", None, ["restricted"]):
        with pytest.raises(ExpressionError, match="use 'python' or 'restricted'"):
            parse("1", policy=policy)


def test_a_near_miss_is_named():
    with pytest.raises(ExpressionNotAdmittedError, match="did you mean 'sorted'"):
        parse("sortd(x)", policy="restricted")
    with pytest.raises(ExpressionNotAdmittedError, match="did you mean 'startswith'"):
        parse("x.startwith('a')", policy="restricted")
    with pytest.raises(UnknownNameError, match="did you mean 'floor'"):
        parse("math.flor(x)", policy="restricted", namespace=NAMESPACE)
    with pytest.raises(UnknownNameError, match="did you mean 'utcnow'"):
        parse("datetime.datetime.utcnaw()", policy="restricted", namespace=NAMESPACE)


# --- trees ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["python", "restricted"])
@pytest.mark.parametrize("text", [text for text, _ in ADMITTED])
def test_a_tree_can_be_written_into_another_function(text, policy):
    expression = parse(text, policy=policy, namespace=NAMESPACE)
    module = ast.parse("def handler(**k):\n    return lambda: k")
    function = module.body[0]
    function.body[0].value.body = expression.tree
    ast.fix_missing_locations(module)
    compile(module, "<handler>", "exec")


def test_what_an_expression_holds_can_not_be_changed():
    expression = parse("len(a)", policy="restricted")
    assert isinstance(expression.constants, MappingProxyType)
    assert isinstance(BUILTINS, MappingProxyType)
    with pytest.raises(AttributeError):
        expression.text = "other"


@given(st.text(max_size=40))
def test_any_text_parses_or_gives_an_expression_error(text):
    for policy in ("python", "restricted"):
        try:
            expression = parse(text, policy=policy)
        except ExpressionError as error:
            assert error.message
        else:
            function_of(expression, sorted(expression.names - {"__debug__"}), {})


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.binary(), st.lists(st.text())))
def test_what_is_no_text_gives_an_expression_error(value):
    with pytest.raises(ExpressionSyntaxError, match="must be text"):
        parse(value)
