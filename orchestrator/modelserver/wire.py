"""HTTP/1.1 over asyncio's streams, with the control over bytes that a web framework takes away.

A server that misbehaves on purpose must be able to send half a body, to cut a connection with or without a
word, to say nothing at all, and to notice at once that its client has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import h11

_READ_BYTES: Final = 65_536
_LONGEST_HEAD: Final = 256 * 1024
LONGEST_BODY: Final = 64 * 1024 * 1024
_RESET: Final = struct.pack("ii", 1, 0)


class ClientLeft(Exception):
    """The client closed its side before the reply was through."""


class Malformed(Exception):
    """What came is not HTTP, or too long."""


@dataclass(frozen=True, slots=True)
class Request:
    """`headers` have lower-case names; of several with one name the last counts. `path` is without query."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """One client's connection: requests come one after the other, and each is answered before the next."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_LONGEST_HEAD)
        self._reading: asyncio.Task[bytes] | None = None
        self._left = False

    # ---- in

    async def request(self) -> Request | None:
        """The next request, None when there is none. Raises `Malformed`."""
        try:
            head = await self._event()
            if not isinstance(head, h11.Request):
                return None
            return await self._whole(head)
        except h11.RemoteProtocolError as error:
            raise Malformed(str(error)) from error
        except OSError:
            return None

    async def _whole(self, head: h11.Request) -> Request | None:
        if self._http.they_are_waiting_for_100_continue:
            self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        pieces, length = [], 0
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                return None
            pieces.append(bytes(event.data))
            length += len(event.data)
            if length > LONGEST_BODY:
                raise Malformed("the body is too long")
        path, _, query = head.target.decode("latin-1").partition("?")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        return Request(head.method.decode("latin-1"), path, query, headers, b"".join(pieces))

    async def _event(self) -> object:
        """An h11 event, or its sign that no more will come."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._next_bytes())
        return event

    async def _next_bytes(self) -> bytes:
        reading, self._reading = self._watch(), None
        return await reading

    def _watch(self) -> asyncio.Task[bytes]:
        """The read that is always under way: its end without bytes is the client's leaving."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._reader.read(_READ_BYTES))
        return self._reading

    # ---- out

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Without a `content-length` among the headers the body is sent in chunks."""
        response = h11.Response(
            status_code=status,
            reason=HTTPStatus(status).phrase if status in _PHRASES else "",
            headers=list(headers.items()),
        )
        self._write(self._http.send(response))

    async def write(self, data: bytes) -> None:
        """Raises `ClientLeft` when the client had left before."""
        reading = self._watch()
        if reading.done():
            self._look_at(reading)
        self._write(self._http.send(h11.Data(data=data)))
        await self._drain()

    async def end(self) -> None:
        """A client that leaves now has everything: the last frame tells it that no more will come."""
        self._write(self._http.send(h11.EndOfMessage()))
        with contextlib.suppress(ClientLeft):
            await self._drain()

    def again(self) -> bool:
        """Whether the connection can take another request; if so, it is ready for it."""
        if self._left or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def pause(self, seconds: float | None) -> None:
        """Waits, for ever when `seconds` is None. Raises `ClientLeft` as soon as the client does."""
        until = None if seconds is None else asyncio.get_running_loop().time() + seconds
        while True:
            left = None if until is None else max(0.0, until - asyncio.get_running_loop().time())
            reading = self._watch()
            await asyncio.wait({reading}, timeout=left)
            if not reading.done():
                return
            self._look_at(reading)

    def _look_at(self, reading: asyncio.Task[bytes]) -> None:
        """Bytes that came early wait in the parser for their turn."""
        self._reading = None
        data = b"" if reading.exception() else reading.result()
        if not data:
            self._left = True
            raise ClientLeft
        self._http.receive_data(data)

    def _write(self, data: bytes | None) -> None:
        if data:
            self._writer.write(data)

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
            await asyncio.sleep(0)  # lets the loop see that the other side has closed
        except OSError as error:
            self._left = True
            raise ClientLeft from error

    # ---- the end

    def cut(self) -> None:
        """Resets the connection: what was written may be lost, and the client gets an error."""
        raw = self._writer.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._writer.transport.abort()

    async def close(self) -> None:
        """What was written is still sent; in the middle of a body the client sees that it is incomplete."""
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await self._reading
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


_PHRASES: Final = frozenset(status.value for status in HTTPStatus)
