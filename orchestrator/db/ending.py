"""How a workflow ends: outcome, result and phase, in the transaction of the step that ended last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.bounds import CODES
from orchestrator.core.states import PHASES, Phase, Status
from orchestrator.core.task_id import branch
from orchestrator.db.events import EventDraft, append_sql, append_values
from orchestrator.db.locks import LockedTask
from orchestrator.db.sql import Prepared, dumps, rows, statement

_STEPS: Final = statement(
    """
    SELECT key, status, summary, branch_commit, error FROM steps
    WHERE tenant_id = :tenant AND workflow_id = :workflow ORDER BY number
    """
)
_END: Final = Prepared(
    "end_task",
    """
    INSERT INTO workflow_history (tenant_id, workflow_id, from_state, to_state)
    SELECT :tenant, :workflow, v.start, v.to
    FROM jsonb_to_recordset(CAST(:moves AS jsonb)) AS v(i int, start text, "to" text) ORDER BY v.i;
    UPDATE workflows SET phase = :phase, result = CAST(:result AS jsonb), updated_at = clock_timestamp(),
        started_at = coalesce(started_at, clock_timestamp()), ended_at = clock_timestamp()
    WHERE tenant_id = :tenant AND id = :workflow;
    UPDATE interventions SET applied_at = clock_timestamp(),
        state = CASE WHEN command = 'cancel' AND :status = 'cancelled' THEN 'applied' ELSE 'rejected' END
    WHERE tenant_id = :tenant AND task_id = :task AND state IN ('requested', 'acknowledged');
    """
    + append_sql(
        """
        status = :status, waiting_on = NULL, waiting_since = NULL, waiting_detail = NULL,
        outcome = CAST(:outcome AS jsonb), result = CAST(:result AS jsonb), paused_at = NULL,
        finished_at = clock_timestamp()
        """
    ),
    count="int",
)


def end_task(connection: Connection, task: LockedTask, status: Status, events: Sequence[EventDraft]) -> None:
    """Ends the workflow and the task, after the events that led to it."""
    steps = rows(connection, _STEPS, tenant=task.ref.tenant_id, workflow=task.workflow_id)
    outcome, result = _outcome(task, status, steps), _result(task, status, steps)
    arrows = list(pairwise([task.phase, *_phases_to_end(task.phase, status)]))
    moves = [{"i": number, "start": start, "to": to} for number, (start, to) in enumerate(arrows)]
    _END.run(
        connection,
        {
            "workflow": task.workflow_id,
            "moves": dumps(moves),
            "phase": arrows[-1][1],
            "status": status,
            "outcome": dumps(outcome),
            "result": dumps(result),
            **append_values(
                task.ref,
                [
                    *events,
                    *(_move(task, start, to) for start, to in arrows),
                    EventDraft(
                        "status",
                        status,
                        {"from": task.status, "to": status, "outcome": outcome},
                        workflow_id=task.workflow_id,
                    ),
                ],
            ),
        },
    )


def _move(task: LockedTask, start: Phase, to: Phase) -> EventDraft:
    """One arrow of the phase diagram; ValueError for an arrow that isn't there."""
    if to not in PHASES[start]:
        raise ValueError(f"no phase leads from {start} to {to}")
    return EventDraft("phase", to, {"from": start, "to": to}, workflow_id=task.workflow_id)


_LATE: Final = statement(
    """
    SELECT 1 FROM steps WHERE tenant_id = :tenant AND workflow_id = :workflow AND status = 'failed'
      AND error ->> 'code' = ANY(:codes) LIMIT 1
    """
)


def ended_late(connection: Connection, task: LockedTask) -> bool:
    """Whether a bound in time ended a step: then the task fails, though it would go on after failures. The
    rows say it, whatever the clock says now."""
    keys = {"tenant": task.ref.tenant_id, "workflow": task.workflow_id}
    return bool(rows(connection, _LATE, **keys, codes=list(CODES.values())))


def _phases_to_end(phase: Phase, status: Status) -> tuple[Phase, ...]:
    match status:
        case Status.COMPLETED:
            start = (Phase.PROCESSING,) if phase is Phase.PENDING else ()
            return (*start, Phase.VALIDATION_RUNNING, Phase.VALIDATION_PASSED)
        case Status.CANCELLED:
            return (Phase.CANCELLED,)
        case _:
            return (Phase.FAILED,)


def _outcome(task: LockedTask, status: Status, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    gaps = [step["key"] for step in steps if step["status"] != Status.COMPLETED]
    failed = [step for step in steps if step["status"] == Status.FAILED]
    late = [step for step in failed if step["error"] and step["error"]["code"] in CODES.values()]
    broken = next(iter([*late, *failed]), None)
    match status:
        case Status.COMPLETED if gaps:
            return {"type": "partially_completed", "gaps": gaps}
        case Status.COMPLETED:
            return {"type": "completed"}
        case Status.CANCELLED:
            return {"type": "cancelled", "reason": task.cancel_reason or _first_reason(steps)}
    error = broken["error"] if broken and broken["error"] else {"code": "failed", "message": "A step failed."}
    return {
        "type": "failed",
        "reason": error["code"],
        "message": error["message"],
        "recoverable": bool(error.get("recoverable", False)),
        "step": broken["key"] if broken else None,
    }


def _first_reason(steps: Sequence[Mapping[str, Any]]) -> str:
    reasons = (step["error"]["message"] for step in steps if step["error"])
    return str(next(reasons, "cancelled"))


def _result(task: LockedTask, status: Status, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    summaries = [step["summary"] for step in steps if step["summary"]]
    return {
        "task_id": task.ref.task_id,
        "status": status,
        "workflow_id": task.workflow_id,
        "summary": summaries[-1] if summaries else None,
        "base_commit": task.base_commit,
        "commit": task.tip_commit,
        "branch": branch(task.ref.task_id) if task.tip_commit else None,
        "steps": [
            {
                "key": step["key"],
                "status": step["status"],
                "summary": step["summary"],
                "commit": step["branch_commit"],
            }
            for step in steps
        ],
    }
