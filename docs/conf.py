"""The site of these pages: `make docs`. They, and README, are written to be read on GitHub too."""

from __future__ import annotations

import posixpath
import re

project = "diagnose"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "diagnose"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
smartquotes = False  # quotes in tables are part of values
html_show_sphinx = False
show_copyright = False
myst_heading_anchors = 4
nitpicky = True

# Files elsewhere in the repository that are pages of the site: each is included by one here.
ELSEWHERE = {
    "README.md": "docs/index.md",
    "CONTRIBUTING.md": "docs/contributing.md",
    "CHANGELOG.md": "docs/changelog.md",
    "benchmarks/README.md": "docs/benchmarks.md",
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def for_the_site(text: str, home: str) -> str:
    """The text of a file in the folder ``home`` of the repository, with links as they are here."""

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(home, match[0]))
        return posixpath.relpath(ELSEWHERE.get(path, path), "docs")

    return LINK.sub(link, text.replace("```python\n>>> ", "```pycon\n>>> "))


def read(app: object, docname: str, text: list[str]) -> None:
    """A page was read."""
    text[0] = for_the_site(text[0], "docs")


def included(app: object, path: object, docname: str, text: list[str]) -> None:
    """A file was read that a page includes."""
    home = posixpath.dirname(posixpath.normpath(posixpath.join("docs", str(path))))
    text[0] = for_the_site(text[0], home)


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read)
    app.connect("include-read", included)
