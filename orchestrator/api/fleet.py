"""`/api/v1/agents`: who works, who doesn't move, and what an operator does about it."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from orchestrator.agents.readiness import shown
from orchestrator.api.bodies import JsonBody, plain, read
from orchestrator.api.once import Asking, Reply, once
from orchestrator.api.openapi import takes
from orchestrator.api.wiring import Admin, Reader, The
from orchestrator.bootstrap import Wiring
from orchestrator.commands import fleet
from orchestrator.db.connect import Connection
from orchestrator.queries.agents import AgentLine, agents
from orchestrator.queries.reading import glance
from orchestrator.tasks.fleet import drain

router: Final = APIRouter(prefix="/api/v1", tags=["agents"])


class ReclaimBody(BaseModel):
    """Of one agent or worker, or, without a name, of all whose lease has ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent: str | None = None
    dry_run: bool = False


class DrainBody(BaseModel):
    """`on` False lets it take work again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on: bool = True


def still_for(wiring: Wiring) -> timedelta:
    """A step may be silent for as long as a command may run."""
    return wiring.settings.command_timeout + wiring.settings.lease


def _agents(wiring: Wiring, tenant_id: str, *, gone: bool = False) -> tuple[AgentLine, ...]:
    with glance(wiring.engine) as connection:
        return agents(
            connection, tenant_id, silent_for=wiring.settings.lease, still_for=still_for(wiring), gone=gone
        )


@router.get("/agents", operation_id="agents.list")
def list_agents(wiring: The, caller: Reader, gone: bool = False) -> Response:
    lines = _agents(wiring, caller.tenant_id, gone=gone)
    return Reply(200, {"data": [plain(line) for line in lines]}).response()


@router.get("/agent-types", operation_id="agent-types.list")
def list_agent_types(wiring: The, caller: Reader) -> Response:
    """Each kind of agent, the workers that can run it, and what is missing for it on this machine."""
    lines = _agents(wiring, caller.tenant_id)
    told = [
        {**shown(one), "workers": sorted(line.id for line in lines if name in line.capabilities)}
        for name, one in wiring.agents.items()
    ]
    return Reply(200, {"data": told}).response()


@router.get("/agents/stalled", operation_id="agents.stalled")
def list_stalled(wiring: The, caller: Reader) -> Response:
    """Alive is not moving: those without a heartbeat or without progress, with the evidence."""
    lines = [line for line in _agents(wiring, caller.tenant_id) if line.stalled]
    return Reply(200, {"data": [plain(line) for line in lines]}).response()


@router.post(
    "/agents/reclaim", operation_id="agents.reclaim", openapi_extra=takes(ReclaimBody, required=False)
)
def reclaim(wiring: The, caller: Admin, ask: Asking, body: JsonBody) -> Response:
    """Takes steps away from agents that are stuck, as the sweep does; `dry_run` only says which."""
    wanted = read(ReclaimBody, body)

    def work(connection: Connection) -> Reply:
        done = fleet.reclaim(connection, caller.tenant_id, wanted.agent, dry_run=wanted.dry_run)
        lines = [plain(line) for line in done.reclaimed]
        return Reply(200, {"dry_run": wanted.dry_run, "data": lines}, publish=done.publish)

    return once(wiring, caller, ask, work).response()


@router.post(
    "/agents/{name:path}/drain", operation_id="agents.drain", openapi_extra=takes(DrainBody, required=False)
)
def drain_agent(wiring: The, caller: Admin, name: str, body: JsonBody) -> Response:
    """An agent, or a worker's agents, finish their turn, give back what they have and take nothing new;
    `{"on": false}` ends that.

    Asking twice is as good as once, so that no Idempotency-Key is needed.
    """
    wanted = read(DrainBody, body)
    drained = drain(wiring, caller.tenant_id, name, on=wanted.on)
    told = {"on": wanted.on, "agents": list(drained.agent_ids), "workers": list(drained.workers)}
    return Reply(202, told).response()
