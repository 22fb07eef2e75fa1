"""Weaves every hook there is into every function of many files, and verifies the result.

    python tools/torture.py [--every N] [--seconds S] [PATH...]

Nothing that it compiles is run. PATH is a file or a folder; without any, it is the standard
library, its tests, and what is installed beside it. For each function it is verified

- that each instruction is reached with one depth of the stack, within ``co_stacksize``, and
  that those of the function stand as deep as before, plus what is kept;
- that the stack is never lower than a handler of the exception table takes it to be;
- that what the interpreter takes to be neighbours still are;
- that the function's own instructions are all there, in their order.
"""

from __future__ import annotations

import argparse
import inspect
import opcode
import sys
import sysconfig
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from diagnose.bytecode import assembly, flow, weaving

if TYPE_CHECKING:
    from collections.abc import Iterator

OPS = opcode.opmap
CHECKED_NEIGHBOURS = {
    "KW_NAMES": ("PRECALL", "CALL"),
    "PRECALL": ("CALL",),
    "YIELD_VALUE": ("RESUME",),
    "SEND": ("YIELD_VALUE",),
    "RETURN_GENERATOR": ("POP_TOP",),
}
LANDINGS = {}
if sys.version_info >= (3, 12):
    LANDINGS = {"FOR_ITER": "END_FOR", "SEND": "END_SEND"}
if sys.version_info[:2] == (3, 13):
    CHECKED_NEIGHBOURS["END_FOR"] = ("POP_TOP",)
if sys.version_info >= (3, 14):
    CHECKED_NEIGHBOURS["END_FOR"] = ("POP_ITER",)
NAMES = {number: name for name, number in OPS.items()}


def nothing(*_: object) -> None:
    """Stand for a handler."""


def hooks(code: CodeType) -> dict[str, object]:
    """All kinds of hooks at once, for one function."""
    parameters = weaving.Parameters.of(code).names
    variables = weaving.variables(code)
    exits = tuple(sorted(weaving.EXIT_NAMES - set(parameters)))
    entries = tuple(sorted(weaving.ENTRY_NAMES - set(parameters)))
    every = tuple(dict.fromkeys((*parameters, *entries, *exits)))
    plain = tuple(name for name in parameters if name not in {"args", "kwargs"})
    return {
        "before": [
            weaving.Hook(nothing, tuple(dict.fromkeys((*plain, *entries)))),
            weaving.Hook(nothing, ("args",), nothing, ("args", "kwargs"), quick=(nothing, 1)),
            *acting_on_call(code),
        ],
        "after": [
            weaving.Hook(nothing, every, nothing, ("args", "kwargs")),
            weaving.Hook(nothing, ("elapsed",), quick=(nothing, "elapsed")),
            weaving.Hook(nothing, ("result", weaving.NOW), sift=(nothing, plain)),
            *acting_on_return(code),
        ],
        "ends": [
            weaving.Hook(nothing, variables),
            weaving.Hook(nothing, (*variables, weaving.NOW), nothing, ("args", "kwargs")),
        ],
        "lines": [
            (line, weaving.Hook(nothing, variables))
            for line in flow.line_starts(assembly.read(code))
        ],
        "busy": (),
        "report": nothing,
    }


def acting_on_call(code: CodeType) -> list[weaving.Hook]:
    """Hooks that act before the body: two, and one that stops."""
    parameters = weaving.Parameters.of(code).names
    acting = weaving.Hook(nothing, (*parameters[:1], "start"), sets=parameters)
    return [acting, weaving.Hook(nothing, may_raise=True), weaving.Hook(nothing, sets=parameters)]


def acting_on_return(code: CodeType) -> list[weaving.Hook]:
    """Hooks that act after the body: two, and one that stops."""
    parameters = weaving.Parameters.of(code).names
    names = (*parameters[:1], *sorted({"result", "elapsed", "end"} - set(parameters[:1])))
    acting = weaving.Hook(nothing, names, replaces=True)
    return [acting, weaving.Hook(nothing, may_raise=True), weaving.Hook(nothing, replaces=True)]


def fewer(code: CodeType) -> list[dict[str, object]]:
    """Other combinations, which are written in other ways."""
    parameters = weaving.Parameters.of(code).names
    plain = tuple(name for name in parameters if name not in {"args", "kwargs"})
    everything = hooks(code)
    return [
        everything,
        {"after": [weaving.Hook(nothing, ("elapsed", "result"), sift=(nothing, plain))]},
        {"ends": everything["ends"]},
        {"lines": everything["lines"]},
        {"after": [weaving.Hook(nothing, ("hotspots",))], "report": nothing},
        {"before": acting_on_call(code)},
        {"before": acting_on_call(code)[:1], "after": acting_on_return(code)[:1]},
        {
            "before": acting_on_call(code),
            "after": acting_on_return(code),
            "ends": everything["ends"],
        },
    ]


def verify(code: CodeType, given: dict[str, object]) -> None:
    """Weave, and raise ``AssertionError`` if something is wrong with what comes out."""
    weaver = weaving._Weaver(code, given.get("busy", ()), given.get("report"), hidden=False)
    own = [*weaver.prologue, *weaver.body]
    before = flow.depths(weaver.listing)
    depth_of = [before.get(id(one)) for one in own]
    opcodes = [one.opcode for one in own]
    woven = weaver.weave(
        given.get("before", ()),
        given.get("after", ()),
        given.get("ends", ()),
        given.get("lines", ()),
    )
    listing = assembly.read(woven)
    at = {one.start: number for number, one in enumerate(listing)}
    depth = flow.depths(listing)
    kept = len(weaver.kept)
    # The compiler leaves these one handler, which is deeper than the stack is behind the loop.
    is_loose = sys.version_info >= (3, 15) and code.co_name == "<genexpr>"
    last = -1
    for number, (one, was, operation) in enumerate(zip(own, depth_of, opcodes, strict=True)):
        place = at[one.start]
        assert place > last, "order"
        last = place
        now = listing[place]
        if was is None:
            continue
        more = kept if number >= len(weaver.prologue) else 0
        extra = 1 if NAMES[operation] == "RETURN_CONST" else 0
        if NAMES[operation] in {"RETURN_VALUE", "RETURN_CONST"} and (
            given.get("after") or given.get("ends")
        ):
            more = 0
        else:
            extra = 0
            assert NAMES[now.opcode].replace("BACKWARD", "FORWARD") == NAMES[operation].replace(
                "BACKWARD", "FORWARD"
            ), "another instruction"
        # What takes errors of a RETURN_VALUE alone is not reached any more.
        assert depth.get(id(now), was + more + extra) == was + more + extra, f"depth at {now}"
    for number, one in enumerate(listing):
        here = depth.get(id(one))
        if here is None:
            continue
        assert 0 <= here <= woven.co_stacksize, f"stack of {here} at {one}"
        if one.handler is not None:
            assert is_loose or one.handler.depth <= here, f"{one}: {here} deep, {one.handler}"
            takes = one.handler.depth + one.handler.keeps_place + 1
            assert takes <= woven.co_stacksize
            assert depth[id(one.handler.target)] == takes, f"handler of {one}"
        name = NAMES[one.opcode]
        if name in CHECKED_NEIGHBOURS:
            after = NAMES[listing[number + 1].opcode]
            is_async = name == "SEND" and after == "ASYNC_GEN_WRAP"
            assert after in CHECKED_NEIGHBOURS[name] or is_async, f"{name} {after}"
        if name in LANDINGS and one.target is not None:
            assert NAMES[one.target.opcode] == LANDINGS[name], f"{one} {one.target}"
        if "POP_JUMP" in name and "NOT_TAKEN" in OPS:
            assert NAMES[listing[number + 1].opcode] == "NOT_TAKEN", f"behind {one}"
        if name == "SEND" and sys.version_info < (3, 12):
            assert one.argument < 256
        if name not in {"RETURN_VALUE", "RETURN_CONST", "RERAISE", "RAISE_VARARGS"}:
            following = here + flow.effect(one, jump=False)
            assert following <= woven.co_stacksize
            if one.handler is not None and "JUMP" not in name and not is_loose:
                assert following >= one.handler.depth, f"{one} leaves {following}, {one.handler}"


def functions(code: CodeType) -> Iterator[CodeType]:
    """All functions in a piece of code."""
    for value in code.co_consts:
        if isinstance(value, CodeType):
            if value.co_flags & inspect.CO_OPTIMIZED:
                yield value
            yield from functions(value)


def files(paths: list[str]) -> Iterator[Path]:
    """All source files."""
    if not paths:
        paths = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")]
    for path in map(Path, paths):
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def main() -> int:
    """Run; how many functions failed, as an exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--every", type=int, default=1, help="take one of so many files")
    parser.add_argument("--first", type=int, default=0, help="begin with this file")
    parser.add_argument("--seconds", type=float, default=1e9)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    until = time.monotonic() + given.seconds
    seen: Counter[str] = Counter()
    slowest = (0.0, "")
    for path in list(files(given.paths))[given.first :: given.every]:
        if time.monotonic() > until:
            break
        try:
            module = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, UnicodeDecodeError, OSError):
            seen["files that do not compile"] += 1
            continue
        seen["files"] += 1
        for code in functions(module):
            seen["functions"] += 1
            began = time.monotonic()
            try:
                for each in fewer(code):
                    verify(code, each)
                    seen["woven"] += 1
            except Exception as error:
                kind = f"{type(error).__name__}: {str(error)[:60]}"
                seen[f"FAILED {kind}"] += 1
                seen["failed"] += 1
                if seen["failed"] <= 15:
                    print(path, code.co_qualname, code.co_firstlineno)
                    print(
                        "   ", *traceback.format_exc().splitlines()[-4:], sep="\n    ", flush=True
                    )
            slowest = max(slowest, (time.monotonic() - began, f"{path} {code.co_qualname}"))
    for name, count in seen.items():
        print(f"{count:8,} {name}")
    print(f"slowest: {slowest[0]:.1f} s {slowest[1]}")
    return bool(seen["failed"])


if __name__ == "__main__":
    sys.exit(main())
