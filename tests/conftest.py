from __future__ import annotations

import gc
import os
import signal
import sys
import uuid
from typing import TYPE_CHECKING, Any

import hypothesis
import leftovers
import pytest
from modules import SHOP, loaded
from stage import EVENTS, Stage

from diagnose_mongo.server import LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import ModuleType

    from pymongo.collection import Collection
    from pymongo.database import Database

# --- hypothesis -------------------------------------------------------------------------------

# A machine that does other things too must not fail a test. In CI the same examples come each
# time, so that a red run can be repeated; elsewhere new ones are tried.
hypothesis.settings.register_profile(
    "diagnose",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    database=None if os.environ.get("CI") else hypothesis.settings.default.database,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("diagnose")

# --- signals ----------------------------------------------------------------------------------

# A shell starts what runs in its background with SIGINT ignored, nohup with SIGHUP, and children
# inherit that; tests that interrupt programs need them to be as they are in a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# --- nothing is left behind -------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test no probe is active, and every function that was probed has its own code."""
    leftovers.originals.clear()
    yield
    probes = sys.modules.get("diagnose.probes")
    active = dict(probes.active_probes) if probes is not None else {}
    changed = leftovers.changed_functions()
    if changed:
        # Functions that nobody holds any more can't be called; some are kept by a cycle.
        changed.clear()
        gc.collect()
        changed = leftovers.changed_functions()
    leftovers.originals.clear()
    # The next test finds a clean place also when this one left none.
    for probe in active.values():
        probe.stop()
        for key in list(probe.instruments):
            probe.detach(key)
    if probes is not None:
        probes.active_probes.clear()
    for function, original in changed.items():
        function.__code__ = original
    assert not active, f"the test left probes: {sorted(active)}"
    if request.node.get_closest_marker("replaces_code") is None:
        names = sorted(f"{f.__module__}.{f.__qualname__}" for f in changed)
        assert not names, f"these functions do not have their original code: {names}"


# --- what is probed ---------------------------------------------------------------------------


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Puts functions and modules where a path leads to them, as long as the test runs."""
    with Stage() as made:
        yield made


@pytest.fixture
def place(stage: Stage) -> Callable[..., str]:
    """Puts things into a new module, and gives the path of the first one."""
    return stage.place


@pytest.fixture(params=EVENTS, ids="-".join)
def names(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Events: each one alone, and all together."""
    found: tuple[str, ...] = request.param
    return found


@pytest.fixture
def shop(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The module that specs lead to: of the test file's ``SOURCE``, or the usual one."""
    with loaded("probed_shop", getattr(request.module, "SOURCE", SHOP)) as module:
        yield module


# --- reports ----------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep out what is no UTF-8: a worker of pytest-xdist can't send it, and would end."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


# --- MongoDB ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def mongo_server() -> Iterator[LocalServer]:
    """A real MongoDB with test commands, for this run only; its TTL monitor runs each second.

    A test that kills it restarts it. ``DIAGNOSE_MONGODB_URI`` is not looked at: tests kill
    servers and set fail points, which is for one's own server only.
    """
    with LocalServer(test_commands=True) as local:
        yield local


@pytest.fixture
def database(mongo_server: LocalServer) -> Iterator[Database[dict[str, Any]]]:
    """An empty database of this test's own on the real server."""
    import pymongo

    if mongo_server.pid is None:
        mongo_server.restart()
    with pymongo.MongoClient[dict[str, Any]](mongo_server.uri, tz_aware=False) as client:
        name = f"test_{uuid.uuid4().hex}"
        yield client[name]
        if mongo_server.pid is None:
            mongo_server.restart()
        client.drop_database(name)


@pytest.fixture
def specs(database: Database[dict[str, Any]]) -> Collection[dict[str, Any]]:
    """The collection of specs in it."""
    return database["specs"]
