"""What the gateway sees of a reply doesn't depend on the pieces in which it comes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.db.spending import Refusal, Tokens
from orchestrator.gateway.dialects import CHAT, MESSAGES, RESPONSES, Dialect, Request
from orchestrator.gateway.frames import Frames
from orchestrator.gateway.observing import Observer, joined
from orchestrator.gateway.reading import read

ANTHROPIC = [
    {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 9, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "input": {}}},
    {"type": "content_block_delta", "index": 0, "delta": {"partial_json": '{"a":'}},
    {"type": "content_block_delta", "index": 0, "delta": {"partial_json": ' "ä"}'}},
    {"type": "content_block_delta", "index": 7, "delta": {"text": "of no block"}},
    {"type": "message_delta", "delta": {"stop_reason": "end"}, "usage": {"output_tokens": 3}},
    {"type": "message_stop"},
]
CHUNKS = [
    {"model": "m", "choices": [{"index": 0, "delta": {"content": "a"}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}}]},
    {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}},
]
EVENTS = [
    {"type": "response.output_text.delta", "delta": "abc"},
    {"type": "response.completed", "response": {"usage": {"input_tokens": 9, "output_tokens": 3}}},
]


def wire(events: list[Any], end: str = "\n") -> bytes:
    lines = (f": a comment{end}event: x{end}data: {json.dumps(one)}{end}{end}" for one in events)
    return ("".join(lines) + f"data: nonsense{end}{end}data: [DONE]{end}{end}").encode()


def watch(dialect: Dialect, *pieces: bytes) -> tuple[Tokens, bool, Any]:
    observer = Observer(dialect, streamed=True)
    for piece in pieces:
        list(observer.feed(piece))
    observer.close()
    return observer.tokens(100), observer.seen.ended, joined(observer.seen.content)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("dialect", "events"), [(MESSAGES, ANTHROPIC), (CHAT, CHUNKS), (RESPONSES, EVENTS)], ids=str
)
def test_split_anywhere_a_reply_is_seen_the_same(dialect: Dialect, events: list[Any], end: str) -> None:
    stream = wire(events, end)
    whole = watch(dialect, stream)
    assert whole[0] == Tokens(9, 3)
    assert whole[1]
    for place in range(len(stream)):
        assert watch(dialect, stream[:place], stream[place:]) == whole, place
    assert watch(dialect, *(bytes([one]) for one in stream)) == whole


def test_every_byte_is_in_an_event_or_in_the_rest() -> None:
    stream = wire(ANTHROPIC) + b"data: cut off"
    frames = Frames()
    given = [raw for place in range(0, len(stream), 7) for raw, _ in frames.feed(stream[place : place + 7])]
    assert b"".join(given) + frames.rest() == stream
    assert frames.rest() == b"data: cut off"


def test_texts_that_came_in_pieces_are_kept_as_one() -> None:
    _, _, message = watch(MESSAGES, wire(ANTHROPIC))
    assert message["content"][0]["input"] == '{"a": "ä"}'
    _, _, chat = watch(CHAT, wire(CHUNKS))
    assert chat["choices"]["0"]["message"]["tool_calls"]["0"]["function"]["arguments"] == "{}"


def test_a_reply_without_its_count_is_estimated_by_its_length() -> None:
    tokens, ended, _ = watch(MESSAGES, wire(ANTHROPIC[:4])[:-30])
    assert tokens == Tokens(input=9, output=3, estimated=True)
    assert not ended
    silent, _, _ = watch(RESPONSES, b"x" * 400)
    assert silent == Tokens(input=100, output=101, estimated=True), "nothing of it could be read"


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "dear", "model": "cheap"}',
        '{"model": "m", "input": [{"a": 1, "a": 2}]}',
        '{"model": "m", "background": true}',
        '{"model": ""}',
        '{"model": "\\ud800"}',
        '{"model": "a\\u0000b"}',
        '{"model": 1}',
        "[" * 100_000,
        '{"model": "m", "input": ' + "[" * 100 + "]" * 100 + "}",
        '{"model": "m", "input": [' + "[]," * 700_000 + "0]}",
        '{"model": "m", "stream": 1}',
        '{"model": "m", "n": 2}',
        '{"model": "m", "service_tier": "priority"}',
        '{"model": "m", "service_tier": "Priority"}',
        '{"model": "m", "inference_geo": "us"}',
        '{"model": "m", "models": ["dear"]}',
        "\x00",
    ],
)
def test_what_a_provider_could_take_for_something_else_is_not_passed_on(body: str) -> None:
    assert isinstance(read(RESPONSES, body.encode()), Refusal)


@pytest.mark.parametrize("coding", ["utf-16", "utf-32", "utf-8-sig", "latin-1"])
def test_a_body_is_read_as_utf_8_as_every_provider_does(coding: str) -> None:
    assert isinstance(read(RESPONSES, '{"model": "m", "input": "\xe4"}'.encode(coding)), Refusal)


@pytest.mark.parametrize("less", ["max_tokens", "max_completion_tokens"])
def test_of_two_bounds_of_a_reply_the_one_that_allows_more_is_counted_with(less: str) -> None:
    bounds = {"max_tokens": 9000, "max_completion_tokens": 9000, less: 1}
    found = read(CHAT, json.dumps({"model": "m", **bounds}).encode())
    assert isinstance(found, Request)
    assert found.max_output == 9000


@pytest.mark.parametrize("most", ["true", "9000.0", "-1", '"9000"', "[9000]"])
def test_a_bound_of_a_reply_that_may_be_read_in_two_ways_is_not_passed_on(most: str) -> None:
    body = f'{{"model": "m", "max_tokens": 1, "max_completion_tokens": {most}}}'
    assert isinstance(read(CHAT, body.encode()), Refusal)


def test_tools_schemas_may_be_nested_as_deep_as_real_ones() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(40):
        schema = {"type": "object", "properties": {"a": schema}}
    body = {"model": "m", "tools": [{"type": "function", "name": "a", "parameters": schema}]}
    assert isinstance(read(RESPONSES, json.dumps(body).encode()), Request)
