"""Codex, by way of codex-acp, which starts Codex' own app server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from orchestrator.agents import home_files
from orchestrator.agents.acp import Said, Settings
from orchestrator.agents.launch import Confines, Enclosure
from orchestrator.core.assignment import Assignment
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import Broke

KEY: Final = "ORCHESTRATOR_RUN_TOKEN"
PROVIDER: Final = "orchestrator"
ESCALATE: Final = (
    "Commands need a person's leave here, and fail without it. Call exec_command with sandbox_permissions "
    'set to "require_escalated" each time, and with a justification.'
)
"""Its own sandbox can't be set up in ours, where nothing may make namespaces: unasked, nothing runs."""

LASTING: Final = ("sessions", "session_index.jsonl", "*.sqlite", "*.sqlite-*", "installation_id")


@dataclass(frozen=True, slots=True)
class Codex:
    """`default_model` for steps that name none."""

    default_model: str
    name: str = "codex"
    program: str = "codex"

    def words(self, assignment: Assignment) -> Sequence[str]:
        del assignment
        return ()

    def prepare(self, assignment: Assignment, enclosure: Enclosure) -> Mapping[str, str]:
        """The gateway alone retries nothing, so that Codex may: what it gives up on is ours to try again."""
        model, asks = assignment.model or self.default_model, bool(assignment.approvals)
        config = _config(model, enclosure.base_url, asks=asks)
        home_files.write(enclosure.home_on_disk, PurePosixPath(".codex/config.toml"), [config])
        return {
            "CODEX_HOME": f"{enclosure.home}/.codex",
            KEY: enclosure.token,
            "MODEL_PROVIDER": PROVIDER,
            "NO_BROWSER": "1",
            "INITIAL_AGENT_MODE": self._mode(assignment),
        }

    def settings(self, assignment: Assignment) -> Settings:
        return Settings(mode=self._mode(assignment), title=assignment.step_key)

    def _mode(self, assignment: Assignment) -> str:
        """Ours is the sandbox; with its own it asks before a command leaves it."""
        return "read-only" if assignment.approvals else "agent-full-access"

    @property
    def confines(self) -> Confines:
        """Rules let commands pass unasked, also a repository's, which codex-acp declares to be trusted."""
        return Confines(
            lasting=tuple(PurePosixPath(".codex", name) for name in LASTING),
            sealed=(PurePosixPath(".codex/rules"),),
            hidden=(PurePosixPath(".codex"),),
        )

    def problem(self, said: Said) -> Broke | None:
        """It ends its turn as if all were well when its requests have failed for good."""
        for meta in said.meta:
            status = (meta.get("codex") or {}).get("threadStatus") if isinstance(meta, Mapping) else None
            if isinstance(status, Mapping) and status.get("type") == "systemError":
                text = "Codex gave up on its model."
                return Broke("agent-model-failed", text, ErrorClass.OVERLOADED)
        return None


def _config(model: str, base_url: str, *, asks: bool) -> str:
    """Strings of JSON are strings of TOML."""
    lines = (
        f"model = {json.dumps(model)}",
        f"model_provider = {json.dumps(PROVIDER)}",
        "check_for_update_on_startup = false",
        'web_search = "disabled"',  # the gateway lets no provider reach out for it
        *([f"developer_instructions = {json.dumps(ESCALATE)}"] if asks else []),
        f"approval_policy = {json.dumps('on-request' if asks else 'never')}",
        f"sandbox_mode = {json.dumps('read-only' if asks else 'danger-full-access')}",
        "[features]",
        "plugins = false",
        "apps = false",
        "hooks = false",
        *(["multi_agent = false", "multi_agent_v2 = false"] if asks else []),  # they would be asked of nobody
        "default_mode_request_user_input = true",
        "[analytics]",
        "enabled = false",
        f"[model_providers.{PROVIDER}]",
        'name = "orchestrator"',
        f"base_url = {json.dumps(f'{base_url}/v1')}",
        'wire_api = "responses"',
        f"env_key = {json.dumps(KEY)}",
        "request_max_retries = 2",
        "stream_max_retries = 2",
        "stream_idle_timeout_ms = 300000",
    )
    return "\n".join(lines) + "\n"
