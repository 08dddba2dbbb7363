"""The lock on a task's row, with which every change of its steps begins.

The order is always: parent task, task, workflow, steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.bounds import Bound
from orchestrator.core.states import Phase, Status
from orchestrator.db.sql import TaskRef, one, statement

LOCK_SQL: Final = "SELECT 1 FROM tasks WHERE tenant_id = :tenant AND id = :task FOR UPDATE;"

EXCEEDED_SQL: Final = f"""
    CASE WHEN t.deadline > t.created_at AND t.deadline <= clock_timestamp() THEN '{Bound.DEADLINE}'
         WHEN t.started_at + t.max_duration <= clock_timestamp() THEN '{Bound.DURATION}' END
"""
"""Which bound in time a task `t` has met; null: none."""
FACTS_SQL: Final = f"""
    t.status AS task_status, t.workflow_number, t.paused_at, t.cancel_requested_at, t.cancel_reason,
    t.on_step_failure, t.started_at AS task_started_at, t.base_commit, t.tip_commit,
    t.priority AS task_priority, {EXCEEDED_SQL} AS exceeded,
    t.entry_signature IS NOT NULL AS has_entry, t.parent_id IS NOT NULL AS is_subtask,
    w.id AS workflow_id, w.phase
"""
"""What `locked` reads, of a task `t` and its current workflow `w`."""
_LOCKED: Final = statement(
    f"""
    SELECT {FACTS_SQL}
    FROM tasks t
    JOIN workflows w ON w.tenant_id = t.tenant_id AND w.task_id = t.id AND w.number = t.workflow_number
    WHERE t.tenant_id = :tenant AND t.id = :task
    FOR UPDATE OF t
    """
)


@dataclass(frozen=True, slots=True)
class LockedTask:
    """A task whose row this transaction holds."""

    ref: TaskRef
    status: Status
    workflow_id: str
    workflow_number: int
    phase: Phase
    paused: bool
    cancel_requested: bool
    cancel_reason: str | None
    on_step_failure: str
    started: bool
    base_commit: str | None
    tip_commit: str | None
    priority: str
    has_entry: bool
    is_subtask: bool
    exceeded: Bound | None
    """The bound in time that it has met: nothing of it may start or go on."""


def lock_task(connection: Connection, ref: TaskRef) -> LockedTask | None:
    """Takes the lock that every change of a task's rows begins with."""
    row = one(connection, _LOCKED, tenant=ref.tenant_id, task=ref.task_id)
    return None if row is None else locked(ref, row)


def locked(ref: TaskRef, row: Mapping[str, Any]) -> LockedTask:
    """From a row that has FACTS_SQL, in a transaction that holds the task's lock."""
    return LockedTask(
        ref=ref,
        status=Status(row["task_status"]),
        workflow_id=row["workflow_id"],
        workflow_number=row["workflow_number"],
        phase=Phase(row["phase"]),
        paused=row["paused_at"] is not None,
        cancel_requested=row["cancel_requested_at"] is not None,
        cancel_reason=row["cancel_reason"],
        on_step_failure=row["on_step_failure"],
        started=row["task_started_at"] is not None,
        base_commit=row["base_commit"],
        tip_commit=row["tip_commit"],
        priority=row["task_priority"],
        has_entry=row["has_entry"],
        is_subtask=row["is_subtask"],
        exceeded=None if row["exceeded"] is None else Bound(row["exceeded"]),
    )
