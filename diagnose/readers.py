"""Libraries that read byte code are given a function's own, while it is probed too.

numba and ``torch.compile`` compile it, cloudpickle and dill send it to other processes. What a
probe puts in means nothing to them: one fails, in the middle of the program, and the other
sends handlers along. A function's ``__code__`` can't have two values, so they are met where
they take it: each has a function that code goes into or comes out of, and while any function
is probed, something stands in front of that which exchanges ours for the function's own.

Which code that is, our code knows itself (:mod:`diagnose.originals`). So there is nothing to look
up, to lock or to forget, and what was copied from a probed function is known, too.

Where a library is another one than we know, nothing is done: it sees what is there.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from diagnose import imports
from diagnose.originals import own_code

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["serve", "unserve"]

log = logging.getLogger(__name__)


class _Reader(NamedTuple):
    """Where a library takes code: ``key`` of the mapping that is at ``path``, or the attribute."""

    module: str
    path: str
    key: object = None


_PICKLERS = (
    "cloudpickle",
    "joblib.externals.cloudpickle",
    "ray.cloudpickle",
    "pyspark.cloudpickle",
)
_READERS = (
    _Reader("numba.core.bytecode", "get_code_object"),
    _Reader("numba.core.dispatcher", "get_code_object"),
    _Reader("torch._dynamo.bytecode_transformation", "cleaned_instructions"),
    _Reader("torch._dynamo.symbolic_convert", "cleaned_instructions"),
    _Reader("pony.orm.decompiling", "Decompiler.__init__"),
    *(_Reader(f"{name}.cloudpickle", "Pickler.dispatch_table", CodeType) for name in _PICKLERS),
    _Reader("dill._dill", "Pickler.dispatch", CodeType),
)

_watch: imports.Watch | None = None


def serve() -> None:
    """Begin to serve what is imported, and what will be. Not from two threads at once."""
    global _watch  # noqa: PLW0603 - there is one program
    if _watch is None:
        watch = imports.Watch([each.module for each in _READERS if _is_installed(each)], _arrived)
        watch.start()
        _watch = watch
    # An interrupt may come at any time: whoever is the next does what is left.
    for reader in _READERS:
        _change(reader, _serving)


def unserve() -> None:
    """Leave all as it was. Not from two threads at once."""
    global _watch  # noqa: PLW0603
    if _watch is not None:
        _watch.close()
        _watch = None
    for reader in _READERS:
        _change(reader, _served)


def _arrived(name: str) -> None:
    for reader in _READERS:
        if reader.module == name and _watch is not None:
            _change(reader, _serving)


@functools.cache
def _is_installed(reader: _Reader) -> bool:
    """Whether it can ever be imported: else nothing needs to stand in ``sys.meta_path``."""
    name = reader.module.partition(".")[0]
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except Exception:  # noqa: BLE001 - a finder of the program
        return True


def _change(reader: _Reader, change: Callable[[Any], Any]) -> None:
    """Replace what a reader takes code by; what is not as we know it stays."""
    module = sys.modules.get(reader.module)
    if module is None:
        return
    try:
        *path, last = reader.path.split(".")
        owner: Any = vars(module)[path[0]] if path else module
        if reader.key is not None:
            table = vars(owner)[last]
            before = table[reader.key]
            if (after := change(before)) is not before:
                table[reader.key] = after
            return
        before = vars(owner)[last]
        if (after := change(before)) is not before:
            setattr(owner, last, after)
    except Exception:
        log.debug("%r takes code in a way that is not known", reader.module, exc_info=True)


def _serving(read: Any) -> Any:
    if type(read) is not FunctionType or _is_ours(read):
        return read

    @functools.wraps(read)
    def serving(*args: Any, **kwargs: Any) -> Any:
        return own_code(read(*map(own_code, args), **kwargs))

    return serving


def _served(serving: Any) -> Any:
    return serving.__wrapped__ if _is_ours(serving) else serving


_CODE = next(each for each in _serving.__code__.co_consts if isinstance(each, CodeType))


def _is_ours(function: Any) -> bool:
    return type(function) is FunctionType and function.__code__ is _CODE
