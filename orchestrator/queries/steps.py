"""The steps of a plan, and how far they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.states import Status
from orchestrator.db.sql import rows, statement
from orchestrator.queries.display import Display, display


@dataclass(frozen=True, slots=True)
class StepLine:
    """One step. `needs` are keys of other steps of the same plan."""

    id: str
    number: int
    key: str
    kind: str
    description: str
    needs: tuple[str, ...]
    status: str
    waiting_on: str | None
    display: Display
    agent_type: str | None
    agent_id: str | None
    attempt: int
    max_attempts: int
    summary: str | None
    commit: str | None
    error: Mapping[str, Any] | None
    ready_at: datetime | None
    not_before: datetime | None
    heartbeat_at: datetime | None
    progress_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None


_STEPS: Final = statement(
    """
    SELECT s.*, s.result_commit AS commit,
        coalesce((SELECT array_agg(n.key ORDER BY n.number) FROM step_needs e
                  JOIN steps n ON n.tenant_id = e.tenant_id AND n.id = e.need_id
                  WHERE e.tenant_id = s.tenant_id AND e.step_id = s.id), '{}') AS needs
    FROM steps s WHERE s.tenant_id = :tenant AND s.workflow_id = :workflow ORDER BY s.number
    """
)


def steps(connection: Connection, tenant_id: str, workflow_id: str) -> tuple[StepLine, ...]:
    """In the plan's order."""
    return tuple(_step(row) for row in rows(connection, _STEPS, tenant=tenant_id, workflow=workflow_id))


def _step(row: Mapping[str, Any]) -> StepLine:
    same = (
        "id number key kind description status waiting_on agent_type agent_id attempt max_attempts summary"
        " commit error ready_at not_before heartbeat_at progress_at started_at finished_at"
    )
    outcome = {"reason": row["error"]["code"], "message": row["error"]["message"]} if row["error"] else None
    return StepLine(
        needs=tuple(row["needs"]),
        display=display(row["status"], row["waiting_on"], outcome, detail=row["waiting_detail"]),
        **{name: row[name] for name in same.split()},
    )


def fraction(status: str, done: int, total: int) -> float:
    """0 to 1: how much of the plan is completed."""
    if status == Status.COMPLETED:
        return 1.0
    return round(done / total, 4) if total else 0.0


def current_step(steps: Iterable[tuple[int, str]]) -> int | None:
    """The number of the first step that runs or waits for a person; else of the first one not ended."""
    order = {Status.RUNNING: 0, Status.PENDING_INPUT: 1, Status.QUEUED: 2}
    live = [(order[Status(status)], number) for number, status in steps if Status(status) in order]
    return min(live)[1] if live else None
