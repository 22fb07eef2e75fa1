"""A local MongoDB, found or started: for the demo, the tests and a first try.

A program uses :func:`server`::

    with server() as mongodb:
        client = MongoClient(mongodb.uri)
"""

from __future__ import annotations

from diagnose_mongo.server.local import ExternalServer, LocalServer, find_mongod, server
from diagnose_mongo.settings import LOCAL_URI, URI_VARIABLE

__all__ = [
    "LOCAL_URI",
    "URI_VARIABLE",
    "ExternalServer",
    "LocalServer",
    "find_mongod",
    "server",
]
