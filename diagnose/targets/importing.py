"""Which modules there are, which could be imported, and importing them."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import pkgutil
import sys
from importlib.machinery import ModuleSpec
from typing import Any

from diagnose import imports
from diagnose.errors import TargetNotFoundError
from diagnose.introspection import entry_of, is_a, namespace_of, read_name
from diagnose.targets.lookup import Step, look_up
from diagnose.wording import described

log = logging.getLogger(__name__)

# importlib.util.LazyLoader's modules load themselves on the first attribute access.
_LAZY_MODULE: type = getattr(importlib.util, "_LazyModule", type("_NoLazyModule", (), {}))


def ask_module(label: str, module: object, name: str) -> Step | None:
    """Let a module make the attribute (PEP 562, lazy modules).

    Returns:
        The attribute; None if the module has none of that name.

    Raises:
        TargetNotFoundError: the module's ``__getattr__`` failed (``module-import-failed``).
    """
    try:
        value = getattr(module, name)
    except AttributeError:
        return None
    except Exception as exc:
        message = f"module {label!r} failed to give {name!r}: {described(exc)}"
        raise TargetNotFoundError(message, code="module-import-failed") from exc
    return look_up(module, name) or Step(module, name, value)


def is_incomplete(module: object) -> bool:
    """Whether the module is being executed just now, or is one that loads itself when used."""
    spec = entry_of(namespace_of(module), "__spec__")
    return is_a(module, _LAZY_MODULE) or entry_of(namespace_of(spec), "_initializing") is True


def import_module(name: str) -> bool:
    """Import a module; False if there is none of that name.

    Raises:
        TargetNotFoundError: importing it failed (``module-import-failed``).
    """
    try:
        importlib.import_module(name)
    except Exception as exc:
        if isinstance(exc, ModuleNotFoundError) and exc.name == name:
            return False
        message = f"importing module {name!r} failed with {described(exc)}; import it to see where"
        raise TargetNotFoundError(message, code="module-import-failed") from exc
    return True


def package_path(module: object) -> Any:
    """Where a package looks for its modules; None for what is no package."""
    step = look_up(module, "__path__")
    if step is None:
        return None
    # Finders iterate over it: a path of the program's own making might not end.
    is_made_by_importlib = read_name(type(step.value)).endswith("NamespacePath")
    is_path = is_made_by_importlib or issubclass(type(step.value), list | tuple)
    return step.value if is_path else None


def find_unimported(parts: list[str], loaded: int) -> tuple[str, object] | None:
    """The longest prefix beyond the ``loaded`` parts that could be imported, and its file.

    Asks the finders of ``sys.meta_path`` directly: `importlib.util.find_spec` imports
    parents, and waits for one that another thread is importing.
    """
    search = package_path(sys.modules.get(".".join(parts[:loaded]))) if loaded else None
    found = None
    for count in range(loaded + 1, len(parts) + 1):
        name = ".".join(parts[:count])
        if (count > 1 and search is None) or name in sys.modules:  # there, but None: blocked
            break
        spec = _ask_finders(name, search)
        if spec is None:
            break
        search = _search_path(spec)
        # A directory without __init__.py has nothing but modules in it: no find by itself.
        if spec.loader is not None or count == len(parts):
            found = name, spec.origin
    return found


def find_search_path(parts: list[str]) -> Any:
    """Where a package that is not imported has its modules; None if there is no such package."""
    loaded = len(parts)
    while loaded and sys.modules.get(".".join(parts[:loaded])) is None:
        loaded -= 1
    search = package_path(sys.modules.get(".".join(parts[:loaded]))) if loaded else None
    for count in range(loaded + 1, len(parts) + 1):
        spec = (
            None if count > 1 and search is None else _ask_finders(".".join(parts[:count]), search)
        )
        search = None if spec is None else _search_path(spec)
        if search is None:
            return None
    return search


def _ask_finders(name: str, search: Any) -> ModuleSpec | None:
    for finder in list(sys.meta_path):
        if finder is imports.FINDER:
            continue  # it would take this for the beginning of an import
        try:
            spec = finder.find_spec(name, search, None)
        except Exception as exc:  # noqa: BLE001 - a finder of the program; the next may know
            log.debug("finder %s failed: %s", read_name(type(finder)), described(exc))
        else:
            if spec is not None:
                return spec
    return _find_part(name, search) if search is not None and "." in name else None


def _find_part(name: str, search: Any) -> ModuleSpec | None:
    """Find a namespace package in another one that is not imported.

    The finder of directories can't: such a spec has a path that asks the parent in sys.modules.
    """
    if name.rpartition(".")[0] in sys.modules:
        return None
    locations: list[str] = []
    for entry in search:
        finder: Any = pkgutil.get_importer(entry)
        part = None if finder is None else finder.find_spec(name)
        if part is not None and part.loader is None:
            locations += part.submodule_search_locations or ()
    if not locations:
        return None
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = locations
    return spec


def _search_path(spec: ModuleSpec) -> Any:
    """Where a spec's package has its modules."""
    # The path of a namespace package asks its parent in sys.modules, which may not be there.
    path: Any = spec.submodule_search_locations
    return getattr(path, "_path", path)


def is_script(file: object) -> bool:
    """Whether this is the file of the program's script, which runs as ``__main__``."""
    main_file = entry_of(namespace_of(sys.modules.get("__main__")), "__file__")
    return type(file) is str and type(main_file) is str and file == main_file
