"""Counts how far specs have come over the fleet, on the server, in one aggregation.

Two places say what became of a spec in a process: its entry in ``applied``, and the process's
own document. The first is what counts, as long as the fleet is small enough for all of them to
fit; then the second. Which processes should have the spec is reckoned there too: those that
live, whose labels match, and that are among the ``percent``.
"""

from __future__ import annotations

import fnmatch
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bson import Int64

from diagnose.specs import PERCENT_MODULUS, percent_factors
from diagnose_mongo import documents
from diagnose_mongo.store.processes import IS_ALIVE

if TYPE_CHECKING:
    from diagnose.specs import Select
    from diagnose_mongo.store.link import Link

__all__ = ["RolloutStore"]

_EXAMPLES = 3
_COUNT_ALL_SECONDS = 60.0


class RolloutStore:
    """Reads how far specs have come. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._specs = link.collection
        self._processes = link.beside("processes")

    def count(
        self,
        raw_id: object,
        version: object,
        name: object,
        select: Select | None,
        *,
        of_processes: bool = False,
    ) -> list[dict[str, Any]] | None:
        """Of one version of a spec, in how many processes it has come how far.

        Args:
            raw_id: its ``_id``.
            version: its ``lastmodified``.
            name: what people call the spec.
            select: whom it is meant for.
            of_processes: what processes' own documents say counts, not ``applied``.

        Returns:
            A row for each kind of outcome: ``state`` (``waiting``: it has not said anything
            yet; ``behind``: about another version only; ``gone``: an entry of a process that
            does not live), ``code``, ``count``, ``examples`` (some of them: ``process``, ``err``).
            None: there is no such version, any more.

        Raises:
            StoreError: the server could not be asked.
        """
        pipeline = self._by_process if of_processes else self._by_entry
        with self._link.talking("counting how far a spec has come"):
            rows = list(self._specs.aggregate(pipeline(raw_id, version, is_meant(name, select))))
        if not any(row["is_there"] for row in rows):
            return None
        return [
            {
                "state": state if isinstance(state := row["_id"]["state"], str) else "?",
                "code": row["_id"].get("code"),
                "count": row["count"],
                "acts": row.get("acts") is True,
                "examples": [each for each in row["examples"] if each.get("process")],
            }
            for row in rows
            if row["_id"]["state"] != "none"
        ]

    def _by_entry(self, raw_id: object, version: object, meant: Any) -> list[dict[str, Any]]:
        entries = {
            "$cond": [
                {"$eq": [{"$type": "$applied"}, "object"]},
                {"$objectToArray": "$applied"},
                [],
            ]
        }
        return [
            {"$match": _this(raw_id, version)},
            {"$project": {documents.VERSION: 1, "entry": entries}},
            {"$unwind": {"path": "$entry", "preserveNullAndEmptyArrays": True}},
            {
                "$project": {
                    "_id": "$entry.k",
                    "is_there": {"$literal": True},
                    "state": "$entry.v.state",
                    "code": "$entry.v.code",
                    "err": "$entry.v.err",
                    "acts": "$entry.v.acts",
                    "told": {"$gt": ["$entry.k", None]},
                    "current": _are_equal("$entry.v.lm", f"${documents.VERSION}"),
                }
            },
            {
                "$unionWith": {
                    "coll": self._processes.name,
                    "pipeline": [
                        {"$match": IS_ALIVE},
                        {"$project": {"alive": {"$literal": True}, "meant": meant}},
                    ],
                }
            },
            {
                "$group": {
                    "_id": "$_id",
                    "is_there": {"$max": "$is_there"},
                    "state": {"$max": "$state"},
                    "code": {"$max": "$code"},
                    "err": {"$max": "$err"},
                    "acts": {"$max": "$acts"},
                    "told": {"$max": "$told"},
                    "current": {"$max": "$current"},
                    "alive": {"$max": "$alive"},
                    "meant": {"$max": "$meant"},
                }
            },
            *_COUNTED,
        ]

    def _by_process(self, raw_id: object, version: object, meant: Any) -> list[dict[str, Any]]:
        return [
            {"$match": _this(raw_id, version)},
            {"$project": {"_id": None, "is_there": {"$literal": True}}},
            {
                "$unionWith": {
                    "coll": self._processes.name,
                    "pipeline": [
                        {"$match": IS_ALIVE},
                        {"$project": {"meant": meant, "mine": _figures_of(raw_id)}},
                        {
                            "$project": {
                                "alive": {"$literal": True},
                                "meant": 1,
                                "state": "$mine.state",
                                "code": "$mine.code",
                                "err": "$mine.err",
                                "acts": "$mine.acts",
                                "told": {"$gt": ["$mine", None]},
                                "current": _are_equal(
                                    "$mine.lm", {"$literal": documents.small(version)}
                                ),
                            }
                        },
                    ],
                }
            },
            *_COUNTED,
        ]

    def count_all(self) -> list[tuple[Any, object, dict[str, int]]]:
        """Of every version of every spec, in how many processes it is in which state.

        Processes' own documents are counted, in one pass.

        Returns:
            Of each the ``_id``, ``lastmodified`` and the counts.

        Raises:
            StoreError: the server could not be asked.
        """
        pipeline: list[dict[str, Any]] = [
            {"$match": IS_ALIVE},
            {"$project": {"specs.id": 1, "specs.lm": 1, "specs.state": 1}},
            {"$unwind": "$specs"},
            {"$group": {"_id": "$specs", "count": {"$sum": 1}}},
            {
                "$group": {
                    "_id": {"id": "$_id.id", "lm": "$_id.lm"},
                    "states": {"$push": {"k": {"$ifNull": ["$_id.state", "?"]}, "v": "$count"}},
                }
            },
        ]
        with self._link.talking("counting how far all specs have come", _COUNT_ALL_SECONDS):
            return [
                (
                    each["_id"]["id"],
                    each["_id"].get("lm"),
                    {state["k"]: state["v"] for state in each["states"]},
                )
                for each in self._processes.aggregate(pipeline)
            ]

    def meant(self, name: object, select: Select | None) -> int:
        """For how many processes that live a spec of this name and selection is meant.

        Raises:
            StoreError: the server could not be asked.
        """
        with self._link.talking("counting whom a spec is meant for"):
            return self._processes.count_documents(
                {"$and": [IS_ALIVE, {"$expr": is_meant(name, select)}]}
            )

    def costs(self, raw_id: object, version: object = None) -> dict[str, Any]:
        """What a spec has cost and done, over all that live.

        Args:
            raw_id: its ``_id``.
            version: its ``lastmodified``, if what it was before is not to count.

        Returns:
            ``hits`` in all, ``cost`` (the largest share of a core that one process spent on
            it), ``mean_cost``, ``suppressed`` by reason.

        Raises:
            StoreError: the server could not be asked.
        """
        pipeline: list[dict[str, Any]] = [
            {"$match": IS_ALIVE},
            {"$project": {"mine": _figures_of(raw_id)}},
            {"$match": {"mine": {"$exists": True}} if version is None else {"mine.lm": version}},
            {
                "$facet": {
                    "all": [
                        {
                            "$group": {
                                "_id": None,
                                "hits": {"$sum": "$mine.hits"},
                                "cost": {"$max": "$mine.cost"},
                                "mean_cost": {"$avg": "$mine.cost"},
                            }
                        }
                    ],
                    "suppressed": [
                        {"$project": {"each": {"$objectToArray": "$mine.suppressed"}}},
                        {"$unwind": "$each"},
                        {"$group": {"_id": "$each.k", "count": {"$sum": "$each.v"}}},
                    ],
                }
            },
        ]
        with self._link.talking("counting what a spec costs"):
            (found,) = self._processes.aggregate(pipeline)
        whole = found["all"][0] if found["all"] else {}
        return {
            "hits": whole.get("hits") or 0,
            "cost": whole.get("cost") or 0.0,
            "mean_cost": whole.get("mean_cost") or 0.0,
            "suppressed": {each["_id"]: each["count"] for each in found["suppressed"]},
        }


def _this(raw_id: object, version: object) -> dict[str, Any]:
    wanted = {documents.ID: {"$eq": raw_id}}
    # What is no date is the version of no valid spec; and some of it can't be asked for.
    return wanted | {documents.VERSION: version} if isinstance(version, datetime) else wanted


def _figures_of(raw_id: object) -> dict[str, Any]:
    """What the document of a process says of one spec."""
    is_it = {"$eq": ["$$this.id", {"$literal": documents.small(raw_id)}]}
    return {"$first": {"$filter": {"input": "$specs", "cond": is_it}}}


def _are_equal(one: Any, other: Any) -> dict[str, Any]:
    # What is no date is told in short (`documents.small`), and no version of a valid spec.
    is_none = {"$and": [{"$ne": [{"$type": each}, "date"]} for each in (one, other)]}
    return {"$or": [is_none, {"$eq": [one, other]}]}


_STATE = {
    "$switch": {
        "branches": [
            {"case": {"$not": [{"$or": ["$told", "$alive"]}]}, "then": "none"},
            {"case": {"$not": ["$alive"]}, "then": "gone"},
            {"case": {"$and": ["$told", "$current"]}, "then": {"$ifNull": ["$state", "installed"]}},
            # An entry about a version that was meant for it, when this one is not.
            {"case": {"$not": ["$meant"]}, "then": "none"},
            {"case": "$told", "then": "behind"},
        ],
        "default": "waiting",
    }
}
_COUNTED: list[dict[str, Any]] = [
    {"$project": {"is_there": 1, "state": _STATE, "code": 1, "err": 1, "acts": 1}},
    {
        "$group": {
            "_id": {
                "state": "$state",
                # Of those that are not there or late, what they said before is of no interest.
                "code": {"$cond": [{"$in": ["$state", ["gone", "behind"]]}, None, "$code"]},
            },
            "is_there": {"$max": "$is_there"},
            "count": {"$sum": 1},
            "acts": {"$max": "$acts"},
            # $firstN would be the same for a fifth less, and is of MongoDB 5.2.
            "examples": {"$push": {"process": "$_id", "err": "$err"}},
        }
    },
    {"$set": {"examples": {"$slice": ["$examples", _EXAMPLES]}}},
]


def is_meant(spec_id: object, select: Select | None) -> Any:
    """An expression: whether the process of a document is meant; see ``Select.matches``."""
    if select is None:
        return {"$literal": True}
    wanted: list[Any] = []
    for name, patterns in select.patterns.items():
        label = f"$labels.{name}"
        fits: list[dict[str, Any]] = [
            {"$eq": [label, {"$literal": pattern}]} for pattern in patterns
        ]
        fits += [
            {"$regexMatch": {"input": label, "regex": _regex(pattern)}} for pattern in patterns
        ]
        wanted.append({"$or": fits})
    if select.percent is not None:
        factor, shift = percent_factors(spec_id)
        product = {"$multiply": [Int64(factor), "$share"]}
        place = {"$mod": [{"$add": [product, Int64(shift)]}, Int64(PERCENT_MODULUS)]}
        wanted.append({"$lt": [place, select.percent / 100 * PERCENT_MODULUS]})
    return {"$and": wanted}


def _regex(pattern: str) -> str:
    # PCRE's \Z lets a line break follow.
    return rf"^{fnmatch.translate(pattern).removesuffix(chr(92) + 'Z')}\z"
