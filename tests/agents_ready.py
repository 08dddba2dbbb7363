"""What a worker of the tests can run, whatever is installed on the machine."""

from __future__ import annotations

import os

from orchestrator.agents.readiness import Missing, Readiness
from orchestrator.agents.types import AGENT_TYPES
from orchestrator.config import Settings

NAMED = "READY_AGENTS"
"""An environment variable: kinds between commas that the test's worker can run."""


def named(settings: Settings, providers: frozenset[str]) -> tuple[Readiness, ...]:
    """All kinds; those that the environment doesn't name lack something."""
    del settings, providers
    names = os.environ.get(NAMED, "engine,replay").split(",")
    gap = Missing("not installed", "Install it.")
    return tuple(Readiness(kind, () if name in names else (gap,)) for name, kind in AGENT_TYPES.items())


def engine_alone(settings: Settings, providers: frozenset[str]) -> tuple[Readiness, ...]:
    """The engine with whatever agent the test puts in its place, and recordings."""
    del settings, providers
    return tuple(Readiness(AGENT_TYPES[name]) for name in ("engine", "replay"))
