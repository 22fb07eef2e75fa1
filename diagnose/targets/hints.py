"""What the user may have meant, and how errors say it."""

from __future__ import annotations

import logging
import pkgutil
import sys
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING

from diagnose.errors import TargetKindError
from diagnose.introspection import (
    entry_of,
    is_a,
    namespace_of,
    read_class_dict,
    read_mro,
    read_name,
)
from diagnose.originals import seen_through
from diagnose.targets.importing import package_path
from diagnose.targets.lookup import look_up, unwrapped
from diagnose.wording import described

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

log = logging.getLogger(__name__)

_MAX_CANDIDATES = 5000
_MAX_PLACES = 2
CHECK_SPELLING = "; check the spelling and which version of the code this process runs"
"""What to do next, where nothing else can be said."""


def module_error(here: str, module: object) -> TargetKindError:
    """The error for a path that ends at a module; it names functions in there."""
    functions = [f"{here}.{name}" for name in functions_in(module)]
    advice = advice_with_names("name a function in it", functions) or "name a function in it"
    return TargetKindError(f"{here!r} is a module; {advice}", code="target-is-module")


def class_error(here: str, cls: object) -> TargetKindError:
    """The error for a path that ends at a class; it names methods."""
    advice = []
    for name in ("__init__", "__new__"):
        step = look_up(cls, name)
        if step is not None and type(unwrapped(step.value)) is FunctionType:
            advice.append(f"probe '{here}.{name}' to see instances being made")
            break
    methods = advice_with_names(
        "one of its methods", [f"{here}.{name}" for name in functions_in(cls)]
    )
    then = ", or ".join([*advice, methods] if methods else advice) or "name one of its methods"
    return TargetKindError(f"{here!r} is a class; {then}", code="target-is-class")


def submodule_names(prefix: str, package: object) -> Iterator[str]:
    """The last names of modules below a package, or of all top-level modules for None."""
    start = f"{prefix}." if prefix else ""
    for name in list(sys.modules):
        if type(name) is str and name.startswith(start):
            yield name.removeprefix(start).partition(".")[0]
    search = None
    if package is None:
        yield from sys.stdlib_module_names
    else:
        search = package_path(package)
        if search is None:
            return
    try:
        yield from [each.name for each in pkgutil.iter_modules(search)]
    except Exception as exc:  # noqa: BLE001 - strange entries in a path only cost a hint
        log.debug("modules of %r could not be listed: %s", prefix, described(exc))


def attribute_names(holder: object) -> Iterator[str]:
    """The names of all attributes, inherited ones too; some come twice."""
    classes = read_mro(holder if is_a(holder, type) else type(holder))
    inherited = [] if is_a(holder, ModuleType) else [read_class_dict(cls) for cls in classes]
    for namespace in (namespace_of(holder), *inherited):
        yield from (name for name in list(namespace) if type(name) is str)


def functions_in(holder: object, limit: int = 3) -> list[str]:
    """Public functions that a user may mean, those defined here before imported ones."""
    home = _home(holder)
    own: list[str] = []
    others: list[str] = []
    for name, value in list(namespace_of(holder).items()):
        function = unwrapped(value)
        if type(name) is str and not name.startswith("_") and type(function) is FunctionType:
            is_own = home is not None and _home(function) == home
            (own if is_own else others).append(name)
    return (own + others)[:limit]


def _home(value: object) -> str | None:
    """The name of the module that a function or class was made in, or of a module itself."""
    if type(value) is FunctionType:
        home: object = value.__module__
    else:
        home = entry_of(
            namespace_of(value), "__name__" if is_a(value, ModuleType) else "__module__"
        )
    return home if type(home) is str else None


def find_elsewhere(top: str | None, label: str, names: list[str]) -> list[str]:
    """Where loaded modules have these very attributes, other than in ``label``.

    Only modules of the top-level package ``top``; for None all but those of Python itself.
    """
    found = []
    for module_name, module in _modules_of(top, label):
        step = look_up(module, names[0]) if module_name != label else None
        if step is None or _home(seen_through(step.value)) != module_name:
            continue
        for each in names[1:]:
            step = None if step is None else look_up(unwrapped(step.value), each)
        if step is not None:
            found.append(".".join([module_name, *names]))
            if len(found) >= _MAX_PLACES:
                break
    return found


def find_by_last_name(top: str, label: str, names: list[str]) -> list[str]:
    """Functions and methods of a package that have the last of these names.

    As many of the names before it as possible are the same.
    """
    for start in range(len(names)):
        found = find_elsewhere(top, label, names[start:])
        if found:
            return found
    name = names[-1]
    if name.startswith("__"):  # every class has them
        return []
    found = []
    for module_name, module in _modules_of(top, label):
        for key, value in list(namespace_of(module).items()):
            cls = seen_through(value)
            if not is_a(cls, type) or _home(cls) != module_name or type(key) is not str:
                continue
            path = f"{module_name}.{key}"
            if path != label and name in read_class_dict(cls):
                found.append(f"{path}.{name}")
                if len(found) >= _MAX_PLACES:
                    return found
    return found


def _modules_of(top: str | None, label: str) -> list[tuple[str, object]]:
    """Loaded modules by name, those nearest to ``label`` first."""

    def is_meant(name: str) -> bool:
        first = name.partition(".")[0]
        return first == top if top is not None else first not in sys.stdlib_module_names

    modules = [(k, v) for k, v in list(sys.modules.items()) if type(k) is str and is_meant(k)]
    return sorted(modules, key=lambda each: not f"{label}.".startswith(f"{each[0]}."))


def near_misses(name: str, candidates: Iterable[str]) -> list[str]:
    """At most three of the candidates that ``name`` may be a misspelling of, the best first."""
    import difflib  # noqa: PLC0415 - for an error only; import diagnose is to be quick

    wants_dunder = name.startswith("__")
    names = sorted({each for each in candidates if wants_dunder or not each.startswith("__")})
    same = [each for each in names if each.casefold() == name.casefold()]
    # What all dunder names have in common makes none of them similar.
    plain = {each.strip("_") if wants_dunder else each: each for each in names[:_MAX_CANDIDATES]}
    wanted = name.strip("_") if wants_dunder else name
    for cutoff in (0.85, 0.7):  # the less similar ones only if there are no better ones
        near = same + [plain[one] for one in difflib.get_close_matches(wanted, plain, 3, cutoff)]
        if near:
            return list(dict.fromkeys(near))[:3]
    return []


def there_is(paths: list[str]) -> str:
    """``"; there is 'x' and 'y'"``, or ``""`` where there are no paths."""
    return f"; there is {' and '.join(map(repr, paths))}" if paths else ""


def advice_with_names(what: str, names: list[str]) -> str:
    """Advice and the names that it is about, or ``""`` where there are none."""
    return f"{what}: {', '.join(map(repr, names))}" if names else ""


def join_path(prefix: str, name: str) -> str:
    """A path that is longer by a name; the prefix may be empty."""
    return f"{prefix}.{name}" if prefix else name


def name_with_kind(holder: object, label: str) -> str:
    """How a message speaks of a module, class or other object that is found at ``label``."""
    if is_a(holder, ModuleType):
        return f"{'module' if package_path(holder) is None else 'package'} {label!r}"
    if is_a(holder, type):
        return f"class {label!r}"
    return f"{label!r} (a {read_name(type(holder))})"
