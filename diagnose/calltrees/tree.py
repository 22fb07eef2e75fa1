"""The tree: data, and text for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diagnose.hotspots import duration

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

__all__ = ["CallTree", "Node"]


class Node:
    """All calls of one function that came from the same place in the tree.

    Attributes:
        function: its qualified name, with the module.
        file, line: where it is defined.
        count: how often it was called; a generator counts once, however often it is resumed.
        total: seconds spent in it and in what it called.
        own: seconds spent in it alone, and in what the tree leaves out.
        longest: seconds of the longest run.
        children: by the ``id`` of their code, in the order of the first call.
    """

    __slots__ = ("children", "code", "count", "longest", "module", "own", "total")

    def __init__(self, code: CodeType, module: str) -> None:
        self.code = code
        self.module = module
        self.count = 0
        self.total = self.own = self.longest = 0.0
        self.children: dict[int, Node] = {}

    @property
    def function(self) -> str:
        """See above."""
        return f"{self.module}.{self.code.co_qualname}"

    @property
    def file(self) -> str:
        """See above."""
        return self.code.co_filename

    @property
    def line(self) -> int:
        """See above."""
        return self.code.co_firstlineno

    def __repr__(self) -> str:
        return f"<{self.function}: {duration(self.total)}, {self.count} calls>"


@dataclass(frozen=True, slots=True, eq=False)
class CallTree:
    """What one call of a function called; value of the name ``tree``.

    As text it is drawn with lines, longest branches first::

        shop.cart.Cart.checkout  12.3 ms (own 1.20 ms)
        ├─ shop.tax.Table.rate  8.1 ms (own 8.1 ms), 40 calls
        └─ shop.cart.Cart.total  3.0 ms (own 3.0 ms)

    Attributes:
        root: the call itself.
        min_seconds: branches that took less in all are left out of text and data.
        left_out: calls that were deeper than wanted, or too many; they count as their
            callers' own time.
    """

    root: Node
    min_seconds: float = 0.0
    left_out: int = 0

    def data(self) -> dict[str, Any]:
        """The tree as nested dicts of plain values, times in seconds."""
        return self._data(self.root)

    def _data(self, node: Node) -> dict[str, Any]:
        return {
            "function": node.function,
            "file": node.file,
            "line": node.line,
            "count": node.count,
            "total": node.total,
            "own": node.own,
            "longest": node.longest,
            "children": [self._data(child) for child in self._shown(node)[0]],
        }

    def _shown(self, node: Node) -> tuple[list[Node], list[Node]]:
        children = sorted(node.children.values(), key=lambda child: -child.total)
        shown = [child for child in children if child.total >= self.min_seconds]
        return shown, children[len(shown) :]

    def __str__(self) -> str:
        lines = list(self._lines(self.root, "", ""))
        if self.left_out:
            lines.append(f"({self.left_out:,} calls deeper than wanted or too many are left out)")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<CallTree of {self.root!r}>"

    def _lines(self, node: Node, head: str, rest: str) -> Iterator[str]:
        calls = "" if node.count == 1 else f", {node.count:,} calls"
        yield f"{head}{node.function}  {duration(node.total)} (own {duration(node.own)}){calls}"
        shown, hidden = self._shown(node)
        for number, child in enumerate(shown):
            is_last = number == len(shown) - 1 and not hidden
            branch, below = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
            yield from self._lines(child, rest + branch, rest + below)
        if hidden:
            count = sum(child.count for child in hidden)
            total = duration(sum(child.total for child in hidden))
            yield f"{rest}└─ ({count:,} calls below {duration(self.min_seconds)}: {total})"
