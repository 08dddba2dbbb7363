"""What is let go of after a time: the detail of tasks that ended long ago, and stored answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection

from orchestrator.commands.idempotency import KEPT_DAYS
from orchestrator.db.sql import one, rows, statement

BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class Archived:
    """How many rows one batch let go of; no tasks: there are no more."""

    tasks: int
    events: int
    logs: int
    turns: int
    tool_calls: int
    evidence: tuple[str, ...]
    """Keys in the artifact store of what was said to models: the caller's to delete."""


_DUE: Final = """
    FROM tasks WHERE tenant_id = :tenant AND archived_at IS NULL AND finished_at IS NOT NULL
      AND finished_at < clock_timestamp() - make_interval(secs => :age)
      AND (entry_signature IS NULL OR entry_delivered_at IS NOT NULL)
"""
_COUNT: Final = statement(f"SELECT count(*) AS due {_DUE}")
_ARCHIVE: Final = statement(
    f"""
    WITH due AS (
        SELECT id {_DUE} ORDER BY finished_at LIMIT {BATCH} FOR UPDATE SKIP LOCKED
    ), archived AS (
        UPDATE tasks t SET archived_at = clock_timestamp() FROM due
        WHERE t.tenant_id = :tenant AND t.id = due.id
        RETURNING t.id
    ), events_gone AS (
        DELETE FROM events e USING due WHERE e.tenant_id = :tenant AND e.task_id = due.id RETURNING 1
    ), logs_gone AS (
        DELETE FROM logs l USING due WHERE l.tenant_id = :tenant AND l.task_id = due.id RETURNING 1
    ), their_steps AS (
        SELECT s.id FROM steps s JOIN due ON s.task_id = due.id WHERE s.tenant_id = :tenant
    ), turns_gone AS (
        DELETE FROM turns u USING their_steps s WHERE u.tenant_id = :tenant AND u.step_id = s.id RETURNING 1
    ), transcripts_gone AS (
        DELETE FROM transcripts r USING their_steps s WHERE r.tenant_id = :tenant AND r.step_id = s.id
    ), calls_gone AS (
        DELETE FROM tool_calls c USING their_steps s
        WHERE c.tenant_id = :tenant AND c.step_id = s.id RETURNING 1
    ), said AS (
        SELECT m.id, m.evidence_key FROM model_calls m JOIN due ON m.task_id = due.id
        WHERE m.tenant_id = :tenant AND m.evidence_key IS NOT NULL
    ), unsaid AS (
        UPDATE model_calls m SET evidence_key = NULL FROM said
        WHERE m.tenant_id = :tenant AND m.id = said.id
    )
    SELECT (SELECT count(*) FROM archived) AS tasks, (SELECT count(*) FROM events_gone) AS events,
        (SELECT count(*) FROM logs_gone) AS logs, (SELECT count(*) FROM turns_gone) AS turns,
        (SELECT count(*) FROM calls_gone) AS tool_calls,
        (SELECT coalesce(array_agg(evidence_key), '{{}}') FROM said) AS evidence
    """
)
_FORGET: Final = statement(
    f"""
    DELETE FROM idempotency_keys
    WHERE tenant_id = :tenant AND created_at < clock_timestamp() - interval '{KEPT_DAYS} days'
    RETURNING 1
    """
)


def due(connection: Connection, tenant_id: str, older_than: timedelta) -> int:
    """How many tasks would be archived."""
    row = one(connection, _COUNT, tenant=tenant_id, age=older_than.total_seconds())
    return int(row["due"]) if row else 0


def archive(connection: Connection, tenant_id: str, older_than: timedelta) -> Archived:
    """One batch of tasks that ended that long ago loses its events, logs, conversations and evidence.

    The task, its steps, costs, result and stored files stay. A task whose caller has not heard of its end yet
    is left alone.
    """
    row = one(connection, _ARCHIVE, tenant=tenant_id, age=older_than.total_seconds())
    assert row is not None  # noqa: S101 - a SELECT without FROM
    return Archived(**{**row, "evidence": tuple(row["evidence"])})


def forget_answers(connection: Connection, tenant_id: str) -> int:
    """Idempotency keys that are no longer looked at."""
    return len(rows(connection, _FORGET, tenant=tenant_id))
