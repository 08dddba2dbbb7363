"""Declares the settings: every knob, its default, its unit. Read once, in `bootstrap`.

`ORCHESTRATOR_<NAME>` sets a field. The conventional names (`DATABASE_URL`, `CELERY_BROKER_URL`, `REDIS_URL`,
`ANTHROPIC_API_KEY`, `ANTHROPIC_BASE_URL`) are honoured too, after ours.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import unquote, urlsplit

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from orchestrator.core.data_dir import usual
from orchestrator.core.mcp_server import NAME as MCP_NAME, McpServer
from orchestrator.core.model_choice import ModelOptions, ModelPrice, TaskType

DEFAULT_TENANT: Final = "default"
"""The one tenant of an installation that has no others."""


def _servers(value: object) -> object:
    """Compose passes on an empty text where nothing is set."""
    found = (json.loads(value) if value.strip() else {}) if isinstance(value, str) else value
    for name in found if isinstance(found, dict) else ():
        if not MCP_NAME.fullmatch(name):
            raise ValueError("the name of an MCP server must be letters, digits, - and single _, at most 31")
    return found


def _hosts(value: object) -> object:
    """JSON, or names with commas between."""
    if not isinstance(value, str) or value.lstrip().startswith("["):
        return json.loads(value) if isinstance(value, str) else value
    return [name for part in value.split(",") if (name := part.strip())]


def _named(name: str, *others: str) -> AliasChoices:
    return AliasChoices(f"ORCHESTRATOR_{name}", *others)


class Settings(BaseSettings):
    """Everything that may differ between two installations."""

    model_config = SettingsConfigDict(
        env_prefix="ORCHESTRATOR_",
        extra="ignore",
        populate_by_name=True,
        frozen=True,
        hide_input_in_errors=True,
    )

    data_dir: Path = Field(default_factory=lambda: usual(os.environ), validate_default=True)
    """Mirrors, workspaces, artifacts, beat's schedule, embedded servers. By default below `XDG_DATA_HOME`, if
    that is set."""

    database_url: SecretStr | None = Field(
        default=None, validation_alias=_named("DATABASE_URL", "DATABASE_URL")
    )
    """SQLAlchemy URL of Postgres, `postgresql+psycopg2://…`; `postgresql://` is understood."""
    broker_url: SecretStr | None = Field(
        default=None, validation_alias=_named("BROKER_URL", "CELERY_BROKER_URL", "REDIS_URL")
    )
    """`redis://…` or `amqp://…`."""
    result_url: SecretStr | None = Field(
        default=None, validation_alias=_named("RESULT_URL", "CELERY_RESULT_BACKEND")
    )
    """Redis for Celery's results; the broker itself when that is Redis."""
    message_secret: SecretStr | None = None
    """Key of the HMAC that every message of ours carries; shared by all processes of one installation."""
    waits_for_results: bool = True
    """Whether this process calls `.get()` on what it sends; our own servers don't."""
    key_prefix: str = ""
    """Namespace for every key and queue in a Redis shared with others."""

    lease: timedelta = timedelta(seconds=60)
    """A claim's right to run; heartbeats come at a quarter of it."""
    sweep_every: timedelta = timedelta(seconds=10)
    """How often leases are expired and lost messages sent again."""
    publish_grace: timedelta = timedelta(seconds=4)
    """How long a ready step may stay unclaimed before the sweep publishes it; doubles up to four times."""
    slice: timedelta = timedelta(minutes=15)
    """The longest that our own engine keeps a slot before it gives it back at a turn boundary."""
    cancel_grace: timedelta = timedelta(seconds=20)
    """After this long a cancelled step ends without its agent."""
    max_attempts: int = 5
    """How often one step may be tried, lost workers included; an error's own kind may allow fewer."""
    max_concurrent_workflows: int = Field(
        default=0, validation_alias=_named("MAX_CONCURRENT_WORKFLOWS", "MAX_CONCURRENT_WORKFLOWS")
    )
    """How many workflows may run at once, parked ones not counted; 0 means no limit."""
    max_subtask_depth: int = 3
    """How many levels of subtasks a task may have below it."""
    max_subtasks: int = 20
    """How many subtasks one task may start in one run."""
    max_tree_tasks: int = 100
    """How many tasks there may be below one that somebody asked for, all levels together."""
    ageing: timedelta = timedelta(minutes=5)
    """After this long unclaimed a ready step is published one priority higher."""

    api_host: str = "127.0.0.1"
    api_port: int = 8000
    """Where the API listens."""
    api_url: str = "http://127.0.0.1:8000"
    """Where clients find it."""
    api_key: SecretStr | None = None
    """What clients send; the API makes it valid when it starts, and keeps its hash alone."""
    max_body_bytes: int = 1_048_576
    """Longest body that the API reads."""

    anthropic_api_key: SecretStr | None = Field(
        default=None, validation_alias=_named("ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY")
    )
    """The gateway's alone, as all that follow; with none of them, recorded models only."""
    anthropic_api_key_command: str | None = None
    """In place of a key: what a shell runs in the gateway to print one, when it is first needed and whenever
    the provider refuses the last one (`vault read -field=key …`); it has 30 seconds."""
    anthropic_base_url: str | None = Field(
        default=None, validation_alias=_named("ANTHROPIC_BASE_URL", "ANTHROPIC_BASE_URL")
    )
    """Another server that speaks the Messages API, with or without `/v1`."""
    openai_api_key: SecretStr | None = Field(
        default=None, validation_alias=_named("OPENAI_API_KEY", "OPENAI_API_KEY")
    )
    openai_api_key_command: str | None = None
    openai_base_url: str | None = Field(
        default=None, validation_alias=_named("OPENAI_BASE_URL", "OPENAI_BASE_URL")
    )
    """Another server that speaks the Responses or the Chat Completions API, with or without `/v1`."""
    gateway_url: str | None = None
    """Where workers find the gateway, through which all live models are called."""
    gateway_host: str = "127.0.0.1"
    gateway_port: int = 8100
    """Where the gateway listens."""
    gateway_traces: bool = False
    """Whether providers are told the task's id and the time, under the first names of `task_id_headers` and
    `timestamp_headers`; else nothing of the kind leaves the installation."""
    gateway_provider_tools: bool = False
    """Whether agents may have a provider do more than answer: search the web, run code, call MCP servers and
    addresses that they name. It would be a way out of the sandbox, and isn't among the tokens counted."""
    gateway_max_body_bytes: int = 33_554_432
    """Longest request to a model that the gateway reads."""
    gateway_first_byte: timedelta = timedelta(minutes=10)
    """How long a provider may take until its reply begins."""
    gateway_stall: timedelta = timedelta(minutes=3)
    """The longest silence within a reply."""
    gateway_call: timedelta = timedelta(minutes=30)
    """The longest reply, however lively."""
    run_models: list[str] = []
    """Models, or patterns such as `claude-haiku-*`, that every run may use besides its own."""
    breaker_failures: int = 5
    """After so many failures in a row a provider, or a type of agent, is left alone."""
    breaker_recovery: timedelta = timedelta(seconds=30)
    """For so long; then one try at a time is let through."""
    breaker_successes: int = 2
    """So many of these must succeed."""
    model: str = "claude-sonnet-5-5"
    """For steps that name none."""
    openai_model: str = "gpt-5.2-codex"
    """For steps that name none, and whose agent works with OpenAI's models alone (codex)."""
    max_turns: int = 100
    """Of one step, as are the limits below; a task's budget binds all of its steps together."""
    max_mistakes: int = 3
    """Turns in a row without a call that could be run."""
    max_tokens: int = 2_000_000
    max_cost_usd: Decimal = Decimal("5.00")
    max_wall_time: timedelta = timedelta(hours=2)
    """Time at work; waiting for a person doesn't count."""

    fallback_models: Annotated[list[str], NoDecode] = []
    """Asked in this order when a model fails."""
    task_models: Annotated[dict[TaskType, str], NoDecode] = {}
    """A model of its own for a kind of work, as JSON: `{"planning": "…", "testing": "…"}`; kinds are
    planning, implementation, testing, review, code_review. Within a step they take turns; a step whose spec
    says `"task_type": "code_review"`, or `review`, is all code_review."""
    model_rules: Annotated[dict[str, str], NoDecode] = {}
    """A word of a task's requirements to the model for it, as JSON: `{"creative": "…"}`; the first counts."""
    model_options: Annotated[dict[str, ModelOptions], NoDecode] = {}
    """What must be known of a model, as JSON: `{"qwen3": {"api": "chat", "native_tools": false}}`; `api` is
    messages, responses or chat; further: max_output_tokens, context_tokens, store."""
    prices: Annotated[dict[str, ModelPrice], NoDecode] = {}
    """USD per million tokens of models that aren't known here, as JSON:
    `{"qwen3": {"input": "0.2", "output": "0.6"}}`, and cache_read, cache_write and
    cache_write_hour where they differ."""
    model_silence: timedelta = timedelta(seconds=120)
    """How long a model's server may send nothing at all."""
    model_stall: timedelta = timedelta(minutes=3)
    """How long a reply may stand still, whatever else is sent to keep the connection alive."""
    model_deadline: timedelta = timedelta(minutes=10)
    """How long one reply may take."""
    task_id_headers: Annotated[list[str], NoDecode] = ["X-Task-Id"]
    """Headers by which each call of a model names its task; `X-KILOCODE-TASK-ID` is what others know."""
    timestamp_headers: Annotated[list[str], NoDecode] = ["X-Timestamp-Iso"]
    """Headers by which it says when it was sent; `X-KILOCODE-TIMESTAMP-ISO` is what others know."""
    trace_in_system: bool = False
    """For transports that pass no headers on: the task's id goes into the system prompt instead."""
    agents_dir: Path | None = None
    """Where the agents' programs are; None: `~/.cache/orchestrator/agents`."""
    agentapi_url: str | None = Field(default=None, validation_alias=_named("AGENTAPI_URL", "AGENTAPI_URL"))
    """A coder/agentapi server, which listens on 3284 by itself; makes the agent type `agentapi` usable."""
    agentapi_key: SecretStr | None = Field(
        default=None, validation_alias=_named("AGENTAPI_KEY", "AGENTAPI_KEY")
    )
    """Sent as a bearer token, for a proxy before it: the server itself knows no keys."""
    worker_capabilities: Annotated[frozenset[str], NoDecode] = frozenset()
    """What this machine offers to tasks that require it, besides its agents: `gpu,node`."""

    artifact_url: str | None = None
    """None: `<data_dir>/artifacts`; else `file:///…` or `s3://bucket/prefix`, with the usual AWS names."""
    strict_sandbox: bool = False
    """Refuse to run commands when bubblewrap is not available."""
    sandbox_read_only: list[Path] = []
    """Further paths that commands may read, besides /usr and the interpreter's."""
    command_timeout: timedelta = timedelta(minutes=10)
    """How long one command of an agent may run."""
    command_memory_bytes: int = 4 * 1024**3
    workspace_max_bytes: int = Field(default=20 * 1024**3, gt=0)
    """What the files of a step may take, with its agent's HOME; beyond it the step is ended."""
    workspace_max_files: int = Field(default=2_000_000, gt=0)
    """How many they may be."""
    disk_free_bytes: int = Field(default=512 * 1024**2, ge=0)
    """What stays free on a worker's disk: below it no step starts, and those end that have written more than
    is left. On a small disk a twentieth of it, where that is less."""
    allow_local_repositories: bool = True
    """Whether a task may name a path of the worker's machine."""
    allow_private_addresses: bool = False
    """Whether repository hosts may resolve to loopback, private or link-local addresses."""
    fetch_hosts: Annotated[list[str], NoDecode, BeforeValidator(_hosts)] = []
    """Hosts that the engine's fetch_url and MCP servers behind HTTP may reach: `docs.example.org`,
    `*.example.org`, `example.org:8443`, `*`. None: no fetch_url."""
    fetch_private_addresses: bool = False
    """Whether these hosts may resolve to loopback, private or link-local addresses."""
    mcp_servers: Annotated[dict[str, McpServer], NoDecode, BeforeValidator(_servers)] = {}
    """MCP servers whose tools every step of the engine may use, as JSON: `{"lint": {"command": ["lint-mcp"]},
    "docs": {"url": "https://mcp.example.org/mcp", "headers": {…}, "allow": ["search"], "risk": "read"}}`.
    Those with a command run in the sandbox."""

    credentials: Annotated[dict[str, SecretStr], NoDecode] = {}
    """Of private repositories, as JSON: `{"forge": "https://user:token@forge.example/team/"}`. A task names
    one (`repository.credential`), and it is used at that address and below it alone."""

    @field_validator("credentials", "task_models", "model_rules", "model_options", "prices", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        """Compose passes on an empty text where nothing is set."""
        return (json.loads(value) if value.strip() else {}) if isinstance(value, str) else value

    @field_validator("fallback_models", "task_id_headers", "timestamp_headers", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """JSON, or names with commas between."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return [name for part in value.split(",") if (name := part.strip())]

    @field_validator("credentials")
    @classmethod
    def _log_in_somewhere(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, secret in value.items():
            if not _logs_in(secret.get_secret_value()):
                raise ValueError(f"{name} is not https://user:password@host/…, each part percent-encoded")
        return value

    @field_validator("worker_capabilities", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Words between commas."""
        return (
            [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value
        )

    @field_validator("data_dir", "agents_dir")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().resolve()


def _logs_in(url: str) -> bool:
    """What the parser says of a bad one quotes it, so it is not passed on."""
    try:
        found = urlsplit(url)
        lines = len(unquote(found.netloc).splitlines()) + len(str(found.port).splitlines())
    except ValueError:
        return False
    return found.scheme == "https" and bool(found.password) and lines == 2  # noqa: PLR2004 - one each
