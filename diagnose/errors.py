"""The errors that this library raises, in one tree.

Every error carries a stable ``code`` (what a spec's ``applied`` entry shows) and a
message with three parts: what failed, the value that was given, what to do next.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BreakpointError",
    "BreakpointTimeoutError",
    "DiagnoseError",
    "ExpressionError",
    "ExpressionNotAdmittedError",
    "ExpressionSyntaxError",
    "InstrumentError",
    "ProbeError",
    "ScheduleError",
    "ServerError",
    "SpecError",
    "StoreError",
    "TargetDriftedError",
    "TargetError",
    "TargetKindError",
    "TargetNotFoundError",
    "TargetNotImportedError",
    "UnknownNameError",
]


class DiagnoseError(Exception):
    """Base of everything that diagnose raises on purpose.

    Attributes:
        code: a short stable word for the kind of failure, such as
            ``"target-not-found"``; the same one that ``applied`` entries carry.
    """

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    @property
    def message(self) -> str:
        """The text, also where a standard base class would quote it."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return self.message


class TargetError(DiagnoseError):
    """A target path does not lead to something a probe can watch."""

    code = "target"


class TargetNotFoundError(TargetError, LookupError, AttributeError):
    """A part of the path does not exist; the message has near misses."""

    code = "target-not-found"


class TargetNotImportedError(TargetError, ImportError):
    """The module exists or may come to exist, but this process has not imported it."""

    code = "module-not-imported"


class TargetKindError(TargetError, TypeError):
    """The path leads to something that is no function (a module, a class, a number)."""

    code = "target-kind"


class TargetDriftedError(TargetError, ValueError):
    """The target's code is not the code that a fingerprint was taken of."""

    code = "drifted"


class ProbeError(DiagnoseError, RuntimeError):
    """A probe could not be put in place or taken back."""

    code = "probe"


class InstrumentError(DiagnoseError, ValueError):
    """An instrument was described wrongly (event, value, name, tags)."""

    code = "instrument"


class ExpressionError(DiagnoseError, ValueError):
    """A ``value``, ``when`` or ``custom.tags`` expression can't be used."""

    code = "expression"


class ExpressionSyntaxError(ExpressionError):
    """The expression does not parse."""

    code = "expression-syntax"


class ExpressionNotAdmittedError(ExpressionError):
    """The expression parses, but the policy does not admit something in it."""

    code = "expression-not-admitted"


class UnknownNameError(ExpressionError, NameError):
    """The expression uses a name that exists neither in the call nor around it."""

    code = "expression-name"


class BreakpointError(DiagnoseError, AssertionError):
    """A breakpoint was not reached as a test expected it."""

    code = "breakpoint"


class BreakpointTimeoutError(BreakpointError, TimeoutError, RuntimeError):
    """What a breakpoint was to wait for did not happen in time.

    To a test it is an ``AssertionError``, to a caller that stood too long a ``RuntimeError``.

    Attributes:
        where: where each thread stood when it was made, in lines of text; it may be long, so the
            message does not have it. The pytest plugin shows it.
    """

    code = "breakpoint-timeout"

    @property
    def where(self) -> str:
        """See the class."""
        return str(vars(self).get("_diagnose_where", ""))


class ScheduleError(DiagnoseError, AssertionError):
    """An order in which threads took turns had a wrong outcome.

    Attributes:
        report: of all that were run, a :class:`diagnose.breakpoints.ScheduleReport`; None where
            none of them could be judged.
    """

    code = "schedule"
    report: Any = None


class SpecError(DiagnoseError, ValueError):
    """A spec document has a missing, unknown or wrongly typed part."""

    code = "spec"


class StoreError(DiagnoseError, ConnectionError):
    """The store of specs (MongoDB) did not answer or refused."""

    code = "store"


class ServerError(DiagnoseError, RuntimeError):
    """No local MongoDB server could be found or started."""

    code = "server"
