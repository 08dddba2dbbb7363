"""What people commanded over a task."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from orchestrator.db.sql import rows, statement


@dataclass(frozen=True, slots=True)
class InterventionLine:
    """`state`: requested, acknowledged, applied, rejected or timed_out."""

    id: str
    task_id: str
    command: str
    state: str
    reason: str | None
    requested_by: str
    requested_at: datetime
    acknowledged_at: datetime | None
    applied_at: datetime | None


_ALL: Final = statement(
    """
    SELECT id, task_id, command, state, reason, requested_by, requested_at, acknowledged_at, applied_at
    FROM interventions WHERE tenant_id = :tenant AND task_id = :task ORDER BY requested_at, id
    """
)


def interventions(connection: Connection, tenant_id: str, task_id: str) -> tuple[InterventionLine, ...]:
    return tuple(InterventionLine(**row) for row in rows(connection, _ALL, tenant=tenant_id, task=task_id))
