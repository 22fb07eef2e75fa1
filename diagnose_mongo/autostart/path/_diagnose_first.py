# Keeps the folder of this file the first in PYTHONPATH, if it is in there at all.
#
# opentelemetry-instrument, ddtrace-run, newrelic-admin and their like put a folder with a
# sitecustomize of their own in front, and theirs may not import the next one (OpenTelemetry's does
# not). Ours does: whoever is first, both run if it is ours. Any Python reads this file.
import os

_HERE = os.path.dirname(os.path.abspath(__file__))
_execv, _execve = os.execv, os.execve


def come_first():
    """In the environment of this process, and so of the programs that it starts."""
    path = os.environ.get("PYTHONPATH", "")
    if _with_us_first(path) != path:
        os.environ["PYTHONPATH"] = _with_us_first(path)


def _with_us_first(path):
    folders = path.split(os.pathsep)
    if _HERE not in folders[1:]:
        return path
    return os.pathsep.join([_HERE] + [folder for folder in folders if folder != _HERE])


# Those programs become the command: this is the last moment. All of os.exec* end in one of both.
def execv(path, argv):
    before = os.environ.get("PYTHONPATH")
    come_first()
    try:
        return _execv(path, argv)
    finally:  # it failed
        if os.environ.get("PYTHONPATH") != before:
            os.environ["PYTHONPATH"] = before


def execve(path, argv, env):
    try:
        ours = _with_us_first(env["PYTHONPATH"])
        changed = env if ours == env["PYTHONPATH"] else dict(env, PYTHONPATH=ours)
    except Exception:  # noqa: BLE001 - there is none, or this is no environment, as the real one will say
        changed = env
    return _execve(path, argv, changed)


for _ours, _real in ((execv, _execv), (execve, _execve)):
    _ours.__module__, _ours.__doc__ = _real.__module__, _real.__doc__
os.execv, os.execve = execv, execve
