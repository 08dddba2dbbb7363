from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import psycopg2
import pytest

from orchestrator.core import run_token
from orchestrator.core.assignment import Budget, ModelAccess
from orchestrator.core.breaker import CircuitBreaker
from orchestrator.db import budgets, spending
from tests.integration.gateway_server import MODEL, RunningGateway, gateway_to, issue
from tests.integration.ledger import TENANT, Ledger, step, the_task
from tests.integration.stack import until
from tests.messages_server import Answer, closing, opening, serving, text_block

STREAM = [opening(), *text_block(0, "I ", "read."), *closing("end_turn")]
OVERLOADED = Answer(status=529, error={"type": "overloaded_error", "message": "Overloaded"})


def post(access: ModelAccess, *, stream: bool = True, model: str = MODEL, **more: Any) -> httpx2.Response:
    body = {"model": model, "max_tokens": 1000, "stream": stream, "messages": [], **more}
    with httpx2.Client(trust_env=False, timeout=30) as client:
        return client.post(f"{access.base_url}/v1/messages", json=body, headers={"x-api-key": access.token})


def breaks_off(access: ModelAccess) -> None:
    with pytest.raises(httpx2.HTTPError):
        post(access)


def code(answer: httpx2.Response) -> str | None:
    return answer.headers.get("x-orchestrator-code")


@pytest.fixture
def claim(ledger: Ledger) -> Callable[..., Any]:
    def make(task: str = "t", **body: Any) -> Any:
        return ledger.take(ledger.task(task, step("a"), **body)["a"])

    return make


def subtask(ledger: Ledger, task: str, root: str) -> Any:
    claimed = ledger.take(ledger.task(task, step("a"))["a"])
    ledger.run("UPDATE tasks SET root_id = :root WHERE id = :task", root=root, task=task)
    return claimed


# --- budgets ------------------------------------------------------------------------------------------------


def test_siblings_that_race_on_one_budget_never_overspend_it_by_more_than_the_calls_in_flight(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    """Each call costs 0.000405 dollars: three of them reach the budget."""
    claim("root", budget={"max_cost_usd": "0.001"})
    siblings = [subtask(ledger, f"child-{number}", "root") for number in range(2)]
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        accesses = [gateway.access(ledger, claimed) for claimed in siblings]
        start = threading.Barrier(2)

        def spend(access: ModelAccess) -> list[int]:
            start.wait()
            return [post(access).status_code for _ in range(6)]

        with ThreadPoolExecutor(2) as pool:
            statuses = [status for found in pool.map(spend, accesses) for status in found]
        refused = post(accesses[0])
        assert (refused.status_code, code(refused)) == (402, "budget-exhausted")
        assert "its budget is $0.001" in refused.json()["error"]["message"]
        assert set(statuses) == {200, 402}
        made = statuses.count(200)
        assert len(provider.requests) == made
        (row,) = ledger.rows("SELECT * FROM budgets")
        (used,) = ledger.rows("SELECT sum(cost_usd) AS cost, count(*) AS calls FROM usage")
        assert (row["root_id"], row["spent_usd"], row["calls"]) == ("root", used["cost"], made)
        assert 0.001 <= row["spent_usd"] <= Decimal("0.001") + 2 * Decimal("0.000405")

        ledger.do(lambda c: budgets.raise_budget(c, the_task("child-1"), Budget(cost_usd=Decimal(1))))
        assert post(accesses[0]).status_code == 200


def test_a_call_in_flight_holds_its_estimate_until_its_run_is_dead(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    claim("root", budget={"max_tokens": 1000})
    dead, living = (subtask(ledger, name, "root") for name in ("dead", "living"))
    with (
        serving(Answer([opening()], then="hang"), Answer(STREAM)) as provider,
        gateway_to(ledger, provider.url, tmp_path) as gateway,
        ThreadPoolExecutor(1) as pool,
    ):
        first, second = gateway.access(ledger, dead), gateway.access(ledger, living)
        hanging = pool.submit(breaks_off, first)
        assert provider.speaking.wait(10)
        refused = post(second)
        assert code(refused) == "budget-exhausted"
        assert "calls in flight" in refused.json()["error"]["message"]
        ledger.end_lease(dead.step)
        assert post(second).status_code == 200
        provider.closing.set()
        hanging.result()


@pytest.mark.parametrize(("bound", "value"), [("max_turns", 2), ("max_tokens", 60)])
def test_tokens_and_turns_are_bounded_too(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], bound: str, value: int
) -> None:
    claimed = claim(budget={bound: value})
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claimed)
        assert [post(access).status_code for _ in range(3)] == [200, 200, 402]


def test_a_step_of_another_agent_is_stopped_at_the_limits_of_one_step(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    """Our own engine stops by itself, and is not stopped here."""
    one, ours = claim("one"), claim("ours")
    with (
        serving(Answer(STREAM)) as provider,
        gateway_to(ledger, provider.url, tmp_path, max_turns=2) as gateway,
    ):
        theirs = gateway.access(ledger, one)
        ledger.run("UPDATE run_tokens SET agent_type = 'aider'")
        access = gateway.access(ledger, ours)
        assert [post(theirs).status_code for _ in range(3)] == [200, 200, 402]
        assert code(post(theirs)) == "run-limit-reached"
        assert [post(access).status_code for _ in range(3)] == [200] * 3


def test_four_fifths_of_a_budget_are_warned_of_once_for_each_height(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    claimed = claim(budget={"max_turns": 5})
    warnings = lambda: [event for event in ledger.events() if event["name"] == "budget"]  # noqa: E731
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claimed)
        for _ in range(3):
            post(access)
        assert warnings() == [], "three of five are less than four fifths"
        for _ in range(2):
            post(access)
        (warned,) = until(warnings)
        assert warned["data"]["spent"]["turns"] == 4
        assert warned["data"]["budget"] == {"max_turns": 5}
        ledger.do(lambda c: budgets.raise_budget(c, the_task(), Budget(turns=6)))
        post(access)
        until(lambda: len(warnings()) == 2)
    ledger.assert_consistent()


def test_without_a_known_price_a_budget_in_dollars_lets_nothing_through(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    bounded, free = claim("bounded", budget={"max_cost_usd": "5"}), claim("free")
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        refused = post(gateway.access(ledger, bounded, "some-model"), model="some-model")
        assert (refused.status_code, code(refused)) == (403, "price-unknown")
        assert (
            """ORCHESTRATOR_PRICES='{"some-model": {"input": "0.2",""" in refused.json()["error"]["message"]
        )
        assert post(gateway.access(ledger, free, "some-model"), model="some-model").status_code == 200
    assert len(provider.requests) == 1


# --- who may ------------------------------------------------------------------------------------------------


def test_a_run_uses_its_own_models_alone(ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]) -> None:
    claimed = claim()
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claimed, MODEL, "claude-haiku-*", "odd-?", "odd[*]")
        refused = post(access, model="claude-opus-4-6")
        assert (refused.status_code, code(refused)) == (403, "model-not-allowed")
        assert code(post(access, model="odd*1")) == "model-not-allowed"
        assert post(access, model="claude-haiku-4-5").status_code == 200
        with openai.OpenAI(api_key=access.token, base_url=f"{access.base_url}/v1", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == [MODEL, "odd*"]
        with anthropic.Anthropic(api_key=access.token, base_url=access.base_url, max_retries=0) as speaker:
            assert [model.id for model in speaker.models.list()] == [MODEL, "odd*"]
    assert len(provider.requests) == 1


@pytest.mark.parametrize("token", ["", "ort_unknown", "sk-ant-api03-someone-elses"])
def test_nobody_calls_without_a_token(ledger: Ledger, tmp_path: Path, token: str) -> None:
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        for answer in (
            post(ModelAccess(gateway.url, token)),
            httpx2.get(f"{gateway.url}/v1/models", headers={"x-api-key": token}, trust_env=False),
        ):
            assert (answer.status_code, code(answer)) == (401, "run-token-invalid")
        assert httpx2.head(f"{gateway.url}/", trust_env=False).status_code == 200
    assert provider.requests == []


def test_a_token_ends_with_its_time_and_with_its_park(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    claimed = claim()
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        old = ModelAccess(gateway.url, issue(ledger, claimed, lifetime=timedelta(0)))
        assert code(post(old)) == "run-token-invalid"
        access = gateway.access(ledger, claimed)
        ledger.ask(claimed)
        assert code(post(access)) == "run-token-invalid"
    assert provider.requests == []


def test_a_gateway_without_a_key_says_what_is_missing(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    with gateway_to(ledger, None, tmp_path) as gateway:
        refused = post(gateway.access(ledger, claim()))
    assert (refused.status_code, code(refused)) == (503, "provider-missing")
    assert "ANTHROPIC_API_KEY" in refused.json()["error"]["message"]


# --- providers that fail ------------------------------------------------------------------------------------


def test_a_breaker_is_shared_by_two_gateways_and_lets_one_probe_through(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    claimed = claim()
    quick = {"breaker_failures": 3, "breaker_recovery": timedelta(seconds=0.5), "breaker_successes": 1}
    with (
        serving(OVERLOADED, OVERLOADED, OVERLOADED, Answer(STREAM)) as provider,
        gateway_to(ledger, provider.url, tmp_path, **quick) as one,
        gateway_to(ledger, provider.url, tmp_path, **quick) as other,
    ):
        first, second = one.access(ledger, claimed), other.access(ledger, claimed)
        assert [post(access).status_code for access in (first, second, first)] == [529] * 3
        refused = post(second)
        assert (refused.status_code, code(refused)) == (503, "circuit-open")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert len(provider.requests) == 3
        (row,) = ledger.rows("SELECT * FROM breakers")
        assert (row["kind"], row["name"], row["state"]) == ("provider", "anthropic", "open")
        until(lambda: post(second).status_code == 200)
        assert len(provider.requests) == 4, "the first that is let through closes it"
        (row,) = ledger.rows("SELECT * FROM breakers")
        assert row["state"] == "closed"


def test_a_pause_that_a_provider_asks_for_is_kept_by_all(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    """In whatever words: this one says when its limit starts anew."""
    used_up = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"}
    limited = Answer(status=429, error={"type": "rate_limit_error", "message": "Slow."}, headers=used_up)
    with (
        serving(limited, Answer(STREAM)) as provider,
        gateway_to(ledger, provider.url, tmp_path) as one,
        gateway_to(ledger, provider.url, tmp_path) as other,
    ):
        theirs = post(one.access(ledger, claim("a")))
        assert (theirs.status_code, code(theirs)) == (429, None)
        assert used_up.items() <= dict(theirs.headers).items()
        access = other.access(ledger, claim("b"))
        ours = post(access)
        assert (ours.status_code, code(ours)) == (429, "provider-throttled")
        assert ours.json()["error"]["type"] == "rate_limit_error"
        assert ours.headers["retry-after"] in {"1", "2"}
        assert len(provider.requests) == 1
        until(lambda: post(access).status_code == 200)
    assert len(provider.requests) == 2


def test_an_error_is_passed_on_as_it_is_and_nothing_is_sent_twice(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    refusing = Answer(status=400, error={"type": "invalid_request_error", "message": "No."})
    with serving(refusing) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        answer = post(gateway.access(ledger, claim()))
    assert (answer.status_code, code(answer)) == (400, None)
    assert answer.json() == {"type": "error", "error": refusing.error}
    assert len(provider.requests) == 1
    (call,) = ledger.rows("SELECT * FROM model_calls")
    assert (call["outcome"], call["http_status"], call["error_code"]) == (
        *("failed", 400, "invalid_request_error"),
    )
    assert ledger.rows("SELECT 1 FROM usage") == []


def test_a_stream_that_breaks_off_breaks_off_for_the_caller_too_and_is_paid_for(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    answer = Answer([opening(), *text_block(0, "x" * 400)], then="drop")
    with serving(answer) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        with pytest.raises(httpx2.RemoteProtocolError):
            post(gateway.access(ledger, claim()))
        (used,) = until(lambda: ledger.rows("SELECT * FROM usage"))
    assert len(provider.requests) == 1
    assert (used["input_tokens"], used["output_tokens"]) == (10, 101)
    (call,) = ledger.rows("SELECT * FROM model_calls")
    assert (call["outcome"], call["estimated"]) == ("failed", True)


@pytest.mark.parametrize(
    ("answer", "status"), [(Answer(silent=True), 504), (Answer([opening()], then="hang"), 200)]
)
def test_a_provider_that_says_nothing_is_given_up_on(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], answer: Answer, status: int
) -> None:
    quick = {"gateway_first_byte": timedelta(seconds=0.5), "gateway_stall": timedelta(seconds=0.5)}
    with serving(answer) as provider, gateway_to(ledger, provider.url, tmp_path, **quick) as gateway:
        access = gateway.access(ledger, claim())
        if status == 200:
            with pytest.raises(httpx2.RemoteProtocolError):
                post(access)
        else:
            late = post(access)
            assert (late.status_code, code(late)) == (504, "provider-timeout")
        assert provider.gone.wait(10), "the connection to the provider is closed"
        (call,) = until(lambda: ledger.rows("SELECT * FROM model_calls WHERE ended_at IS NOT NULL"))
    assert (call["outcome"], call["error_code"]) == ("failed", "provider-timeout")
    assert len(provider.requests) == 1


def test_a_reply_that_only_pings_ends_at_the_longest_time_of_a_call(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    quick = {"gateway_call": timedelta(seconds=0.5)}
    pinging = Answer([opening()], then="ping")
    with serving(pinging) as provider, gateway_to(ledger, provider.url, tmp_path, **quick) as gateway:
        with pytest.raises(httpx2.RemoteProtocolError):
            post(gateway.access(ledger, claim()))
        assert provider.gone.wait(10)


def test_a_provider_that_is_not_there_is_a_clear_answer_and_costs_nothing(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    with gateway_to(ledger, "http://127.0.0.1:1", tmp_path) as gateway:
        answer = post(gateway.access(ledger, claim()))
    assert (answer.status_code, code(answer)) == (502, "provider-unreachable")
    assert ledger.rows("SELECT 1 FROM usage") == []


# --- callers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [Answer([opening()], then="hang"), Answer(silent=True)])
def test_a_caller_that_hangs_up_closes_the_provider_at_once_and_has_paid_for_what_was_sent(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], answer: Answer
) -> None:
    claimed = claim()
    with serving(answer) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claimed)
        with httpx2.Client(trust_env=False, timeout=1.0) as client, pytest.raises(httpx2.ReadTimeout):
            client.post(
                f"{access.base_url}/v1/messages",
                json={"model": MODEL, "max_tokens": 10, "stream": True, "messages": []},
                headers={"authorization": f"Bearer {access.token}"},
            )
        assert provider.gone.wait(10), "it would have been silent for minutes"
        (call,) = until(lambda: ledger.rows("SELECT * FROM model_calls WHERE ended_at IS NOT NULL"))
        assert (call["outcome"], call["estimated"]) == ("cut", True)
        assert call["input_tokens"] > 0
        assert ledger.rows("SELECT count(*) AS n FROM usage") == [{"n": 1}]


def test_what_can_not_be_read_is_refused_in_the_callers_dialect(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    with (
        serving(Answer(STREAM)) as provider,
        gateway_to(ledger, provider.url, tmp_path, gateway_max_body_bytes=2000) as gateway,
    ):
        token = gateway.access(ledger, claim()).token
        with httpx2.Client(base_url=gateway.url, headers={"x-api-key": token}, trust_env=False) as client:
            for path in ("/v1/messages", "/v1/responses", "/v1/chat/completions"):
                for body, status in ((b"{", 400), (b"[]", 400), (b"x" * 3000, 413)):
                    answer = client.post(path, content=body)
                    assert answer.status_code == status
                    error = answer.json()["error"]
                    assert error["message"].endswith(f"[{code(answer)}]")
                    assert ("code" in error) == (path != "/v1/messages")
            assert client.delete("/v1/responses/x").status_code == 404
    assert provider.requests == []


def test_a_run_has_so_many_calls_in_flight(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spending, "MOST_AT_ONCE", 1)
    with (
        serving(Answer([opening()], then="hang")) as provider,
        gateway_to(ledger, provider.url, tmp_path) as gateway,
        ThreadPoolExecutor(1) as pool,
    ):
        access = gateway.access(ledger, claim())
        hanging = pool.submit(breaks_off, access)
        assert provider.speaking.wait(10)
        assert code(post(access)) == "too-many-calls"
        provider.closing.set()
        hanging.result()


# --- a gateway that is away ---------------------------------------------------------------------------------


def test_without_its_database_nothing_passes(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    claimed = claim()
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claimed)
        refused = _without_database(gateway, lambda: post(access))
        assert (refused.status_code, code(refused)) == (503, "gateway-unready")
        assert provider.requests == []
        assert post(access).status_code == 200


def _without_database(gateway: RunningGateway, work: Callable[[], httpx2.Response]) -> httpx2.Response:
    """Every connection that the gateway makes meanwhile is refused."""
    engine = gateway.wiring.engine
    creator = engine.pool._creator
    engine.dispose()
    engine.pool._creator = _refused
    try:
        return work()
    finally:
        engine.pool._creator = creator


def _refused(*_: object) -> Any:
    raise psycopg2.OperationalError("the server is away")


def test_what_a_dead_gateway_left_open_counts_no_longer(
    ledger: Ledger, tmp_path: Path, claim: Callable[..., Any]
) -> None:
    claimed = claim(budget={"max_turns": 1})
    token = issue(ledger, claimed)
    ledger.run("INSERT INTO gateways (id, url) VALUES ('dead', 'http://127.0.0.1:1')")
    with ledger.engine.begin() as connection:
        run = spending.reserve(
            connection,
            spending.NewCall(
                "call_1", run_token.digest(token), "dead", "anthropic", MODEL, "messages", True, Decimal(1), 9
            ),
            CircuitBreaker(),
        )
        assert not isinstance(run, spending.Refusal)
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = ModelAccess(gateway.url, token)
        assert code(post(access)) == "budget-exhausted"
        ledger.run("UPDATE gateways SET heartbeat_at = heartbeat_at - interval '1 hour' WHERE id = 'dead'")
        assert post(access).status_code == 200
        until(lambda: ledger.rows("SELECT 1 FROM model_calls WHERE id = 'call_1' AND outcome = 'lost'"))


def test_a_call_is_settled_once(ledger: Ledger, claim: Callable[..., Any]) -> None:
    token = issue(ledger, claim())
    call = spending.NewCall("c", run_token.digest(token), "g", "anthropic", MODEL, "messages", True, None, 9)
    ended = spending.Ended("done", 200, None, spending.Tokens(5, 5), Decimal(1), spending.Tried.SUCCEEDED)
    ledger.do(lambda c: spending.reserve(c, call, CircuitBreaker()))
    assert ledger.do(lambda c: spending.settle(c, TENANT, "c", ended, CircuitBreaker())) is not None
    assert ledger.do(lambda c: spending.settle(c, TENANT, "c", ended, CircuitBreaker())) is None
    assert ledger.rows("SELECT spent_usd, calls FROM budgets") == [{"spent_usd": Decimal(1), "calls": 1}]
