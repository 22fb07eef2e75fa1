"""The verbs of the command. What takes long to import is imported where it is used."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from diagnose.errors import DiagnoseError, SpecError
from diagnose_mongo import documents, settings
from diagnose_mongo.cli.options import (
    COMMON,
    DURATION,
    INSTRUMENT,
    Common,
    Instrument,
    Timeout,
    UsageError,
)
from diagnose_mongo.cli.output import duration, shown

__all__ = ["run_command"]

_FAILED, _USAGE = 1, 2

app = App(
    name="diagnose",
    help="Probes for running Python programs: put them in, follow them, look at the fleet.",
    help_epilogue="Every verb has --help, and -o json for programs.",
    version_flags=[],
    result_action="return_value",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


def run_command(arguments: Sequence[str]) -> int:
    """Run a verb; its exit code."""
    try:
        if not arguments:
            app.help_print()
            return _USAGE
        result = app(arguments, exit_on_error=False, print_error=False)
    except (CycloptsError, UsageError) as exc:
        command = f"diagnose {arguments[0]}" if arguments[0] in app else "diagnose"
        text = " ".join(str(exc).split()).partition(" Available commands")[0].rstrip(".")
        print(f"{command}: {text}; see `{command} --help`", file=sys.stderr)
        return _USAGE
    except DiagnoseError as exc:
        print(f"diagnose: {shown(exc.message)}", file=sys.stderr)
        return _FAILED
    return result if isinstance(result, int) else 0


# --- specs --------------------------------------------------------------------------------------


@app.command
def add(
    target: str,
    /,
    *,
    instrument: Instrument = INSTRUMENT,
    id: str | None = None,
    dry_run: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    wait: Annotated[bool, Parameter(show_default=False)] = True,
    timeout: Timeout = 60.0,
    common: Common = COMMON,
) -> int:
    """Put a probe on a function, and follow it over the fleet.

    The first line of what it prints is the spec's id.

    Args:
        target: the dotted path of a function, such as shop.cart.Cart.checkout.
        id: what the spec is to be called; without it, one is made up.
        dry_run: have every process check it, and arm nothing; see `check`.
        wait: follow the rollout; --no-wait ends as soon as the spec is there.
        timeout: how long to follow it: 90s, 10m; a plain number is seconds.
    """
    from diagnose_mongo import changes
    from diagnose_mongo.cli import progress
    from diagnose_mongo.cli.dry_run import rehearse

    out = common.out()
    document = instrument.document(target, id or changes.new_id(target))
    with common.link() as link:
        if dry_run:
            return rehearse(out, link, document, timeout)
        made = changes.add(link, document, via="command")
        if not out.is_json:
            print(made.spec_id, flush=True)
        data: dict[str, Any] = {"id": made.spec_id, "version": made.version}
        code = progress.COMPLETE
        if wait:
            if out.is_json:
                from diagnose_mongo.rollouts import wait_for_rollout

                found = wait_for_rollout(link, made.spec_id, timeout)
                data["rollout"] = progress.as_data(found)
            else:
                found = progress.follow(out, link, made.spec_id, timeout)
            code = progress.exit_code(found)
            _say_if_late(code, made.spec_id, timeout)
        if out.is_json:
            out.json(data)
    return code


def _say_if_late(code: int, spec_id: object, timeout: float) -> None:
    from diagnose_mongo.cli.progress import TIMEOUT

    if code == TIMEOUT and timeout:
        print(
            f"diagnose: the rollout was not over after {duration(timeout)}; go on waiting with "
            f"`diagnose status {spec_id} --watch`",
            file=sys.stderr,
        )


@app.command
def ls(*, common: Common = COMMON) -> int:
    """List all specs, the last changed first, with what became of them."""
    from diagnose_mongo.cli import tables
    from diagnose_mongo.store import ControlStore, Inspector

    out = common.out()
    with common.link() as link:
        found = Inspector(link).specs()
        if out.is_json:
            out.json(found)
        else:
            tables.specs(out, found, link.clock().now())
            if (paused := ControlStore(link).read().paused) is not None:
                out.say((paused, "yellow"))
    return 0


@app.command
def get(id: str, /, *, common: Common = COMMON) -> int:
    """Show a spec.

    Args:
        id: of the spec.
    """
    from diagnose_mongo.cli import tables
    from diagnose_mongo.store import SpecDocuments

    out = common.out()
    with common.link() as link:
        document = SpecDocuments(link).read(_raw_id(link, id), with_outcomes=True)
        if document is None:
            raise _no_spec(link, id)
        if out.is_json:
            out.json(document)
        else:
            tables.spec(out, document)
    return 0


@app.command
def rm(*ids: str, common: Common = COMMON) -> int:
    """Remove specs: every process takes their probes off.

    Args:
        ids: of the specs.
    """
    from diagnose_mongo import changes

    if not ids:
        raise UsageError("say which specs, by their ids; `diagnose ls` lists them")
    out, removed, missing = common.out(), [], None
    with common.link() as link:
        for each in dict.fromkeys(ids):
            try:
                changes.remove(link, _raw_id(link, each), via="command")
            except SpecError as exc:
                if exc.code != "spec-not-found":
                    raise
                print(f"diagnose: {exc.message}", file=sys.stderr)
                missing = each
                continue
            removed.append(each)
            if not out.is_json:
                out.say(f"{each} is removed")
        if out.is_json:
            out.json({"removed": removed})
    return 0 if missing is None else _FAILED


@app.command
def status(
    id: str,
    /,
    *,
    watch: Annotated[
        bool, Parameter(name=["--watch", "-w"], negative="", show_default=False)
    ] = False,
    timeout: Annotated[float | None, DURATION] = None,
    common: Common = COMMON,
) -> int:
    """Show how far a spec has come over the fleet.

    It ends with 0 if every process has it, with 1 if it failed in some, and with 124 if some have
    not said what became of it.

    Args:
        id: of the spec.
        watch: go on until every process has said what became of it.
        timeout: for so long at most: 90s, 10m; a plain number is seconds. Without --watch it
            waits too, and shows the end only. With --watch it is 60s unless set.
    """
    from diagnose_mongo.cli import progress

    out = common.out()
    seconds = (60.0 if watch else 0.0) if timeout is None else timeout
    with common.link() as link:
        raw_id = _raw_id(link, id)
        found = progress.follow(out, link, raw_id, seconds, is_live=watch)
    code = progress.exit_code(found)
    _say_if_late(code, id, seconds)
    return code


@app.command
def check(
    target: Annotated[str, Parameter(metavar="ID|TARGET")],
    /,
    *,
    instrument: Instrument = INSTRUMENT,
    timeout: Timeout = 60.0,
    common: Common = COMMON,
) -> int:
    """Try a spec on every process it is meant for, without arming anything.

    Args:
        target: the id of a spec, or the dotted path of a function; then the options say the rest.
        timeout: how long to wait for answers: 90s, 10m; a plain number is seconds.
    """
    from dataclasses import replace

    from diagnose_mongo import changes
    from diagnose_mongo.cli.dry_run import rehearse
    from diagnose_mongo.store import SpecDocuments

    out = common.out()
    with common.link() as link:
        specs = SpecDocuments(link)
        raw_id = specs.raw_id(target)
        document = None if raw_id is None else specs.read(raw_id, with_outcomes=True)
        if document is None:
            if "." not in target:
                raise _no_spec(link, target)
            if instrument.value is None:
                # Whether the function is there can be asked without knowing what to record.
                instrument = replace(instrument, value="None")
            document = instrument.document(target, changes.new_id(target))
        elif instrument != INSTRUMENT:
            raise UsageError(
                f"{target!r} is a spec, which is tried as it is; leave the other options out"
            )
        return rehearse(out, link, document, timeout)


def _raw_id(link: Any, text: str) -> Any:
    from diagnose_mongo.store import SpecDocuments

    found = SpecDocuments(link).raw_id(text)
    if found is None:
        raise _no_spec(link, text)
    return found


def _no_spec(link: Any, text: str) -> SpecError:
    import difflib

    from diagnose_mongo.store import SpecStore

    known = [str(raw_id) for raw_id, _ in SpecStore(link).versions()]
    near = difflib.get_close_matches(text, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "; `diagnose ls` lists those that are there"
    return SpecError(
        f"there is no spec {text!r} in {link.collection.full_name!r}{hint}", code="spec-not-found"
    )


@app.command
def history(
    id: str | None = None,
    /,
    *,
    limit: int = 20,
    common: Common = COMMON,
) -> int:
    """Show what was changed, by which user, the latest first.

    Args:
        id: of a spec, which may be gone; without it, of all.
        limit: so many changes at most.
    """
    from dataclasses import asdict

    from diagnose_mongo import changes
    from diagnose_mongo.cli import tables
    from diagnose_mongo.store import SpecDocuments

    if limit < 1:
        raise UsageError(f"--limit must be a number above 0, not {limit}")
    out = common.out()
    with common.link() as link:
        raw_id = None if id is None else SpecDocuments(link).raw_id(id)
        entries = changes.history(link, id if raw_id is None else raw_id, limit)
    if out.is_json:
        out.json([{"id": e.pop("spec_id"), **e} for e in map(asdict, entries)])
    else:
        tables.history(out, entries, id)
    return 0


# --- the fleet ----------------------------------------------------------------------------------


@app.command
def ps(*, common: Common = COMMON) -> int:
    """List the processes that live."""
    from diagnose_mongo.cli import tables
    from diagnose_mongo.store import ProcessStore

    out = common.out()
    with common.link() as link:
        found = ProcessStore(link).all()
        if out.is_json:
            out.json([{"id": each.pop(documents.ID), **each} for each in found])
        else:
            tables.processes(out, found, link.clock().now())
    return 0


@app.command
def pause(*, reason: str | None = None, common: Common = COMMON) -> int:
    """Take all probes off, in every process, until `resume`.

    Args:
        reason: why; every process says it in its entries.
    """
    from diagnose_mongo.changes import who

    return _steer(common, {"paused": True, "by": who(), "reason": reason})


@app.command
def resume(*, common: Common = COMMON) -> int:
    """Put the probes back that `pause` took off."""
    return _steer(common, {"paused": None, "by": None, "reason": None})


def _steer(common: Common, fields: dict[str, Any]) -> int:
    from diagnose_mongo.store import ControlStore, ProcessStore

    out = common.out()
    with common.link() as link:
        controls = ControlStore(link)
        was_paused = controls.read().paused is not None
        controls.set(fields)
        paused = controls.read().paused
        count = ProcessStore(link).count()
    if out.is_json:
        out.json({"paused": paused is not None, "reason": paused, "processes": count})
    elif paused is not None:
        out.say(f"{paused}; {count} processes follow with their next poll")
    elif was_paused:
        out.say(f"the fleet goes on; {count} processes follow with their next poll")
    else:
        out.say("the fleet was not paused")
    return 0


@app.command
def install(
    *,
    roles: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    common: Common = COMMON,
) -> int:
    """Set the database up: indexes, and a validator for specs. Doing it again does no harm.

    Args:
        roles: make roles for workers, operators and viewers, too.
    """
    from diagnose_mongo import installation

    out = common.out()
    with common.link() as link:
        done = installation.install(link)
        if roles:
            done += [f"role {name}" for name in installation.install_roles(link)]
    if out.is_json:
        out.json({"done": done})
    else:
        for line in done:
            out.say(line)
    return 0


@app.command
def doctor(*, common: Common = COMMON) -> int:
    """Look for what keeps probes from working; ends with 1 if something does."""
    from diagnose_mongo.cli.doctor import examine

    out = common.out()
    with common.link() as link:
        return examine(out, link)


@app.command
def run(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    service: str | None = None,
    env: str | None = None,
    version: str | None = None,
    period: Annotated[float | None, DURATION] = None,
    common: Common = COMMON,
) -> int:
    """Run a Python program with a manager in it, and in its children.

    Args:
        command: the program and its arguments, after --.
        service: what specs select it by.
        env: what specs select it by, such as prod.
        version: what specs select it by.
        period: how often it looks for changes: 10s unless set.
    """
    from diagnose_mongo.autostart import run as become

    if not command:
        raise UsageError("say what to run, after --, such as `diagnose run -- python app.py`")
    given = {
        settings.URI_VARIABLE: common.uri,
        settings.DATABASE_VARIABLE: common.database,
        settings.COLLECTION_VARIABLE: common.collection,
        "DIAGNOSE_SERVICE": service,
        "DIAGNOSE_ENV": env,
        "DIAGNOSE_VERSION": version,
        settings.PERIOD_VARIABLE: None if period is None else f"{period:g}",
    }
    environment = {name: value for name, value in given.items() if value}
    return become(list(command), environment)
