"""Exceptions that are raised while a hit is served: what they say, and how they are put back.

An expression may raise an exception that the program keeps. It has to be as it was before, and it
must keep nothing of the call alive.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from diagnose.interrupts import belongs_to_program
from diagnose.reentrancy import quietly

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = [
    "describe",
    "has_context_of_program",
    "is_from_inside",
    "is_theirs",
    "is_want_of_room",
    "restore_traceback",
    "set_context",
    "without_objects",
]


def describe(error: BaseException, value: object) -> str:
    """What to tell people about an error.

    Args:
        error: what was raised.
        value: the expression that was evaluated.
    """
    text = type.__dict__["__name__"].__get__(type(error))
    try:
        text = f"{text}: {error}"
    except BaseException as later:  # its own __str__
        if is_theirs(later):
            raise
    # Half of a surrogate pair can't be written to a file or sent anywhere.
    text = text[:1000].encode(errors="backslashreplace").decode()
    return f"{value!r:.200} raised {text}{_where(error)}"


_get_traceback = BaseException.__dict__["__traceback__"].__get__
_set_traceback = BaseException.__dict__["__traceback__"].__set__
_get_context = BaseException.__dict__["__context__"].__get__
set_context = BaseException.__dict__["__context__"].__set__
_OWN_FOLDER = os.path.dirname(__file__) + os.sep  # noqa: PTH120  (it is compared with texts)
_NO_ROOM = frozenset({RecursionError, MemoryError})


def is_want_of_room(error: BaseException) -> bool:
    """Whether there was no room for a call, on the stack or in memory."""
    return type(error) in _NO_ROOM


def is_from_inside(error: BaseException) -> bool:
    """Whether a function of ours was entered before it was raised."""
    trace = _get_traceback(error)
    return trace is not None and trace.tb_next is not None


def is_theirs(error: BaseException) -> bool:
    """Whether it belongs to the program, as far as can be told."""
    try:
        return belongs_to_program(error)
    except BaseException:  # noqa: BLE001  (this is the last resort)
        return False


_HEAP_TYPE = 1 << 9
_get_args = BaseException.__dict__["args"].__get__


def without_objects(error: BaseException, text: str) -> BaseException:
    """An error to be told later, which keeps nothing of the call alive.

    Those that C code raises may have objects of the program with them (``AttributeError.obj``, the
    key of a ``KeyError``), and a cause or notes; errors of other classes are told as they are.
    """
    kind = type(error)
    if kind.__flags__ & _HEAP_TYPE:
        return error
    args = _get_args(error)
    if not all(type(each) in {str, int, float, bool, type(None)} for each in args):
        args = (text,)
    try:
        return kind(*args)
    except Exception:  # noqa: BLE001  (some want other arguments)
        return RuntimeError(text)


def _entries(error: BaseException) -> list[TracebackType]:
    """The entries of a traceback that are of calls within this hit, the outermost first."""
    entries: list[TracebackType] = []
    entry = _get_traceback(error)
    while entry is not None and (not entries or entry.tb_frame.f_back is entries[-1].tb_frame):
        entries.append(entry)
        entry = entry.tb_next
    return entries


def _where(error: BaseException) -> str:
    """Where an error came up, if that is in code that an expression called."""
    entries = _entries(error)
    if not entries or entries[-1].tb_frame.f_code.co_filename.startswith("<probe "):
        return ""
    code = entries[-1].tb_frame.f_code
    if code.co_filename.startswith(_OWN_FOLDER):
        return ""
    file = code.co_filename.rpartition(os.sep)[2]
    return f" (in {code.co_qualname}, {file}:{entries[-1].tb_lineno})"


def _is_of_hit(frame: FrameType | None) -> bool:
    """Whether it is below what serves a hit; also when it has come to its end."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<probe ") or code is quietly.__code__:
            return True
        frame = frame.f_back
    return False


def has_context_of_program(error: BaseException) -> bool:
    """Whether its context is what the program was handling as the hit was served."""
    context, trace = _get_context(error), _get_traceback(error)
    caught = None if context is None else _get_traceback(context)
    # Not by sys._getframe: an audit hook may forbid that.
    frame = None if trace is None or caught is None else trace.tb_frame.f_back
    while frame is not None and caught is not None:
        if frame is caught.tb_frame:
            return True
        frame = frame.f_back
    return False


def restore_traceback(error: BaseException) -> bool:
    """Take the entries of hits out of an error's traceback; whether any are left.

    So nothing of the call is kept alive, and an exception of the program's that an expression
    raised is as it was. Other threads may raise it at the same time: theirs stay. (3.11 does not
    say who called a generator that is over; entries of those stay too.)
    """
    entries: list[TracebackType | None] = []
    before: TracebackType | None = None
    entry = _get_traceback(error)
    while entry is not None:
        if not _is_of_hit(entry.tb_frame):
            entries.append(entry)
        elif (
            # What got past a handler's own `try` came to the probed function.
            before is not None
            and entries[-1:] == [before]
            and entry.tb_frame.f_back is before.tb_frame
        ):
            entries.pop()
        before, entry = entry, entry.tb_next
    for entry, following in itertools.pairwise([*entries, None]):
        if entry is not None and entry.tb_next is not following:
            entry.tb_next = following
    _set_traceback(error, entries[0] if entries else None)
    return bool(entries)
