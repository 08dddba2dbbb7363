"""Questions that nobody answered in time. Those whose task is paused wait until it isn't."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from orchestrator.core.verdict import OnSilence
from orchestrator.db.locks import lock_task
from orchestrator.db.sql import StepRef, one, rows, statement
from orchestrator.db.sweep import BATCH
from orchestrator.db.transitions import Applied, end_attempts, fail


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A question whose time is over, and what that means."""

    question_id: str
    step: StepRef
    then: OnSilence
    default: str | None


_DUE: Final = """
    q.answered_at IS NULL AND q.withdrawn_at IS NULL AND q.expires_at <= clock_timestamp()
    AND t.paused_at IS NULL AND t.cancel_requested_at IS NULL
"""
_UNANSWERED: Final = statement(
    f"""
    SELECT q.tenant_id, q.id, q.task_id, q.workflow_id, q.step_id, q.on_expiry, q.default_answer
    FROM questions q JOIN tasks t ON t.tenant_id = q.tenant_id AND t.id = q.task_id
    WHERE {_DUE} ORDER BY q.expires_at LIMIT {BATCH}
    """
)
_STILL: Final = statement(
    f"""
    SELECT 1 FROM questions q
    JOIN tasks t ON t.tenant_id = q.tenant_id AND t.id = q.task_id
    JOIN steps s ON s.tenant_id = q.tenant_id AND s.id = q.step_id
    WHERE q.tenant_id = :tenant AND q.id = :question AND {_DUE} AND s.status = 'pending_input'
    """
)


def unanswered(connection: Connection) -> list[Unanswered]:
    return [
        Unanswered(
            row["id"],
            StepRef(row["tenant_id"], row["task_id"], row["workflow_id"], row["step_id"]),
            OnSilence(row["on_expiry"]),
            row["default_answer"],
        )
        for row in rows(connection, _UNANSWERED)
    ]


def fail_unanswered(connection: Connection, late: Unanswered) -> Applied | None:
    """pending_input → failed, unless somebody has answered meanwhile: under the lock that answers take."""
    keys = {"tenant": late.step.tenant_id, "question": late.question_id}
    if lock_task(connection, late.step.task) is None or one(connection, _STILL, **keys) is None:
        return None
    error = {
        "code": "question-unanswered",
        "message": f"Nobody answered question {late.question_id} in time.",
        "recoverable": True,
    }
    applied = fail(connection, late.step, None, error)
    if applied is not None:
        end_attempts(connection, late.step.tenant_id, [late.step.step_id], "failed")
    return applied
