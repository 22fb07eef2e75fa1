"""What starting costs, in milliseconds of CPU: the least of several runs.

    .venv/bin/python tools/startup.py

Without Python's own start and what the environment's .pth files import, which is printed first.
The goals: ``import diagnose`` 40 ms, ``diagnose --help`` 150 ms. A machine that is busy shows
more: compare figures of one run.
"""

from __future__ import annotations

import subprocess
import sys

RUNS = 10
BEGIN = "import time; began = time.process_time()\n"
END = "\nimport sys; print(1000 * (time.process_time() - began), file=sys.stderr)"
PROGRAMS = {
    "Python and its environment": "began = 0",
    "import diagnose": "import diagnose",
    "import diagnose; diagnose.attach_to": "import diagnose; diagnose.attach_to",
    "diagnose --help": "from diagnose_mongo.cli import main; main(['--help'])",
}


def main():
    """Print a line for each."""
    for name, program in PROGRAMS.items():
        print(f"{name:40} {min(milliseconds(program) for _ in range(RUNS)):6.1f} ms")


def milliseconds(program):
    """CPU time of one run; the first one of all also compiles what is imported."""
    command = [sys.executable, "-c", BEGIN + program + END]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stderr)


if __name__ == "__main__":
    main()
