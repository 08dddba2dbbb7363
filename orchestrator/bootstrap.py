"""Wiring: reads the settings once and hands the shells what they work with.

Nothing here connects before it is used, and each part is imported only by the process that uses it: a
producer that calls `.delay()` loads neither a model's SDK nor a web framework.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from orchestrator.agents.programs import Program, find
from orchestrator.agents.readiness import Readiness, Surroundings, readiness
from orchestrator.agents.selection import misfit
from orchestrator.agents.types import AGENT_TYPES
from orchestrator.config import DEFAULT_TENANT, Settings
from orchestrator.core.assignment import Agent, Assignment, ModelAccess, Stop
from orchestrator.core.breaker import CircuitBreaker
from orchestrator.core.errors import Unavailable
from orchestrator.core.model_choice import ModelSelection, select
from orchestrator.core.redaction import Redactor
from orchestrator.db import connect, gateways
from orchestrator.db.connect import Engine
from orchestrator.engine.ports import Journal, Model, Workspace as EngineWorkspace

if TYPE_CHECKING:
    from celery import Celery

    from orchestrator.agents.external import Adapter
    from orchestrator.agents.ports import Sessions, Transcripts
    from orchestrator.commands.submit import Policy
    from orchestrator.core.mcp_server import McpServer
    from orchestrator.engine.tools.policy import McpTools, ToolPolicy
    from orchestrator.engine.web import HostPolicy
    from orchestrator.queues.topology import Topology
    from orchestrator.workspaces.artifacts import Artifacts
    from orchestrator.workspaces.checkouts import Workspaces
    from orchestrator.workspaces.credentials import Credentials
    from orchestrator.workspaces.workspace import Workspace

_LOCAL_REDIS = "redis://127.0.0.1:6379/0"
_PROVIDERS_SECONDS: Final = 5.0


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

    models = Models(Path(__file__).parent / "data" / "recordings", live)
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


@dataclass
class _Providers:
    """Whose models can be reached: with a key of this process's own, as the gateway has it, or through a
    gateway that lives. That is looked up anew every few seconds, and when nobody can say, it stays as it was.
    """

    wiring: Wiring
    _seen: frozenset[str] = frozenset()
    _until: float = 0.0

    def now(self) -> frozenset[str]:
        settings = self.wiring.settings
        keys = {"anthropic": settings.anthropic_api_key, "openai": settings.openai_api_key}
        own = frozenset(name for name, key in keys.items() if key is not None)
        if settings.gateway_url is None or not self.wiring.has_database:
            return own
        if time.monotonic() >= self._until:
            with contextlib.suppress(connect.SQLAlchemyError), self.wiring.engine.connect() as connection:
                self._seen = gateways.providers(connection, self.wiring.tenant_id)
            self._until = time.monotonic() + _PROVIDERS_SECONDS
        return own | self._seen


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


@dataclass(frozen=True)
class Wiring:
    """One process's parts. `make_agent` and with it `ready` are all that a test or a benchmark replaces."""

    settings: Settings
    database_url: str | None
    application: str
    publish_retry: bool = False
    waits: bool = True
    """Whether somebody calls `.get()` here; else nothing is subscribed to for the results of what is sent."""
    make_agent: AgentMaker = agent_by_type
    ready: Callable[[Settings, frozenset[str]], tuple[Readiness, ...]] = agents_here
    tenant_id: str = DEFAULT_TENANT
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    @property
    def has_database(self) -> bool:
        return self.database_url is not None

    @cached_property
    def engine(self) -> Engine:
        """Postgres. Raises Unavailable if no database is configured."""
        if self.database_url is None:
            raise Unavailable(
                "database-not-configured",
                "No database is configured.",
                "Set ORCHESTRATOR_DATABASE_URL, or start everything here: orchestrator up",
            )
        return connect.create(self.database_url, application=self.application)

    @cached_property
    def broker_url(self) -> str:
        url = self.settings.broker_url
        return url.get_secret_value() if url else _LOCAL_REDIS

    @cached_property
    def app(self) -> Celery:
        from orchestrator.queues.app import create_app

        result = self.settings.result_url
        return create_app(
            self.broker_url,
            result.get_secret_value() if result else None,
            key_prefix=self.settings.key_prefix,
            publish_retry=self.publish_retry,
            waits=self.waits,
        )

    @cached_property
    def topology(self) -> Topology:
        from orchestrator.queues.topology import topology

        return topology(self.broker_url)

    @cached_property
    def secret(self) -> bytes:
        """The key of every message's HMAC. Raises Unavailable if there is none."""
        found = self.settings.message_secret
        if found is None:
            raise Unavailable(
                "message-secret-missing",
                "No message secret is configured, so messages can be neither signed nor checked.",
                "Set ORCHESTRATOR_MESSAGE_SECRET to the same value for all processes.",
            )
        return found.get_secret_value().encode()

    @cached_property
    def policy(self) -> Policy:
        from orchestrator.commands.submit import Policy
        from orchestrator.engine.prices import price, with_entered

        prices = with_entered(self.settings.prices)

        return Policy(
            max_attempts=self.settings.max_attempts,
            allow_local_repositories=self.settings.allow_local_repositories,
            agent_types=frozenset(AGENT_TYPES),
            allow_private_addresses=self.settings.allow_private_addresses,
            misfit=misfit,
            is_priced=lambda model: price(model, prices) is not None,
        )

    @property
    def agents(self) -> Mapping[str, Readiness]:
        """Of this machine, by name of the kind, with the models that can be reached now."""
        return self.agents_with(self._providers.now())

    def agents_with(self, providers: frozenset[str]) -> Mapping[str, Readiness]:
        """Of this machine, by name of the kind, if these providers' models could be reached."""
        if providers not in self._ready:
            self._ready[providers] = {one.kind.name: one for one in self.ready(self.settings, providers)}
        return self._ready[providers]

    @cached_property
    def _ready(self) -> dict[frozenset[str], Mapping[str, Readiness]]:
        return {}

    @cached_property
    def _providers(self) -> _Providers:
        return _Providers(self)

    @cached_property
    def unbroken_agents(self) -> dict[str, float]:
        """Types of agent whose breaker need not be looked at until then, by the monotonic clock."""
        return {}

    @cached_property
    def circuit_breaker(self) -> CircuitBreaker:
        """The rule that all share."""
        settings = self.settings
        return CircuitBreaker(
            settings.breaker_failures, settings.breaker_recovery, settings.breaker_successes
        )

    @cached_property
    def redactor(self) -> Redactor:
        settings = self.settings
        secrets = (
            settings.database_url,
            settings.broker_url,
            settings.result_url,
            settings.message_secret,
            settings.anthropic_api_key,
            settings.openai_api_key,
            settings.api_key,
            settings.agentapi_key,
        )
        from orchestrator.workspaces.credentials import passwords

        known = [secret.get_secret_value() for secret in secrets if secret is not None]
        headers = [item for server in settings.mcp_servers.values() for item in server.headers.items()]
        words = [
            word
            for name, value in headers
            if name.lower() not in ("accept", "content-type", "user-agent")
            for word in (value, value.split(" ")[-1])  # "Bearer …" and the token alone
        ]
        return Redactor([*known, *words, *passwords(self._named_credentials)])

    @property
    def _named_credentials(self) -> dict[str, str]:
        return {name: secret.get_secret_value() for name, secret in self.settings.credentials.items()}

    @cached_property
    def credentials(self) -> Credentials:
        """What logs this machine in where repositories are private."""
        from orchestrator.workspaces.credentials import Credentials

        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        return Credentials(self._named_credentials, self.settings.data_dir)

    @cached_property
    def artifacts(self) -> Artifacts:
        """The artifact store. Raises ArtifactStoreUnavailable."""
        from orchestrator.workspaces.artifacts import Artifacts

        return Artifacts(self.settings.artifact_url or str(self.settings.data_dir / "artifacts"))

    @cached_property
    def tool_policy(self) -> ToolPolicy:
        """What the engine's steps may use here besides their files and commands."""
        from orchestrator.engine.tools.policy import ToolPolicy
        from orchestrator.engine.web import HostPolicy

        settings = self.settings
        hosts = HostPolicy(tuple(settings.fetch_hosts), settings.fetch_private_addresses)
        subtasks = settings.max_subtasks > 0 and settings.max_subtask_depth > 0
        return ToolPolicy(hosts, settings.mcp_servers, subtasks)

    @cached_property
    def workspaces(self) -> Workspaces:
        """Mirrors, checkouts and the sandbox of this machine."""
        from orchestrator.workspaces.bundles import Bundles
        from orchestrator.workspaces.checkouts import Workspaces
        from orchestrator.workspaces.mirrors import Mirrors
        from orchestrator.workspaces.remotes import Reach
        from orchestrator.workspaces.sandbox import Bounds, Sandbox

        settings, root = self.settings, self.settings.data_dir
        root.mkdir(parents=True, exist_ok=True)
        reach = Reach(settings.allow_local_repositories, settings.allow_private_addresses, dict(os.environ))
        mirrors = Mirrors(root / "mirrors", reach)
        sandbox = Sandbox(
            root / "sandbox",
            path=os.environ.get("PATH", os.defpath),
            read_only=settings.sandbox_read_only,
            strict=settings.strict_sandbox,
            bounds=Bounds(memory_bytes=settings.command_memory_bytes),
        )
        return Workspaces(root, mirrors, sandbox, Bundles(mirrors, self.artifacts))

    @property
    def known_models(self) -> frozenset[str]:
        """All that this installation's settings name."""
        settings = self.settings
        specialized = (*settings.task_models.values(), *settings.model_rules.values())
        return frozenset((settings.model, settings.openai_model, *settings.fallback_models, *specialized))

    def models_for(self, assignment: Assignment) -> ModelSelection:
        """Which models a run may choose from, and why."""
        settings = self.settings
        return select(
            assignment.model,
            settings.openai_model if assignment.agent_type == "codex" else settings.model,
            settings.fallback_models,
            settings.task_models,
            settings.model_rules,
            (assignment.task_description, *assignment.context.get("requirements", ())),
        )

    def live_model(self, access: ModelAccess, assignment: Assignment) -> Model:
        """The models of a run, as its claim reaches them."""
        from orchestrator.engine.providers.live import Deadlines
        from orchestrator.engine.providers.making import Making, make_selected
        from orchestrator.engine.providers.tracing import Tracing

        settings = self.settings
        making = Making(
            settings.model_options,
            Deadlines(
                read=settings.model_silence, stall=settings.model_stall, overall=settings.model_deadline
            ),
            Tracing(
                tuple(settings.task_id_headers),
                tuple(settings.timestamp_headers),
                in_system=settings.trace_in_system,
            ),
        )
        return make_selected(self.models_for(assignment), access, making)


def redact_logs(redactor: Redactor) -> None:
    """Before anything is logged: one line an event, on stderr, secrets taken out. Safe to call again."""
    import structlog

    def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {
            key: redactor.text(value) if isinstance(value, str) else value for key, value in event.items()
        }

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def load(application: str | None = None, settings: Settings | None = None) -> Wiring:
    """The wiring of this process, from its environment."""
    found = settings or Settings()
    url = found.database_url
    return Wiring(
        settings=found,
        database_url=url.get_secret_value() if url else None,
        application=application or f"orchestrator:{Path(sys.argv[0]).name}"[:60],
        waits=found.waits_for_results,
    )
