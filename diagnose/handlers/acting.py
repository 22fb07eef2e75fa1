"""What instruments that act say, and how it reaches the woven code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diagnose.bytecode.weaving import MISSING

if TYPE_CHECKING:
    from collections.abc import Callable

    from diagnose.bytecode.weaving import Parameters

    Act = Callable[[Any, Mapping[str, Any]], object]

__all__ = ["Raise", "Result", "on_call", "on_return"]


class Result:
    """Has the function return this value in place of what it returned or raised."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Result({self.value!r})"


class Raise:
    """Has the function raise this, in place of its body (``call``) or of returning (``return``).

    Args:
        error: an exception, or a class of exceptions.

    Raises:
        TypeError: it is neither.
    """

    __slots__ = ("error",)

    def __init__(self, error: BaseException | type[BaseException]) -> None:
        kind: type = error if isinstance(error, type) else type(error)
        if not issubclass(kind, BaseException):
            message = f"{error!r:.200} is no exception: give Raise an exception or a class of them"
            raise TypeError(message)
        self.error = error

    def __repr__(self) -> str:
        return f"Raise({self.error!r})"


def on_call(act: Act, parameters: Parameters) -> Callable[[Any, Mapping[str, Any]], Any]:
    """What an instrument does before the body, as the woven code takes it.

    Returns:
        A function that returns None, or a pair: what is to be raised or None, and a tuple of the
        new values of all parameters, :data:`MISSING` for those that keep theirs.
    """
    known = parameters.names

    def run(value: Any, names: Mapping[str, Any]) -> tuple[object, tuple[object, ...]] | None:
        chosen = act(value, names)
        if chosen is None:
            return None
        if type(chosen) is Raise:
            return _made(chosen.error), ()
        if not isinstance(chosen, Mapping) or not set(chosen) <= set(known):
            message = (
                f"act() returned {chosen!r:.200}; on 'call' it has to return None, Raise(error) or a "
                f"dict of parameters ({', '.join(known) or 'there are none'}) and new values"
            )
            raise TypeError(message)
        values = dict(chosen)
        if parameters.star in values:
            values[parameters.star] = tuple(values[parameters.star])
        if parameters.double_star in values:
            # As a call makes it: new, and with no keys but strings.
            values[parameters.double_star] = _keywords(**values[parameters.double_star])
        return None, tuple([values.get(name, MISSING) for name in known])

    return run


def _keywords(**keywords: object) -> dict[str, object]:
    return keywords


def _made(error: BaseException | type[BaseException]) -> BaseException:
    """The exception itself: what goes wrong as it is made is the instrument's error."""
    made: object = error() if isinstance(error, type) else error
    if not isinstance(made, BaseException):
        message = f"{error!r:.200} gives {made!r:.200}, which is no exception"
        raise TypeError(message)
    return made


def on_return(act: Act) -> Callable[[Any, Mapping[str, Any]], Any]:
    """What an instrument does after the body, as the woven code takes it.

    Returns:
        A function that returns None, or a pair: whether it is to be raised, and the value.
    """

    def run(value: Any, names: Mapping[str, Any]) -> tuple[bool, object] | None:
        chosen = act(value, names)
        if chosen is None:
            return None
        if type(chosen) is Result:
            return False, chosen.value
        if type(chosen) is Raise:
            return True, _made(chosen.error)
        message = (
            f"act() returned {chosen!r:.200}; on 'return' it has to return None, Result(value) or "
            "Raise(error)"
        )
        raise TypeError(message)

    return run
