"""Modules that a test makes of a text, to be probed."""

from __future__ import annotations

import sys
import types
from contextlib import contextmanager


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
