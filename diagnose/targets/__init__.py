"""Finds what a path such as ``"shop.cart.Cart.checkout"`` leads to.

Targets come from people, also through a store of specs, and the objects on the way
belong to the probed program. So the look-up is static: it reads the dictionaries of
modules, classes and instances, and runs no descriptor, no ``__getattr__`` and no
``__class__`` of the program. Only `resolve` with ``import_modules=True``, which code
asks for and a spec never does, imports modules and calls a module's ``__getattr__``.

Inside: ``search`` (the walk along a path), ``lookup`` (attributes, and what is inside of
them), ``importing`` (modules), ``given`` (functions that are at hand), ``hints`` (near misses
and other advice in errors), ``fingerprints`` (is the code what it was?), ``completion`` (what a
prompt offers).
"""

from __future__ import annotations

from diagnose.targets.completion import Completion, complete
from diagnose.targets.fingerprints import fingerprint
from diagnose.targets.given import path_of, target_of
from diagnose.targets.search import Target, TargetKind, find, innermost, module_names, resolve

__all__ = [
    "Completion",
    "Target",
    "TargetKind",
    "complete",
    "find",
    "fingerprint",
    "innermost",
    "module_names",
    "path_of",
    "resolve",
    "target_of",
]
