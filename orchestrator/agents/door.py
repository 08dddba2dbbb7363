"""The one way out of an agent's sandbox: a socket of ours, behind which lies the gateway and nothing else.

It carries bytes, and reads of them the heads of the gateway's responses: an agent retells an error in its own
words or not at all, but why the gateway refused is there to be read.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from orchestrator.agents.error_words import read_words
from orchestrator.engine.providers.meaning import CODE_HEADER
from orchestrator.engine.providers.waiting import retry_after

CHUNK: Final = 65536
CONNECTIONS: Final = 64
CONNECT_SECONDS: Final = 10.0
MOST_HEAD: Final = 64 * 1024
MOST_ERROR: Final = 128 * 1024
"""Bytes of a response, head and all, in which an error's words are looked for."""
SOCKET: Final = "gateway"
CALL: Final = b"POST /v1/"
COUNTING: Final = b"POST /v1/messages/count_tokens"


@dataclass(frozen=True, slots=True)
class Answered:
    """The response to one call of a model: its head, and of an error what it says. `code` says why the
    gateway itself refused; None: it is the provider's."""

    status: int
    code: str | None = None
    retry_after: timedelta | None = None
    words: str = ""
    """Empty where they are not there yet, or are in no form that is known."""

    @property
    def is_good(self) -> bool:
        return self.status < 400  # noqa: PLR2004 - where HTTP's errors begin


AWAY: Final = Answered(503, "gateway-unready")
"""What a gateway would say that isn't there."""


class Door:
    """Accepts connections and carries each to the host and port of `base_url`; https is spoken there.

    With a `folder` on a unix socket in it, `path`, for a sandbox; else on a port of loopback, `port`.
    """

    def __init__(self, base_url: str, folder: Path | None) -> None:
        parts = urlsplit(base_url)
        self._host = parts.hostname or "127.0.0.1"
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        self._answers: list[Answered] = []
        self._away_after: int | None = None
        """How many answers there were when nobody was behind it."""
        self.path = folder / SOCKET if folder is not None else None
        self._listener = _listening(folder)
        self._ended = False
        threading.Thread(target=self._serve, name="door", daemon=True).start()

    @property
    def port(self) -> int:
        """Only without a unix socket."""
        return int(self._listener.getsockname()[1])

    @property
    def calls(self) -> int:
        """How many calls of a model were answered."""
        with self._lock:
            return len(self._answers)

    def refusal_since(self, calls: int) -> Answered | None:
        """The last answer of those after the first `calls`, if it is an error; or that there was none, since
        the gateway was away."""
        with self._lock:
            if self._away_after == len(self._answers):
                return AWAY
            later = self._answers[calls:]
        return later[-1] if later and not later[-1].is_good else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing goes in or out any more."""
        with self._lock:
            self._ended = True
            sockets = [self._listener, *self._open]
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            self._room.acquire()
            try:
                ours, _ = self._listener.accept()
            except OSError:
                self._room.release()
                return
            threading.Thread(target=self._carry, args=(ours,), name="door", daemon=True).start()

    def _carry(self, ours: socket.socket) -> None:
        try:
            with ours, self._connected() as theirs:
                if not self._keep(ours, theirs):
                    return
                heads = _Heads()
                out = threading.Thread(
                    target=_copy, args=(ours, theirs, heads.asked), name="door", daemon=True
                )
                out.start()
                _copy(theirs, ours, lambda data: self._read(heads, data))
                out.join()
        except OSError:
            return  # the gateway is away: the agent sees its connection end, as it would there
        finally:
            with self._lock:
                self._open = {each for each in self._open if each.fileno() >= 0}
            self._room.release()

    def _connected(self) -> socket.socket:
        try:
            theirs = socket.create_connection((self._host, self._port), timeout=CONNECT_SECONDS)
        except OSError:
            with self._lock:
                self._away_after = len(self._answers)
            raise
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls:
            theirs = ssl.create_default_context().wrap_socket(theirs, server_hostname=self._host)
        theirs.settimeout(None)
        return theirs

    def _keep(self, *sockets: socket.socket) -> bool:
        with self._lock:
            self._open.update(sockets)
            return not self._ended

    def _read(self, heads: _Heads, data: bytes) -> None:
        with self._lock:
            if (found := heads.answered(data)) is not None:
                heads.place = len(self._answers)
                self._answers.append(found)
            elif heads.place is not None and (words := heads.more(data)):
                self._answers[heads.place] = replace(self._answers[heads.place], words=words)


def _listening(folder: Path | None) -> socket.socket:
    if folder is None:
        return socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS)
    (folder / SOCKET).unlink(missing_ok=True)  # a killed worker's
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # By way of a descriptor: the path of a unix socket may have 107 bytes, and that of a folder more.
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        listener.bind(f"/proc/self/fd/{at}/{SOCKET}")
    finally:
        os.close(at)
    listener.listen(CONNECTIONS)
    return listener


class _Heads:
    """Finds where a response to a call begins: with the first bytes after some of its request.

    What a model says can't pass for one, as it comes in the middle of a response.
    """

    def __init__(self) -> None:
        self.place: int | None = None
        """Of the answer whose words may still come, among all of the door."""
        self._expected = False
        self._is_call = False
        self._gathered = b""

    def asked(self, data: bytes) -> None:
        if not self._expected:
            self._is_call = data.startswith(CALL) and not data.startswith(COUNTING)
        self._expected, self._gathered, self.place = True, b"", None

    def answered(self, data: bytes) -> Answered | None:
        if not self._expected:
            return None
        self._gathered += data
        head, end, _ = self._gathered.partition(b"\r\n\r\n")
        if not end and len(self._gathered) < MOST_HEAD:
            return None
        whole, self._expected, self._gathered = self._gathered, False, b""
        found = _read_head(head) if self._is_call else None
        if found is None or found.is_good:
            return found
        self._gathered = whole
        return replace(found, words=read_words(whole))

    def more(self, data: bytes) -> str:
        """What the error says, as far as it has come."""
        if len(self._gathered) >= MOST_ERROR:
            return ""
        self._gathered += data
        return read_words(self._gathered)


def _read_head(head: bytes) -> Answered | None:
    status, _, rest = head.decode("latin-1").partition("\r\n")
    words = status.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():  # noqa: PLR2004
        return None
    if words[1].startswith("1"):
        return None  # 100 Continue: the answer is still to come
    lines = (line.partition(":") for line in rest.split("\r\n"))
    fields = {name.strip().lower(): value.strip() for name, _, value in lines}
    return Answered(int(words[1]), fields.get(CODE_HEADER), retry_after(fields))


def _copy(source: socket.socket, target: socket.socket, look: Callable[[bytes], None]) -> None:
    """Until the source has said all; then the target hears that nothing more comes."""
    with contextlib.suppress(OSError, ValueError):
        while data := source.recv(CHUNK):
            look(data)
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
