"""An event loop in a thread of its own, for libraries that are asynchronous where the engine is not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import wait
from time import monotonic
from typing import Any, Final, TypeVar

from orchestrator.core.assignment import Stop
from orchestrator.engine.ports import Stopped

_TICK: Final = 0.05
_PARTING: Final = 2.0
"""Seconds that cancelled work has to end; what it holds beyond that is left to the process's end."""

T = TypeVar("T")


class EventLoop:
    """Runs coroutines for other threads. Must be closed; a call after that raises `RuntimeError`."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], seconds: float, stop: Stop) -> T:
        """Its result. Cancels it and raises `TimeoutError` when it takes longer, `Stopped` at a hard stop."""
        until = monotonic() + seconds
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        while not wait({running}, min(_TICK, max(0.0, until - monotonic()))).done:
            if stop.is_hard() or monotonic() >= until:
                running.cancel()
                raise Stopped if stop.is_hard() else TimeoutError
        return running.result()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs it beside what is called, until its end or the loop's."""
        asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancels whatever runs. May be called again."""
        if not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):
                asyncio.run_coroutine_threadsafe(self._part(), self._loop)
            self._thread.join(_PARTING * 2)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _part(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_PARTING)
        self._loop.stop()
