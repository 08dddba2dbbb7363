"""The event log: appended in the transaction that changes state, numbered per task without a gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.db.sql import Prepared, TaskRef, dumps


@dataclass(frozen=True, slots=True)
class EventDraft:
    """An event that still lacks its number."""

    type: str
    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    workflow_id: str | None = None
    step_id: str | None = None
    fence: int | None = None


def append_sql(and_set: str = "") -> str:
    """Appends `append_values`; `and_set` is what else of the task's row is set by the way."""
    return f"""
    WITH t AS (
        UPDATE tasks SET event_number = event_number + :count, updated_at = clock_timestamp()
            {"," if and_set else ""} {and_set}
        WHERE tenant_id = :tenant AND id = :task RETURNING event_number
    )
    INSERT INTO events (tenant_id, task_id, number, workflow_id, step_id, fence, type, name, data)
    SELECT :tenant, :task, t.event_number - :count + v.i, v.workflow_id, v.step_id, v.fence,
        v.type, v.name, v.data
    FROM t, jsonb_to_recordset(CAST(:events AS jsonb))
         AS v(i int, workflow_id text, step_id text, fence int, type text, name text, data jsonb)
    """


_APPEND: Final = Prepared("append", append_sql(), count="int")


def append_values(ref: TaskRef, events: Sequence[EventDraft]) -> dict[str, Any]:
    drafts = [
        {
            "i": number,
            "workflow_id": event.workflow_id,
            "step_id": event.step_id,
            "fence": event.fence,
            "type": event.type,
            "name": event.name,
            "data": dict(event.data),
        }
        for number, event in enumerate(events, start=1)
    ]
    return {"tenant": ref.tenant_id, "task": ref.task_id, "count": len(drafts), "events": dumps(drafts)}


def append_events(connection: Connection, ref: TaskRef, events: Sequence[EventDraft]) -> None:
    """Appends observations; takes the task's lock."""
    if events:
        _APPEND.run(connection, append_values(ref, events))
