"""`/api/v1/tasks`: create, list, look at, intervene, and questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from orchestrator.api.bodies import JsonBody, answer, plain, read
from orchestrator.api.ids import new_id
from orchestrator.api.once import Ask, Asking, Reply, once
from orchestrator.api.openapi import takes
from orchestrator.api.wakeups import Wakeups
from orchestrator.api.wiring import Reader, The, Waking, Writer
from orchestrator.bootstrap import Wiring
from orchestrator.commands import answer as answering, intervene, message, request as requests
from orchestrator.commands.keys import Caller
from orchestrator.commands.request import TaskRequest, Text
from orchestrator.commands.submit import submit
from orchestrator.core.errors import Refused
from orchestrator.core.states import Status
from orchestrator.db.connect import Connection
from orchestrator.db.sql import TaskRef
from orchestrator.queries.interventions import InterventionLine, interventions
from orchestrator.queries.plan import PlanLine, plan
from orchestrator.queries.questions import QuestionLine, question
from orchestrator.queries.reading import snapshot
from orchestrator.queries.task import TaskDetail, resolve, task
from orchestrator.queries.tasks import MOST_QUERY, TaskFilter, TaskPage, tasks

router: Final = APIRouter(prefix="/api/v1", tags=["tasks"])

_COMMANDS: Final = {
    "pause": intervene.pause,
    "resume": intervene.resume,
    "cancel": intervene.cancel,
    "retry": intervene.retry,
}


class Answer(BaseModel):
    """`choice` counts the question's options from 1; the bounds are for a question of kind budget."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    text: Text | None = None
    choice: int | None = None
    max_cost_usd: Annotated[Decimal, Field(strict=False)] | None = None
    max_tokens: int | None = None
    max_turns: int | None = None


class AnswerBody(BaseModel):
    """`{"answer": "…"}`, `{"answer": {"text": "…"}}` or `{"answer": {"choice": 1}}`.

    Of a question of kind budget also `{"answer": {"max_cost_usd": 10}}`; one of kind tool_approval takes
    `Approve`, or `Deny` with words for the agent or without.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    answer: Text | Answer


class ReasonBody(BaseModel):
    """Why; shown wherever the intervention is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Annotated[Text, Field(max_length=2000)] | None = None


class MessageBody(BaseModel):
    """What the agents of the task are to hear."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[Text, Field(min_length=1, max_length=20_000)]


class RetryBody(ReasonBody):
    """`from`: where to start; this version starts from the beginning alone."""

    start_from: Annotated[
        str, Field(alias="from", pattern=r"^(start|failed[-_]step|step:\d{1,4}|checkpoint:[\w.:-]{1,80})$")
    ] = intervene.FROM_START


@dataclass(frozen=True, slots=True)
class Accepted:
    """A command over a task. `requested`: what runs takes it up at its next heartbeat."""

    id: str | None
    task_id: str
    command: str
    state: str
    status: str
    message: str
    """What happens now."""


# ---- create and read


@router.post(
    "/tasks",
    operation_id="tasks.create",
    status_code=201,
    response_model=TaskDetail,
    openapi_extra=takes(TaskRequest),
)
async def create(wiring: The, wakeups: Waking, caller: Writer, ask: Asking, body: JsonBody) -> Response:
    """Creates a task and answers at once; `Prefer: wait=30` answers when it ended or needs somebody."""
    request = requests.parse(body if isinstance(body, dict) else {})
    reply = await run_in_threadpool(_create, wiring, caller, ask, request)
    if ask.wait and reply.status_code < 300:  # noqa: PLR2004 - it was accepted
        ref = TaskRef(caller.tenant_id, reply.body["id"])
        await _settled(wakeups, ref, ask.wait)
        body = plain(await run_in_threadpool(_look, wiring, ref))
        reply = Reply(
            reply.status_code, body, {**reply.headers, "Preference-Applied": f"wait={ask.wait:.0f}"}
        )
    return reply.response()


def _create(wiring: Wiring, caller: Caller, ask: Ask, request: TaskRequest) -> Reply:
    def work(connection: Connection) -> Reply:
        done = submit(
            connection,
            request,
            policy=wiring.policy,
            tenant_id=caller.tenant_id,
            task_id=new_id("task"),
            created_by=caller.name,
            now=wiring.clock(),
        )
        body = plain(task(connection, caller.tenant_id, done.task_id))
        headers = {"Location": f"/api/v1/tasks/{done.task_id}"}
        return Reply(201 if done.created else 200, body, headers, done.publish)

    return once(wiring, caller, ask, work)


async def _settled(wakeups: Wakeups, ref: TaskRef, seconds: float) -> None:
    """Returns when the task has ended or waits for a person, or after that long."""
    with wakeups.following(ref):
        seen, left = None, seconds
        while left > 0:
            began = wakeups.now()
            seen = await wakeups.moved(ref, seen, left)
            if seen is None or seen.ended or seen.status == Status.PENDING_INPUT:
                return
            left -= wakeups.now() - began


def _look(wiring: Wiring, ref: TaskRef) -> TaskDetail:
    with snapshot(wiring.engine) as connection:
        return task(connection, ref.tenant_id, ref.task_id)


@router.get("/tasks", operation_id="tasks.list", response_model=TaskPage)
def list_tasks(
    wiring: The,
    caller: Reader,
    status: Annotated[list[str] | None, Query()] = None,
    waiting_on: Annotated[list[str] | None, Query()] = None,
    needs_person: bool = False,
    priority: Annotated[list[str] | None, Query()] = None,
    q: Annotated[str | None, Query(max_length=MOST_QUERY)] = None,
    since: datetime | None = None,
    limit: int = 50,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> Response:
    """Newest first. Values separated by commas are alternatives; more than 200 are never in one page."""
    if "\0" in (q or ""):
        raise Refused("filter-invalid", "q holds a control character.", "Take it out.")
    wanted = TaskFilter(
        statuses=_alternatives(status),
        waiting_on=_alternatives(waiting_on),
        needs_person=needs_person,
        priorities=_alternatives(priority),
        q=q or None,
        since=since,
    )
    with snapshot(wiring.engine) as connection:
        page = tasks(connection, caller.tenant_id, wanted, limit=limit, cursor=cursor, secret=wiring.secret)
    return answer(page)


def _alternatives(values: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(part.strip() for value in values or () for part in value.split(",") if part.strip())


@router.get("/tasks/{task_id}", operation_id="tasks.get", response_model=TaskDetail)
def get_task(wiring: The, caller: Reader, task_id: str) -> Response:
    with snapshot(wiring.engine) as connection:
        found = resolve(connection, caller.tenant_id, task_id)
        detail = task(connection, caller.tenant_id, found)
    return answer(detail)


@router.get("/tasks/{task_id}/plan", operation_id="tasks.plan", response_model=PlanLine)
def get_plan(wiring: The, caller: Reader, task_id: str) -> Response:
    """What of its plan can run side by side, its critical path, and how long it takes by its estimates."""
    with snapshot(wiring.engine) as connection:
        found = resolve(connection, caller.tenant_id, task_id)
        return answer(plan(connection, caller.tenant_id, found))


# ---- intervene


@router.get(
    "/tasks/{task_id}/interventions",
    operation_id="tasks.interventions",
    response_model=tuple[InterventionLine, ...],
)
def list_interventions(wiring: The, caller: Reader, task_id: str) -> Response:
    with snapshot(wiring.engine) as connection:
        found = resolve(connection, caller.tenant_id, task_id)
        lines = interventions(connection, caller.tenant_id, found)
    return Reply(200, {"data": [plain(line) for line in lines]}).response()


def _intervention(
    wiring: Wiring, caller: Caller, ask: Ask, task_id: str, command: str, body: Any
) -> Response:
    said = read(RetryBody if command == "retry" else ReasonBody, body).model_dump()

    def work(connection: Connection) -> Reply:
        found = resolve(connection, caller.tenant_id, task_id)
        done = _COMMANDS[command](connection, caller.tenant_id, found, by=caller.name, **said)
        state = "applied" if done.applied else "requested"
        accepted = Accepted(done.intervention_id, found, command, state, done.status, done.message)
        return Reply(202, plain(accepted), publish=done.publish)

    return once(wiring, caller, ask, work).response()


@router.post(
    "/tasks/{task_id}/pause",
    operation_id="tasks.pause",
    status_code=202,
    response_model=Accepted,
    openapi_extra=takes(ReasonBody, required=False),
)
def pause(wiring: The, caller: Writer, ask: Asking, task_id: str, body: JsonBody) -> Response:
    """Nothing new is started; what runs stops at its next turn and is kept."""
    return _intervention(wiring, caller, ask, task_id, "pause", body)


@router.post(
    "/tasks/{task_id}/resume",
    operation_id="tasks.resume",
    status_code=202,
    response_model=Accepted,
    openapi_extra=takes(ReasonBody, required=False),
)
def resume(wiring: The, caller: Writer, ask: Asking, task_id: str, body: JsonBody) -> Response:
    """A paused task goes on. Of one that isn't paused, each escalated step gets one more run."""
    return _intervention(wiring, caller, ask, task_id, "resume", body)


@router.post(
    "/tasks/{task_id}/cancel",
    operation_id="tasks.cancel",
    status_code=202,
    response_model=Accepted,
    openapi_extra=takes(ReasonBody, required=False),
)
def cancel(wiring: The, caller: Writer, ask: Asking, task_id: str, body: JsonBody) -> Response:
    """What runs hands in what it has; the rest is cancelled at once."""
    return _intervention(wiring, caller, ask, task_id, "cancel", body)


@router.post(
    "/tasks/{task_id}/retry",
    operation_id="tasks.retry",
    status_code=202,
    response_model=Accepted,
    openapi_extra=takes(RetryBody, required=False),
)
def retry(wiring: The, caller: Writer, ask: Asking, task_id: str, body: JsonBody) -> Response:
    """A new workflow of the same plan, from the start."""
    return _intervention(wiring, caller, ask, task_id, "retry", body)


@router.post(
    "/tasks/{task_id}/messages",
    operation_id="tasks.message",
    status_code=202,
    response_model=message.Sent,
    openapi_extra=takes(MessageBody),
)
def send_message(wiring: The, caller: Writer, ask: Asking, task_id: str, body: JsonBody) -> Response:
    """Heard before the next turn of whichever step takes it up first: in order, and once."""
    text = read(MessageBody, body).text

    def work(connection: Connection) -> Reply:
        found = resolve(connection, caller.tenant_id, task_id)
        return Reply(202, plain(message.send(connection, caller.tenant_id, found, text, by=caller.name)))

    return once(wiring, caller, ask, work).response()


# ---- questions


@router.get("/questions/{question_id}", operation_id="questions.get", response_model=QuestionLine)
def get_question(wiring: The, caller: Reader, question_id: str) -> Response:
    with snapshot(wiring.engine) as connection:
        return answer(question(connection, caller.tenant_id, question_id))


def _answered(wiring: Wiring, caller: Caller, ask: Ask, subject: str, body: Any) -> Response:
    given = read(AnswerBody, body).answer
    said: str | Mapping[str, Any] = given if isinstance(given, str) else given.model_dump(exclude_none=True)

    def work(connection: Connection) -> Reply:
        meant = subject if subject.startswith("q_") else resolve(connection, caller.tenant_id, subject)
        done = answering.answer(connection, caller.tenant_id, meant, said, by=caller.name)
        body = plain(question(connection, caller.tenant_id, done.question_id))
        return Reply(200, body, publish=done.publish)

    return once(wiring, caller, ask, work).response()


@router.post(
    "/questions/{question_id}/answer",
    operation_id="questions.answer",
    response_model=QuestionLine,
    openapi_extra=takes(AnswerBody),
)
def answer_question(wiring: The, caller: Writer, ask: Asking, question_id: str, body: JsonBody) -> Response:
    """Taken once; a second answer is refused and told the first. A task's id means its only open question."""
    return _answered(wiring, caller, ask, question_id, body)
