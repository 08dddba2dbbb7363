"""`/api/v1/tasks/{id}/events`, `/progress` and `/logs`: as a page of JSON, or followed live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool

from orchestrator.api import streams
from orchestrator.api.bodies import answer, plain
from orchestrator.api.once import Reply
from orchestrator.api.wiring import Reader, The, Waking
from orchestrator.bootstrap import Wiring
from orchestrator.core.errors import Refused
from orchestrator.db.sql import TaskRef
from orchestrator.queries import events as rows, progress as reading
from orchestrator.queries.events import LogFilter, LogLine, TaskEvent
from orchestrator.queries.progress import Progress
from orchestrator.queries.reading import glance, snapshot
from orchestrator.queries.task import resolve

router: Final = APIRouter(prefix="/api/v1", tags=["follow"])
_MOST: Final = 2**31 - 1
After = Annotated[int, Query(ge=0, le=_MOST)]
Word = Annotated[str | None, Query(max_length=200)]


def _ref(wiring: Wiring, tenant_id: str, given: str) -> TaskRef:
    with glance(wiring.engine) as connection:
        return TaskRef(tenant_id, resolve(connection, tenant_id, given))


def _progress(wiring: Wiring, ref: TaskRef) -> Progress:
    with glance(wiring.engine) as connection:
        return reading.progress(connection, ref.tenant_id, ref.task_id)


def _events(wiring: Wiring, ref: TaskRef, after: int, limit: int) -> tuple[TaskEvent, ...]:
    with glance(wiring.engine) as connection:
        return rows.events(connection, ref.tenant_id, ref.task_id, after=after, limit=limit)


@router.get("/tasks/{task_id}/progress", operation_id="tasks.progress", response_model=Progress)
async def progress(
    request: Request, wiring: The, wakeups: Waking, caller: Reader, task_id: str, after: After = 0
) -> Response:
    """A snapshot; with `Accept: text/event-stream` followed until the task has ended."""
    ref = await run_in_threadpool(_ref, wiring, caller.tenant_id, task_id)
    found = await run_in_threadpool(_progress, wiring, ref)
    if not streams.wants_stream(request):
        return answer(found)
    seen, again = streams.resume_after(request, after)
    if again and found.ended and seen >= found.seq:
        return streams.nothing_more()
    return streams.stream(streams.progress(wakeups, ref, lambda: _progress(wiring, ref), seen))


@router.get("/tasks/{task_id}/events", operation_id="tasks.events")
async def events(
    request: Request,
    wiring: The,
    wakeups: Waking,
    caller: Reader,
    task_id: str,
    after: After = 0,
    after_seq: After = 0,
    limit: int = 200,
) -> Response:
    """What happened, by number; with `Accept: text/event-stream` followed until the task has ended.

    Where events of before are archived the stream begins with `reset` and how the task stands.
    """
    ref = await run_in_threadpool(_ref, wiring, caller.tenant_id, task_id)
    after = max(after, after_seq)
    if not streams.wants_stream(request):
        limit = max(1, min(limit, rows.MOST_EVENTS))
        found = await run_in_threadpool(_events, wiring, ref, after, limit)
        return _page(found, after, limit)
    seen, again = streams.resume_after(request, after)
    now = await run_in_threadpool(_progress, wiring, ref)
    if again and now.ended and seen >= now.seq:
        return streams.nothing_more()
    return streams.stream(
        streams.numbered(
            wakeups,
            ref,
            seen,
            lambda after: _events(wiring, ref, after, streams.BATCH),
            lambda mark: mark.event,
            lambda: _progress(wiring, ref),
        )
    )


@router.get("/tasks/{task_id}/logs", operation_id="tasks.logs")
async def logs(
    request: Request,
    wiring: The,
    wakeups: Waking,
    caller: Reader,
    task_id: str,
    after: After = 0,
    after_seq: After = 0,
    tail: Annotated[int, Query(ge=0, le=rows.MOST_LOGS)] = 0,
    limit: int = 500,
    follow: bool = False,
    step: Word = None,
    stream: Word = None,
    q: Word = None,
) -> Response:
    """Output by number, as JSON, text/plain or application/x-ndjson; with `follow` as a stream."""
    if any("\0" in word for word in (step, stream, q) if word):
        raise Refused("filter-invalid", "The filter holds a control character.", "Take it out.")
    ref = await run_in_threadpool(_ref, wiring, caller.tenant_id, task_id)
    wanted = LogFilter(step, stream, q)
    after = max(after, after_seq)

    def read(after: int, limit: int, tail: bool = False) -> tuple[LogLine, ...]:
        with snapshot(wiring.engine) as connection:
            return rows.logs(
                connection, ref.tenant_id, ref.task_id, wanted, after=after, limit=limit, tail=tail
            )

    if follow or streams.wants_stream(request):
        seen, again = streams.resume_after(request, after)
        now = await run_in_threadpool(_progress, wiring, ref)
        if again and now.ended and not await run_in_threadpool(read, seen, 1):
            return streams.nothing_more()
        return streams.stream(
            streams.numbered(
                wakeups,
                ref,
                seen,
                lambda after: read(after, streams.BATCH),
                lambda mark: mark.log,
                lambda: _progress(wiring, ref),
                whole=wanted == LogFilter(),
            )
        )
    limit = max(1, min(tail or limit, rows.MOST_LOGS))
    return _logs(request, await run_in_threadpool(read, after, limit, bool(tail)), after, limit)


def _logs(request: Request, found: Sequence[LogLine], after: int, limit: int) -> Response:
    accept = request.headers.get("accept", "")
    if "text/plain" in accept:
        return PlainTextResponse("".join(_whole_lines(line.text) for line in found))
    if "ndjson" in accept:
        lines = (answer(line).body for line in found)
        text = b"".join(bytes(line) + b"\n" for line in lines)
        return Response(text, media_type="application/x-ndjson")
    return _page(found, after, limit)


def _whole_lines(text: str) -> str:
    return text if text.endswith("\n") else f"{text}\n"


def _page(found: Sequence[TaskEvent | LogLine], after: int, limit: int) -> Response:
    """`next_after` is where to go on, now or later."""
    body: dict[str, Any] = {
        "data": [plain(row) for row in found],
        "has_more": len(found) == limit,
        "next_after": found[-1].seq if found else after,
    }
    return Reply(200, body).response()
