"""A change stream of the collection of specs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bson.errors import BSONError
from pymongo.errors import PyMongoError

from diagnose.errors import StoreError
from diagnose_mongo import documents
from diagnose_mongo.store.link import short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from diagnose_mongo.store.link import Link

__all__ = ["follow"]

_AWAIT_MS = 1_000
# Entries in `applied` are changes too, and by far the most.
_OF_INTEREST = {
    "$or": [
        {"operationType": {"$ne": "update"}},
        {f"updateDescription.updatedFields.{documents.VERSION}": {"$exists": True}},
    ]
}


def follow(link: Link, is_over: Callable[[], bool]) -> Iterator[None]:
    """Yield whenever a spec was put in, changed or removed, until ``is_over`` says so.

    The first time is when the stream is open: what came before it is there to be read.

    Raises:
        StoreError: there is no change stream, or it broke.
    """
    pipeline: list[dict[str, Any]] = [{"$match": _OF_INTEREST}, {"$project": {"operationType": 1}}]
    try:
        with link.collection.watch(pipeline, max_await_time_ms=_AWAIT_MS) as stream:
            yield
            while not is_over() and stream.alive:
                if stream.try_next() is not None:
                    yield
    except (PyMongoError, BSONError) as exc:
        raise StoreError(
            f"following changes of the collection {link.collection.full_name!r} failed: "
            f"{short(exc)}; it takes a replica set, and the right to read it"
        ) from exc
