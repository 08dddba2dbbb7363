"""A task's events and log lines, from a number on. Both numbers rise from 1 without a gap."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.states import TERMINAL
from orchestrator.db.sql import TaskRef, dumps, rows, statement

MOST_EVENTS: Final = 1000
MOST_LOGS: Final = 1000


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """`type` is what a stream calls it (status, step, phase, …), `name` what exactly happened."""

    seq: int
    task_id: str
    type: str
    name: str
    at: datetime
    workflow_id: str | None
    step_id: str | None
    step_number: int | None
    step_key: str | None
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LogLine:
    """A chunk of output: one line or several."""

    seq: int
    step_id: str | None
    step_key: str | None
    attempt: int | None
    stream: str
    level: str
    text: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a task's event log and output are, for those who follow it."""

    event: int
    log: int
    status: str

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL


_EVENTS: Final = statement(
    """
    SELECT e.number AS seq, e.task_id, e.type, e.name, e.at, e.workflow_id, e.step_id,
        s.number AS step_number, s.key AS step_key, e.data
    FROM events e LEFT JOIN steps s ON s.tenant_id = e.tenant_id AND s.id = e.step_id
    WHERE e.tenant_id = :tenant AND e.task_id = :task AND e.number > :after ORDER BY e.number LIMIT :limit
    """
)
_LOGS: Final = statement(
    """
    SELECT * FROM (
        SELECT l.number AS seq, l.step_id, s.key AS step_key, l.attempt, l.stream, l.level, l.text, l.at
        FROM logs l LEFT JOIN steps s ON s.tenant_id = l.tenant_id AND s.id = l.step_id
        WHERE l.tenant_id = :tenant AND l.task_id = :task AND l.number > :after
          AND (CAST(:step AS text) IS NULL OR s.key = :step OR CAST(s.number AS text) = :step)
          AND (CAST(:stream AS text) IS NULL OR l.stream = :stream)
          AND (CAST(:q AS text) IS NULL OR l.text ILIKE :q)
        ORDER BY CASE WHEN :tail THEN -l.number ELSE l.number END LIMIT :limit
    ) found ORDER BY seq
    """
)
_MARKS: Final = statement(
    """
    SELECT t.tenant_id, t.id, t.event_number, t.log_number, t.status
    FROM jsonb_to_recordset(CAST(:wanted AS jsonb)) AS v(tenant text, task text)
    JOIN tasks t ON t.tenant_id = v.tenant AND t.id = v.task
    """
)


def events(
    connection: Connection, tenant_id: str, task_id: str, *, after: int, limit: int
) -> tuple[TaskEvent, ...]:
    """At most `limit` (1000) events with a number above `after`, in order."""
    bounded = max(1, min(limit, MOST_EVENTS))
    found = rows(connection, _EVENTS, tenant=tenant_id, task=task_id, after=after, limit=bounded)
    return tuple(TaskEvent(**row) for row in found)


@dataclass(frozen=True, slots=True)
class LogFilter:
    """`step`: key or number; `q`: text that a line must hold, in any case."""

    step: str | None = None
    stream: str | None = None
    q: str | None = None


def logs(
    connection: Connection,
    tenant_id: str,
    task_id: str,
    wanted: LogFilter,
    *,
    after: int,
    limit: int,
    tail: bool = False,
) -> tuple[LogLine, ...]:
    """At most `limit` (1000) lines with a number above `after`, in order; the last ones with `tail`."""
    escaped = (wanted.q or "").replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    found = rows(
        connection,
        _LOGS,
        tenant=tenant_id,
        task=task_id,
        after=after,
        step=wanted.step,
        stream=wanted.stream,
        q=f"%{escaped}%" if wanted.q else None,
        tail=tail,
        limit=max(1, min(limit, MOST_LOGS)),
    )
    return tuple(LogLine(**row) for row in found)


def marks(connection: Connection, wanted: Collection[TaskRef]) -> dict[TaskRef, Mark]:
    """How far these tasks are; those that don't exist are left out. One statement for any number of them."""
    asked: Sequence[Mapping[str, str]] = [{"tenant": ref.tenant_id, "task": ref.task_id} for ref in wanted]
    return {
        TaskRef(row["tenant_id"], row["id"]): Mark(row["event_number"], row["log_number"], row["status"])
        for row in rows(connection, _MARKS, wanted=dumps(asked))
    }
