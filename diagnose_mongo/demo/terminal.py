"""The demo in a terminal, with colours and a picture that moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from diagnose_mongo.demo.display import COLUMNS, Picture, cells, problems, states

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diagnose_mongo.demo.metrics import Row
    from diagnose_mongo.rollouts import Rollout

__all__ = ["TerminalDisplay"]

_BAR_CELLS = 24
_STYLES = {
    "waiting": "bright_black",
    "behind": "bright_black",
    "pending": "yellow",
    "installed": "cyan",
    "emitting": "green",
    "error": "red",
}
_STYLE_OF_OTHERS = "magenta"
_LEFT = (0, 0, 0, 3)


class TerminalDisplay:
    """See :class:`~diagnose_mongo.demo.display.Display`.

    Args:
        console: where to draw; for tests.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._settle()

    def heading(self, text: str) -> None:
        """Print it in bold."""
        self._print(Text(f"\n{text}", style="bold"))

    def say(self, text: str) -> None:
        """Print it, wrapped."""
        self._print(Padding(Text(text), _LEFT))

    def code(self, text: str, language: str = "python") -> None:
        """Print it with its syntax in colours."""
        # The terminal's own colours and background.
        syntax = Syntax(text, language, theme="ansi_dark", word_wrap=True)
        self._print(Padding(syntax, _LEFT))

    def draw(self, picture: Picture) -> None:
        """Draw it over the one before."""
        if self._live is None:
            # No thread that draws by itself: a terminal that is gone is noticed here.
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(Padding(_render(picture), _LEFT), refresh=True)

    def _print(self, what: RenderableType) -> None:
        self._settle()
        self._console.print(what)

    def _settle(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()


def _render(picture: Picture) -> RenderableType:
    parts: list[RenderableType] = []
    if picture.specs:
        parts.append(_render_specs(picture.specs))
    if picture.rows:
        parts.append(_render_rows(picture.rows))
    parts += [
        Text(line, style="bright_blue", no_wrap=True, overflow="ellipsis") for line in picture.log
    ]
    return Group(*parts)


def _render_specs(specs: Sequence[Rollout]) -> RenderableType:
    parts: list[RenderableType] = []
    width = max(len(str(found.spec_id)) for found in specs)
    for found in specs:
        line = Text(f"{found.spec_id!s:<{width}}  ", no_wrap=True, overflow="ellipsis")
        line.append_text(_bar(found))
        line.append(f"  {states(found)}")
        parts.append(line)
        for problem, processes in problems(found).items():
            text = Text(f"{processes} of {found.processes}: {problem}", style=_style("error"))
            parts.append(Padding(text, (0, 0, 0, width + 2)))
    return Group(*parts)


def _bar(found: Rollout) -> Text:
    """The processes side by side, each as wide as the others, coloured by state."""
    bar = Text()
    drawn = processes = 0
    for state, count in found.counts.items():
        processes += count
        cells_so_far = round(_BAR_CELLS * processes / found.processes)
        bar.append("━" * (cells_so_far - drawn), style=_style(state))
        drawn = cells_so_far
    return bar


def _style(state: str) -> str:
    return _STYLES.get(state, _STYLE_OF_OTHERS)


def _render_rows(rows: Sequence[Row]) -> RenderableType:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for name in COLUMNS:
        is_text = name in {"metric", "worker"}
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row), style="dim" if row.worker is not None else None)
    return table
