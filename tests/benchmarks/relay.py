"""A process's own way to a server over loopback, which can be cut, closed, blocked and slowed: a partition.

Each connection is carried by two threads, one for each direction. While a direction is blocked both sockets
stay open and nothing passes, not even that one of them was closed.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

_CHUNK: Final = 65536
_AT_ONCE: Final = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing resets."""


class Direction(StrEnum):
    """`BACK` alone blocked: what is asked for happens, and whoever asked never hears of it."""

    THERE = "there"
    BACK = "back"


class Way:
    """Listens on `port` of loopback and carries each connection on to `target`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: Final[int] = self._listener.getsockname()[1]
        self._passes = {direction: threading.Event() for direction in Direction}
        self._closed = False
        self._delay = 0.0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._reset: set[socket.socket] = set()
        self.open()
        threading.Thread(target=self._accept, name=f"way-{self.port}", daemon=True).start()

    def open(self) -> None:
        """All passes again; what was blocked arrives late."""
        self._closed, self._delay = False, 0.0
        for passes in self._passes.values():
            passes.set()

    def cut(self) -> None:
        """Every connection is reset; new ones are welcome."""
        with self._lock:
            found = list(self._sockets)
            self._reset.update(found)
        for one in found:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        for one in found:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RD)  # wakes its thread, which closes it

    def close(self) -> None:
        """Every connection is reset, new ones are, too."""
        self._closed = True
        self.cut()

    def block(self, directions: Sequence[Direction]) -> None:
        for direction in directions:
            self._passes[direction].clear()

    def slow(self, seconds: float) -> None:
        """Whatever passes takes so much longer."""
        self._delay = seconds

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.close()
        for passes in self._passes.values():
            passes.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        try:
            if self._closed:
                raise ConnectionRefusedError
            far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            near.close()
            return
        far.settimeout(None)
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets |= {near, far}
        back = threading.Thread(target=self._carry, args=(far, near, Direction.BACK), daemon=True)
        back.start()
        self._carry(near, far, Direction.THERE)

    def _carry(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                self._passes[direction].wait()
                time.sleep(self._delay)
                sink.sendall(data)
        self._passes[direction].wait()
        with self._lock:
            reset = source in self._reset
            self._reset.discard(source)
            self._sockets.discard(source)
        if not reset:  # the other end would hear of an orderly end first
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)
        source.close()


@contextmanager
def ways(targets: dict[str, int], names: Sequence[str]) -> Iterator[dict[str, dict[str, Way]]]:
    """A way of its own for each of the processes `names` to each server: name → server → way."""
    made = {name: {server: Way(port) for server, port in targets.items()} for name in names}
    try:
        yield made
    finally:
        for found in made.values():
            for way in found.values():
                way.end()
