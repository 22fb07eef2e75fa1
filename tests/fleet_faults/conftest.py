from __future__ import annotations

import pytest
from modules import loaded
from workers import SOURCE, make_worker


@pytest.fixture
def shop():
    with loaded("fault_shop", SOURCE) as module:
        yield module


@pytest.fixture
def specs(database):
    return database["specs"]


@pytest.fixture
def worker(specs, shop):
    """Makes workers on a server that is well."""
    made = []

    def make(process_id="me", **options):
        # On a busy machine nobody is to count as dead by mistake.
        options = {"heartbeat": 60} | options
        made.append(make_worker(specs, process_id, timeout=10.0, **options))
        return made[-1]

    yield make
    for manager in made:
        manager.stop()
