"""Goose, which speaks the protocol by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from orchestrator.agents.acp import Said, Settings
from orchestrator.agents.launch import Confines, Enclosure
from orchestrator.core.assignment import Assignment
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import Broke

GAVE_UP: Final = "Ran into this error"
ANTHROPIC: Final = ("claude", "anthropic/")


@dataclass(frozen=True, slots=True)
class Goose:
    """`default_model` for steps that name none."""

    default_model: str
    name: str = "goose"
    program: str = "goose"

    def words(self, assignment: Assignment) -> Sequence[str]:
        del assignment
        return ("acp", "--with-builtin", "developer")

    def prepare(self, assignment: Assignment, enclosure: Enclosure) -> Mapping[str, str]:
        """It speaks Messages to Claude's models, and Chat Completions to all others."""
        model = assignment.model or self.default_model
        common = {
            "GOOSE_DISABLE_KEYRING": "1",
            "GOOSE_MODE": "approve" if assignment.approvals else "auto",
            "GOOSE_TELEMETRY_ENABLED": "false",
            "GOOSE_MODEL": model.removeprefix("anthropic/").removeprefix("openai/"),
        }
        if model.startswith(ANTHROPIC):
            return {
                **common,
                "GOOSE_PROVIDER": "anthropic",
                "ANTHROPIC_HOST": enclosure.base_url,
                "ANTHROPIC_API_KEY": enclosure.token,
            }
        return {
            **common,
            "GOOSE_PROVIDER": "openai",
            "OPENAI_HOST": enclosure.base_url,
            "OPENAI_BASE_PATH": "v1/chat/completions",
            "OPENAI_API_KEY": enclosure.token,
        }

    def settings(self, assignment: Assignment) -> Settings:
        return Settings(mode="approve" if assignment.approvals else "auto")

    @property
    def confines(self) -> Confines:
        """Settings let tools pass unasked; plugins bring hooks and servers, which nobody is asked about."""
        return Confines(
            lasting=(PurePosixPath(".local/share/goose/sessions"),),
            sealed=(PurePosixPath(".config/goose"), PurePosixPath(".agents")),
            hidden=(PurePosixPath(".agents/plugins"),),
        )

    def problem(self, said: Said) -> Broke | None:
        """It tells of an error in the words of an answer, and ends its turn well."""
        if GAVE_UP in said.text:
            return Broke("agent-model-failed", "Goose gave up on its model.", ErrorClass.OVERLOADED)
        return None
