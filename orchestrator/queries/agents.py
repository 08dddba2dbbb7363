"""The agents: what each does, and which of them are alive but don't move."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.db.sql import rows, statement


@dataclass(frozen=True, slots=True)
class AgentLine:
    """One slot of a worker's pool. Two clocks: it lives (`heartbeat_at`), it moves (`progress_at`)."""

    id: str
    name: str
    status: str
    stalled: bool
    stalled_why: str | None
    node: str
    pid: int
    version: str
    queues: tuple[str, ...]
    capabilities: tuple[str, ...]
    models: tuple[str, ...]
    task_id: str | None
    step_id: str | None
    step_key: str | None
    drain_requested: bool
    registered_at: datetime
    heartbeat_at: datetime
    progress_at: datetime | None


_ALL: Final = statement(
    """
    SELECT a.id, a.name, a.status, a.node, a.pid, a.version, a.queues, a.capabilities, a.models,
        s.task_id, a.step_id, s.key AS step_key, a.drain_requested, a.registered_at,
        greatest(a.heartbeat_at, s.heartbeat_at) AS heartbeat_at,
        coalesce(s.progress_at, a.progress_at) AS progress_at,
        extract(epoch FROM clock_timestamp() - greatest(a.heartbeat_at, s.heartbeat_at)) AS silent,
        extract(epoch FROM clock_timestamp() - s.progress_at) AS still
    FROM agents a
    LEFT JOIN steps s ON s.tenant_id = a.tenant_id AND s.id = a.step_id AND s.agent_id = a.id
         AND s.status = 'running' AND s.lease_until IS NOT NULL
    WHERE a.tenant_id = :tenant AND (:gone OR a.status NOT IN ('offline', 'released'))
    ORDER BY a.status IN ('offline', 'released'), a.id
    """
)


def agents(
    connection: Connection, tenant_id: str, *, silent_for: timedelta, still_for: timedelta, gone: bool = False
) -> tuple[AgentLine, ...]:
    """All agents that are there, with `gone` the former ones too.

    Stalled is one whose heartbeat is older than `silent_for`, or whose step hasn't moved for `still_for`.
    """
    return tuple(
        _line(row, silent_for, still_for) for row in rows(connection, _ALL, tenant=tenant_id, gone=gone)
    )


def _line(row: dict[str, Any], silent_for: timedelta, still_for: timedelta) -> AgentLine:
    silent, still = float(row.pop("silent")), float(row.pop("still") or 0)
    why = None
    if row["status"] not in {"offline", "released"}:
        if silent > silent_for.total_seconds():
            why = f"no heartbeat for {silent:.0f} s"
        elif still > still_for.total_seconds():
            why = f"no progress for {still:.0f} s"
    lists = {name: tuple(row[name]) for name in ("queues", "capabilities", "models")}
    return AgentLine(stalled=why is not None, stalled_why=why, **{**row, **lists})
