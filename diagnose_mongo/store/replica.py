"""Makes a local mongod a replica set of one, which is durable and has change streams."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from diagnose.errors import StoreError
from diagnose_mongo.store.link import short

__all__ = ["initiate_replica_set"]

_ALREADY_INITIALIZED = 23
_PRIMARY_CHECK_SECONDS = 0.02


def initiate_replica_set(port: int, timeout: float) -> None:
    """Make the mongod on ``127.0.0.1:port`` a replica set of one, and wait until it is primary.

    Harmless on a server that is one already (its data directory was used before).

    Args:
        port: where the server listens; it was started with ``--replSet rs0``.
        timeout: seconds for all of it.

    Raises:
        StoreError: it was not primary in time, or refused.
    """
    address = f"127.0.0.1:{port}"
    config = {"_id": "rs0", "members": [{"_id": 0, "host": address}]}
    deadline = time.monotonic() + timeout
    problem = "it did not become primary"
    cause: Exception | None = None
    client: MongoClient[dict[str, Any]] = MongoClient(
        f"mongodb://{address}/?directConnection=true",
        serverSelectionTimeoutMS=max(1, int(timeout * 1000)),
    )
    with contextlib.closing(client):
        try:
            try:
                client.admin.command("replSetInitiate", config)
            except OperationFailure as exc:
                if exc.code != _ALREADY_INITIALIZED:
                    raise
            while time.monotonic() < deadline:
                if client.admin.command("hello")["isWritablePrimary"]:
                    return
                time.sleep(_PRIMARY_CHECK_SECONDS)
        except PyMongoError as exc:
            problem, cause = short(exc), exc
    raise StoreError(
        f"the MongoDB on {address} is no replica set primary after {timeout:g} s: {problem}; "
        "look into its log, and check that nothing else uses the port"
    ) from cause
