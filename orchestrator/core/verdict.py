"""What an agent says when it stops. Verdicts are values; one `match` in `tasks/` chooses the event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

from orchestrator.core.recovery import ErrorClass


class StopReason(StrEnum):
    """Why the shell asked an agent to stop; the first four wait for the turn's end."""

    PAUSE = "pause"
    DRAIN = "drain"
    SLICE = "slice"
    URGENT = "urgent"
    """A more urgent task waits, and every slot that could take it is busy."""
    CANCEL = "cancel"
    DEADLINE = "deadline"
    DURATION = "duration"
    LEASE_LOST = "lease_lost"
    SHUTDOWN = "shutdown"
    """The worker's time to end in order is nearly over."""
    OUTAGE = "outage"
    """The database went away under the agent, which is no attempt that failed."""


SOFT: Final = frozenset({StopReason.PAUSE, StopReason.DRAIN, StopReason.SLICE, StopReason.URGENT})
"""The work goes on later, so the reply that is arriving and the command that runs are worth waiting for."""
TURN_ABOUT: Final = frozenset({StopReason.SLICE, StopReason.URGENT})
"""Nobody but other steps gains from it, so a claim that has not moved the step on goes on until it has."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A question for a person. `call_id` ties the answer to the tool call that asked."""

    call_id: str
    text: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The work is finished; `result` is JSON-able and small, `summary` one paragraph for people."""

    summary: str
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NeedsInput:
    """A person must answer before the work can go on; the conversation is in the journal."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class Broke:
    """It can't go on. `code` is stable and kebab-case; `retryable` False means that no attempt will help."""

    code: str
    message: str
    error: ErrorClass
    retryable: bool = True
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Yielded:
    """Stopped at a turn boundary because the link said so; everything finished is in the journal."""

    reason: StopReason


Verdict = Done | NeedsInput | Broke | Yielded
