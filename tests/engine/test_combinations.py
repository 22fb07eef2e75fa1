"""Whatever comes together at a hit, the program does what it does without probes.

The space is in :mod:`combining`: kinds of functions, events, instruments, conditions, limits, and
what an application's own hooks do there. Nobody chose what is tried: every two values of two
dimensions meet at least once, and the rest is drawn.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import operator
import os
import random
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest
from combined import SUBJECTS
from combining import SPACE, run
from stage import Stage, timers_ran

from diagnose import attachments

# More of them find more: DIAGNOSE_TEST_EXAMPLES=1000. In CI the same ones come each time.
EXAMPLES = int(os.environ.get("DIAGNOSE_TEST_EXAMPLES", "25"))
COMBINATIONS = 60 * EXAMPLES
SEED = 1 if os.environ.get("CI") else random.SystemRandom().randrange(1 << 32)
MOST_FAILURES = 5


@pytest.fixture(scope="module")
def module():
    """Where the functions are that are probed."""
    with subjects() as module:
        yield module


@pytest.fixture(autouse=True)
def quiet():
    """What hooks raise is logged: thousands of tracebacks that nobody reads."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@contextlib.contextmanager
def subjects():
    """A module of the functions that are probed."""
    with Stage() as stage:
        module = stage.script(SUBJECTS)
        module.inv = operator.inv
        yield module


def pairs_with(name, combination):
    """What the value of ``name`` comes together with."""
    one = name, combination[name]
    return {frozenset((one, other)) for other in combination.items() if other != one}


def all_pairs(draw):
    """Combinations in which every two values of two dimensions come together."""
    wanted = [
        ((one, a), (other, b))
        for one, other in itertools.combinations(SPACE, 2)
        for a in SPACE[one]
        for b in SPACE[other]
    ]
    missing = set(map(frozenset, wanted))
    for pair in wanted:
        if frozenset(pair) not in missing:
            continue
        combination = dict(pair)
        for name in draw.sample(list(SPACE), len(SPACE)):
            if name in combination:
                continue
            # Of the values that bring most that is new, any one.
            values = draw.sample(SPACE[name], len(SPACE[name]))
            new = [len(pairs_with(name, {**combination, name: each}) & missing) for each in values]
            combination[name] = values[new.index(max(new))]
        for name in combination:
            missing -= pairs_with(name, combination)
        yield combination


def drawn(draw):
    """Combinations out of the whole space: near to the plainest, and far away from it."""
    while True:
        combination = {name: values[0] for name, values in SPACE.items()}
        for name in draw.sample(list(SPACE), draw.randint(2, len(SPACE))):
            combination[name] = draw.choice(SPACE[name])
        yield combination


def wrong(module, combination):
    """What is wrong with a combination, in words."""
    try:
        return run(module, **combination)
    except BaseException as error:
        return ["".join(traceback.format_exception(error))]


def plainest(module, combination):
    """As plain a combination as fails too; what is the plainest anyway is left out."""
    for name, values in SPACE.items():
        for value in values[: values.index(combination[name])]:
            plainer = {**combination, name: value}
            if wrong(module, plainer):
                combination = plainer
                break
    return {name: combination[name] for name in SPACE if combination[name] != SPACE[name][0]}


def failures(module, combinations):
    """How many were tried; and what is wrong with those that fail, the first few kinds."""
    found, count = {}, 0
    for combination in combinations:
        count += 1
        if said := wrong(module, combination):
            least = plainest(module, combination)
            said = wrong(module, least) or ["(now and then only)", *said]
            found.setdefault(f"run(module, **{least})", "\n  ".join(said)[:4000])
            if len(found) == MOST_FAILURES:
                break
    return count, [f"{call}\n  {said}" for call, said in found.items()]


def try_all(module, count, seed):
    """All pairs, and then others up to so many."""
    draw = random.Random(seed)
    pairs = list(all_pairs(draw))
    others = itertools.islice(drawn(draw), max(0, count - len(pairs)))
    tried, found = failures(module, itertools.chain(pairs, others))
    said = f"seed {seed}: {tried} combinations ({len(pairs)} of them for all pairs)"
    return said, found


def test_whatever_comes_together_the_program_does_what_it_did(module):
    said, found = try_all(module, COMBINATIONS, SEED)
    print(said)
    assert not found, "\n\n".join([said, *found])
    timers_ran()
    strange = [
        each.name for each in threading.enumerate() if not each.daemon and each.name != "MainThread"
    ]
    assert strange == []


def test_every_two_values_meet():
    seen = set()
    for combination in all_pairs(random.Random(2)):
        assert combination.keys() == SPACE.keys()
        seen |= set(itertools.combinations(sorted(combination.items()), 2))
    expected = sum(
        len(SPACE[one]) * len(SPACE[other]) for one, other in itertools.combinations(SPACE, 2)
    )
    assert len(seen) == expected


def test_what_is_wrong_is_seen(module, monkeypatch):
    raising = {"hook": "emit", "does": "raises Exception"}
    assert wrong(module, raising) == []
    with monkeypatch.context() as patch:
        patch.setattr(attachments, "belongs_to_program", lambda error: True)
        assert any("x=0: " in each for each in wrong(module, raising))
    with monkeypatch.context() as patch:
        patch.setattr(attachments.Attachment, "fail", lambda self, error: True)
        assert any("in place of error" in each for each in wrong(module, raising))


@pytest.mark.skipif(EXAMPLES < 500, reason="in the long form only (DIAGNOSE_TEST_EXAMPLES)")
def test_nothing_ends_the_process(tmp_path):
    note = tmp_path / "combination"
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        __file__,
        str(COMBINATIONS),
        str(SEED + 1),
        note,
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    last = note.read_text() if note.exists() else ""
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}\nthe last: {last}"


def main(count, seed, note):
    """Try so many in a process of their own; what it is at is in the file ``note``."""
    logging.disable(logging.CRITICAL)
    draw = random.Random(seed)
    with subjects() as module, Path(note).open("w") as file:
        for combination in itertools.islice(drawn(draw), count):
            file.seek(0)
            file.write(f"{combination!r:2000}")
            file.flush()
            if found := wrong(module, combination):
                raise SystemExit(f"{combination}: {found}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
