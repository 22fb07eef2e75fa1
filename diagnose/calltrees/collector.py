"""Builds a call tree out of functions that are entered and left in one thread."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diagnose.calltrees.tree import CallTree, Node
from diagnose.reentrancy import BUSY

if TYPE_CHECKING:
    from types import CodeType

__all__ = ["Collector", "Options", "is_ours"]

# Not by pathlib, which takes 4 ms to import.
_LIBRARY = __file__.rpartition(f"{os.sep}calltrees{os.sep}")[0] + os.sep
_clock, _ident = time.perf_counter, threading.get_ident


def is_ours(filename: str) -> bool:
    """Whether a function's file says that it is an instrument at work."""
    return filename.startswith(("<probe ", _LIBRARY))


@dataclass(frozen=True, slots=True)
class Options:
    """What a call tree is to hold.

    Attributes:
        depth: how many levels below the call itself.
        min_seconds: branches that took less in all are not shown.
        modules: names of modules and packages whose functions it shows; empty: all.
        most_nodes: of the tree; further functions count as their callers' own time.
    """

    depth: int = 10
    min_seconds: float = 0.0
    modules: tuple[str, ...] = ()
    most_nodes: int = 2000

    def wants(self, code: CodeType, module: object) -> bool:
        """Whether calls of a function are shown."""
        if is_ours(code.co_filename):
            return False
        if not self.modules:
            return True
        name = module if isinstance(module, str) else ""
        return any(name == each or name.startswith(f"{each}.") for each in self.modules)


class Collector:
    """Collects what one call calls; its thread tells it of each function.

    While the call itself is suspended (a generator, a coroutine), what its thread does
    belongs to another call and does not count; nor does what serves a hit of another probe.

    Attributes:
        is_last: for who made it to keep: whether there are to be more.
        error: what went wrong while it collected, if anything did.
        thread: the ident of the thread that makes the call.
    """

    def __init__(self, options: Options, frame: Any) -> None:
        self.is_last = False
        self.error: BaseException | None = None
        self._options = options
        # By the id of the code, which is kept: its hash is that of all that is in it.
        self._wanted: dict[int, tuple[CodeType, bool]] = {}
        self._root_frame = id(frame)
        self._root_code = frame.f_code
        root = Node(frame.f_code, str(frame.f_globals.get("__name__")))
        root.count = 1
        self._root = root
        self._nodes = 1
        self._too_deep = self._left_out = 0
        self._active = True
        self.thread = _ident()
        # For each function that is running: its node, since when, what it called took.
        self._stack: list[list[Any]] = [[root, _clock(), 0.0]]

    def wants(self, code: CodeType, module: object) -> bool:
        """Whether to tell of a function."""
        known = self._wanted.get(id(code))
        if known is None:
            wanted = code is self._root_code or self._options.wants(code, module)
            known = self._wanted[id(code)] = code, wanted
        return known[1]

    def enter(self, code: CodeType, frame: Any, *, is_new: bool) -> None:
        """A function begins (``is_new``) or goes on."""
        if self.thread in BUSY:
            return
        if not self._active:
            if code is self._root_code and id(frame) == self._root_frame:
                self._active = True
                self._stack = [[self._root, _clock(), 0.0]]
            return
        if self._too_deep or len(self._stack) > self._options.depth:
            self._too_deep += 1
            self._left_out += is_new
            return
        parent = self._stack[-1][0]
        node = parent.children.get(id(code))
        if node is None:
            if self._nodes >= self._options.most_nodes:
                self._too_deep += 1
                self._left_out += is_new
                return
            self._nodes += 1
            node = parent.children[id(code)] = Node(code, str(frame.f_globals.get("__name__")))
        node.count += is_new
        self._stack.append([node, _clock(), 0.0])

    def leave(self, code: CodeType, frame: Any) -> None:
        """A function returns, raises or is suspended."""
        if self.thread in BUSY or not self._active:
            return
        if code is self._root_code and id(frame) == self._root_frame:
            self._suspend()
            return
        if self._too_deep:
            self._too_deep -= 1
            return
        if len(self._stack) > 1 and self._stack[-1][0].code is code:
            self._pop(1)

    def _suspend(self) -> None:
        self._pop(len(self._stack))
        self._too_deep = 0
        self._active = False

    def _pop(self, count: int) -> None:
        now = _clock()
        for _ in range(count):
            node, began, inside = self._stack.pop()
            seconds = now - began
            node.total += seconds
            node.own += seconds - inside
            node.longest = max(node.longest, seconds)
            if self._stack:
                self._stack[-1][2] += seconds

    def fail(self, error: BaseException) -> None:
        """Keep what went wrong, of several the first; it is up to others to say so."""
        if self.error is None:
            self.error = error

    @property
    def made(self) -> CallTree:
        """What was collected."""
        return CallTree(self._root, self._options.min_seconds, self._left_out)

    def end(self) -> None:
        """End collecting, in the thread of the call."""
        if self._active:
            self._suspend()

    def abandon(self) -> None:
        """End collecting, from any thread: nobody is going to ask for the tree."""
