"""How a rollout looks: bars by state in a terminal, else a line for each step; and what it means."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from diagnose.limits import ACTS
from diagnose_mongo.cli.output import shown
from diagnose_mongo.rollouts import rollout, wait_for_rollout

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Group

    from diagnose_mongo.cli.output import Output
    from diagnose_mongo.rollouts import Rollout
    from diagnose_mongo.store import Link

__all__ = ["COMPLETE", "FAILED", "TIMEOUT", "as_data", "exit_code", "follow", "view"]

COMPLETE, FAILED, TIMEOUT = 0, 1, 124

STYLES = {
    "emitting": "green",
    "installed": "cyan",
    "validated": "green",
    "done": "blue",
    "expired": "blue",
    "disabled": "blue",
    "pending": "yellow",
    "waiting": "yellow",
    "behind": "yellow",
    "error": "red",
    "drifted": "red",
    "suspended": "red",
}
_WIDTH = 40
_MEANING = {
    "waiting": "said nothing yet",
    "behind": "still shown another version",
    "pending": "not imported the module yet: it is applied at the import",
}


def exit_code(found: Rollout) -> int:
    """What the command ends with."""
    if not found.is_settled:
        return TIMEOUT
    return COMPLETE if found.is_complete else FAILED


def as_data(found: Rollout) -> dict[str, Any]:
    """The rollout for programs."""
    return {
        "id": found.spec_id,
        "version": found.version,
        "stage": found.stage,
        "state": found.state,
        "processes": found.processes,
        "counts": dict(found.counts),
        "failed": found.failed,
        "gone": found.gone,
        "failures": [
            {"code": each.code, "count": each.count, "examples": [dict(e) for e in each.examples]}
            for each in found.failures
        ],
        "error": found.error,
        "paused": found.paused,
        "acts": found.acts,
    }


def _processes(count: int) -> str:
    return f"{count} process" if count == 1 else f"{count} processes"


def notes(found: Rollout) -> list[tuple[str, str]]:
    """What there is to say beside the counts: lines, each with its style."""
    lines = []
    for failure in found.failures:
        example = failure.examples[0] if failure.examples else {}
        where = f", such as {example['process']}" if example else ""
        lines.append((f"{failure.code} in {_processes(failure.count)}{where}:", "red"))
        lines.append((f"  {shown(example.get('err') or 'no more is known')}", ""))
    if found.error is not None and not found.failures:
        lines.append((f"the document is no valid spec: {shown(found.error)}", "red"))
    for state, meaning in _MEANING.items():
        if count := found.counts.get(state, 0):
            verb = "has" if count == 1 else "have"
            lines.append((f"{_processes(count)} {verb} {meaning}", "yellow"))
    if found.paused is not None:
        lines.append((f"{found.paused}; `diagnose resume` puts them back", "yellow"))
    if found.acts:
        lines.append((ACTS, "yellow"))
    if found.stage is not None:
        lines.append((f"canary: {found.stage}", "cyan"))
    if found.gone:
        lines.append((f"{_processes(found.gone)} left an entry and live no more", "dim"))
    if not found.processes:
        lines.append(("`diagnose ps` lists those that live, with what they are selected by", "dim"))
    return lines


def view(output: Output, found: Rollout, elapsed: float | None = None) -> Group:
    """The rollout as a picture for a terminal."""
    from rich.console import Group
    from rich.padding import Padding

    style = {"complete": "bold green", "failed": "bold red"}.get(found.state, "bold yellow")
    since = "" if elapsed is None else f"  {elapsed:.1f} s"
    head = f"  {found.told} of {_processes(found.processes)}" if found.processes else ""
    word = found.state if found.processes else found.summary
    lines: list[Any] = [
        output.text((shown(found.spec_id), "bold"), "  ", (word, style), head, (since, "dim"))
    ]
    digits = len(str(found.processes))
    for state, count in found.counts.items():
        filled = max(1, round(count / found.processes * _WIDTH)) if count else 0
        lines.append(
            output.text(
                f"  {state:<10} ",
                ("█" * filled, STYLES.get(state, "")),
                ("░" * (_WIDTH - filled), "dim"),
                f"  {count:>{digits}}",
            )
        )
    for line, line_style in notes(found):
        text = line.lstrip()
        # Indented where it goes on in another line, too.
        indent = 2 + len(line) - len(text)
        lines.append(Padding(output.text((text, line_style)), (0, 0, 0, indent)))
    return Group(*lines)


def follow(
    output: Output, link: Link, spec_id: object, timeout: float, *, is_live: bool = True
) -> Rollout:
    """Wait for a rollout, and show how far it has come; what it was at the end stays.

    Args:
        output: where to.
        link: to the specs.
        spec_id: of the spec.
        timeout: seconds; 0: look once.
        is_live: show what comes before the end, too.
    """
    if not timeout or not is_live:
        found = wait_for_rollout(link, spec_id, timeout) if timeout else rollout(link, spec_id)
        if output.is_json:
            output.json(as_data(found))
        elif output.is_terminal:
            output.console.print(view(output, found))
        else:
            _say_plainly(output, found)
        return found
    began = time.monotonic()
    if output.is_json:
        return wait_for_rollout(
            link, spec_id, timeout, progress=_when_other(lambda new: output.json(as_data(new)))
        )
    if not output.is_terminal:

        def say(new: Rollout) -> None:
            output.say(f"{time.monotonic() - began:6.1f} s  {new.summary}")

        found = wait_for_rollout(link, spec_id, timeout, progress=_when_other(say))
        for line, _ in notes(found):
            output.say(f"          {line}")
        return found
    from rich.live import Live

    with Live(console=output.console, auto_refresh=False) as live:
        return wait_for_rollout(
            link,
            spec_id,
            timeout,
            progress=lambda new: live.update(
                view(output, new, time.monotonic() - began), refresh=True
            ),
        )


def _when_other(tell: Callable[[Rollout], None]) -> Callable[[Rollout], None]:
    last: list[object] = []

    def progress(new: Rollout) -> None:
        # Which processes are the examples is no news.
        news = [new.version, new.stage, dict(new.counts), new.gone]
        news += [(failure.code, failure.count) for failure in new.failures]
        if news != last:
            last[:] = news
            tell(new)

    return progress


def _say_plainly(output: Output, found: Rollout) -> None:
    output.say(f"{shown(found.spec_id)}: {found.summary}")
    for line, _ in notes(found):
        output.say(f"  {line}")
