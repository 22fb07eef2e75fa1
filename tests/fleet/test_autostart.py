"""`diagnose run`: a manager in programs that know nothing of it. Each test runs real programs."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import signal
import subprocess
import sys
import venv
from datetime import UTC, datetime
from pathlib import Path

import pytest
from waiting import wait_for_documents

from diagnose_mongo import autostart

ROOT = Path(__file__).parents[2]
RUN = (sys.executable, "-m", "diagnose_mongo.autostart", "--")


@pytest.fixture
def environment(mongo_server, database):
    return os.environ | {
        "DIAGNOSE_MONGODB_URI": mongo_server.uri,
        "DIAGNOSE_DATABASE": database.name,
        "DIAGNOSE_PERIOD": "0.05",
        "DIAGNOSE_SERVICE": "program",
        "PYTHONPATH": str(ROOT),
    }


def run(*command, env, **options):
    return subprocess.run(
        [*RUN, *command], env=env, capture_output=True, text=True, check=False, **options
    )


class Program:
    """A program under `diagnose run` that waits for the end of its stdin when it is through."""

    def __init__(self, code, env, python=sys.executable):
        self.process = subprocess.Popen(
            [*RUN, python, "-P", "-c", f"import sys\n{code}\nsys.stdin.read()"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self):
        return self.process.stdout.readline().strip()

    def said(self):
        """What it says on stderr, in one line."""
        return self.process.stderr.readline()

    def end(self):
        out, err = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, err
        return out, err

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.communicate()


def processes(database, number=1):
    return wait_for_documents(database["processes"], lambda found: len(found) == number)


def test_a_program_is_a_process_of_the_fleet_as_long_as_it_runs(environment, database):
    with Program("", environment) as program:
        (found,) = processes(database).values()
        assert found["pid"] == program.process.pid
        assert found["labels"]["service"] == "program"
        assert found["period"] == 0.05
        assert program.end() == ("", "")
    assert not list(database["processes"].find())


def test_its_functions_are_probed_and_log_lines_are_kept_from_stdout(environment, database):
    database["specs"].insert_one(
        {
            "_id": "a",
            "target": "textwrap.dedent",
            "instrument": {"type": "log", "name": "n", "value": "text"},
            "lifespan": 10,
            "lastmodified": datetime.now(UTC),
        }
    )
    code = "import textwrap; sys.stdin.readline(); print(textwrap.dedent('  x'), flush=True)"
    with Program(code, environment) as program:
        wait_for_documents(
            database["specs"],
            lambda found: any(
                each["state"] == "installed" for each in found["a"].get("applied", {}).values()
            ),
        )
        program.process.stdin.write("\n")
        program.process.stdin.flush()
        assert program.line() == "x"
        assert program.said() == "Probe (n)[tags={}] =   x\n"
        assert program.end() == ("", "")


def test_a_child_is_a_process_of_its_own(environment, database):
    code = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', 'input()'])"
    with Program(code, environment) as program:
        found = processes(database, 2).values()
        assert program.process.pid in {each["pid"] for each in found}


def test_exit_codes_and_signals_are_the_commands_own(environment):
    assert run("sh", "-c", "exit 7", env=environment).returncode == 7
    assert run("sh", "-c", "kill -TERM $$", env=environment).returncode == -signal.SIGTERM
    # An ignored SIGPIPE would be inherited; then `yes` complains.
    piped = run("sh", "-c", "yes | head -n 1", env=environment)
    assert (piped.stdout, piped.stderr) == ("y\n", "")


def test_what_can_not_be_run_is_said(environment, tmp_path):
    answer = run("no-such-program", env=environment)
    assert answer.returncode == 127
    assert "no program 'no-such-program'" in answer.stderr
    (tmp_path / "text").write_text("")
    answer = run(str(tmp_path / "text"), env=environment)
    assert answer.returncode == 126
    assert "Permission denied" in answer.stderr
    assert run(env=environment).returncode == 2


def test_a_short_program_is_as_it_would_be(environment):
    code = "import sys, threading; print(sys.path, 'pymongo' in sys.modules)"
    bare = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    answer = run(sys.executable, "-c", code, env=environment | {"DIAGNOSE_PERIOD": "10"})
    assert (answer.stdout, answer.stderr) == (bare.stdout, bare.stderr)


def test_a_hidden_sitecustomize_runs_and_is_the_one_that_is_imported(environment, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('mine')")
    answer = run(
        *(sys.executable, "-c", "import sitecustomize; print(sitecustomize.__file__)"),
        env=environment | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    # Once in the Python that runs the command.
    assert answer.stdout.splitlines() == ["mine", "mine", str(tmp_path / "sitecustomize.py")]


def test_one_that_imports_its_own_kind_again_does_not_go_in_circles(environment, tmp_path):
    # As that of ddtrace-run does.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "sys.path.remove(os.path.dirname(__file__))\n"
        "del sys.modules['sitecustomize']\n"
        "try:\n    import sitecustomize\nexcept ImportError:\n    print('mine is the last')\n"
        "    sys.modules['sitecustomize'] = sys\n"
    )
    answer = run(
        *(sys.executable, "-c", "pass"), env=environment | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    )
    assert (answer.stdout, answer.stderr) == ("mine is the last\n" * 2, "")


def test_a_broken_hidden_sitecustomize_is_as_broken_as_before(environment, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import no_such_module")
    changed = environment | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    answer = run(sys.executable, "-c", "print('fine')", env=changed)
    assert answer.stdout == "fine\n"
    assert "no_such_module" in answer.stderr


# What opentelemetry-instrument is: a program that puts a folder with a sitecustomize of its own in
# front and becomes the command. The sitecustomize imports no other, and puts the folder in front
# once more.
WRAPPER = """
import os, shutil, sys
folder = os.path.dirname(os.path.abspath(__file__))
os.environ["PYTHONPATH"] = folder + os.pathsep + os.environ["PYTHONPATH"]
program, arguments = shutil.which(sys.argv[1]), sys.argv[1:]
BECOME
"""
ITS_SITECUSTOMIZE = """
import os
folder = os.path.dirname(os.path.abspath(__file__))
others = os.environ["PYTHONPATH"].split(os.pathsep)
os.environ["PYTHONPATH"] = os.pathsep.join([folder, *(each for each in others if each != folder)])
os.environ["WRAPPED"] = str(int(os.environ.get("WRAPPED", "0")) + 1)
"""
STARTED = "'_diagnose_autostart' in sys.modules, os.environ['WRAPPED']"
THREE_GENERATIONS = f"""
import os, subprocess, sys
print({STARTED}, flush=True)
child = "import os, sys; print({STARTED})"
subprocess.run([sys.executable, "-c", child], check=True)
subprocess.run(f'"{{sys.executable}}" -c "{{child}}"', shell=True, check=True)
"""


@pytest.mark.parametrize(
    "become",
    [
        "os.execl(program, *arguments)",
        "os.execvp(sys.argv[1], arguments)",
        "os.execve(program, arguments, os.environ)",
        "os.execvpe(sys.argv[1], arguments, dict(os.environ))",
    ],
)
def test_a_program_that_puts_its_own_sitecustomize_in_front_hides_none(
    environment, tmp_path, become
):
    (tmp_path / "wrapper.py").write_text(WRAPPER.replace("BECOME", become))
    (tmp_path / "sitecustomize.py").write_text(ITS_SITECUSTOMIZE)
    (tmp_path / "program.py").write_text(THREE_GENERATIONS)
    answer = run(
        *(sys.executable, str(tmp_path / "wrapper.py")),
        *(sys.executable, str(tmp_path / "program.py")),
        env=environment | {"DIAGNOSE_PERIOD": "10"},
    )
    assert answer.stderr == ""
    assert answer.stdout.splitlines() == ["True 1", "True 2", "True 2"]


def test_a_program_that_becomes_another_is_told_what_is_wrong_as_ever(environment):
    code = """
import os
before = dict(os.environ)
os.environ["PYTHONPATH"] = changed = "/first" + os.pathsep + os.environ["PYTHONPATH"]
for call in [
    lambda: os.execv("/no/such", ["x"]),
    lambda: os.execvpe("no-such", ["x"], {"PYTHONPATH": changed}),
    lambda: os.execve("/bin/sh", ["x"], None),
    lambda: os.execve("/bin/sh", ["x"], {"PYTHONPATH": 1}),
    lambda: os.execve("/bin/sh", [], {}),
    lambda: os.execv("/bin/sh"),
]:
    try:
        call()
    except Exception as exc:
        print(type(exc).__name__)
print(os.environ == before | {"PYTHONPATH": changed})
"""
    answer = run(sys.executable, "-c", code, env=environment | {"DIAGNOSE_PERIOD": "10"})
    expected = ["FileNotFoundError"] * 2 + ["TypeError"] * 2 + ["ValueError", "TypeError", "True"]
    assert (answer.stdout.splitlines(), answer.stderr) == (expected, "")


def test_opentelemetry_instrument_hides_none():
    pytest.importorskip("opentelemetry.instrumentation.auto_instrumentation")
    nowhere = {f"OTEL_{what}_EXPORTER": "none" for what in ("TRACES", "METRICS", "LOGS")}
    variables = {"PYTHONPATH": str(ROOT), "DIAGNOSE_PERIOD": "10", "WRAPPED": "0"} | nowhere
    wrapper = "from opentelemetry.instrumentation import auto_instrumentation as its; its.run()"
    answer = run(
        *(sys.executable, "-c", wrapper, sys.executable, "-c", THREE_GENERATIONS),
        env=os.environ | variables,
    )
    assert answer.stdout.splitlines() == ["True 0"] * 3


ENDS = {
    "pass": 0,
    "sys.exit(3)": 3,
    "raise ValueError('own')": 1,
    "os._exit(4)": 4,
    "os.kill(os.getpid(), signal.SIGTERM)": -signal.SIGTERM,
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); signal.raise_signal(15)": 5,
    "signal.raise_signal(signal.SIGINT)": -signal.SIGINT,
    "threading.Thread(target=time.sleep, args=(0.3,)).start()": 0,
    "ThreadPoolExecutor(1).submit(time.sleep, 0.3)": 0,
    "atexit.register(time.sleep, 0.3)": 0,
}


@pytest.mark.parametrize("turn", range(int(os.environ.get("DIAGNOSE_TEST_REPEATS", "1"))))
def test_a_program_that_ends_at_any_moment_ends_as_it_would_and_says_nothing_of_ours(
    environment, turn
):
    chance = random.Random(turn)
    running = []
    for end, status in ENDS.items():
        # The manager is imported and started within the first second or so.
        seconds = chance.uniform(0, 1.2)
        code = f"""
import atexit, os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
time.sleep({seconds})
{end}
"""
        program = subprocess.Popen(
            [*RUN, sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append((program, end, status, seconds))
    for program, end, status, seconds in running:
        with program:
            out, err = program.communicate()
        # Of a traceback's many lines only the last is that of the end itself.
        said = err.splitlines()[-1:] if "raise" in end and status not in {0, 5} else [*err]
        own = {1: ["ValueError: own"], -signal.SIGINT: ["KeyboardInterrupt"]}.get(status, [])
        assert (program.returncode, out, said) == (status, "", own), (end, seconds, err)
        assert "diagnose" not in err, (end, seconds, err)


def test_what_fails_only_since_the_program_ends_is_not_said(environment):
    # concurrent.futures can't be imported then, to name one.
    code = """
import threading
start = next(each for each in threading.enumerate() if each.name == "diagnose-start")
threading.Thread(target=start.join).start()
"""
    answer = run(sys.executable, "-c", code, env=environment | {"DIAGNOSE_PERIOD": "0.3"})
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


@pytest.mark.parametrize("code", ["raise KeyboardInterrupt", "pass"])
def test_texts_that_we_evaluate_while_a_program_ends_do_not_change_its_status(
    environment, tmp_path, code
):
    # CPython forgets an interrupt as soon as any thread evaluates a text.
    (tmp_path / "bson.py").write_text("eval('1')\nraise ImportError('no bson')\n")
    (tmp_path / "program.py").write_text(
        "import sys, threading, atexit\n"
        "start = next(t for t in threading.enumerate() if t.name == 'diagnose-start')\n"
        f"atexit.register(start.join)\n{code}\n"
    )
    changed = environment | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    answer = run(sys.executable, str(tmp_path / "program.py"), env=changed)
    assert answer.returncode == (-signal.SIGINT if "raise" in code else 0)
    assert "bson" not in answer.stderr


def test_a_manager_of_the_programs_own_wins(environment, database):
    code = """
import diagnose_mongo, os, threading
sys.stdin.readline()
manager = diagnose_mongo.start(database=os.environ["DIAGNOSE_DATABASE"], process_id="own", period=0.05)
"""
    with Program(code, environment) as program:
        (automatic,) = processes(database)
        program.process.stdin.write("\n")
        program.process.stdin.flush()
        wait_for_documents(database["processes"], lambda found: {*found} == {"own"})
        assert automatic != "own"


def test_a_manager_that_was_there_before_keeps_the_automatic_one_from_starting(environment):
    code = """
import diagnose_mongo, threading
from diagnose_mongo.autostart.start import start_from_environment
manager = diagnose_mongo.start(process_id="own")
before = threading.active_count()
assert not start_from_environment().is_running
assert threading.active_count() <= before
manager.stop()
assert not start_from_environment().is_running
"""
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DIAGNOSE_HEARTBEAT", "soon"),
        ("DIAGNOSE_PERIOD", "-1"),
        ("DIAGNOSE_MONGODB_URI", "mongodb://"),
        ("DIAGNOSE_STATSD", "8125"),
    ],
)
def test_a_setting_that_is_wrong_is_a_line_on_stderr(environment, variable, value):
    with Program("", environment | {variable: value}) as program:
        said = program.said()
        begin = f"diagnose: no probes in process {program.process.pid}: "
        kind = "StoreError" if "URI" in variable else "ConfigurationError|ValueError"
        assert re.match(f"{begin}({kind}): ", said)
        assert (variable in said) or (variable.split("_")[1].lower() in said.lower())
        assert program.end() == ("", "")


@pytest.fixture
def bare_python(tmp_path):
    """A Python with nothing installed."""
    venv.create(tmp_path / "bare", symlinks=True, with_pip=False)
    return str(tmp_path / "bare" / "bin" / "python")


def test_a_python_without_the_library_takes_it_from_where_the_command_is(
    environment, database, bare_python
):
    code = """
import importlib.util
assert not importlib.util.find_spec("diagnose_mongo")
sys.stdin.readline()
for name in ("rich", "pytest", "waiting"):
    assert not importlib.util.find_spec(name), name
import diagnose_mongo.worker.manager
print(diagnose_mongo.__file__, flush=True)
"""
    environment["PYTHONPATH"] = ""
    with Program(code, environment, bare_python) as program:
        processes(database)
        program.process.stdin.write("\n")
        program.process.stdin.flush()
        assert program.line() == importlib.util.find_spec("diagnose_mongo").origin
        program.end()


def test_a_python_of_another_version_is_told_what_to_install(environment, bare_python):
    environment |= {
        "PYTHONPATH": str(Path(autostart.__file__).parent / "path"),
        autostart.VARIABLE: f"cpython-310:{ROOT}",
    }
    program = subprocess.Popen(
        [bare_python, "-c", "input()"],
        env=environment,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with program:
        said = program.stderr.readline()
        assert f"{bare_python} -m pip install 'diagnose-mongo[mongo]'" in said
        assert "cpython-310" in said
        program.communicate("\n")
    assert program.returncode == 0


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("python -I x.py", "-I"),
        ("/usr/bin/python3.11 -W error -uEs -m x", "-uEs"),
        ("python -S", "-S"),
        ("python x.py -I", None),
        ("python -m x -I", None),
        ("python -c -I", None),
        ("python -Werror -X dev x.py", None),
        ("python -", None),
        ("python --version", None),
        ("ls -I", None),
    ],
)
def test_pythons_that_look_at_no_environment_are_known(command, flag):
    assert autostart._ignoring_flag(command.split()) == flag


def test_such_a_python_runs_and_it_is_said(environment):
    answer = run(sys.executable, "-I", "-c", "print(1)", env=environment)
    assert answer.stdout == "1\n"
    assert "-I does not look at PYTHONPATH: it runs without probes" in answer.stderr


def test_patched_threads_are_left_alone_and_it_is_said(environment, database):
    # What gevent.monkey.patch_all() does, as far as it matters here.
    code = "import _thread; _thread.start_new_thread = lambda *args: None"
    with Program(code, environment | {"DIAGNOSE_PERIOD": "0.5"}) as program:
        assert "its threads are patched (gevent, eventlet)" in program.said()
        assert program.end() == ("", "")


FORK_AT_ONCE = """
import concurrent.futures.thread, logging, os, time
children = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        import json, ssl, decimal, uuid, socket  # would wait for ever for what is half imported
        logging.getLogger("x")
        os._exit(0)
    children.append(pid)
    time.sleep(0.01)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
print("fine", flush=True)
"""


def test_forks_while_the_manager_is_imported_leave_children_whole(environment, database):
    with Program(FORK_AT_ONCE, environment | {"PYTHONWARNINGS": "ignore"}) as program:
        assert program.line() == "fine"
        processes(database)
        assert program.end()[1] == ""
