"""What the command shows of specs, processes and the history."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from diagnose import specs as spec_documents
from diagnose.errors import SpecError
from diagnose.specs import FAILED_STATES
from diagnose.wording import shortened
from diagnose_mongo import documents
from diagnose_mongo.changes import difference
from diagnose_mongo.cli.output import ago, duration, shown
from diagnose_mongo.cli.progress import STYLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from diagnose_mongo.changes import Entry
    from diagnose_mongo.cli.output import Output

__all__ = ["history", "processes", "spec", "specs"]

_LONGEST_VALUE = 60
_ACTIONS = {"add": "green", "change": "yellow", "remove": "red"}


def specs(output: Output, found: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """All specs, a line each."""
    if not found:
        output.say("there are no specs; `diagnose add TARGET --value EXPRESSION` puts one in")
        return
    rows: list[tuple[str | tuple[str, str], ...]] = []
    for each in found:
        instrument = each.get("instrument")
        if not isinstance(instrument, dict):
            instrument = {}
        what = f"{shown(instrument.get('type', '?'))} {shown(instrument.get('event', 'return'))}"
        rows.append(
            (
                (shown(each[documents.ID]), "bold"),
                _short(each.get("target", "?")),
                (f"{what} (acts)", "yellow") if each.get("acts") is True else what,
                _states(each["states"]),
                _left(each, now),
                ago(each.get(documents.VERSION), now),
                _by(each),
            )
        )
    output.table(("ID", "TARGET", "INSTRUMENT", "PROCESSES", "LEFT", "CHANGED", "BY"), rows)


def _states(states: Mapping[str, int]) -> tuple[str, str]:
    text = ", ".join(f"{n} {state}" for state, n in sorted(states.items(), key=lambda e: -e[1]))
    style = "red" if FAILED_STATES & states.keys() else ""
    if len(states) == 1:
        style = STYLES.get(next(iter(states)), "")
    return text or "-", style


def _left(document: Mapping[str, Any], now: datetime) -> str:
    name = documents.name_of(documents.key_of(document[documents.ID]), document)
    try:
        left = spec_documents.parse(name, document, instrument_types=None).remaining(now)
    except SpecError:
        return "?"
    if left is None:
        return "forever"
    return duration(left.total_seconds()) if left > timedelta() else "over"


def _by(document: Mapping[str, Any]) -> str:
    marker = document.get(documents.CHANGED)
    if isinstance(marker, dict) and marker.get("version") == document.get(documents.VERSION):
        return shown(marker.get("by", "?"))
    return "(by hand)"


def spec(output: Output, document: Mapping[str, Any]) -> None:
    """A spec, a field a line."""
    fields = [(documents.ID, document[documents.ID])]
    fields += [(each["field"], each["new"]) for each in difference({}, document)]
    fields.append((documents.VERSION, document.get(documents.VERSION)))
    fields.append(("changed by", _by(document)))
    width = max(len(shown(field)) for field, _ in fields)
    for field, value in fields:
        output.say((f"{shown(field):<{width}}", "dim"), f"  {shown(value)}")
    counts: dict[str, int] = {}
    entries = document.get(documents.APPLIED)
    for entry in (entries if isinstance(entries, dict) else {}).values():
        state = str(entry.get("state", "?")) if isinstance(entry, dict) else "?"
        counts[state] = counts.get(state, 0) + 1
    text, style = _states(counts)
    output.say((f"{'processes':<{width}}", "dim"), "  ", (text, style))


def processes(output: Output, found: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """All processes that live, a line each."""
    if not found:
        output.say(
            "no process lives: start one with `diagnose run -- COMMAND`, or call "
            "diagnose_mongo.start() in it"
        )
        return
    rows: list[tuple[str | tuple[str, str], ...]] = []
    for each in found:
        labels = each.get("labels", {})
        figures = each.get("specs", ())
        errors = sum(figure.get("state") in FAILED_STATES for figure in figures)
        cost = sum(figure.get("cost") or 0.0 for figure in figures)
        rows.append(
            (
                (shown(each[documents.ID]), "bold"),
                *(shown(labels.get(name, "-")) for name in ("service", "env", "version")),
                shown(each.get("python", "?")),
                ago(each.get("since"), now),
                f"{duration(each['age'])} ago",
                str(len(figures)),
                (str(errors), "red" if errors else ""),
                f"{cost:.2%}",
            )
        )
    output.table(
        (
            "PROCESS",
            "SERVICE",
            "ENV",
            "VERSION",
            "PYTHON",
            "UP",
            "SEEN",
            "SPECS",
            "FAILED",
            "COST",
        ),
        rows,
    )


def history(output: Output, entries: Iterable[Entry], spec_id: str | None) -> None:
    """Changes, each with what was different after it."""
    is_empty = True
    for entry in entries:
        is_empty = False
        output.say(
            (f"{entry.at:%Y-%m-%d %H:%M:%S}Z  ", "dim"),
            (f"{entry.action:<6}", _ACTIONS.get(entry.action, "")),
            "  ",
            (shown(entry.spec_id), "bold"),
            f"  by {shown(entry.by or 'nobody knows whom')} ({shown(entry.via)})",
            *([(f"  nothing came of it: {shown(entry.failed)}", "red")] if entry.failed else ()),
        )
        if entry.action == "remove":
            continue
        for each in entry.difference:
            output.say(f"    {shown(each['field'])}: ", _change(each))
    if is_empty:
        about = "" if spec_id is None else f" about {spec_id!r}"
        output.say(f"nothing is recorded{about}")


def _change(each: Mapping[str, Any]) -> str:
    if "new" not in each:
        return f"{_short(each['old'])} taken out"
    if "old" not in each:
        return _short(each["new"])
    return f"{_short(each['old'])} → {_short(each['new'])}"


def _short(value: object) -> str:
    return shortened(shown(value), _LONGEST_VALUE)
