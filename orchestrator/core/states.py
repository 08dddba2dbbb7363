"""The lifecycle as data: which event moves a step, from where to where.

The SQL guards (`db/`), the README's diagram and the property tests all read `RULES`; nothing else knows a
transition. Steps and tasks share the six public statuses; a task's status is a pure function of its steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Status(StrEnum):
    """The six public values; each comment says who moves a row out of it."""

    QUEUED = "queued"  # a worker's claim
    RUNNING = "running"  # the worker that holds the lease, or the sweep when the lease ends
    PENDING_INPUT = "pending_input"  # a person: an answer, a resume, a cancel
    COMPLETED = "completed"  # nobody
    FAILED = "failed"  # nobody (a task: RETRY, by a new workflow)
    CANCELLED = "cancelled"  # nobody (a task: RETRY, by a new workflow)


TERMINAL: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
LIVE: Final = frozenset(Status) - TERMINAL


class WaitingOn(StrEnum):
    """What a live row waits for. Each value belongs to exactly one status (see the three sets below)."""

    QUESTION = "question"
    TOOL_APPROVAL = "tool_approval"
    PLAN_APPROVAL = "plan_approval"
    STEP_CONFIRMATION = "step_confirmation"
    MANUAL_REVIEW = "manual_review"
    COUNCIL_DECISION = "council_decision"
    PAUSED = "paused"
    ESCALATION = "escalation"
    BUDGET = "budget"
    SUBTASK = "subtask"
    RATE_LIMIT = "rate_limit"
    EXTERNAL_CI = "external_ci"
    MERGE = "merge"
    DEPENDENCY = "dependency"
    SLOT = "slot"
    AGENT = "agent"
    RETRY_BACKOFF = "retry_backoff"
    CIRCUIT_BREAKER = "circuit_breaker"


WAITS_FOR_PERSON: Final = frozenset(
    {
        WaitingOn.QUESTION,
        WaitingOn.TOOL_APPROVAL,
        WaitingOn.PLAN_APPROVAL,
        WaitingOn.STEP_CONFIRMATION,
        WaitingOn.MANUAL_REVIEW,
        WaitingOn.COUNCIL_DECISION,
        WaitingOn.PAUSED,
        WaitingOn.ESCALATION,
        WaitingOn.BUDGET,
    }
)
WAITS_FOR_MACHINE: Final = frozenset(
    {WaitingOn.SUBTASK, WaitingOn.RATE_LIMIT, WaitingOn.EXTERNAL_CI, WaitingOn.MERGE}
)
WAITS_QUEUED: Final = frozenset(WaitingOn) - WAITS_FOR_PERSON - WAITS_FOR_MACHINE


class Event(StrEnum):
    """Everything that can happen to a step."""

    CLAIM = "claim"
    PAUSE = "pause"
    SUCCEED = "succeed"
    ASK = "ask"
    WAIT = "wait"
    ANSWER = "answer"
    RESUME = "resume"
    WAKE = "wake"
    YIELD = "yield"
    RETRY = "retry"
    EXPIRE = "expire"
    FAIL = "fail"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Rule:
    """One event: the statuses it may leave, the one it leads to, and what it means, for people."""

    sources: frozenset[Status]
    to: Status
    meaning: str
    leased: bool | None = None
    """Whether the row must hold a lease before (True), must not (False), or either (None)."""


def _rule(*sources: Status, to: Status, meaning: str, leased: bool | None = None) -> Rule:
    return Rule(frozenset(sources), to, meaning, leased)


RULES: Final[Mapping[Event, Rule]] = MappingProxyType(
    {
        Event.CLAIM: _rule(Status.QUEUED, to=Status.RUNNING, meaning="a worker takes the step"),
        Event.SUCCEED: _rule(
            Status.RUNNING, to=Status.COMPLETED, meaning="the agent is done and its commit is in", leased=True
        ),
        Event.ASK: _rule(
            Status.RUNNING,
            to=Status.PENDING_INPUT,
            meaning="a person is needed; the slot is given back",
            leased=True,
        ),
        Event.PAUSE: _rule(
            Status.QUEUED, Status.RUNNING, to=Status.PENDING_INPUT, meaning="a person paused the task"
        ),
        Event.WAIT: _rule(
            Status.RUNNING, to=Status.RUNNING, meaning="parked on a machine, without a lease", leased=True
        ),
        Event.ANSWER: _rule(
            Status.PENDING_INPUT, to=Status.QUEUED, meaning="a person answered", leased=False
        ),
        Event.RESUME: _rule(
            Status.PENDING_INPUT, to=Status.QUEUED, meaning="a person let it go on", leased=False
        ),
        Event.WAKE: _rule(
            Status.RUNNING,
            Status.QUEUED,
            to=Status.QUEUED,
            meaning="what it waited for is there",
            leased=False,
        ),
        Event.YIELD: _rule(
            Status.RUNNING,
            to=Status.QUEUED,
            meaning="slice over or worker draining; the attempt goes on",
            leased=True,
        ),
        Event.RETRY: _rule(
            Status.RUNNING, to=Status.QUEUED, meaning="broke, and another attempt may succeed", leased=True
        ),
        Event.EXPIRE: _rule(
            Status.RUNNING, to=Status.QUEUED, meaning="the lease ended without a word", leased=True
        ),
        Event.FAIL: _rule(
            Status.QUEUED, Status.RUNNING, Status.PENDING_INPUT, to=Status.FAILED, meaning="broke for good"
        ),
        Event.CANCEL: _rule(
            *LIVE, to=Status.CANCELLED, meaning="cancelled, or something it needs ended badly"
        ),
    }
)


class Phase(StrEnum):
    """The 13 phases of a workflow, with the seeds' spelling."""

    PENDING = "pending"
    PROCESSING = "processing"
    NLP_PARSING = "nlp_parsing"
    TASK_DECOMPOSITION = "task_decomposition"
    DEPENDENCY_RESOLUTION = "dependency_resolution"
    AGENT_ASSIGNMENT = "agent_assignment"
    PR_CREATED = "pr_created"
    VALIDATION_RUNNING = "validation_running"
    VALIDATION_FAILED = "validation_failed"
    VALIDATION_PASSED = "validation_passed"
    MERGED = "merged"
    FAILED = "failed"
    CANCELLED = "cancelled"


_PLAIN: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.PENDING: frozenset({Phase.NLP_PARSING, Phase.PROCESSING, Phase.CANCELLED}),
    Phase.NLP_PARSING: frozenset({Phase.TASK_DECOMPOSITION, Phase.CANCELLED}),
    Phase.TASK_DECOMPOSITION: frozenset({Phase.DEPENDENCY_RESOLUTION, Phase.CANCELLED}),
    Phase.DEPENDENCY_RESOLUTION: frozenset({Phase.AGENT_ASSIGNMENT, Phase.CANCELLED}),
    Phase.AGENT_ASSIGNMENT: frozenset({Phase.PROCESSING, Phase.CANCELLED}),
    Phase.PROCESSING: frozenset({Phase.PR_CREATED, Phase.VALIDATION_RUNNING, Phase.CANCELLED}),
    Phase.PR_CREATED: frozenset({Phase.VALIDATION_RUNNING, Phase.CANCELLED}),
    Phase.VALIDATION_RUNNING: frozenset({Phase.VALIDATION_PASSED, Phase.VALIDATION_FAILED, Phase.CANCELLED}),
    Phase.VALIDATION_FAILED: frozenset({Phase.PROCESSING, Phase.CANCELLED}),
    Phase.VALIDATION_PASSED: frozenset({Phase.MERGED}),
    Phase.MERGED: frozenset(),
    Phase.FAILED: frozenset(),
    Phase.CANCELLED: frozenset(),
}
TERMINAL_PHASES: Final = frozenset({Phase.MERGED, Phase.FAILED, Phase.CANCELLED})
PHASES: Final[Mapping[Phase, frozenset[Phase]]] = MappingProxyType(
    {phase: (to if phase in TERMINAL_PHASES else to | {Phase.FAILED}) for phase, to in _PLAIN.items()}
)


@dataclass(frozen=True, slots=True)
class StepView:
    """As much of a step as the task's status depends on."""

    status: Status
    claimed: bool
    """True once any worker has ever claimed it."""
    ready: bool
    """True when all that it needs is completed."""


def task_status(steps: Iterable[StepView], *, on_failure_continue: bool = False) -> Status:
    """The status that a task with these steps of its current workflow has; no steps: queued.

    Queued until the first claim; pending_input when a step waits for a person and none is running or ready;
    terminal only when every step is.
    """
    found = list(steps)
    statuses = {step.status for step in found}
    if statuses & LIVE or not found:
        moving = any(
            step.status is Status.RUNNING or (step.status is Status.QUEUED and step.ready) for step in found
        )
        if Status.PENDING_INPUT in statuses and not moving:
            return Status.PENDING_INPUT
        return Status.RUNNING if any(step.claimed for step in found) else Status.QUEUED
    if Status.FAILED in statuses and not (on_failure_continue and Status.COMPLETED in statuses):
        return Status.FAILED
    if Status.CANCELLED in statuses and Status.FAILED not in statuses:
        return Status.CANCELLED
    return Status.COMPLETED
