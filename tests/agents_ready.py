"""What a worker of the tests can run, whatever is installed on the machine."""

from __future__ import annotations

import os

from orchestrator.agents.readiness import NO_KEY, Missing, Readiness
from orchestrator.agents.types import AGENT_TYPES
from orchestrator.config import Settings

NAMED = "READY_AGENTS"
KEYLESS = "KEYLESS_AGENT"
"""Environment variables: kinds between commas that the worker can run, and one that lacks a key alone."""


def named(settings: Settings, providers: frozenset[str]) -> tuple[Readiness, ...]:
    """All kinds; those that the environment doesn't name lack something."""
    del settings, providers
    names = os.environ.get(NAMED, "engine,replay").split(",")
    absent, keyless = Missing("not installed", "Install it."), os.environ.get(KEYLESS)
    gaps = {name: (Missing(NO_KEY, "Set one."),) if name == keyless else (absent,) for name in AGENT_TYPES}
    return tuple(Readiness(kind, () if name in names else gaps[name]) for name, kind in AGENT_TYPES.items())


def engine_alone(settings: Settings, providers: frozenset[str]) -> tuple[Readiness, ...]:
    """The engine with whatever agent the test puts in its place, and recordings."""
    del settings, providers
    return tuple(Readiness(AGENT_TYPES[name]) for name in ("engine", "replay"))
