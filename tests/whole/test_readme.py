"""What README and the pages of docs show is so: each of their examples runs, in its page's order."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import http.client
import inspect
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import NamedTuple

import mongosh
import pytest
from modules import loaded
from waiting import DEADLINE_SECONDS, wait_until

from diagnose import fields, specs
from diagnose.sinks.stream import StreamSink
from diagnose_mongo import MongoInstrumentManager
from diagnose_mongo.changes import add
from diagnose_mongo.store import Link, ProcessStore

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
MOST_WORDS = 1_500

# The one URI of all pages.
URI = "mongodb://db.internal/?replicaSet=rs0"
# Their files are run, and what they say compared, by test_schedules.py and test_pytest_plugin.py.
RUN_ELSEWHERE = {"schedules.md", "pytest.md"}


class Block(NamedTuple):
    """What stands between fences."""

    page: str
    line: int
    language: str
    text: str

    @property
    def is_session(self):
        return self.text.startswith(">>> ")

    @property
    def file(self):
        """The name of a file, where it is one."""
        found = re.match(r"# (\w+\.py)\n", self.text)
        return found[1] if found and self.language == "python" else None


def blocks(page):
    text = page.read_text()
    return [
        Block(page.name, text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in re.finditer(r"^```([\w{}]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def pages_with_examples():
    for page in PAGES:
        languages = {each.language for each in blocks(page)}
        if languages & RUNS.keys() and page.name not in RUN_ELSEWHERE:
            yield pytest.param(page, id=page.stem)


# --- a page's namespace -------------------------------------------------------------------------

CART = """\
class Cart:
    def checkout(self, items):
        total = 0
        for item in items:
            total += len(item)
        return total
"""
APPLICATION = """
import time

def app(environ, start_response):
    customer, _, items = environ["PATH_INFO"].strip("/").partition("/")
    start_response("200 OK", [])
    return [b"%d" % checkout(customer, items.split(","))]

def checkout(customer, items):
    time.sleep(0.04)
    return len(items)
"""


class Stage:
    """Where the examples of one page run."""

    def __init__(self, client, uri, folder, stack):
        self.client, self.uri, self.folder, self.stack = client, uri, folder, stack
        self.names = {"client": client}
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("DIAGNOSE_")
        } | {
            "DIAGNOSE_MONGODB_URI": uri,
            "DIAGNOSE_PERIOD": "0.1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TERM": "dumb",
        }
        self.port = None

    @property
    def database(self):
        return self.client["diagnose"]

    @property
    def log(self):
        return self.folder / "log"

    def fleet(self, *services):
        """Managers that poll, one for each service; stopped in the end."""
        managers = [
            MongoInstrumentManager(
                self.database["specs"],
                process_id=f"web{i}-{470 + i}-k3x",
                service=service,
                period=0.1,
            )
            for i, service in enumerate(services)
        ]
        for manager in managers:
            self.stack.callback(manager.stop)
            manager.start()
        living = ProcessStore(Link(self.database["specs"]))
        wait_until(lambda: living.count() == len(managers))
        return managers


@pytest.fixture
def stage(mongo_server, database, tmp_path, monkeypatch):
    client = database.client
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    with contextlib.ExitStack() as stack:
        stack.callback(client.drop_database, "diagnose")
        made = Stage(client, mongo_server.uri, tmp_path, stack)
        yield made
        manager = made.names.get("manager")
        if manager is not None:
            manager.stop()
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    if made.log.exists():
        print(made.log.read_text())  # pytest shows it with a failure


def prepare_readme(stage):
    (stage.folder / "shop.py").write_text(APPLICATION)
    # Another `shop` than the one that gunicorn serves.
    shop = stage.stack.enter_context(loaded("shop", ""))
    shop.cart = stage.stack.enter_context(loaded("shop.cart", CART))
    prepare_acting(stage)
    stage.names["manager"].sinks.append(StreamSink(io.StringIO()))


def prepare_command(stage):
    stage.stack.enter_context(loaded("shop", CART))
    stage.fleet("web", "web", "web", "web", "jobs")


def prepare_fleet(stage):
    stage.stack.enter_context(loaded("shop", CART))
    stage.fleet("web", "web")
    add(
        stage.database["specs"],
        {
            "_id": "cart-latency",
            "target": "shop.Cart.chekout",
            "instrument": {"type": "hist", "value": "elapsed"},
            "lifespan": 10,
        },
    )


def prepare_starting(stage):
    (stage.folder / "shop.py").write_text(APPLICATION)


def prepare_acting(stage):
    stage.names["manager"] = MongoInstrumentManager(stage.database["specs"], process_id="web1")


PREPARE = {
    "README.md": prepare_readme,
    "acting.md": prepare_acting,
    "command.md": prepare_command,
    "fleet.md": prepare_fleet,
    "starting.md": prepare_starting,
}


# --- sessions and scripts of Python -------------------------------------------------------------

DURATION = re.compile(r"\d[\d,.]* (?:ns|µs|ms|s)\b")


class Checker(doctest.OutputChecker):
    """One that knows that no run takes as long as another."""

    def check_output(self, want, got, optionflags):
        return super().check_output(want, got, optionflags) or super().check_output(
            DURATION.sub("0 s", want), DURATION.sub("0 s", got), optionflags
        )


def run_session(block, stage):
    # In Markdown a session ends with its fence, which doctest would take for output.
    name = f"{block.page} {block.line}"
    test = doctest.DocTestParser().get_doctest(block.text, {}, name, block.page, block.line)
    test.globs = stage.names
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    said: list[str] = []
    runner = doctest.DocTestRunner(Checker(), optionflags=flags)
    result = runner.run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)
    assert result.attempted == block.text.count(">>> ")


def run_script(block, stage):
    text = "\n" * (block.line - 1) + block.text.replace(URI, stage.uri)
    code = compile(text, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    made = types.FunctionType(code, stage.names)()
    if inspect.iscoroutine(made):
        asyncio.run(made)


def run_python(block, stage):
    if block.file:
        (stage.folder / block.file).write_text(block.text)
    elif block.is_session:
        run_session(block, stage)
    else:
        run_script(block, stage)


# --- documents ----------------------------------------------------------------------------------


def run_javascript(block, stage):
    if not block.text.startswith("> "):
        mongosh.run(block.text, stage.database)
        # What the page inserted is what it calls it: a spec without a mistake.
        for document in stage.database["specs"].find():
            spec = specs.parse(document["_id"], document, instrument_types=None)
            assert not spec.warnings
        return
    asked, _, shown = block.text.removeprefix("> ").partition("\n")
    manager = stage.names["manager"]
    manager.apply()
    (found,) = mongosh.run(asked, stage.database)
    entry = found[manager.process_id]
    for each in mongosh.value_of(shown).values():
        assert each.keys() == entry.keys()
        assert [type(value) for value in each.values()] == [type(v) for v in entry.values()]


# --- a terminal ---------------------------------------------------------------------------------

VARIES = [
    (re.compile(r"^ .* under way: .*\n", re.MULTILINE), ""),  # how often it looked
    (re.compile(r"(?<!-)\b\d+(?:\.\d+ s|[smhd])\b"), "0s"),
    (re.compile(r"\w+@[\w.-]+"), "mia@box"),
    (re.compile(r"(?<=cart-chekout-)\w{4}"), "m9kx"),
    (re.compile(r"web\d-\d+-k3x"), "web0-470-k3x"),
    (re.compile(r"3\.\d+-[0-9a-f]{12}"), "3.11-55de64f26467"),
    (re.compile(r" +$", re.MULTILINE), ""),
    (re.compile(r" {2,}"), "  "),
]


def what_stays(text):
    for pattern, text_of_all in VARIES:
        text = pattern.sub(text_of_all, text)
    return text.strip()


def run_console(block, stage):
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        words = shlex.split(command, comments=True)
        if words[:2] == ["pip", "install"]:
            assert_can_be_installed(words[2])
        elif words[0] == "export":
            name, _, value = words[1].partition("=")
            assert (name, value) == ("DIAGNOSE_MONGODB_URI", URI)
        elif words[:2] == ["diagnose", "run"]:
            serve(words, stage)
        else:
            assert words[0] == "diagnose"
            done = subprocess.run(
                [sys.executable, "-m", "diagnose_mongo.cli", *words[1:]],
                env=stage.environment,
                cwd=stage.folder,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.stderr == ""
            if shown:
                assert what_stays(done.stdout) == what_stays(shown)
            else:
                assert done.returncode == 0, done.stdout


def assert_can_be_installed(what):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, extras = re.fullmatch(r"([\w-]+)\[([\w,]+)\]", what).groups()
    assert name == project["name"]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def serve(words, stage):
    """A server in the background, until the page ends; its workers live when this returns."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stage.port = listening.getsockname()[1]
    with stage.log.open("w") as log:
        program = subprocess.Popen(
            words,
            env=stage.environment | {"GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{stage.port}"},
            cwd=stage.folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    stage.stack.callback(end, program)
    living = ProcessStore(Link(stage.database["specs"]))
    workers = int(words[words.index("--workers") + 1])
    wait_until(lambda: living.count() >= workers + 1)


def end(program):
    program.send_signal(signal.SIGTERM)
    try:
        program.wait(DEADLINE_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)


def run_text(block, stage):
    """The answers of a program that serves; other text is no example."""
    if stage.port is None:
        return
    for answer in block.text.splitlines():
        connection = http.client.HTTPConnection("127.0.0.1", stage.port, timeout=DEADLINE_SECONDS)
        connection.request("GET", "/mia/book-4,book-17,soap")
        connection.getresponse().read()
        connection.close()
        value = answer.partition("[tags={}] = ")[2]
        wait_until(lambda value=value: f"[tags={{}}] = {value}\n" in stage.log.read_text())


RUNS = {
    "python": run_python,
    "javascript": run_javascript,
    "js": run_javascript,
    "console": run_console,
}
SHOWN_ONLY = {"text", "sh", "{include}", "{toctree}", ""}


# --- tests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*pages_with_examples()])
def test_what_a_page_shows_is_so(page, stage):
    PREPARE.get(page.name, lambda stage: None)(stage)
    for block in blocks(page):
        RUNS.get(block.language, run_text)(block, stage)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_block_is_in_a_language_that_is_run_or_is_only_text(page):
    for block in blocks(page):
        assert block.language in RUNS.keys() | SHOWN_ONLY, f"{block.page}:{block.line}"


def test_the_table_of_fields_is_that_of_the_parser():
    page = (ROOT / "docs" / "document.md").read_text()
    assert fields.table() in page, "put what diagnose.fields.table() returns into docs/document.md"


def test_pages_whose_examples_run_elsewhere_have_nothing_but_files():
    for name in RUN_ELSEWHERE:
        found = [each for each in blocks(ROOT / "docs" / name) if each.language in RUNS]
        assert found
        assert all(each.file for each in found)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_each_file_and_each_make_target_that_a_page_names_exists(page):
    text = page.read_text()
    paths = re.findall(
        r"(?<![\w/.])((?:diagnose\w*|docs|tests|tools|benchmarks|\.ci)/[\w./-]*\w)", text
    )
    assert not [each for each in paths if not (ROOT / each).exists()]
    targets = re.findall(r"(?:`|\$ )make ([a-z][\w-]*)", text)
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert not set(targets) - set(known)


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= MOST_WORDS
