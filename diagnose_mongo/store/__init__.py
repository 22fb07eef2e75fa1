"""The collections of a fleet in MongoDB: the only package that knows the driver.

Every failure of the driver comes out as a :class:`~diagnose.errors.StoreError`.

Two kinds of collections work: pymongo's, and mongomock's for tests of a single thread, which
has no bulk writes, no raw documents and no server clock, and of which only the specs are used;
see :attr:`Link.is_real`.
"""

from __future__ import annotations

from diagnose_mongo.store.change_stream import follow
from diagnose_mongo.store.control import Control, ControlStore
from diagnose_mongo.store.fleet_hits import BudgetStore, budget_id
from diagnose_mongo.store.history import HistoryStore, content_of, is_about_content, new_entry_id
from diagnose_mongo.store.inspection import Inspector, ServerFacts
from diagnose_mongo.store.link import (
    Link,
    ServerClock,
    SpecCollection,
    connect,
    is_answer,
    is_refused,
)
from diagnose_mongo.store.processes import ProcessStore
from diagnose_mongo.store.replica import initiate_replica_set
from diagnose_mongo.store.rollouts import RolloutStore
from diagnose_mongo.store.specs import SpecStore, Undecodable

__all__ = [
    "BudgetStore",
    "Control",
    "ControlStore",
    "HistoryStore",
    "Inspector",
    "Link",
    "ProcessStore",
    "RolloutStore",
    "ServerClock",
    "ServerFacts",
    "SpecCollection",
    "SpecStore",
    "Undecodable",
    "budget_id",
    "connect",
    "content_of",
    "follow",
    "initiate_replica_set",
    "is_about_content",
    "is_answer",
    "is_refused",
    "new_entry_id",
]
