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
from stage import in_thread
from waiting import in_child

import diagnose
from diagnose import registry

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
            from diagnose.limits import Limits
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


def run(folder, text, *, shell="exec {python} -B -W ignore x.py", stdout=None):
    """Run a program in a folder: its status, what it wrote to its streams and its files."""
    (folder / "x.py").write_text(text)
    done = subprocess.run(
        ["sh", "-c", shell.format(python=sys.executable)],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": ROOT, "PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    files = {path.name: path.read_text() for path in folder.glob("*.txt")}
    # In which order the interpreter finalizes is its own affair; the rest is the program's.
    lines = done.stderr.splitlines()
    finalized = sorted(line for line in lines if line.startswith("finalized"))
    text = "\n".join(line for line in lines if line not in finalized)
    rest = re.sub("line [0-9]+", "line", text.replace(str(folder), "")).splitlines()
    return {
        "status": done.returncode,
        "stdout": OURS.sub("", done.stdout or ""),
        "finalized": finalized,
        "stderr": rest,
        "files": files,
    }


# Another thread changes probes as the program ends, and is done a moment later.
CHANGING = """
    import atexit, threading, time
    from diagnose import registry
    def change():
        with registry.lock:
            changing.set()
            ending.wait(60)
            time.sleep(0.3)
    changing, ending = threading.Event(), threading.Event()
    threading.Thread(target=change, daemon=True).start()
    changing.wait(60)
    atexit.register(ending.set)
    """


@pytest.mark.parametrize("end", [*ENDS, CHANGING], ids=[*ENDS, "while probes change"])
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


# --- standard output ------------------------------------------------------------------------------

CHATTY = """
    import os, sys
    def work(x): return x
    {probes}
    def go():
        for number in range(2000): work("x" * 100)
    {program}
    """
CHATTY_PROBES = """
    from diagnose import *
    from diagnose.limits import Limits
    import logging; logging.getLogger("diagnose").addHandler(logging.NullHandler())
    logging.getLogger("diagnose").propagate = False  # of hits that took too long on a busy machine
    for event in ("call", "end"):
        log = LogInstrument("n", "x", event, limits=Limits(rate=1e9))
        attach_to("__main__.work").attach(event, log)
    """
OUTPUTS = ("closed", "full", "a pipe without a reader", "a pipe that is full")
PROGRAMS = {
    "says nothing": "go()",
    "speaks before": "print('said', flush=True) if sys.stdout else 0; go()",
    "speaks after": "go(); print('said')",
    "speaks in between": "print('said'); go(); print('said'); go()",
    "exits": "go(); sys.exit(3)",
    "lets the system end it": "import signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL); go()",
    "closes it": "go(); sys.stdout and os.dup2(os.open(os.devnull, os.O_WRONLY), 1); go()",
}


@pytest.fixture
def outputs():
    """What is open for writing by these names."""
    reader, unread = os.pipe()
    os.close(reader)
    reader, full = os.pipe()
    os.set_blocking(full, False)
    try:
        while True:
            os.write(full, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(full, True)
    os.read(reader, 4096)  # there is room for a few lines
    device = os.open("/dev/full", os.O_WRONLY)
    yield {
        "closed": None,
        "full": device,
        "a pipe without a reader": unread,
        "a pipe that is full": full,
    }
    for end in (reader, unread, full, device):
        os.close(end)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("does", PROGRAMS)
def test_an_output_that_fails_changes_neither_status_nor_what_is_said(
    output, does, tmp_path, outputs
):
    if output == "a pipe that is full" and does.startswith("speaks"):
        pytest.skip("then the program itself waits")
    seen = []
    for probes in ("", CHATTY_PROBES):
        folder = tmp_path / f"probed {bool(probes)}"
        folder.mkdir()
        text = CHATTY.replace("{probes}", probes).replace("{program}", PROGRAMS[does])
        shell = "exec {python} -B x.py" + (" >&-" if output == "closed" else "")
        seen.append(run(folder, textwrap.dedent(text), shell=shell, stdout=outputs[output]))
    # The program is told of it exactly where it speaks itself.
    is_told = does.startswith("speaks") and output != "closed"
    assert (seen[0]["status"] not in {0, 3}) is is_told
    assert seen[1] == seen[0]


def test_a_hit_amid_a_write_to_standard_output_destroys_nothing(tmp_path):
    # The signal comes while the interpreter waits in a write of its own: whoever writes to the
    # same stream in the handler gets a RuntimeError, and what was in its buffer is lost.
    text = """
        import os, signal, sys, threading, time
        lines = []
        def handler(*_): lines.append(1)
        {probes}
        signal.signal(signal.SIGALRM, handler)
        reader, writer = os.pipe()
        saved = os.dup(1)
        os.dup2(writer, 1); os.close(writer)
        read = []
        def slow():
            while not lines: time.sleep(0.001)
            while piece := os.read(reader, 65536): read.append(piece)
        thread = threading.Thread(target=slow); thread.start()
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        for number in range(40_000): print("line", number)
        sys.stdout.flush()
        os.dup2(saved, 1); thread.join()
        text = b"".join(read).decode()
        text = "".join(text.split("Probe (n)[tags={{}}] = 1\\n"))
        print(text == "".join(f"line {{number}}\\n" for number in range(40_000)), len(lines))
        """
    probes = "from diagnose import *; attach_to('__main__.handler').attach('n', LogInstrument('n', '1', 'call'))"
    for put in ("", probes):
        done = run(tmp_path, textwrap.dedent(text).format(probes=put))
        assert (done["stdout"], done["stderr"], done["status"]) == ("True 1\n", [], 0)


# --- sinks ----------------------------------------------------------------------------------------

SINKS = """
    import diagnose, os, sys, time
    def work(): return 1
    class Sink:
        def histogram(self, name, values, tags):
            if {hangs}: time.sleep(1000)
            os.write(2, f"{{name}} {{list(values)}}\\n".encode())
        def counter(self, name, total, tags): self.histogram(name, [total], tags)
    diagnose.manager.sinks.append(Sink())
    for number in range(20):
        made = diagnose.IncrementInstrument(f"n{{number}}", "1")
        diagnose.attach_to("__main__.work").attach(number, made)
    work()
    {end}
    """


def test_what_was_measured_last_is_sent_as_the_program_ends(tmp_path):
    text = textwrap.dedent(SINKS).format(hangs=False, end="")
    done = run(tmp_path, text)
    assert sorted(done["stderr"]) == sorted(f"n{number} [1]" for number in range(20))


def test_what_was_measured_last_in_a_child_of_multiprocessing_is_sent(tmp_path):
    end = """
import multiprocessing
diagnose.attach_to("__main__.work").stop()
diagnose.attach_to("__main__.work").attach("n", diagnose.HistogramInstrument("n", "2"))
child = multiprocessing.get_context("fork").Process(target=work)
child.start(); child.join()
os._exit(0)
"""
    done = run(tmp_path, textwrap.dedent(SINKS).format(hangs=False, end=end))
    assert done["stderr"].count("n [2]") == 1


@pytest.mark.parametrize("end", ["", "diagnose.attach_to('__main__.work').stop()", "sys.exit(3)"])
def test_a_sink_that_hangs_is_waited_for_once_and_it_is_said_what_is_lost(end, tmp_path):
    done = run(tmp_path, textwrap.dedent(SINKS).format(hangs=True, end=end))
    assert done["status"] == (3 if "exit" in end else 0)
    (said,) = done["stderr"]
    assert "a metric sink has not come to an end within 1 s" in said
    assert re.search(r"(19|20) values", said)


def test_after_the_end_other_threads_may_still_change_probes():
    def end():
        diagnose.probes._end()
        return in_thread(lambda: registry.lock.acquire(timeout=DEADLINE_SECONDS))

    assert in_child(end) == "True"
