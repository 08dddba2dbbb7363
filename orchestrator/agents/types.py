"""Which kinds of agent there are, and which of them this installation can use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class AgentType:
    """`model_kind` is what a door shows; `missing` says, for people, what to do when it can't be used."""

    name: str
    label: str
    model_kind: Literal["live", "recorded"]
    needs_key: bool
    missing: str = ""


AGENT_TYPES: Final[Mapping[str, AgentType]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            AgentType(
                "engine",
                "Built-in engine",
                "live",
                needs_key=True,
                missing="Set ANTHROPIC_API_KEY or OPENAI_API_KEY and: orchestrator restart gateway",
            ),
            AgentType("replay", "REPLAY", "recorded", needs_key=False),
        )
    }
)


LATER: Final = frozenset({"agentapi", "aider", "claude-code", "codex", "goose"})
"""Names of agents that a later version drives."""


def usable(*, has_key: bool) -> tuple[str, ...]:
    """Names of the agent types that can work here, the preferred one first."""
    return tuple(kind.name for kind in AGENT_TYPES.values() if has_key or not kind.needs_key)
