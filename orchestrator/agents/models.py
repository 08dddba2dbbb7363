"""Chooses the model of an assignment: a recorded one for `replay`, else a live one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.assignment import Assignment
from orchestrator.core.recovery import ErrorClass
from orchestrator.engine.ports import Model, ModelError
from orchestrator.engine.providers import replay


@dataclass(frozen=True, slots=True)
class Models:
    """`live` makes the model that an assignment names, else the default one, with access for its claim."""

    recordings: Path
    live: Callable[[Assignment], Model]

    def choose(self, assignment: Assignment) -> Model:
        """Raises `ModelError` when there is no such recording or no such agent type."""
        if assignment.agent_type == "replay":
            return replay.load(self.recordings, str(assignment.spec.get("recording", "")))
        if assignment.agent_type != "engine":
            message = f"this agent can't do the work of {assignment.agent_type!r}"
            raise ModelError(ErrorClass.VALIDATION, "agent-type-unknown", message, retryable=False)
        return self.live(assignment)
