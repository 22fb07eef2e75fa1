"""Makes docs/pictures/terminal.svg, the picture of README: what the command shows in a terminal.

    python tools/picture.py [FILE]

Nothing in it is made up: a real MongoDB, a web application with two worker processes under
`diagnose run`, requests, and each command in a terminal of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from pymongo import MongoClient
from rich.console import Console
from rich.text import Text

from diagnose_mongo.server import LocalServer

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "pictures" / "terminal.svg"
COLUMNS = 96
WORKERS = 2
DEADLINE_SECONDS = 30.0

SHOP = """
import time

def app(environ, start_response):
    customer, _, items = environ["PATH_INFO"].strip("/").partition("/")
    start_response("200 OK", [])
    return [b"%d" % checkout(customer, items.split(","))]

def checkout(customer, items):
    return sum(price(item) for item in items)

def price(item):
    if item.startswith("book"):
        time.sleep(0.02)
    return len(item)
"""
REQUESTS = [
    "/mia/tea,soap",
    "/jo/book-17,tea",
    "/eve/pen",
    "/mia/book-4,book-17,soap",
    "/eve/book-2,book-1",
]

QUESTION = (
    'diagnose add shop.checkout --id slow --when "elapsed > 0.03" --value "(customer, items)"'
)
MISTAKE = 'diagnose add shop.Checkout --id typo --value "customer"'
ANSWERS = "tail -n 3 shop.log"


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(LocalServer())
        (folder / "shop.py").write_text(SHOP)
        environment = os.environ | {
            "DIAGNOSE_MONGODB_URI": server.uri,
            "DIAGNOSE_PERIOD": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TERM": "xterm-256color",
            "COLUMNS": str(COLUMNS),
            "USER": "mia",
            "LOGNAME": "mia",
        }
        port = stack.enter_context(serving(folder, environment))
        stack.enter_context(asked(port))
        wait_for_workers(server.uri)
        console = Console(record=True, width=COLUMNS, file=io.StringIO())
        # In this order: what comes between the question and its answers takes its time anyway.
        for command in (QUESTION, MISTAKE, "diagnose ls", ANSWERS):
            console.print(Text.assemble(("$ ", "green"), (command, "bold")))
            shown = in_terminal(command, folder, environment)
            console.print(Text.from_ansi(shown.replace(str(folder), ".")), highlight=False)
            if command != ANSWERS:
                console.print()
    target.parent.mkdir(exist_ok=True)
    # A fixed id, so that the file changes only where the run did.
    svg = console.export_svg(title="diagnose", unique_id="diagnose")
    target.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")
    print(f"{target}: look at it")


@contextlib.contextmanager
def serving(folder, environment):
    """A gunicorn under `diagnose run`, its output in shop.log; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    command = shlex.split(
        f"diagnose run --service shop -- gunicorn shop:app --preload --workers {WORKERS} "
        f"--bind 127.0.0.1:{port} --log-level warning"
    )
    with (folder / "shop.log").open("w") as log:
        program = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield port
    finally:
        program.send_signal(signal.SIGTERM)
        program.wait(DEADLINE_SECONDS)


@contextlib.contextmanager
def asked(port):
    """Customers, who go on asking."""
    over = threading.Event()

    def ask():
        for path in itertools.cycle(REQUESTS):
            if over.wait(0.05):
                return
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", path)
                connection.getresponse().read()
                connection.close()

    threads = [threading.Thread(target=ask) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def wait_for_workers(uri):
    """Until both workers, and gunicorn itself, have told that they live."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    with MongoClient(uri) as client:
        while client["diagnose"]["processes"].count_documents({}) < WORKERS + 1:
            if time.monotonic() > deadline:
                raise SystemExit("the workers do not come up: is gunicorn installed?")
            time.sleep(0.1)


def in_terminal(command, folder, environment):
    """What a command leaves in a terminal, with its colours."""
    here, there = pty.openpty()
    program = subprocess.Popen(
        ["/bin/sh", "-c", f"stty cols {COLUMNS} rows 50; {command}"],
        cwd=folder,
        env=environment,
        stdin=there,
        stdout=there,
        stderr=there,
        close_fds=True,
    )
    os.close(there)
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while chunk := os.read(here, 65536):
            said += chunk
    os.close(here)
    program.wait(DEADLINE_SECONDS)
    return final_screen(said.decode())


def final_screen(said):
    """The lines that are left when a live display has drawn itself over and over."""
    lines, row = [""], 0
    for part in re.split(r"(\r?\n|\r|\x1b\[\d*[A-HJK]|\x1b\[\?25[lh])", said):
        if part in {"\n", "\r\n"}:
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.startswith("\x1b[") and part.endswith("A"):
            row -= int(part[2:-1] or 1)
        elif part.startswith("\x1b[") and part.endswith("K"):
            lines[row] = ""
        elif part != "\r" and not part.startswith("\x1b[?25"):
            lines[row] += part
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    main()
