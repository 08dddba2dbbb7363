"""One process's parts, each made when it is first used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.agents.readiness import Readiness
from orchestrator.agents.selection import misfit
from orchestrator.agents.types import AGENT_TYPES
from orchestrator.bootstrap.agents import AgentMaker, agent_by_type, agents_here
from orchestrator.bootstrap.providers import Providers
from orchestrator.config import DEFAULT_TENANT, Settings
from orchestrator.core.assignment import Assignment, ModelAccess
from orchestrator.core.breaker import CircuitBreaker
from orchestrator.core.errors import Unavailable
from orchestrator.core.model_choice import ModelSelection, TaskType, select
from orchestrator.core.redaction import Redactor
from orchestrator.db import connect
from orchestrator.db.connect import Engine
from orchestrator.engine.ports import Model

if TYPE_CHECKING:
    from celery import Celery

    from orchestrator.commands.submit import Policy
    from orchestrator.engine.tools.policy import ToolPolicy
    from orchestrator.queues.topology import Topology
    from orchestrator.workspaces.artifacts import Artifacts
    from orchestrator.workspaces.checkouts import Workspaces
    from orchestrator.workspaces.credentials import Credentials

_LOCAL_REDIS = "redis://127.0.0.1:6379/0"


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

        return Policy(
            max_attempts=self.settings.max_attempts,
            allow_local_repositories=self.settings.allow_local_repositories,
            agent_types=frozenset(AGENT_TYPES),
            allow_private_addresses=self.settings.allow_private_addresses,
            misfit=misfit,
            unpriced=self._unpriced,
        )

    def _unpriced(self, agent: str | None, model: str | None, words: Sequence[str]) -> list[str]:
        """Agents that are programs of their own ask the first of their models alone."""
        from orchestrator.engine.prices import price, with_entered

        if agent is not None and not AGENT_TYPES[agent].providers:  # it asks the gateway for nothing
            return []
        models, prices = self._selection(agent, model, words).models, with_entered(self.settings.prices)
        asked = models if agent in {None, "engine"} else models[:1]
        return [name for name in asked if price(name, prices) is None]

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
    def _providers(self) -> Providers:
        return Providers(self)

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
        from orchestrator.workspaces.room import RoomBounds
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
            bounds=Bounds(
                memory_bytes=settings.command_memory_bytes,
                room=RoomBounds(
                    settings.workspace_max_bytes, settings.workspace_max_files, settings.disk_free_bytes
                ),
            ),
        )
        return Workspaces(root, mirrors, sandbox, Bundles(mirrors, self.artifacts))

    def models_for(self, assignment: Assignment) -> ModelSelection:
        """Which models a run may choose from, and why."""
        words = (assignment.task_description, *assignment.context.get("requirements", ()))
        return self._selection(assignment.agent_type, assignment.model, words)

    def _selection(self, agent: str | None, model: str | None, words: Sequence[str]) -> ModelSelection:
        settings = self.settings
        return select(
            model,
            settings.openai_model if agent == "codex" else settings.model,
            settings.fallback_models,
            settings.task_models,
            settings.model_rules,
            words,
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
        reviews = assignment.spec.get("task_type") in (TaskType.REVIEW, TaskType.CODE_REVIEW)
        return make_selected(self.models_for(assignment), access, making, reviews=reviews)


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
