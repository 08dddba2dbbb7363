"""Types of agent that fail again and again are left alone for a while, by all workers."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Final

import structlog

from orchestrator.bootstrap import Wiring
from orchestrator.core.breaker import BreakerState
from orchestrator.core.recovery import OF_MODELS, ErrorClass
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import Broke, Done, NeedsInput, Verdict, Waits
from orchestrator.db import breakers, connect, spending
from orchestrator.db.breakers import BreakerKind, Tried
from orchestrator.db.connect import SQLAlchemyError
from orchestrator.db.sql import StepRef

log: Final = structlog.get_logger(__name__)
_LOOKED_AT_EVERY: Final = 1.0
"""Seconds for which a process takes a type that has never failed for one that hasn't yet."""
_ITS_OWN: Final = frozenset({ErrorClass.AGENT, ErrorClass.INTERNAL})
"""Errors that speak against the agent, not against the task, the model or the machine."""


@dataclass(slots=True)
class AgentCircuit:
    """Of one type of agent, as one run sees it: first `ask`, then `tell`."""

    wiring: Wiring
    agent_type: str
    _has_failed: bool = False

    def ask(self) -> Waits | None:
        """What a step does that may not start such an agent now: it waits in the queue."""
        tenant, kind = self.wiring.tenant_id, BreakerKind.AGENT_TYPE
        seen = self.wiring.unbroken_agents
        if time.monotonic() < seen.get(self.agent_type, 0.0):
            return None
        with connect.at_once(self.wiring.engine) as direct:
            state = breakers.state(direct, tenant, kind, self.agent_type)
        self._has_failed = state is not None
        if state is None:
            seen[self.agent_type] = time.monotonic() + _LOOKED_AT_EVERY
        if state in {None, BreakerState.CLOSED}:
            return None
        with self.wiring.engine.begin() as connection:
            rule = self.wiring.circuit_breaker
            held = breakers.ask(connection, tenant, kind, self.agent_type, rule)
        if held is None:
            return None
        detail = {"breaker": {"kind": str(kind), "name": self.agent_type}}
        return Waits(WaitingOn.CIRCUIT_BREAKER, detail, held.retry_after)

    def tell(self, verdict: Verdict) -> None:
        """How it went. That this can't be written down changes nothing for the step."""
        match verdict:
            case Broke(code, _, error) if error in _ITS_OWN and not code.startswith(OF_MODELS):
                self.wiring.unbroken_agents.pop(self.agent_type, None)
                self._record(Tried.FAILED, code)
            case Done() | NeedsInput():
                self._record(Tried.SUCCEEDED)
            case _:
                self.abandon(verdict.code if isinstance(verdict, Broke) else None)

    def abandon(self, reason: str | None = None) -> None:
        """Nothing is known of the agent: whoever comes next may try it at once."""
        self._record(Tried.ABANDONED, reason)

    def _record(self, tried: Tried, reason: str | None = None) -> None:
        if not self._has_failed and tried is not Tried.FAILED:
            return
        try:
            with self.wiring.engine.begin() as connection:
                breakers.record(
                    connection,
                    self.wiring.tenant_id,
                    BreakerKind.AGENT_TYPE,
                    self.agent_type,
                    self.wiring.circuit_breaker,
                    tried,
                    reason,
                )
        except SQLAlchemyError as error:
            log.warning("circuit_not_told", agent_type=self.agent_type, error=type(error).__name__)


def laid_at_its_cause(wiring: Wiring, step: StepRef, fence: int, verdict: Verdict) -> Verdict:
    """An agent that its provider failed in the middle of a reply says so in words of its own, or takes half a
    reply for the whole. What the gateway saw of its last call tells whose failure that was."""
    if not isinstance(verdict, Broke) or verdict.error is not ErrorClass.AGENT:
        return verdict
    with connect.at_once(wiring.engine) as direct:
        failed = spending.was_failed_by_provider(direct, step, fence)
    return replace(verdict, error=ErrorClass.OVERLOADED) if failed else verdict
