"""What an agent is handed and what it talks through while it works."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any, Protocol

from orchestrator.core.verdict import StopReason, Verdict


@dataclass(frozen=True, slots=True)
class Limits:
    """Where one step's agent must stop by itself."""

    turns: int = 100
    consecutive_mistakes: int = 3
    tokens: int = 2_000_000
    cost_usd: Decimal = Decimal("5.00")
    wall_time: timedelta = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Assignment:
    """One claim on one step. Ids are opaque; texts come from users and repositories and are untrusted."""

    tenant_id: str
    task_id: str
    workflow_id: str
    step_id: str
    step_key: str
    step_number: int
    step_total: int
    kind: str
    attempt: int
    fence: int
    task_description: str
    description: str
    agent_type: str
    model: str | None
    limits: Limits
    spec: Mapping[str, Any] = field(default_factory=dict)
    """The step's own settings as they came with the plan, e.g. {"recording": "fix-bug/reproduce"}."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """`needs`: key → summary of each needed step; `requirements`: what the task's author asks of its result;
    `previous`: what a user's canvas handed on;
    `conflict`: set when an earlier commit of this step could not be integrated."""


class Stop:
    """Set once by the heartbeat, read by the agent at every boundary; the first reason stays."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._reason: StopReason | None = None

    @property
    def reason(self) -> StopReason | None:
        return self._reason

    def set(self, reason: StopReason) -> None:
        if self._reason is None:
            self._reason = reason
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """True as soon as it is set, False after `seconds`."""
        return self._event.wait(seconds)

    def is_set(self) -> bool:
        return self._event.is_set()


class Link(Protocol):
    """An agent's line to the outside. Everything passed is redacted before it is kept."""

    @property
    def stop(self) -> Stop: ...

    def note(self, kind: str, data: Mapping[str, Any]) -> None:
        """Records progress (`tool`, `turn`, `text` …): marks the step as moving, shows up live, may be
        coalesced."""

    def log(self, stream: str, text: str) -> None:
        """Appends to the step's log; `stream` is agent, stdout, stderr or system."""


class Agent(Protocol):
    """Does one assignment and says how it ended.

    Ordinary failure is a `Broke` verdict; an exception is a bug. When `link.stop` is set the agent returns
    `Yielded` at its next boundary; whatever its thread has started is killed five seconds later.
    """

    def work(self, assignment: Assignment, link: Link) -> Verdict: ...
