"""The only writer of state. Each function applies one event of `core.states.RULES` to one step, under a lock
on its task, and writes the event row in the same transaction, which the caller owns.

A guard that doesn't hold changes nothing: the function returns None and the caller reads why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.states import RULES, TERMINAL, Event, Status, StepView, WaitingOn, task_status
from orchestrator.db import lineage
from orchestrator.db.ending import end_task, ended_late
from orchestrator.db.events import EventDraft, append_sql, append_values
from orchestrator.db.locks import LOCK_SQL, LockedTask, lock_task
from orchestrator.db.sql import Prepared, StepRef, TaskRef, dumps, one, rows, statement


@dataclass(frozen=True, slots=True)
class Settled:
    """What a transition did to the task; `ended` only in the transaction that ended it, `watched` if its
    status changed and somebody who called it through Celery watches, `of_parent` if it ended and another
    task's step may wait for it. `forsaken` are live subtasks whose parent's step ended without them."""

    status: Status
    ended: bool = False
    watched: bool = False
    of_parent: bool = False
    forsaken: tuple[TaskRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """A transition that took place. `ready` are the steps that it made ready, `released` those of them that
    the caller must publish because no canvas does; `instead` is where a pause or cancel of the task sent the
    step on in the same transaction."""

    settled: Settled
    ready: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    instead: Status | None = None


def _sources(event: Event) -> str:
    return ", ".join(f"'{status}'" for status in sorted(RULES[event].sources))


def step_event(event: Event, step: StepRef, fence: int | None, **data: Any) -> EventDraft:
    """The event row of a step's transition; `to` is where the table says that it leads."""
    return EventDraft("step", event, {"to": RULES[event].to, **data}, step.workflow_id, step.step_id, fence)


# --- the task follows its steps -----------------------------------------------------------------------------

_GROUPS: Final = statement(
    """
    SELECT status, waiting_on, (fence > 0) AS claimed, (ready_at IS NOT NULL) AS ready,
           min(waiting_since) AS since, min(id) AS step_id
    FROM steps WHERE tenant_id = :tenant AND workflow_id = :workflow
    GROUP BY 1, 2, 3, 4
    """
)
"""A workflow's steps, as much of them as the task's status depends on."""
_FOLLOW: Final = Prepared(
    "follow",
    append_sql(
        """
        status = :status, waiting_on = :waiting_on, waiting_since = CAST(:since AS timestamptz),
        waiting_detail = CAST(:detail AS jsonb),
        started_at = CASE WHEN :started THEN coalesce(started_at, clock_timestamp()) ELSE started_at END
        """
    ),
    started="boolean",
    since="timestamptz",
    count="int",
)


_PAUSED: Final = statement(
    """
    UPDATE interventions SET state = 'applied', applied_at = clock_timestamp(),
        acknowledged_at = coalesce(acknowledged_at, clock_timestamp())
    WHERE tenant_id = :tenant AND task_id = :task AND command = 'pause'
      AND state IN ('requested', 'acknowledged') AND NOT EXISTS (
        SELECT 1 FROM steps WHERE tenant_id = :tenant AND task_id = :task AND lease_until IS NOT NULL)
    """
)
"""A pause is carried out when nothing of its task runs any more."""


def settle(
    connection: Connection,
    task: LockedTask,
    events: Sequence[EventDraft],
    groups: Sequence[Mapping[str, Any]] | None = None,
) -> Settled:
    """Makes the task say what its steps say, and appends the events of the transition that moved them.

    When all have ended, the task ends here, in the same transaction. `groups`: the steps, if they are known.
    """
    if groups is None:
        groups = rows(connection, _GROUPS, tenant=task.ref.tenant_id, workflow=task.workflow_id)
    broken = any(g["status"] == Status.FAILED for g in groups)
    status = task_status(
        (StepView(Status(g["status"]), g["claimed"], g["ready"]) for g in groups),
        on_failure_continue=task.on_step_failure == "continue"
        and not (broken and ended_late(connection, task)),
    )
    drafts = list(events)
    if status in TERMINAL:
        end_task(connection, task, status, drafts)
        return Settled(status, ended=True, watched=task.has_entry, of_parent=task.is_subtask)
    waiting_on, since, detail = _waiting(status, groups)
    if status is not task.status:
        drafts.append(
            EventDraft(
                "status",
                status,
                {"from": task.status, "to": status, "waiting_on": waiting_on},
                workflow_id=task.workflow_id,
            )
        )
    _FOLLOW.run(
        connection,
        {
            "status": status,
            "waiting_on": waiting_on,
            "since": since,
            "detail": dumps(detail),
            "started": any(group["claimed"] for group in groups),
            **append_values(task.ref, drafts),
        },
    )
    if task.paused:
        connection.execute(_PAUSED, {"tenant": task.ref.tenant_id, "task": task.ref.task_id})
    return Settled(status, watched=task.has_entry and status is not task.status)


def _waiting(
    status: Status, groups: Sequence[Mapping[str, Any]]
) -> tuple[str | None, datetime | None, dict[str, Any] | None]:
    """What the task waits for: the oldest wait among the steps that have the task's own status."""
    if any(g["status"] == Status.RUNNING and g["waiting_on"] is None for g in groups):
        return None, None, None
    waits = [g for g in groups if g["waiting_on"] and g["status"] == status and g["since"] is not None]
    if not waits:
        return None, None, None
    first = min(waits, key=lambda g: g["since"])
    return first["waiting_on"], first["since"], {"step_id": first["step_id"]}


# --- one step -----------------------------------------------------------------------------------------------

_PARK: Final = statement(
    LOCK_SQL
    + f"""
    UPDATE steps SET status = :to, waiting_on = :waiting_on, waiting_since = clock_timestamp(),
        waiting_detail = CAST(:detail AS jsonb), lease_until = NULL, given_back = true,
        not_before = clock_timestamp() + make_interval(secs => :seconds)
    WHERE tenant_id = :tenant AND id = :step AND fence = :fence AND status IN ({_sources(Event.ASK)})
      AND lease_until IS NOT NULL
    RETURNING attempt
    """
)


def park(
    connection: Connection,
    step: StepRef,
    fence: int,
    event: Event,
    waiting_on: WaitingOn,
    detail: Mapping[str, Any],
    *,
    wake_after: timedelta | None = None,
) -> Applied | None:
    """running → pending_input (ASK, PAUSE) or running without a lease (WAIT); the attempt stays open.

    `wake_after`: when the sweep wakes it by itself; None: only somebody's word does.
    """
    parked = one(
        connection,
        _PARK,
        tenant=step.tenant_id,
        task=step.task_id,
        step=step.step_id,
        fence=fence,
        to=RULES[event].to,
        waiting_on=waiting_on,
        detail=dumps(detail),
        seconds=None if wake_after is None else wake_after.total_seconds(),
    )
    if parked is None:
        return None
    return _settled(connection, step, [step_event(event, step, fence, waiting_on=waiting_on, **detail)])


def obey_pause(connection: Connection, step: StepRef, fence: int) -> Applied | None:
    """running → pending_input, or → queued if the pause was lifted before the agent's turn had ended: then
    nobody would lead it on."""
    task = lock_task(connection, step.task)
    if task is None or not task.paused:
        return give_back(connection, step, fence, "the pause was lifted")
    applied = park(connection, step, fence, Event.PAUSE, WaitingOn.PAUSED, {})
    return None if applied is None else replace(applied, instead=applied.instead or Status.PENDING_INPUT)


_BACK: Final = statement(
    LOCK_SQL
    + f"""
    UPDATE steps SET status = 'queued', lease_until = NULL, given_back = :given_back,
        waiting_on = :waiting_on,
        waiting_since = CASE WHEN :waiting_on IS NULL THEN NULL ELSE clock_timestamp() END,
        waiting_detail = CAST(:detail AS jsonb), error = CAST(:error AS jsonb),
        not_before = clock_timestamp() + make_interval(secs => :seconds),
        ready_at = now(), published_at = now(), publications = 0, published_by = 'wake'
    WHERE tenant_id = :tenant AND id = :step AND fence = :fence AND status IN ({_sources(Event.RETRY)})
      AND lease_until IS NOT NULL
    RETURNING attempt
    """
)


def give_back(connection: Connection, step: StepRef, fence: int, why: str) -> Applied | None:
    """running → queued at a turn boundary (slice over, worker draining): the attempt goes on elsewhere."""
    back = _back(connection, step, fence, given_back=True)
    if back is None:
        return None
    return _settled(connection, step, [step_event(Event.YIELD, step, fence, why=why)], release=True)


def wait_in_queue(
    connection: Connection,
    step: StepRef,
    fence: int,
    waiting_on: WaitingOn,
    detail: Mapping[str, Any],
    wake_after: timedelta,
) -> Applied | None:
    """running → queued for something that the step needs and that is away (an agent, a model behind an open
    breaker); the same attempt goes on, not before `wake_after` has passed."""
    back = _back(
        connection,
        step,
        fence,
        given_back=True,
        waiting_on=waiting_on,
        detail=detail,
        seconds=wake_after.total_seconds(),
    )
    if back is None:
        return None
    return _settled(connection, step, [step_event(Event.YIELD, step, fence, waiting_on=waiting_on, **detail)])


def retry_later(
    connection: Connection, step: StepRef, fence: int, error: Mapping[str, Any], delay: timedelta
) -> Applied | None:
    """running → queued, not before `delay` has passed; the sweep publishes it then."""
    back = _back(
        connection,
        step,
        fence,
        given_back=False,
        waiting_on=WaitingOn.RETRY_BACKOFF,
        error=error,
        seconds=delay.total_seconds(),
    )
    if back is None:
        return None
    end_attempt(connection, step, back, "broke", error)
    return _settled(
        connection,
        step,
        [step_event(Event.RETRY, step, fence, error=dict(error), delay_seconds=delay.total_seconds())],
    )


def _back(
    connection: Connection,
    step: StepRef,
    fence: int,
    *,
    given_back: bool,
    waiting_on: WaitingOn | None = None,
    detail: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
    seconds: float | None = None,
) -> int | None:
    row = one(
        connection,
        _BACK,
        tenant=step.tenant_id,
        task=step.task_id,
        step=step.step_id,
        fence=fence,
        given_back=given_back,
        waiting_on=waiting_on,
        detail=dumps(detail),
        error=dumps(error),
        seconds=seconds,
    )
    return None if row is None else int(row["attempt"])


_EXPIRE: Final = statement(
    LOCK_SQL
    + f"""
    UPDATE steps SET status = 'queued', lease_until = NULL, given_back = :uncounted,
        waiting_on = NULL, waiting_since = NULL, waiting_detail = NULL, not_before = NULL,
        ready_at = now(), published_at = now(), publications = 0, published_by = 'wake'
    WHERE tenant_id = :tenant AND id = :step AND fence = :fence AND status IN ({_sources(Event.EXPIRE)})
      AND lease_until <= clock_timestamp()
    RETURNING attempt, max_attempts
    """
)


def expire(connection: Connection, step: StepRef, fence: int, *, uncounted: bool) -> Applied | None:
    """running → queued because the lease ended without a word; over the limit of attempts → failed (poison).

    `uncounted`: Postgres itself was away, so that the next claim goes on with the same attempt.
    """
    row = one(
        connection,
        _EXPIRE,
        tenant=step.tenant_id,
        task=step.task_id,
        step=step.step_id,
        fence=fence,
        uncounted=uncounted,
    )
    if row is None:
        return None
    if not uncounted:
        end_attempt(connection, step, row["attempt"], "lease_lost")
        if row["attempt"] >= row["max_attempts"]:
            error = {
                "code": "poison",
                "message": f"The worker was lost in each of {row['attempt']} attempts.",
                "recoverable": True,
            }
            return fail(connection, step, None, error, event_fence=fence)
    return _settled(
        connection, step, [step_event(Event.EXPIRE, step, fence, uncounted=uncounted)], release=True
    )


_FAIL: Final = statement(
    LOCK_SQL
    + f"""
    UPDATE steps SET status = 'failed', lease_until = NULL, given_back = false, waiting_on = NULL,
        waiting_since = NULL, waiting_detail = NULL, finished_at = clock_timestamp(),
        error = CAST(:error AS jsonb)
    WHERE tenant_id = :tenant AND id = :step AND status IN ({_sources(Event.FAIL)})
      AND (CAST(:fence AS int) IS NULL OR (fence = :fence AND lease_until IS NOT NULL))
    RETURNING attempt
    """
)


def fail(
    connection: Connection,
    step: StepRef,
    fence: int | None,
    error: Mapping[str, Any],
    *,
    event_fence: int | None = None,
) -> Applied | None:
    """live → failed for good; what needs it is cancelled, and, unless the task goes on after failures, all
    else that isn't running. `fence` None: the sweep's word, not a worker's."""
    row = one(
        connection,
        _FAIL,
        tenant=step.tenant_id,
        task=step.task_id,
        step=step.step_id,
        fence=fence,
        error=dumps(error),
    )
    if row is None:
        return None
    if fence is not None:
        end_attempt(connection, step, row["attempt"], "failed", error)
    return _broken(
        connection, step, [step_event(Event.FAIL, step, fence or event_fence, error=dict(error))], "failed"
    )


_CANCEL_ONE: Final = statement(
    LOCK_SQL
    + f"""
    UPDATE steps SET status = 'cancelled', lease_until = NULL, given_back = false, waiting_on = NULL,
        waiting_since = NULL, waiting_detail = NULL, finished_at = clock_timestamp(),
        error = CAST(:error AS jsonb)
    WHERE tenant_id = :tenant AND id = :step AND status IN ({_sources(Event.CANCEL)})
      AND (CAST(:fence AS int) IS NULL OR (fence = :fence AND lease_until IS NOT NULL))
    RETURNING attempt
    """
)


def cancel_step(
    connection: Connection,
    step: StepRef,
    fence: int | None,
    reason: str,
    *,
    before: Sequence[EventDraft] = (),
) -> Applied | None:
    """live → cancelled. `fence` None: without the worker's consent, who didn't stop in time or has no say;
    `before` are the events of the same transaction that led here."""
    row = one(
        connection,
        _CANCEL_ONE,
        tenant=step.tenant_id,
        task=step.task_id,
        step=step.step_id,
        fence=fence,
        error=dumps({"code": "cancelled", "message": reason}),
    )
    if row is None:
        return None
    end_attempt(connection, step, row["attempt"], "cancelled")
    events = [*before, step_event(Event.CANCEL, step, fence, reason=reason)]
    return _broken(connection, step, events, "was cancelled")


_DOOMED: Final = statement(
    """
    WITH RECURSIVE after(id) AS (
        SELECT step_id FROM step_needs WHERE tenant_id = :tenant AND need_id = :step
        UNION
        SELECT n.step_id FROM step_needs n JOIN after a ON n.need_id = a.id WHERE n.tenant_id = :tenant
    ), doomed AS (
        SELECT s.id, (s.id IN (SELECT id FROM after)) AS needs FROM steps s
        WHERE s.tenant_id = :tenant AND s.workflow_id = :workflow
          AND (s.status IN ('queued', 'pending_input') OR (s.status = 'running' AND s.lease_until IS NULL))
          AND (:all OR s.id IN (SELECT id FROM after))
        ORDER BY s.number FOR UPDATE OF s
    )
    UPDATE steps s SET status = 'cancelled', waiting_on = NULL, waiting_since = NULL, waiting_detail = NULL,
        given_back = false, finished_at = clock_timestamp(),
        error = jsonb_build_object('code', 'cancelled', 'message',
            CASE WHEN d.needs THEN 'needs ' || :key ELSE :otherwise END)
    FROM doomed d WHERE s.tenant_id = :tenant AND s.id = d.id
    RETURNING s.id, s.number, s.error ->> 'message' AS reason
    """
)
_KEY: Final = statement("SELECT key FROM steps WHERE tenant_id = :tenant AND id = :step")
_WITHDRAW: Final = statement(
    """
    WITH withdrawn AS (
        UPDATE questions SET withdrawn_at = clock_timestamp()
        WHERE tenant_id = :tenant AND step_id = ANY(:steps) AND answered_at IS NULL AND withdrawn_at IS NULL
        RETURNING id
    )
    UPDATE tasks SET open_questions = open_questions - (SELECT count(*) FROM withdrawn)
    WHERE tenant_id = :tenant AND id = :task AND EXISTS (SELECT 1 FROM withdrawn)
    """
)


def _broken(connection: Connection, step: StepRef, events: list[EventDraft], how: str) -> Applied:
    """After a step ended badly: nothing that needs it may start; by default nothing else does either."""
    task = lock_task(connection, step.task)
    assert task is not None  # noqa: S101 - the step's foreign key
    key = connection.execute(_KEY, {"tenant": step.tenant_id, "step": step.step_id}).scalar_one()
    doomed = rows(
        connection,
        _DOOMED,
        tenant=step.tenant_id,
        workflow=step.workflow_id,
        step=step.step_id,
        all=task.on_step_failure == "stop" or task.exceeded is not None,
        key=key,
        otherwise=f"step {key} {how}",
    )
    withdraw_questions(connection, step.task, [step.step_id, *(row["id"] for row in doomed)])
    end_attempts(connection, step.tenant_id, [row["id"] for row in doomed], "cancelled")
    for row in sorted(doomed, key=lambda r: r["number"]):
        ref = StepRef(step.tenant_id, step.task_id, step.workflow_id, row["id"])
        events.append(step_event(Event.CANCEL, ref, None, reason=row["reason"]))
    forsaken = lineage.forsaken(connection, step.tenant_id, [step.step_id, *(row["id"] for row in doomed)])
    return Applied(replace(settle(connection, task, events), forsaken=forsaken))


def withdraw_questions(connection: Connection, task: TaskRef, steps: Sequence[str]) -> None:
    """Nobody needs these steps' open questions any more; the caller holds the task's lock."""
    connection.execute(_WITHDRAW, {"tenant": task.tenant_id, "task": task.task_id, "steps": list(steps)})


_END_ATTEMPTS: Final = statement(
    """
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = :outcome
    WHERE tenant_id = :tenant AND step_id = ANY(:steps) AND ended_at IS NULL
    """
)


def end_attempts(connection: Connection, tenant_id: str, steps: Sequence[str], outcome: str) -> None:
    """Closes what parked steps had begun."""
    connection.execute(_END_ATTEMPTS, {"tenant": tenant_id, "steps": list(steps), "outcome": outcome})


_PAUSE_QUEUED: Final = statement(
    f"""
    UPDATE steps SET status = '{RULES[Event.PAUSE].to}', waiting_on = 'paused',
        waiting_since = clock_timestamp(), waiting_detail = NULL
    WHERE tenant_id = :tenant AND id = :step AND status = 'queued'
    RETURNING id
    """
)


def _settled(
    connection: Connection, step: StepRef, events: list[EventDraft], *, release: bool = False
) -> Applied:
    """After a step gave its lease back: without a next heartbeat, what people asked for happens here."""
    task = lock_task(connection, step.task)
    assert task is not None  # noqa: S101 - the step's foreign key
    if task.cancel_requested:
        ended = cancel_step(connection, step, None, task.cancel_reason or "cancelled", before=events)
        assert ended is not None  # noqa: S101 - it is live, and ours
        return replace(ended, instead=Status.CANCELLED)
    if task.paused and one(connection, _PAUSE_QUEUED, tenant=step.tenant_id, step=step.step_id) is not None:
        settled = settle(connection, task, [*events, step_event(Event.PAUSE, step, None)])
        return Applied(settled, instead=Status.PENDING_INPUT)
    return Applied(settle(connection, task, events), released=(step.step_id,) if release else ())


_END_ATTEMPT: Final = statement(
    """
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = :outcome, error = CAST(:error AS jsonb)
    WHERE tenant_id = :tenant AND step_id = :step AND number = :attempt AND ended_at IS NULL
    """
)


def end_attempt(
    connection: Connection,
    step: StepRef,
    attempt: int,
    outcome: str,
    error: Mapping[str, Any] | None = None,
) -> None:
    connection.execute(
        _END_ATTEMPT,
        {
            "tenant": step.tenant_id,
            "step": step.step_id,
            "attempt": attempt,
            "outcome": outcome,
            "error": dumps(error),
        },
    )
