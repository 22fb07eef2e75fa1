"""The command `diagnose`: every verb as a process of its own, against a real server and managers."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from bson import ObjectId
from modules import loaded
from waiting import wait_for_documents, wait_until

from diagnose.errors import StoreError
from diagnose.instruments import ProbeTestInstrument, Result
from diagnose_mongo import settings
from diagnose_mongo.changes import history
from diagnose_mongo.cli import arguments as texts
from diagnose_mongo.cli import doctor, options, progress
from diagnose_mongo.cli.output import Output, duration, shown
from diagnose_mongo.rollouts import Rollout
from diagnose_mongo.store import Inspector, Link, ProcessStore, ServerFacts
from diagnose_mongo.worker.manager import MongoInstrumentManager

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "diagnose_mongo.cli"]
SOURCE = """
class Cart:
    def checkout(self, items):
        total = sum(items)
        return total
"""
NOBODY = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200"


@pytest.fixture
def shop():
    with loaded("cli_shop", SOURCE) as module:
        yield module


@pytest.fixture
def environment(mongo_server, database):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DIAGNOSE_")}
    return kept | {
        "DIAGNOSE_MONGODB_URI": mongo_server.uri,
        "DIAGNOSE_DATABASE": database.name,
        "TERM": "xterm",
    }


class Answer:
    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        self.lines = self.out.splitlines()

    @property
    def json(self):
        assert self.err == ""
        return json.loads(self.out)


@pytest.fixture
def run(environment):
    """Runs the command to its end."""

    def run(*arguments, **variables):
        return Answer(
            subprocess.run(
                [*COMMAND, *map(str, arguments)],
                cwd=ROOT,
                env=environment | variables,
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        )

    return run


@pytest.fixture
def fleet(specs, shop):
    """Three processes that look for changes ten times a second."""
    made = []
    for i in range(3):
        manager = MongoInstrumentManager(
            specs,
            process_id=f"web{i}",
            service="api" if i == 2 else "web",
            env="prod",
            version="1.2",
            period=0.1,
            heartbeat=0.3,
        )
        manager.instrument_classes["seen"] = ProbeTestInstrument
        manager.start()
        made.append(manager)
    processes = ProcessStore(Link(specs))
    wait_until(lambda: processes.count() == 3)
    yield made
    for manager in made:
        manager.stop()


def spec(spec_id="cart", **fields):
    return {
        "_id": spec_id,
        "target": "cli_shop.Cart.checkout",
        "instrument": {"type": "seen", "name": "n", "value": "result"},
        "lifespan": 10,
        "lastmodified": datetime.now(UTC).replace(microsecond=0),
    } | fields


def has_entries(count, state, spec_id="cart"):
    def is_so(found):
        entries = found.get(spec_id, {}).get("applied", {}).values()
        return sum(each["state"] == state for each in entries) == count

    return is_so


ADD = ("add", "cli_shop.Cart.checkout", "--type", "seen")

# --- add ----------------------------------------------------------------------------------------


def test_add_prints_the_id_and_follows_the_rollout(run, fleet, specs):
    answer = run(*ADD, "--value", "elapsed")
    assert answer.code == 0, answer.err
    document = specs.find_one()
    assert answer.lines[0] == document["_id"]
    assert re.fullmatch(r"cart-checkout-\w{4}", document["_id"])
    assert answer.lines[-1].endswith("complete: 3 of 3 processes (3 installed)")
    assert document["instrument"] == {
        "type": "seen",
        "name": document["_id"],
        "value": "elapsed",
        "event": "return",
    }
    assert document["lifespan"] == 10
    assert history(specs)[0].via == "command"


def test_add_takes_all_that_a_spec_has(run, specs):
    answer = run(
        *("add", "a.b", "--value", "x", "--event", "line:+2", "--type", "hist", "--name", "n"),
        *("--when", "x > 1", "--tags", "{'a': x}", "--lifespan", "2h", "--rate", "2.5"),
        *("--sample", "0.5", "--hits", "7", "--fleet-hits", "9", "--select", "service=web"),
        *("--select", "service=api", "--select", "percent=10%", "--select", "host=web*"),
        *("--canary", "5%:20m", "--comment", "why", "--id", "me", "--no-wait"),
    )
    assert (answer.code, answer.out) == (0, "me\n")
    document = specs.find_one({}, {"lastmodified": 0, "changed": 0, "created_by": 0})
    assert document == {
        "_id": "me",
        "target": "a.b",
        "instrument": {
            "type": "hist",
            "name": "n",
            "value": "x",
            "event": "line:+2",
            "custom": {"tags": "{'a': x}"},
        },
        "when": "x > 1",
        "limits": {"rate": 2.5, "sample": 0.5, "hits": 7, "fleet_hits": 9},
        "select": {"service": ["web", "api"], "percent": 10, "host": "web*"},
        "canary": {"percent": 5, "for": 20},
        "comment": "why",
        "lifespan": 120,
    }


def test_add_says_what_failed_where_and_what_to_do(run, fleet):
    answer = run("add", "cli_shop.Cart.chekout", "--value", "1")
    assert answer.code == 1
    assert answer.lines[-3].endswith("failed: 3 of 3 processes (3 error)")
    assert "target-not-found in 3 processes, such as web" in answer.lines[-2]
    assert answer.lines[-1].strip() == (
        "class 'cli_shop.Cart' has no 'chekout'; did you mean 'checkout'?"
    )


def test_add_gives_up_when_its_time_is_over(run, specs):
    answer = run("add", "a.b", "--value", "1", "--id", "x", "--timeout", "0.1s")
    assert answer.code == 124
    assert answer.lines[0] == "x"
    assert "no process that lives is meant" in answer.out
    assert "`diagnose status x --watch`" in answer.err


def test_add_for_programs_is_one_document(run, fleet):
    answer = run(*ADD, "--value", "1", "-o", "json")
    found = answer.json
    assert answer.code == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["version"])
    assert found["rollout"]["counts"] == {"installed": 3}
    assert found["rollout"]["state"] == "complete"
    assert found["rollout"]["id"] == found["id"]
    without = run(*ADD, "--value", "1", "--no-wait", "-o", "json").json
    assert without.keys() == {"id", "version"}


def test_a_dry_run_arms_nothing_and_leaves_nothing(run, fleet, specs, shop):
    original = shop.Cart.checkout.__code__
    answer = run(*ADD, "--value", "1", "--dry-run")
    assert answer.code == 0
    assert answer.lines[0] == "3 processes: validated  (web0, web1, web2)"
    assert specs.find_one() is None
    assert shop.Cart.checkout.__code__ is original


def test_forever_is_a_lifespan(run, specs):
    run("add", "a.b", "--value", "1", "--lifespan", "forever", "--no-wait")
    assert specs.find_one()["lifespan"] is None


# --- status -------------------------------------------------------------------------------------


def test_status_looks_once(run, fleet, specs):
    specs.insert_one(spec())
    wait_for_documents(specs, has_entries(3, "installed"))
    answer = run("status", "cart")
    assert (answer.code, answer.out) == (0, "cart: complete: 3 of 3 processes (3 installed)\n")
    found = run("status", "cart", "-o", "json").json
    assert (found["id"], found["state"], found["processes"]) == ("cart", "complete", 3)


def test_status_tells_failures_by_code(run, fleet, specs):
    specs.insert_one(spec(instrument={"type": "seen", "value": "nope"}))
    wait_for_documents(specs, has_entries(3, "error"))
    answer = run("status", "cart")
    assert answer.code == 1
    assert "expression-name in 3 processes, such as" in answer.out
    answer = run("status", "cart", "-o", "json")
    (failure,) = answer.json["failures"]
    assert (answer.code, failure["code"], failure["count"]) == (1, "expression-name", 3)
    assert failure["examples"][0]["process"].startswith("web")


def test_what_is_not_over_is_a_matter_of_time(run, fleet, specs):
    specs.insert_one(spec(target="xmlrpc.server.resolve_dotted_attribute"))
    wait_for_documents(specs, has_entries(3, "pending"))
    answer = run("status", "cart", "--timeout", "0.2")
    assert answer.code == 124
    assert "3 processes have not imported the module yet" in answer.out
    assert "go on waiting" in answer.err
    assert run("status", "cart").code == 124


def test_a_watch_for_programs_is_a_document_a_line(environment, specs, fleet):
    specs.insert_one(spec(target="xmlrpc.server.resolve_dotted_attribute"))
    wait_for_documents(specs, has_entries(3, "pending"))
    with subprocess.Popen(
        [*COMMAND, "status", "cart", "--watch", "--timeout", "60s", "-o", "json"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        first = json.loads(process.stdout.readline())
        assert first["counts"] == {"pending": 3}
        specs.update_one(
            {"_id": "cart"},
            {
                "$set": {"target": "cli_shop.Cart.checkout"},
                "$currentDate": {"lastmodified": True},
            },
        )
        rest = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    assert rest[-1]["counts"] == {"installed": 3}
    assert all(one["counts"] != other["counts"] for one, other in itertools.pairwise(rest))


class Terminal:
    """The command in a terminal of 100 columns; what it shows, without colours."""

    def __init__(self, environment, *arguments):
        self.end, other = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=ROOT,
            env=environment | {"COLUMNS": "100"},
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
        )
        os.close(other)
        self.raw = ""

    def read(self):
        with contextlib.suppress(OSError):
            while select.select([self.end], [], [], 30)[0] and (b := os.read(self.end, 65536)):
                self.raw += b.decode()
        os.close(self.end)
        code = self.process.wait()
        return code, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.raw).replace("\r", "")


def test_in_a_terminal_there_are_bars_and_colours(environment, specs, fleet):
    specs.insert_one(spec(target="cli_shop.Cart.chekout", select={"service": "web"}))
    code, text = Terminal(environment, "status", "cart", "--watch").read()
    assert code == 1
    assert "cart  failed  2 of 2 processes" in text
    assert f"error      {'█' * 40}  2" in text
    assert "class 'cli_shop.Cart' has no 'chekout'; did you mean 'checkout'?" in text
    terminal = Terminal(environment, "ls")
    assert terminal.read()[0] == 0
    assert "\x1b[" in terminal.raw
    assert "2 error" in terminal.raw


def test_no_colour_where_none_is_wanted(environment, specs):
    specs.insert_one(spec())
    terminal = Terminal(environment | {"NO_COLOR": "1"}, "ls")
    assert terminal.read()[0] == 0
    assert not re.search(r"\x1b\[3\d", terminal.raw)


# --- ls, get, rm, check, history ----------------------------------------------------------------


def test_ls_has_a_line_for_each(run, fleet, specs, shop):
    assert "there are no specs" in run("ls").out
    specs.insert_many([spec(lifespan=None), spec(7, target=5), {"_id": "bare"}])
    wait_for_documents(specs, has_entries(3, "installed"))
    wait_for_documents(specs, has_entries(3, "error", "bare"))
    shop.Cart().checkout([1])
    wait_for_documents(specs, has_entries(3, "emitting"))
    answer = run("ls")
    assert answer.lines[0].split() == (
        ["ID", "TARGET", "INSTRUMENT", "PROCESSES", "LEFT", "CHANGED", "BY"]
    )
    line = next(each for each in answer.lines if each.startswith("cart"))
    assert re.split(r"\s{2,}", line)[:5] == (
        ["cart", "cli_shop.Cart.checkout", "seen return", "3 emitting", "forever"]
    )
    assert "(by hand)" in line
    found = {each["_id"]: each for each in run("ls", "-o", "json").json}
    assert found.keys() == {"cart", 7, "bare"}
    assert found["cart"]["states"] == {"emitting": 3}
    assert "applied" not in found["cart"]


class Double(ProbeTestInstrument):
    """Acts: what the function returns is doubled."""

    acts = True

    def act(self, value, names):
        return Result(2 * value)


def test_ls_and_status_mark_what_acts(run, fleet, specs, shop):
    for manager in fleet[:2]:
        manager.instrument_classes["double"] = Double
    double = {"type": "double", "value": "result"}
    specs.insert_many([spec("watches", target="cli_shop.Cart"), spec("double", instrument=double)])
    wait_for_documents(specs, has_entries(2, "installed", "double"))
    wait_for_documents(specs, has_entries(1, "error", "double"))
    wait_for_documents(specs, has_entries(3, "error", "watches"))
    assert shop.Cart().checkout([1]) == 4  # each of the two has doubled it
    lines = {line.split()[0]: line for line in run("ls").lines}
    assert "double return (acts)" in lines["double"]
    assert "(acts)" not in lines["watches"]
    found = {each["_id"]: each for each in run("ls", "-o", "json").json}
    assert (found["double"]["acts"], found["watches"].get("acts")) == (True, None)
    assert "may change what the function is given, returns or raises" in run("status", "double").out
    assert run("status", "double", "-o", "json").json["acts"] is True
    assert run("status", "watches", "-o", "json").json["acts"] is False
    entries = specs.find_one("double")["applied"]
    assert [entries[f"web{number}"].get("acts") for number in range(3)] == [True, True, None]
    assert entries["web2"]["code"] == "unknown-type"


def test_get_shows_a_spec(run, fleet, specs):
    key = ObjectId()
    specs.insert_one(spec(key, id="by-name", comment="a\x1b[31m\nb"))
    wait_for_documents(specs, has_entries(3, "installed", key))
    for name in (str(key), "by-name"):
        answer = run("get", name)
        assert answer.code == 0
        fields = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in answer.lines)
        assert fields["_id"] == str(key)
        assert fields["instrument.type"] == "seen"
        assert fields["processes"] == "3 installed"
        assert fields["comment"] == "a?[31m\\nb"
    found = run("get", str(key), "-o", "json").json
    assert found["applied"]["web1"]["state"] == "installed"


def test_rm_removes_and_says_what_was_not_there(run, fleet, specs, shop):
    original = shop.Cart.checkout.__code__
    specs.insert_many([spec("one"), spec("two"), spec(3)])
    wait_for_documents(specs, has_entries(3, "installed", "one"))
    answer = run("rm", "one", "tow", "3", "one")
    assert answer.code == 1
    assert answer.out == "one is removed\n3 is removed\n"
    assert "no spec 'tow'" in answer.err
    assert "did you mean 'two'?" in answer.err
    assert [each["_id"] for each in specs.find()] == ["two"]
    assert run("rm", "two", "-o", "json").json == {"removed": ["two"]}
    wait_until(lambda: shop.Cart.checkout.__code__ is original)


def test_check_tries_a_function_everywhere(run, fleet, specs):
    answer = run("check", "cli_shop.Cart.checkout", "--select", "service=web")
    assert answer.code == 0
    assert answer.lines[0] == "2 processes: validated  (web0, web1)"
    fields = dict(line.split(maxsplit=1) for line in answer.lines[1:])
    assert (fields["function"], fields["file"]) == ("cli_shop.Cart.checkout", "cli_shop.py")
    assert fields["lines"] == "4-5"
    assert specs.find_one() is None


def test_check_tries_a_spec_that_is_there(run, fleet, specs):
    specs.insert_one(spec(enabled=False, when="nope > 1", id="name"))
    answer = run("check", "cart", "-o", "json")
    assert answer.code == 1
    (found,) = answer.json["answers"]
    assert (found["state"], found["code"]) == ("error", "expression-name")
    assert found["processes"] == ["web0", "web1", "web2"]
    assert answer.json["id"] == "cart"
    assert [each["_id"] for each in specs.find()] == ["cart"]


def test_check_that_nobody_answers(run, specs):
    answer = run("check", "a.b", "--timeout", "0.1")
    assert answer.code == 124
    assert "no process that lives is meant" in answer.out
    assert specs.find_one() is None


def test_history_shows_who_did_what(run, specs, fleet):
    assert run("history").out == "nothing is recorded\n"
    run("add", "a.b", "--value", "1", "--id", "x", "--no-wait")
    specs.update_one({"_id": "x"}, {"$set": {"lifespan": 5}})
    run("rm", "x")
    answer = run("history", "x")
    assert answer.code == 0
    heads = [line for line in answer.lines if not line.startswith(" ")]
    assert [line.split()[2] for line in heads] == ["remove", "change", "add"]
    assert "by nobody knows whom (hand)" in heads[1]
    assert "    lifespan: 10 → 5" in answer.lines
    found = run("history", "x", "--limit", "1", "-o", "json").json
    assert [(e["id"], e["action"], e["via"]) for e in found] == [("x", "remove", "command")]
    assert run("history", "y").out == "nothing is recorded about 'y'\n"


# --- the fleet ----------------------------------------------------------------------------------


def test_ps_lists_who_lives(run, specs, fleet):
    answer = run("ps")
    assert answer.lines[0].split()[:5] == ["PROCESS", "SERVICE", "ENV", "VERSION", "PYTHON"]
    python = ".".join(map(str, sys.version_info[:3]))
    assert answer.lines[1].split()[:5] == ["web0", "web", "prod", "1.2", python]
    found = run("ps", "-o", "json").json
    assert [(e["id"], e["labels"]["service"]) for e in found][1:] == [
        ("web1", "web"),
        ("web2", "api"),
    ]


def test_ps_says_what_to_do_when_nobody_lives(run):
    assert "diagnose run" in run("ps").out
    assert run("ps", "-o", "json").json == []


def test_a_pause_takes_all_off_until_it_goes_on(run, fleet, specs, shop):
    original = shop.Cart.checkout.__code__
    specs.insert_one(spec())
    wait_for_documents(specs, has_entries(3, "installed"))
    answer = run("pause", "--reason", "black friday")
    assert answer.code == 0
    assert re.fullmatch(
        r"all probes of the fleet are paused by \S+@\S+: black friday; "
        r"3 processes follow with their next poll\n",
        answer.out,
    )
    wait_for_documents(specs, has_entries(3, "disabled"))
    assert shop.Cart.checkout.__code__ is original
    assert run("ls").lines[-1].endswith("black friday")
    assert "black friday; `diagnose resume` puts them back" in run("status", "cart").out
    assert run("resume", "-o", "json").json == {"paused": False, "reason": None, "processes": 3}
    wait_for_documents(specs, has_entries(3, "installed"))
    assert run("resume").out == "the fleet was not paused\n"


def test_install_sets_the_database_up(run, specs):
    answer = run("install")
    assert answer.code == 0
    assert "diagnose_poll" in answer.out
    assert "diagnose_poll" in specs.index_information()
    assert run("install", "-o", "json").json["done"] == answer.lines
    assert "role diagnoseWorker" in run("install", "--roles").lines


def test_the_doctor_is_content_when_all_is_well(run, fleet, specs):
    run("install")
    wait_until(lambda: specs.database["control"].find_one({"_id": "lease"}) is not None)
    answer = run("doctor")
    assert answer.code == 0
    assert [line.split()[0] for line in answer.lines] == ["ok"] * len(answer.lines)
    words = {line.split()[1] for line in answer.lines}
    assert words >= {"server", "version", "clock", "rights", "indexes", "processes", "chores"}


def test_the_doctor_says_what_is_missing(run, specs, database):
    specs.insert_one(spec(applied={"x": {"state": "error", "lm": spec()["lastmodified"]}}))
    specs.update_one({}, [{"$set": {"applied.x.lm": "$lastmodified"}}])
    database["control"].insert_one({"_id": "fleet", "paused": True})
    answer = run("doctor")
    assert answer.code == 0
    assert "run `diagnose install` once" in answer.out
    assert "none lives" in answer.out
    assert "`diagnose resume`" in answer.out
    assert "`diagnose status cart` says why" in answer.out
    findings = run("doctor", "-o", "json").json["findings"]
    assert {each["grade"] for each in findings} == {"ok", "warn"}


@pytest.mark.parametrize(
    ("version", "grade"),
    [("4.4.29", "fail"), ("5.0.0", "ok"), ("5.2.0-rc1", "ok"), ("10.1.0", "ok")],
)
def test_the_doctor_says_which_mongodb_is_too_old(version, grade):
    facts = ServerFacts(version=version, replica_set="rs", round_trip=0.001, ahead=0.0)
    looks = doctor._server(SimpleNamespace(server=lambda: facts))
    (finding,) = [each for each in looks if each.what == "version"]
    assert (finding.grade, finding.text) == (grade, f"MongoDB {version}")
    assert finding.advice.endswith("MongoDB 5.0 and newer: upgrade") == (grade == "fail")


def test_the_doctor_fails_where_nobody_answers(run):
    answer = run("doctor", "--uri", NOBODY, "-o", "json")
    assert (answer.code, answer.json["ok"]) == (1, False)
    (finding,) = answer.json["findings"]
    assert (finding["grade"], finding["what"]) == ("fail", "server")
    assert "--uri" in finding["advice"]


def test_run_hands_its_options_over_and_becomes_the_command(run):
    code = "import os, sys; print(sys.argv[1:], sorted(os.environ.items())); sys.exit(7)"
    answer = run(
        *("run", "--service", "web", "--env", "prod", "--version", "2", "--period", "1m"),
        *("--database", "d", "--", sys.executable, "-c", code, "--help", "-o", "x"),
    )
    assert answer.code == 7
    assert answer.out.startswith("['--help', '-o', 'x']")
    for each in ("SERVICE', 'web'", "ENV', 'prod'", "VERSION', '2'", "PERIOD', '60'"):
        assert f"('DIAGNOSE_{each})" in answer.out
    assert "('DIAGNOSE_DATABASE', 'd')" in answer.out
    assert run("run").code == 2


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nope"], 2, "nope"),
        (["add"], 2, "TARGET"),
        (["add", "a.b"], 2, "--value is missing"),
        (["add", "a.b", "--value", "1", "--lifespan", "soon"], 2, "'soon' is no duration"),
        (["add", "a.b", "--value", "1", "--select", "web"], 2, "write it as service=web"),
        (["add", "a.b", "--value", "1", "--select", "percent=x"], 2, "no percentage"),
        (["add", "a.b", "--value", "1", "--canary", "200%"], 2, "no percentage"),
        (["add", "a.b", "--value", "1", "--rate", "x"], 2, "rate"),
        (["add", "a.b", "--value", "1", "--sample", "5"], 1, "limits.sample must be"),
        (["add", "a.b", "--value", "1", "--lifespan", "9999d"], 1, "lifespan must be"),
        (["ls", "--bogus"], 2, "--bogus"),
        (["ls", "-o", "xml"], 2, '"xml"'),
        (["get"], 2, "ID"),
        (["get", "nope"], 1, "there is no spec 'nope'"),
        (["status", "nope"], 1, "there is no spec 'nope'"),
        (["status", "nope", "--timeout", "3x"], 2, "'3x' is no duration"),
        (["rm"], 2, "say which specs"),
        (["check", "nope"], 1, "there is no spec 'nope'"),
        (["history", "--limit", "0"], 2, "--limit"),
        (["ls", "--uri", NOBODY], 1, "Connection refused"),
        (["ls", "--uri", "http://user:secret@x"], 1, "mongodb://"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(run, arguments, code, words):
    answer = run(*arguments)
    assert (answer.code, answer.out) == (code, "")
    assert words in answer.err
    assert answer.err.startswith("diagnose")
    assert answer.err.count("\n") == 1
    assert "secret" not in answer.err


def test_without_an_address_the_error_says_how_to_give_one(monkeypatch):
    monkeypatch.setattr(settings, "LOCAL_URI", NOBODY)
    for uri, is_told in ((None, True), (NOBODY, False)):
        with pytest.raises(StoreError) as error, options.Common(uri=uri).link() as link:
            Inspector(link).specs()
        assert ("--uri, or set DIAGNOSE_MONGODB_URI" in error.value.message) is is_told


def test_one_process_is_spoken_of_as_one():
    found = Rollout("a", None, None, {"pending": 1}, 0, ())
    assert "1 process has not imported the module yet" in str(progress.notes(found))


def test_an_id_is_given_once(run, specs):
    specs.insert_one(spec())
    answer = run("add", "a.b", "--value", "1", "--id", "cart")
    assert (answer.code, answer.out) == (1, "")
    assert "there is a spec 'cart'" in answer.err


def test_a_spec_that_is_tried_is_tried_as_it_is(run, specs):
    specs.insert_one(spec())
    answer = run("check", "cart", "--value", "1")
    assert answer.code == 2
    assert "leave the other options out" in answer.err


def test_help_says_what_there_is(run):
    answer = run("--help")
    assert answer.code == 0
    for verb in ("add", "ls", "get", "rm", "status", "ps", "check", "pause", "resume", "install"):
        assert re.search(rf"\b{verb}\b", answer.out)
    assert "--lifespan" in run("add", "--help").out
    assert run().code == 2


def test_help_needs_neither_driver_nor_manager():
    code = (
        "import sys; from diagnose_mongo.cli import main; main(['--help'])\n"
        "late = {'pymongo', 'bson', 'apscheduler', 'diagnose_mongo.worker.manager'}\n"
        "sys.exit(' '.join(late & sys.modules.keys()) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("missing", "verb"), [("cyclopts", "ls"), ("rich", "--help"), ("pymongo", "ls")]
)
def test_without_the_extra_it_says_what_to_install(missing, verb):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"from diagnose_mongo.cli import main; sys.exit(main([{verb!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"diagnose: {missing} is not installed: pip install 'diagnose-mongo[cli]'\n"
    )


def started(environment, *arguments):
    """A command that is under way."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
    )


def test_ctrl_c_is_quiet(environment, specs):
    specs.insert_one(spec())
    with started(environment, "status", "cart", "--watch") as process:
        assert "no process that lives" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, "")


def test_a_check_that_is_interrupted_leaves_nothing(environment, specs):
    with started(environment, "check", "a.b") as process:
        wait_until(lambda: specs.find_one() is not None)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "")
    assert specs.find_one() is None


def test_a_reader_that_goes_is_no_error(environment, specs):
    specs.insert_many([spec(f"{'x' * 100}{i}", comment="y" * 1000) for i in range(300)])
    for arguments in (["ls"], ["ls", "-o", "json"]):
        with subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            process.stdout.read(1)
            process.stdout.close()
            err = process.stderr.read()
        assert err == ""
        assert process.returncode in {0, 141}


def test_what_can_not_be_printed_does_not_end_it(run, specs):
    specs.insert_one(spec("späť→"))
    answer = run("ls", PYTHONIOENCODING="ascii")
    assert answer.code == 0
    assert answer.lines[1].startswith("sp")


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1.5", 1.5), (".5m", 30)],
)
def test_durations_are_read(text, found):
    assert texts.seconds(text) == found


def test_a_plain_number_is_minutes_in_a_lifespan():
    assert (texts.minutes("10"), texts.minutes("90s"), texts.minutes("1d")) == (10, 1.5, 1440)


@pytest.mark.parametrize("text", ["", "x", "-1s", "1w", "1e3", "inf", "nan", "1 0m"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="is no duration"):
        texts.seconds(text)


def test_durations_are_short():
    assert [duration(each) for each in (-1, 0.4, 59, 60, 7200, 200000)] == (
        ["0s", "0s", "59s", "1m", "2h", "2d"]
    )


def test_json_has_any_value(capsys):
    moment = datetime(2026, 1, 2, 3, 4, 5, 678900)
    Output(is_json=True).json(
        {
            "a": moment,
            "b": moment.replace(tzinfo=UTC),
            "c": ObjectId("0" * 24),
            "d": b"x",
            "e": float("nan"),
            "f": (1, None, True),
            1: "é",
        }
    )
    assert json.loads(capsys.readouterr().out) == {
        "a": "2026-01-02T03:04:05.678Z",
        "b": "2026-01-02T03:04:05.678Z",
        "c": "0" * 24,
        "d": "eA==",
        "e": "nan",
        "f": [1, None, True],
        "1": "é",
    }


def test_values_do_not_move_the_cursor():
    assert shown("a\x1b[2J\r\nb\x9b") == "a?[2J?\\nb?"
    assert (shown(None), shown({"a": [1]}), shown(1.5)) == ("null", '{"a": [1]}', "1.5")
