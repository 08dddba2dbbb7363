"""Whatever a model's server says, it is a reply that can be kept and gone on with, or none at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.engine.parsing.calls import CallParser
from orchestrator.engine.ports import CallCompleted, ModelError, Reply
from orchestrator.engine.providers.chat import ChatAssembly
from orchestrator.engine.providers.responses import ResponsesAssembly
from orchestrator.engine.providers.stream import MOST_ID, Assembly
from orchestrator.engine.untrusted import DEEPEST


def messages(block: Mapping[str, Any], *deltas: Mapping[str, Any]) -> Reply:
    assembly = Assembly()
    events: list[Mapping[str, Any]] = [
        {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]
    for event in events:
        assembly.feed(event)
    return assembly.reply("r")


def chat(delta: Mapping[str, Any]) -> Reply:
    assembly = ChatAssembly()
    assembly.feed({"model": "m", "choices": [{"delta": delta}]})
    assembly.feed({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    return assembly.reply("r")


def responses(item: Mapping[str, Any]) -> Reply:
    assembly = ResponsesAssembly("m")
    assembly.feed({"type": "response.output_item.done", "output_index": 0, "item": item})
    assembly.feed({"type": "response.completed", "response": {"id": "r", "model": "m"}})
    return assembly.reply("r")


def asked_by(api: str, arguments: str, call_id: Any = "call", name: Any = "list_files") -> Reply:
    if api == "messages":
        block = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
        return messages(block, {"type": "input_json_delta", "partial_json": arguments})
    if api == "chat":
        called = {"name": name, "arguments": arguments}
        return chat({"tool_calls": [{"index": 0, "id": call_id, "function": called}]})
    item = {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
    return responses(item)


APIS = pytest.mark.parametrize("api", ["messages", "chat", "responses"])


@APIS
@pytest.mark.parametrize(
    "arguments",
    [
        '{"a": NaN}',
        '{"a": [-Infinity]}',
        '{"a": 1e999}',
        '{"a": ' + "9" * 5000 + "}",
        *('{"a":' * depth + "1" + "}" * depth for depth in (DEEPEST + 1, 400, 600, 900, 5000)),
        *('{"a":' + "[" * depth + "]" * depth + "}" for depth in (DEEPEST, 480, 100_000)),
    ],
    ids=lambda arguments: f"{arguments[:12]} of {len(arguments)}",
)
def test_arguments_that_no_row_can_hold_are_no_arguments(api: str, arguments: str) -> None:
    (call,) = asked_by(api, arguments).content
    assert list(call["input"]) == ["unparsed_json"]


@APIS
def test_arguments_as_deep_as_may_be_and_of_any_number_are_kept(api: str) -> None:
    arguments = {"n": 10**400, "a": json.loads("[" * (DEEPEST - 1) + "]" * (DEEPEST - 1))}
    (call,) = asked_by(api, json.dumps(arguments)).content
    assert call["input"] == arguments


def test_a_value_in_tags_that_no_row_can_hold_is_a_text() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "number"}}}
    for written in ("NaN", "1e999", "[" * 600 + "]" * 600):
        parser = CallParser([{"name": "f", "input_schema": schema}])
        found = [*parser.feed(f"<f><n>{written}</n></f>"), *parser.finish()]
        (call,) = (event for event in found if isinstance(event, CallCompleted))
        assert call.arguments == {"n": written}


@APIS
@pytest.mark.parametrize(
    ("call_id", "name"),
    [(5, "f"), (["a"], "f"), ({}, "f"), ("ä" * (MOST_ID // 2 + 1), "f"), ("a", None), ("a", ["f"]), ("a", 1)],
    ids=repr,
)
def test_a_call_without_a_usable_id_or_name_is_no_reply(api: str, call_id: Any, name: Any) -> None:
    if api == "chat" and call_id == {}:
        return  # none at all: it gets one of ours
    with pytest.raises(ModelError) as caught:
        asked_by(api, "{}", call_id, name)
    assert caught.value.code == "model-garbled"
    assert caught.value.retryable


@APIS
def test_ids_and_names_can_be_stored(api: str) -> None:
    (call,) = asked_by(api, "{}", "a\0\ud800", "b\0\udfff").content
    assert (call["id"], call["name"]) == ("a\ufffd?", "b\ufffd?")


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text"},
        {"type": "text", "text": 5},
        {"type": "text", "text": ["a"]},
        {"type": 5},
        {"type": "tool_use", "id": "a", "name": "f", "input": [1]},
        {"type": "tool_use", "id": "a", "name": "f", "input": "abc"},
        {"type": "thinking", "thinking": json.loads("[" * 300 + "]" * 300)},
    ],
    ids=repr,
)
def test_a_block_that_is_not_what_it_says_is_no_reply(block: Mapping[str, Any]) -> None:
    with pytest.raises(ModelError) as caught:
        messages(block)
    assert caught.value.code == "model-garbled"


@pytest.mark.parametrize("content", [5, ["a"], {"type": "text"}])
def test_a_chat_whose_text_is_none_is_no_reply(content: Any) -> None:
    with pytest.raises(ModelError) as caught:
        chat({"content": content})
    assert caught.value.code == "model-garbled"


def test_whole_calls_under_one_index_are_calls_of_their_own() -> None:
    pieces = [
        {"index": 0, "id": "one", "function": {"name": "read_file", "arguments": '{"path": '}},
        {"index": 0, "id": "one", "function": {"name": "read_file", "arguments": '"a"}'}},
        {"index": 0, "id": "two", "function": {"name": "read_file", "arguments": '{"path": '}},
        {"index": 0, "id": "else", "function": {"arguments": '"b"}'}},
    ]
    found = [(block["id"], block["input"]) for block in chat({"tool_calls": pieces}).content]
    assert found == [("one", {"path": "a"}), ("two", {"path": "b"})]
