"""What follows for a step from the last answer that its agent's program got of the gateway."""

from __future__ import annotations

from datetime import timedelta

import pytest

from orchestrator.agents.door import Answered, _Heads
from orchestrator.agents.error_words import read_words
from orchestrator.agents.refusals import verdict
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import Broke, NeedsInput, Waits
from orchestrator.engine.limits import NOT_SENT
from orchestrator.engine.providers.meaning import OF_GATEWAY
from orchestrator.gateway.dialects import CHAT
from orchestrator.gateway.refusals import refuse

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


def test_what_a_server_wishes_is_read_as_the_engine_reads_it() -> None:
    heads = _Heads()
    heads.asked(b"POST /v1/messages HTTP/1.1\r\n\r\n")
    times = b"date: Thu, 26 Nov 2026 08:00:00 GMT\r\nRetry-After: Thu, 26 Nov 2026 08:05:00 GMT"
    answered = heads.answered(b"HTTP/1.1 429 Too Many Requests\r\n" + times + b"\r\n\r\n")
    assert answered is not None
    assert answered.retry_after == timedelta(minutes=5)


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (401, False), (500, True), (529, True)])
def test_what_the_request_did_wrong_is_not_sent_again(status: int, retryable: bool) -> None:
    broke = verdict(Answered(status, None, None), fence=1)
    assert isinstance(broke, Broke)
    assert broke.retryable is retryable


@pytest.mark.parametrize("code", sorted(OF_GATEWAY.keys() - {"budget-exhausted", "circuit-open", *NOT_SENT}))
def test_what_the_gateway_refuses_means_the_same_for_every_kind_of_agent(code: str) -> None:
    broke, meant = verdict(Answered(403, code, SOON), fence=1), OF_GATEWAY[code]
    assert isinstance(broke, Broke)
    assert (broke.code, broke.error, broke.retryable) == (code, meant.error, meant.retryable)


def test_a_claim_whose_machine_slept_is_tried_again() -> None:
    """Its token is no good until the next heartbeat, and nothing is wrong with the work."""
    broke = verdict(Answered(401, "run-token-invalid"), fence=1)
    assert isinstance(broke, Broke)
    assert broke.retryable


def test_a_providers_own_words_are_told_and_say_more_than_its_status() -> None:
    broke = verdict(Answered(400, None, None, "invalid_request_error: prompt is too long: 9 > 8"), fence=1)
    assert isinstance(broke, Broke)
    assert (broke.code, broke.error) == ("context-too-long", ErrorClass.CONTEXT_TOO_LONG)
    assert broke.message.endswith(
        "answered with status 400: invalid_request_error: prompt is too long: 9 > 8."
    )


def test_a_code_of_the_gateway_is_not_repeated_in_its_words() -> None:
    words = "100 model calls used by the step, its budget is 100."
    response = b"HTTP/1.1 403 x\r\n\r\n" + refuse(CHAT, "run-limit-reached", words).body
    broke = verdict(Answered(403, "run-limit-reached", None, read_words(response)), fence=1)
    assert isinstance(broke, Broke)
    assert broke.message == f"the agent used up what one step may use: {words}"


@pytest.mark.parametrize("cut_at", [0, 30, 70, 120, 10_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_words_are_read_off_a_response_that_comes_in_pieces(*, chunked: bool, cut_at: int) -> None:
    body = b'{"error": {"type": "permission_error", "code": "price-unknown", "message": "no price\\nof x"}}'
    framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    kind = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
    whole = b"HTTP/1.1 403 Forbidden\r\nx-orchestrator-code: price-unknown\r\n" + kind + b"\r\n\r\n" + framed
    assert read_words(whole) == "price-unknown: no price of x"
    assert read_words(whole[:cut_at]) in {"", "price-unknown: no price of x"}


@pytest.mark.parametrize(
    "body",
    [b"<html>502</html>", b"[1]", b'{"error": 7}', b"[" * 100_000, b'{"error": {"message": 1}}', b"\xff"],
)
def test_what_is_no_error_of_a_known_form_says_nothing(body: bytes) -> None:
    assert read_words(b"HTTP/1.1 500 x\r\n\r\n" + body) == ""
