"""A turn goes on from what its provider remembers, or tells the past as a whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from orchestrator.engine.ports import (
    ModelError,
)
from orchestrator.engine.providers.anthropic import AnthropicModel
from orchestrator.engine.providers.openai import OpenAIModel
from tests.engine_world import text
from tests.integration.provider_turns import reply_of, went_on
from tests.integration.test_provider_faults import REQUEST, SCRIPT, SECONDS
from tests.messages_server import Answer, closing, opening, serving, text_block
from tests.model_server import RunningModel, model_server


def storing(server: RunningModel) -> OpenAIModel:
    return OpenAIModel("gpt-x", "k", server.openai_url, deadlines=SECONDS, store=True)


def previous(server: RunningModel) -> list[str | None]:
    return [body.get("previous_response_id") for body in server.bodies()]


def test_a_turn_goes_on_from_the_response_before_and_sends_only_what_is_new() -> None:
    with model_server(SCRIPT) as server:
        model = storing(server)
        reply_of(model, went_on(REQUEST, reply_of(model)))
        assert previous(server)[0] is None
        assert previous(server)[1] is not None
        items = server.bodies()[1]["input"]
        assert [item["type"] for item in items] == ["function_call_output"]


@pytest.mark.parametrize("change", ["system", "message", "reply", "tools"])
def test_another_past_is_told_as_a_whole(change: str) -> None:
    with model_server(SCRIPT) as server:
        model = storing(server)
        request = went_on(REQUEST, reply_of(model))
        first, said, results = request.messages
        changed = {
            "system": replace(request, system="Another."),
            "message": replace(
                request, messages=[{**first, "content": [text("Hello, you.")]}, said, results]
            ),
            "reply": replace(
                request, messages=[first, {**said, "content": [text("Well."), *said["content"][1:]]}, results]
            ),
            "tools": replace(request, tools=request.tools[:3]),
        }[change]
        reply_of(model, changed)
        assert previous(server) == [None, None]
        assert len(server.bodies()[1]["input"]) > 2


def test_a_past_that_the_server_has_lost_is_told_once_more_and_only_once() -> None:
    with model_server(SCRIPT) as server:
        model = storing(server)
        request = went_on(REQUEST, reply_of(model))
        server.fault("previous-response-not-found")
        assert reply_of(model, request).stop_reason == "end_turn"
        assert [found is None for found in previous(server)] == [True, False, True]
        assert len({send.headers["idempotency-key"] for send in server.sends()[1:]}) == 2
        assert server.finished_twice() == []


def test_a_server_that_refuses_the_past_and_the_whole_is_believed() -> None:
    with model_server(SCRIPT) as server:
        model = storing(server)
        request = went_on(REQUEST, reply_of(model))
        server.fault("previous-response-not-found", times=2)
        with pytest.raises(ModelError) as raised:
            reply_of(model, request)
        assert (raised.value.code, raised.value.retryable) == ("model-request-refused", False)
        assert len(server.sends()) == 3


def test_of_two_sends_at_once_one_goes_on_from_the_response() -> None:
    with model_server(SCRIPT) as server, ThreadPoolExecutor(2) as pool:
        model = storing(server)
        request = went_on(REQUEST, reply_of(model))
        server.fault("slow-start", seconds=0.3, times=2)
        replies = list(pool.map(lambda _: reply_of(model, request), range(2)))
        assert [reply.stop_reason for reply in replies] == ["end_turn"] * 2
        assert sorted(found is None for found in previous(server)[1:]) == [False, True]


def test_after_a_failed_send_the_past_is_told_as_a_whole() -> None:
    with model_server(SCRIPT) as server:
        model = storing(server)
        request = went_on(REQUEST, reply_of(model))
        server.fault("cut")
        with pytest.raises(ModelError):
            reply_of(model, request)
        reply_of(model, request)
        assert [found is None for found in previous(server)] == [True, False, True]
        assert server.finished_twice() == []


def test_thoughts_of_a_longer_past_are_dropped_with_one_more_request() -> None:
    refusal = Answer(
        status=400,
        error={
            "type": "invalid_request_error",
            "message": "Invalid `signature`. The block is bound to a different conversation.",
        },
    )
    good = Answer([opening(), *text_block(0, "x"), *closing("end_turn")])
    with serving(refusal, good, good) as server:
        model = AnthropicModel("claude-x", "k", server.url, deadlines=SECONDS)
        assert reply_of(model).stop_reason == reply_of(model).stop_reason == "end_turn"
        (plain, first), (controlled, second), (_, third) = server.requests
    assert "thinking" not in first
    assert second["thinking"]["block_binding"] == {"prefix_mismatch_behavior": "drop_block"}
    assert "thinking-binding-controls" in controlled["anthropic-beta"]
    assert "anthropic-beta" not in plain
    assert third["thinking"] == second["thinking"], "a past that was shortened stays so"
