"""What the command's doctor looks at: whatever may keep probes from working, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from diagnose.errors import StoreError
from diagnose.specs import FAILED_STATES
from diagnose_mongo import documents
from diagnose_mongo.cli.output import shown
from diagnose_mongo.store import ControlStore, Inspector, ProcessStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diagnose_mongo.cli.output import Output
    from diagnose_mongo.store import Link

__all__ = ["examine"]

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}
_OLDEST = (5, 0)
_CLOCKS_DIFFER_SECONDS = 10.0
_SLOW_SECONDS = 0.5
_BESIDE = ("processes", "control", "budgets", "history")
_INDEXES = {"specs": documents.POLL_INDEX, "processes": "expires_1", "history": "at_-1__id_-1"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        grade: ``ok``, ``warn`` or ``fail``.
        what: what was looked at.
        text: what was found.
        advice: what to do; empty: nothing.
    """

    grade: str
    what: str
    text: str
    advice: str = ""


def examine(output: Output, link: Link) -> int:
    """Look at all of it, and tell; 1 if something does not work."""
    findings = []
    for finding in _findings(link):
        findings.append(finding)
        if not output.is_json:
            output.say(
                (f"{finding.grade:<4}", _STYLES[finding.grade]),
                f"  {finding.what:<12} {shown(finding.text)}",
            )
            if finding.advice:
                output.say(f"{'':19}→ {finding.advice}")
    is_well = all(finding.grade != "fail" for finding in findings)
    if output.is_json:
        output.json({"ok": is_well, "findings": [asdict(each) for each in findings]})
    return 0 if is_well else 1


def _findings(link: Link) -> Iterator[Finding]:
    inspector = Inspector(link)
    try:
        yield from _server(inspector)
    except StoreError as exc:
        yield Finding(
            "fail",
            "server",
            exc.message.partition(";")[0],
            "say where MongoDB is with --uri or DIAGNOSE_MONGODB_URI, with user and password",
        )
        return
    looks = {
        "rights": _rights(inspector, link),
        "indexes": _indexes(inspector),
        "fleet": _fleet(link),
        "specs": _specs(inspector),
    }
    for what, look in looks.items():
        try:
            yield from look
        except StoreError as exc:
            # Without a right; what is missing was said already.
            yield Finding("warn", what, exc.message)


def _server(inspector: Inspector) -> Iterator[Finding]:
    facts = inspector.server()
    is_slow = facts.round_trip > _SLOW_SECONDS
    yield Finding(
        "warn" if is_slow else "ok",
        "server",
        f"answers in {facts.round_trip * 1000:.1f} ms",
        "polls are as slow: is it far away, or overloaded?" if is_slow else "",
    )
    is_old = tuple(map(int, facts.version.split(".")[:2])) < _OLDEST
    oldest = ".".join(map(str, _OLDEST))
    yield Finding(
        "fail" if is_old else "ok",
        "version",
        f"MongoDB {facts.version}",
        f"diagnose is tested with MongoDB {oldest} and newer: upgrade" if is_old else "",
    )
    if facts.replica_set is None:
        yield Finding(
            "warn",
            "replica set",
            "none: without one, changes are found by polls only, and a crash may lose writes",
            "start mongod with --replSet; one member is enough",
        )
    else:
        yield Finding("ok", "replica set", facts.replica_set)
    differs = abs(facts.ahead) > _CLOCKS_DIFFER_SECONDS
    yield Finding(
        "warn" if differs else "ok",
        "clock",
        f"the server's is {abs(facts.ahead):.1f} s {'ahead of' if facts.ahead > 0 else 'behind'} "
        "this machine's",
        "set lastmodified with $currentDate, or with this command: the server's clock counts"
        if differs
        else "",
    )


def _rights(inspector: Inspector, link: Link) -> Iterator[Finding]:
    if not inspector.may("specs", write=False):
        yield Finding(
            "fail",
            "rights",
            f"this user may not read {link.collection.full_name}",
            "give it one of the roles of `diagnose install --roles`",
        )
        return
    unread = [name for name in _BESIDE if not inspector.may(name, write=False)]
    unwritten = [
        name for name in ("specs", "control", "history") if not inspector.may(name, write=True)
    ]
    if unread:
        yield Finding(
            "warn",
            "rights",
            f"this user may not read {', '.join(unread)}",
            "give it the role diagnoseViewer of `diagnose install --roles`",
        )
    if unwritten:
        yield Finding(
            "warn",
            "rights",
            f"this user may look, and may not change {', '.join(unwritten)}",
            "to add, remove and pause it needs the role diagnoseOperator",
        )
    if not (unread or unwritten):
        yield Finding("ok", "rights", "this user may read and change all that it needs")


def _indexes(inspector: Inspector) -> Iterator[Finding]:
    missing = [
        f"{name}.{index}"
        for name, index in _INDEXES.items()
        if index not in (inspector.indexes(name) or ())
    ]
    if not inspector.has_validator():
        missing.append("the validator of specs")
    if missing:
        text = f"missing: {', '.join(missing)}"
        yield Finding("warn", "indexes", text, "run `diagnose install` once")
    else:
        yield Finding("ok", "indexes", "all there, and specs are validated")


def _fleet(link: Link) -> Iterator[Finding]:
    living = ProcessStore(link).living()
    control = ControlStore(link).read()
    if not living:
        yield Finding(
            "warn",
            "processes",
            "none lives",
            "start one with `diagnose run -- COMMAND`, or call diagnose_mongo.start() in it; "
            "the same --uri, --database and --collection?",
        )
    else:
        yield Finding("ok", "processes", f"{len(living)} live{'s' if len(living) == 1 else ''}")
        if control.holder in living:
            yield Finding("ok", "chores", f"done by {control.holder}")
        else:
            yield Finding(
                "warn",
                "chores",
                "no process that lives does them: the dead stay listed, canaries stand still",
                "it takes one heartbeat (30 s) after a crash; later, see the workers' logs",
            )
    if control.paused is not None:
        yield Finding("warn", "paused", control.paused, "`diagnose resume` puts the probes back")


def _specs(inspector: Inspector) -> Iterator[Finding]:
    found = inspector.specs()
    failed = [shown(each[documents.ID]) for each in found if FAILED_STATES & each["states"].keys()]
    if failed:
        some = ", ".join(failed[:5]) + (", …" if len(failed) > len(failed[:5]) else "")
        yield Finding(
            "warn",
            "specs",
            f"{len(failed)} of {len(found)} failed somewhere: {some}",
            f"`diagnose status {failed[0]}` says why",
        )
    else:
        yield Finding("ok", "specs", f"{len(found)}, and none failed")
