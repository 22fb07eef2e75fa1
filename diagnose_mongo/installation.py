"""Sets a database up for a fleet: indexes, a validator for specs, and roles for its users.

It is done once, by a user with the right to it; processes need no such rights, and do without what is
missing. Doing it again changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diagnose import fields
from diagnose_mongo import documents

if TYPE_CHECKING:
    from diagnose_mongo.store import Link

__all__ = ["VALIDATOR", "install", "install_roles", "roles"]

VALIDATOR: dict[str, Any] = {"$jsonSchema": {"bsonType": "object", **fields.inside("")}}
"""What a spec has to look like. What it leaves open, processes find and say in their entries."""


def install(link: Link) -> list[str]:
    """Make what a fleet needs: indexes, and a validator that refuses what can be no spec.

    Specs that are there already are not touched, and may go on being changed.

    Returns:
        What there is now, a line each.

    Raises:
        StoreError: it could not be done; this user may lack the right.
    """
    specs, database = link.collection, link.collection.database
    done = []
    with link.talking("setting the database up", _INSTALL_SECONDS):
        if specs.name not in database.list_collection_names():
            database.create_collection(specs.name)
        database.command("collMod", specs.name, validator=VALIDATOR, validationLevel="moderate")
        done.append(f"{specs.full_name}: a validator refuses what can be no spec")
        specs.create_index([(documents.ID, 1), (documents.VERSION, 1)], name=documents.POLL_INDEX)
        done.append(f"{specs.full_name}: the index {documents.POLL_INDEX} answers polls")
        specs.create_index("id", sparse=True)
        done.append(f"{specs.full_name}: an index on id finds specs by name")
        processes = link.beside("processes")
        processes.create_index("expires", expireAfterSeconds=0)
        done.append(f"{processes.full_name}: a TTL index on expires removes the dead")
        history = link.beside("history")
        history.create_index([("spec", 1), ("at", -1), (documents.ID, -1)])
        history.create_index([("at", -1), (documents.ID, -1)])
        done.append(f"{history.full_name}: indexes find the last changes, of one spec and of all")
    return done


_INSTALL_SECONDS = 60.0


def roles(link: Link) -> dict[str, list[dict[str, Any]]]:
    """The privileges that each kind of user needs, in the form of MongoDB's ``createRole``.

    ``diagnoseWorker``: a process with a manager. MongoDB knows no rights to single fields: a
    worker that may write its entry may change the spec. It can't add or remove one.
    ``diagnoseOperator``: a user that puts specs in, changes and removes them, and pauses the fleet.
    ``diagnoseViewer``: a user that looks at it.
    """
    database = link.collection.database.name

    def on(name: str, *actions: str) -> dict[str, Any]:
        collection = link.collection.name if name == "specs" else link.beside(name).name
        return {"resource": {"db": database, "collection": collection}, "actions": list(actions)}

    beside = ("processes", "control", "budgets", "history")
    looks = [on("specs", "find", "changeStream", "listIndexes", "collStats")]
    looks += [on(name, "find", "listIndexes") for name in beside]
    looks.append({"resource": {"db": database, "collection": ""}, "actions": ["listCollections"]})
    return {
        "diagnoseWorker": [
            on("specs", "find", "update", "changeStream"),
            on("processes", "find", "insert", "update", "remove"),
            on("budgets", "find", "insert", "update", "remove"),
            on("control", "find", "insert", "update"),
            on("history", "find", "insert", "update"),
        ],
        "diagnoseOperator": [
            *looks,
            on("specs", "insert", "update", "remove"),
            on("control", "insert", "update"),
            on("history", "insert", "update"),
        ],
        "diagnoseViewer": looks,
    }


def install_roles(link: Link) -> list[str]:
    """Make the roles of :func:`roles` in the fleet's database, or bring them up to date.

    Returns:
        Their names.

    Raises:
        StoreError: it could not be done; this user may lack the right.
    """
    database = link.collection.database
    made = roles(link)
    with link.talking("making roles", _INSTALL_SECONDS):
        there = {each["role"] for each in database.command("rolesInfo")["roles"]}
        for name, privileges in made.items():
            verb = "updateRole" if name in there else "createRole"
            database.command(verb, name, privileges=privileges, roles=[])
    return list(made)
