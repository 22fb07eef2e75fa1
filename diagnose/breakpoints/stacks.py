"""Where each thread stands: what to look at when something that a test waits for does not come."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diagnose.breakpoints.register import standing_calls
from diagnose.source_lines import source_line

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType, TracebackType

__all__ = [
    "innermost",
    "note_where",
    "place_of",
    "short",
    "where_all_stand",
    "where_noted",
]

_THREADS_AT_MOST = 50
_LINES_AT_MOST = 30

# Told by the names of modules: files may lie anywhere.
_RUNNERS = {"_pytest", "pluggy"}
_HARNESS = _RUNNERS | {
    "pytest", "pytest_timeout", "xdist", "execnet", "__channelexec__", "diagnose", "diagnose_pytest",
}  # fmt: skip


# What this library is called by, or waits in.
_LIKE_OURS = {"threading", "contextlib"}
_WAITS = _LIKE_OURS | {"queue"}


def note_where(error: BaseException, *, is_passing: bool = False) -> None:
    """Keep with an error where each thread stands now; the first time counts.

    The message stays short: to show the threads too, ask :func:`where_noted`.

    Args:
        error: any exception.
        is_passing: it was raised before, so that its traceback says where this thread was.
    """
    if not where_noted(error):
        trace = error.__traceback__ if is_passing else None
        vars(error)["_diagnose_where"] = where_all_stand(trace)


def where_noted(error: BaseException) -> str:
    """The text that :func:`note_where` kept with an error; empty if it was never asked to."""
    text = vars(error).get("_diagnose_where", "")
    return text if isinstance(text, str) else ""


def where_all_stand(trace: TracebackType | None = None) -> str:
    """Each thread's name and its lines, the innermost last; this thread's come first.

    What runs the tests is left out, and what stands still inside of a breakpoint.

    Args:
        trace: where this thread was, in place of where it is.
    """
    standing, tasks = standing_calls()
    frames = sys._current_frames()
    here = threading.get_ident()
    threads = sorted(threading.enumerate(), key=lambda each: each.ident != here)
    parts = []
    for thread in threads:
        frame = frames.get(thread.ident or 0)
        if frame is None:
            continue
        stack = _stack_of(frame, trace if thread.ident == here else None)
        lines = _lines(stack)
        # Threads of the harness, and this library's timers.
        if not lines and thread.ident != here and any(map(_is_harness, stack)):
            continue
        about = [thread.name]
        if starter := getattr(thread, "starter", None):  # a thread of `workers`
            about.append(f"started by {starter}")
        about += [f"stands at {place}" for call, place in standing if call.thread is thread]
        nowhere = "outside of the test" if thread.ident == here else "about to start"
        parts.append("\n".join([", ".join(about), *(lines or [f"  ({nowhere})"])]))
    left = len(parts) - _THREADS_AT_MOST
    more = [f"… and {left} more threads"] if left > 0 else []
    return "\n\n".join([*parts[:_THREADS_AT_MOST], *more, *tasks])


_Line = tuple["FrameType", int]


def _stack_of(frame: FrameType, trace: TracebackType | None) -> list[_Line]:
    """A thread's frames and their lines, the innermost last."""
    start = frame if trace is None else trace.tb_frame.f_back
    stack = list(traceback.walk_stack(start))[::-1] if start is not None else []
    return stack + list(traceback.walk_tb(trace))


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_harness(line: _Line) -> bool:
    frame, _ = line
    is_ours = frame.f_code.co_filename.startswith(("<probe ", "<diagnose"))
    return is_ours or _module_of(frame) in _HARNESS


def _kept(stack: list[_Line]) -> list[_Line]:
    """The lines that say something: from the test function on, or from what a thread was to do."""
    end = len(stack)
    # What raised in a signal's handler is no place where anybody stands.
    while end and _is_harness(stack[end - 1]):
        end -= 1
    stack = stack[:end]
    runners = [place for place, (frame, _) in enumerate(stack) if _module_of(frame) in _RUNNERS]
    kept = []
    # How a thread gets going, and how a breakpoint waits, is nobody's question.
    is_inside = True
    for line in stack[runners[-1] + 1 :] if runners else stack:
        if line[0].f_globals is globals():
            break  # it is just about to tell of itself
        if _is_harness(line):
            is_inside = True
        elif not (is_inside and _module_of(line[0]) in _LIKE_OURS):
            is_inside = False
            kept.append(line)
    return kept


def innermost(ident: int | None) -> _Line | None:
    """The line of its program that a thread is at; None: at none yet."""
    frame = sys._current_frames().get(ident or 0)
    kept = [] if frame is None else _kept(_stack_of(frame, None))
    # Not that it waits, but what for.
    theirs = [line for line in kept if _module_of(line[0]) not in _WAITS]
    return (theirs or kept)[-1] if kept else None


def short(file: str) -> str:
    """A path, relative where that is shorter."""
    try:
        return file.removeprefix(f"{Path.cwd()}{os.sep}")
    except OSError:  # the test removed its folder
        return file


def place_of(file: str, line: int) -> str:
    """File, line and its text."""
    text = source_line(file, line)
    return f"{short(file)}:{line}" + (f": {text}" if text else "")


def _lines(stack: list[_Line]) -> list[str]:
    """A stack as text."""
    kept = _kept(stack)
    left = len(kept) - _LINES_AT_MOST
    return [
        *([f"  … and {left} more lines outside of these"] if left > 0 else []),
        *_texts(kept[-_LINES_AT_MOST:]),
    ]


def _texts(lines: Iterable[_Line]) -> Iterable[str]:
    for frame, number in lines:
        code: Any = frame.f_code
        yield f"  {short(code.co_filename)}:{number}, in {code.co_qualname}"
        # The globals: so are lines found that come from an archive.
        if source := source_line(code.co_filename, number, frame.f_globals):
            yield f"    {source}"
