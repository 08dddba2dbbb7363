"""What providers promise besides naming faults: one send, one refresh, one past, one place for headers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.assignment import ModelAccess, Stop
from orchestrator.core.model_choice import ModelOptions, ModelSelection, TaskType
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import Done, StopReason
from orchestrator.engine import loop
from orchestrator.engine.context import Counting
from orchestrator.engine.ports import (
    Block,
    CallCompleted,
    Model,
    ModelError,
    ModelRequest,
    ModelSwitched,
    Reply,
    Stopped,
    StreamEvent,
    TextDelta,
    Turn,
    Usage,
)
from orchestrator.engine.providers.anthropic import AnthropicModel
from orchestrator.engine.providers.credential import Credential, Renewable
from orchestrator.engine.providers.making import Making, make, make_selected
from orchestrator.engine.providers.openai import OpenAIModel
from orchestrator.engine.providers.tracing import Tracing
from tests.engine_world import FileJournal, FolderWorkspace, Wire, assignment, text
from tests.integration.test_provider_faults import APIS, REQUEST, SCRIPT, SECONDS
from tests.messages_server import Answer, closing, opening, serving, text_block
from tests.model_server import RunningModel, model_server

WITH_KEYS: dict[str, Callable[[RunningModel, Credential], Model]] = {
    "messages": lambda server, key: AnthropicModel("claude-x", key, server.url, deadlines=SECONDS),
    "responses": lambda server, key: OpenAIModel("gpt-x", key, server.openai_url, deadlines=SECONDS),
    "chat": lambda server, key: OpenAIModel("gpt-x", key, server.openai_url, "chat", deadlines=SECONDS),
}


def reply_of(model: Model, request: ModelRequest = REQUEST) -> Reply:
    return model.reply(request, lambda _: None, Stop())


def went_on(request: ModelRequest, reply: Reply, result: str = "print()") -> ModelRequest:
    """The next turn: the reply as it was given, and the results of its calls."""
    results: list[Block] = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": result}
        for block in reply.content
        if block["type"] == "tool_use"
    ]
    said = {"role": "assistant", "content": list(reply.content)}
    return replace(request, messages=[*request.messages, said, {"role": "user", "content": results}])


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
    "run-token-invalid": (401, ErrorClass.AUTH, False),
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


# ---- previous_response_id


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


# ---- credentials


class Tokens:
    """Gives the next token, slowly; counts how often it was asked and how often at once."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self.fetched = 0
        self.at_once = 0
        self._under_way = 0
        self._lock = threading.Lock()

    def fetch(self) -> str:
        with self._lock:
            self._under_way += 1
            self.at_once = max(self.at_once, self._under_way)
        time.sleep(0.1)  # a token's server takes its time: who comes meanwhile must wait for it
        with self._lock:
            self._under_way -= 1
            self.fetched += 1
        return f"token-{next(self._numbers)}"


@pytest.mark.parametrize("api", WITH_KEYS)
def test_a_refused_token_is_renewed_and_one_send_succeeds(api: str) -> None:
    tokens = Tokens()
    with model_server(SCRIPT) as server:
        server.fault("unauthorized")
        assert reply_of(WITH_KEYS[api](server, Renewable(tokens.fetch))).stop_reason == "tool_use"
        sends = server.sends()
    assert [send.status for send in sends] == [401, 200]
    assert len({send.key for send in sends}) == 2, "the second with another token"
    assert tokens.fetched == 2


@pytest.mark.parametrize("api", WITH_KEYS)
def test_a_token_refused_twice_is_given_up(api: str) -> None:
    with model_server(SCRIPT) as server:
        server.fault("unauthorized", times=None)
        with pytest.raises(ModelError) as raised:
            reply_of(WITH_KEYS[api](server, Renewable(Tokens().fetch)))
        assert len(server.sends()) == 2
    assert (raised.value.error, raised.value.retryable) == (ErrorClass.AUTH, False)


def test_many_senders_wait_for_one_refresh_and_each_succeeds_once() -> None:
    tokens = Tokens()
    with model_server(SCRIPT) as server, ThreadPoolExecutor(4) as pool:
        key = Renewable(tokens.fetch)
        key.current()
        server.fault("unauthorized", times=None, when={"headers": {"authorization": "Bearer token-1"}})
        models = [WITH_KEYS["messages"](server, key) for _ in range(4)]
        replies = list(pool.map(reply_of, models))
        statuses = sorted(send.status or 0 for send in server.sends())
    assert [reply.stop_reason for reply in replies] == ["tool_use"] * 4
    assert tokens.at_once == 1
    assert statuses.count(200) == 4
    assert 1 <= statuses.count(401) <= 4


def test_the_refused_token_of_a_latecomer_is_not_renewed_again() -> None:
    tokens = Tokens()
    key = Renewable(tokens.fetch)
    old = key.current()
    assert key.renewed(old) == "token-2"
    assert key.renewed(old) == "token-2"
    assert tokens.fetched == 2


# ---- several models


def selected(server: RunningModel, selection: ModelSelection, **options: ModelOptions) -> Model:
    how = Making({name.replace("_", "-"): option for name, option in options.items()}, SECONDS)
    return make_selected(selection, ModelAccess(server.url, "run-token"), how)


def test_a_fallback_answers_after_the_failed_send_is_closed() -> None:
    heard: list[StreamEvent] = []
    with model_server(SCRIPT) as server:
        server.fault("stall-alive", when={"model": "claude-a"})
        how = Making({}, replace(SECONDS, stall=timedelta(seconds=3)))
        selection = ModelSelection("claude-a", ("gpt-b",))
        model = make_selected(selection, ModelAccess(server.url, "t"), how)
        reply = model.reply(REQUEST, heard.append, Stop())
        sends = server.await_end()
    assert reply.model == "gpt-b"
    assert reply.reason == "claude-a failed: model-stalled"
    assert ModelSwitched("gpt-b", "claude-a failed: model-stalled") in heard
    assert [(send.model, send.outcome) for send in sends] == [
        ("claude-a", "client-left"),
        ("gpt-b", "complete"),
    ]


def test_a_model_that_failed_rests_and_the_reason_is_kept() -> None:
    with model_server(SCRIPT) as server:
        server.fault("overloaded", when={"model": "claude-a"})
        model = selected(server, ModelSelection("claude-a", ("claude-b",)))
        request = went_on(REQUEST, reply_of(model))
        second = reply_of(model, request)
        assert [send.model for send in server.sends()] == ["claude-a", "claude-b", "claude-b"]
    assert second.reason == "claude-a rests: model-overloaded"


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("bad-request", {}),
        ("context-too-long", {}),
        ("refusal", {}),
        ("billing", {"status": 402, "headers": {"x-orchestrator-code": "budget-exhausted"}}),
        ("unauthorized", {"headers": {"x-orchestrator-code": "run-token-invalid"}}),
    ],
)
def test_what_no_other_model_can_mend_is_raised_at_once(fault: str, how: dict[str, Any]) -> None:
    with model_server(SCRIPT) as server:
        server.fault(fault, **how)
        with pytest.raises(ModelError):
            reply_of(selected(server, ModelSelection("claude-a", ("claude-b",))))
        assert len(server.sends()) == 1


def test_a_stop_in_the_middle_asks_no_fallback() -> None:
    stop = Stop()
    with model_server(SCRIPT) as server, ThreadPoolExecutor(1) as pool:
        server.fault("stall")
        model = selected(server, ModelSelection("claude-a", ("claude-b",)))
        asked = pool.submit(model.reply, REQUEST, lambda _: None, stop)
        server.await_sends(1)
        stop.set(StopReason.CANCEL)
        with pytest.raises(Stopped):
            asked.result(10)
        assert len(server.await_end()) == 1


def test_the_last_model_s_failure_is_raised() -> None:
    with model_server(SCRIPT) as server:
        server.fault("overloaded")
        server.fault("rate-limit", retry_after=5)
        with pytest.raises(ModelError) as raised:
            reply_of(selected(server, ModelSelection("claude-a", ("claude-b",))))
        assert len(server.sends()) == 2
    assert (raised.value.code, raised.value.retry_after) == ("model-rate-limited", timedelta(seconds=5))


def test_models_change_with_the_phase_of_the_work() -> None:
    special = {TaskType.PLANNING: "claude-plan", TaskType.TESTING: "gpt-test"}
    turns = [
        {"text": "Plan.", "thinking": "Secret plan.", "calls": [{"name": "read_file", "arguments": {}}]},
        {"text": "Write.", "calls": [{"name": "write_file", "arguments": {}}]},
        {"text": "Write more.", "calls": [{"name": "run_command", "arguments": {}}]},
        {"text": "Done.", "calls": [{"name": "attempt_completion", "arguments": {}}]},
    ]
    with model_server({"conversations": [{"turns": turns}]}) as server:
        model = selected(server, ModelSelection("claude-main", (), special))
        request, reasons = REQUEST, []
        for _ in turns:
            reply = reply_of(model, request)
            reasons.append(reply.reason)
            request = went_on(request, reply)
        sends = server.sends()
    assert [send.model for send in sends] == ["claude-plan", "claude-plan", "claude-main", "gpt-test"]
    assert reasons == ["the model for planning"] * 2 + ["the default model", "the model for testing"]
    thoughts = ["Secret plan." in str(send.body) for send in sends]
    assert thoughts == [False, True, False, False], "thoughts are the model's own"
    assert not any("thought_by" in str(send.body) for send in sends)


def test_the_smallest_window_is_that_of_all() -> None:
    sizes = {"a": ModelOptions(context_tokens=200_000), "b": ModelOptions(context_tokens=32_000)}
    access = ModelAccess("http://127.0.0.1:9", "t")
    made = make_selected(ModelSelection("a", ("b", "c")), access, Making(sizes))
    assert getattr(made, "context_tokens") == 32_000  # noqa: B009 - a model may have it or not
    assert getattr(made, "metered") is True  # noqa: B009


def test_a_step_tells_of_its_models_and_each_of_its_sends_has_a_key(tmp_path: Path) -> None:
    turns = [
        {"text": "One.", "calls": [{"name": "write_file", "arguments": {"path": "a", "content": "b"}}]},
        {"calls": [{"name": "attempt_completion", "arguments": {"summary": "Done."}}]},
    ]
    wire, journal = Wire(), FileJournal(tmp_path / "journal")
    with model_server({"conversations": [{"turns": turns}]}) as server:
        server.fault("cut", turn=1)
        verdict = loop.work(
            assignment(agent_type="engine"),
            wire,
            model=selected(server, ModelSelection("claude-a", ("gpt-b",))),
            journal=journal,
            workspace=FolderWorkspace(tmp_path / "workspace"),
        )
        sends = server.sends()
        assert server.finished_twice() == []
    assert verdict == Done("Done.")
    assert [send.model for send in sends] == ["claude-a", "claude-a", "gpt-b"]
    assert {send.headers["x-task-id"] for send in sends} == {"task"}
    keys = [send.headers["idempotency-key"] for send in sends]
    assert keys == ["step-1-1-turn-1-1", "step-1-2-turn-3-1", "step-1-2-turn-3-1"]
    reason = "claude-a failed: model-stream-dropped"
    assert ("model", {"model": "gpt-b", "reason": reason}) in wire.notes
    turns_kept = [entry for entry in journal.load().entries if isinstance(entry, Turn)]
    assert [turn.reason for turn in turns_kept] == ["the default model", reason]


# ---- without tool calls of its own


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


def test_what_can_t_be_counted_is_estimated() -> None:
    with serving(Answer(status=529, error={"type": "overloaded_error", "message": "no"})) as bare:
        model = make_selected(ModelSelection("claude-x"), ModelAccess(bare.url, "t"), Making({}, SECONDS))
        assert isinstance(model, Counting)
        assert model.count(REQUEST) > 100
        assert len(bare.requests) == 1
