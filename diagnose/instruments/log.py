"""A line of text for each hit."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from diagnose.instruments.base import Instrument
from diagnose.limits import Limits
from diagnose.sinks.standard import STANDARD_OUTPUT
from diagnose.wording import shortened

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LogInstrument"]


class Writable(Protocol):
    """Where lines go: a text stream, or a :class:`~diagnose.sinks.logging.LoggingSink`."""

    def write(self, text: str, /) -> object: ...


class LogInstrument(Instrument):
    """Writes ``Probe (NAME)[tags=TAGS] = VALUE``, one line a hit, at once.

    What takes several lines (``hotspots``) begins on the next one.

    At most 100 lines a second are written, unless ``limits`` says otherwise.

    Attributes:
        MAX_CHARS: the most characters of a value that are written; the rest becomes
            ``...``.
        out: anything with ``write(text)``; None: what ``sys.stdout`` is at that time, through a
            :class:`~diagnose.sinks.standard.StandardOutput`. Set it on the class, a subclass or
            an instance.
    """

    MAX_CHARS: ClassVar[int] = 2000
    default_limits: ClassVar[Limits] = Limits(rate=100)
    out: Writable | None = None

    def emit(self, name: str, value: Any, tags: Mapping[str, Any]) -> None:
        """Write the line; what ``out`` raises disarms the instrument."""
        out = self.out if self.out is not None else STANDARD_OUTPUT
        text = _picture(value, self.MAX_CHARS)
        # A table begins on a line of its own, so that its columns stand below each other.
        is_table = "\n" in text and not isinstance(value, str) and text[0] != "\n"
        gap = "\n" if is_table else ""
        out.write(f"Probe ({name})[tags={dict(tags)}] = {gap}{text}\n")

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines that were lost."""
        if self.out is None and STANDARD_OUTPUT.lost:
            return ("standard output is closed, full or not read: lines were lost",)
        return ()

    def attached(self) -> None:
        """See to it that there is a thread that writes."""
        if self.out is None:
            STANDARD_OUTPUT.begin(self)

    def detached(self) -> None:
        """Leave what is not written yet to that thread."""
        STANDARD_OUTPUT.end(self)


_SIZED = (list, tuple, dict, set, frozenset)


def _picture(value: object, most: int) -> str:
    """A value as text of at most ``most`` characters.

    A large container is not written out to be cut afterwards: a log line must not cost
    what its value happens to hold.
    """
    if type(value) in _SIZED and len(value) > most // 8:  # type: ignore[arg-type]
        short = reprlib.Repr()
        short.maxlist = short.maxtuple = short.maxdict = most // 8
        short.maxset = short.maxfrozenset = most // 8
        short.maxstring = short.maxother = short.maxlong = most
        text = short.repr(value)
    else:
        text = str(value)
    return shortened(text, most)
