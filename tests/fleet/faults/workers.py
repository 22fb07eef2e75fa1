"""What the fault tests share: a probed module, an application that never rests, and a worker."""

from __future__ import annotations

import functools
import logging
import threading
import time

import modules
import pymongo

from diagnose.instruments import ProbeTestInstrument
from diagnose_mongo.store import Link
from diagnose_mongo.worker.manager import MongoInstrumentManager

log = logging.getLogger(__name__)

TTL_SECONDS = 0.6


spec = functools.partial(modules.spec, lifespan=None)


def make_worker(collection, process_id="me", *, timeout=1.0, **options):
    """A manager that beats each 0.2 s; three missed ones are its end."""
    # No budget: on a busy machine a hit costs more, and what is suspended is no fault.
    options = {"heartbeat": TTL_SECONDS / 3, "period": 0.1, "cpu_budget": None} | options
    manager = MongoInstrumentManager(
        Link(collection, timeout=timeout), process_id=process_id, **options
    )
    manager.instrument_classes["seen"] = ProbeTestInstrument
    return manager


def poll(manager):
    """Let it say that it lives, and poll."""
    manager._session.heart.hurry()
    manager.apply()


def state(specs, spec_id="a", process_id="me"):
    found = specs.find_one({"_id": spec_id}) or {}
    return found.get("applied", {}).get(process_id, {}).get("state")


def answers(uri):
    """Whether a server takes writes."""
    with pymongo.MongoClient(uri, serverSelectionTimeoutMS=100) as client:
        return client.admin.command("hello")["isWritablePrimary"]


class Application:
    """Threads that call the probed function all the time, and believe what it says."""

    def __init__(self, shop, threads=1):
        self._shop = shop
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(threads)]
        self.calls = 0
        self.slowest = 0.0
        self.problems = []

    def _work(self):
        try:
            while not self._over.is_set():
                began = time.perf_counter()
                assert self._shop.double(3) == 6
                self.slowest = max(self.slowest, time.perf_counter() - began)
                self.calls += 1
                time.sleep(0.0005)  # others have work to do, too
        except BaseException as exc:
            self.problems.append(exc)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info):
        self._over.set()
        for thread in self._threads:
            thread.join()
        log.info("%d calls, the slowest took %.2f ms", self.calls, self.slowest * 1000)
        assert not self.problems
        assert self.calls
