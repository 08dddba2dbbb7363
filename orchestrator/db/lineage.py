"""Which step started which subtask, and what has become of it.

A step awaits a subtask as long as the call that started it has no result in the journal. What happens to the
subtask afterwards (somebody retries it) is its own affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.states import Status
from orchestrator.core.subtask import SubtaskEnd
from orchestrator.db.sql import StepRef, TaskRef, rows, statement

AWAITED_SQL: Final = """
    c.parent_step_id = s.id AND c.tenant_id = s.tenant_id AND c.parent_conversation = s.conflicts
    AND NOT EXISTS (
        SELECT 1 FROM tool_calls k WHERE k.tenant_id = c.tenant_id AND k.step_id = c.parent_step_id
          AND k.conversation = c.parent_conversation AND k.id = c.parent_call_id
          AND k.finished_at IS NOT NULL)
"""
"""Whether step `s` awaits task `c`, or would if it weren't over."""
_FORSAKEN: Final = statement(
    f"""
    SELECT c.tenant_id, c.id FROM steps s JOIN tasks c ON {AWAITED_SQL}
    WHERE s.tenant_id = :tenant AND s.id = ANY(:steps) AND c.finished_at IS NULL
      AND c.cancel_requested_at IS NULL
    ORDER BY c.id
    """
)
_LEFT_BEHIND: Final = statement(
    f"""
    SELECT c.tenant_id, c.id FROM tasks c
    JOIN workflows w ON w.tenant_id = c.tenant_id AND w.task_id = c.id AND w.number = c.workflow_number
    JOIN steps s ON {AWAITED_SQL}
    WHERE c.parent_id IS NOT NULL AND c.finished_at IS NULL AND c.cancel_requested_at IS NULL
      AND s.finished_at > w.created_at
    ORDER BY s.finished_at LIMIT 200
    """
)
_CHILDREN: Final = statement(
    """
    SELECT tenant_id, id FROM tasks
    WHERE tenant_id = :tenant AND parent_id = ANY(:tasks) AND finished_at IS NULL ORDER BY id
    """
)
_ENDS: Final = statement(
    """
    SELECT id, parent_call_id, status, outcome, result, tip_commit, finished_at IS NOT NULL AS ended
    FROM tasks
    WHERE tenant_id = :tenant AND parent_step_id = :step AND parent_conversation = :conversation
    """
)


def forsaken(connection: Connection, tenant_id: str, steps: Sequence[str]) -> tuple[TaskRef, ...]:
    """Live subtasks that these steps await; for a caller that has just ended the steps."""
    found = rows(connection, _FORSAKEN, tenant=tenant_id, steps=list(steps))
    return tuple(TaskRef(row["tenant_id"], row["id"]) for row in found)


def left_behind(connection: Connection) -> list[TaskRef]:
    """Live subtasks whose parent's step ended while this run of theirs was under way. One that was retried
    after that stands alone."""
    return [TaskRef(row["tenant_id"], row["id"]) for row in rows(connection, _LEFT_BEHIND)]


def live_children(connection: Connection, tenant_id: str, tasks: Sequence[str]) -> list[TaskRef]:
    """Of these tasks, by id. Whoever holds their locks sees all: a subtask is started under its parent's."""
    found = rows(connection, _CHILDREN, tenant=tenant_id, tasks=list(tasks))
    return [TaskRef(row["tenant_id"], row["id"]) for row in found]


def ends(connection: Connection, step: StepRef, conversation: int) -> dict[str, SubtaskEnd | None]:
    """Of all subtasks that this conversation started, by call; None: it lives."""
    found = rows(connection, _ENDS, tenant=step.tenant_id, step=step.step_id, conversation=conversation)
    return {row["parent_call_id"]: _end(row) if row["ended"] else None for row in found}


def _end(row: Mapping[str, Any]) -> SubtaskEnd:
    """What isn't completed hands over no commit: half a change is no result."""
    status, outcome, result = Status(row["status"]), row["outcome"] or {}, row["result"] or {}
    match status:
        case Status.COMPLETED:
            gaps = outcome.get("gaps")
            summary = str(result.get("summary") or "It is completed.")
            summary += f" Not completed: {', '.join(gaps)}." if gaps else ""
            return SubtaskEnd(row["parent_call_id"], row["id"], status, summary, row["tip_commit"])
        case Status.FAILED:
            summary = f"{outcome.get('reason', 'failed')}: {outcome.get('message', '')}".rstrip(": ")
        case _:
            summary = str(outcome.get("reason") or "cancelled")
    return SubtaskEnd(row["parent_call_id"], row["id"], status, summary)
