"""What the README shows is so."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_sessions_say_what_they_say(page):
    # In Markdown a session ends with its fence, which doctest would take for output.
    text = "\n".join(re.findall(r"```python\n(>>> .*?)```", page.read_text(), re.DOTALL))
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=flags).run(test, out=said.append)
    assert not said, "".join(said)
    assert result.attempted == text.count(">>> ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_python_is_python(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        if not block.startswith(">>> "):
            ast.parse(block)


def test_there_are_sessions_in_the_readme():
    assert PAGES[0].read_text().count("\n>>> ") >= 5
