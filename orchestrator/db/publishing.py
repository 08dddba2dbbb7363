"""What a message is made of, read from the rows after the COMMIT that made it due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.bounds import CODES
from orchestrator.core.priority import Priority
from orchestrator.db.sql import StepRef, TaskRef, one, rows, statement


@dataclass(frozen=True, slots=True)
class Publishable:
    """A step as it is sent: `signature` is its latest request, if it ever had one."""

    step: StepRef
    key: str
    number: int
    total: int
    kind: str
    priority: Priority
    canvas: int | None
    signature: Mapping[str, Any] | None


_FIELDS: Final = """
    SELECT s.tenant_id, s.id, s.task_id, s.workflow_id, s.key, s.number, s.kind, s.priority, s.canvas,
        s.signature, (SELECT count(*) FROM steps a
            WHERE a.tenant_id = s.tenant_id AND a.workflow_id = s.workflow_id) AS total
    FROM steps s
"""
_BY_ID: Final = statement(
    f"{_FIELDS} WHERE s.tenant_id = :tenant AND s.id = ANY(:steps) AND s.status = 'queued'"
)
_OF_WORKFLOW: Final = statement(
    f"{_FIELDS} WHERE s.tenant_id = :tenant AND s.workflow_id = :workflow ORDER BY s.number"
)
_CURRENT: Final = statement(
    """
    SELECT w.id AS workflow_id, p.plan FROM tasks t
    JOIN workflows w ON w.tenant_id = t.tenant_id AND w.task_id = t.id AND w.number = t.workflow_number
    JOIN plan_revisions p ON p.tenant_id = w.tenant_id AND p.workflow_id = w.id
    WHERE t.tenant_id = :tenant AND t.id = :task ORDER BY p.number DESC LIMIT 1
    """
)
_ENTRY: Final = statement(
    """
    SELECT entry_signature, priority FROM tasks
    WHERE tenant_id = :tenant AND id = :task AND entry_signature IS NOT NULL AND entry_delivered_at IS NULL
    """
)
_BEGUN: Final = """
    SELECT s.id, s.agent_id, s.error ->> 'code' AS code FROM tasks t
    JOIN workflows w ON w.tenant_id = t.tenant_id AND w.task_id = t.id AND w.number = t.workflow_number
    JOIN steps s ON s.tenant_id = w.tenant_id AND s.workflow_id = w.id
    WHERE t.tenant_id = :tenant AND t.id = :task AND s.agent_id IS NOT NULL
"""
_CANCELLED: Final = statement(f"{_BEGUN} AND s.status = 'cancelled' ORDER BY s.number")
_LAST_BEGUN: Final = statement(f"{_BEGUN} ORDER BY s.started_at DESC NULLS LAST LIMIT 1")


def _publishable(row: Mapping[str, Any]) -> Publishable:
    return Publishable(
        StepRef(row["tenant_id"], row["task_id"], row["workflow_id"], row["id"]),
        row["key"],
        row["number"],
        row["total"],
        row["kind"],
        Priority(row["priority"]),
        row["canvas"],
        row["signature"],
    )


def queued(connection: Connection, steps: Sequence[StepRef]) -> list[Publishable]:
    """Those of the steps (of one tenant) that are still queued."""
    if not steps:
        return []
    found = rows(connection, _BY_ID, tenant=steps[0].tenant_id, steps=[step.step_id for step in steps])
    return [_publishable(row) for row in found]


def workflow(connection: Connection, task: TaskRef) -> tuple[dict[str, Any], dict[str, Publishable]] | None:
    """The plan of the task's current workflow, as stored, and its steps by key."""
    current = one(connection, _CURRENT, tenant=task.tenant_id, task=task.task_id)
    if current is None:
        return None
    found = rows(connection, _OF_WORKFLOW, tenant=task.tenant_id, workflow=current["workflow_id"])
    return current["plan"], {row["key"]: _publishable(row) for row in found}


def entry(connection: Connection, task: TaskRef) -> tuple[dict[str, Any], Priority] | None:
    """The signature of the caller who waits in Celery for this task."""
    row = one(connection, _ENTRY, tenant=task.tenant_id, task=task.task_id)
    return None if row is None else (row["entry_signature"], Priority(row["priority"]))


def cancelled(connection: Connection, task: TaskRef) -> list[tuple[str, str]]:
    """Of the task's steps that were begun and then cancelled: id, and the agent that had it last."""
    found = rows(connection, _CANCELLED, tenant=task.tenant_id, task=task.task_id)
    return [(row["id"], row["agent_id"]) for row in found]


_FAILED_LATE: Final = statement(
    f"{_BEGUN} AND s.status = 'failed' AND s.error ->> 'code' = ANY(:codes) ORDER BY s.number"
)


def failed_late(connection: Connection, task: TaskRef) -> list[tuple[str, str, str]]:
    """Of the task's steps that were begun and that a bound in time ended: id, last agent, code."""
    codes = list(CODES.values())
    found = rows(connection, _FAILED_LATE, tenant=task.tenant_id, task=task.task_id, codes=codes)
    return [(row["id"], row["agent_id"], row["code"]) for row in found]


def last_agent(connection: Connection, task: TaskRef) -> str | None:
    """The agent that began a step of the task last."""
    row = one(connection, _LAST_BEGUN, tenant=task.tenant_id, task=task.task_id)
    return None if row is None else str(row["agent_id"])
