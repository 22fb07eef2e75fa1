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
import marshal
import os
import select
import socket
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diagnose.breakpoints.conditions import Call, shown
from diagnose.reentrancy import Quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diagnose.breakpoints.stops import Stops

__all__ = ["ChildThread", "FarGate", "Line", "forget", "watch"]

log = logging.getLogger(__name__)

_LENGTH = struct.Struct("!I")
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_ANSWER_SECONDS = 30.0
"""A parent that does not answer for so long (it is stopped in a debugger) lets the child pass."""

_TEXT_AT_MOST, _ITEMS_AT_MOST, _BYTES_AT_MOST, _DEPTH = 10_000, 100, 100_000, 3


@dataclass(frozen=True, slots=True)
class ChildThread:
    """Where a call was made that a forked child made: what a parent has in place of a thread.

    Attributes:
        pid: of the child.
        thread_name: of its thread.
    """

    pid: int
    thread_name: str

    @property
    def name(self) -> str:
        """Both, in words."""
        return f"{self.thread_name} of process {self.pid}"


# --- what goes over a line ---


class _Shown(str):
    """A value of a child that is no plain one, as the text that it is shown as."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class _ShownError(Exception):
    """An exception of a child, as the text that it is shown as."""

    def __repr__(self) -> str:
        return str(self)


def _is_plain(value: Any, depth: int = _DEPTH) -> bool:
    kind = type(value)
    if value is None or kind in {bool, int, float, complex}:
        return True
    if isinstance(value, (str, bytes)):
        return kind in {str, bytes} and len(value) <= _TEXT_AT_MOST
    if kind not in {tuple, list, set, frozenset, dict}:
        return False
    items: Any = value
    if not depth or len(items) > _ITEMS_AT_MOST:
        return False
    inner = [*items, *items.values()] if kind is dict else list(items)
    return all(_is_plain(each, depth - 1) for each in inner)


def _packed(value: Any) -> tuple[bool, Any]:
    """A value for a line: plain ones as they are, for others (code of theirs) a text."""
    try:
        if _is_plain(value) and len(marshal.dumps(value)) <= _BYTES_AT_MOST:
            return True, value
    except (RuntimeError, ValueError):
        pass  # another thread changes it meanwhile
    return False, shown(value)


def _unpacked(packed: tuple[bool, Any]) -> Any:
    is_itself, value = packed
    return value if is_itself else _Shown(value)


def _framed(message: Any) -> bytes:
    data = marshal.dumps(message)
    return _LENGTH.pack(len(data)) + data


def _take(buffer: bytearray) -> Any:
    """The message that a buffer begins with, taken out of it; None: it is not all there yet."""
    if len(buffer) < _LENGTH.size:
        return None
    end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
    if len(buffer) < end:
        return None
    message = marshal.loads(buffer[_LENGTH.size : end])  # noqa: S302 - of a process of our own
    del buffer[:end]
    return message


# --- in the child ---


class Line:
    """A forked child's line to the breakpoint in its parent; thread-safe.

    Args:
        end: of the socket; None: there is none, and nobody stops.
    """

    def __init__(self, end: socket.socket | None) -> None:
        self._lock = threading.Lock()
        self._end = end
        if end is not None:
            # Not the breakpoint's: where that is short, a slow machine would let calls pass.
            end.settimeout(_ANSWER_SECONDS)

    @property
    def is_open(self) -> bool:
        """Whether anybody may be at the other end."""
        return self._end is not None

    def ask(self, *message: object, give: socket.socket | None = None) -> Any:
        """Send a message, maybe with a socket; returns the answer, or None if the line is lost."""
        with self._lock:
            if self._end is None:
                return None
            try:
                return self._ask(self._end, _framed(message), give)
            except (OSError, EOFError):
                self._close()
                return None
            except BaseException:  # such as KeyboardInterrupt: the answer would be the next one's
                self._close()
                raise

    @staticmethod
    def _ask(end: socket.socket, data: bytes, give: socket.socket | None) -> Any:
        sent = 0 if give is None else socket.send_fds(end, [data], [give.fileno()])
        end.sendall(data[sent:])
        buffer = bytearray()
        while (answer := _take(buffer)) is None:
            received = end.recv(4096)
            if not received:
                raise EOFError
            buffer += received
        return answer

    def admit(
        self, call: Call, met: Sequence[bool], broken: str | None, *, stops: bool
    ) -> FarGate | None:
        """Tell of a call; returns where it has to stand, if it has to.

        The parent has the last word on ``call.is_hit``.
        """
        told = _told(call)
        here = there = None
        try:
            with _forking:  # a child of this one must not have these too
                if stops:
                    here, there = socket.socketpair()
                answer = self.ask("reached", told, list(met), broken, give=there)
                if there is not None:
                    there.close()
        except OSError as error:  # no sockets are left
            log.warning("a call in a forked child passes a breakpoint: %s", error)
            answer = None
        call.is_hit, stands = answer or (False, False)
        if here is not None and stands:
            return FarGate(self, call.number, here)
        if here is not None:
            here.close()
        return None

    def close(self) -> None:
        """Give it up; idempotent."""
        with self._lock:
            self._close()

    def discard(self) -> None:
        """Close it in a child of the child, where some other thread may have had the lock."""
        self._close()

    def _close(self) -> None:
        if self._end is not None:
            self._end.close()
            self._end = None


def _told(call: Call) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "thread_name": call.thread.name,
        "name": call.name,
        "number": call.number,
        "is_hit": call.is_hit,
        "args": [_packed(each) for each in call.args],
        "kwargs": {name: _packed(each) for name, each in call.kwargs.items()},
        "result": _packed(call.result),
        "exception": None if call.exception is None else shown(call.exception),
    }


class FarGate:
    """Where a thread of a forked child waits, until the parent opens it, or is gone."""

    def __init__(self, line: Line, number: int, end: socket.socket) -> None:
        self._line = line
        self._number = number
        self._end = end

    def open(self) -> None:
        """From within the child."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def discard(self) -> None:
        """Close it in a child of the child."""
        self._end.close()

    def wait(self, seconds: float) -> bool:
        """Whether it was opened in time."""
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        stood: Any = True
        try:
            is_opened = bool(poll.poll(seconds * 1000))
        finally:
            with Quiet():
                stood = self._line.ask("left", self._number)
                self._end.close()
        # It may have been let go in the very last moment, and a lost line lets go too.
        return is_opened or not stood


# --- in the parent ---


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

    def __init__(self, stops: Stops, end: socket.socket) -> None:
        end.settimeout(0)  # nobody waits for a child in the middle of a message
        self.stops = stops
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
            if (message := _take(self._buffer)) is not None:
                kind, *rest = message
                answer = getattr(self, f"_answer_{kind}")(*rest)
                self.end.sendall(_framed(answer))
        except BlockingIOError:
            return True
        except OSError:
            return False
        except Exception:
            log.exception("%r lets a forked child go", self.stops)
            return False
        return True

    def _answer_count(self) -> int:
        return 0 if self.stops._is_open else self.stops._count()

    def _answer_reached(
        self, told: dict[str, Any], met: list[bool], broken: str | None
    ) -> tuple[bool, bool]:
        exception = told["exception"]
        call = Call(
            name=told["name"],
            number=told["number"],
            args=tuple(_unpacked(each) for each in told["args"]),
            kwargs={name: _unpacked(each) for name, each in told["kwargs"].items()},
            thread=ChildThread(told["pid"], told["thread_name"]),
            is_hit=told["is_hit"],
            result=_unpacked(told["result"]),
            exception=None if exception is None else _ShownError(exception),
        )
        gate = _FarCaller(self, self._given.pop()) if self._given else None
        self.stops._note_child(met, broken)
        stands = self.stops._admit(call, gate, None)
        if gate is not None and not stands:
            gate.discard()
        return call.is_hit, stands

    def _answer_left(self, number: int) -> bool:
        return bool(self._drop(number))

    def _answer_adopt(self) -> bool:
        """A child of it is about to be forked, which will have a line of its own."""
        child = _Child(self.stops, self._given.pop())
        _children[child.end.fileno()] = child
        return True

    def _drop(self, number: int | None) -> int:
        """Nobody stands there any more: of all calls of the child, or of one."""
        with self.stops._lock:
            gone = [
                (call, gate)
                for call, gate in self.stops._standing
                if isinstance(gate, _FarCaller)
                and gate.child is self
                and number in {None, call.number}
            ]
        for call, gate in gone:
            self.stops._leave(call, gate)
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
        for each in (self._wakes.fileno(), *_children):
            poll.register(each, select.POLLIN)
        ready = [number for number, _ in poll.poll()]
        for number in ready:
            if number in _children and not _children[number].serve():
                _children.pop(number).close()
        # When nobody is left to be served, it ends.
        return self._wakes.fileno() not in ready and bool(_children)


# --- at a fork ---

# Held during a fork, and wherever sockets are made that are nothing for a child.
_forking = threading.RLock()
_entered: dict[Stops, None] = {}
_children: dict[int, _Child] = {}
_service: _Service | None = None
_is_registered = False
# For the fork that goes on: of each breakpoint our end, and the child's.
_prepared: list[tuple[Stops, socket.socket, socket.socket]] = []


def watch(stops: Stops) -> None:
    """Let children that are forked from now on stop at a breakpoint. It costs nothing until then."""
    global _is_registered  # noqa: PLW0603
    with _forking:
        _entered[stops] = None
        if not _is_registered:
            _is_registered = True
            os.register_at_fork(
                before=_before,
                # Also if the fork failed: then the other end is closed, as if the child had ended.
                after_in_parent=_after_in_parent,
                after_in_child=_after_in_child,
            )


def forget(stops: Stops) -> None:
    """Let all children go that stand at a breakpoint, and those go by that come; idempotent."""
    with _forking, Quiet():
        _entered.pop(stops, None)
        _pause()
        for number, child in list(_children.items()):
            if child.stops is stops:
                del _children[number]
                child.close()
        _resume()
    if stops._line is not None:
        stops._line.close()


def _pause() -> None:
    global _service
    service, _service = _service, None
    if service is not None:
        service.end()


def _resume() -> None:
    global _service  # noqa: PLW0603
    if _children:
        try:
            _service = _Service()
        except (OSError, RuntimeError) as error:  # no sockets or threads are left
            log.warning("forked children pass the breakpoints: %s", error)
            for child in _children.values():
                child.close()
            _children.clear()


def _before() -> None:
    _forking.acquire()
    with Quiet():
        _pause()
        for stops in _entered:
            if stops._takes_tasks:
                continue  # the loop that would release them is not the child's
            try:
                ours, theirs = socket.socketpair()
            except OSError as error:
                log.warning("a forked child will pass %r: %s", stops, error)
                continue
            if stops._line is not None:
                # In a child: its own child talks to the same parent.
                stops._line.ask("adopt", give=ours)
            _prepared.append((stops, ours, theirs))


def _after_in_parent() -> None:
    try:
        with Quiet():
            for stops, ours, theirs in _prepared:
                theirs.close()
                if stops._line is None:
                    _children[ours.fileno()] = _Child(stops, ours)
                else:
                    ours.close()
            _prepared.clear()
            _resume()
    finally:
        _forking.release()


def _after_in_child() -> None:
    try:
        with Quiet():
            for child in _children.values():
                child.discard()
            _children.clear()
            ends = {}
            for stops, ours, theirs in _prepared:
                ours.close()
                ends[stops] = theirs
            _prepared.clear()
            for stops in _entered:
                if stops._line is not None:
                    stops._line.discard()
                for _, gate in stops._standing:
                    if isinstance(gate, (_FarCaller, FarGate)):
                        gate.discard()
                stops._begin_in_child(Line(ends.get(stops)))
    finally:
        _forking.release()
