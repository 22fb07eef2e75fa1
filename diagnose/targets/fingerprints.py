"""Tells whether a function's code is what it was when somebody looked at it.

A fingerprint is a text such as ``3.11-0f3a9c52d7be-42``: the Python version, a hash, the
first line. The hash is about the compiled code, for that is what a process runs, whatever
has become of the file on its disk since. So it differs between minor versions of Python,
which compile the same source to different code; a fleet with several of them needs one
fingerprint for each. It is the same on every machine, in every process, and while the
function is probed.

In the hash: the instructions, constants, names and flags, those of functions and classes made
inside, and on which line each is, counted from the first. Not in it: the file's path, where in
the file the function stands, its default values, its decorators.
"""

from __future__ import annotations

import inspect
import re
import struct
import sys
from types import CodeType
from typing import TYPE_CHECKING

from diagnose.errors import TargetKindError
from diagnose.originals import own_code

if TYPE_CHECKING:
    from collections.abc import Iterable

    from diagnose.targets.search import Target

__all__ = ["FORM", "fingerprint"]

FORM = re.compile(r"(\d+\.\d+)-([0-9a-f]{12})-(\d+)")
"""What a fingerprint looks like; groups: Python version, hash, first line."""

# Other bits tell how the code was made.
_FLAGS = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)


def fingerprint(target: Target) -> str:
    """Make the fingerprint of a target's function: behind decorators, of the one that was written.

    Costs about half a millisecond for 1,000 bytes of code.

    Args:
        target: as `diagnose.targets.resolve` found it.

    Returns:
        ``<Python version>-<12 hexadecimal digits>-<first line>``.

    Raises:
        TargetKindError: it has no Python code (code ``no-fingerprint``).

    Example:
        >>> from diagnose.targets import fingerprint, resolve
        >>> print(fingerprint(resolve("textwrap.dedent", import_modules=True)))
        3...-...-...
    """
    import hashlib  # noqa: PLC0415 - OpenSSL takes 2 ms; import diagnose is to be quick

    if target.body is None:
        raise TargetKindError(
            f"{target.path!r} has no Python code, so there is no fingerprint of it",
            code="no-fingerprint",
        )
    code = own_code(target.body.__code__)
    digest = hashlib.blake2b(_whole(code, code.co_firstlineno), digest_size=6).hexdigest()
    return f"{sys.version_info[0]}.{sys.version_info[1]}-{digest}-{code.co_firstlineno}"


def _whole(value: object, first_line: int) -> bytes:
    """A constant or code object as bytes; different ones give different bytes."""
    kind = type(value)
    parts: Iterable[object]
    if isinstance(value, CodeType):
        name = "code"
        parts = (
            value.co_code,
            value.co_exceptiontable,
            value.co_consts,
            value.co_names,
            value.co_varnames,
            value.co_cellvars,
            value.co_freevars,
            value.co_argcount,
            value.co_posonlyargcount,
            value.co_kwonlyargcount,
            value.co_flags & _FLAGS,
            value.co_name,
            _lines(value, first_line),
        )
    elif kind is tuple:
        name, parts = "tuple", value  # type: ignore[assignment]
    elif kind is frozenset:
        # In the order of what they look like: their own is another one in each process.
        name = "frozenset"
        items = sorted(_whole(item, first_line) for item in value)  # type: ignore[attr-defined]
        return _framed(name, items)
    elif kind is slice:
        name, parts = "slice", (value.start, value.stop, value.step)  # type: ignore[attr-defined]
    else:
        return _framed(kind.__name__, [_plain(value)])
    return _framed(name, [_whole(part, first_line) for part in parts])


def _framed(name: str, parts: list[bytes]) -> bytes:
    # With their lengths, so that no two lists of parts run together to the same bytes.
    return b"".join([f"{name}{len(parts)}:".encode(), *(b"%d:%s" % (len(p), p) for p in parts)])


def _plain(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, float):
        return struct.pack("<d", value)  # tells 0.0 from -0.0
    if isinstance(value, complex):
        return struct.pack("<dd", value.real, value.imag)
    return repr(value).encode()  # whole numbers, True, None, Ellipsis


def _lines(code: CodeType, first_line: int) -> tuple[object, ...]:
    """Where each line's code begins: offset, line, offset, line ..."""
    found: list[object] = []
    last: object = ()
    for start, _, line in code.co_lines():
        relative = None if line is None else line - first_line
        if relative != last:
            found += [start, relative]
            last = relative
    return tuple(found)
