"""A TCP proxy between a client and a server, that does to connections what networks do."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

_PIECE = 65536


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes on to ``port``, in threads of its own.

    Attributes:
        delay: seconds that every piece of a reply is late.
        replied: bytes of replies so far.
        uri: of a MongoDB behind it.
    """

    def __init__(self, port):
        self.delay = 0.0
        self.replied = 0
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.uri = f"mongodb://127.0.0.1:{self.port}/?directConnection=true"
        self._lock = threading.Lock()
        self._open = set()
        self._left = None
        self._refuses = False
        self._flows = threading.Event()
        self._flows.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, size):
        """Cut every connection after so many bytes of replies, old ones included."""
        with self._lock:
            self._left = size

    def refuse(self):
        """Cut all, and close new ones at once."""
        self._refuses = True
        self._cut_all()

    def stall(self):
        """Pass nothing on, in either direction; connections stay."""
        self._flows.clear()

    def heal(self):
        """Be a good network again."""
        self.delay, self._refuses = 0.0, False
        with self._lock:
            self._left = None
        self._flows.set()

    def close(self):
        self.refuse()
        self._flows.set()
        self._listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._refuses:
                    client.close()
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self._server))
                except OSError:
                    client.close()
                    continue
                pair = client, server
                with self._lock:
                    self._open.add(pair)
                threading.Thread(target=self._pass, args=(*pair, pair, False), daemon=True).start()
                threading.Thread(
                    target=self._pass, args=(server, client, pair, True), daemon=True
                ).start()

    def _pass(self, source, sink, pair, is_reply):
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                self._flows.wait()
                if is_reply and self.delay:
                    time.sleep(self.delay)
                if is_reply:
                    with self._lock:
                        self.replied += len(data)
                        if self._left is not None:
                            data, is_cut = data[: self._left], len(data) >= self._left
                            self._left -= len(data)
                        else:
                            is_cut = False
                    sink.sendall(data)
                    if is_cut:
                        with self._lock:
                            self._left = 0
                        break
                else:
                    sink.sendall(data)
        self._cut(pair)

    def _cut_all(self):
        with self._lock:
            pairs = list(self._open)
        for pair in pairs:
            self._cut(pair)

    def _cut(self, pair):
        with self._lock:
            self._open.discard(pair)
        for each in pair:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
