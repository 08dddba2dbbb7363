"""Steps whose task may not go on: its deadline has passed, or it took longer than its budget allows.

A step without a lease fails at once, by the sweep's word. One with a lease is told by its heartbeat and fails
by its worker's word, or, when it doesn't within the grace, by the sweep's.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from sqlalchemy import Connection

from orchestrator.core.bounds import error_of
from orchestrator.db.locks import lock_task
from orchestrator.db.sql import StepRef, rows, statement
from orchestrator.db.sweep import BATCH, Due, due_of
from orchestrator.db.transitions import Applied, end_attempts, fail

_LATE: Final = statement(
    f"""
    WITH bound AS (
        SELECT tenant_id, id, deadline AS at FROM tasks
        WHERE finished_at IS NULL AND deadline > created_at AND deadline <= now()
        UNION ALL
        SELECT tenant_id, id, started_at + max_duration FROM tasks
        WHERE finished_at IS NULL AND max_duration IS NOT NULL
          AND (started_at AT TIME ZONE 'UTC') + max_duration <= now() AT TIME ZONE 'UTC'
    ), late AS (
        SELECT tenant_id, id, min(at) AS at FROM bound GROUP BY 1, 2
    )
    SELECT s.tenant_id, s.task_id, s.workflow_id, s.id, s.fence, s.waiting_on
    FROM late l JOIN tasks t ON t.tenant_id = l.tenant_id AND t.id = l.id
    JOIN steps s ON s.tenant_id = l.tenant_id AND s.task_id = l.id
    WHERE s.status IN ('queued', 'running', 'pending_input') AND t.cancel_requested_at IS NULL
      AND (s.lease_until IS NULL OR l.at <= now() - make_interval(secs => :grace))
    ORDER BY l.at, s.task_id, s.number LIMIT {BATCH}
    """
)
"""Both halves go by their own partial index, so that this costs what is late, not what there is."""


def late_steps(connection: Connection, grace: timedelta) -> list[Due]:
    """Live steps of tasks that met a bound; those with a lease only when the bound is `grace` ago."""
    return [due_of(row) for row in rows(connection, _LATE, grace=grace.total_seconds())]


def end_late(connection: Connection, step: StepRef) -> Applied | None:
    """live → failed, with the bound's code, whoever holds it. None: it has ended meanwhile, or nothing is
    late."""
    task = lock_task(connection, step.task)
    if task is None or task.exceeded is None or task.cancel_requested:
        return None
    applied = fail(connection, step, None, error_of(task.exceeded))
    if applied is not None:
        end_attempts(connection, step.tenant_id, [step.step_id], "failed")
    return applied
