"""What a random program is made of: statements in a tree, so that some can be left out again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(slots=True)
class Node:
    """A statement: each clause is a line and the block below it, or None."""

    clauses: list[tuple[str, list[Node] | None]]

    def lines(self, indent=""):
        """Source text."""
        for head, block in self.clauses:
            yield indent + head
            if block is not None:
                inner = [line for node in block for line in node.lines(indent + "    ")]
                yield from inner or [indent + "    pass"]


def text(nodes):
    """Source text of statements."""
    return "".join(f"{line}\n" for node in nodes for line in node.lines())


def one(line):
    """A simple statement."""
    return Node([(line, None)])


@dataclass(frozen=True, slots=True)
class Function:
    """What can be called, and probed: its path in the module, and how to call it."""

    path: str
    kind: str
    required: int
    optional: int
    keywords: tuple[str, ...] = ()
    more_args: bool = False
    more_kwargs: bool = False
    pure: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a statement stands: what may be there."""

    kind: str
    names: list[str]
    depth: int = 0
    in_loop: bool = False
    may_return: bool = True
    handles: bool = False
    tries: bool = False
    in_class: bool = False
    nested: int = 0
    own: frozenset[str] = frozenset()
    globals_: frozenset[str] = frozenset()

    @property
    def is_async(self):
        return self.kind in ("coroutine", "asyncgen")

    def inner(self, **changes):
        # What is set in a block may have no value behind it.
        changes.setdefault("names", list(self.names))
        return replace(self, depth=self.depth + 1, **changes)


@dataclass
class Program:
    """A module: its text as nodes, and what of it can be called."""

    nodes: list[Node] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
