"""The fleet: every slot of every worker's pool has a row and a heartbeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.db.sql import dumps, one, rows, statement


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot as it introduces itself; `agent_id` is `<name>@<host>/<slot>`."""

    tenant_id: str
    agent_id: str
    name: str
    node: str
    pid: int
    boot_id: str
    version: str
    queues: Sequence[str]
    capabilities: Sequence[str]
    models: Sequence[str]


_REGISTER: Final = statement(
    """
    INSERT INTO agents
        (tenant_id, id, name, status, node, pid, boot_id, version, queues, capabilities, models)
    VALUES (:tenant, :id, :name, 'idle', :node, :pid, :boot, :version, CAST(:queues AS jsonb),
        CAST(:capabilities AS jsonb), CAST(:models AS jsonb))
    ON CONFLICT (tenant_id, id) DO UPDATE SET status = 'idle', node = excluded.node, pid = excluded.pid,
        boot_id = excluded.boot_id, version = excluded.version, queues = excluded.queues,
        capabilities = excluded.capabilities, models = excluded.models, step_id = NULL,
        drain_requested = false, registered_at = clock_timestamp(),
        heartbeat_at = clock_timestamp(), released_at = NULL
    """
)
_BEAT: Final = statement(
    """
    UPDATE agents SET heartbeat_at = clock_timestamp(),
        status = CASE WHEN drain_requested THEN 'draining' WHEN status = 'offline' THEN 'idle' ELSE status END
    WHERE tenant_id = :tenant AND id = ANY(:ids) RETURNING id, drain_requested
    """
)
_IDLE: Final = statement(
    """
    UPDATE agents SET status = CASE WHEN drain_requested THEN 'draining' ELSE 'idle' END, step_id = NULL,
        progress_at = clock_timestamp()
    WHERE tenant_id = :tenant AND id = :id AND step_id = :step
    """
)
_RELEASE: Final = statement(
    """
    UPDATE agents SET status = 'released', released_at = clock_timestamp(), step_id = NULL
    WHERE tenant_id = :tenant AND id = ANY(:ids)
    """
)
_LOST: Final = statement(
    """
    UPDATE agents SET status = 'offline', step_id = NULL
    WHERE status NOT IN ('offline', 'released')
      AND heartbeat_at < clock_timestamp() - make_interval(secs => :seconds)
    RETURNING id
    """
)
_DRAIN: Final = statement(
    """
    UPDATE agents SET drain_requested = :drain,
        status = CASE WHEN :drain THEN 'draining' WHEN step_id IS NULL THEN 'idle' ELSE 'busy' END
    WHERE tenant_id = :tenant AND status NOT IN ('offline', 'released')
      AND (id = :name OR name = :name OR split_part(id, '/', 1) = :name)
    RETURNING id
    """
)


def register(connection: Connection, slot: Slot) -> None:
    connection.execute(
        _REGISTER,
        {
            "tenant": slot.tenant_id,
            "id": slot.agent_id,
            "name": slot.name,
            "node": slot.node,
            "pid": slot.pid,
            "boot": slot.boot_id,
            "version": slot.version,
            "queues": dumps(list(slot.queues)),
            "capabilities": dumps(list(slot.capabilities)),
            "models": dumps(list(slot.models)),
        },
    )


def beat(connection: Connection, tenant_id: str, ids: Sequence[str]) -> dict[str, bool]:
    """Marks slots alive; id → whether it is asked to drain. A slot that was declared offline is back."""
    found = rows(connection, _BEAT, tenant=tenant_id, ids=list(ids))
    return {row["id"]: row["drain_requested"] for row in found}


def idle(connection: Connection, tenant_id: str, agent_id: str, step_id: str) -> None:
    """The slot is free again, if it is still that step's."""
    connection.execute(_IDLE, {"tenant": tenant_id, "id": agent_id, "step": step_id})


def release(connection: Connection, tenant_id: str, ids: Sequence[str]) -> None:
    """The worker ended in order."""
    connection.execute(_RELEASE, {"tenant": tenant_id, "ids": list(ids)})


def lose(connection: Connection, silent_for: timedelta) -> list[str]:
    """Slots that said nothing for so long are offline; their leases expire by themselves."""
    return [row["id"] for row in rows(connection, _LOST, seconds=silent_for.total_seconds())]


def drain(connection: Connection, tenant_id: str, name: str, *, on: bool) -> list[str]:
    """Asks a slot, or all slots of a worker, to finish what they do and take nothing new (or to go on)."""
    return [row["id"] for row in rows(connection, _DRAIN, tenant=tenant_id, name=name, drain=on)]


def draining(connection: Connection, tenant_id: str, agent_id: str) -> bool:
    """Whether this slot is asked to take nothing new."""
    row: dict[str, Any] | None = one(connection, _DRAINING, tenant=tenant_id, id=agent_id)
    return bool(row and row["drain_requested"])


_DRAINING: Final = statement("SELECT drain_requested FROM agents WHERE tenant_id = :tenant AND id = :id")
