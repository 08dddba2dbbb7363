"""A step waits for the tasks that it started, without a worker, and is woken once when all have ended.

A subtask's end and its parent's park may come in either order: both look at the rows under the parent's lock,
after their own change is there to be seen, so that one of them finds both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.states import Event, Status, WaitingOn
from orchestrator.db.claims import holds
from orchestrator.db.lineage import AWAITED_SQL
from orchestrator.db.sql import StepRef, TaskRef, one, rows, statement
from orchestrator.db.sweep import BATCH, Due, due_of
from orchestrator.db.transitions import Applied, give_back, park as park_step
from orchestrator.db.waking import wake

_LIVES: Final = f"SELECT 1 FROM tasks c WHERE {AWAITED_SQL} AND c.finished_at IS NULL"
_AWAITS: Final = statement(
    f"SELECT 1 FROM steps s WHERE s.tenant_id = :tenant AND s.id = :step AND EXISTS ({_LIVES})"
)
_ALL_ENDED: Final = statement(
    f"""
    SELECT 1 FROM steps s WHERE s.tenant_id = :tenant AND s.id = :step AND s.status = 'running'
      AND s.waiting_on = 'subtask' AND NOT EXISTS ({_LIVES})
    """
)
_PARENT: Final = statement(
    """
    SELECT s.tenant_id, s.task_id, s.workflow_id, s.id
    FROM tasks c JOIN steps s ON s.tenant_id = c.tenant_id AND s.id = c.parent_step_id
    WHERE c.tenant_id = :tenant AND c.id = :task
    """
)
_FORGOTTEN: Final = statement(
    f"""
    SELECT s.tenant_id, s.task_id, s.workflow_id, s.id, s.fence, s.waiting_on FROM steps s
    WHERE s.status = 'running' AND s.waiting_on = 'subtask' AND NOT EXISTS ({_LIVES})
      AND s.waiting_since <= clock_timestamp() - make_interval(secs => :grace)
      AND NOT EXISTS (
        SELECT 1 FROM tasks c WHERE c.tenant_id = s.tenant_id AND c.parent_step_id = s.id
          AND c.finished_at > clock_timestamp() - make_interval(secs => :grace))
    ORDER BY s.waiting_since LIMIT {BATCH}
    """
)


def park(connection: Connection, step: StepRef, fence: int, detail: Mapping[str, Any]) -> Applied | None:
    """running → running without a lease, or → queued if all that it awaits has ended by now. None: the fence
    is lost."""
    if not holds(connection, step, fence):
        return None
    if one(connection, _AWAITS, tenant=step.tenant_id, step=step.step_id) is None:
        back = give_back(connection, step, fence, "its subtasks had ended")
        return None if back is None else replace(back, instead=back.instead or Status.QUEUED)
    return park_step(connection, step, fence, Event.WAIT, WaitingOn.SUBTASK, detail)


@dataclass(frozen=True, slots=True)
class Woken:
    """The step that goes on."""

    step: StepRef
    applied: Applied


def wake_parent(connection: Connection, subtask: TaskRef) -> Woken | None:
    """After the COMMIT of a subtask's end: the step that started it goes on if it awaits no other one."""
    row = one(connection, _PARENT, tenant=subtask.tenant_id, task=subtask.task_id)
    if row is None:
        return None
    step = StepRef(row["tenant_id"], row["task_id"], row["workflow_id"], row["id"])
    applied = wake_waiting(connection, step)
    return None if applied is None else Woken(step, applied)


def wake_waiting(connection: Connection, step: StepRef) -> Applied | None:
    """None: it doesn't wait for subtasks (somebody was faster), or one that it awaits still lives."""
    keys = {"tenant": step.tenant_id, "step": step.step_id}
    return wake(
        connection,
        step,
        Event.WAKE,
        {"why": "its subtasks ended"},
        first=lambda: one(connection, _ALL_ENDED, **keys) is not None,
    )


def forgotten(connection: Connection, grace: timedelta) -> list[Due]:
    """Steps whose subtasks all ended longer ago than the grace: whoever ended the last one died before it
    could wake them."""
    return [due_of(row) for row in rows(connection, _FORGOTTEN, grace=grace.total_seconds())]
