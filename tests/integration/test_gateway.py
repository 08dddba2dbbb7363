from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import anthropic
import httpx2
import openai
import pytest

from orchestrator.core.assignment import ModelAccess
from tests.integration.gateway_server import MODEL, REAL_KEY, gateway_to
from tests.integration.ledger import Ledger, step
from tests.messages_server import Answer, closing, opening, serving, text_block

STREAM = [opening(cache_read_input_tokens=7), *text_block(0, "I ", "read."), *closing("end_turn")]


def ask(access: ModelAccess, model: str = MODEL) -> anthropic.types.Message:
    with (
        anthropic.Anthropic(api_key=access.token, base_url=access.base_url, max_retries=0) as client,
        client.messages.stream(
            model=model, max_tokens=1000, messages=[{"role": "user", "content": "Hello."}]
        ) as stream,
    ):
        return stream.get_final_message()


def data(*events: object) -> list[str]:
    """As OpenAI's APIs stream."""
    return [f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events]


def chunk(delta: object = None, finish: str | None = None, usage: object = None) -> dict[str, object]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {
        "id": "chat_1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": choices,
        "usage": usage,
    }


CHAT = data(
    chunk({"role": "assistant", "content": "I "}),
    chunk({"content": "read."}, "stop"),
    chunk(
        usage={
            "prompt_tokens": 17,
            "completion_tokens": 25,
            "total_tokens": 42,
            "prompt_tokens_details": {"cached_tokens": 7},
        }
    ),
    "[DONE]",
)


def openai_at(access: ModelAccess) -> openai.OpenAI:
    return openai.OpenAI(api_key=access.token, base_url=f"{access.base_url}/v1", max_retries=0)


def test_a_call_is_passed_through_with_the_real_key_and_settled(ledger: Ledger, tmp_path: Path) -> None:
    claimed = ledger.take(ledger.task("t", step("a"))["a"])
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claimed)
        reply = ask(access)
    assert [block.text for block in reply.content if block.type == "text"] == ["I read."]
    ((headers, _),) = provider.requests
    assert headers["x-api-key"] == REAL_KEY
    assert access.token not in str(headers)
    (used,) = ledger.rows("SELECT * FROM usage")
    assert (used["input_tokens"], used["output_tokens"], used["cache_read_tokens"]) == (10, 25, 7)
    assert (used["provider"], used["agent_type"], used["turn"]) == ("anthropic", "engine", None)
    assert used["cost_usd"] == Decimal("0.0004071")
    (budget,) = ledger.rows("SELECT * FROM budgets")
    assert (budget["spent_usd"], budget["spent_tokens"], budget["calls"]) == (used["cost_usd"], 42, 1)
    (call,) = ledger.rows("SELECT * FROM model_calls")
    assert (call["outcome"], call["http_status"], call["estimated"]) == ("done", 200, False)


def test_a_token_is_no_good_once_its_claim_is_lost(ledger: Ledger, tmp_path: Path) -> None:
    claimed = ledger.take(ledger.task("t", step("a"))["a"])
    with serving(Answer(STREAM)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claimed)
        ask(access)
        ledger.expire(claimed.step)
        with pytest.raises(anthropic.AuthenticationError) as refused:
            ask(access)
        assert refused.value.response.headers["x-orchestrator-code"] == "run-token-invalid"
    assert len(provider.requests) == 1


@pytest.mark.parametrize("asks_for_usage", [False, True])
def test_a_chat_is_counted_and_shows_its_usage_to_those_alone_who_asked(
    ledger: Ledger, tmp_path: Path, asks_for_usage: bool
) -> None:
    claimed = ledger.take(ledger.task("t", step("a"))["a"])
    with serving(Answer(CHAT)) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        options = {"stream_options": {"include_usage": True}} if asks_for_usage else {}
        with openai_at(gateway.access(ledger, claimed)) as client:
            chunks = list(
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Hello."}], stream=True, **options
                )
            )
    ((headers, body),) = provider.requests
    assert headers["authorization"] == f"Bearer {REAL_KEY}"
    assert body["stream_options"] == {"include_usage": True}
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == "I read."
    assert any(one.usage for one in chunks) == asks_for_usage
    assert len(chunks) == 2 + asks_for_usage
    (used,) = ledger.rows("SELECT * FROM usage")
    assert (used["input_tokens"], used["output_tokens"], used["cache_read_tokens"]) == (10, 25, 7)
    assert (used["provider"], used["model"]) == ("openai", MODEL)


def test_a_streamed_response_is_counted(ledger: Ledger, tmp_path: Path) -> None:
    claimed = ledger.take(ledger.task("t", step("a"))["a"])
    response = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": MODEL,
        "status": "completed",
        "output": [],
        "usage": {
            "input_tokens": 17,
            "input_tokens_details": {"cached_tokens": 7},
            "output_tokens": 25,
            "output_tokens_details": {"reasoning_tokens": 5},
            "total_tokens": 42,
        },
    }
    events = data(
        {"type": "response.created", "response": {**response, "usage": None, "status": "in_progress"}},
        {"type": "response.output_text.delta", "delta": "I read.", "item_id": "m", "output_index": 0},
        {"type": "response.completed", "response": response},
    )
    with (
        serving(Answer(events)) as provider,
        gateway_to(ledger, provider.url, tmp_path) as gateway,
        openai_at(gateway.access(ledger, claimed)) as client,
    ):
        kinds = [event.type for event in client.responses.create(model=MODEL, input="Hello.", stream=True)]
    assert kinds == ["response.created", "response.output_text.delta", "response.completed"]
    (used,) = ledger.rows("SELECT * FROM usage")
    assert (used["input_tokens"], used["output_tokens"], used["cache_read_tokens"]) == (10, 25, 7)


@pytest.mark.parametrize("traces", [False, True])
def test_headers_for_us_stay_here_and_those_for_the_provider_pass(
    ledger: Ledger, tmp_path: Path, traces: bool
) -> None:
    claimed = ledger.take(ledger.task("t", step("a"))["a"])
    sent = {
        "X-Task-Id": "spoofed",
        "Idempotency-Key": "spoofed",
        "X-KILOCODE-TASK-ID": "spoofed",
        "X-Orchestrator-Anything": "spoofed",
        "Cookie": "spoofed",
        "anthropic-beta": "a-beta",
        "anthropic-version": "2023-06-01",
    }
    with (
        serving(Answer(STREAM, headers={"x-ratelimit": "7", "set-cookie": "theirs"})) as provider,
        gateway_to(ledger, provider.url, tmp_path, gateway_traces=traces) as gateway,
    ):
        token = gateway.access(ledger, claimed).token
        answer = httpx2.post(
            f"{gateway.url}/v1/messages?beta=true",
            json={"model": MODEL, "stream": True, "messages": [], "cache_control": {"type": "ephemeral"}},
            headers={**sent, "x-api-key": token},
            trust_env=False,
        )
    ((headers, _),) = provider.requests
    found = {name.lower(): value for name, value in headers.items()}
    assert "spoofed" not in found.values()
    assert (found["anthropic-beta"], found["anthropic-version"]) == ("a-beta", "2023-06-01")
    assert len(found["idempotency-key"]) == 64, "one that no other run can have"
    assert found.get("x-task-id") == ("t" if traces else None)
    assert ("x-timestamp-iso" in found) == traces
    assert answer.headers["x-ratelimit"] == "7"
    assert "set-cookie" not in answer.headers
    assert answer.content.decode().count("data:") == len(STREAM), "byte for byte"
    (call,) = ledger.rows("SELECT * FROM model_calls")
    read = call["reserved_tokens"] - 4096
    dearest = read * Decimal("3.75") + 4096 * Decimal(15)
    assert call["reserved_usd"] == dearest / 1_000_000, "as what is written to a cache"
    assert call["cost_usd"] == Decimal("0.0004071"), "as it was"


def test_counting_tokens_is_passed_on_and_free(ledger: Ledger, tmp_path: Path) -> None:
    claimed = ledger.take(ledger.task("t", step("a"), budget={"max_turns": 1})["a"])
    counted = Answer(['{"input_tokens": 42}'], headers={"content-type": "application/json"})
    with serving(counted) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claimed)
        with anthropic.Anthropic(api_key=access.token, base_url=access.base_url, max_retries=0) as client:
            for _ in range(2):
                found = client.messages.count_tokens(model=MODEL, messages=[])
                assert found.input_tokens == 42
            with pytest.raises(anthropic.PermissionDeniedError):
                client.messages.count_tokens(model="another", messages=[])
    assert len(provider.requests) == 2
    assert ledger.rows("SELECT 1 FROM model_calls") == []


def test_a_reply_that_is_not_streamed_is_counted_too(ledger: Ledger, tmp_path: Path) -> None:
    claimed = ledger.take(ledger.task("t", step("a"))["a"])
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "I read."}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "output_tokens": 25},
    }
    whole = Answer([json.dumps(message)], headers={"content-type": "application/json"})
    with serving(whole) as provider, gateway_to(ledger, provider.url, tmp_path) as gateway:
        access = gateway.access(ledger, claimed)
        with anthropic.Anthropic(api_key=access.token, base_url=access.base_url, max_retries=0) as client:
            reply = client.messages.create(model=MODEL, max_tokens=10, messages=[])
    assert reply.usage.output_tokens == 25
    (used,) = ledger.rows("SELECT * FROM usage")
    assert (used["input_tokens"], used["output_tokens"]) == (10, 25)
