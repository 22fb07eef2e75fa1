"""The names of a call as a mapping that is made when somebody looks at it."""

from __future__ import annotations

import builtins
import contextlib
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from diagnose.bytecode import weaving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import FrameType

    from diagnose.bytecode.weaving import Parameters
    from diagnose.handlers.plans import Scope

__all__ = ["ABOUT_NAMES", "Names", "NamesSource"]

# Taken now: it may itself be probed, and then its module has a stand-in for it.
_getframe = sys._getframe


class NamesSource:
    """What the names of calls are made of that are not handed over as they are.

    Args:
        known: the names that are handed over.
        scope: what names mean.
        file: of the handler's code: it tells its frame from others.

    Attributes:
        places: by name, its place among those that are handed over.
    """

    __slots__ = ("_file", "_scope", "places")

    def __init__(self, known: Iterable[str], scope: Scope, file: str) -> None:
        self.places = {name: place for place, name in enumerate(known)}
        self._scope = scope
        self._file = file

    @property
    def namespace(self) -> Mapping[str, object]:
        """The manager's."""
        return self._scope.namespace

    @property
    def globals(self) -> dict[str, Any]:
        """The function's."""
        return self._scope.globals_

    def add_to(self, names: dict[str, Any]) -> None:
        """Add what is reckoned from other names."""
        if self._scope.is_inside:
            return
        begun = None if "start" in self._scope.names else names.get("start")
        now = datetime.now(UTC) if begun is None else datetime.fromtimestamp(begun, UTC)
        names.setdefault("now", now.replace(tzinfo=None))
        names.setdefault("frame", self._frame())
        if self._scope.parameters is not None:
            self._add_arguments(names, self._scope.parameters)
        if self._scope.signature is not None:
            # A call that does not fit it ends in an error of the function's own.
            with contextlib.suppress(TypeError):
                bound = self._scope.signature.bind(*names["args"], **names["kwargs"])
                bound.apply_defaults()
                for name, value in bound.arguments.items():
                    names.setdefault(name, value)

    def _add_arguments(self, names: dict[str, Any], parameters: Parameters) -> None:
        star, double_star = parameters.star, parameters.double_star
        args = tuple(names[name] for name in parameters.positional)
        kwargs = {name: names[name] for name in parameters.keyword_only}
        names.setdefault("args", args if star is None else (*args, *names[star]))
        more = {} if double_star is None else names[double_star]
        names.setdefault("kwargs", {**kwargs, **more})

    def _frame(self) -> FrameType | None:
        frame: FrameType | None = _getframe(1)
        while frame is not None and frame.f_code.co_filename != self._file:
            frame = frame.f_back
        # The handler's and the function's; that of a stand-in is hidden.
        for _ in range(1 + self._scope.has_frame):
            frame = None if frame is None else frame.f_back
        return frame


class Names(dict[str, Any]):
    """A dict that is filled when somebody looks at it.

    A name that it has not is looked up in the manager's namespace, but is not listed.

    Args:
        values: of the source's names, in their order; :data:`weaving.MISSING`: it has none.
        source: gives all other names.
    """

    __slots__ = ("_source", "_values")

    def __init__(self, values: tuple[object, ...], source: NamesSource) -> None:
        self._values: tuple[object, ...] | None = values
        self._source = source

    def fill(self) -> dict[str, Any]:
        """Make all entries, once."""
        values, self._values = self._values, None
        if values is not None:
            for name, value in zip(self._source.places, values, strict=True):
                if value is not weaving.MISSING:
                    dict.setdefault(self, name, value)
            self._source.add_to(self)
        return self

    def __missing__(self, name: str) -> Any:
        values = self._values
        if values is not None:
            place = self._source.places.get(name)
            if place is not None and values[place] is not weaving.MISSING:
                return values[place]
            if name in self.fill():
                return dict.__getitem__(self, name)
        return self._source.namespace[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self.fill()),)  # copies and pickles are plain

    def everything(self) -> dict[str, Any]:
        """Globals, the manager's namespace and the names of the call, as one new dict."""
        return {**self._source.globals, **self._source.namespace, **self.fill()}


def _filled(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    def look(self: Names, *args: Any, **kwargs: Any) -> Any:
        if self._values is not None:
            self.fill()
        return method(self, *args, **kwargs)

    look.__name__ = name
    return look


for _name in (
    *("__contains__", "__eq__", "__ior__", "__iter__", "__len__", "__ne__", "__or__", "__repr__"),
    *("__reversed__", "__ror__", "__delitem__", "__setitem__", "clear", "copy", "get", "items"),
    *("keys", "pop", "popitem", "setdefault", "update", "values"),
):
    setattr(Names, _name, _filled(_name))


# --- builtins that are about the names of the frame which calls them ------------------------------


def _locals(names: Names) -> Callable[[], dict[str, Any]]:
    return lambda: dict(names.fill())


def _vars(names: Names) -> Callable[..., Any]:
    return lambda *given: builtins.vars(*given) if given else dict(names.fill())


def _dir(names: Names) -> Callable[..., list[str]]:
    return lambda *given: builtins.dir(*given) if given else sorted(names.fill())


def _eval(names: Names) -> Callable[..., Any]:
    def run(text: Any, /, *given: Any, **named: Any) -> Any:
        if given or named:
            return builtins.eval(text, *given, **named)  # noqa: S307  (the policy admitted it)
        return builtins.eval(text, names.everything())  # noqa: S307  (the policy admitted it)

    return run


def _exec(names: Names) -> Callable[..., None]:
    def run(text: Any, /, *given: Any, **named: Any) -> None:
        if given or named:
            builtins.exec(text, *given, **named)
        else:
            builtins.exec(text, names.everything())

    return run


ABOUT_NAMES: dict[str, Callable[[Names], object]] = {
    "locals": _locals,
    "vars": _vars,
    "dir": _dir,
    "eval": _eval,
    "exec": _exec,
}
"""By name: makes of a call's names what stands for the builtin."""
