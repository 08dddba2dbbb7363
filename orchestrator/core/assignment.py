"""What an agent is handed and what it talks through while it works."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any, Protocol

from orchestrator.core.verdict import SOFT, StopReason, Verdict


@dataclass(frozen=True, slots=True)
class Limits:
    """Where one step's agent must stop by itself."""

    turns: int = 100
    consecutive_mistakes: int = 3
    tokens: int = 2_000_000
    cost_usd: Decimal = Decimal("5.00")
    wall_time: timedelta = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Budget:
    """What all steps of one run of the task may use together; None: no bound but each step's own limits."""

    turns: int | None = None
    tokens: int | None = None
    cost_usd: Decimal | None = None

    @property
    def binds(self) -> bool:
        return any(bound is not None for bound in (self.turns, self.tokens, self.cost_usd))


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
    budget: Budget = Budget()
    spec: Mapping[str, Any] = field(default_factory=dict)
    """The step's own settings as they came with the plan, e.g. {"recording": "fix-bug/reproduce"}."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """`needs`: key → summary of each needed step; `requirements`: what the task's author asks of its result;
    `previous`: what a user's canvas handed on;
    `conflict`: set when an earlier commit of this step could not be integrated."""
    approvals: tuple[str, ...] = ()
    """Tools, and classes of risk, whose calls need a person's leave."""


@dataclass(frozen=True, slots=True)
class ModelAccess:
    """Where this run reaches its models: the gateway, with a token that is good for this claim alone.

    `base_url` has no path: below it are /v1/messages, /v1/responses and /v1/chat/completions.
    """

    base_url: str
    token: str = field(repr=False)


class Stop:
    """Set by the heartbeat. A soft stop is for the agent, at the end of its turn; a hard one also cuts short
    whatever is under way: the model's reply, a command, git.

    Of soft reasons the first stays, and of hard ones; a hard one takes the place of a soft one.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._cut = threading.Event()
        self._lock = threading.Lock()
        self._reason: StopReason | None = None

    @property
    def reason(self) -> StopReason | None:
        return self._reason

    def set(self, reason: StopReason) -> None:
        with self._lock:
            hard = reason not in SOFT
            if self._reason is None or (hard and not self._cut.is_set()):
                self._reason = reason
            if hard:
                self._cut.set()
            self._asked.set()

    def is_set(self) -> bool:
        """At the end of a turn: whether to go on."""
        return self._asked.is_set()

    def wait(self, seconds: float) -> bool:
        """True as soon as it is set, False after `seconds`."""
        return self._asked.wait(seconds)

    def is_hard(self) -> bool:
        """Amid a turn: whether to end at once."""
        return self._cut.is_set()

    def wait_hard(self, seconds: float) -> bool:
        """True as soon as it is set hard, False after `seconds`."""
        return self._cut.wait(seconds)


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
    `Yielded` at its turn's end; when it is set hard at once, and whatever its thread has started is killed
    five seconds later.
    """

    def work(self, assignment: Assignment, link: Link) -> Verdict: ...
