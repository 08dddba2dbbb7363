"""What people command over a whole task: pause, resume, cancel, and the next workflow of a retry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.states import Event
from orchestrator.db.events import EventDraft
from orchestrator.db.locks import LockedTask
from orchestrator.db.sql import StepRef, TaskRef, dumps, one, rows, statement
from orchestrator.db.transitions import Settled, end_attempts, settle, step_event, withdraw_questions

_RECORD: Final = statement(
    """
    INSERT INTO interventions (tenant_id, id, task_id, command, state, reason, requested_by, details,
        acknowledged_at, applied_at)
    VALUES (:tenant, 'int_' || replace(CAST(gen_random_uuid() AS text), '-', ''), :task, :command, :state,
        :reason, :by, CAST(:details AS jsonb),
        CASE WHEN :state = 'applied' THEN clock_timestamp() END,
        CASE WHEN :state = 'applied' THEN clock_timestamp() END)
    RETURNING id
    """
)
_RUNNING: Final = statement(
    """
    SELECT count(*) AS running FROM steps
    WHERE tenant_id = :tenant AND workflow_id = :workflow AND lease_until IS NOT NULL
    """
)


@dataclass(frozen=True, slots=True)
class Commanded:
    """An intervention and what it did at once; a step that runs follows at its next heartbeat."""

    intervention_id: str
    applied: bool
    settled: Settled
    released: tuple[StepRef, ...] = ()


def record(
    connection: Connection, task: LockedTask, command: str, by: str, reason: str | None, *, applied: bool
) -> str:
    row = one(
        connection,
        _RECORD,
        tenant=task.ref.tenant_id,
        task=task.ref.task_id,
        command=command,
        state="applied" if applied else "requested",
        reason=reason,
        by=by,
        details=dumps({}),
    )
    assert row is not None  # noqa: S101 - INSERT … RETURNING
    return str(row["id"])


def _command_event(task: LockedTask, command: str, by: str, reason: str | None) -> EventDraft:
    return EventDraft("intervention", command, {"by": by, "reason": reason}, workflow_id=task.workflow_id)


def _running(connection: Connection, task: LockedTask) -> int:
    row = one(connection, _RUNNING, tenant=task.ref.tenant_id, workflow=task.workflow_id)
    return int(row["running"]) if row else 0


_PAUSE: Final = statement(
    """
    UPDATE tasks SET paused_at = clock_timestamp() WHERE tenant_id = :tenant AND id = :task;
    UPDATE steps SET status = 'pending_input', waiting_on = 'paused', waiting_since = clock_timestamp(),
        waiting_detail = NULL
    WHERE tenant_id = :tenant AND workflow_id = :workflow AND status = 'queued' AND num_nulls(ready_at) = 0
    RETURNING id
    """
)


def pause(connection: Connection, task: LockedTask, by: str, reason: str | None) -> Commanded:
    """Nothing is claimed from now on; what runs stops at its next turn boundary, parked."""
    parked = rows(connection, _PAUSE, **_keys(task))
    applied = _running(connection, task) == 0
    intervention = record(connection, task, "pause", by, reason, applied=applied)
    events = [_command_event(task, "pause", by, reason)]
    events += [step_event(Event.PAUSE, _step(task, row["id"]), None) for row in parked]
    return Commanded(intervention, applied, settle(connection, task, events))


_RESUME: Final = statement(
    """
    UPDATE tasks SET paused_at = NULL WHERE tenant_id = :tenant AND id = :task;
    UPDATE interventions SET state = 'applied', applied_at = clock_timestamp()
    WHERE tenant_id = :tenant AND task_id = :task AND command = 'pause'
      AND state IN ('requested', 'acknowledged');
    UPDATE steps SET status = 'queued',
        waiting_on = CASE WHEN not_before > now() THEN 'retry_backoff' END,
        waiting_since = CASE WHEN not_before > now() THEN now() END, waiting_detail = NULL,
        not_before = CASE WHEN not_before > now() THEN not_before END,
        ready_at = now(), published_at = now(), publications = 0, published_by = 'wake',
        published_alone = published_alone OR (signature IS NULL AND canvas IS NULL)
    WHERE tenant_id = :tenant AND workflow_id = :workflow AND status = 'pending_input'
      AND waiting_on = 'paused'
    RETURNING id, waiting_on IS NULL AS released
    """
)


def resume(connection: Connection, task: LockedTask, by: str, reason: str | None) -> Commanded:
    """What was paused is queued again and goes on from where it stopped; a back-off that isn't over goes on,
    too."""
    woken = rows(connection, _RESUME, **_keys(task))
    intervention = record(connection, task, "resume", by, reason, applied=True)
    steps = tuple(_step(task, row["id"]) for row in woken)
    events = [_command_event(task, "resume", by, reason)]
    events += [step_event(Event.RESUME, step, None) for step in steps]
    released = tuple(_step(task, row["id"]) for row in woken if row["released"])
    return Commanded(intervention, True, settle(connection, task, events), released)


_ACKNOWLEDGE: Final = statement(
    """
    UPDATE interventions SET state = 'acknowledged', acknowledged_at = clock_timestamp()
    WHERE tenant_id = :tenant AND task_id = :task AND command = :command AND state = 'requested'
    """
)


def acknowledge(connection: Connection, task: TaskRef, command: str) -> None:
    """A running step has heard it."""
    connection.execute(_ACKNOWLEDGE, {"tenant": task.tenant_id, "task": task.task_id, "command": command})


_ESCALATED: Final = statement(
    """
    SELECT id, key FROM steps
    WHERE tenant_id = :tenant AND workflow_id = :workflow AND status = 'pending_input'
      AND waiting_on = 'escalation'
    ORDER BY number
    """
)


def escalated(connection: Connection, task: LockedTask) -> dict[str, str]:
    """Steps that wait for a person to look at them: id → key, in the plan's order."""
    return {row["id"]: row["key"] for row in rows(connection, _ESCALATED, **_keys(task))}


_LEAD_ON: Final = statement(
    """
    UPDATE steps SET status = 'queued', waiting_on = NULL, waiting_since = NULL, waiting_detail = NULL,
        ready_at = now(), published_at = now(), publications = 0, published_by = 'wake',
        published_alone = published_alone OR (signature IS NULL AND canvas IS NULL)
    WHERE tenant_id = :tenant AND id = ANY(:steps) AND status = 'pending_input' AND waiting_on = 'escalation'
    """
)


def lead_on(
    connection: Connection, task: LockedTask, steps: Sequence[str], by: str, reason: str | None
) -> Commanded:
    """Escalated steps get one more run each, on the branch's end as it is then; the next conflict escalates
    again, since conflicts stay counted (and each run has a conversation of its own by that count)."""
    connection.execute(_LEAD_ON, {"tenant": task.ref.tenant_id, "steps": list(steps)})
    intervention = record(connection, task, "resume", by, reason, applied=True)
    released = tuple(_step(task, step_id) for step_id in steps)
    events = [_command_event(task, "resume", by, reason)]
    events += [step_event(Event.RESUME, step, None, why="escalation") for step in released]
    return Commanded(intervention, True, settle(connection, task, events), released)


_CANCEL: Final = statement(
    """
    UPDATE tasks SET cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp()),
        cancel_reason = coalesce(cancel_reason, :reason)
    WHERE tenant_id = :tenant AND id = :task;
    WITH gone AS (
        SELECT id FROM steps WHERE tenant_id = :tenant AND workflow_id = :workflow AND lease_until IS NULL
          AND status IN ('queued', 'pending_input', 'running') ORDER BY number FOR UPDATE
    )
    UPDATE steps s SET status = 'cancelled', waiting_on = NULL, waiting_since = NULL, waiting_detail = NULL,
        given_back = false, not_before = NULL, finished_at = clock_timestamp(),
        error = jsonb_build_object('code', 'cancelled', 'message', CAST(:reason AS text))
    FROM gone WHERE s.tenant_id = :tenant AND s.id = gone.id
    RETURNING s.id
    """
)


def cancel(connection: Connection, task: LockedTask, by: str, reason: str) -> Commanded:
    """Every step that isn't running ends here; a running one hands in what it has and ends within 20 s."""
    intervention = record(connection, task, "cancel", by, reason, applied=False)
    gone = rows(connection, _CANCEL, **_keys(task), reason=reason)
    ended = [row["id"] for row in gone]
    withdraw_questions(connection, task.ref, ended)
    end_attempts(connection, task.ref.tenant_id, ended, "cancelled")
    events = [
        _command_event(task, "cancel", by, reason),
        *(step_event(Event.CANCEL, _step(task, row["id"]), None, reason=reason) for row in gone),
    ]
    settled = settle(connection, task, events)
    return Commanded(intervention, settled.ended, settled)


_REOPEN: Final = statement(
    """
    UPDATE tasks SET workflow_number = workflow_number + 1, status = 'queued', outcome = NULL, result = NULL,
        tip_commit = NULL, finished_at = NULL, started_at = NULL, cancel_requested_at = NULL,
        cancel_reason = NULL, paused_at = NULL, waiting_on = NULL, waiting_since = NULL,
        waiting_detail = NULL, open_questions = 0, notified_at = NULL, archived_at = NULL
    WHERE tenant_id = :tenant AND id = :task
    """
)


def reopen(connection: Connection, task: LockedTask, by: str, reason: str | None) -> None:
    """RETRY: the only way out of a terminal state. The caller writes the next workflow and the event."""
    connection.execute(_REOPEN, _keys(task))
    record(connection, task, "retry", by, reason, applied=True)


def _keys(task: LockedTask) -> Mapping[str, Any]:
    return {"tenant": task.ref.tenant_id, "task": task.ref.task_id, "workflow": task.workflow_id}


def _step(task: LockedTask, step_id: str) -> StepRef:
    return StepRef(task.ref.tenant_id, task.ref.task_id, task.workflow_id, step_id)
