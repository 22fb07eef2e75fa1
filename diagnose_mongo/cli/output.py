"""Where the command writes to: for people, with colours in a terminal only; or JSON."""

from __future__ import annotations

import base64
import json
import re
import sys
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.text import Text

__all__ = ["Output", "ago", "duration", "shown"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class Output:
    """Standard output.

    Args:
        is_json: nothing but JSON is written.

    Attributes:
        is_json: as given.
        is_terminal: whether somebody looks at it, so that it may move and have colours.
    """

    def __init__(self, *, is_json: bool) -> None:
        self.is_json = is_json
        self.is_terminal = not is_json and sys.stdout.isatty()

    @cached_property
    def console(self) -> Console:
        """Of the terminal."""
        from rich.console import Console

        return Console(highlight=False)

    def json(self, value: object) -> None:
        """Write a document, on a line of its own."""
        print(json.dumps(_plain(value), ensure_ascii=False), flush=True)

    def say(self, *parts: str | tuple[str, str]) -> None:
        """Write a line for people, of texts and of texts with styles."""
        if self.is_terminal:
            self.console.print(self.text(*parts), soft_wrap=True)
        else:
            print("".join(part if isinstance(part, str) else part[0] for part in parts), flush=True)

    @staticmethod
    def text(*parts: str | tuple[str, str]) -> Text:
        """A piece of a line; what would move the cursor is shown as ``?``."""
        from rich.text import Text

        return Text.assemble(*parts)

    def table(
        self, headings: Sequence[str], rows: Iterable[Sequence[str | tuple[str, str]]]
    ) -> None:
        """Write a table for people; outside of a terminal nothing in it is cut or folded."""
        rows = list(rows)
        if self.is_terminal:
            from rich.table import Table

            table = Table(*headings, box=None, pad_edge=False, header_style="dim")
            for row in rows:
                table.add_row(*(self.text(cell) for cell in row))
            self.console.print(table)
            return
        lines = [headings, *([c if isinstance(c, str) else c[0] for c in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            print("  ".join(cells).rstrip())


def shown(value: object) -> str:
    """A value of a document in a line of text."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, datetime):
        text = _plain(value)
    elif value is None or isinstance(value, (bool, dict, list)):
        text = json.dumps(_plain(value), ensure_ascii=False)
    else:
        text = str(value)
    return _CONTROL.sub("?", text.replace("\n", "\\n").replace("\t", "\\t"))


def duration(seconds: float) -> str:
    """A duration, in the largest unit that fits."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def ago(moment: object, now: datetime) -> str:
    """How long ago something was, by the server's clock."""
    if not isinstance(moment, datetime):
        return "?"
    return duration((now - moment.replace(tzinfo=UTC)).total_seconds())


def _plain(value: Any) -> Any:
    """As JSON has it: dates in ISO 8601, other things that it does not know as texts."""
    if isinstance(value, dict):
        return {
            name if isinstance(name, str) else str(name): _plain(v) for name, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        naive = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        return f"{naive.isoformat(timespec='milliseconds')}Z"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and value - value != 0:  # JSON has neither infinity nor NaN
        return str(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)
