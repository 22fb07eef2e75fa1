"""Breakpoints in forked children, whose calls count, stop and go on as the parent says.

A child has a line to the parent for each breakpoint that was entered when it was forked: a socket,
made before the fork. It asks there for the number of each call and tells what it called; at a hit
it sends one end of a further socket along, and stands until something happens at the other end.
Whatever is lost (the parent, its ``with`` block, the line) lets the children go.

The parent answers in one thread, which is there only while it has children, and never during a
fork: so no child starts in the middle of its work, and no fork is told (from 3.12 on, in a warning)
that the process has threads on our account.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

from diagnose import forking
from diagnose.breakpoints.lines import FORKING, FarGate, Line
from diagnose.breakpoints.messages import call_of, framed, take
from diagnose.forking import Layer
from diagnose.reentrancy import Quiet

if TYPE_CHECKING:
    from collections.abc import Callable

    from diagnose.breakpoints.stops import Stop

__all__ = ["children", "forget", "watch", "watched"]

log = logging.getLogger(__name__)

_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class _FarCaller:
    """The parent's side of a :class:`FarGate`."""

    def __init__(self, child: _Child, end: socket.socket) -> None:
        self.child = child
        self._end = end

    def open(self) -> None:
        """Let it go; from any thread, and without waiting for the child."""
        # Not only closed: it would stay open where a fork copied it in the wrong moment.
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self.discard()

    def discard(self) -> None:
        """Close it in this process."""
        self._end.close()


class _Child:
    """The parent's side of a :class:`Line`; used by one thread at a time."""

    def __init__(self, stop: Stop, end: socket.socket) -> None:
        end.settimeout(0)  # nobody waits for a child in the middle of a message
        self.stop = stop
        self.end = end
        self._buffer = bytearray()
        self._given: list[socket.socket] = []

    def serve(self) -> bool:
        """Answer what it asks; False: it is gone."""
        try:
            data, descriptors, *_ = socket.recv_fds(self.end, 1 << 16, 4, _CLOEXEC)
            self._given += [socket.socket(fileno=each) for each in descriptors]
            if not data:
                return False
            self._buffer += data
            # It asks one thing at a time, so the answer finds room in the socket.
            if (message := take(self._buffer)) is not None:
                self.end.sendall(framed(self._answer(*message)))
        except BlockingIOError:
            return True
        except OSError:
            return False
        except Exception:
            log.exception("%r lets a forked child go", self.stop)
            return False
        return True

    def _answer(self, asked: str, *told: Any) -> Any:
        match asked:
            case "count":
                return 0 if self.stop.blocked.is_open else self.stop.log.count()
            case "reached":
                return self._note(*told)
            case "left":
                return bool(self._drop(*told))
            case "adopt":
                # A child of it is about to be forked, which will have a line of its own.
                child = _Child(self.stop, self._given.pop())
                children[child.end.fileno()] = child
                return True
            case _:
                raise ValueError(f"a forked child asks for {asked!r}, which no parent knows")

    def _note(self, told: dict[str, Any], met: list[bool], broken: str | None) -> tuple[bool, bool]:
        call = call_of(told)
        gate = _FarCaller(self, self._given.pop()) if self._given else None
        self.stop.log.note_child(met, broken)
        stands = self.stop.admit(call, gate, None)
        if gate is not None and not stands:
            gate.discard()
        return call.is_hit, stands

    def _drop(self, number: int | None) -> int:
        """Nobody stands there any more: of all calls of the child, or of one."""
        gone = [
            (call, gate)
            for call, gate in self.stop.blocked.held
            if isinstance(gate, _FarCaller) and gate.child is self and number in {None, call.number}
        ]
        for call, gate in gone:
            self.stop.blocked.leave(call, gate)
            gate.open()
        return len(gone)

    def close(self) -> None:
        """It is gone, or not served any more."""
        self._drop(None)
        with contextlib.suppress(OSError):
            self.end.shutdown(socket.SHUT_RDWR)
        self.discard()

    def discard(self) -> None:
        """Close it in this process."""
        for each in (self.end, *self._given):
            each.close()


class _Service:
    """The thread that answers children, of all breakpoints."""

    def __init__(self) -> None:
        self._wakes, self._wake = socket.socketpair()
        self._thread = threading.Thread(
            target=self._run, name="diagnose:breakpoints-in-children", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:  # no threads are left
            self._close()
            raise

    def end(self) -> None:
        """End it, and wait for that."""
        self._wake.send(b".")
        self._thread.join()
        self._close()

    def _close(self) -> None:
        self._wake.close()
        self._wakes.close()

    def _run(self) -> None:
        with Quiet():
            while self._serve():
                pass

    def _serve(self) -> bool:
        poll = select.poll()
        for each in (self._wakes.fileno(), *children):
            poll.register(each, select.POLLIN)
        ready = [number for number, _ in poll.poll()]
        for number in ready:
            if number in children and not children[number].serve():
                children.pop(number).close()
        # When nobody is left to be served, it ends.
        return self._wakes.fileno() not in ready and bool(children)


# --- at a fork ---

watched: dict[Stop, Callable[[], object]] = {}
"""Whose calls stop in forked children too, and what is to be done in such a child."""

children: dict[int, _Child] = {}
"""The children that are answered, by the descriptors of their lines."""

_service: _Service | None = None
_is_registered = False
# For the fork that goes on: of each breakpoint our end, and the child's.
_prepared: list[tuple[Stop, socket.socket, socket.socket]] = []


def watch(stop: Stop, in_child: Callable[[], object]) -> None:
    """Let children that are forked from now on stop at a breakpoint. It costs nothing until then.

    Args:
        stop: serves the breakpoint's calls.
        in_child: called in each child, which has none of the parent's other threads.
    """
    global _is_registered  # noqa: PLW0603
    with FORKING:
        watched[stop] = in_child
        if not _is_registered:
            _is_registered = True
            forking.register(
                Layer.PROGRAM,
                before=_before,
                # Also if the fork failed: then the other end is closed, as if the child had ended.
                in_parent=_after_in_parent,
                in_child=_after_in_child,
            )


def forget(stop: Stop) -> None:
    """Let all children go that stand at a breakpoint, and those go by that come; idempotent."""
    with FORKING, Quiet():
        watched.pop(stop, None)
        _pause()
        for number, child in list(children.items()):
            if child.stop is stop:
                del children[number]
                child.close()
        _resume()
    if stop.line is not None:
        stop.line.close()


def _pause() -> None:
    global _service
    service, _service = _service, None
    if service is not None:
        service.end()


def _resume() -> None:
    global _service  # noqa: PLW0603
    if children:
        try:
            _service = _Service()
        except (OSError, RuntimeError) as error:  # no sockets or threads are left
            log.warning("forked children pass the breakpoints: %s", error)
            for child in children.values():
                child.close()
            children.clear()


def _before() -> None:
    FORKING.acquire()
    with Quiet():
        _pause()
        for stop in watched:
            if stop.takes_tasks:
                continue  # the loop that would release them is not the child's
            try:
                ours, theirs = socket.socketpair()
            except OSError as error:
                log.warning("a forked child will pass %r: %s", stop, error)
                continue
            if stop.line is not None:
                # In a child: its own child talks to the same parent.
                stop.line.ask("adopt", give=ours)
            _prepared.append((stop, ours, theirs))


def _after_in_parent() -> None:
    try:
        with Quiet():
            for stop, ours, theirs in _prepared:
                theirs.close()
                if stop.line is None:
                    children[ours.fileno()] = _Child(stop, ours)
                else:
                    ours.close()
            _prepared.clear()
            _resume()
    finally:
        FORKING.release()


def _after_in_child() -> None:
    try:
        with Quiet():
            for child in children.values():
                child.discard()
            children.clear()
            ends = {}
            for stop, ours, theirs in _prepared:
                ours.close()
                ends[stop] = theirs
            _prepared.clear()
            for stop, in_child in watched.items():
                if stop.line is not None:
                    stop.line.discard()
                for _, gate in stop.blocked.held:
                    if isinstance(gate, (_FarCaller, FarGate)):
                        gate.discard()
                stop.begin_in_child(Line(ends.get(stop)))
                in_child()
    finally:
        FORKING.release()
