"""What an agent says when it stops. Verdicts are values; one `match` in `tasks/` chooses the event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

from orchestrator.core.recovery import ErrorClass
from orchestrator.core.states import WaitingOn


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


class OnSilence(StrEnum):
    """What becomes of a question that nobody answers in time. Silence is never consent: an approval can
    only wait or fail."""

    WAIT = "wait"
    FAIL = "fail"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Ask:
    """A question for a person. `call_id` ties the answer to what asked; one call asks once.

    `kind` says what the step waits on: an open question, leave for a risky call, or more budget.
    """

    call_id: str
    text: str
    options: tuple[str, ...] = ()
    kind: WaitingOn = WaitingOn.QUESTION
    """QUESTION, TOOL_APPROVAL or BUDGET."""
    subject_digest: str | None = None
    """SHA-256 of exactly what an approval is asked for: the answer counts for that alone."""
    default: str | None = None
    """The asker's own answer, should the policy allow one."""


@dataclass(frozen=True, slots=True)
class Done:
    """The work is finished; `result` is JSON-able and small, `summary` one paragraph for people.

    Both are a claim. `evidence` is not: the commands that ran with their exit codes, and the changed files,
    as far as the agent's shell knows them.
    """

    summary: str
    result: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict, compare=False)


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


@dataclass(frozen=True, slots=True)
class Waits:
    """It goes on when something that no person has to do has happened; the attempt stays open.

    `on` SUBTASK, RATE_LIMIT: running without a lease. CIRCUIT_BREAKER, AGENT: queued, and the claim after
    counts as the same attempt. `wake_after` None: only an event wakes it (a subtask's end).
    """

    on: WaitingOn
    detail: Mapping[str, Any] = field(default_factory=dict)
    wake_after: timedelta | None = None


Verdict = Done | NeedsInput | Broke | Yielded | Waits
