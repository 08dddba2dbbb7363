"""What the sweep finds: leases that ended, times that came, steps that nobody took. Safe to run twice at
once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.priority import Priority
from orchestrator.db.sql import StepRef, one, rows, statement

BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class Due:
    """A step that something is due for; `fence` is the claim that it is about."""

    step: StepRef
    fence: int
    waiting_on: str | None


def due_of(row: Mapping[str, Any]) -> Due:
    """From a row of tenant_id, task_id, workflow_id, id, fence, waiting_on."""
    step = StepRef(row["tenant_id"], row["task_id"], row["workflow_id"], row["id"])
    return Due(step, row["fence"], row["waiting_on"])


_WHAT: Final = "SELECT tenant_id, task_id, workflow_id, id, fence, waiting_on FROM steps"
_EXPIRED: Final = statement(
    f"{_WHAT} WHERE lease_until <= clock_timestamp() ORDER BY lease_until LIMIT {BATCH}"
)
_TIMED: Final = statement(
    f"""
    {_WHAT} WHERE not_before <= clock_timestamp()
      AND (status = 'queued' OR (status = 'running' AND lease_until IS NULL))
    ORDER BY not_before LIMIT {BATCH}
    """
)
_OVERDUE_CANCELS: Final = statement(
    f"""
    SELECT s.tenant_id, s.task_id, s.workflow_id, s.id, s.fence, s.waiting_on FROM steps s
    JOIN tasks t ON t.tenant_id = s.tenant_id AND t.id = s.task_id
    WHERE s.lease_until IS NOT NULL
      AND t.cancel_requested_at <= clock_timestamp() - make_interval(secs => :grace)
    ORDER BY t.cancel_requested_at LIMIT {BATCH}
    """
)


def expired_leases(connection: Connection) -> list[Due]:
    return [due_of(row) for row in rows(connection, _EXPIRED)]


def timed(connection: Connection) -> list[Due]:
    """Queued steps whose `not_before` has come, and parked ones that wake by the clock."""
    return [due_of(row) for row in rows(connection, _TIMED)]


def overdue_cancels(connection: Connection, grace: timedelta) -> list[Due]:
    """Steps that still hold a lease so long after their task's cancel was requested."""
    return [due_of(row) for row in rows(connection, _OVERDUE_CANCELS, grace=grace.total_seconds())]


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A ready step whose message should have been taken by now."""

    step: StepRef
    priority: Priority
    waited: timedelta


_DOUBLINGS: Final = 4
"""How often the grace doubles at most: raises and outages count as publications, too, and a message that is
lost after many of them must not be missed for an hour."""
_UNCLAIMED: Final = statement(
    f"""
    SELECT u.* FROM unnest(CAST(:priorities AS text[])) AS p(priority) CROSS JOIN LATERAL (
        SELECT s.tenant_id, s.task_id, s.workflow_id, s.id, s.priority,
            clock_timestamp() - s.ready_at AS waited
        FROM steps s JOIN tasks t ON t.tenant_id = s.tenant_id AND t.id = s.task_id
        WHERE s.priority = p.priority
          AND s.status = 'queued' AND s.ready_at IS NOT NULL AND s.not_before IS NULL
          AND s.published_at <= clock_timestamp()
              - make_interval(secs => :grace) * power(2, least(s.publications, {_DOUBLINGS}))
          AND (s.waiting_on IS NULL OR s.waiting_on = 'slot')
          AND t.cancel_requested_at IS NULL AND t.paused_at IS NULL
        ORDER BY s.published_at LIMIT {BATCH}
    ) u
    """
)
"""A batch of each priority: a long queue of one must not hide what another one has lost."""
_OVERTAKEN: Final = statement(
    """
    SELECT s.tenant_id, s.id FROM steps s
    WHERE s.id = ANY(:steps) AND s.status = 'queued' AND EXISTS (
        SELECT 1 FROM steps o WHERE o.priority = s.priority
          AND o.claimed_at > s.published_at + make_interval(secs => :grace)
          AND o.published_at > s.published_at AND o.published_at < o.claimed_at)
    """
)
_PUBLISHED: Final = statement(
    """
    UPDATE steps SET published_at = clock_timestamp(), publications = publications + 1,
        published_by = 'sweep',
        published_alone = published_alone OR signature IS NULL, priority = :priority
    WHERE tenant_id = :tenant AND id = :step AND status = 'queued'
    RETURNING id
    """
)


def unclaimed(connection: Connection, grace: timedelta) -> list[Unclaimed]:
    """Ready steps that were published longer ago than grace * 2^publications (16 times the grace at most);
    of each priority those that wait longest."""
    found = rows(
        connection, _UNCLAIMED, priorities=[str(each) for each in Priority], grace=grace.total_seconds()
    )
    return [_unclaimed(row) for row in found]


def _unclaimed(row: Mapping[str, Any]) -> Unclaimed:
    step = StepRef(row["tenant_id"], row["task_id"], row["workflow_id"], row["id"])
    return Unclaimed(step, Priority(row["priority"]), row["waited"])


def overtaken(connection: Connection, steps: Sequence[StepRef], grace: timedelta) -> set[StepRef]:
    """Those of them before which steps of their queue were claimed that had been published later: their own
    messages are lost."""
    found = rows(connection, _OVERTAKEN, steps=[step.step_id for step in steps], grace=grace.total_seconds())
    lost = {(row["tenant_id"], row["id"]) for row in found}
    return {step for step in steps if (step.tenant_id, step.step_id) in lost}


def mark_published(connection: Connection, step: StepRef, priority: Priority) -> bool:
    """Before the sweep sends a step; False: it isn't queued any more."""
    row = one(connection, _PUBLISHED, tenant=step.tenant_id, step=step.step_id, priority=priority)
    return row is not None


_STARVED: Final = statement(
    f"""
    SELECT s.tenant_id, s.task_id, s.workflow_id, s.id, t.priority, clock_timestamp() - s.ready_at AS waited
    FROM steps s JOIN tasks t ON t.tenant_id = s.tenant_id AND t.id = s.task_id
    WHERE s.status = 'queued' AND s.ready_at <= clock_timestamp() - make_interval(secs => :age)
      AND s.published_at <= clock_timestamp() - make_interval(secs => :age)
      AND s.not_before IS NULL AND s.priority <> '{Priority.CRITICAL}'
      AND t.cancel_requested_at IS NULL AND t.paused_at IS NULL
    ORDER BY s.ready_at LIMIT {BATCH}
    """
)


def starved(connection: Connection, age: timedelta) -> list[Unclaimed]:
    """Ready steps that waited for so long that they rise; `priority` is their task's, from which they
    rose."""
    return [_unclaimed(row) for row in rows(connection, _STARVED, age=age.total_seconds())]


_LOST_JOINS: Final = statement(
    f"""
    UPDATE steps SET ready_at = now(), published_at = now()
    WHERE (tenant_id, id) IN (
        SELECT s.tenant_id, s.id FROM steps s JOIN tasks t ON t.tenant_id = s.tenant_id AND t.id = s.task_id
        WHERE s.status = 'queued' AND s.ready_at IS NULL
            AND t.status IN ('queued', 'running', 'pending_input')
          AND NOT EXISTS (
            SELECT 1 FROM step_needs n JOIN steps r ON r.tenant_id = n.tenant_id AND r.id = n.need_id
            WHERE n.tenant_id = s.tenant_id AND n.step_id = s.id AND r.status <> 'completed')
        LIMIT {BATCH} FOR UPDATE OF s SKIP LOCKED)
    RETURNING id
    """
)


def repair_joins(connection: Connection) -> int:
    """Steps whose needs are all completed but that nobody made ready; none in a database that only we
    write."""
    return len(rows(connection, _LOST_JOINS))


_PASS_BY: Final = statement("SET LOCAL lock_timeout = '500ms'")


def pass_by_locked(connection: Connection) -> None:
    """Rows that somebody holds fail this transaction soon: a stopped worker must not hold up the sweep."""
    connection.execute(_PASS_BY)


_MAY_RUN: Final = statement("SELECT pg_try_advisory_xact_lock(:lock) AS ours")
_SEEN: Final = statement(
    """
    INSERT INTO settings (tenant_id, name, value) VALUES ('default', 'sweep', CAST(:value AS jsonb))
    ON CONFLICT (tenant_id, name) DO UPDATE SET value = excluded.value, updated_at = clock_timestamp()
    """
)
_STARTED: Final = statement(
    "SELECT clock_timestamp() - pg_postmaster_start_time() AS up, clock_timestamp() AS now"
)


def take_turn(connection: Connection, lock: int) -> bool:
    """Whether this transaction may sweep; another one is at it otherwise."""
    row = one(connection, _MAY_RUN, lock=lock)
    return bool(row and row["ours"])


def postgres_up_for(connection: Connection) -> timedelta:
    """How long Postgres has been running: after its own outage nobody's heartbeats could come through."""
    row = one(connection, _STARTED)
    assert row is not None  # noqa: S101 - a SELECT without FROM
    up = row["up"]
    assert isinstance(up, timedelta)  # noqa: S101 - psycopg2's interval
    return up


def note_sweep(connection: Connection, value: str) -> None:
    connection.execute(_SEEN, {"value": value})
