"""What follows for a step from the last answer that its agent's program got of the gateway."""

from __future__ import annotations

from datetime import timedelta

import pytest

from orchestrator.agents.door import Answered
from orchestrator.agents.refusals import verdict
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import Broke, NeedsInput, Waits

SOON, LATE = timedelta(seconds=5), timedelta(minutes=9)


@pytest.mark.parametrize("code", ["provider-throttled", "too-many-calls"])
def test_a_call_that_the_gateway_held_back_costs_no_attempt(code: str) -> None:
    waits = verdict(Answered(429, code, SOON), fence=1)
    assert isinstance(waits, Waits)
    assert (waits.on, waits.wake_after) == (WaitingOn.RATE_LIMIT, SOON)


def test_a_provider_that_limits_requests_is_an_attempt_that_broke_unless_it_asks_for_a_long_wait() -> None:
    broke, waits = verdict(Answered(429, None, SOON), fence=1), verdict(Answered(429, None, LATE), fence=1)
    assert isinstance(broke, Broke)
    assert (broke.error, broke.retryable, broke.retry_after) == (ErrorClass.RATE_LIMIT, True, SOON)
    assert isinstance(waits, Waits)
    assert (waits.on, waits.wake_after) == (WaitingOn.RATE_LIMIT, LATE)


def test_a_budget_asks_a_person_and_an_open_breaker_waits() -> None:
    asks = verdict(Answered(402, "budget-exhausted", None), fence=7)
    assert isinstance(asks, NeedsInput)
    assert (asks.ask.kind, asks.ask.call_id) == (WaitingOn.BUDGET, "budget-7")
    waits = verdict(Answered(503, "circuit-open", SOON), fence=7)
    assert isinstance(waits, Waits)
    assert waits.on is WaitingOn.CIRCUIT_BREAKER


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (401, False), (500, True), (529, True)])
def test_what_the_request_did_wrong_is_not_sent_again(status: int, retryable: bool) -> None:
    broke = verdict(Answered(status, None, None), fence=1)
    assert isinstance(broke, Broke)
    assert broke.retryable is retryable
