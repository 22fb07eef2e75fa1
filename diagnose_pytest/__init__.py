"""The pytest plugin: fixtures that undo themselves, and where each thread stands on a timeout.

pytest finds it by its entry point, so that installing this library is all; ``-p no:diagnose``
switches it off.

It is a package beside ``diagnose``, not a module in it: pytest imports it at the start of every
run, before coverage is measured, and a module of ``diagnose`` would import all of ``diagnose``.
Here that is imported when a fixture is used.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from diagnose.breakpoints import Breakpoint, Call
    from diagnose.breakpoints.conditions import Condition
    from diagnose.instruments import Instrument, ProbeTestInstrument

__all__ = ["BreakpointAt", "Probe", "Sensor", "breakpoint_at", "probe", "sensor"]

TITLE = "where each thread stands"
_STACKS = "diagnose.breakpoints.stacks"

# --- fixtures ---------------------------------------------------------------------------------


class BreakpointAt(Protocol):
    """What the fixture ``breakpoint_at`` is."""

    def __call__(
        self,
        target: object,
        event: str = "call",
        condition: Condition | Sequence[Condition] = None,
        timeout: float = 10.0,
        fire: Callable[[Call], object] | None = None,
    ) -> Breakpoint:
        """Enter a breakpoint; the arguments are those of ``Breakpoint``."""


class Sensor(Protocol):
    """What the fixture ``sensor`` is."""

    def __call__(
        self, target: str, value: str = "result", event: str = "return"
    ) -> ProbeTestInstrument:
        """Watch a target; its ``results`` are the values that were seen."""


class Probe(Protocol):
    """What the fixture ``probe`` is."""

    def __call__(
        self,
        target: str,
        instrument: Instrument | str,
        event: str | None = None,
        *,
        name: str | None = None,
    ) -> Instrument:
        """Put an instrument on a target; for a value's text, a log instrument is made."""


class _Made:
    """What the fixtures of a test made: it is left in the reverse order of its making."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self._holding = contextlib.ExitStack()
        self.instruments: list[Instrument] = []
        self.was_run = False

    def enter(self, bp: Breakpoint, caller: FrameType) -> None:
        """Enter a breakpoint; what leaving it raises points to the line that made it."""
        line = caller.f_lasti, caller.f_lineno
        bp.__enter__()

        def leave(
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None:
            try:
                bp.__exit__(kind, error, trace)
            except BaseException as other:
                if other is not error:
                    there = TracebackType(None, caller, *line)
                    other.__traceback__ = _theirs(other.__traceback__) or there
                raise

        self.stack.push(leave)
        self._holding.callback(bp.disarm)

    def leave(self, error: BaseException | None) -> None:
        """Undo all; raise what there is to say, or note it on the test's own error."""
        __tracebackhide__ = True
        kind, trace = type(error) if error else None, error.__traceback__ if error else None
        stack = self.stack.pop_all()
        # First of all everybody is let go: a thread that one breakpoint started may stand at
        # another one, and nobody would release it while its end is waited for.
        stack.callback(self._holding.pop_all().close)
        if error is not None:
            for each in self.instruments:
                # An expression that fails disarms its instrument: no results is what a test sees.
                if each.status.error:
                    error.add_note(f"{each!r}: {each.status.error}")
        self.instruments.clear()
        try:
            stack.__exit__(kind, error, trace)
        except BaseException as other:
            if other is not error:
                other.__traceback__ = _theirs(other.__traceback__)
                raise


_MADE = pytest.StashKey[_Made]()
_WHERE = pytest.StashKey[str]()


# A test suite with a fixture of the same name gets its own.
@pytest.fixture(name="_diagnose_made")
def _fixture_made(request: pytest.FixtureRequest) -> Iterator[_Made]:
    made = request.node.stash[_MADE] = _Made()
    yield made
    # Usually nothing is left: pytest_runtest_call did it. What a finalizer made is; or all, of a
    # test that was not run since another fixture failed: then that is what there is to say.
    made.leave(None if made.was_run else RuntimeError("the test was not run"))


@pytest.fixture
def breakpoint_at(_diagnose_made: _Made) -> BreakpointAt:
    """Stop the callers of a function until the end of the test, in place of ``with Breakpoint``.

    It takes what ``diagnose.breakpoints.Breakpoint`` takes, and returns one that is entered. At
    the end of the test, however it ends, those who stand are let go, and the threads that were
    started have ended; a condition that no call met, or a thread's error, fails the test.

    It is for threads. A test that is a coroutine uses ``async with Breakpoint(...)``.
    """

    def enter(
        target: Any,
        event: str = "call",
        condition: Condition | Sequence[Condition] = None,
        timeout: float = 10.0,
        fire: Callable[[Call], object] | None = None,
    ) -> Breakpoint:
        from diagnose.breakpoints import Breakpoint  # noqa: PLC0415 - see the module

        __tracebackhide__ = True
        made = Breakpoint(target, event, condition, timeout, fire)
        _diagnose_made.enter(made, sys._getframe(1))
        return made

    return enter


@pytest.fixture
def sensor(_diagnose_made: _Made) -> Sensor:
    """Watch a function until the end of the test, in place of ``with diagnose.sensor``.

    What is returned keeps the value of an expression at each call, in ``results``.
    """

    def watch(target: str, value: str = "result", event: str = "return") -> ProbeTestInstrument:
        import diagnose  # noqa: PLC0415 - see the module

        __tracebackhide__ = True
        seen = _diagnose_made.stack.enter_context(diagnose.sensor(target, value, event=event))
        _diagnose_made.instruments.append(seen)
        return seen

    return watch


@pytest.fixture
def probe(_diagnose_made: _Made) -> Probe:
    """Put an instrument on a function until the end of the test; returns it.

    With a value's text in place of an instrument it writes a line at each call, which pytest
    shows if the test fails: ``probe("shop.cart.Cart.checkout", "(self.user, result)")``. Then
    ``event`` and ``name`` are those of the log instrument.
    """

    def attach(
        target: str,
        instrument: Instrument | str,
        event: str | None = None,
        *,
        name: str | None = None,
    ) -> Instrument:
        import diagnose  # noqa: PLC0415 - see the module
        from diagnose import targets  # noqa: PLC0415

        __tracebackhide__ = True
        if isinstance(instrument, str):
            name = target.rpartition(".")[2] if name is None else name
            instrument = diagnose.LogInstrument(name, instrument, event or "return")
        elif event is not None or name is not None:
            message = "event and name are given to the instrument where it is made, not to probe()"
            raise TypeError(message)
        targets.resolve(target, import_modules=True)
        on = diagnose.attach_to(target)
        key = f"pytest:{id(instrument)}"
        on.attach(key, instrument)
        _diagnose_made.stack.callback(on.detach, key)
        _diagnose_made.instruments.append(instrument)
        return instrument

    return attach


# Innermost: what is printed on leaving is captured as the test's.
@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Leave what the fixtures made while the test can still fail by it."""
    __tracebackhide__ = True
    try:
        result = yield
    except BaseException as error:
        # Before anything is left: those who stand still do so.
        if _is_timeout(error):
            _note(item, error)
        _leave(item, error)
        if _is_ours(error) and not item.config.getoption("fulltrace"):
            # What went wrong is in the message, and where is the test's line.
            error.__traceback__ = _theirs(error.__traceback__) or error.__traceback__
        raise
    _leave(item, None)
    return result


def _is_ours(error: BaseException) -> bool:
    """Whether it is an error of this library, which need not have been imported."""
    errors = sys.modules.get("diagnose.errors")
    return errors is not None and isinstance(error, errors.DiagnoseError)


def _leave(item: pytest.Item, error: BaseException | None) -> None:
    __tracebackhide__ = True
    # The test may have asked for a fixture by its name, while it ran.
    made = item.stash.get(_MADE, None)
    if made is not None:
        made.was_run = True
        made.leave(error)


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of this library, which lead to nothing in the test."""
    kept: list[TracebackType] = []
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        is_ours = module.startswith(("diagnose.", "diagnose_pytest"))
        # The stack of what is to be left; further in it is the program's.
        if not is_ours and (kept or module != "contextlib"):
            kept.append(trace)
        trace = trace.tb_next
    made: TracebackType | None = None
    for each in reversed(kept):
        made = TracebackType(made, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return made


# --- the report -------------------------------------------------------------------------------

# As pytest-timeout begins what it fails a test with.
_TIMED_OUT = re.compile(r"Timeout [(>]")


def _is_timeout(error: BaseException) -> bool:
    if isinstance(error, pytest.fail.Exception):
        return _TIMED_OUT.match(str(error)) is not None
    return isinstance(error, TimeoutError)


def _note(item: pytest.Item, error: BaseException) -> None:
    if isinstance(error, pytest.fail.Exception) and item.stash.get(_WHERE, ""):
        return  # by the signal's handler, which saw more
    from diagnose.errors import ProbeError  # noqa: PLC0415 - see the module

    try:
        from diagnose.breakpoints.stacks import note_where  # noqa: PLC0415
    except ProbeError:  # a Python whose byte code is not known has no breakpoints
        return
    note_where(error, is_passing=True)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, Any, Any]:
    """Look at the threads when pytest-timeout's signal comes, before it raises.

    When what it raises gets here, ``with`` blocks on its way have let threads go on.
    """
    result = yield
    if getattr(settings, "method", None) != "signal":
        return result
    raising: Any = signal.getsignal(signal.SIGALRM)
    if not callable(raising):
        return result

    def look_and_raise(number: int, frame: Any) -> None:
        __tracebackhide__ = True
        # Not imported here: a signal comes in the middle of anything, an import too.
        stacks = sys.modules.get(_STACKS)
        # While its module is being imported there is no such function yet.
        look = getattr(stacks, "where_all_stand", None)
        try:
            if look is not None:
                item.stash[_WHERE] = look()
        finally:
            raising(number, frame)

    signal.signal(signal.SIGALRM, look_and_raise)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add where each thread stood to the report of a test that was timed out."""
    report = yield
    if call.excinfo is not None and report.failed:
        text = _where(item, call.excinfo.value)
        if text:
            report.sections.append((TITLE, text))
    return report


def _where(item: pytest.Item, error: BaseException) -> str:
    """The first text that is found on an error, on its causes, on those in its group."""
    stacks = sys.modules.get(_STACKS)
    left, seen = [error], set()
    while left:
        one = left.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, pytest.fail.Exception) and _is_timeout(one):
            text = item.stash.get(_WHERE, "")
            if text:
                return text
        if stacks is not None and (text := stacks.where_noted(one)):
            return str(text)
        context = None if one.__suppress_context__ else one.__context__
        left += [each for each in (one.__cause__, context) if each is not None]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions
    return ""
