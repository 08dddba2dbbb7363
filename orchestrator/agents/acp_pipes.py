"""One JSON message a line over a program's pipes, each of a bounded length."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final, Self

from orchestrator.workspaces.programs import Running

MOST_LINE: Final = 16 * 1024**2
"""Bytes of one message: whole files come in one, 173 KB were seen. What is longer ends the connection."""
OPTIONAL: Final = "$/"
"""Notifications of JSON-RPC that a side may leave unread, such as $/cancel_request."""
MOST_COMPLAINTS: Final = 256 * 1024
"""Bytes of stderr that are logged; the rest is read and forgotten."""


class Pipes:
    """The protocol's transport, in the event loop that `over` was awaited in."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        transports: tuple[asyncio.ReadTransport, ...],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._transports = transports
        self._sending = asyncio.Lock()
        self._complaints: asyncio.Task[None] | None = None

    @classmethod
    async def over(cls, running: Running, complained: Callable[[str], None]) -> Self:
        """`complained` gets what comes on stderr."""
        reader, output = await _reading(running.stdout)
        errors, complaints = await _reading(running.stderr)
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, running.stdin)
        pipes = cls(reader, asyncio.StreamWriter(transport, protocol, None, loop), (output, complaints))
        pipes._complaints = asyncio.create_task(_listen(errors, complained))
        return pipes

    async def send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        async with self._sending:
            self._writer.write(line)
            await self._writer.drain()

    async def receive(self) -> dict[str, Any] | None:
        """None at the end, and after a line that is too long. What isn't an object of JSON is passed over."""
        while True:
            try:
                line = await self._reader.readuntil(b"\n")
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
                return None
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict) and not str(message.get("method", "")).startswith(OPTIONAL):
                return message

    async def close(self) -> None:
        """Its input first, so that it can end by itself."""
        self._writer.close()
        if self._complaints is not None:
            self._complaints.cancel()
        for transport in self._transports:
            transport.close()
        await asyncio.sleep(0)  # a transport closes its pipe in the loop's next round


async def _reading(pipe: Any) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    reader = asyncio.StreamReader(limit=MOST_LINE)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    return reader, transport


async def _listen(errors: asyncio.StreamReader, complained: Callable[[str], None]) -> None:
    seen = 0
    while data := await errors.read(65536):
        seen += len(data)
        if seen <= MOST_COMPLAINTS:
            complained(data.decode("utf-8", "replace"))
