"""Dry runs: every process says what it would do with a spec, and does nothing."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from diagnose.errors import SpecError
from diagnose_mongo import changes, documents
from diagnose_mongo.cli import progress
from diagnose_mongo.cli.output import shown
from diagnose_mongo.rollouts import wait_for_rollout
from diagnose_mongo.store import SpecDocuments

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diagnose_mongo.cli.output import Output
    from diagnose_mongo.rollouts import Rollout
    from diagnose_mongo.store import Link

__all__ = ["rehearse"]

_LIFESPAN_MINUTES = 10
_LEFT_OUT = documents.WRITTEN | {
    documents.VERSION,
    "id",
    "stage",
    "canary",
    "enabled",
    "created_by",
}
_NAMED = 3


def rehearse(output: Output, link: Link, document: Mapping[str, Any], timeout: float) -> int:
    """Have every process try a spec, tell what they found, and leave nothing behind.

    Args:
        output: where to.
        link: to the specs.
        document: the spec, which may be one that is there.
        timeout: seconds.

    Returns:
        The exit code.
    """
    tried = {name: value for name, value in document.items() if name not in _LEFT_OUT}
    tried |= {
        documents.ID: f"check-{changes.new_id(str(document['target']))}",
        "validate": True,
        # If this is killed before it can take it away.
        "lifespan": max(_LIFESPAN_MINUTES, timeout / 60),
    }
    spec_id = tried[documents.ID]
    try:
        changes.add(link, tried, via="command")
        found = _wait(output, link, spec_id, timeout)
        answers = _answers(SpecDocuments(link).read(spec_id, with_outcomes=True) or {})
    finally:
        with contextlib.suppress(SpecError):  # it did not come so far, or somebody removed it
            changes.remove(link, spec_id, via="command")
    if output.is_json:
        told = progress.as_data(found)
        told.update(id=document[documents.ID], target=document["target"], answers=answers)
        output.json(told)
    else:
        _say(output, found, answers)
    return progress.exit_code(found)


def _wait(output: Output, link: Link, spec_id: object, timeout: float) -> Rollout:
    if not output.is_terminal:
        return wait_for_rollout(link, spec_id, timeout)
    with output.console.status("asking every process"):
        return wait_for_rollout(link, spec_id, timeout)


def _answers(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The distinct answers of processes, the most frequent first."""
    entries = document.get(documents.APPLIED)
    answers: dict[str, dict[str, Any]] = {}
    for process, entry in sorted((entries if isinstance(entries, dict) else {}).items()):
        if entry.get("lm") != document.get(documents.VERSION):
            continue
        answer = {
            name: entry[name]
            for name in ("state", "code", "err", "found", "warnings", "acts")
            if entry.get(name)
        }
        key = json.dumps(answer, sort_keys=True, default=str)
        answers.setdefault(key, {**answer, "processes": []})["processes"].append(process)
    return sorted(answers.values(), key=lambda each: -len(each["processes"]))


def _say(output: Output, found: Rollout, answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        processes = answer["processes"]
        names = ", ".join(processes[:_NAMED]) + (", …" if len(processes) > _NAMED else "")
        count = f"{len(processes)} process{'' if len(processes) == 1 else 'es'}"
        state = answer.get("state", "?")
        kind = f" {answer['code']}" if "code" in answer else ""
        output.say(f"{count}: ", (f"{state}{kind}", progress.STYLES.get(state, "")), f"  ({names})")
        if "err" in answer:
            output.say(f"  {shown(answer['err'])}")
        for name, value in answer.get("found", {}).items():
            output.say(f"  {name:<12} {_lines(value) if name == 'lines' else shown(value)}")
        for warning in answer.get("warnings", ()):
            output.say((f"  warning: {shown(warning)}", "yellow"))
    told = sum(len(each["processes"]) for each in answers)
    if found.processes > told or not found.processes:
        output.say(found.summary)
        for line, style in progress.notes(found):
            output.say((f"  {line}", style))


def _lines(numbers: list[int]) -> str:
    """Numbers of lines, as ranges."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ", ".join("-".join(map(str, each)) for each in ranges)
