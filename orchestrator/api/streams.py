"""Server-sent events: rows by number, resumed after the number that the client saw last."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final, TypeVar

import structlog
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from orchestrator.api.wakeups import Wakeups
from orchestrator.db.connect import SQLAlchemyError
from orchestrator.db.sql import TaskRef
from orchestrator.queries.events import LogLine, Mark, TaskEvent
from orchestrator.queries.progress import Progress

log: Final = structlog.get_logger(__name__)
T = TypeVar("T")

BATCH: Final = 500
RETRY_MILLISECONDS: Final = 2000
KEEP_ALIVE_SECONDS: Final = 10.0
_KEEP_ALIVE: Final = ": keep-alive\n\n"


def wants_stream(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


def resume_after(request: Request, after: int) -> tuple[int, bool]:
    """The number to go on after, and whether this is a browser's own reconnection."""
    last = request.headers.get("last-event-id", "").strip()
    return (int(last), True) if last.isdigit() and len(last) < 10 else (after, False)  # noqa: PLR2004 - an int4


def stream(frames: AsyncIterator[str]) -> Response:
    async def all_frames() -> AsyncIterator[str]:
        yield f"retry: {RETRY_MILLISECONDS}\n\n"
        async for frame in frames:
            yield frame

    return StreamingResponse(
        all_frames(),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


def nothing_more() -> Response:
    """204 tells a browser's EventSource to stop reconnecting."""
    return Response(status_code=204)


def frame(event: str, data: Any, number: int | None = None) -> str:
    numbered = "" if number is None else f"id: {number}\n"
    return f"{numbered}event: {event}\ndata: {json.dumps(data, default=_plain)}\n\n"


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


async def _retried(read: Callable[[], T]) -> T | None:
    """None while the database is away: the stream stays open and goes on later."""
    try:
        return await run_in_threadpool(read)
    except SQLAlchemyError as error:
        log.warning("stream_waits", error=type(error).__name__)
        return None


async def _marks(wakeups: Wakeups, ref: TaskRef) -> AsyncIterator[Mark | None]:
    """Each mark that differs from the one before; None when it is time to keep the connection alive."""
    seen: Mark | None = None
    with wakeups.following(ref):
        while True:
            mark = await wakeups.moved(ref, seen, KEEP_ALIVE_SECONDS)
            seen = mark or seen
            yield mark


async def numbered(
    wakeups: Wakeups,
    ref: TaskRef,
    after: int,
    read: Callable[[int], Sequence[TaskEvent | LogLine]],
    reach: Callable[[Mark], int],
    snapshot: Callable[[], Progress],
    *,
    whole: bool = True,
) -> AsyncIterator[str]:
    """All rows above `after`, in order and without a gap, until the task has ended.

    `reach` says how far the rows go. Rows that are there no more are told by `reset`, with a snapshot; where
    `read` leaves rows out that aren't wanted, nobody can tell (`whole` False).
    """
    seen = after
    async for mark in _marks(wakeups, ref):
        if mark is None:
            yield _KEEP_ALIVE
            continue
        while seen < reach(mark):
            found = await _retried(lambda after=seen: read(after))  # type: ignore[misc]
            if found is None:
                yield _KEEP_ALIVE
                await wakeups.rest()
                continue
            if whole and (not found or found[0].seq > seen + 1):
                while (stands := await _retried(snapshot)) is None:
                    yield _KEEP_ALIVE
                    await wakeups.rest()
                yield frame("reset", asdict(stands))
            for row in found:
                yield frame(row.type if isinstance(row, TaskEvent) else "log", asdict(row), row.seq)
            # A filter leaves rows out: what was looked through is seen. Some may be newer than the mark.
            last = found[-1].seq if found else seen
            seen = last if len(found) == BATCH else max(last, reach(mark))
        if mark.ended:
            yield frame("end", {"task_id": ref.task_id, "status": mark.status, "seq": seen}, seen)
            return


async def progress(
    wakeups: Wakeups, ref: TaskRef, read: Callable[[], Progress], after: int
) -> AsyncIterator[str]:
    """A snapshot first, then one after each change that shows, until the task has ended."""
    shown: Progress | None = None
    async for mark in _marks(wakeups, ref):
        if mark is None:
            yield _KEEP_ALIVE
            continue
        while (found := await _retried(read)) is None:
            yield _KEEP_ALIVE
            await wakeups.rest()
        if shown is None or _visible(found) != _visible(shown):
            if shown is not None or found.seq > after or found.ended:
                yield frame("progress", asdict(found), found.seq)
            shown = found
        if found.ended:
            yield frame("end", {"task_id": ref.task_id, "status": found.status, "seq": found.seq}, found.seq)
            return


def _visible(found: Progress) -> dict[str, Any]:
    return {name: value for name, value in asdict(found).items() if name != "seq"}
