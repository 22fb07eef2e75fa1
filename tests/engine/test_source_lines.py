from __future__ import annotations

import importlib.util
import linecache
import sys
import threading
import types
import zipfile

import pytest

from diagnose.breakpoints.stacks import place_of, where_all_stand
from diagnose.hotspots import LineTime
from diagnose.source_lines import source_line


class Loader:
    def __init__(self, error=None):
        self.error = error
        self.asked = []

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        pass

    def get_source(self, name):
        self.asked.append(name)
        if self.error is not None:
            raise self.error
        return "first\n    second\n"


def spec_of(loader, name="loaded"):
    return importlib.util.spec_from_loader(name, loader)


def test_a_line_of_a_file_comes_without_white_space_around_it():
    number = test_a_line_of_a_file_comes_without_white_space_around_it.__code__.co_firstlineno
    assert source_line(__file__, number + 1).startswith("number = test_a_line")
    assert source_line(__file__, 100_000) == ""
    assert source_line(__file__, 0) == ""


def test_a_loader_is_asked_for_what_is_no_file(request):
    file = f"/nowhere/{request.node.name}.py"
    loader = Loader()
    try:
        assert source_line(file, 2, {"__name__": "other", "__spec__": spec_of(loader)}) == "second"
    finally:
        linecache.cache.pop(file, None)
    assert loader.asked == ["loaded"]


# Warnings are errors in these tests (pyproject.toml).
@pytest.mark.parametrize(
    "module",
    [
        {"__name__": "bare"},
        {"__name__": "none", "__spec__": None},
        {"__name__": "no_spec", "__loader__": Loader()},
        {"__name__": "none_and_loader", "__spec__": None, "__loader__": Loader()},
        {"__name__": "no_loader", "__spec__": importlib.util.spec_from_loader("n", None)},
        {"__name__": "another_loader", "__spec__": spec_of(Loader(ImportError())), "__loader__": 1},
        {"__name__": "odd", "__spec__": types.SimpleNamespace(name=3, loader=4)},
        {"__name__": "raises", "__spec__": spec_of(Loader(ZeroDivisionError()))},
        {"__name__": "no_room", "__spec__": spec_of(Loader(RecursionError()))},
        {},
    ],
    ids=lambda module: module.get("__name__", "empty"),
)
def test_whatever_a_module_says_of_itself_nothing_is_raised_and_nobody_is_warned(module):
    assert source_line("/nowhere/at_all.py", 1, module) == ""


@pytest.mark.parametrize("file", ["", "<of no file>", "\0", "/nowhere/at_all.py", "relative.py"])
def test_what_is_no_file_has_no_lines(file):
    assert source_line(file, 1) == ""
    assert place_of(file, 1).endswith(":1")
    assert LineTime(1, 1, 0.0, 0.0, file).source == ""


def test_lines_of_an_archive_are_found(tmp_path, monkeypatch):
    archive = tmp_path / "modules.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("in_an_archive.py", "def f():\n    return 1  # here\n")
    monkeypatch.syspath_prepend(str(archive))
    try:
        import in_an_archive

        code = in_an_archive.f.__code__
        assert source_line(code.co_filename, 2, vars(in_an_archive)) == "return 1  # here"
    finally:
        sys.modules.pop("in_an_archive", None)
        linecache.cache.pop(code.co_filename, None)


def test_a_stack_with_a_module_that_no_loader_loaded_is_shown():
    module = {"__name__": "made_by_hand"}
    text = "def wait(reached, released):\n    reached.set()\n    released.wait(30)\n"
    exec(compile(text, "/nowhere/made_by_hand.py", "exec"), module)
    reached, released = threading.Event(), threading.Event()
    thread = threading.Thread(target=module["wait"], args=(reached, released))
    thread.start()
    try:
        assert reached.wait(30)
        assert "/nowhere/made_by_hand.py:3, in wait" in str(where_all_stand())
    finally:
        released.set()
        thread.join(30)
