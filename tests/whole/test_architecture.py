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

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"

# The places that may import what comes with an extra. The demo plays a user with a pymongo of its own.
ONLY_IN = {
    "pymongo": {"diagnose_mongo.store", "diagnose_mongo.demo"},
    "bson": {"diagnose_mongo.store", "diagnose_mongo.demo"},
    "gridfs": set(),
    "apscheduler": {"diagnose_mongo.worker.polling"},
    "rich": {"diagnose_mongo.cli", "diagnose_mongo.demo"},
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


def listed() -> Iterator[str]:
    """The modules that the page's tables of units name, in their order."""
    text = PAGE.read_text().partition("\n## Units\n")[2]
    for unit, cell in re.findall(r"^\| `([\w/.]+)` \|([^|]*)\|", text, re.MULTILINE):
        assert (ROOT / unit).exists(), f"{unit} is on the page and not in the tree"
        name = unit.removesuffix(".py").strip("/").replace("/", ".")
        inside = [each.replace("/", ".") for each in re.findall(r"`([\w/]+)`", cell)]
        yield from (name if each == "__init__" else f"{name}.{each}" for each in inside)
        if "__init__" not in inside:
            yield name


ORDER = list(listed())
PLACES = {module: place for place, module in enumerate(ORDER)}


def imports(module: str) -> set[str]:
    """The full names of all that a module imports: at its top, in functions, for types."""
    path = MODULES[module]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
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


def own_imports(module: str) -> set[str]:
    return {name for name in imports(module) if name in MODULES and name != module}


def test_the_page_names_each_unit_once_and_each_that_it_names_exists():
    assert MODULES
    missing, gone = sorted(MODULES.keys() - set(ORDER)), sorted(set(ORDER) - MODULES.keys())
    assert not missing, "not on the page: give them a row, or a place in one"
    assert not gone, "on the page, and not in the tree"
    assert len(ORDER) == len(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    # Modules without a place are a failure of the test of the page, and of no other.
    place = PLACES.get(module, len(ORDER))
    wrong = {name for name in own_imports(module) if PLACES.get(name, -1) > place}
    assert not wrong, f"{module} imports {sorted(wrong)}, which stand below it in {PAGE.name}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_only_one_place_imports(library):
    wrong = {
        module
        for module in MODULES
        if any(name.partition(".")[0] == library for name in imports(module))
        and not any(f"{module}.".startswith(f"{place}.") for place in ONLY_IN[library])
    }
    assert not wrong, f"{sorted(wrong)} import {library}; only {sorted(ONLY_IN[library])} may"


def test_diagnose_is_imported_without_any_extra_and_imports_none():
    code = f"""
import json, sys
blocked = {EXTRAS}
for name in blocked:
    sys.modules[name] = None  # what an import of it then raises is what its absence does
import diagnose
for module in {sorted(name for name in MODULES if name.partition(".")[0] == "diagnose")}:
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
