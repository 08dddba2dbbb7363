"""How far a task is: what `/progress` says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from orchestrator.core.errors import Unknown
from orchestrator.core.states import TERMINAL, Status
from orchestrator.db.sql import one, statement
from orchestrator.queries.display import Display, shown
from orchestrator.queries.steps import current_step, fraction
from orchestrator.queries.waits import WAIT_SQL, awaited


@dataclass(frozen=True, slots=True)
class Progress:
    """The first three fields are the public contract; `progress` is a fraction."""

    task_id: str
    progress: float
    current_step: int | None
    progress_fraction: float
    progress_percent: int
    status: str
    waiting_on: str | None
    display: Display
    current_steps: tuple[str, ...]
    """Keys of the steps that are running now."""
    steps_done: int
    steps_total: int
    open_questions: int
    seq: int
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL


_PROGRESS: Final = statement(
    f"""
    SELECT t.id, t.status, t.waiting_on, t.waiting_since, t.waiting_detail, o.*, t.outcome,
        t.open_questions, t.event_number, t.started_at,
        t.finished_at, t.cancel_requested_at, s.steps
    FROM tasks t
    CROSS JOIN LATERAL (
        SELECT coalesce(jsonb_agg(jsonb_build_array(s.number, s.status, s.key) ORDER BY s.number),
            '[]') AS steps
        FROM workflows w JOIN steps s ON s.tenant_id = w.tenant_id AND s.workflow_id = w.id
        WHERE w.tenant_id = t.tenant_id AND w.task_id = t.id AND w.number = t.workflow_number
    ) s
    CROSS JOIN LATERAL ({WAIT_SQL}) o
    WHERE t.tenant_id = :tenant AND t.id = :task
    """
)


def progress(connection: Connection, tenant_id: str, task_id: str) -> Progress:
    """One statement. Raises Unknown."""
    row = one(connection, _PROGRESS, tenant=tenant_id, task=task_id)
    if row is None:
        raise Unknown(
            "task-unknown",
            f"There is no task {task_id}.",
            "List those that there are: orchestrator task list",
        )
    steps = row["steps"]
    waits = awaited(row)
    done = sum(status == Status.COMPLETED for _, status, _ in steps)
    share = fraction(row["status"], done, len(steps))
    return Progress(
        task_id=row["id"],
        progress=share,
        current_step=current_step((number, status) for number, status, _ in steps),
        progress_fraction=share,
        progress_percent=round(share * 100),
        status=row["status"],
        waiting_on=waits["waiting_on"],
        display=shown({**row, **waits}),
        current_steps=tuple(key for _, status, key in steps if status == Status.RUNNING),
        steps_done=done,
        steps_total=len(steps),
        open_questions=row["open_questions"],
        seq=row["event_number"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )
