"""Makes the agent of a claim: our own engine, or the program that its type names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from orchestrator.agents.programs import Program, find
from orchestrator.agents.readiness import Readiness, Surroundings, readiness
from orchestrator.config import Settings
from orchestrator.core.assignment import Agent, Assignment, ModelAccess, Stop
from orchestrator.core.errors import Unavailable
from orchestrator.engine.ports import Journal, Model, Workspace as EngineWorkspace

if TYPE_CHECKING:
    from orchestrator.agents.external import Adapter
    from orchestrator.agents.ports import Sessions, Transcripts
    from orchestrator.bootstrap.wiring import Wiring
    from orchestrator.core.mcp_server import McpServer
    from orchestrator.engine.tools.policy import McpTools
    from orchestrator.engine.web import HostPolicy
    from orchestrator.workspaces.workspace import Workspace


class Desk(Protocol):
    """What one claim gives its agent, each when it is first needed: a journal, a workspace, models."""

    def open_journal(self, assignment: Assignment) -> Journal: ...

    def open_sessions(self, assignment: Assignment) -> Sessions: ...

    def open_transcripts(self, assignment: Assignment) -> Transcripts: ...

    def open_workspace(self, assignment: Assignment) -> AbstractContextManager[Workspace]: ...

    def open_access(self, assignment: Assignment) -> ModelAccess:
        """Raises Unavailable `gateway-missing`, or LeaseLost."""


AgentMaker = Callable[["Wiring", Desk], Agent]


def engine_agent(wiring: Wiring, desk: Desk) -> Agent:
    """Our own engine, on a live or on a recorded model."""
    from orchestrator.agents.engine import EngineAgent
    from orchestrator.agents.models import Models
    from orchestrator.engine.prices import with_entered

    def live(assignment: Assignment) -> Model:
        return wiring.live_model(desk.open_access(assignment), assignment)

    models = Models(Path(__file__).parent.parent / "data" / "recordings", live)
    return EngineAgent(
        models.choose,
        desk.open_journal,
        desk.open_workspace,
        wiring.settings.command_timeout,
        wiring.tool_policy,
        _open_servers,
        with_entered(wiring.settings.prices),
    )


def _open_servers(
    servers: Mapping[str, McpServer], workspace: EngineWorkspace, hosts: HostPolicy, stop: Stop
) -> AbstractContextManager[McpTools]:
    """MCP's library takes a second to load: claims that start no server go without."""
    from orchestrator.engine.tools.mcp import opened

    return opened(servers, workspace, hosts, stop)


def agents_here(settings: Settings, providers: frozenset[str]) -> tuple[Readiness, ...]:
    """Which kinds of agent this machine can run with these providers' models, and what is missing for the
    others."""
    return readiness(Surroundings(providers, settings.agentapi_url, settings.agents_dir))


def external_agent(wiring: Wiring, desk: Desk, adapter: Adapter) -> Agent:
    """An agent that is a program of its own."""
    from orchestrator.agents.external import ExternalAgent

    return ExternalAgent(
        adapter,
        desk.open_access,
        desk.open_sessions,
        desk.open_workspace,
        lambda: wiring.workspaces.homes,
        lambda assignment: wiring.models_for(assignment).primary,
    )


def adapter(settings: Settings, name: str, open_transcripts: Callable[[Assignment], Transcripts]) -> Adapter:
    """How the program of that kind of agent is driven. Raises Unavailable `agent-program-missing`."""
    from orchestrator.agents.acp import AcpAdapter
    from orchestrator.agents.aider import Aider
    from orchestrator.agents.profiles.codex import Codex
    from orchestrator.agents.profiles.goose import Goose

    installed = partial(find, root=settings.agents_dir)
    match name:
        case "codex":
            return AcpAdapter(Codex(settings.openai_model), installed)
        case "goose":
            return AcpAdapter(Goose(settings.model), installed)
        case "aider":
            return Aider(_installed(settings, name), settings.model)
    program = _installed(settings, name)
    from orchestrator.agents.claude_code import ClaudeCode  # its SDK may be missing

    return ClaudeCode(program, settings.model, open_transcripts)


def _program(name: str, wiring: Wiring, desk: Desk) -> Agent:
    return external_agent(wiring, desk, adapter(wiring.settings, name, desk.open_transcripts))


def _agentapi(wiring: Wiring, desk: Desk) -> Agent:
    from orchestrator.agents.agentapi import AgentApi

    settings = wiring.settings
    key = settings.agentapi_key.get_secret_value() if settings.agentapi_key else None
    url = settings.agentapi_url or "http://localhost:3284"
    return AgentApi(url, key, desk.open_sessions, desk.open_workspace)


def _installed(settings: Settings, name: str) -> Program:
    """Raises Unavailable `agent-program-missing`."""
    found = find(name, settings.agents_dir)
    if found is None:
        raise Unavailable(
            "agent-program-missing",
            f"The program of {name} is not installed on this worker.",
            f"Install it: orchestrator agent install {name}",
        )
    return found


EXTERNAL: Final[Mapping[str, AgentMaker]] = {
    **{name: partial(_program, name) for name in ("claude-code", "codex", "goose", "aider")},
    "agentapi": _agentapi,
}
"""By agent type."""


def agent_by_type(wiring: Wiring, desk: Desk) -> Agent:
    """Our own engine, or the program that the assignment's type names."""
    from orchestrator.agents.by_type import AgentByType

    makers = {name: partial(make, wiring, desk) for name, make in EXTERNAL.items()}
    return AgentByType(makers, lambda: engine_agent(wiring, desk))
