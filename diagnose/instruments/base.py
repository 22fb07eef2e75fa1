"""The instrument: what is evaluated at a hit, and where the value goes."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from diagnose import expressions
from diagnose.cpu_budget import LONGEST_SECONDS
from diagnose.errors import ExpressionError, InstrumentError
from diagnose.expressions import parsing
from diagnose.handlers import Act, Emit, Fire, Plan
from diagnose.handlers.names import Names
from diagnose.limits import ACTS, Limits
from diagnose.status import Status
from diagnose.wording import shown, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import CodeType

    from diagnose.bytecode.weaving import Hook
    from diagnose.cpu_budget import Budget
    from diagnose.expressions import Expression, Policy
    from diagnose.handlers import Delivery, Watch
    from diagnose.sinks import Sink
    from diagnose.tokens import Allotment

__all__ = [
    "EVENTS",
    "Instrument",
    "Manager",
    "Status",
    "does_nothing",
    "doing_nothing",
    "use_attach",
]

log = logging.getLogger(__name__)

EVENTS = ("call", "return", "end")
"""The events an instrument can be on: before the body; after it returned or raised; inside
its frame, just before it returns or raises. Also ``line:N`` and ``line:+K``: just before a line
of the file runs, by its number, or counted from the line of the ``def``."""

ACTING_EVENTS = ("call", "return")
"""Those on which an instrument may act."""


_LINE_EVENT = re.compile(r"line:(\+\d{1,6}|[1-9]\d{0,6})")


F = TypeVar("F")


class Manager(Protocol):
    """What an instrument asks of its manager."""

    @property
    def global_namespace(self) -> Mapping[str, object]:
        """What expressions may use besides the call's own names."""

    @property
    def sinks(self) -> Sequence[Sink]:
        """Where metrics go."""

    def get_tags(self) -> Mapping[str, object]:
        """Tags for every value."""

    def check_call(self, probe: Any, instrument: Any, *args: Any, **kwargs: Any) -> bool:
        """Whether a call is to be served."""

    def handle_error(self, probe: Any = None, instrument: Any = None) -> None:
        """Take note of an error; called in an ``except`` block."""


class _Defaults:
    """What modules below this one give it."""

    # What stands below this module sets it: decorating attaches.
    attach: ClassVar[Callable[[Instrument, Any], None] | None] = None


def use_attach(attach: Callable[[Instrument, Any], None]) -> None:
    """Say what is done with an instrument that decorates a function."""
    _Defaults.attach = staticmethod(attach)


class Instrument:
    """Evaluates an expression at an event of a probed function and passes the value on.

    Subclass it and override :meth:`emit` (gets name, value and tags; the fast path stays)
    or :meth:`fire` (gets complete dicts of globals and locals at each hit). Used as a
    decorator, an instrument attaches itself to the function at once, for good.

    Args:
        name: what the values are called where they go.
        value: the expression; see :mod:`diagnose.handlers` for the names it can use.
        event: one of :data:`EVENTS`.
        expires: when the instrument ends by itself (naive means UTC); None: never.
        custom: anything; ``custom["tags"]`` is an expression whose value is a dict of tags.
        mgr: its manager; None: ``diagnose.manager``.
        when: a condition, evaluated before anything else; None: always.
        limits: rate, sample and number of hits; what is None there is as in
            :attr:`default_limits`.
        policy: what expressions may do: ``"python"`` or ``"restricted"``.

    Raises:
        InstrumentError: an argument is of the wrong type, or there is no such event.
        ExpressionError: an expression does not parse or is not admitted.
    """

    acts: ClassVar[bool] = False
    """Whether :meth:`act` is called: then it may change what the function gets, returns, raises."""
    longest_seconds: ClassVar[float | None] = LONGEST_SECONDS
    """What serving one hit may take; then the instrument is taken off. None: any time."""
    budget: Budget | None = None
    """Where its cost counts; managers set it for what they make of specs."""
    allotment: Allotment | None = None
    """Hits that it may make, if a fleet has a budget of them; managers set it."""
    default_limits: ClassVar[Limits] = Limits()

    def __init__(  # noqa: PLR0917  (the names and their order are those of 5.0.1)
        self,
        name: str,
        value: str,
        event: str = "return",
        expires: datetime | None = None,
        custom: Mapping[str, Any] | None = None,
        mgr: Manager | None = None,
        *,
        when: str | None = None,
        limits: Limits | None = None,
        policy: Policy = "python",
    ) -> None:
        wanted: tuple[tuple[str, Any, type, str], ...] = (
            ("name", name, str, "a string"),
            ("value", value, str, "an expression in a string"),
            ("event", event, str, "a string"),
            ("when", "" if when is None else when, str, "an expression in a string"),
            ("custom", {} if custom is None else custom, Mapping, "a dict"),
            ("expires", datetime.now(UTC) if expires is None else expires, datetime, "a datetime"),
        )
        for field, given, kind, words in wanted:
            if not isinstance(given, kind):
                message = f"an instrument's {field} has to be {words}, not {given!r:.200}"
                raise InstrumentError(message)
        if not self.acts and type(self).act is not Instrument.act:
            message = (
                f"{type(self).__name__} overrides act(), which is called only of classes with "
                "acts = True; set that on the class"
            )
            raise InstrumentError(message)
        if self.acts and event not in ACTING_EVENTS:
            message = (
                f"{type(self).__name__} acts, which it can do on 'call' and on 'return', not on "
                f"{event!r}"
            )
            raise InstrumentError(message, code="unknown-event")
        if event not in EVENTS and not _LINE_EVENT.fullmatch(event):
            message = (
                f"there is no event {event!r}{suggest(event, EVENTS)}; "
                f"use one of {', '.join(EVENTS)}, line:N (a line of the file) or line:+K (K "
                "lines after the def)"
            )
            raise InstrumentError(message, code="unknown-event")
        self._rewrites: dict[object, Callable[[], None]] = {}
        self.name = name
        self.value = value
        self.event = event
        self.expires = expires
        self.custom = {} if custom is None else custom
        self.when = when
        self.limits = limits or Limits()
        self.policy: Policy = policy
        self.status = Status()
        self._mgr = mgr
        self._compiled: dict[str, tuple[Expression, CodeType, bool]] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.value!r}, event={self.event!r})"

    def __call__(self, function: F) -> F:
        """Attach to ``function`` (or static method, class method, property) and return it.

        Raises:
            TargetKindError: it has no Python function in it.
        """
        if _Defaults.attach is None:
            message = "import diagnose.probes before an instrument is used as a decorator"
            raise InstrumentError(message)
        _Defaults.attach(self, function)
        return function

    @property
    def custom(self) -> dict[str, Any]:
        """What the instrument was given as ``custom``; tags that are put into it count at once.

        Raises:
            ExpressionError: on a change, if the instrument is on a function and the new tags can't
                be used there; the old ones count on.
        """
        return self._custom

    @custom.setter
    def custom(self, custom: Mapping[str, Any]) -> None:
        self._custom = _Custom(custom)
        self._custom.changed = self._rewrite
        self._rewrite()

    def _rewrite(self) -> None:
        for rewrite in list(self._rewrites.values()):
            rewrite()

    @property
    def mgr(self) -> Manager:
        """The manager: namespace, sinks, tags, and the last word on errors."""
        if self._mgr is not None:
            return self._mgr
        # The one of the package, which stands below this module: whoever attaches makes it.
        default: Manager = importlib.import_module("diagnose").manager
        return default

    @mgr.setter
    def mgr(self, mgr: Manager | None) -> None:
        self._mgr = mgr

    @property
    def sinks(self) -> Sequence[Sink]:
        """Where metrics go: the manager's sinks."""
        return self.mgr.sinks

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know although nothing failed."""
        return (ACTS,) if self.acts else ()

    # --- to be overridden ---

    def fire(self, _globals: Mapping[str, Any], _locals: Mapping[str, Any]) -> None:
        """Serve one hit: evaluate, merge tags, emit.

        Args:
            _globals: those of the function, the very dict: do not change it.
            _locals: all names of the call; a mapping that is made when it is looked at.
        """
        value = self.evaluate(self.value, _globals, _locals)
        self.emit(self.name, value, self.merge_tags(_globals, _locals))

    def emit(self, name: str, value: Any, tags: Mapping[str, Any]) -> None:
        """Pass a value on; the base class has nowhere to pass it to."""

    def act(self, value: Any, names: Mapping[str, Any]) -> object:
        """Say what the function is to do; called at each hit of a class that has :attr:`acts`.

        Args:
            value: of the expression.
            names: all names of the call; a mapping that is made when it is looked at.

        Returns:
            None: go on as if nothing were there. On ``call``, before the body: a dict of
            parameters and the values that they are to have. On ``return``, also after an
            exception: ``Result(value)``. On both: ``Raise(error)``. What it *raises* is an error
            of the instrument, as everywhere, and changes nothing.
        """
        return None

    def evaluate(self, value: str, _globals: Mapping[str, Any], _locals: Mapping[str, Any]) -> Any:
        """Evaluate an expression under this instrument's policy.

        Raises:
            ExpressionError: it does not parse or is not admitted; besides, whatever
                evaluating it raises.
        """
        expression, code, is_flat = self._compiled.get(value) or self._compile(value)
        if is_flat and type(_globals) is dict and type(_locals) is Names:
            names = {**_locals, **expression.constants} if expression.constants else _locals
            return eval(code, _globals, names)  # noqa: S307  (the policy admitted it)
        namespace = self.mgr.global_namespace
        return eval(code, {**_globals, **namespace, **_locals, **expression.constants})  # noqa: S307

    def _compile(self, text: str) -> tuple[Expression, CodeType, bool]:
        tree = self._parse(text, "value")
        code = compile(ast.fix_missing_locations(ast.Expression(tree.tree)), text, "eval")
        # What is nested in it sees globals alone.
        is_flat = not any(isinstance(node, _NESTING) for node in ast.walk(tree.tree))
        self._compiled[text] = tree, code, is_flat
        return self._compiled[text]

    def merge_tags(self, _globals: Mapping[str, Any], _locals: Mapping[str, Any]) -> dict[str, Any]:
        """The manager's tags, overlaid by those of ``custom["tags"]``."""
        tags = dict(self.mgr.get_tags())
        own = self.custom.get("tags")
        if own:
            tags.update(self.evaluate(own, _globals, _locals))
        return tags

    def check_call(self, probe: Any, /, *args: Any, **kwargs: Any) -> bool:
        """Whether this call is to be served; asked before the body runs, with its arguments.

        Of a line it is asked when that is reached, without arguments.
        Override it with the slash too: the call may have a keyword ``probe``.
        """
        return self.mgr.check_call(probe, self, *args, **kwargs)

    def handle_error(self, probe: Any) -> None:
        """Called once when serving a hit raised, in an ``except`` block.

        Not in the program's thread, which goes on: in one of this library's, soon after.
        """
        self.mgr.handle_error(probe, self)

    def finish(self) -> None:
        """Called after each served hit."""

    # --- for probes ---

    def flush(self) -> None:
        """Bring buffered values to the sinks; nothing to do here."""

    def attached(self) -> None:
        """Called by a probe after arming."""

    def disarmed(self, hook: Hook) -> None:
        """Called when a hook that :meth:`plan` led to serves no more hits; also at a hit."""

    def detached(self) -> None:
        """Called by a probe when it is off its last function."""

    def follow_custom(self, attachment: object, rewrite: Callable[[], None]) -> None:
        """Have ``rewrite`` called when :attr:`custom` changes; a probe does so for its handlers."""
        self._rewrites[attachment] = rewrite

    def unfollow_custom(self, attachment: object) -> None:
        """Undo :meth:`follow_custom`; idempotent, also at a hit."""
        self._rewrites.pop(attachment, None)

    def reads_name(self, name: str) -> bool:
        """Whether one of its expressions reads a name of the call, such as ``hotspots``.

        Raises:
            ExpressionError: an expression that may do so can't be used.
        """
        texts = {"value": self.value, "when": self.when, "custom.tags": self.custom.get("tags")}
        return any(
            name in parsing(functools.partial(self._parse, text, field)).names
            for field, text in texts.items()
            if isinstance(text, str) and name in text
        )

    def _parse(self, text: object, field: str) -> Expression:
        namespace = self.mgr.global_namespace
        try:
            return expressions.parse(text, policy=self.policy, namespace=namespace)  # type: ignore[arg-type]
        except ExpressionError as error:
            message = f"{field} {shown(text, 100)}: {error}"
            raise type(error)(message, code=error.code) from error

    def plan(
        self,
        probe: Any,
        fail: Callable[[BaseException], bool],
        done: Callable[[], None],
        watch: Watch | None = None,
    ) -> Plan:
        """Say how a hit is served, for :func:`diagnose.handlers.write`."""
        own_tags = self.custom.get("tags")
        if own_tags is not None and not isinstance(own_tags, str):
            message = (
                f"custom.tags has to be an expression in a string, such as "
                f"\"{{'tier': user.tier}}\", not {own_tags!r}"
            )
            raise InstrumentError(message)
        delivery: Delivery
        if self.acts:
            delivery = Act(self.act)
        elif self._wants_everything():
            delivery = Fire(self.fire)
        else:
            delivery = self._delivery()
        is_used = type(delivery) is not Fire
        return Plan(
            delivery=delivery,
            value=self._expression(self.value, "value", is_used=is_used),
            tags=self._expression(own_tags, "custom.tags", is_used=is_used) if own_tags else None,
            get_tags=None if does_nothing(self.mgr.get_tags) else self.mgr.get_tags,
            when=None if self.when is None else self._parse(self.when, "when"),
            hit=self.status.hit.add,
            fail=fail,
            reject=self.status.tallies(),
            done=done,
            limits=self._own_limits(),
            allotment=self.allotment,
            check=self._check(probe),
            finish=None if _is_own(self, "finish") else self.finish,
            watch=watch,
        )

    def _expression(self, text: str, field: str, *, is_used: bool) -> Expression | None:
        """Parse an expression; one that only :meth:`fire` may use need not be one."""
        if is_used or (_is_own(self, "fire") and _is_own(self, "evaluate")):
            return self._parse(text, field)
        # Now, so that nothing is compiled at a hit.
        with contextlib.suppress(ExpressionError):
            return self._compile(text)[0]
        return None

    def _own_limits(self) -> Limits:
        limits = self.limits.over(self.default_limits)
        if limits.fleet_hits is None or self.allotment is not None:
            return limits
        # Nobody hands out hits: this process is the fleet.
        hits = limits.fleet_hits if limits.hits is None else min(limits.hits, limits.fleet_hits)
        return dataclasses.replace(limits, hits=hits)

    def _delivery(self) -> Delivery:
        """What becomes of a hit's value."""
        return Emit(self.emit, self.name)

    def _wants_everything(self) -> bool:
        return not all(_is_own(self, name) for name in ("fire", "evaluate", "merge_tags"))

    def _check(self, probe: Any) -> Callable[..., bool] | None:
        if _is_own(self, "check_call") and does_nothing(self.mgr.check_call):
            return None
        check = self.check_call

        def asked(args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> bool:
            return bool(check(probe, *args, **(kwargs or {})))

        return asked


def remaining_seconds(expires: datetime) -> float:
    """How long until ``expires``, by the system clock; naive means UTC."""
    if expires.tzinfo is None:
        expires = expires.replace(tzinfo=UTC)
    return (expires - datetime.now(UTC)).total_seconds()


def _is_own(instrument: Instrument, name: str) -> bool:
    """Whether a method is that of :class:`Instrument` itself, overridden nowhere."""
    method = getattr(instrument, name)
    return getattr(method, "__func__", None) is getattr(Instrument, name)


class _Custom(dict[str, Any]):
    """A dict that tells when it is changed."""

    changed: Callable[[], None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # copies and pickles are plain


def _telling(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    def change(self: _Custom, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        if self.changed is not None:
            self.changed()
        return result

    change.__name__ = name
    return change


for _name in (
    *("__delitem__", "__ior__", "__setitem__", "clear", "pop", "popitem", "setdefault", "update"),
):
    setattr(_Custom, _name, _telling(_name))

_NESTING = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


_doing_nothing: set[Any] = set()


def doing_nothing(function: F) -> F:
    """Say of a manager's method that it does nothing, so hits need not call it."""
    _doing_nothing.add(function)
    return function


def does_nothing(method: Any) -> bool:
    """Whether a manager's method is one of those; not one that overrides it, whatever its name."""
    function = getattr(method, "__func__", None)
    return any(function is each for each in _doing_nothing)
