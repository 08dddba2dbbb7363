"""Anthropic's Messages API: `POST /v1/messages`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from orchestrator.modelserver.asked import (
    Asked,
    Dialect,
    Item,
    NotUnderstood,
    Offered,
    Speaker,
    as_text,
    mapping,
    sequence,
)
from orchestrator.modelserver.said import (
    Call,
    Ending,
    Rendering,
    Said,
    compact,
    event,
    pieces,
    tokens_in,
)

_STOP_REASONS: Final[Mapping[Ending, str]] = {
    Ending.DONE: "end_turn",
    Ending.CALLS: "tool_use",
    Ending.MAX_TOKENS: "max_tokens",
    Ending.REFUSAL: "refusal",
    Ending.CONTEXT_FULL: "model_context_window_exceeded",
}
_ERROR_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def read(body: Mapping[str, Any]) -> Asked:
    """Raises `NotUnderstood`."""
    messages = [mapping(message, "a message") for message in sequence(body.get("messages"), "messages")]
    if not messages:
        raise NotUnderstood("messages: at least one message is required")
    return Asked(
        dialect=Dialect.MESSAGES,
        model=str(body.get("model", "")),
        stream=body.get("stream") is True,
        system=as_text(body.get("system")),
        items=[item for message in messages for item in _items(message)],
        tools=[
            Offered(str(tool.get("name", tool.get("type", ""))), tool.get("input_schema") or {})
            for tool in (mapping(tool, "a tool") for tool in body.get("tools") or ())
        ],
        input_tokens=tokens_in(compact([body.get("system"), body.get("tools"), messages])),
        options=body,
    )


def _items(message: Mapping[str, Any]) -> Iterator[Item]:
    speaker = Speaker.MODEL if message.get("role") == "assistant" else Speaker.USER
    content = message.get("content")
    if isinstance(content, str):
        yield Item(speaker, content)
        return
    for block in (mapping(block, "a content block") for block in content or ()):
        match block.get("type"):
            case "tool_use":
                yield Item(Speaker.MODEL, compact(block.get("input")), str(block.get("id")))
            case "tool_result":
                yield Item(Speaker.TOOL, as_text(block.get("content")), str(block.get("tool_use_id")))
            case _:
                yield Item(speaker, as_text(block))


def render(said: Said, *, stream: bool) -> Rendering:
    headers = {"request-id": f"req_{said.send}"}
    if stream:
        return Rendering(tuple(_events(said)), streams=True, headers=headers)
    message = {
        **_message(said),
        "content": [
            {**_opened(block), **_whole(block)} if isinstance(block, Call) else _written(*block)
            for block in _blocks(said)
        ],
        "stop_reason": _STOP_REASONS[said.ending],
    }
    return Rendering((compact(message).encode(),), streams=False, headers=headers)


Block = Call | tuple[str, str]
"""A call, or a kind (`thinking`, `text`) with its words."""


def _blocks(said: Said) -> Iterator[Block]:
    if said.thinking:
        yield ("thinking", said.thinking)
    if said.text:
        yield ("text", said.text)
    yield from said.calls


def _message(said: Said) -> dict[str, Any]:
    return {
        "id": f"msg_{said.send}",
        "type": "message",
        "role": "assistant",
        "model": said.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(said),
    }


def _usage(said: Said) -> dict[str, int]:
    """Messages counts what comes from the cache, or goes into it, apart from the input."""
    counts = said.counts
    return {
        "input_tokens": max(0, counts.input_tokens - counts.cache_read_tokens - counts.cache_write_tokens),
        "cache_read_input_tokens": counts.cache_read_tokens,
        "cache_creation_input_tokens": counts.cache_write_tokens,
        "output_tokens": counts.output_tokens,
    }


def _events(said: Said) -> Iterator[bytes]:
    message = _message(said)
    message["usage"] = {**message["usage"], "output_tokens": 1}
    yield event("message_start", {"type": "message_start", "message": message})
    yield ping()
    for index, block in enumerate(_blocks(said)):
        yield _event("content_block_start", index=index, content_block=_opened(block))
        for delta in _deltas(block):
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    delta = {"stop_reason": _STOP_REASONS[said.ending], "stop_sequence": None}
    yield _event("message_delta", delta=delta, usage=_usage(said))
    yield _event("message_stop")


def _event(kind: str, **fields: Any) -> bytes:
    return event(kind, {"type": kind, **fields})


def _opened(block: Block) -> dict[str, Any]:
    if isinstance(block, Call):
        return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}
    return _written(block[0], "")


def _written(kind: str, words: str) -> dict[str, Any]:
    if kind == "thinking":
        return {"type": "thinking", "thinking": words, "signature": "c2lnbmVk" if words else ""}
    return {"type": "text", "text": words}


def _whole(call: Call) -> dict[str, Any]:
    try:
        return {"input": json.loads(call.arguments)}
    except ValueError:
        return {"input": {"text": call.arguments}}


def _deltas(block: Block) -> Iterator[dict[str, Any]]:
    if isinstance(block, Call):
        for piece in ("", *pieces(block.arguments)):
            yield {"type": "input_json_delta", "partial_json": piece}
        return
    kind, words = block
    for piece in pieces(words):
        yield {"type": f"{kind}_delta", kind: piece}
    if kind == "thinking":
        yield {"type": "signature_delta", "signature": "c2lnbmVk"}


def ping() -> bytes:
    return _event("ping")


def error(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """`code`: an error type other than the status's own."""
    kind = code or _ERROR_TYPES.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}


def error_event(status: int, message: str, code: str | None = None) -> bytes:
    return event("error", error(status, message, code))
