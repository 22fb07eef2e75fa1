"""What is measured: this library and, beside it, others. One module each, one process each.

This module knows where a library comes from, and imports none. The modules beside it each have
one class `Side`, made in the process that measures.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Library:
    """A side of the comparison.

    Attributes:
        title: the head of its column.
        module: where its `Side` is, in this package.
        requirement: what pip installs, into an environment of its own; "": nothing.
        wheels: packages of which only wheels are taken (their sources take long to build).
        since: the first Python that has it.
    """

    title: str
    module: str
    requirement: str = ""
    wheels: str = ""
    since: tuple[int, int] = (3, 11)


LIBRARIES = {
    "here": Library("here", "here"),
    "before": Library("before", "here"),  # another checkout, see --before
    "upstream": Library("upstream", "upstream", "diagnose==5.0.1"),
    "ddtrace": Library("ddtrace", "datadog", "ddtrace==4.16.0", wheels="ddtrace"),
    "wrapt": Library("wrapt", "wrapper", "wrapt==2.5.2", wheels="wrapt"),
    "monitoring": Library("sys.monitoring", "monitoring", since=(3, 12)),
}
# Whose figures are of Python itself.
NOBODY = "nobody"


def load(name):
    """Make the side `name`; its library must be importable."""
    return importlib.import_module(f"sides.{LIBRARIES[name].module}").Side()
