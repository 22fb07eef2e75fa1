from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import fleet_rollout


@pytest.mark.timeout(180)
def test_a_fleet_follows_inserts_changes_an_outage_and_the_death_of_a_worker():
    """The measurement of ``benchmarks/fleet_rollout.py`` in small, for a machine that is busy."""
    results = fleet_rollout.run(processes=4, specs=10, outage_seconds=2)
    assert results.calls > 1000
    assert results.missed(slack=10) == [], str(results)
