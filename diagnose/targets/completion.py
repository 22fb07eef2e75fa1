"""What may come next while somebody types a path: for prompts and pickers."""

from __future__ import annotations

import logging
import os
import pkgutil
import sys
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING

from diagnose.errors import TargetError
from diagnose.introspection import is_a, read_name
from diagnose.originals import seen_through
from diagnose.targets.hints import attribute_names, join_path
from diagnose.targets.importing import find_search_path, package_path
from diagnose.targets.lookup import look_up, unwrapped
from diagnose.targets.search import TargetKind, classify, split_path
from diagnose.wording import described

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from diagnose.targets.lookup import Step

__all__ = ["Completion", "complete"]

log = logging.getLogger(__name__)

_MAX_DIRECTORIES = 500


@dataclass(frozen=True, slots=True)
class Completion:
    """One way in which a path can go on.

    Attributes:
        path: the whole path, up to and with the completed name.
        kind: ``"module"``, ``"class"``, ``"function"``, ``"method"``, ``"static method"``,
            ``"class method"``, ``"property"``, or ``"callable"`` for other objects that can
            be called.
        is_probeable: whether a probe can be put there; where not, the path goes on.
        is_imported: False for a module that this process has not imported: what is in it
            is not known.
    """

    path: str
    kind: str
    is_probeable: bool
    is_imported: bool = True


def complete(prefix: str, limit: int = 50) -> list[Completion]:
    """List what a path that begins with ``prefix`` can be completed to, by one name.

    Modules that are imported, and those beside them that could be; classes, functions,
    methods, properties. Names that begin with an underscore are listed if the last part of
    ``prefix`` does. Nothing is imported and no code of the program runs (but for finders in
    ``sys.meta_path``, which are asked where a package is). Names of modules on disk are kept
    until their directory changes, so that each key costs about a millisecond.

    Args:
        prefix: what was typed: ``"shop.cart.Cart.che"``; with a dot at the end it lists
            all there is in a module or class.
        limit: how many at most, in the order of their names.

    Returns:
        The completions; none if ``prefix`` leads nowhere.

    Example:
        >>> [each.path for each in complete("textwrap.de")]
        ['textwrap.dedent']
    """
    head, dot, stem = prefix.rpartition(".")
    if dot and not head:
        return []
    try:
        holder, search = _holder(head)
    except Exception as exc:  # noqa: BLE001 - whatever stands in sys.modules, or was typed
        log.debug("%r can't be completed: %s", prefix, described(exc))
        return []
    found: dict[str, Completion] = {}
    modules = set(_modules_in(head, search))
    names = modules if holder is None else modules.union(_names_in(holder))
    for name in sorted(names):
        if not name.startswith(stem) or (name.startswith("_") and not stem.startswith("_")):
            continue
        if len(found) >= max(0, limit):
            break
        one = _completion(head, holder, name, is_module=name in modules)
        if one is not None:
            found[name] = one
    return list(found.values())


def _holder(head: str) -> tuple[object, Iterable[str] | None]:
    """What the head of a path leads to, and where modules in it are looked for.

    None for what is not imported. ``search`` is None for what is no package.
    """
    if not head:
        return None, sys.path
    _, parts = split_path(head)
    for count in range(len(parts), 0, -1):
        module = sys.modules.get(".".join(parts[:count]))
        if module is None:
            continue
        holder: object = module
        for name in parts[count:]:
            step = look_up(holder, name)
            if step is None:
                break
            holder = unwrapped(step.value)
        else:
            return holder, package_path(holder) if is_a(holder, ModuleType) else None
    return None, find_search_path(parts)


def _names_in(holder: object) -> Iterator[str]:
    mangled = f"_{read_name(holder).lstrip('_')}__" if is_a(holder, type) else None
    for name in attribute_names(holder):
        if name.isidentifier():
            yield name
            if mangled is not None and name.startswith(mangled):
                yield name[len(mangled) - 2 :]  # as it stands in the source


def _completion(head: str, holder: object, name: str, *, is_module: bool) -> Completion | None:
    path = join_path(head, name)
    module = sys.modules.get(path)
    step = None if holder is None else look_up(holder, name)
    if step is not None and not is_a(step.value, ModuleType):
        kind = _kind_of(step, holder, path)
        if kind is not None:
            return Completion(path, *kind)
    if module is not None or (step is not None and is_a(step.value, ModuleType)):
        # Modules that a module has imported for its own use are not a way on.
        is_way_on = module is not None or package_path(holder) is not None
        return Completion(path, "module", is_probeable=False) if is_way_on else None
    return Completion(path, "module", is_probeable=False, is_imported=False) if is_module else None


def _kind_of(step: Step, holder: object, path: str) -> tuple[str, bool] | None:
    """Kind, and whether it can be probed; None for values that nobody calls."""
    value = seen_through(step.value)
    if is_a(value, type):
        return "class", False
    try:
        target = classify(step, holder, path)
    except TargetError:
        if not callable(value) and not is_a(value, property):
            return None
        kind = TargetKind.PROPERTY.value if is_a(value, property) else "callable"
        return kind, False
    if target.kind is not TargetKind.REFERENCE:
        return target.kind.value, True
    inside = unwrapped(value)
    is_function = type(inside) in (FunctionType, BuiltinFunctionType)
    return TargetKind.FUNCTION.value if is_function else "callable", True


# --- modules on disk --------------------------------------------------------------------------

# For each directory when it last changed, and the modules in it.
_directories: dict[str, tuple[int, tuple[str, ...]]] = {}


def _modules_in(head: str, search: Iterable[str] | None) -> Iterator[str]:
    start = f"{head}." if head else ""
    for name in list(sys.modules):
        if type(name) is str and name.startswith(start):
            rest = name[len(start) :]
            if rest and "." not in rest and rest.isidentifier():
                yield rest
    if not head:
        yield from sys.stdlib_module_names
    for directory in list(search or ()):
        if type(directory) is str:
            yield from _listed_modules(directory or os.curdir)


def _listed_modules(directory: str) -> tuple[str, ...]:
    try:
        changed = os.stat(directory).st_mtime_ns  # noqa: PTH116 - Path.stat costs twice as much
    except (OSError, ValueError):
        return ()
    known = _directories.get(directory)
    if known is None or known[0] != changed:
        try:
            names = tuple(each.name for each in pkgutil.iter_modules([directory]))
        except Exception as exc:  # noqa: BLE001 - a path hook of the program
            log.debug("modules in %r could not be listed: %s", directory, described(exc))
            names = ()
        if len(_directories) >= _MAX_DIRECTORIES:
            _directories.clear()
        known = _directories[directory] = changed, names
    return known[1]
