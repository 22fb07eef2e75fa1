"""Functions that Hypothesis makes up, and all that can be seen of calls of them.

Any signature, bodies with effects, exceptions, clean-up and loops, of all four kinds. They are
driven by a script, once bare and once with probes.
"""

from __future__ import annotations

import contextlib
import gc
import os

from hypothesis import strategies as st
from stage import outcome

# More of them find more: DIAGNOSE_TEST_EXAMPLES=2000.
EXAMPLES = int(os.environ.get("DIAGNOSE_TEST_EXAMPLES", "25"))

NAMES = ["a", "b", "c", "d", "e", "f"]
KINDS = ["plain", "generator", "coroutine", "asynchronous generator"]


@st.composite
def signatures(draw):
    """Text of a signature, and the names in it."""
    counts = [draw(st.integers(0, 2)) for _ in range(3)]
    names = NAMES[: sum(counts)]
    only, plain = names[: counts[0]], names[counts[0] : counts[0] + counts[1]]
    keywords = names[counts[0] + counts[1] :]
    positional = only + plain
    without = draw(st.integers(0, len(positional)))
    pieces = [
        name if number < without else f"{name}={number * 11}"
        for number, name in enumerate(positional)
    ]
    if only:
        pieces.insert(len(only), "/")
    has_star = draw(st.booleans())
    if has_star:
        pieces.append("*args")
        names = [*names, "args"]
    elif keywords:
        pieces.append("*")
    pieces += [f"{name}=7" if draw(st.booleans()) else name for name in keywords]
    if draw(st.booleans()):
        pieces.append("**kwargs")
        names = [*names, "kwargs"]
    return ", ".join(pieces), names


ERRORS = ["KeyError", "ValueError", "StopIteration", "GeneratorExit", "Odd"]


@st.composite
def bodies(draw, kind, depth=0):
    """Lines of a body."""
    lines = []
    suspends = {
        "plain": [],
        "generator": ["yield", "yield", "delegate"],
        "coroutine": ["await", "await"],
        "asynchronous generator": ["yield", "await"],
    }[kind]
    simple = ["note", "note", "raise", "chain", "comprehend", "return", *suspends]
    nested = ["try", "finally", "with", "loop", "if"] if depth < 2 else []
    for _ in range(draw(st.integers(1, 3))):
        what = draw(st.sampled_from(simple + nested + nested))
        number = draw(st.integers(0, 9))
        error = draw(st.sampled_from(ERRORS))

        def inner():
            return ["    " + line for line in draw(bodies(kind, depth + 1))]

        if what == "note":
            lines.append(f"log.append(({number}, sorted(locals())))")
        elif what == "raise":
            lines.append(f"raise {error}({number})")
        elif what == "chain":
            lines += [
                "try:",
                f"    raise {error}({number})",
                "except Exception as caught:",
                f"    raise ValueError({number}) from {draw(st.sampled_from(['caught', 'None']))}",
            ]
        elif what == "comprehend":
            lines.append(f"x = [[y * {number} for y in range(z)] for z in range(3)]")
        elif what == "return":
            bare = kind == "asynchronous generator"
            lines.append("return" if bare else f"return ({number}, len(log))")
        elif what == "yield":
            lines.append(f"x = yield {number}")
            lines.append("log.append(x)")
        elif what == "delegate":
            lines.append(f"x = yield from numbers({number % 3})")
        elif what == "await":
            lines.append(f"x = await pause({number})")
            lines.append("log.append(x)")
        elif what == "try":
            lines += ["try:", *inner(), f"except {error} as caught:", "    log.append(caught.args)"]
            lines += inner()
        elif what == "finally":
            lines += ["try:", *inner(), "finally:", "    log.append('finally')"]
            if draw(st.booleans()):
                lines += inner()
        elif what == "with":
            lines += [f"with manager({number % 2}):", *inner()]
        elif what == "loop":
            lines += [f"for x in range({number % 4}):", *inner()]
            if draw(st.booleans()):
                lines += ["else:", *inner()]
        else:
            lines += [f"if len(log) % 2 == {number % 2}:", *inner()]
    return lines


PRELUDE = """
import contextlib, types

log = []

class Odd(BaseException):
    pass

@contextlib.contextmanager
def manager(swallows):
    log.append("enter")
    try:
        yield
    except ValueError:
        if not swallows:
            raise
    finally:
        log.append("exit")

@types.coroutine
def pause(value):
    return (yield value)

def numbers(count):
    try:
        for number in range(count):
            log.append((yield number))
    finally:
        log.append("numbers")
    return count
"""


@st.composite
def functions(draw, kind):
    """Source text of a function."""
    signature, names = draw(signatures())
    head = "def" if kind in ("plain", "generator") else "async def"
    lines = [f"log.append([{', '.join(names)}])", *draw(bodies(kind))]
    if kind in ("generator", "asynchronous generator"):
        lines.append("yield 'last'")
    is_method = draw(st.booleans())
    text = "\n".join("    " + line for line in lines)
    if not is_method:
        return f"{PRELUDE}\n{head} subject({signature}):\n{text}\n", "subject"
    text = text.replace("\n", "\n    ")
    signature = f"self, {signature}" if signature else "self"
    source = f"{PRELUDE}\nclass C:\n    {head} subject({signature}):\n    {text}\n"
    return f"{source}\nsubject = C().subject\n", "C.subject"


values = st.integers(0, 3)
calls = st.tuples(
    st.lists(values, max_size=4),
    st.dictionaries(st.sampled_from([*NAMES, "g"]), values, max_size=3),
)
steps = st.lists(
    st.one_of(
        st.just(("next",)),
        st.just(("next",)),
        st.tuples(st.just("send"), values),
        st.tuples(st.just("throw"), st.sampled_from(ERRORS)),
        st.just(("close",)),
    ),
    max_size=7,
)


def run(module, kind, call, script):
    """All that can be seen of a call and of what it made, step by step."""
    module.log.clear()
    args, kwargs = call
    made = outcome(module.subject, *args, **kwargs)
    seen = []
    if made[0] == "raised" or kind == "plain":
        return [made, list(module.log)]
    thing = made[1]
    for name, *rest in script:
        argument = rest[0] if rest else None
        if name == "throw":
            argument = {"Odd": module.Odd}.get(argument) or getattr(
                __import__("builtins"), argument
            )
            argument = argument(5)
        if kind == "asynchronous generator":
            seen.append(outcome(step_through, thing, name, argument))
        else:
            seen.append(outcome(step, thing, name, argument))
    del thing
    made = None
    gc.collect(0)
    return [seen, list(module.log)]


def step(thing, name, argument):
    if name == "close":
        return thing.close()
    if name == "throw":
        return thing.throw(argument)
    return thing.send(argument)


def step_through(thing, name, argument):
    """One step of an asynchronous generator: all that it awaits on the way, and its outcome."""
    if name == "close":
        awaitable = thing.aclose()
    elif name == "throw":
        awaitable = thing.athrow(argument)
    else:
        awaitable = thing.asend(argument)
    awaited = []
    with contextlib.closing(awaitable) if hasattr(awaitable, "close") else contextlib.nullcontext():
        for _ in range(50):
            result = outcome(awaitable.send, None)
            awaited.append(result)
            if result[0] == "raised":
                break
    return awaited
