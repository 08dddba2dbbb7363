"""The real programs of agents, for tests that run them."""

from __future__ import annotations

import os

import pytest

from orchestrator.agents import programs
from orchestrator.agents.programs import Program

REQUIRED = "ORCHESTRATOR_REQUIRE_AGENTS"
"""Set where all programs must be there, as in continuous integration: a test that would be skipped fails."""


def installed(name: str) -> Program:
    found = programs.find(name)
    if found is not None:
        return found
    text = f"NOT TESTED WITH {name.upper()}: it isn't installed (scripts/install-agents --only {name})"
    if os.environ.get(REQUIRED):
        pytest.fail(text)
    pytest.skip(text)
