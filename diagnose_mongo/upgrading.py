"""The manager under the name, and with the arguments, that it had in diagnose 5.0.1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diagnose_mongo.worker.manager import MongoInstrumentManager

if TYPE_CHECKING:
    from diagnose_mongo.store import Link, SpecCollection

__all__ = ["MongoDBInstrumentManager"]


class MongoDBInstrumentManager(MongoInstrumentManager):
    """A :class:`~diagnose_mongo.worker.manager.MongoInstrumentManager` for programs that knew 5.0.1.

    Nothing is started: as there, ``apply_in_background()`` or ``apply()`` does that. Expressions
    may do everything, as there; pass ``expression_policy="restricted"`` if not every user that can
    write to the collection may do everything in each process.

    Args:
        process_id: as for the other.
        collection: as for the other.
        id_field: which field had the names of specs. Of no effect: here that is ``_id``, which
            each document has.
        options: further ones of the other.
    """

    def __init__(
        self,
        process_id: str | None,
        collection: SpecCollection | Link,
        id_field: str = "id",
        **options: Any,
    ) -> None:
        super().__init__(
            collection, process_id=process_id, **{"expression_policy": "python", **options}
        )
        self.id_field = id_field
