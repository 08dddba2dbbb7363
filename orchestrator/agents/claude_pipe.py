"""Claude Code's program in our sandbox, as a transport of its own SDK.

The SDK would start the program itself, with our environment and outside every sandbox. This one starts it in
the step's enclosure and passes lines of JSON both ways; the pipes are read in threads.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from claude_agent_sdk import Transport

from orchestrator.agents.launch import Enclosure
from orchestrator.workspaces.programs import Running

LONGEST_LINE: Final = 64 * 1024**2
"""A whole file in a tool's result is one line."""
_CLOSING_SECONDS: Final = 1.0


class TooLong(Exception):
    """The program wrote a line without end."""


class Pipe(Transport):
    """One run of the program. Used in one event loop; `complain` gets what it writes on stderr, from a
    thread."""

    def __init__(
        self,
        enclosure: Enclosure,
        words: Sequence[str],
        environment: Mapping[str, str],
        programs: Sequence[Path],
        complain: Callable[[str], None],
    ) -> None:
        self._enclosure = enclosure
        self._words = words
        self._environment = environment
        self._programs = programs
        self._complain = complain
        self._running: Running | None = None
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._writing = asyncio.Lock()

    async def connect(self) -> None:
        if self._running is not None:
            return
        self._running = self._enclosure.start(self._words, self._environment, programs=self._programs)
        loop = asyncio.get_running_loop()

        def put(line: bytes | None) -> None:
            try:
                loop.call_soon_threadsafe(self._lines.put_nowait, line)
            except RuntimeError:
                return  # the loop has ended, and nobody listens any more

        threading.Thread(target=_read, args=(self._running.stdout, put), daemon=True).start()
        threading.Thread(target=_retell, args=(self._running.stderr, self._complain), daemon=True).start()

    async def write(self, data: str) -> None:
        assert self._running is not None  # noqa: S101 - the SDK connects first
        async with self._writing:
            await asyncio.to_thread(_write, self._running.stdin, data.encode())

    async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        while (line := await self._lines.get()) is not None:
            if len(line) >= LONGEST_LINE:
                raise TooLong
            if line.lstrip().startswith(b"{"):  # anything else is talk of its libraries
                message: dict[str, Any] = json.loads(line)
                yield message

    async def close(self) -> None:
        """Ends the program and all that it started; may be called again."""
        if self._running is not None:
            await asyncio.to_thread(self._running.end, closing=_CLOSING_SECONDS)

    def is_ready(self) -> bool:
        return self._running is not None and self._running.code() is None

    async def end_input(self) -> None:
        """The input stays open until `close`: a prompt may follow."""

    def code(self) -> int | None:
        """How it ended; None while it runs."""
        return None if self._running is None else self._running.code()

    def too_many(self) -> bool:
        return self._running is not None and self._running.too_many()

    def end(self) -> None:
        if self._running is not None:
            self._running.end(closing=_CLOSING_SECONDS)


def _read(stream: IO[bytes], put: Callable[[bytes | None], None]) -> None:
    try:
        gathered = b""
        while chunk := os.read(stream.fileno(), 1024 * 1024):
            *lines, gathered = (gathered + chunk).split(b"\n")
            for line in lines:
                put(line)
            if len(gathered) >= LONGEST_LINE:
                put(gathered)
                break
    except (OSError, ValueError):
        pass  # closed under us
    put(None)


def _retell(stream: IO[bytes], complain: Callable[[str], None]) -> None:
    try:
        while chunk := os.read(stream.fileno(), 65536):
            complain(chunk.decode("utf-8", "replace"))
    except (OSError, ValueError):
        return


def _write(stream: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(stream.fileno(), left) :]
