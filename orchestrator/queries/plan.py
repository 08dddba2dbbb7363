"""A task's plan: what can run side by side, and how long that takes by the estimates that came with it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection

from orchestrator.core.plan import Plan, PlanStep, critical_path, estimate, parallel_groups
from orchestrator.db.sql import rows, statement


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """`needs` are keys of other steps of the plan."""

    key: str
    needs: tuple[str, ...]
    estimate_seconds: float | None


@dataclass(frozen=True, slots=True)
class PlanLine:
    """The plan of a task's current run. The times are None where no step has an estimate; a step without one
    counts as nothing."""

    steps: tuple[PlannedStep, ...]
    parallel_groups: tuple[tuple[str, ...], ...]
    """Each group's steps need only steps of earlier groups."""
    critical_path: tuple[str, ...]
    """The steps that it can't be done sooner than; without estimates the longest chain."""
    sequential_seconds: float | None
    parallel_seconds: float | None
    """With as many agents as it can use."""
    steps_without_estimate: int


_PLAN: Final = statement(
    """
    SELECT s.value ->> 'key' AS key, s.value -> 'needs' AS needs,
        CAST(s.value ->> 'estimate' AS double precision) AS seconds
    FROM tasks t
    JOIN workflows w ON w.tenant_id = t.tenant_id AND w.task_id = t.id AND w.number = t.workflow_number
    CROSS JOIN LATERAL (
        SELECT p.plan FROM plan_revisions p WHERE p.tenant_id = w.tenant_id AND p.workflow_id = w.id
        ORDER BY p.number DESC LIMIT 1
    ) latest
    CROSS JOIN LATERAL jsonb_array_elements(latest.plan -> 'steps') WITH ORDINALITY s(value, place)
    WHERE t.tenant_id = :tenant AND t.id = :task
    ORDER BY s.place
    """
)


def plan(connection: Connection, tenant_id: str, task_id: str) -> PlanLine:
    """Of a task that there is."""
    steps = tuple(
        PlannedStep(row["key"], tuple(row["needs"]), row["seconds"])
        for row in rows(connection, _PLAN, tenant=tenant_id, task=task_id)
    )
    found = Plan(tuple(PlanStep(step.key, "", step.needs, estimate=_span(step)) for step in steps))
    unknown = sum(step.estimate_seconds is None for step in steps)
    taken = None if unknown == len(steps) else estimate(found)
    return PlanLine(
        steps,
        parallel_groups(found),
        critical_path(found),
        None if taken is None else taken.sequential.total_seconds(),
        None if taken is None else taken.parallel.total_seconds(),
        unknown,
    )


def _span(step: PlannedStep) -> timedelta | None:
    return None if step.estimate_seconds is None else timedelta(seconds=step.estimate_seconds)
