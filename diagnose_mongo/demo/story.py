"""What the demo tells, step by step. Everything is seen to happen before it is said.

The story knows what an operator knows: the documents in MongoDB, the metrics, the log lines.
Besides, it asks the workers whether their functions have their original code.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diagnose.errors import SpecError
from diagnose_mongo.demo import DemoError, specs
from diagnose_mongo.demo.display import Picture, problems, states
from diagnose_mongo.demo.metrics import summarize
from diagnose_mongo.rollouts import rollout
from diagnose_mongo.store import Link, ProcessStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pymongo.collection import Collection

    from diagnose_mongo.demo.display import Display
    from diagnose_mongo.demo.fleet import Fleet
    from diagnose_mongo.demo.metrics import MetricsServer, Row
    from diagnose_mongo.demo.signals import StopSignals
    from diagnose_mongo.rollouts import Rollout

    Found = Mapping[object, Rollout]

__all__ = ["Story"]

_FRAME_SECONDS = 0.1
_DEADLINE_SECONDS = 30.0
_LOG_LINES_EACH = 2


@dataclass(slots=True)
class Story:
    """The story, and what takes part in it.

    Attributes:
        display: where it is told.
        signals: what can end it.
        collection: the specs.
        fleet: the workers.
        metrics: what they measure.
        seconds: how long it takes, about, if nothing is slow.
    """

    display: Display
    signals: StopSignals
    collection: Collection[dict[str, Any]]
    fleet: Fleet
    metrics: MetricsServer
    seconds: float

    def tell(self) -> None:
        """Tell all of it.

        Raises:
            DemoError: something did not happen, or not in time.
            Interrupted: a signal came.
        """
        self.meet_the_workers()
        self.insert_three_kinds()
        self.insert_mistakes()
        self.look_at_values()
        self.change_one()
        self.remove_one()
        self.take_everything_back()

    def tell_live(self, uri: str) -> None:
        """Insert all specs and show how things stand, until a signal comes.

        Raises:
            DemoError: something did not happen, or not in time.
            Interrupted: a signal came; it has no other end.
        """
        self.meet_the_workers()
        self.insert_three_kinds()
        self.insert_mistakes()
        self.invite(uri)
        while True:
            self.watch(
                "the demo is alive",
                lambda _: True,
                share=1.0,
                picture=lambda found: Picture(found, self.rows(), self.log_lines()),
            )

    # --- the steps ---

    def meet_the_workers(self) -> None:
        """Wait until every worker is at work and looks for specs."""
        self.watch(
            "the workers are at work, and are listed as processes that live",
            lambda _: self.fleet.have_answered and self.are_listed(),
        )
        names = ", ".join(f"{worker.name} (pid {worker.pid})" for worker in self.fleet.workers)
        files = self.fleet.workers[0].said["files"]
        self.display.say(
            f"{names}: each parses, tokenizes and measures the {files} source files of Python's "
            "standard library, again and again, in several threads. It has called "
            "diagnose_mongo.start(), and knows nothing of what will be probed."
        )

    def insert_three_kinds(self) -> None:
        """A histogram, a counter with tags, a log: all become ``emitting`` everywhere."""
        self.display.heading("2. Insert specs: every process looks once a second, and applies them")
        ids = self.insert(specs.THREE_KINDS)
        self.watch(
            "all processes emit values for the three specs",
            lambda found: all(self.is_everywhere("emitting", found[each]) for each in ids),
            share=0.18,
        )

    def insert_mistakes(self) -> None:
        """Two specs that can't work: each says so, and harms nothing."""
        self.display.heading("3. Insert specs with mistakes: each tells what is wrong with it")
        ids = self.insert(specs.MISTAKES)
        self.watch(
            "all processes report the mistakes in two specs, and the others are as they were",
            lambda found: all(
                self.is_everywhere("error" if each.spec_id in ids else "emitting", each)
                for each in found.values()
            ),
            share=0.18,
        )
        self.display.say("The other specs go on as before.")

    def look_at_values(self) -> None:
        """Values of all workers, as they come in at a StatsD server."""
        self.display.heading("4. What is measured: StatsD datagrams over UDP, and log lines")
        self.watch(
            "values and log lines of all workers come in",
            lambda _: (
                self.is_measured("parse.seconds") and self.is_measured("files") and self.is_logged()
            ),
            share=0.25,
            picture=lambda _: Picture(None, self.rows("parse.seconds", "files"), self.log_lines()),
        )

    def change_one(self) -> None:
        """The fleet follows a change of a spec."""
        spec_id, metric = specs.FAILING, "docstring.chars"
        self.display.heading("5. Change a spec: the fleet follows, and the error is gone")
        self.display.code(specs.typed("specs.update_one", {"_id": spec_id}, specs.CORRECTION))
        self.metrics.forget()
        self.collection.update_one({"_id": spec_id}, specs.CORRECTION)
        self.watch(
            f"all processes emit values for the changed spec {spec_id!r}",
            lambda found: (
                self.is_everywhere("emitting", found[spec_id]) and self.is_measured(metric)
            ),
            share=0.2,
            picture=lambda found: Picture(found, self.rows(metric)),
        )

    def remove_one(self) -> None:
        """The fleet follows the removal of a spec."""
        spec_id, function = specs.REMOVED, specs.FUNCTION_OF_REMOVED
        self.display.heading("6. Remove a spec: its function has its original code again")
        self.ask_for_code(f"{function}() has other code", lambda names: function in names)
        self.display.code(specs.typed("specs.delete_one", {"_id": spec_id}))
        self.collection.delete_one({"_id": spec_id})
        self.ask_for_code(
            f"{function}() has its original code", lambda names: function not in names
        )

    def take_everything_back(self) -> None:
        """No spec is left, and every function has its original code."""
        self.display.heading("7. Remove all specs: every function has its original code again")
        self.display.code(specs.typed("specs.delete_many", {}))
        self.collection.delete_many({})
        self.ask_for_code("every function has its original code", lambda names: not names)

    def end_workers(self) -> None:
        """End the worker processes, in the middle of the story too.

        Raises:
            DemoError: one ended badly, or without its functions' original code.
        """
        self.fleet.stop()
        for worker in self.fleet.workers:
            place = f"{worker.name} (pid {worker.pid})"
            if not worker.said:
                self.display.say(f"{place} has ended before it began to work.")
            elif worker.exit_code == 0 and not worker.said["replaced"]:
                functions = worker.said["functions"]
                self.display.say(f"{place} has ended, its {functions} functions as they were.")
            else:
                raise DemoError(
                    f"worker {place} ended with code {worker.exit_code}, and these functions did "
                    f"not have their original code: {worker.said['replaced']}"
                )

    def invite(self, uri: str) -> None:
        """Tell how to insert specs of one's own."""
        place = self.collection.database.name
        self.display.heading("4. Now you: insert, change and remove specs; Ctrl-C ends the demo")
        self.display.say("In another terminal, with mongosh:")
        self.display.code(specs.OWN_IN_MONGOSH.format(uri=uri, database=place), "sh")
        self.display.say("or with Python:")
        self.display.code(
            specs.OWN_IN_PYTHON.format(uri=uri, database=place, python=sys.executable), "sh"
        )
        self.display.say(
            f"Any function that the workers have imported will do as a target: those of "
            f"{specs.SERVICE}, and also tokenize.open or ast.get_docstring."
        )

    # --- what steps are made of ---

    def insert(self, documents: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Insert specs as a user does; returns their ids."""
        for comment, document in documents:
            spec = specs.stamped(document)
            self.display.say(comment)
            self.display.code(specs.typed("specs.insert_one", spec))
            self.collection.insert_one(spec)
        return [document["_id"] for _, document in documents]

    def watch(
        self,
        what: str,
        until: Callable[[Found], bool],
        *,
        share: float = 0.0,
        picture: Callable[[Sequence[Rollout]], Picture] = Picture,
    ) -> None:
        """Show how things stand until it is so, and for a share of the story's time at least.

        Args:
            what: what is waited for, for people.
            until: whether it is so; it is given the specs by id.
            share: of ``seconds``.
            picture: what is shown when the specs stand like that.

        Raises:
            DemoError: it was not so in time, or a worker is gone.
            Interrupted: a signal came.
        """
        began = time.monotonic()
        while True:
            found = self.rollouts()
            self.display.draw(picture(found))
            waited = time.monotonic() - began
            if until({each.spec_id: each for each in found}):
                if waited >= share * self.seconds:
                    return
            elif waited > _DEADLINE_SECONDS:
                stands = [
                    f"{each.spec_id}: {', '.join([states(each), *problems(each)])}"
                    for each in found
                ]
                raise DemoError(
                    f"{what}: that was not so after {_DEADLINE_SECONDS:g} s. The specs stand like "
                    f"this: {'; '.join(stands) or 'there are none'}. If this machine is very busy, "
                    f"try again. {self.fleet.last_words()}"
                )
            self.fleet.check()
            self.signals.pause(_FRAME_SECONDS)

    def ask_for_code(self, what: str, until: Callable[[Sequence[str]], bool]) -> None:
        """Ask the workers which functions have other code than at their start, until it is so.

        Args:
            what: what is waited for, for people.
            until: whether a worker's answer, the names of such functions, is the right one.

        Raises:
            DemoError: it was not so in time, or a worker is gone.
            Interrupted: a signal came.
        """

        def is_so(_: Found) -> bool:
            if not self.fleet.have_answered:
                return False
            if all(until(worker.said["replaced"]) for worker in self.fleet.workers):
                return True
            self.fleet.ask()
            return False

        self.fleet.ask()
        self.watch(what, is_so, share=0.05)
        functions = self.fleet.workers[0].said["functions"]
        for replaced, workers in self._answers().items():
            others = f"; not: {', '.join(replaced)}" if replaced else ""
            self.display.say(
                f"{workers}: {functions - len(replaced)} of {functions} functions have their "
                f"original code{others}"
            )

    def rollouts(self) -> list[Rollout]:
        """How far each spec has come."""
        found = []
        for document in self.collection.find({}, {"_id": 1}):
            with contextlib.suppress(SpecError):  # it was removed just now
                found.append(rollout(self.collection, document["_id"]))
        return found

    def is_everywhere(self, state: str, found: Rollout) -> bool:
        """Whether a spec is in this state in every worker."""
        return found.counts == {state: len(self.fleet.workers)}

    def are_listed(self) -> bool:
        """Whether every worker is among the processes that live."""
        return ProcessStore(Link(self.collection)).count() >= len(self.fleet.workers)

    def rows(self, *metrics: str) -> list[Row]:
        """What was measured: of these metrics, or of all."""
        rows = summarize(self.metrics.series())
        return [row for row in rows if not metrics or row.name in metrics]

    def log_lines(self) -> list[str]:
        """The latest log lines of each worker."""
        return [
            f"{worker.name}: {line}"
            for worker in self.fleet.workers
            for line in list(worker.log_lines)[-_LOG_LINES_EACH:]
        ]

    def is_measured(self, metric: str) -> bool:
        """Whether values of this metric came from every worker."""
        from_workers = {
            dict(tags)["worker"] for name, tags in self.metrics.series() if name == metric
        }
        return from_workers >= {worker.name for worker in self.fleet.workers}

    def is_logged(self) -> bool:
        """Whether every worker wrote a log line."""
        return all(worker.log_lines for worker in self.fleet.workers)

    def _answers(self) -> dict[tuple[str, ...], str]:
        """The functions with other code, and the workers that said so."""
        names: dict[tuple[str, ...], list[str]] = {}
        for worker in self.fleet.workers:
            names.setdefault(tuple(worker.said["replaced"]), []).append(worker.name)
        return {replaced: ", ".join(those) for replaced, those in names.items()}
