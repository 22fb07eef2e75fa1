"""A program ends with probes on it as it ends without."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import diagnose

ROOT = str(Path(diagnose.__file__).parent.parent)
DEADLINE_SECONDS = 60

# --- a program of many functions, each with an instrument on it, and each of the ways to end -------

INSTRUMENTS = {
    "hist": "HistogramInstrument('{name}', '1.5', '{event}')",
    "hist of a clock": "HistogramInstrument('{name}', '{clock}', '{event}')",
    "hist with tags": "HistogramInstrument('{name}', '2', '{event}', custom={{'tags': \"{{'a': 1}}\"}})",
    "incr": "IncrementInstrument('{name}', '1', '{event}')",
    "log": "LogInstrument('{name}', '\"seen\"', '{event}')",
    "log with a condition": "LogInstrument('{name}', '1', '{event}', when='True')",
    "failing log": "LogInstrument('{name}', '1 // 0', '{event}')",
    "failing hist": "HistogramInstrument('{name}', 'None', '{event}')",
    "last hit": "LogInstrument('{name}', '0', '{event}', limits=Limits(hits=1))",
}
EVENTS = {"call": "start", "return": "elapsed", "end": "1.5"}  # and a clock there

# Each is a definition of ``target_N`` at the path given, and a way to use it.
KINDS = {
    "function": (
        """
        def target_{n}(): out_{n}.write("called\\n")
        def use_{n}(): target_{n}()
        """,
        "target_{n}",
    ),
    "method": (
        """
        class Target_{n}:
            def act(self): out_{n}.write("called\\n")
        def use_{n}(): Target_{n}().act()
        """,
        "Target_{n}.act",
    ),
    "closure": (
        """
        def make_{n}(text):
            def inside(): out_{n}.write(text)
            return inside
        target_{n} = make_{n}("called\\n")
        def use_{n}(): target_{n}()
        """,
        "target_{n}",
    ),
    "wrapper": (
        """
        def wrap_{n}(function):
            @functools.wraps(function)
            def wrapper(*args): return function(*args)
            return wrapper
        @wrap_{n}
        def target_{n}(): out_{n}.write("called\\n")
        def use_{n}(): target_{n}()
        """,
        "target_{n}",
    ),
    "suspended generator": (
        """
        def target_{n}():
            try:
                out_{n}.write("called\\n")
                yield
                out_{n}.write("again\\n")
                yield
            finally:
                out_{n}.write("closed\\n")
        alive_{n} = []
        def use_{n}():
            if not alive_{n}: alive_{n}.append(target_{n}())
            next(alive_{n}[0], None)
        """,
        "target_{n}",
    ),
    "suspended coroutine": (
        """
        class Pause_{n}:
            def __await__(self): yield
        async def target_{n}():
            out_{n}.write("called\\n")
            await Pause_{n}()
            out_{n}.write("again\\n")
            await Pause_{n}()
        alive_{n} = []
        def use_{n}():
            if not alive_{n}: alive_{n}.append(target_{n}())
            try: alive_{n}[0].send(None)
            except StopIteration: pass
        """,
        "target_{n}",
    ),
    "finalizer": (
        """
        class Target_{n}:
            def __del__(self):
                try: out_{n}.write("called\\n")
                except Exception: os.write(2, b"finalized, too late: {n}\\n")
        kept_{n} = Target_{n}()
        def use_{n}(): Target_{n}()
        """,
        "Target_{n}.__del__",
    ),
}

ENDS = {
    "returns": "",
    "sys.exit(3)": "sys.exit(3)",
    "an exception": "raise LookupError('the end')",
    "os._exit(4)": "sys.stdout.flush(); os._exit(4)",
    "exit functions of its own": "atexit.register(use_all); atexit.register(print, 'at exit')",
    "daemon threads inside": """
        inside = threading.Barrier(3)
        def stay():
            def wait(): inside.wait(); time.sleep(1000)
            lib.during = wait
            lib.daemon()
        for _ in range(2): threading.Thread(target=stay, daemon=True).start()
        inside.wait()
        """,
    "threads that go on": """
        def go_on():
            threading.main_thread().join()
            use_all()
        threading.Thread(target=go_on).start()
        """,
    "a forked child": """
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            use_all()
            sys.exit(5)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
    "multiprocessing": """
        import multiprocessing
        sys.stdout.flush()
        child = multiprocessing.get_context("fork").Process(target=use_all)
        child.start(); child.join(); print(child.exitcode)
        """,
    "a signal": "sys.stdout.flush(); os.kill(os.getpid(), signal.SIGTERM)",
}

COMBINATIONS = list(itertools.product(KINDS, INSTRUMENTS, EVENTS))


MODULE = """
    import functools, os
    out_{n} = open("out_{n}.txt", "w")
    class Late:
        def __del__(self):
            said = "finalized"
            try: use_{n}()
            except Exception as error: said += f", {{error!r}}"  # its file may be closed by now
            os.write(2, f"{{said}}: {n}\\n".encode())
    late = Late()
    """


def write_modules(folder):
    """A module for each combination: each has a file and a finalizer of its own."""
    for n, (kind, _, _) in enumerate(COMBINATIONS):
        parts = [MODULE.format(n=n), KINDS[kind][0].format(n=n)]
        (folder / f"lib_{n}.py").write_text("\n".join(map(textwrap.dedent, parts)))
    (folder / "lib.py").write_text("def daemon(): during()\n")


def program(end, *, probed):
    parts = [
        "import atexit, importlib, logging, os, signal, sys, threading, time, lib",
        f"for n in range({len(COMBINATIONS)}): importlib.import_module(f'lib_{{n}}')",
    ]
    if probed:
        parts.append("""
            from diagnose import *
            from diagnose.guards import Limits
            logging.getLogger("diagnose").addHandler(logging.NullHandler())
            logging.getLogger("diagnose").propagate = False
            """)
        for n, (kind, instrument, event) in enumerate(COMBINATIONS):
            path = f"lib_{n}." + KINDS[kind][1].format(n=n)
            made = INSTRUMENTS[instrument].format(name=f"i{n}", event=event, clock=EVENTS[event])
            parts.append(f"attach_to({path!r}).attach('i', {made})")
        parts.append("attach_to('lib.daemon').attach('i', HistogramInstrument('i', 'elapsed'))")
        parts.append("attach_to('lib.daemon').attach('j', LogInstrument('j', 'now'))")
    parts.append(f"""
        def use_all(sys=sys, print=print):
            for number in range({len(COMBINATIONS)}): getattr(sys.modules[f"lib_{{number}}"], f"use_{{number}}")()
            print("used")
        use_all()
        """)
    parts.append(ENDS.get(end, end))
    return "\n".join(map(textwrap.dedent, parts))


OURS = re.compile(r"Probe \(\w+\)\[tags=\{\}\] = .*\n")


def run(folder, text, *, shell="exec {python} -B -W ignore x.py"):
    """Run a program in a folder: its status, what it wrote to its streams and its files."""
    (folder / "x.py").write_text(text)
    done = subprocess.run(
        ["sh", "-c", shell.format(python=sys.executable)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ROOT, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    files = {path.name: path.read_text() for path in folder.glob("*.txt")}
    # In which order the interpreter finalizes is its own affair; the rest is the program's.
    lines = done.stderr.splitlines()
    finalized = sorted(line for line in lines if line.startswith("finalized"))
    rest = [re.sub("line [0-9]+", "line", line) for line in lines if line not in finalized]
    return {
        "status": done.returncode,
        "stdout": OURS.sub("", done.stdout),
        "finalized": finalized,
        "stderr": rest,
        "files": files,
    }


@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_as_without_probes(end, tmp_path):
    seen = []
    for probed in (False, True):
        folder = tmp_path / str(probed)
        folder.mkdir()
        write_modules(folder)
        seen.append(run(folder, program(end, probed=probed)))
    bare, with_probes = seen
    assert "used" in bare["stdout"]
    for what, expected in bare.items():
        if isinstance(expected, dict):
            wrong = {
                (name, *COMBINATIONS[int(name[4:-4])]): (text, with_probes[what].get(name))
                for name, text in expected.items()
                if with_probes[what].get(name) != text
            }
            assert not wrong
        assert with_probes[what] == expected, what
