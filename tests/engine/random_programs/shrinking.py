"""Makes a failing case small: leaves out statements and operations as long as it fails alike."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

MOST_TRIES = 400


def likeness(difference):
    """What two failures have in common if they are of one kind."""
    if difference is None:
        return None
    if "operation" not in difference:
        return re.sub(r"\S+ (has|stands)", r"\1", difference.splitlines()[0])
    bare, _, probed = difference.partition("probed:")
    words = set(
        re.findall(r"\b[A-Z]\w+(?:Error|Exit|Iteration|Group)\b|returned|gone|random", probed)
    )
    heads = [
        re.sub(r"\d+", "", part.split(":", 1)[-1].split(",")[0].strip()) for part in (bare, probed)
    ]
    return [*heads, *sorted(words - set(re.findall(r"\w+", bare)))]


def shrunk(case, fails):
    """A smaller case for which ``fails`` is true, as it is for this one.

    Args:
        case: it fails.
        fails: whether another one fails in the same way; false too if it is no program.
    """
    tries = 0

    def is_better(candidate):
        nonlocal tries
        tries += 1
        return tries <= MOST_TRIES and fails(candidate)

    size = max(len(case.operations) // 2, 1)
    while size:
        case = _without_operations(case, size, is_better)
        size //= 2
    before = None
    while before is not case:
        before = case
        case = _without_statements(case, is_better)
    return _without_operations(case, 1, is_better)


def _without_operations(case, size, is_better):
    position = 0
    while position < len(case.operations):
        left = case.operations[:position] + case.operations[position + size :]
        candidate = replace(case, operations=left)
        if left and is_better(candidate):
            case = candidate
        else:
            position += size
    return case


def _without_statements(case, is_better):
    """Try to leave out each statement, or to put what is in its blocks in its place."""
    place = 0
    while True:
        nodes = copy.deepcopy(case.nodes)
        spots = [(block, number) for block in _blocks(nodes) for number in range(len(block))]
        if place >= len(spots):
            return case
        block, number = spots[place]
        node = block[number]
        inner = [each for _, below in node.clauses if below for each in below]
        for instead in [[], inner] if inner else [[]]:
            block[number : number + 1] = instead
            candidate = replace(case, nodes=copy.deepcopy(nodes))
            block[number : number + len(instead)] = [node]
            if is_better(candidate):
                case = candidate
                break
        else:
            place += 1


def _blocks(nodes):
    yield nodes
    for node in nodes:
        for _, below in node.clauses:
            if below is not None:
                yield from _blocks(below)
