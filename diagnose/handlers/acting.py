"""What instruments that act say, and how it reaches the woven code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

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
        kind = error if isinstance(error, type) else type(error)
        if not issubclass(kind, BaseException):
            message = f"{error!r:.200} is no exception: give Raise an exception or a class of them"
            raise TypeError(message)
        self.error = error

    def __repr__(self) -> str:
        return f"Raise({self.error!r})"


def on_call(act: Act, parameters: tuple[str, ...]) -> Callable[[Any, Mapping[str, Any]], Any]:
    """What an instrument does before the body, as the woven code takes it.

    Returns:
        A function that returns None, or a tuple: what is to be raised or None, and the values of
        all parameters.
    """

    def run(value: Any, names: Mapping[str, Any]) -> tuple[object, ...] | None:
        chosen = act(value, names)
        if chosen is None:
            return None
        if type(chosen) is Raise:
            return chosen.error, *(None for _ in parameters)
        if not isinstance(chosen, Mapping) or not set(chosen) <= set(parameters):
            message = (
                f"act() returned {chosen!r:.200}; on 'call' it has to return None, Raise(error) or a "
                f"dict of parameters ({', '.join(parameters) or 'there are none'}) and new values"
            )
            raise TypeError(message)
        return None, *(chosen[name] if name in chosen else names[name] for name in parameters)

    return run


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
            return True, chosen.error
        message = (
            f"act() returned {chosen!r:.200}; on 'return' it has to return None, Result(value) or "
            "Raise(error)"
        )
        raise TypeError(message)

    return run
