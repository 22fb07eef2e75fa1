"""A service to put probes on: it indexes the source files of the standard library.

Nothing in here knows of diagnose, and nothing was written for it: these are the functions
that the demo's specs name as their targets.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import random
import sysconfig
import threading
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Indexer", "SourceFile", "docstring", "functions_of", "measure"]

_LARGEST_BYTES = 60_000
_SMALL_BYTES = 4_000
_LARGE_BYTES = 12_000
_LEFT_OUT = {"test", "tests", "site-packages", "dist-packages"}

_EXPECTED = (
    # Some files that end in .py are templates, or old.
    SyntaxError,
    UnicodeDecodeError,
    tokenize.TokenError,
    # CPython 3.11's parser can take the work of two threads for a mistake: gh-106905.
    SystemError,
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


class SourceFile:
    """One Python file.

    Attributes:
        path: where it is.
        name: its path within the library.
        size: "small", "medium" or "large".
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.size = self.size_class(path.stat().st_size)

    @classmethod
    def find_all(cls, root: Path) -> list[Self]:
        """The files below ``root``, without tests and without the few very large ones."""
        names = (path.relative_to(root) for path in sorted(root.rglob("*.py")))
        return [
            cls(root / name, str(name))
            for name in names
            if not _LEFT_OUT & set(name.parts) and (root / name).stat().st_size <= _LARGEST_BYTES
        ]

    @staticmethod
    def size_class(size_bytes: int) -> str:
        """What a file of this size is called; a third of the library each."""
        if size_bytes <= _SMALL_BYTES:
            return "small"
        return "medium" if size_bytes <= _LARGE_BYTES else "large"

    def read(self) -> str:
        """The text, in the encoding that it declares."""
        with tokenize.open(self.path) as file:
            return file.read()

    def parse(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.read(), str(self.path))

    def tokenize(self) -> int:
        """How many tokens it has."""
        with self.path.open("rb") as file:
            return sum(1 for _ in tokenize.tokenize(file.readline))


def functions_of(tree: ast.Module) -> Iterator[Function]:
    """The functions and methods of a file, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def docstring(function: Function) -> str | None:
    """A function's docstring; None if it has none."""
    return ast.get_docstring(function)


def measure(source: SourceFile, tree: ast.Module) -> float:
    """How many lines the file's functions have on average."""
    # `longest` and `most_lines` never leave this function: only an `end` probe sees them.
    longest, most_lines, lines, count = "", 0, 0, 0
    for function in functions_of(tree):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > most_lines:
            longest, most_lines = function.name, length
        lines += length
        count += 1
    return lines / count if count else 0.0


class Indexer:
    """Indexes files, over and over, at a moderate pace, in threads of its own.

    Args:
        files: what to index.
        files_per_second: the pace.
        lanes: how many files are worked on at a time.
    """

    def __init__(
        self, files: list[SourceFile], *, files_per_second: float = 20.0, lanes: int = 3
    ) -> None:
        self.files = files
        self.documented = 0
        self.average_lines: dict[str, float] = {}
        self._pause = lanes / files_per_second
        self._lanes = lanes
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)

    @classmethod
    def of_standard_library(cls) -> Self:
        """An indexer of the files of the Python that runs this."""
        return cls(SourceFile.find_all(Path(sysconfig.get_path("stdlib"))))

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the files that are under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    async def index(self, file: SourceFile) -> int:
        """Do all that is to be done for one file; returns how many functions it has."""
        # The work on text is done in threads, two steps of it at the same time.
        tree, _ = await asyncio.gather(
            asyncio.to_thread(file.parse), asyncio.to_thread(file.tokenize)
        )
        self.average_lines[file.name] = await asyncio.to_thread(measure, file, tree)
        functions = list(functions_of(tree))
        self.documented += sum(docstring(function) is not None for function in functions)
        return len(functions)

    def _run(self) -> None:
        asyncio.run(self._run_lanes())

    async def _run_lanes(self) -> None:
        await asyncio.gather(*(self._run_lane() for _ in range(self._lanes)))

    async def _run_lane(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(*_EXPECTED):
                await self.index(random.choice(self.files))
            await asyncio.sleep(self._pause)
