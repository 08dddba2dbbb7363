"""One task with its plan, phases, questions and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.errors import Unknown
from orchestrator.core.task_id import branch
from orchestrator.db.sql import one, rows, statement
from orchestrator.queries.costs import COST_SQL, STEP_COUNT_SQL, Model, Usage, model, usage
from orchestrator.queries.display import Display, shown
from orchestrator.queries.questions import LONGEST_ID, QuestionLine, open_questions
from orchestrator.queries.steps import StepLine, current_step, fraction, steps
from orchestrator.queries.waits import WAIT_SQL, awaited


@dataclass(frozen=True, slots=True)
class PhaseChange:
    """An arrow of the phase diagram that was taken."""

    from_state: str | None
    to_state: str
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class WorkflowLine:
    """The task's current run."""

    id: str
    number: int
    phase: str
    history: tuple[PhaseChange, ...]
    started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class SubtaskLine:
    """A task below the one that is looked at; `step_id` and `call_id` say what started it."""

    id: str
    parent_id: str
    step_id: str
    call_id: str
    depth: int
    title: str
    status: str
    waiting_on: str | None
    display: Display
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class TaskDetail:
    """Everything about a task but its logs, events and files."""

    id: str
    external_id: str | None
    title: str
    description: str
    status: str
    waiting_on: str | None
    waiting_since: datetime | None
    waiting_detail: Mapping[str, Any] | None
    display: Display
    outcome: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    phase: str
    priority: str
    execution_mode: str
    on_step_failure: str
    agent_type: str | None
    model: Model
    repository_url: str | None
    repository_branch: str | None
    branch: str | None
    base_commit: str | None
    commit: str | None
    requirements: tuple[str, ...]
    stakeholders: tuple[str, ...]
    labels: Mapping[str, str]
    budget: Mapping[str, Any]
    warnings: tuple[Mapping[str, str], ...]
    deadline: datetime | None
    progress: float
    current_step: int | None
    steps_done: int
    steps_total: int
    seq: int
    """Number of the latest event: a stream opened with `after=` this misses nothing."""
    log_seq: int
    usage: Usage
    workflow: WorkflowLine
    steps: tuple[StepLine, ...]
    questions: tuple[QuestionLine, ...]
    """Open ones only."""
    parent_id: str | None
    root_id: str
    depth: int
    """0: somebody asked for it; a subtask is one deeper than the task whose agent started it."""
    children: tuple[SubtaskLine, ...]
    """All that is below it, each after its parent and among its siblings by age."""
    created_by: str
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


_RESOLVE: Final = statement(
    """
    SELECT id FROM (
        SELECT id, 1 AS place FROM tasks WHERE tenant_id = :tenant AND id = :given
        UNION ALL
        SELECT id, 2 FROM tasks WHERE tenant_id = :tenant AND id = 'task_' || :given
        UNION ALL
        SELECT id, 3 FROM tasks WHERE tenant_id = :tenant AND external_id = :given
    ) found ORDER BY place LIMIT 1
    """
)


def resolve(connection: Connection, tenant_id: str, given: str) -> str:
    """The id of the task that somebody means: exactly, without its `task_`, or by its external id.

    Raises Unknown, for tasks of other tenants too.
    """
    row = None
    if len(given) <= LONGEST_ID and given.isprintable():
        row = one(connection, _RESOLVE, tenant=tenant_id, given=given)
    if row is None:
        shown = given[:LONGEST_ID]
        raise Unknown(
            "task-unknown", f"There is no task {shown}.", "List those that there are: orchestrator task list"
        )
    return str(row["id"])


_DETAIL: Final = statement(
    f"""
    SELECT t.*, w.id AS workflow_id, w.phase, w.started_at AS workflow_started_at,
        w.ended_at AS workflow_ended_at, u.*, c.*, o.*
    FROM tasks t
    JOIN workflows w ON w.tenant_id = t.tenant_id AND w.task_id = t.id AND w.number = t.workflow_number
    CROSS JOIN LATERAL ({COST_SQL}) u CROSS JOIN LATERAL ({STEP_COUNT_SQL}) c
    CROSS JOIN LATERAL ({WAIT_SQL}) o
    WHERE t.tenant_id = :tenant AND t.id = :task
    """
)
_HISTORY: Final = statement(
    """
    SELECT from_state, to_state, at AS timestamp FROM workflow_history
    WHERE tenant_id = :tenant AND workflow_id = :workflow ORDER BY id
    """
)


_BELOW: Final = statement(
    f"""
    WITH RECURSIVE below AS (
        SELECT c.*, ARRAY[to_char(c.created_at, 'YYYYMMDDHH24MISSUS') || c.id] AS place FROM tasks c
        WHERE c.tenant_id = :tenant AND c.parent_id = :task
        UNION ALL
        SELECT c.*, b.place || (to_char(c.created_at, 'YYYYMMDDHH24MISSUS') || c.id)
        FROM tasks c JOIN below b ON c.tenant_id = b.tenant_id AND c.parent_id = b.id
    )
    SELECT t.id, t.parent_id, t.parent_step_id AS step_id, t.parent_call_id AS call_id, t.depth, t.title,
        t.status, t.waiting_on, t.waiting_since, t.waiting_detail, t.outcome, t.cancel_requested_at,
        t.created_at, t.finished_at, o.*
    FROM below t CROSS JOIN LATERAL ({WAIT_SQL}) o ORDER BY t.place
    """
)


def _below(connection: Connection, tenant_id: str, task_id: str) -> tuple[SubtaskLine, ...]:
    same = "id parent_id step_id call_id depth title status created_at finished_at"
    return tuple(
        SubtaskLine(
            waiting_on=waits["waiting_on"],
            display=shown({**row, **waits}),
            **{name: row[name] for name in same.split()},
        )
        for row in rows(connection, _BELOW, tenant=tenant_id, task=task_id)
        for waits in (awaited(row),)
    )


def task(connection: Connection, tenant_id: str, task_id: str) -> TaskDetail:
    """Raises Unknown."""
    row = one(connection, _DETAIL, tenant=tenant_id, task=task_id)
    if row is None:
        raise Unknown(
            "task-unknown",
            f"There is no task {task_id}.",
            "List those that there are: orchestrator task list",
        )
    workflow = {"tenant": tenant_id, "workflow": row["workflow_id"]}
    waits = awaited(row)
    plan = steps(connection, tenant_id, row["workflow_id"])
    history = tuple(PhaseChange(**change) for change in rows(connection, _HISTORY, **workflow))
    asked = open_questions(connection, tenant_id, task_id) if row["open_questions"] else ()
    same = (
        "id external_id title description status outcome result phase"
        " priority execution_mode on_step_failure agent_type repository_url repository_branch base_commit"
        " labels budget deadline steps_done steps_total created_by created_at updated_at started_at"
        " finished_at parent_id root_id depth"
    )
    return TaskDetail(
        **{name: row[name] for name in same.split()},
        **waits,
        display=shown({**row, **waits}),
        model=model(row),
        branch=branch(row["id"]) if row["tip_commit"] else None,
        commit=row["tip_commit"],
        requirements=tuple(row["requirements"]),
        stakeholders=tuple(row["stakeholders"]),
        warnings=tuple(row["warnings"]),
        progress=fraction(row["status"], row["steps_done"], row["steps_total"]),
        current_step=current_step((step.number, step.status) for step in plan),
        seq=row["event_number"],
        log_seq=row["log_number"],
        usage=usage(row),
        workflow=WorkflowLine(
            row["workflow_id"],
            row["workflow_number"],
            row["phase"],
            history,
            row["workflow_started_at"],
            row["workflow_ended_at"],
        ),
        steps=plan,
        questions=asked,
        children=_below(connection, tenant_id, task_id),
    )
