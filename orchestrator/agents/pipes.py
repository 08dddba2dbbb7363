"""One JSON message a line over a program's pipes. What nobody takes stays there, and the program waits.

A program that says more than anybody could want, or asks without reading the answers, is no longer listened
to: then the messages end, and `fault` says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any, Final, Self

from orchestrator.workspaces.programs import Running

MEGABYTE: Final = 1024**2
MOST_LINE: Final = 8 * MEGABYTE
"""Bytes of one message: whole files come in one, 173 KB were seen. As Python's objects it takes up to twenty
times as much."""
MOST_AT_ONCE: Final = 256 * MEGABYTE
"""Bytes of all messages of one prompt."""
MOST_COMPLAINTS: Final = 256 * 1024
"""Bytes of stderr that are logged; the rest is read and forgotten."""
MOST_UNREAD: Final = 1000
"""Messages that wait for the program to read them."""
LINGER_SECONDS: Final = 2.0
"""After the program's end its output is read for so long, if something that it started holds it open."""


class Flooded(Exception):
    """The program sent more than is taken from it; the text follows its name."""


class Pipes:
    """Of one run, in the event loop that `over` was awaited in."""

    def __init__(
        self,
        running: Running,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        transports: tuple[asyncio.ReadTransport, ...],
    ) -> None:
        self.fault: str | None = None
        self.length = 0
        """Bytes of the message that was received last."""
        self._running = running
        self._reader = reader
        self._writer = writer
        self._transports = transports
        self._sending = asyncio.Lock()
        self._unread = 0
        self._taken = 0
        self._ended_at: float | None = None
        self._complaints: asyncio.Task[None] | None = None

    @classmethod
    async def over(cls, running: Running, complained: Callable[[str], None]) -> Self:
        """`complained` gets what comes on stderr."""
        reader, output = await _reading(running.stdout, MOST_LINE)
        errors, complaints = await _reading(running.stderr, 65536)
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, running.stdin)
        writer = asyncio.StreamWriter(transport, protocol, None, loop)
        pipes = cls(running, reader, writer, (output, complaints))
        pipes._complaints = asyncio.create_task(_listen(errors, complained))
        return pipes

    def begin(self) -> None:
        """A prompt begins: the bound on all messages together counts from here."""
        self._taken = 0

    def look(self) -> None:
        """To be called now and then: ends the messages of a program that has ended while something that it
        started keeps its output open."""
        if self._ended_at is None and self._running.code() is not None:
            self._ended_at = asyncio.get_running_loop().time()
        if self._ended_at is not None and self._since(self._ended_at) > LINGER_SECONDS:
            self._transports[0].close()

    def _since(self, moment: float) -> float:
        return asyncio.get_running_loop().time() - moment

    async def send_line(self, line: bytes) -> None:
        """Waits until the program reads. Raises ConnectionError when it has ended."""
        self._unread += 1
        try:
            async with self._sending:
                self._writer.write(line)
                await self._writer.drain()
        finally:
            self._unread -= 1

    async def receive(self) -> dict[str, Any] | None:
        """None at the end, and when `fault` says so. What isn't an object of JSON is passed over."""
        while (line := await self._line()) is not None:
            # Whoever has taken up the message before this one, does so before the next is read.
            await asyncio.sleep(0)
            if (message := _read(line)) is not None:
                self.length = len(line)
                return message
        return None

    async def _line(self) -> bytes | None:
        if self.fault is not None:
            return None
        try:
            line = await self._reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except asyncio.LimitOverrunError:
            self.fault = f"sent a line of more than {MOST_LINE // MEGABYTE} MB."
            return None
        self._taken += len(line)
        if self._taken > MOST_AT_ONCE:
            self.fault = f"sent more than {MOST_AT_ONCE // MEGABYTE} MB in one prompt."
        if self._unread > MOST_UNREAD:
            self.fault = f"left more than {MOST_UNREAD} answers to what it asks unread."
        return None if self.fault else line

    async def close(self, draining: float = 0.0) -> None:
        """Its input first, so that it can end by itself; it is still read for at most so many seconds then,
        if nobody else does. May be called again."""
        self._writer.close()
        with contextlib.suppress(TimeoutError, ConnectionError, RuntimeError):
            async with asyncio.timeout(draining):
                while draining and await self._reader.read(65536):
                    pass
        if self._complaints is not None:
            self._complaints.cancel()
        for transport in self._transports:
            transport.close()
        if self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()  # what it hasn't read by now, it never will
        await asyncio.sleep(0)  # a transport closes its pipe in the loop's next round


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


async def _reading(pipe: Any, most: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    """Twice as much as `most` may be held at a time."""
    reader = asyncio.StreamReader(limit=most)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    return reader, transport


async def _listen(errors: asyncio.StreamReader, complained: Callable[[str], None]) -> None:
    seen = 0
    while data := await errors.read(65536):
        seen += len(data)
        if seen <= MOST_COMPLAINTS:
            complained(data.decode("utf-8", "replace"))
