"""What a program gives, and what is made of it: a link, and the stores of a process."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from diagnose_mongo.store.control import ControlStore
from diagnose_mongo.store.fleet_hits import FleetHitsStore
from diagnose_mongo.store.link import Link
from diagnose_mongo.store.mock import MockLink, MockSpecStore, is_mock
from diagnose_mongo.store.processes import ProcessStore
from diagnose_mongo.store.specs import SpecStore

if TYPE_CHECKING:
    from diagnose_mongo.store.link import SpecCollection

__all__ = ["FleetStores", "fleet_stores", "link_to", "spec_store"]


class FleetStores(NamedTuple):
    """The collections beside the specs that a process uses; each may be refused to its user."""

    processes: ProcessStore
    controls: ControlStore
    hits: FleetHitsStore


def link_to(collection: SpecCollection | Link) -> Link:
    """A link to a collection of specs, pymongo's or mongomock's; a link is taken as it is.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(collection, Link):
        return collection
    return MockLink(collection) if is_mock(collection) else Link(collection)


def spec_store(link: Link) -> SpecStore:
    """What reads specs and writes entries over this link."""
    return MockSpecStore(link) if isinstance(link, MockLink) else SpecStore(link)


def fleet_stores(link: Link) -> FleetStores | None:
    """The collections beside the specs; None: mongomock has no more than specs."""
    if isinstance(link, MockLink):
        return None
    return FleetStores(ProcessStore(link), ControlStore(link), FleetHitsStore(link))
