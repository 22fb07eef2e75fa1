from __future__ import annotations

import pytest
from workers import make_worker


@pytest.fixture
def worker(specs, shop):
    """Makes workers on a server that is well."""
    made = []

    def make(process_id="me", **options):
        # On a busy machine nobody is to count as dead by mistake.
        # Odd documents that can be armed are not to take the places of good ones.
        no_limits = {"most_per_function": None, "most_per_process": None}
        options = {"heartbeat": 60} | no_limits | options
        made.append(make_worker(specs, process_id, timeout=10.0, **options))
        return made[-1]

    yield make
    for manager in made:
        manager.stop()
