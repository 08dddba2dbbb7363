"""Which kind of agent a step was given, and what the rows know for choosing one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.recovery import NOT_THE_AGENTS, OF_MODELS, speaks_against_agent
from orchestrator.db.claims import holds
from orchestrator.db.events import EventDraft, append_events
from orchestrator.db.journal import FenceLost
from orchestrator.db.sql import StepRef, dumps, one, rows, statement

KEPT: Final = "agent_choice"
"""In a step's spec: what was chosen by rule."""

_KNOWN: Final = statement(
    """
    WITH alive AS (
        SELECT c.kind, count(*) AS slots FROM agents a, jsonb_array_elements_text(a.capabilities) c(kind)
        WHERE a.tenant_id = :tenant AND a.status IN ('idle', 'busy') GROUP BY 1
    ), now AS (
        SELECT coalesce(s.agent_type, t.agent_type, 'engine') AS kind, count(*) AS busy
        FROM steps s JOIN tasks t ON t.tenant_id = s.tenant_id AND t.id = s.task_id
        WHERE s.lease_until IS NOT NULL AND s.tenant_id = :tenant GROUP BY 1
    ), ended AS (
        SELECT coalesce(s.agent_type, r.agent_type, 'engine') AS kind,
            count(*) FILTER (WHERE s.status = 'completed') AS completed,
            count(*) FILTER (WHERE s.status = 'failed' AND s.error ->> 'class' <> ALL(:not_the_agents)
                AND s.error ->> 'code' NOT LIKE :of_models) AS failed
        FROM (SELECT id, agent_type FROM tasks WHERE tenant_id = :tenant
              ORDER BY created_at DESC LIMIT 100) r
        JOIN steps s ON s.tenant_id = :tenant AND s.task_id = r.id AND s.kind = 'agent'
        GROUP BY 1
    )
    SELECT k.kind, coalesce(a.slots, 0) AS slots, coalesce(n.busy, 0) AS busy,
        coalesce(e.completed, 0) AS completed, coalesce(e.failed, 0) AS failed
    FROM (SELECT kind FROM alive UNION SELECT kind FROM now UNION SELECT kind FROM ended) k
    LEFT JOIN alive a USING (kind) LEFT JOIN now n USING (kind) LEFT JOIN ended e USING (kind)
    """
)
_LABELS: Final = statement("SELECT labels FROM tasks WHERE tenant_id = :tenant AND id = :task")
_BROKE: Final = statement(
    """
    SELECT error FROM attempts
    WHERE tenant_id = :tenant AND step_id = :step AND number = :number AND outcome = 'broke'
    """
)
_BEGUN: Final = statement("SELECT 1 FROM turns WHERE tenant_id = :tenant AND step_id = :step LIMIT 1")
_OFFERS: Final = statement(
    """
    SELECT DISTINCT capabilities FROM agents
    WHERE tenant_id = :tenant AND status IN ('idle', 'busy') AND id <> :own
    """
)
_CHOOSE: Final = statement(
    """
    UPDATE steps SET agent_type = :kind,
        spec = spec || jsonb_build_object(CAST(:kept AS text), CAST(:choice AS jsonb))
    WHERE tenant_id = :tenant AND id = :step AND fence = :fence AND lease_until IS NOT NULL
    """
)


def known(connection: Connection, tenant_id: str) -> dict[str, dict[str, int]]:
    """Kind → slots that offer it, steps that run with it, and how the steps of the last hundred tasks
    ended: slots, busy, completed, failed (by what speaks against it)."""
    others = {"not_the_agents": list(NOT_THE_AGENTS), "of_models": f"{OF_MODELS}%"}
    found = rows(connection, _KNOWN, tenant=tenant_id, **others)
    return {row.pop("kind"): {name: int(value) for name, value in row.items()} for row in found}


def labels(connection: Connection, step: StepRef) -> Mapping[str, str]:
    row = one(connection, _LABELS, tenant=step.tenant_id, task=step.task_id)
    return dict(row["labels"]) if row else {}


def is_blamed(connection: Connection, step: StepRef, attempt: int) -> bool:
    """Whether that attempt broke by what speaks against its agent."""
    row = one(connection, _BROKE, tenant=step.tenant_id, step=step.step_id, number=attempt)
    error = {} if row is None else row["error"] or {}
    return speaks_against_agent(error.get("class"), str(error.get("code")))


def has_begun(connection: Connection, step: StepRef) -> bool:
    """Whether there is a turn of it."""
    return one(connection, _BEGUN, tenant=step.tenant_id, step=step.step_id) is not None


def offered_elsewhere(connection: Connection, tenant_id: str, agent_id: str | None) -> list[frozenset[str]]:
    """What the other slots that live offer: kinds of agents, and words of their own."""
    found = rows(connection, _OFFERS, tenant=tenant_id, own=agent_id or "")
    return [frozenset(row["capabilities"]) for row in found]


def choose(connection: Connection, step: StepRef, fence: int, kind: str, choice: Mapping[str, Any]) -> None:
    """Gives the step its kind of agent, with the reason and its event. Raises FenceLost."""
    if not holds(connection, step, fence):
        raise FenceLost
    values = {"tenant": step.tenant_id, "step": step.step_id, "fence": fence, "kind": kind, "kept": KEPT}
    connection.execute(_CHOOSE, {**values, "choice": dumps(choice)})
    shown = {"agent": kind, **{key: choice[key] for key in ("reason", "considered", "attempt")}}
    append_events(
        connection,
        step.task,
        [EventDraft("progress", "agent", shown, step.workflow_id, step.step_id, fence)],
    )
