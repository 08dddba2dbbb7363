"""The claim: the one gate to running. A duplicate, late or reordered message finds it shut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.bounds import Bound
from orchestrator.core.priority import MOST_URGENT_FIRST, Priority
from orchestrator.core.states import PHASES, RULES, Event, Phase, Status
from orchestrator.db import agents
from orchestrator.db.locks import EXCEEDED_SQL, LOCK_SQL, lock_task
from orchestrator.db.sql import Direct, Prepared, StepRef, dumps, one, rows, statement
from orchestrator.db.transitions import Applied, give_back, settle


@dataclass(frozen=True, slots=True)
class Claimed:
    """A step that is ours until the lease ends; `fence` must be shown with every write."""

    step: StepRef
    key: str
    number: int
    total: int
    kind: str
    description: str
    spec: Mapping[str, Any]
    agent_type: str | None
    model: str | None
    attempt: int
    max_attempts: int
    fence: int
    resumed: bool
    """The attempt was begun by an earlier claim and goes on."""
    watched: bool
    """The task began to run with this claim, and somebody who called it through Celery watches."""
    conflicts: int
    task_description: str
    task_agent_type: str | None
    task_model: str | None
    repository_url: str | None
    repository_branch: str | None
    repository_credential: str | None
    """The name of it; what it is, the worker knows."""
    base_commit: str | None
    origin_commit: str | None
    """Of a subtask: what of its base's history the repository itself has."""
    tip_commit: str | None
    approvals: Sequence[str] | None
    """What a person must approve before it is run, as the request said; None: it didn't say."""
    previous: Any
    budget: Mapping[str, Any]
    capabilities: Sequence[str]
    """What the request asks of the agent."""
    requirements: Sequence[str]
    needs: Sequence[Mapping[str, Any]]
    """What the steps that it needs left: key, summary, result_commit; in the plan's order."""


class Why(StrEnum):
    """Why a claim was refused."""

    UNKNOWN = "unknown"
    COMPLETED = "completed"
    ENDED = "ended"
    TAKEN = "taken"
    PARKED = "parked"
    LATER = "later"
    SLOT = "slot"
    DRAINING = "draining"
    """It is the slot that takes nothing; the row waits for another one."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A claim that was refused, and the row's status for those who watch Celery."""

    why: Why
    status: Status | None
    successors_unclaimed: bool = False
    """The step is completed and something that it releases waits to be claimed: Celery should carry on."""


_WORKFLOW_LIMIT: Final = """
    INSERT INTO limits (tenant_id, name, maximum) VALUES (:tenant, 'workflows', :maximum)
    ON CONFLICT (tenant_id, name) DO UPDATE SET maximum = excluded.maximum;
    """
"""Writes down what the setting says, and holds the row: of two claims the later one counts the earlier."""
_SOURCE: Final = "queued"
assert RULES[Event.CLAIM].sources == {_SOURCE}  # noqa: S101 - the statement's guard is the table's
_PENDING, _BEGUN = Phase.PENDING, Phase.PROCESSING
assert _BEGUN in PHASES[_PENDING]  # noqa: S101 - the claim's own arrow of the phase diagram
_CLAIM_SQL: Final = f"""
    WITH claimed AS (
        UPDATE steps AS s SET
            status = '{RULES[Event.CLAIM].to}', waiting_on = NULL, waiting_since = NULL,
            waiting_detail = NULL, fence = s.fence + 1,
            attempt = s.attempt + CASE WHEN s.given_back THEN 0 ELSE 1 END,
            given_back = false, not_before = NULL, error = NULL,
            lease_until = clock_timestamp() + make_interval(secs => :lease),
            heartbeat_at = clock_timestamp(), progress_at = clock_timestamp(), claimed_at = clock_timestamp(),
            started_at = coalesce(s.started_at, clock_timestamp()),
            signature = coalesce(CAST(:signature AS jsonb), s.signature), agent_id = :agent
        FROM tasks t
        WHERE s.tenant_id = :tenant AND s.id = :step AND s.workflow_id = :workflow AND s.task_id = :task
          AND t.tenant_id = s.tenant_id AND t.id = s.task_id
          AND s.status = :source AND num_nulls(s.ready_at) = 0
          AND t.cancel_requested_at IS NULL AND t.paused_at IS NULL AND ({EXCEEDED_SQL}) IS NULL
          AND (s.not_before IS NULL OR s.not_before <= clock_timestamp())
          AND (s.attempt < s.max_attempts OR s.given_back)
          AND NOT EXISTS (
            SELECT 1 FROM agents g WHERE g.tenant_id = :tenant AND g.id = :agent AND g.drain_requested)
          AND NOT EXISTS (
            SELECT 1 FROM step_needs n JOIN steps r ON r.tenant_id = n.tenant_id AND r.id = n.need_id
            WHERE n.tenant_id = s.tenant_id AND n.step_id = s.id AND r.workflow_id = :workflow
              AND r.status <> 'completed')
          {{room}}
        RETURNING s.tenant_id, s.id, s.task_id, s.workflow_id, s.status, s.published_by, s.agent_id, s.key,
            s.number, s.kind, s.description, s.spec, s.agent_type, s.model, s.attempt, s.max_attempts,
            s.fence, s.conflicts, t.description AS task_description, t.agent_type AS task_agent_type,
            t.model AS task_model, t.repository_url, t.repository_branch, t.base_commit, t.origin_commit,
            t.tip_commit, t.request -> 'agent' -> 'tool_approval' AS approvals,
            t.previous, t.requirements, CASE WHEN t.parent_id IS NULL THEN t.budget ELSE (
                SELECT o.budget FROM tasks o WHERE o.tenant_id = t.tenant_id AND o.id = t.root_id
            ) END AS budget,
            coalesce(t.request -> 'agent' -> 'capabilities', '[]') AS capabilities,
            t.request -> 'repository' ->> 'credential' AS repository_credential, t.status AS task_status,
            t.status <> 'running' AND t.entry_signature IS NOT NULL AS watched
    ), tried AS (
        INSERT INTO attempts (tenant_id, step_id, number, first_fence, agent_id)
        SELECT tenant_id, id, attempt, fence, agent_id FROM claimed
        ON CONFLICT DO NOTHING
        RETURNING number
    ), busy AS (
        UPDATE agents SET status = CASE WHEN status = 'draining' THEN status ELSE 'busy' END, step_id = :step
        WHERE tenant_id = :tenant AND id = :agent AND EXISTS (SELECT 1 FROM claimed)
    ), begun AS (
        UPDATE workflows w SET phase = '{_BEGUN}', updated_at = clock_timestamp(),
            started_at = coalesce(w.started_at, clock_timestamp())
        FROM claimed c WHERE w.tenant_id = c.tenant_id AND w.id = c.workflow_id AND w.phase = '{_PENDING}'
        RETURNING w.id
    ), history AS (
        INSERT INTO workflow_history (tenant_id, workflow_id, from_state, to_state)
        SELECT :tenant, b.id, '{_PENDING}', '{_BEGUN}' FROM begun b
    ), drafts AS (
        SELECT 1 AS i, 'step' AS type, '{Event.CLAIM}' AS name, c.id AS step_id, c.fence, jsonb_build_object(
            'to', c.status, 'attempt', c.attempt, 'agent', c.agent_id, 'by', c.published_by,
            'resumed', (SELECT count(*) FROM tried) = 0) AS data
        FROM claimed c
        UNION ALL
        SELECT 2, 'status', 'running', NULL, NULL, jsonb_build_object(
            'from', c.task_status, 'to', 'running', 'waiting_on', NULL)
        FROM claimed c WHERE c.task_status <> 'running'
        UNION ALL
        SELECT 2 + (SELECT count(*) FROM claimed c WHERE c.task_status <> 'running'), 'phase', '{_BEGUN}',
            NULL, NULL, jsonb_build_object('from', '{_PENDING}', 'to', '{_BEGUN}')
        FROM begun
    ), followed AS (
        UPDATE tasks t SET status = 'running', waiting_on = NULL, waiting_since = NULL, waiting_detail = NULL,
            started_at = coalesce(t.started_at, clock_timestamp()), updated_at = clock_timestamp(),
            event_number = t.event_number + (SELECT count(*) FROM drafts)
        FROM claimed c WHERE t.tenant_id = c.tenant_id AND t.id = c.task_id
        RETURNING t.event_number - (SELECT count(*) FROM drafts) AS before
    ), written AS (
        INSERT INTO events (tenant_id, task_id, number, workflow_id, step_id, fence, type, name, data)
        SELECT :tenant, :task, f.before + d.i, :workflow, d.step_id, d.fence, d.type, d.name, d.data
        FROM followed f, drafts d
    )
    SELECT c.*, (SELECT count(*) FROM tried) = 0 AS resumed,
        (SELECT count(*) FROM steps a
         WHERE a.tenant_id = c.tenant_id AND a.workflow_id = c.workflow_id) AS total,
        (SELECT coalesce(jsonb_agg(jsonb_build_object('key', r.key, 'summary', r.summary,
                'result_commit', r.result_commit) ORDER BY r.number), '[]')
         FROM step_needs n JOIN steps r ON r.tenant_id = n.tenant_id AND r.id = n.need_id
         WHERE n.tenant_id = c.tenant_id AND n.step_id = c.id
           AND r.workflow_id = :workflow) AS needs
    FROM claimed c
"""
"""One round trip: the row, its attempt, its slot, the task that follows, the event rows; or nothing."""
_CLAIM: Final = Prepared("claim", LOCK_SQL + _CLAIM_SQL.format(room=""), lease="float8")
_CLAIM_LIMITED: Final = Prepared(
    "claim_limited",
    LOCK_SQL
    + _WORKFLOW_LIMIT
    + _CLAIM_SQL.format(
        room="""
          AND (SELECT count(DISTINCT o.workflow_id) FROM steps o
               WHERE o.tenant_id = s.tenant_id AND o.lease_until IS NOT NULL
                 AND o.workflow_id <> s.workflow_id)
              < :maximum"""
    ),
    lease="float8",
    maximum="int",
)


def claim(
    connection: Connection | Direct,
    step: StepRef,
    *,
    lease: timedelta,
    agent_id: str,
    signature: Mapping[str, Any] | None,
    workflows_at_once: int = 0,
) -> Claimed | None:
    """queued → running for one caller at most, with a new fence and a lease; None: see `refusal`.

    `signature`: the Celery request as JSON, kept for sending the same message again. `workflows_at_once`: of
    how many workflows of the tenant steps may run at a time; 0 means no limit.
    """
    limit = {"maximum": workflows_at_once} if workflows_at_once else {}
    row = one(
        connection,
        _CLAIM_LIMITED if limit else _CLAIM,
        tenant=step.tenant_id,
        task=step.task_id,
        workflow=step.workflow_id,
        step=step.step_id,
        source=_SOURCE,
        lease=lease.total_seconds(),
        agent=agent_id,
        signature=dumps(signature),
        **limit,
    )
    return None if row is None else _claimed(step, row)


def _claimed(step: StepRef, row: Mapping[str, Any]) -> Claimed:
    same = (
        "key number total kind description spec agent_type model attempt max_attempts fence resumed watched"
        " conflicts task_description task_agent_type task_model repository_url repository_branch"
        " repository_credential base_commit origin_commit tip_commit approvals previous budget capabilities"
        " requirements needs"
    )
    return Claimed(step=step, **{name: row[name] for name in same.split()})


_LOOK: Final = statement(
    LOCK_SQL
    + """
    SELECT s.status, s.waiting_on, s.lease_until, s.not_before, s.ready_at,
        EXISTS (SELECT 1 FROM step_needs n JOIN steps d ON d.tenant_id = n.tenant_id AND d.id = n.step_id
                WHERE n.tenant_id = s.tenant_id AND n.need_id = s.id
                  AND d.status = 'queued' AND d.fence = 0) AS successors_unclaimed
    FROM steps s
    WHERE s.tenant_id = :tenant AND s.id = :step AND s.workflow_id = :workflow AND s.task_id = :task
    """
)
_KEEP: Final = statement(
    """
    UPDATE steps SET signature = CAST(:signature AS jsonb)
    WHERE tenant_id = :tenant AND id = :step AND signature IS NULL AND status IN ('queued', 'pending_input')
    """
)
_NO_SLOT: Final = statement(
    """
    UPDATE steps SET waiting_on = 'slot', waiting_since = coalesce(waiting_since, clock_timestamp())
    WHERE tenant_id = :tenant AND id = :step AND status = 'queued' AND waiting_on IS NULL
    """
)


def refusal(
    connection: Connection,
    step: StepRef,
    *,
    agent_id: str,
    signature: Mapping[str, Any] | None,
    workflows_at_once: int = 0,
) -> Refusal:
    """Why a claim of `agent_id` was refused just now. A step that will still run keeps the signature, or
    waits for a slot.

    Whoever makes it ready meanwhile publishes it: no message of a row that may run is lost by this one's end.
    """
    row = one(
        connection,
        _LOOK,
        tenant=step.tenant_id,
        task=step.task_id,
        workflow=step.workflow_id,
        step=step.step_id,
    )
    if row is None:
        return Refusal(Why.UNKNOWN, None)
    status = Status(row["status"])
    match status:
        case Status.COMPLETED:
            return Refusal(Why.COMPLETED, status, bool(row["successors_unclaimed"]))
        case Status.FAILED | Status.CANCELLED:
            return Refusal(Why.ENDED, status)
        case Status.RUNNING if row["lease_until"] is not None:
            return Refusal(Why.TAKEN, status)
    if signature is not None:
        # It will still run, so its canvas must not be forgotten with this message.
        connection.execute(
            _KEEP, {"tenant": step.tenant_id, "step": step.step_id, "signature": dumps(signature)}
        )
    if status is not Status.QUEUED:
        return Refusal(Why.PARKED, status)
    if agents.draining(connection, step.tenant_id, agent_id):
        return Refusal(Why.DRAINING, status)
    if workflows_at_once and row["ready_at"] is not None and row["not_before"] is None:
        connection.execute(_NO_SLOT, {"tenant": step.tenant_id, "step": step.step_id})
        task = lock_task(connection, step.task)
        assert task is not None  # noqa: S101 - the step's foreign key
        settle(connection, task, [])
        return Refusal(Why.SLOT, status)
    return Refusal(Why.LATER, status)


_WAITING_FOR_SLOT: Final = statement(
    """
    SELECT tenant_id, task_id, workflow_id, id FROM steps
    WHERE tenant_id = :tenant AND status = 'queued' AND ready_at IS NOT NULL AND waiting_on = 'slot'
    ORDER BY waiting_since LIMIT 5
    """
)


def waiting_for_slot(connection: Connection, tenant_id: str) -> list[StepRef]:
    """Steps that were refused because too many workflows ran, the one that waits longest first."""
    found = rows(connection, _WAITING_FOR_SLOT, tenant=tenant_id)
    return [StepRef(row["tenant_id"], row["task_id"], row["workflow_id"], row["id"]) for row in found]


_OWN: Final = statement(
    """
    SELECT fence FROM steps WHERE tenant_id = :tenant AND id = :step AND agent_id = :agent
      AND status = 'running' AND lease_until IS NOT NULL
    """
)


def take_back(connection: Connection, step: StepRef, agent_id: str) -> Applied | None:
    """Undoes a claim whose COMMIT a slot never heard of: the step waits again, the attempt goes on. Only for
    a slot that surely works on nothing; whoever did would find the fence lost with the next claim."""
    row = one(connection, _OWN, tenant=step.tenant_id, step=step.step_id, agent=agent_id)
    return None if row is None else give_back(connection, step, row["fence"], "the claim was not heard")


# --- keeping it ---------------------------------------------------------------------------------------------

_URGENT_SQL: Final = """
    coalesce((
        SELECT w.waiting > (
            SELECT count(*) FROM steps o
            JOIN tasks ot ON ot.tenant_id = o.tenant_id AND ot.id = o.task_id
            JOIN agents oa ON oa.tenant_id = o.tenant_id AND oa.id = o.agent_id
            WHERE o.lease_until IS NOT NULL AND o.tenant_id = s.tenant_id AND o.id <> s.id
              AND oa.queues ?| CAST(:urgent_queues AS text[])
              AND (array_position(CAST(:priorities AS text[]), ot.priority), s.claimed_at, s.id)
                > (array_position(CAST(:priorities AS text[]), t.priority), o.claimed_at, o.id))
        FROM (SELECT count(*) AS waiting FROM (
            SELECT 1 FROM steps u JOIN tasks ut ON ut.tenant_id = u.tenant_id AND ut.id = u.task_id
            JOIN unnest(CAST(:urgent AS text[]), CAST(:urgent_queues AS text[])) AS q(priority, queue)
              ON q.priority = ut.priority
            JOIN agents me ON me.tenant_id = s.tenant_id AND me.id = s.agent_id AND me.queues ? q.queue
            WHERE u.tenant_id = s.tenant_id AND u.status = 'queued' AND u.ready_at IS NOT NULL
              AND u.priority IN ('critical', 'high') AND u.not_before IS NULL AND u.waiting_on IS NULL
              AND u.published_at <= clock_timestamp() - make_interval(secs => :patience)
              AND ut.cancel_requested_at IS NULL AND ut.paused_at IS NULL
              AND array_position(CAST(:priorities AS text[]), ut.priority)
                < array_position(CAST(:priorities AS text[]), t.priority)
              AND NOT EXISTS (
                SELECT 1 FROM agents i WHERE i.tenant_id = s.tenant_id AND i.status = 'idle'
                  AND NOT i.drain_requested AND i.queues ? q.queue
                  AND i.heartbeat_at > clock_timestamp() - make_interval(secs => :lease))
            LIMIT 100) found) w
        WHERE w.waiting > 0), false)
"""
"""Whether step `s` of task `t` should make room: steps of more urgent tasks, which its slot could take, have
waited for longer than the patience, no slot that could take them is idle, and there are more of them than
steps that should make room before this one (those of less urgent tasks, then those that began earlier)."""
_BEAT_SQL: Final = f"""
    UPDATE steps s SET lease_until = clock_timestamp() + make_interval(secs => :lease),
        heartbeat_at = clock_timestamp(),
        progress_at = CASE WHEN :moved THEN clock_timestamp() ELSE s.progress_at END
    FROM tasks t
    WHERE s.tenant_id = :tenant AND s.id = :step AND s.fence = :fence AND s.status = 'running'
      AND s.lease_until IS NOT NULL AND t.tenant_id = s.tenant_id AND t.id = s.task_id
    RETURNING t.cancel_requested_at IS NOT NULL AS cancel, t.paused_at IS NOT NULL AS pause, s.lease_until,
        {EXCEEDED_SQL} AS exceeded, {_URGENT_SQL} AS urgent
"""
_BEAT: Final = statement("SELECT set_config('lock_timeout', :wait, true);" + _BEAT_SQL)


@dataclass(frozen=True, slots=True)
class Beat:
    """The lease goes on; what people want meanwhile."""

    cancel: bool
    pause: bool
    lease_until: datetime
    exceeded: Bound | None
    """The task met a bound in time: the step must stop, and fails."""
    urgent: bool
    """A more urgent step needs the slot."""


def heartbeat(
    connection: Connection,
    step: StepRef,
    fence: int,
    lease: timedelta,
    *,
    moved: bool,
    urgent: Mapping[Priority, str] = MappingProxyType({}),
    patience: timedelta = timedelta(0),
) -> Beat | None:
    """Prolongs the lease; None: it is lost, whoever works must stop. `moved`: there was progress since.
    Raises, like an error of the database, if somebody keeps the row for more than an eighth of the lease.

    `urgent`: the priorities for whose steps others make room, once they have waited for `patience`, and the
    queue of each.
    """
    row = one(
        connection,
        _BEAT,
        tenant=step.tenant_id,
        step=step.step_id,
        fence=fence,
        lease=lease.total_seconds(),
        wait=f"{lease / 8 // timedelta(milliseconds=1)}ms",
        moved=moved,
        urgent=[str(priority) for priority in urgent],
        urgent_queues=list(urgent.values()),
        priorities=[str(priority) for priority in MOST_URGENT_FIRST],
        patience=patience.total_seconds(),
    )
    if row is None:
        return None
    exceeded = None if row["exceeded"] is None else Bound(row["exceeded"])
    return Beat(row["cancel"], row["pause"], row["lease_until"], exceeded, row["urgent"])


_HOLD: Final = statement(
    LOCK_SQL
    + """
    SELECT 1 FROM steps WHERE tenant_id = :tenant AND id = :step AND fence = :fence AND status = 'running'
      AND lease_until IS NOT NULL FOR UPDATE
    """
)


def holds(connection: Connection, step: StepRef, fence: int) -> bool:
    """Whether the claim still stands; locks task and step, so that it does until the transaction ends."""
    return (
        one(
            connection,
            _HOLD,
            tenant=step.tenant_id,
            task=step.task_id,
            step=step.step_id,
            fence=fence,
        )
        is not None
    )


@dataclass(frozen=True, slots=True)
class Found:
    """A step as it is now."""

    status: Status
    fence: int
    task_status: Status
    task_ended: bool


_FOUND: Final = statement(
    """
    SELECT s.status, s.fence, t.status AS task_status, t.finished_at IS NOT NULL AS task_ended
    FROM steps s JOIN tasks t ON t.tenant_id = s.tenant_id AND t.id = s.task_id
    WHERE s.tenant_id = :tenant AND s.id = :step AND s.task_id = :task AND s.workflow_id = :workflow
      AND t.id = :task
    """
)


def look(connection: Connection, step: StepRef) -> Found | None:
    row = one(
        connection,
        _FOUND,
        tenant=step.tenant_id,
        step=step.step_id,
        task=step.task_id,
        workflow=step.workflow_id,
    )
    if row is None:
        return None
    return Found(Status(row["status"]), row["fence"], Status(row["task_status"]), row["task_ended"])


_LIVE: Final = statement(
    """
    SELECT s.id, s.attempt FROM steps s
    JOIN unnest(CAST(:steps AS text[]), CAST(:attempts AS int[])) AS asked (id, attempt)
      ON s.id = asked.id AND s.attempt = asked.attempt
    WHERE s.status IN ('queued', 'running', 'pending_input')
    """
)


def live_attempts(connection: Connection, attempts: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those of the attempts (step's id, number) that may still go on; the others' workspaces are nobody's."""
    steps, numbers = [step for step, _ in attempts], [number for _, number in attempts]
    found = rows(connection, _LIVE, steps=steps, attempts=numbers)
    return {(row["id"], row["attempt"]) for row in found}


_UNFINISHED: Final = statement(
    """
    SELECT id FROM steps
    WHERE id = ANY(CAST(:steps AS text[])) AND status IN ('queued', 'running', 'pending_input')
    """
)


def unfinished(connection: Connection, steps: Sequence[str]) -> set[str]:
    """Those of the steps that may still go on; what the others have left is nobody's."""
    return {row["id"] for row in rows(connection, _UNFINISHED, steps=list(steps))}
