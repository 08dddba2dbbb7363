"""What each of the three APIs promises besides naming faults."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator.core.assignment import ModelAccess, Stop
from orchestrator.core.model_choice import ModelOptions, ModelSelection
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import StopReason
from orchestrator.engine.ports import (
    CallCompleted,
    ModelError,
    Stopped,
    StreamEvent,
    TextDelta,
    Usage,
    counted,
)
from orchestrator.engine.providers.anthropic import AnthropicModel
from orchestrator.engine.providers.making import Making, make, make_selected
from orchestrator.engine.providers.tracing import Tracing
from tests.engine_world import text
from tests.integration.provider_turns import reply_of, went_on
from tests.integration.test_provider_faults import APIS, REQUEST, SCRIPT, SECONDS
from tests.messages_server import Answer, serving
from tests.model_server import model_server


@pytest.mark.parametrize("api", APIS)
def test_a_conversation_goes_on_over_each_api(api: str) -> None:
    heard: list[StreamEvent] = []
    with model_server(SCRIPT) as server:
        model = APIS[api](server, SECONDS)
        first = model.reply(REQUEST, heard.append, Stop())
        second = reply_of(model, went_on(REQUEST, first))
        sends = server.sends()
    assert [block["type"] for block in first.content] == ["text", "tool_use"]
    assert first.content[1]["input"] == {"path": "src/module.py"}
    assert first.stop_reason == "tool_use"
    assert first.usage.input_tokens > 0
    assert first.usage.output_tokens > 0
    assert first.request_id
    assert "".join(event.text for event in heard if isinstance(event, TextDelta)) == first.content[0]["text"]
    assert [event.block() for event in heard if isinstance(event, CallCompleted)] == [first.content[1]]
    assert (second.content, second.stop_reason) == ((text("It is good as it is."),), "end_turn")
    assert [send.turn for send in sends] == [0, 1]


@pytest.mark.parametrize("api", APIS)
def test_what_was_cached_is_no_part_of_the_input(api: str) -> None:
    usage = {"input_tokens": 100, "output_tokens": 7, "cache_read_tokens": 60, "cache_write_tokens": 0}
    with model_server({"conversations": [{"turns": [{"text": "x", "usage": usage}]}]}) as server:
        reply = reply_of(APIS[api](server, SECONDS))
    assert reply.usage.cache_read_tokens == 60
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (40, 7)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("fault", ["hang", "stall", "stall-alive"])
def test_a_stop_closes_the_connection_at_once(api: str, fault: str) -> None:
    stop = Stop()
    with model_server(SCRIPT) as server, ThreadPoolExecutor(1) as pool:
        server.fault(fault)
        asked = pool.submit(APIS[api](server, SECONDS).reply, REQUEST, lambda _: None, stop)
        server.await_sends(1)
        stop.set(StopReason.CANCEL)
        with pytest.raises(Stopped):
            asked.result(10)
        (send,) = server.await_end()
    assert send.outcome == "client-left"


@pytest.mark.parametrize("api", APIS)
def test_each_call_says_whose_it_is(api: str) -> None:
    clock = lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)  # noqa: E731 - a clock
    tracing = Tracing(
        ("X-Task-Id", "X-KILOCODE-TASK-ID"), ("X-Timestamp-Iso", "X-KILOCODE-TIMESTAMP-ISO"), clock=clock
    )
    with model_server(SCRIPT) as server:
        reply_of(replace(APIS[api](server, SECONDS), tracing=tracing))  # type: ignore[type-var]
        headers = server.sends()[0].headers
    assert headers["x-task-id"] == headers["x-kilocode-task-id"] == "task-1"
    assert headers["x-timestamp-iso"] == headers["x-kilocode-timestamp-iso"] == "2026-01-02T03:04:05.000Z"
    assert headers["idempotency-key"] == "step-1-3-1-turn-1-1"


@pytest.mark.parametrize("api", APIS)
def test_a_transport_without_headers_gets_a_block_that_asks_for_nothing(api: str) -> None:
    with model_server(SCRIPT) as server:
        reply_of(replace(APIS[api](server, SECONDS), tracing=Tracing(in_system=True)))  # type: ignore[type-var]
        (send,) = server.sends()
    assert "x-task-id" not in send.headers
    said = "Metadata of this request, for logs alone: task task-1, step step-1."
    assert said in str(send.body)
    if api == "messages":
        assert "cache_control" in send.body["system"][0]
        assert send.body["system"][1] == {"type": "text", "text": said}


GATEWAY = {
    "budget-exhausted": (402, ErrorClass.LIMIT, False),
    "circuit-open": (503, ErrorClass.OVERLOADED, True),
    "run-token-invalid": (401, ErrorClass.NETWORK, True),
    "model-not-allowed": (403, ErrorClass.VALIDATION, False),
    "price-unknown": (403, ErrorClass.VALIDATION, False),
    "provider-missing": (503, ErrorClass.AUTH, False),
    "gateway-unready": (503, ErrorClass.NETWORK, True),
}


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("code", GATEWAY)
def test_what_the_gateway_refuses_keeps_its_code(api: str, code: str) -> None:
    status, error, retryable = GATEWAY[code]
    with model_server(SCRIPT) as server:
        server.fault(
            "server-error",
            status=status,
            retry_after=21,
            headers={"x-orchestrator-code": code},
            message=f"The gateway's own words. [{code}]",
        )
        with pytest.raises(ModelError) as raised:
            reply_of(APIS[api](server, SECONDS))
        assert len(server.sends()) == 1
    found = raised.value
    assert (found.error, found.code, found.retryable) == (error, code, retryable)
    assert found.retry_after == timedelta(seconds=21)
    assert "The gateway's own words." in found.message
    assert str(found.message).count(code) == 0, "the code is said beside the message"


@pytest.mark.parametrize("api", ["messages", "responses", "chat"])
def test_a_model_without_tool_calls_works_by_tags_over_each_api(api: Any) -> None:
    turns = [
        {"text": "Look.\n<read_file>\n<path>src/module.py</path>\n</read_file>"},
        {"text": "<attempt_completion><summary>Fine.</summary></attempt_completion>"},
    ]
    with model_server({"conversations": [{"turns": turns}]}) as server:
        how = Making({"m": ModelOptions(api=api, native_tools=False)}, SECONDS)
        model = make("m", ModelAccess(server.url, "t"), how)
        first = reply_of(model)
        second = reply_of(model, went_on(REQUEST, first))
        bodies = server.bodies()
    assert first.content[1]["input"] == {"path": "src/module.py"}
    assert second.content[0]["input"] == {"summary": "Fine."}
    assert not any(body.get("tools") for body in bodies)
    assert "<path>(path)</path>" in str(bodies[0])
    assert "<result of=" in str(bodies[1])


def test_no_list_of_models_is_ever_asked_for() -> None:
    """A provider that looked the model up before each send would double what is sent."""
    with model_server(SCRIPT) as server:
        for api in APIS:
            reply_of(APIS[api](server, SECONDS))
        assert [send.path for send in server.sends()] == [
            "/v1/messages",
            "/v1/responses",
            "/v1/chat/completions",
        ]
    with serving(Answer(status=404, error={"type": "not_found_error", "message": "no"})) as bare:
        with pytest.raises(ModelError):
            reply_of(AnthropicModel("m", "k", bare.url, deadlines=SECONDS))
        assert len(bare.requests) == 1


def test_tokens_are_counted_by_the_provider() -> None:
    with model_server(SCRIPT) as server:
        counted = AnthropicModel("claude-x", "k", server.url, deadlines=SECONDS).count(REQUEST)
        reply = reply_of(AnthropicModel("claude-x", "k", server.url, deadlines=SECONDS))
    assert counted > 0
    assert reply.usage != Usage()


def test_what_the_provider_does_not_count_is_not_guessed() -> None:
    """The engine has an estimate of its own, from what the provider counted last."""
    with serving(Answer(status=529, error={"type": "overloaded_error", "message": "no"})) as bare:
        access, how = ModelAccess(bare.url, "t"), Making({}, SECONDS)
        with pytest.raises(ModelError):
            counted(make_selected(ModelSelection("claude-x"), access, how), REQUEST)
        assert len(bare.requests) == 1
        assert counted(make_selected(ModelSelection("gpt-x"), access, how), REQUEST) is None
        assert len(bare.requests) == 1
