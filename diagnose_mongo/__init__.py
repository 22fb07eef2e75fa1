"""Probes for a fleet of Python processes, steered from a MongoDB collection.

One call where a program starts::

    import diagnose_mongo

    diagnose_mongo.start("mongodb://db.example:27017", service="web")

From then on this process applies the spec documents of ``diagnose.specs`` that are meant for
it, and reports in each of them what came of it.

PYTEST_DONT_REWRITE: a program may import this before pytest looks for the plugin beside it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from diagnose_mongo import documents, settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diagnose.sinks import Sink
    from diagnose_mongo.worker.manager import MongoInstrumentManager

__all__ = ["MongoInstrumentManager", "start"]


_MANAGERS = {
    "MongoInstrumentManager": "diagnose_mongo.worker.manager",
    "MongoDBInstrumentManager": "diagnose_mongo.upgrading",
}


def start(
    uri: str | None = None,
    database: str = settings.DATABASE,
    *,
    collection: str = documents.COLLECTION,
    sinks: Sequence[Sink] = (),
    **options: Any,
) -> MongoInstrumentManager:
    """Make a manager with a small MongoDB client of its own, and start it.

    Returns at once, whether MongoDB is there or not.

    Args:
        uri: of MongoDB; without it the variable ``DIAGNOSE_MONGODB_URI``, or else port 27017
            of this machine.
        database: the one with the specs.
        collection: of spec documents.
        sinks: where metrics go; ``manager.sinks`` can be changed at any time.
        options: keyword arguments of :class:`MongoInstrumentManager`: ``service``, ``env``,
            ``version``, ``labels``, ``process_id``, ``period``, ``heartbeat``, ``watch``,
            ``expression_policy``, ``cpu_budget``, ``most_per_function``,
            ``most_per_process``, ``bounded_above``, ``gives_way``.

    Returns:
        The manager; ``stop()`` ends it, as does the end of the program.

    Raises:
        StoreError: the URI is none.
    """
    manager_class: type[MongoInstrumentManager] = __getattr__("MongoInstrumentManager")
    from diagnose_mongo.store import connect  # noqa: PLC0415 - see __getattr__

    uri = uri or os.environ.get(settings.URI_VARIABLE) or settings.LOCAL_URI
    link = connect(uri, database, collection)
    manager = manager_class(link, **options)
    manager.sinks.extend(sinks)
    manager.start()
    return manager


def __getattr__(name: str) -> Any:
    # Later than the import of this package: much of it works without the driver.
    if name not in _MANAGERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_MANAGERS[name]), name)
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in {"pymongo", "bson", "apscheduler"}:
            raise
        raise ImportError(
            f"{exc.name} is not installed: pip install 'diagnose-mongo[mongo]'", name=exc.name
        ) from exc
