"""Waiting for what happens elsewhere: for the event itself, with a deadline."""

from __future__ import annotations

import os
import time

DEADLINE_SECONDS = 30.0


def wait_for_documents(collection, is_so, *, seconds=DEADLINE_SECONDS):
    """All documents, by id, as soon as ``is_so(documents)``; fails with what there was instead."""
    deadline = time.monotonic() + seconds
    # Opened before the first look, so that no change falls between the two.
    with collection.watch(max_await_time_ms=200) as changes:
        while True:
            found = {each["_id"]: each for each in collection.find()}
            if is_so(found):
                return found
            assert time.monotonic() < deadline, f"never so: {found}"
            changes.try_next()


def wait_until(is_so, *, seconds=DEADLINE_SECONDS):
    """For what nobody announces: looked at often."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "never so"
        time.sleep(0.005)


def in_child(work):
    """Run ``work`` in a forked child: what it raises fails the test, what it returns comes back."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            os.write(write, str(work()).encode())
            status = 0
        except BaseException as exc:
            os.write(write, f"{type(exc).__name__}: {exc}".encode()[:4000])
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, said
    return said
