"""The collections of a fleet in MongoDB: the only package that knows the driver.

Every failure of the driver comes out as a :class:`~diagnose.errors.StoreError`.

Two kinds of collections work: pymongo's, and mongomock's for tests of a single thread
(:mod:`diagnose_mongo.store.mock` has all that is special about those).
"""

from __future__ import annotations

from diagnose_mongo.store.change_stream import follow
from diagnose_mongo.store.control import Control, ControlStore
from diagnose_mongo.store.editing import SpecDocuments
from diagnose_mongo.store.fleet_hits import FleetHitsStore, fleet_hits_id
from diagnose_mongo.store.history import HistoryStore, digest_of, is_about_content, new_record_id
from diagnose_mongo.store.inspection import Inspector, ServerFacts
from diagnose_mongo.store.link import (
    Link,
    ServerClock,
    SpecCollection,
    connect,
    is_answer,
    is_refused,
)
from diagnose_mongo.store.opening import FleetStores, fleet_stores, link_to, spec_store
from diagnose_mongo.store.processes import ProcessStore
from diagnose_mongo.store.replica import initiate_replica_set
from diagnose_mongo.store.rollouts import RolloutStore
from diagnose_mongo.store.specs import SpecStore, Undecodable
from diagnose_mongo.store.tidying import TidyingStore

__all__ = [
    "Control",
    "ControlStore",
    "FleetHitsStore",
    "FleetStores",
    "HistoryStore",
    "Inspector",
    "Link",
    "ProcessStore",
    "RolloutStore",
    "ServerClock",
    "ServerFacts",
    "SpecCollection",
    "SpecDocuments",
    "SpecStore",
    "TidyingStore",
    "Undecodable",
    "connect",
    "digest_of",
    "fleet_hits_id",
    "fleet_stores",
    "follow",
    "initiate_replica_set",
    "is_about_content",
    "is_answer",
    "is_refused",
    "link_to",
    "new_record_id",
    "spec_store",
]
