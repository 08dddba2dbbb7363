"""OpenAI's Chat Completions: `POST /v1/chat/completions`."""

from __future__ import annotations

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
from orchestrator.modelserver.said import Call, Ending, Rendering, Said, compact, pieces, tokens_in

_FINISHES: Final[Mapping[Ending, str]] = {
    Ending.DONE: "stop",
    Ending.CALLS: "tool_calls",
    Ending.MAX_TOKENS: "length",
    Ending.REFUSAL: "stop",
    Ending.CONTEXT_FULL: "length",
}
_ERROR_TYPES: Final[Mapping[int, tuple[str, str | None]]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    402: ("insufficient_quota", "insufficient_quota"),
    403: ("invalid_request_error", "permission_denied"),
    404: ("invalid_request_error", "model_not_found"),
    409: ("invalid_request_error", None),
    413: ("invalid_request_error", None),
    429: ("requests", "rate_limit_exceeded"),
}


def read(body: Mapping[str, Any]) -> Asked:
    """Raises `NotUnderstood`."""
    messages = [mapping(message, "a message") for message in sequence(body.get("messages"), "messages")]
    if not messages:
        raise NotUnderstood("messages: at least one message is required")
    system = [message for message in messages if message.get("role") in {"system", "developer"}]
    spoken = [message for message in messages if message.get("role") not in {"system", "developer"}]
    return Asked(
        dialect=Dialect.CHAT,
        model=str(body.get("model", "")),
        stream=body.get("stream") is True,
        system="\n".join(as_text(message.get("content")) for message in system),
        items=[item for message in spoken for item in _items(message)],
        tools=[
            Offered(str(function.get("name", "")), function.get("parameters") or {})
            for function in (
                mapping(tool, "a tool").get("function") or {} for tool in body.get("tools") or ()
            )
        ],
        input_tokens=tokens_in(compact([body.get("tools"), messages])),
        options=body,
    )


def _items(message: Mapping[str, Any]) -> Iterator[Item]:
    text = as_text(message.get("content"))
    match message.get("role"):
        case "assistant":
            yield Item(Speaker.MODEL, text)
            for call in message.get("tool_calls") or ():
                function = mapping(call, "a tool call").get("function") or {}
                yield Item(Speaker.MODEL, str(function.get("arguments", "")), str(call.get("id")))
        case "tool":
            yield Item(Speaker.TOOL, text, str(message.get("tool_call_id")))
        case _:
            yield Item(Speaker.USER, text)


def render(said: Said, *, stream: bool) -> Rendering:
    headers = {"x-request-id": f"req_{said.send}"}
    if stream:
        return Rendering(tuple(_frames(said)), streams=True, headers=headers)
    refused = said.ending is Ending.REFUSAL
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if refused else said.text or None,
        "refusal": said.text if refused else None,
    }
    if said.calls:
        message["tool_calls"] = [_call(call, call.arguments) for call in said.calls]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _FINISHES[said.ending],
    }
    whole = {**_head(said, "chat.completion"), "choices": [choice], "usage": _usage(said)}
    return Rendering((compact(whole).encode(),), streams=False, headers=headers)


def _head(said: Said, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{said.send}",
        "object": kind,
        "created": said.created_at,
        "model": said.model,
        "system_fingerprint": "fp_local",
    }


def _call(call: Call, arguments: str) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _frames(said: Said) -> Iterator[bytes]:
    usage_wanted = (said.echo.get("stream_options") or {}).get("include_usage") is True
    head = _head(said, "chat.completion.chunk")
    for delta, finish in _deltas(said):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        yield _frame({**head, "choices": [choice], **({"usage": None} if usage_wanted else {})})
    if usage_wanted:
        yield _frame({**head, "choices": [], "usage": _usage(said)})
    yield b"data: [DONE]\n\n"


def _deltas(said: Said) -> Iterator[tuple[dict[str, Any], str | None]]:
    words = "refusal" if said.ending is Ending.REFUSAL else "content"
    yield {"role": "assistant", words: ""}, None
    for piece in pieces(said.text):
        yield {words: piece}, None
    for index, call in enumerate(said.calls):
        yield {"tool_calls": [{"index": index, **_call(call, "")}]}, None
        for piece in pieces(call.arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, None
    yield {}, _FINISHES[said.ending]


def _frame(data: Mapping[str, Any]) -> bytes:
    return f"data: {compact(data)}\n\n".encode("utf-8", "replace")


def _usage(said: Said) -> dict[str, Any]:
    counts = said.counts
    return {
        "prompt_tokens": counts.input_tokens,
        "completion_tokens": counts.output_tokens,
        "total_tokens": counts.input_tokens + counts.output_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.cache_read_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def ping() -> bytes:
    return b": keep-alive\n\n"


def error(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    kind, usual = _ERROR_TYPES.get(status, ("server_error", None))
    kind = code if code == "insufficient_quota" else kind
    return {"error": {"message": message, "type": kind, "param": None, "code": code or usual}}


def error_event(status: int, message: str, code: str | None = None) -> bytes:
    return _frame(error(status, message, code))
