"""What waits, goes on: the events ANSWER, RESUME and WAKE lead back to queued."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.states import RULES, Event
from orchestrator.db.locks import lock_task
from orchestrator.db.sql import StepRef, one, statement
from orchestrator.db.transitions import Applied, settle, step_event

_WAKE: Final = statement(
    """
    UPDATE steps SET
        status = CASE WHEN :paused THEN 'pending_input' ELSE 'queued' END,
        waiting_on = CASE WHEN :paused THEN 'paused' END,
        waiting_since = CASE WHEN :paused THEN clock_timestamp() END,
        waiting_detail = NULL, not_before = NULL, lease_until = NULL,
        ready_at = now(), published_at = now(), publications = 0, published_by = 'wake',
        published_alone = published_alone OR (signature IS NULL AND canvas IS NULL)
    WHERE tenant_id = :tenant AND id = :step AND status = ANY(:sources) AND waiting_on IS NOT NULL
    RETURNING status
    """
)


def _sources(event: Event) -> list[str]:
    return [str(status) for status in RULES[event].sources]


def wake(
    connection: Connection,
    step: StepRef,
    event: Event,
    data: Mapping[str, Any],
    *,
    first: Callable[[], bool] = lambda: True,
) -> Applied | None:
    """A waiting step → queued, or → paused if its task is. `first` runs under the task's lock: False stops
    it."""
    task = lock_task(connection, step.task)
    if task is None or not first():
        return None
    row = one(
        connection,
        _WAKE,
        tenant=step.tenant_id,
        step=step.step_id,
        sources=_sources(event),
        paused=task.paused,
    )
    if row is None:
        return None
    events = [step_event(event, step, None, **data)]
    if row["status"] != RULES[event].to:
        events.append(step_event(Event.PAUSE, step, None))
    settled = settle(connection, task, events)
    return Applied(settled, released=(step.step_id,) if len(events) == 1 else ())


_AGENT_CAME: Final = statement(
    """
    UPDATE steps SET not_before = clock_timestamp()
    WHERE tenant_id = :tenant AND status = 'queued' AND waiting_on = 'agent'
      AND not_before > clock_timestamp()
    """
)


def agent_came(connection: Connection, tenant_id: str) -> None:
    """A new slot may be able to do what waits for an agent: the next sweep sends it again."""
    connection.execute(_AGENT_CAME, {"tenant": tenant_id})


_DUE: Final = statement(
    """
    UPDATE steps SET not_before = NULL, waiting_on = NULL, waiting_since = NULL, waiting_detail = NULL,
        ready_at = now(), published_at = now(), publications = 0, published_by = 'wake'
    WHERE tenant_id = :tenant AND id = :step AND status = 'queued' AND not_before <= clock_timestamp()
    RETURNING id
    """
)


def due(connection: Connection, step: StepRef) -> Applied | None:
    """The back-off of a queued step is over: it may be claimed again."""
    task = lock_task(connection, step.task)
    if task is None or one(connection, _DUE, tenant=step.tenant_id, step=step.step_id) is None:
        return None
    settled = settle(connection, task, [step_event(Event.WAKE, step, None, why="back-off over")])
    return Applied(settled, released=(step.step_id,))
