"""Tells those who follow a task that it moved: one small query a tick, however many follow.

A missed tick is latency and nothing else, since followers read rows by number.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import structlog
from starlette.concurrency import run_in_threadpool

from orchestrator.db.connect import SQLAlchemyError
from orchestrator.db.sql import TaskRef
from orchestrator.queries.events import Mark

log: Final = structlog.get_logger(__name__)

TICK_SECONDS: Final = 0.1
_AWAY_SECONDS: Final = 1.0


class Wakeups:
    """Runs on the server's event loop, and only while somebody follows something."""

    def __init__(self, look: Callable[[Collection[TaskRef]], Mapping[TaskRef, Mark]]) -> None:
        self._look = look
        self._followed: Counter[TaskRef] = Counter()
        self._marks: dict[TaskRef, Mark] = {}
        self._ticked = asyncio.Condition()
        self._ticking: asyncio.Task[None] | None = None

    @contextmanager
    def following(self, ref: TaskRef) -> Iterator[None]:
        self._followed[ref] += 1
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            self._followed[ref] -= 1
            if not self._followed[ref]:
                del self._followed[ref]
                self._marks.pop(ref, None)

    async def moved(self, ref: TaskRef, seen: Mark | None, seconds: float) -> Mark | None:
        """The mark of a followed task as soon as it differs from `seen`; None when `seconds` have passed."""

        def differs() -> bool:
            return self._marks.get(ref) not in {None, seen}

        try:
            async with asyncio.timeout(seconds), self._ticked:
                await self._ticked.wait_for(differs)
        except TimeoutError:
            return None
        return self._marks.get(ref)

    @staticmethod
    def now() -> float:
        return time.monotonic()

    @staticmethod
    async def rest() -> None:
        """Before a follower asks the database again that was away."""
        await asyncio.sleep(_AWAY_SECONDS)

    async def _tick(self) -> None:
        while self._followed:
            wait = TICK_SECONDS
            try:
                found = await run_in_threadpool(self._look, tuple(self._followed))
            except SQLAlchemyError as error:
                log.warning("wakeups_blind", error=type(error).__name__)
                found, wait = {}, _AWAY_SECONDS
            except Exception:  # without a tick all streams would go silent, and say so to nobody
                log.exception("wakeups_broke")
                found, wait = {}, _AWAY_SECONDS
            async with self._ticked:
                self._marks |= {ref: mark for ref, mark in found.items() if ref in self._followed}
                self._ticked.notify_all()
            await asyncio.sleep(wait)
