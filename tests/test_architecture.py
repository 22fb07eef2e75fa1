from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent

# Each module imports only from modules that stand above it here, also for types alone. A package
# is one unit: inside it any order is fine, as long as nothing imports in a circle at run time.
ORDER = """
    diagnose.errors
    diagnose.interrupts
    diagnose.threads
    diagnose.source_lines
    diagnose.clockwork
    diagnose.exchange
    diagnose.background
    diagnose.imports
    diagnose.targets
    diagnose.expressions
    diagnose.guards
    diagnose.budget
    diagnose.bytecode
    diagnose.hotspots
    diagnose.calltrees
    diagnose.handlers
    diagnose.readers
    diagnose.stepping
    diagnose.standins
    diagnose.muffling
    diagnose.sites
    diagnose.sinks
    diagnose.instruments
    diagnose.probes
    diagnose.specs
    diagnose.arming
    diagnose.outcomes
    diagnose.managers
    diagnose.breakpoints
    diagnose
    diagnose_mongo.settings
    diagnose_mongo.documents
    diagnose_mongo.bounds
    diagnose_mongo.store
    diagnose_mongo.history
    diagnose_mongo.changes
    diagnose_mongo.janitor
    diagnose_mongo.worker
    diagnose_mongo.upgrading
    diagnose_mongo.rollouts
    diagnose_mongo.installation
    diagnose_mongo.server
    diagnose_mongo.autostart
    diagnose_mongo
    diagnose_mongo.cli
    diagnose_mongo.demo
    diagnose_pytest
""".split()

# Who may import what comes with an extra. The demo plays the user, who has a pymongo of his own.
ONLY_IN = {
    "pymongo": {"diagnose_mongo.store", "diagnose_mongo.demo"},
    "bson": {"diagnose_mongo.store", "diagnose_mongo.demo"},
    "gridfs": set(),
    "apscheduler": {"diagnose_mongo.worker"},
    "rich": {"diagnose_mongo.cli", "diagnose_mongo.dashboard", "diagnose_mongo.demo"},
    "cyclopts": {"diagnose_mongo.cli"},
    "mongomock": set(),
    "pytest": {"diagnose_pytest"},
    "hypothesis": set(),
}

EXTRAS = [
    "pymongo",
    "bson",
    "gridfs",
    "apscheduler",
    "cyclopts",
    "rich",
    "mongomock",
    "diagnose_mongo",
]


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in ("diagnose", "diagnose_mongo", "diagnose_pytest")
    for path in sorted((ROOT / package).rglob("*.py"))
}
PACKAGES = {name: path for name, path in MODULES.items() if path.name == "__init__.py"}


def unit(module: str) -> str:
    """The entry of ORDER that a module belongs to."""
    for entry in sorted(ORDER, key=len, reverse=True):
        if module == entry:
            return entry
        # The two top packages are units of their own, not homes of whatever is in them.
        if "." in entry and module.startswith(entry + "."):
            return entry
    raise AssertionError(f"{module} has no place in ORDER: give it one (design.md, section 2)")


def is_for_types(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def nodes(tree: ast.AST, *, types: bool) -> Iterator[ast.AST]:
    yield tree
    for child in ast.iter_child_nodes(tree):
        if types or not is_for_types(child):
            yield from nodes(child, types=types)


def imports(module: str, *, types: bool) -> set[str]:
    """The full names of all that a module imports: at its top, in functions, for types."""
    path = MODULES[module]
    found = set()
    for node in nodes(ast.parse(path.read_text(), str(path)), types=types):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                home = module.split(".")
                home = home[: len(home) - node.level + (path.name == "__init__.py")]
                base = ".".join([*home, *filter(None, [base])])
            # "from package import module" imports the module; anything else is a name in base.
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return found


def own_imports(module: str, *, types: bool) -> set[str]:
    return {name for name in imports(module, types=types) if name in MODULES and name != module}


def test_every_module_has_a_place_in_the_order():
    assert MODULES
    for module in MODULES:
        unit(module)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    place = ORDER.index(unit(module))
    wrong = {name for name in own_imports(module, types=True) if ORDER.index(unit(name)) > place}
    assert not wrong, f"{module} imports {sorted(wrong)}, which must import it, if anything"


def test_no_imports_go_in_a_circle():
    graph = {module: own_imports(module, types=False) for module in MODULES}
    while leaves := {module for module, needs in graph.items() if not needs & graph.keys()}:
        for module in leaves:
            del graph[module]
    circle = {module: sorted(needs & graph.keys()) for module, needs in graph.items()}
    assert not circle


@pytest.mark.parametrize("library", ONLY_IN)
def test_only_one_place_imports(library):
    wrong = {
        module
        for module in MODULES
        if any(name.partition(".")[0] == library for name in imports(module, types=True))
        and unit(module) not in ONLY_IN[library]
    }
    assert not wrong, f"{sorted(wrong)} import {library}; only {sorted(ONLY_IN[library])} may"


@pytest.mark.skipif("diagnose" not in PACKAGES, reason="diagnose/__init__.py is still to come")
def test_diagnose_is_imported_without_any_extra_and_imports_none():
    code = f"""
import json, sys
blocked = {EXTRAS}
for name in blocked:
    sys.modules[name] = None  # what an import of it then raises is what its absence does
import diagnose
for module in {sorted(name for name in MODULES if unit(name).partition(".")[0] == "diagnose")}:
    __import__(module)
print(json.dumps(sorted(
    name for name in sys.modules
    if name.partition(".")[0] in blocked and sys.modules[name] is not None
)))
"""
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == []


def all_of(path: Path) -> list[str] | None:
    for node in ast.parse(path.read_text(), str(path)).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            return list(ast.literal_eval(node.value))
    return None


@pytest.mark.parametrize(
    "package", ["diagnose", "diagnose_mongo", "diagnose_pytest", "diagnose.instruments"]
)
def test_packages_list_what_is_public(package):
    if package not in PACKAGES:
        pytest.skip(f"{package}/__init__.py is still to come")
    listed = all_of(PACKAGES[package])
    assert listed is not None, f"{package} has no __all__"
    assert len(listed) == len(set(listed))
    module = __import__(package, fromlist=["__all__"])
    missing = [name for name in listed if not hasattr(module, name)]
    assert not missing


def test_no_module_is_named_for_what_does_not_belong_anywhere():
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [name for name in MODULES if vague & set(name.split("."))]


OURS = re.compile(r"diagnose(_mongo|_pytest)?(\.\w+)+")


def named_in_strings(module: str) -> Iterator[str]:
    """Dotted names of ours in a module's strings; those of loggers are no names of modules."""
    loggers = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger"):
            loggers.update(node.args)
        if isinstance(node, ast.Constant) and node not in loggers:
            if isinstance(node.value, str) and OURS.fullmatch(node.value):
                yield node.value


@pytest.mark.parametrize("module", MODULES)
def test_what_a_string_names_is_there(module):
    """A string that names a module is an import that nothing else notices when it breaks."""
    for name in named_in_strings(module):
        home, names = name, []
        while home not in MODULES:
            home, _, last = home.rpartition(".")
            names.insert(0, last)
        found = importlib.import_module(home)
        for each in names:
            found = getattr(found, each, None)
        assert found is not None, f"{module} names {name}, and there is no such thing"
