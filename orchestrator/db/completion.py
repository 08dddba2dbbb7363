"""running → completed: the step, what it makes ready, its attempt, slot and task in one round trip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.states import RULES, Event, Status
from orchestrator.db.locks import FACTS_SQL, LOCK_SQL, locked
from orchestrator.db.sql import Direct, Prepared, StepRef, dumps, one
from orchestrator.db.transitions import Applied, Settled, settle, step_event

_SOURCE: Final = "running"
assert RULES[Event.SUCCEED].sources == {_SOURCE}  # noqa: S101 - the statement's guard is the table's
_SUCCEED: Final = Prepared(
    "succeed",
    LOCK_SQL
    + f"""
    WITH facts AS (
        SELECT {FACTS_SQL}, t.waiting_on AS task_waiting_on
        FROM tasks t JOIN workflows w
          ON w.tenant_id = t.tenant_id AND w.task_id = t.id AND w.number = t.workflow_number
        WHERE t.tenant_id = :tenant AND t.id = :task
    ), next AS (
        SELECT n.step_id, bool_or(r.published_alone) AS after_alone
        FROM step_needs o
        JOIN step_needs n ON n.tenant_id = o.tenant_id AND n.step_id = o.step_id
        JOIN steps r ON r.tenant_id = n.tenant_id AND r.id = n.need_id
        WHERE o.tenant_id = :tenant AND o.need_id = :step AND r.workflow_id = :workflow
        GROUP BY n.step_id HAVING bool_and(r.status = 'completed' OR r.id = :step)
    ), others AS (
        SELECT status, waiting_on, (fence > 0) AS claimed,
            (ready_at IS NOT NULL OR id IN (SELECT step_id FROM next)) AS ready,
            min(waiting_since) AS since, min(id) AS step_id
        FROM steps WHERE tenant_id = :tenant AND workflow_id = :workflow AND id <> :step
        GROUP BY 1, 2, 3, 4
    ), mine AS (
        UPDATE steps AS s SET status = '{RULES[Event.SUCCEED].to}', lease_until = NULL, given_back = false,
            finished_at = clock_timestamp(), summary = :summary, result = CAST(:result AS jsonb),
            result_commit = :commit, branch_commit = :branch_commit
        FROM facts k
        WHERE s.tenant_id = :tenant AND s.id = :step AND s.fence = :fence AND s.status = :source
          AND num_nulls(s.lease_until) = 0
          AND (NOT :quietly OR (
              k.task_status = 'running' AND num_nonnulls(k.task_waiting_on, k.paused_at,
                  k.cancel_requested_at) = 0
              AND EXISTS (SELECT 1 FROM others WHERE status IN ('queued', 'running'))
              AND NOT EXISTS (SELECT 1 FROM others WHERE waiting_on IS NOT NULL)))
        RETURNING s.tenant_id, s.id, s.attempt, s.agent_id
    ), ready AS (
        UPDATE steps AS d SET ready_at = now(), published_at = now(), publications = 0,
            status = CASE WHEN k.paused_at IS NULL THEN d.status ELSE 'pending_input' END,
            waiting_on = CASE WHEN k.paused_at IS NOT NULL THEN 'paused' END,
            waiting_since = CASE WHEN k.paused_at IS NOT NULL THEN clock_timestamp() END,
            published_by = CASE WHEN k.paused_at IS NULL AND (x.after_alone OR d.id <> ALL(:carried))
                THEN 'release' ELSE d.published_by END,
            published_alone = CASE WHEN k.paused_at IS NULL AND (x.after_alone OR d.id <> ALL(:carried))
                THEN d.canvas IS NULL ELSE d.published_alone END
        FROM next x, facts k, mine
        WHERE d.tenant_id = :tenant AND d.workflow_id = :workflow AND d.id = x.step_id AND d.status = :waiting
          AND num_nulls(d.ready_at) = 1
        RETURNING d.id, d.status,
            k.paused_at IS NULL AND (x.after_alone OR d.id <> ALL(:carried)) AS released
    ), tried AS (
        UPDATE attempts a SET ended_at = clock_timestamp(), outcome = 'completed' FROM mine m
        WHERE a.tenant_id = :tenant AND a.step_id = :step AND a.number = m.attempt AND a.ended_at IS NULL
    ), freed AS (
        UPDATE agents g SET step_id = NULL, progress_at = clock_timestamp(),
            status = CASE WHEN drain_requested THEN 'draining' ELSE 'idle' END
        FROM mine m WHERE g.tenant_id = :tenant AND g.id = m.agent_id AND g.step_id = :step
    ), numbered AS (
        UPDATE tasks t SET event_number = t.event_number + 1, updated_at = clock_timestamp()
        FROM mine WHERE :quietly AND t.tenant_id = :tenant AND t.id = :task
        RETURNING t.event_number
    ), written AS (
        INSERT INTO events (tenant_id, task_id, number, workflow_id, step_id, fence, type, name, data)
        SELECT :tenant, :task, n.event_number, :workflow, :step, :fence, 'step', '{Event.SUCCEED}',
            CAST(:event AS jsonb)
        FROM numbered n
    )
    SELECT k.*, (SELECT coalesce(jsonb_agg(o), '[]') FROM others o) AS others,
        (SELECT coalesce(jsonb_agg(r ORDER BY r.id), '[]') FROM ready r) AS ready
    FROM mine, facts k
    """,
    fence="int",
    quietly="boolean",
    carried="text[]",
)


def succeed(
    connection: Connection | Direct,
    step: StepRef,
    fence: int,
    *,
    summary: str,
    result: Mapping[str, Any],
    commit: str | None = None,
    branch_commit: str | None = None,
    carried: frozenset[str] = frozenset(),
) -> Applied | None:
    """running → completed; None: the fence is lost. `carried` are the steps that the claim's own Celery
    request publishes.

    On a direct connection, where each call is a transaction, it is done only if the task goes on as it is, so
    that nothing is left to decide; None says then that it must be done in a transaction of several.
    """
    quietly = isinstance(connection, Direct)
    event = step_event(Event.SUCCEED, step, fence, summary=summary, commit=branch_commit)
    done = one(
        connection,
        _SUCCEED,
        tenant=step.tenant_id,
        task=step.task_id,
        workflow=step.workflow_id,
        step=step.step_id,
        fence=fence,
        source=_SOURCE,
        waiting="queued",
        summary=summary,
        result=dumps(result),
        commit=commit,
        branch_commit=branch_commit,
        carried=sorted(carried),
        quietly=quietly,
        event=dumps(event.data),
    )
    if done is None:
        return None
    ready = tuple(row["id"] for row in done["ready"])
    released = tuple(row["id"] for row in done["ready"] if row["released"])
    if isinstance(connection, Direct):
        return Applied(Settled(Status.RUNNING), ready, released)
    parked = {row["id"] for row in done["ready"] if row["status"] == RULES[Event.PAUSE].to}
    events = [event, *(step_event(Event.PAUSE, replace(step, step_id=each), None) for each in sorted(parked))]
    task = locked(step.task, done)
    if parked:
        return Applied(settle(connection, task, events), ready, released)
    mine = {"status": Status.COMPLETED, "waiting_on": None, "claimed": True, "ready": True, "since": None}
    return Applied(settle(connection, task, events, [mine, *done["others"]]), ready, released)
