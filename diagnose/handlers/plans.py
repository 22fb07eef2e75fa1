"""What a handler is to do, and what names mean where it does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from diagnose.bytecode.weaving import Parameters
    from diagnose.expressions import Expression
    from diagnose.limits import Limits
    from diagnose.tokens import Allotment

__all__ = ["Act", "Append", "Delivery", "Emit", "Fire", "Plan", "Scope", "Span", "Watch"]


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """What the names in an expression can mean where a handler is called.

    Attributes:
        event: ``"call"``, ``"return"``, ``"end"`` or ``"line"``.
        names: parameters (``call``, ``return``) or local variables (``end``, ``line``).
        globals_: of the function; names are looked up in it at each hit.
        namespace: the manager's, looked up at each hit as well.
        signature: of the function that this one stands before, or None.
        keywords: name of the ``**`` parameter, or None.
        has_frame: whether the code that calls handlers is that of the function.
        parameters: at ``call`` and ``return`` of a function with code, what kinds they are of.
    """

    event: str
    names: tuple[str, ...]
    globals_: dict[str, Any]
    namespace: Mapping[str, object]
    signature: inspect.Signature | None = None
    keywords: str | None = None
    has_frame: bool = True
    parameters: Parameters | None = None

    @property
    def is_inside(self) -> bool:
        """Whether the frame's variables are there."""
        return self.event in {"end", "line"}


@dataclass(frozen=True, slots=True, eq=False)
class Append:
    """A hit's value, made a number, goes into a buffer.

    It runs no code of the program if the value is a number already.

    Attributes:
        append: takes the number; or, if there are tags, a pair of it and the frozen tags.
        number: makes a number of the value.
        freeze: makes what can be hashed of the tags.
    """

    append: Callable[[Any], object]
    number: Callable[[Any], Any]
    freeze: Callable[[Mapping[str, Any]], Hashable]


@dataclass(frozen=True, slots=True, eq=False)
class Emit:
    """A hit's name, value and tags are handed to ``emit``."""

    emit: Callable[[str, Any, Mapping[str, Any]], object]
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Fire:
    """The function's globals and a mapping of all names of the call are handed to ``fire``."""

    fire: Callable[[Mapping[str, Any], Mapping[str, Any]], object]


@dataclass(frozen=True, slots=True, eq=False)
class Act:
    """A hit's value and all names of the call are handed to ``act``.

    What it returns is what the function is to do, see :mod:`diagnose.handlers.acting`.
    """

    act: Callable[[Any, Mapping[str, Any]], object]


Delivery = Append | Emit | Fire | Act
"""What becomes of a hit's value."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What an instrument does with a hit.

    Attributes:
        delivery: what becomes of its value.
        value: what is delivered; :class:`Fire` needs none.
        tags: of the instrument; None: it has none.
        get_tags: gives tags of the manager, if it has any.
        when: the condition.
        hit: counts a served hit; :class:`Append` needs none, since its buffer is counted.
        fail: called with what serving a hit raised; True: it was the instrument's; False: it
            belongs to the program, and is raised again.
        done: called after the last hit.
        reject: counters of hits that were turned away, by reason.
        limits: what turns hits away.
        allotment: what the fleet gives it, if it is limited by that.
        check: whether a call is to be served, if the application asks.
        finish: called after each served hit, if given.
        watch: is told how long hits took, if given.
        span: what is done from the begin of the call to its end, if that is how it works.
        defect: as ``fail``, for what gets past a handler's own ``try``.
    """

    delivery: Delivery
    value: Expression | None
    tags: Expression | None
    get_tags: Callable[[], Mapping[str, object]] | None
    when: Expression | None
    hit: Callable[[], object]
    fail: Callable[[BaseException], bool]
    done: Callable[[], None]
    reject: Mapping[str, Iterator[object]]
    limits: Limits
    allotment: Allotment | None = None
    check: Callable[..., object] | None = None
    finish: Callable[[], object] | None = None
    watch: Watch | None = None
    span: Span | None = None
    defect: Callable[[BaseException], bool] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """What an instrument does from the begin of a call to its end.

    Attributes:
        begin: called before the body, once nothing has turned the hit away, with the call's
            frame; it returns an object with an attribute ``is_last``, or None: not this time.
        finish: called after the body with that object; what it returns is the value of ``name``.
        name: what expressions know it by.
        abandon: ends what was begun and is not going to be finished, since the handler is
            disarmed; nothing is begun from then on.
    """

    begin: Callable[[Any], Any]
    finish: Callable[[Any], object]
    name: str
    abandon: Callable[[], None]


class Watch(Protocol):
    """Is told how long hits took: each that took too long, and some of the others.

    Attributes:
        longest_seconds: what a hit may take.
        pending: if there is something in it as a hit begins, that is measured. It is one list
            for ever.
    """

    longest_seconds: float
    pending: list[None]

    def begin(self) -> object:
        """Called in the program's thread as a hit begins that is to be measured.

        Returns:
            What is true, for :meth:`note`.
        """

    def note(self, seconds: float, begun: object) -> None:
        """Take note of a hit that took so long; called in the program's thread.

        Args:
            seconds: on the wall.
            begun: what :meth:`begin` returned; or what is false, if it was not called and the
                hit took longer than it may.
        """
