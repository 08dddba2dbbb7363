from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from orchestrator.core.assignment import Stop
from orchestrator.core.verdict import StopReason
from orchestrator.engine.event_loop import EventLoop
from orchestrator.engine.ports import Stopped


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop("test")
    yield loop
    loop.close()


class _DoneJustThen(Future[str]):
    """Ends in the moment in which whoever waits for it has waited long enough."""

    def result(self, timeout: float | None = None) -> str:
        try:
            return super().result(timeout)
        except TimeoutError:
            self.set_result("there after all")
            raise

    def end_in_time(self) -> None:
        if not self.done():
            self.set_result("in time")


def test_what_ends_in_the_moment_of_a_look_is_not_taken_for_late(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server did must not be told as if it had given no answer."""
    begun = asyncio.run_coroutine_threadsafe

    def begin(work: Any, into: asyncio.AbstractEventLoop) -> Future[Any]:
        if work.__name__ != "answer":
            return begun(work, into)
        work.close()
        late = _DoneJustThen()
        threading.Timer(0.2, late.end_in_time).start()
        return late

    async def answer() -> str:
        return ""

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", begin)
    assert loop.call(answer(), 60, Stop()) in {"in time", "there after all"}


def test_its_own_timeout_is_told_as_such_and_one_that_is_late_is_cancelled(loop: EventLoop) -> None:
    cancelled, stop = [], Stop()

    async def slow(begun: Callable[[], object] = lambda: None) -> None:
        begun()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def own() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        loop.call(own(), 60, Stop())
    with pytest.raises(TimeoutError):
        loop.call(slow(), 0.1, Stop())
    with pytest.raises(Stopped):
        loop.call(slow(lambda: stop.set(StopReason.LEASE_LOST)), 600, stop)
    loop.close()
    assert cancelled == [True, True]
