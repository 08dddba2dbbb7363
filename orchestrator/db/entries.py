"""The caller's side of `execute_task`: its Celery request is kept while the work is done, and answered
once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.priority import Priority
from orchestrator.core.states import TERMINAL, Status
from orchestrator.db.sql import TaskRef, dumps, one, rows, statement


@dataclass(frozen=True, slots=True)
class Entry:
    """What a delivery of the caller's message finds."""

    status: Status
    to_deliver: bool
    """This delivery has the lease on handing the end to Celery."""
    outcome: Mapping[str, Any] | None
    result: Mapping[str, Any] | None


_LOOK: Final = statement(
    """
    SELECT status, outcome, result, entry_signature IS NOT NULL AS known,
        entry_delivered_at IS NOT NULL AS delivered
    FROM tasks WHERE tenant_id = :tenant AND id = :task FOR UPDATE
    """
)
_KEEP: Final = statement(
    """
    UPDATE tasks SET entry_signature = CAST(:signature AS jsonb)
    WHERE tenant_id = :tenant AND id = :task AND entry_signature IS NULL
    """
)
_LEASE: Final = statement(
    """
    UPDATE tasks SET entry_lease_until = clock_timestamp() + make_interval(secs => :lease)
    WHERE tenant_id = :tenant AND id = :task AND entry_delivered_at IS NULL
      AND (entry_lease_until IS NULL OR entry_lease_until < clock_timestamp())
    RETURNING id
    """
)
_DELIVERED: Final = statement(
    """
    UPDATE tasks SET entry_delivered_at = clock_timestamp(), entry_lease_until = NULL
    WHERE tenant_id = :tenant AND id = :task AND entry_delivered_at IS NULL
    """
)
_IS_DUE: Final = """
    t.entry_signature IS NOT NULL AND t.entry_delivered_at IS NULL AND t.finished_at IS NOT NULL
    AND greatest(t.finished_at, t.entry_published_at) < clock_timestamp()
        - make_interval(secs => :grace) * power(2, least(t.entry_publications, 4))
    AND (t.entry_lease_until IS NULL OR t.entry_lease_until < clock_timestamp())
"""
_DUE: Final = statement(f"SELECT DISTINCT t.priority FROM tasks t WHERE {_IS_DUE}")
_SEND_AGAIN: Final = statement(
    f"""
    UPDATE tasks SET entry_published_at = clock_timestamp(), entry_publications = entry_publications + 1
    WHERE (tenant_id, id) IN (
        SELECT t.tenant_id, t.id FROM tasks t
        WHERE {_IS_DUE} AND (t.priority = ANY(:emptied)
          OR greatest(t.finished_at, t.entry_published_at) + make_interval(secs => :grace) < (
            SELECT max(latest.published_at) FROM (
                SELECT s.published_at FROM steps s
                WHERE s.priority = t.priority AND s.claimed_at IS NOT NULL AND s.published_at < s.claimed_at
                ORDER BY s.claimed_at DESC LIMIT 20
            ) latest))
        ORDER BY t.finished_at LIMIT :batch FOR UPDATE OF t SKIP LOCKED)
    RETURNING tenant_id, id
    """
)
"""Of the steps of its queue that were claimed last one was published later: its own message is lost."""


def arrive(
    connection: Connection, task: TaskRef, signature: Mapping[str, Any], lease: timedelta
) -> Entry | None:
    """One delivery of the caller's message: its signature is kept; if the task has ended, one gets to say so.

    None: there is no such task.
    """
    row = one(connection, _LOOK, tenant=task.tenant_id, task=task.task_id)
    if row is None:
        return None
    status = Status(row["status"])
    if not row["known"]:
        keep(connection, task, signature)
    deliver = False
    if status in TERMINAL and not row["delivered"]:
        deliver = (
            one(connection, _LEASE, tenant=task.tenant_id, task=task.task_id, lease=lease.total_seconds())
            is not None
        )
    return Entry(status, deliver, row["outcome"], row["result"])


_WATCHED: Final = statement(
    """
    SELECT tenant_id, id, status FROM tasks
    WHERE entry_signature IS NOT NULL AND entry_delivered_at IS NULL AND finished_at IS NULL
    ORDER BY random() LIMIT :batch
    """
)


def keep(connection: Connection, task: TaskRef, signature: Mapping[str, Any]) -> None:
    """The caller's own message, as a signature: should it get lost, it can be sent again from here."""
    connection.execute(_KEEP, {"tenant": task.tenant_id, "task": task.task_id, "signature": dumps(signature)})


def watched(connection: Connection, batch: int = 100) -> list[tuple[TaskRef, Status]]:
    """Some of the live tasks whose caller waits in Celery, others each time."""
    found = rows(connection, _WATCHED, batch=batch)
    return [(TaskRef(row["tenant_id"], row["id"]), Status(row["status"])) for row in found]


def delivered(connection: Connection, task: TaskRef) -> None:
    """Celery has the end of this task: result stored, the caller's canvas under way."""
    connection.execute(_DELIVERED, {"tenant": task.tenant_id, "task": task.task_id})


def undelivered(connection: Connection, grace: timedelta) -> set[Priority]:
    """The queues in which messages should be that tell callers of an end, for longer than
    grace * 2^publications."""
    found = rows(connection, _DUE, grace=grace.total_seconds())
    return {Priority(row["priority"]) for row in found}


def take_lost(
    connection: Connection, emptied: Iterable[Priority], grace: timedelta, batch: int = 100
) -> list[TaskRef]:
    """Ended tasks whose caller doesn't know it yet and whose message is lost, not merely far behind: its
    queue is empty, or later messages were taken from it. The caller of this sends them, so it is written
    down as done."""
    found = rows(
        connection,
        _SEND_AGAIN,
        grace=grace.total_seconds(),
        emptied=[str(one) for one in emptied],
        batch=batch,
    )
    return [TaskRef(row["tenant_id"], row["id"]) for row in found]
