"""Streams go on where a look at the database failed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import pytest

from orchestrator.api import wakeups
from orchestrator.api.streams import numbered
from orchestrator.api.wakeups import Wakeups
from orchestrator.db.connect import SQLAlchemyError
from orchestrator.db.sql import TaskRef
from orchestrator.queries.display import Display
from orchestrator.queries.events import Mark
from orchestrator.queries.progress import Progress

REF = TaskRef("default", "task")


@pytest.mark.parametrize("fault", [SQLAlchemyError("away"), RuntimeError("no thread")])
def test_a_stream_goes_on_after_a_failed_look_and_a_failed_snapshot(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(wakeups, "_AWAY_SECONDS", 0.01)
    looks: list[Exception] = [fault]
    snapshots: list[Exception] = [SQLAlchemyError("away")]

    def look(wanted: Collection[TaskRef]) -> Mapping[TaskRef, Mark]:
        if looks:
            raise looks.pop()
        return dict.fromkeys(wanted, Mark(1, 0, "cancelled"))

    def stands() -> Progress:
        if snapshots:
            raise snapshots.pop()
        shown = Display("cancelled", "neutral", "stop", "")
        return Progress("task", 0.0, None, 0.0, 0, "cancelled", None, shown, (), 0, 0, 0, 1, None, None)

    async def hear() -> list[str]:
        async with asyncio.timeout(60):
            heard = numbered(Wakeups(look), REF, 0, lambda _: (), lambda mark: mark.event, stands)
            return [frame.partition("event: ")[2].split("\n")[0] async for frame in heard]

    assert asyncio.run(hear()) == ["", "reset", "end"]
