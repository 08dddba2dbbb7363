"""People's commands over a task: pause, resume, cancel, retry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from orchestrator.commands.publication import NOTHING, Publication, following, together
from orchestrator.commands.request import unavailable
from orchestrator.commands.submit import plan_from_json, write_workflow
from orchestrator.core.bounds import Bound
from orchestrator.core.errors import Conflict, Unknown
from orchestrator.core.flow import compile_plan
from orchestrator.core.redaction import LOOKS
from orchestrator.core.states import TERMINAL
from orchestrator.db import interventions, lineage
from orchestrator.db.events import EventDraft, append_events
from orchestrator.db.interventions import Commanded
from orchestrator.db.locks import LockedTask, lock_task
from orchestrator.db.sql import TaskRef, one, statement

FROM_START: Final = "start"


@dataclass(frozen=True, slots=True)
class Intervened:
    """A command that was accepted; `applied` False: a running step takes it up at its next heartbeat."""

    task_id: str
    intervention_id: str | None
    status: str
    applied: bool
    publish: Publication
    message: str
    """What happens now, in a sentence or two for the one who commanded it."""


def pause(
    connection: Connection, tenant_id: str, task_id: str, *, by: str, reason: str | None = None
) -> Intervened:
    task = _live(connection, tenant_id, task_id, "paused")
    if task.paused:
        raise Conflict("already-paused", f"Task {task_id} is paused.", f"orchestrator task resume {task_id}")
    below = [each for each in _below(connection, task) if not each.paused and not each.cancel_requested]
    others = [(each, interventions.pause(connection, each, by, _clean(reason))) for each in below]
    done = interventions.pause(connection, task, by, _clean(reason))
    later = "" if done.applied else " What runs stops at its next turn and is kept."
    return _intervened(task, done, f"Nothing new is started{_with(others)}.{later}", others)


def resume(
    connection: Connection, tenant_id: str, task_id: str, *, by: str, reason: str | None = None
) -> Intervened:
    """Lifts a pause, and those of its subtasks. Of a task that isn't paused: leads on the steps that were
    escalated.

    One word does one of both, so that nobody who lifts a pause sends on what he hasn't looked at.
    """
    task = _live(connection, tenant_id, task_id, "resumed")
    escalated = interventions.escalated(connection, task)
    named = ", ".join(escalated.values())
    if task.paused:
        still = f" Escalated, and led on by another resume: {named}." if escalated else ""
        below = [each for each in _below(connection, task) if each.paused]
        others = [(each, interventions.resume(connection, each, by, _clean(reason))) for each in below]
        done = interventions.resume(connection, task, by, _clean(reason))
        what = f"What was paused goes on from where it stopped{_with(others)}.{still}"
        return _intervened(task, done, what, others)
    if escalated:
        done = interventions.lead_on(connection, task, list(escalated), by, _clean(reason))
        return _intervened(
            task,
            done,
            f"One more run, on what the branch holds now and with the conflict shown to the agent: {named}. "
            "A step that conflicts again waits for a person again.",
        )
    raise Conflict(
        "not-paused",
        f"Task {task_id} is not paused, and none of its steps was escalated.",
        f"See what it waits for: orchestrator task status {task_id}",
    )


def cancel(
    connection: Connection, tenant_id: str, task_id: str, *, by: str, reason: str | None = None
) -> Intervened:
    """Its subtasks, and theirs, end with it: locked from the top down, ended from the bottom up."""
    task = _live(connection, tenant_id, task_id, "cancelled")
    if task.cancel_requested:
        return Intervened(task_id, None, task.status, False, NOTHING, "It was cancelled before.")
    why = _clean(reason) or f"cancelled by {by}"
    below = [each for each in _below(connection, task) if not each.cancel_requested]
    others = [(each, interventions.cancel(connection, each, by, why)) for each in reversed(below)]
    done = interventions.cancel(connection, task, by, why)
    later = "It has ended" if done.applied else "What runs hands in what it has, then the task ends"
    return _intervened(task, done, f"{later}{_with(others)}.", others)


_PLAN: Final = statement(
    """
    SELECT p.plan, s.max_attempts FROM plan_revisions p
    JOIN steps s ON s.tenant_id = p.tenant_id AND s.workflow_id = p.workflow_id AND s.number = 1
    WHERE p.tenant_id = :tenant AND p.workflow_id = :workflow ORDER BY p.number DESC LIMIT 1
    """
)


def retry(
    connection: Connection,
    tenant_id: str,
    task_id: str,
    *,
    by: str,
    reason: str | None = None,
    start_from: str = FROM_START,
) -> Intervened:
    """A new workflow of the same plan, from the start. Raises Conflict: `not-ended` while one is under
    way, `deadline-passed`; Refused `mode-unavailable` for another place to start from."""
    if start_from != FROM_START:
        raise unavailable("/from", start_from)
    task, reason = _found(connection, tenant_id, task_id), _clean(reason)
    if task.status not in TERMINAL:
        raise Conflict(
            "not-ended",
            f"Task {task_id} is {task.status}.",
            f"Cancel it first: orchestrator task cancel {task_id}",
        )
    if task.exceeded is Bound.DEADLINE:
        raise Conflict(
            "deadline-passed",
            f"The deadline of task {task_id} has passed, so another run would end at once.",
            "Create a new task with a later deadline, or without one.",
        )
    row = one(connection, _PLAN, tenant=tenant_id, workflow=task.workflow_id)
    assert row is not None  # noqa: S101 - written with the workflow
    plan = plan_from_json(row["plan"])
    interventions.reopen(connection, task, by, reason)
    started = write_workflow(
        connection,
        task.ref,
        task.workflow_number + 1,
        plan,
        compile_plan(plan),
        task.priority,
        row["max_attempts"],
        by,
        start=True,
    )
    workflow_id = started.workflow_id
    append_events(
        connection,
        task.ref,
        [
            EventDraft("intervention", "retry", {"by": by, "reason": reason}, workflow_id=workflow_id),
            EventDraft("status", "queued", {"from": task.status, "to": "queued"}, workflow_id=workflow_id),
        ],
    )
    publish = Publication(started=started)
    return Intervened(task_id, None, "queued", True, publish, "The same plan runs again, from the start.")


def _below(connection: Connection, task: LockedTask) -> list[LockedTask]:
    """Its live subtasks and theirs, each locked after the task that started it: none can be missed, since a
    subtask is started under its parent's lock."""
    found: list[LockedTask] = []
    level = [task.ref]
    while level:
        refs = lineage.live_children(connection, task.ref.tenant_id, [ref.task_id for ref in level])
        locked = [each for ref in refs if (each := lock_task(connection, ref)) is not None]
        live = [each for each in locked if each.status not in TERMINAL]
        found += live
        level = [each.ref for each in live]
    return found


_Others = Sequence[tuple[LockedTask, Commanded]]


def _with(others: _Others) -> str:
    return f", and {len(others)} subtask{'s' if len(others) > 1 else ''} with it" if others else ""


def _clean(reason: str | None) -> str | None:
    return None if reason is None else LOOKS.text(reason)


def _found(connection: Connection, tenant_id: str, task_id: str) -> LockedTask:
    task = lock_task(connection, TaskRef(tenant_id, task_id))
    if task is None:
        raise Unknown("task-unknown", f"There is no task {task_id}.", "orchestrator task list")
    return task


def _live(connection: Connection, tenant_id: str, task_id: str, verb: str) -> LockedTask:
    task = _found(connection, tenant_id, task_id)
    if task.status in TERMINAL:
        raise Conflict(
            "task-ended",
            f"Task {task_id} has ended as {task.status} and can't be {verb}.",
            f"Run it again: orchestrator task retry {task_id}",
        )
    return task


def _intervened(task: LockedTask, done: Commanded, message: str, others: _Others = ()) -> Intervened:
    publish = together(
        *(following(each.ref, what.settled, what.released) for each, what in others),
        following(task.ref, done.settled, done.released),
    )
    return Intervened(
        task.ref.task_id, done.intervention_id, done.settled.status, done.applied, publish, message
    )
