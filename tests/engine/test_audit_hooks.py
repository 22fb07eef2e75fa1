"""Audit hooks of the program that raise (``sys.addaudithook``) hinder instruments, not it.

Each runs in a process of its own, since nobody can take an audit hook away.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

AUDITED = Path(__file__).with_name("audited.py")


@pytest.mark.parametrize("event", ["call", "return", "end", "line:+2"])
@pytest.mark.parametrize("how", ["once", "on"])
@pytest.mark.parametrize("phase", ["attach", "hit", "off"])
def test_nothing_changes_for_the_program_at_whichever_event_a_hook_raises(phase, how, event):
    done = subprocess.run(
        [sys.executable, AUDITED, phase, how, event],
        capture_output=True,
        text=True,
        check=False,
    )
    *wrong, refused = done.stdout.splitlines() or [""]
    assert (done.returncode, wrong, done.stderr) == (0, [], "")
    assert int(refused) >= 10
