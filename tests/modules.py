"""Modules that a test makes of a text, to be probed, and documents that ask for that."""

from __future__ import annotations

import sys
import types
from contextlib import contextmanager
from datetime import UTC, datetime

SHOP = """
def double(x):
    return x * 2

def halve(x):
    return x / 2
"""


@contextmanager
def loaded(name, source):
    """A module that is imported, as long as the block lasts."""
    module = types.ModuleType(name)
    module.__file__ = f"{name}.py"
    sys.modules[name] = module
    try:
        exec(compile(source, module.__file__, "exec"), module.__dict__)
        yield module
    finally:
        sys.modules.pop(name, None)


def document(target="probed_shop.double", value="result", *, kind="seen", **changes):
    """A spec as a manager has it in its ``specs``; what is not given is usual."""
    return {
        "target": target,
        "instrument": {"type": kind, "name": "n", "value": value},
        "lifespan": 10,
        "lastmodified": now(),
    } | changes


def spec(spec_id="a", **changes):
    """A spec as it is in the collection; see :func:`document`."""
    return {"_id": spec_id} | document(**changes)


def now():
    """This moment, as MongoDB keeps it: in milliseconds."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
