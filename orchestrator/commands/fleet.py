"""An operator's commands over agents: take a step away from one that is stuck, let one finish and rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from orchestrator.commands.publication import Publication
from orchestrator.core.errors import Unknown
from orchestrator.db import agents, transitions
from orchestrator.db.locks import lock_task
from orchestrator.db.sql import StepRef, rows, statement


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """A step that was taken from an agent (or would be)."""

    agent_id: str | None
    task_id: str
    step_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Reclaims:
    """What one reclaim found."""

    reclaimed: tuple[Reclaimed, ...]
    publish: Publication


_FIELDS: Final = "tenant_id, task_id, workflow_id, id, fence, attempt, agent_id"
_OVERDUE: Final = statement(
    f"""
    SELECT {_FIELDS} FROM steps WHERE tenant_id = :tenant AND lease_until <= clock_timestamp()
    ORDER BY task_id, id LIMIT 200
    """
)
_OF_AGENT: Final = statement(
    f"""
    SELECT {_FIELDS} FROM steps WHERE tenant_id = :tenant AND lease_until IS NOT NULL
      AND :agent IN (agent_id, split_part(agent_id, '/', 1), split_part(agent_id, '@', 1))
    ORDER BY task_id, id LIMIT 200
    """
)
_END_LEASE: Final = statement(
    """
    UPDATE steps SET lease_until = clock_timestamp()
    WHERE tenant_id = :tenant AND id = :step AND fence = :fence AND lease_until IS NOT NULL
    """
)
_KNOWN: Final = statement(
    """
    SELECT 1 AS known FROM agents WHERE tenant_id = :tenant
      AND (id = :agent OR split_part(id, '/', 1) = :agent OR name = :agent) LIMIT 1
    """
)


def reclaim(
    connection: Connection, tenant_id: str, agent: str | None = None, *, dry_run: bool = False
) -> Reclaims:
    """Takes steps away: those whose lease has ended, as the sweep does, or all of a named agent or worker.

    The agent that is robbed finds its fence lost at its next heartbeat and stops. Raises Unknown.
    """
    if agent is None:
        found = rows(connection, _OVERDUE, tenant=tenant_id)
    else:
        if not rows(connection, _KNOWN, tenant=tenant_id, agent=agent):
            raise Unknown("agent-unknown", f"There is no agent {agent}.", "orchestrator agent list")
        found = rows(connection, _OF_AGENT, tenant=tenant_id, agent=agent)
    taken, released, finished = [], [], []
    for row in found:
        step = StepRef(row["tenant_id"], row["task_id"], row["workflow_id"], row["id"])
        one = Reclaimed(row["agent_id"], row["task_id"], row["id"], row["attempt"])
        if dry_run:
            taken.append(one)
            continue
        lock_task(connection, step.task)
        connection.execute(_END_LEASE, {"tenant": tenant_id, "step": step.step_id, "fence": row["fence"]})
        applied = transitions.expire(connection, step, row["fence"], uncounted=False)
        if applied is None:
            continue
        taken.append(one)
        released += [step] if applied.released else []
        finished += [step.task] if applied.settled.ended else []
    return Reclaims(tuple(taken), Publication(released=tuple(released), finished=tuple(finished)))


@dataclass(frozen=True, slots=True)
class Drained:
    """Slots that were told; `queues` is what each worker consumed."""

    agent_ids: tuple[str, ...]
    queues: tuple[str, ...]

    @property
    def workers(self) -> tuple[str, ...]:
        """Celery's names of the workers."""
        return tuple(sorted({agent_id.partition("/")[0] for agent_id in self.agent_ids}))


_QUEUES: Final = statement(
    """
    SELECT DISTINCT q.name FROM agents a, jsonb_array_elements_text(a.queues) AS q(name)
    WHERE a.tenant_id = :tenant AND a.id = ANY(:ids)
    """
)


def drain(connection: Connection, tenant_id: str, name: str, *, on: bool = True) -> Drained:
    """Marks a slot's or a worker's rows: what runs is given back at its next turn. Raises Unknown."""
    ids = agents.drain(connection, tenant_id, name, on=on)
    if not ids:
        raise Unknown("agent-unknown", f"There is no live agent {name}.", "orchestrator agent list")
    queues = rows(connection, _QUEUES, tenant=tenant_id, ids=ids)
    return Drained(tuple(ids), tuple(row["name"] for row in queues))
