"""``end`` on 3.11: a call written into the byte code before each return.

The copy's code gets five instructions in front of every ``RETURN_VALUE`` (the value on
the stack stays below them) with the location of the return itself, so that tracebacks,
debuggers and coverage see the lines they saw before. Layout of the instructions:
https://docs.python.org/3.11/library/dis.html#opcode-CALL
"""

from __future__ import annotations

from sys import _getframe
from typing import TYPE_CHECKING, Any

from diagnose.errors import ProbeError
from diagnose.trampoline import copy_function

if TYPE_CHECKING:
    from types import CodeType, FunctionType

    from diagnose.internals import Fire, Watch

__all__ = ["make"]

_PLACE = "diagnose: the function to call before a return"


def _inject(code: CodeType) -> CodeType:
    from bytecode import Bytecode, Instr  # noqa: PLC0415  (a requirement on 3.11 only)

    listing = Bytecode.from_code(code, conserve_exception_block_stackdepth=True)
    injected: list[Any] = []
    for instruction in listing:
        if isinstance(instruction, Instr) and instruction.name == "RETURN_VALUE":
            where = instruction.location
            injected += [
                Instr("PUSH_NULL", location=where),
                Instr("LOAD_CONST", _PLACE, location=where),
                Instr("PRECALL", 0, location=where),
                Instr("CALL", 0, location=where),
                Instr("POP_TOP", location=where),
            ]
        injected.append(instruction)
    listing[:] = injected
    return listing.to_code()


class InjectionWatch:
    """See :class:`diagnose.internals.Watch`."""

    sees_errors = False
    coverage: str | None = None

    def __init__(self, function: FunctionType, code: CodeType) -> None:
        self._fire: Fire | None = None
        try:
            injected = _inject(code)
        except Exception as error:
            message = f"no call can be written into the code of {function!r}: {error}"
            raise ProbeError(message, code="end-unavailable") from error

        def at_return() -> None:
            fire = self._fire
            if fire is not None:
                fire(_getframe(1).f_locals)

        constants = tuple(
            at_return if isinstance(value, str) and value == _PLACE else value
            for value in injected.co_consts
        )
        self.original = copy_function(function, injected.replace(co_consts=constants))

    def arm(self, fire: Fire) -> None:
        self._fire = fire

    def disarm(self) -> None:
        self._fire = None


def make(function: FunctionType, code: CodeType) -> Watch:
    """Make a watch; raises ProbeError when the code can't be rewritten."""
    return InjectionWatch(function, code)
