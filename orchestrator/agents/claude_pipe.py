"""Claude Code's program in our sandbox, as a transport of its own SDK.

The SDK would start the program itself, with our environment and outside every sandbox. This one starts it in
the step's enclosure and passes lines of JSON both ways.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from claude_agent_sdk import Transport

from orchestrator.agents.launch import Enclosure
from orchestrator.agents.pipes import MEGABYTE, Flooded, Pipes
from orchestrator.workspaces.programs import Running

_CLOSING_SECONDS: Final = 1.0
_TRANSCRIPT: Final = "transcript_mirror"
MOST_TRANSCRIPT: Final = 64 * MEGABYTE
"""Bytes of the session that one run adds to, which Postgres is to keep."""


class Pipe(Transport):
    """One run of the program. Used in one event loop; `complain` gets what it writes on stderr."""

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
        self._pipes: Pipes | None = None
        self._transcribed = 0

    async def connect(self) -> None:
        if self._running is None:
            self._running = self._enclosure.start(self._words, self._environment, programs=self._programs)
            self._pipes = await Pipes.over(self._running, self._complain)

    @property
    def _opened(self) -> Pipes:
        assert self._pipes is not None  # noqa: S101 - the SDK connects first
        return self._pipes

    def begin(self) -> None:
        """A prompt begins."""
        self._opened.begin()

    def look(self) -> None:
        """To be called now and then while something is waited for."""
        self._opened.look()

    async def write(self, data: str) -> None:
        await self._opened.send_line(data.encode("utf-8", "replace"))

    async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        """Raises Flooded."""
        while (message := await self._opened.receive()) is not None:
            if message.get("type") == _TRANSCRIPT:
                self._transcribed += self._opened.length
            if self._transcribed > MOST_TRANSCRIPT:
                raise Flooded(f"wrote more than {MOST_TRANSCRIPT // MEGABYTE} MB of transcript in one run.")
            yield message
        if self._opened.fault is not None:
            raise Flooded(self._opened.fault)

    async def close(self) -> None:
        """Ends the program and all that it started; may be called again."""
        if self._pipes is not None:
            await self._pipes.close(_CLOSING_SECONDS)
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
