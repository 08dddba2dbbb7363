"""`/api/v1/agents`: who works, who doesn't move, and what an operator does about it."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from fastapi import APIRouter
from fastapi.responses import Response

from orchestrator.api.bodies import plain
from orchestrator.api.once import Reply
from orchestrator.api.wiring import Reader, The
from orchestrator.bootstrap import Wiring
from orchestrator.queries.agents import AgentLine, agents
from orchestrator.queries.reading import glance

router: Final = APIRouter(prefix="/api/v1", tags=["agents"])


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


@router.get("/agents/stalled", operation_id="agents.stalled")
def list_stalled(wiring: The, caller: Reader) -> Response:
    """Alive is not moving: those without a heartbeat or without progress, with the evidence."""
    lines = [line for line in _agents(wiring, caller.tenant_id) if line.stalled]
    return Reply(200, {"data": [plain(line) for line in lines]}).response()
