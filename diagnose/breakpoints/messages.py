"""Messages about a breakpoint's calls between a forked child and its parent, in bytes."""

from __future__ import annotations

import marshal
import os
import struct
from typing import Any

from diagnose.breakpoints.calls import Call, ChildThread, shown

__all__ = ["call_of", "framed", "take", "told_of"]

_LENGTH = struct.Struct("!I")
_TEXT_AT_MOST, _ITEMS_AT_MOST, _BYTES_AT_MOST, _DEPTH = 10_000, 100, 100_000, 3


class _Shown(str):
    """A value of a child that is no plain one, as the text that it is shown as."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class _ShownError(Exception):
    """An exception of a child, as the text that it is shown as."""

    def __repr__(self) -> str:
        return str(self)


def _is_plain(value: Any, depth: int = _DEPTH) -> bool:
    kind = type(value)
    if value is None or kind in {bool, int, float, complex}:
        return True
    if isinstance(value, (str, bytes)):
        return kind in {str, bytes} and len(value) <= _TEXT_AT_MOST
    if kind not in {tuple, list, set, frozenset, dict}:
        return False
    items: Any = value
    if not depth or len(items) > _ITEMS_AT_MOST:
        return False
    inner = [*items, *items.values()] if kind is dict else list(items)
    return all(_is_plain(each, depth - 1) for each in inner)


def _packed(value: Any) -> tuple[bool, Any]:
    """A value for a line: plain ones as they are, for others (code of theirs) a text."""
    try:
        if _is_plain(value) and len(marshal.dumps(value)) <= _BYTES_AT_MOST:
            return True, value
    except (RuntimeError, ValueError):
        pass  # another thread changes it meanwhile
    return False, shown(value)


def _unpacked(packed: tuple[bool, Any]) -> Any:
    is_itself, value = packed
    return value if is_itself else _Shown(value)


def framed(message: Any) -> bytes:
    """A message of plain values as the bytes that go over a socket."""
    data = marshal.dumps(message)
    return _LENGTH.pack(len(data)) + data


def take(buffer: bytearray) -> Any:
    """The message that a buffer begins with, taken out of it; None: it is not all there yet."""
    if len(buffer) < _LENGTH.size:
        return None
    end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
    if len(buffer) < end:
        return None
    message = marshal.loads(buffer[_LENGTH.size : end])  # noqa: S302 - of a process of our own
    del buffer[:end]
    return message


def told_of(call: Call) -> dict[str, Any]:
    """A call of this process as plain values, for :func:`call_of`."""
    return {
        "pid": os.getpid(),
        "thread_name": call.thread.name,
        "name": call.name,
        "number": call.number,
        "is_hit": call.is_hit,
        "args": [_packed(each) for each in call.args],
        "kwargs": {name: _packed(each) for name, each in call.kwargs.items()},
        "result": _packed(call.result),
        "exception": None if call.exception is None else shown(call.exception),
    }


def call_of(told: dict[str, Any]) -> Call:
    """The call of another process that :func:`told_of` told."""
    exception = told["exception"]
    return Call(
        name=told["name"],
        number=told["number"],
        args=tuple(_unpacked(each) for each in told["args"]),
        kwargs={name: _unpacked(each) for name, each in told["kwargs"].items()},
        thread=ChildThread(told["pid"], told["thread_name"]),
        is_hit=told["is_hit"],
        result=_unpacked(told["result"]),
        exception=None if exception is None else _ShownError(exception),
    )
