"""The real programs of agents, for tests that run them. `tests.conftest` makes a skip loud, or a failure."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from orchestrator.agents import programs
from orchestrator.agents.programs import Program

WHERE = "scripts/install-agents"


def installed(name: str) -> Program:
    """Skips the test if it isn't."""
    found = programs.find(name)
    if found is None:
        pytest.skip(_reason(name))
    return found


def with_claude() -> None:
    """Skips the module if the SDK, which brings Claude Code, is missing."""
    if find_spec("claude_agent_sdk") is None:
        pytest.skip(_reason("claude-code"), allow_module_level=True)


def _reason(name: str) -> str:
    return f"NOT TESTED WITH {name.upper()}: it isn't installed ({WHERE} --only {name})"
