"""OpenAI's Responses API: `POST /v1/responses`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from orchestrator.modelserver import chat
from orchestrator.modelserver.asked import (
    Asked,
    Dialect,
    Item,
    NotUnderstood,
    Offered,
    Speaker,
    as_text,
    mapping,
)
from orchestrator.modelserver.faults import Fault
from orchestrator.modelserver.said import Call, Ending, Rendering, Said, compact, event, pieces, tokens_in

_CALLS: Final = frozenset({"function_call", "custom_tool_call", "local_shell_call", "shell_call", "mcp_call"})
_ECHOED: Final = (
    *("instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "previous_response_id"),
    *("prompt_cache_key", "reasoning", "service_tier", "store", "temperature", "text", "tool_choice"),
    *("tools", "top_p", "truncation", "user"),
)


def read(body: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = ()) -> Asked:
    """`earlier`: input and output of the responses that `previous_response_id` stands for.
    Raises `NotUnderstood`.
    """
    given = input_of(body)
    everything = [*earlier, *given]
    if not everything:
        raise NotUnderstood("input: at least one item is required")
    instructed = [item for item in everything if item.get("role") in {"system", "developer"}]
    spoken = [item for item in everything if item.get("role") not in {"system", "developer"}]
    return Asked(
        dialect=Dialect.RESPONSES,
        model=str(body.get("model", "")),
        stream=body.get("stream") is True,
        system="\n".join([as_text(body.get("instructions")), *(as_text(item) for item in instructed)]),
        items=[_item(item) for item in spoken],
        tools=[tool for given in body.get("tools") or () for tool in _offered(mapping(given, "a tool"))],
        input_tokens=tokens_in(compact([body.get("instructions"), body.get("tools"), everything])),
        options=body,
    )


def input_of(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The request's own input as items. Raises `NotUnderstood`."""
    given = body.get("input") or []
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list):
        raise NotUnderstood("input must be a string or an array")
    return [mapping(item, "an input item") for item in given]


def _offered(tool: Mapping[str, Any], namespace: str | None = None) -> Iterator[Offered]:
    if tool.get("type") == "namespace":
        for inner in tool.get("tools") or ():
            yield from _offered(mapping(inner, "a tool"), str(tool.get("name", "")))
        return
    name = tool.get("name") or tool.get("type") or ""
    yield Offered(str(name), tool.get("parameters") or {}, namespace)


def _item(item: Mapping[str, Any]) -> Item:
    kind = str(item.get("type", "message"))
    if kind in _CALLS:
        text = as_text(item.get("arguments") or item.get("input") or "")
        return Item(Speaker.MODEL, text, str(item.get("call_id", item.get("id"))))
    if kind.endswith("_output"):
        return Item(Speaker.TOOL, as_text(item.get("output")), str(item.get("call_id")))
    if kind == "reasoning" or item.get("role") == "assistant":
        return Item(Speaker.MODEL, as_text(item.get("content")))
    return Item(Speaker.USER, as_text(item.get("content")))


def render(said: Said, *, stream: bool) -> Rendering:
    headers = {"x-request-id": f"req_{said.send}"}
    if stream:
        return Rendering(tuple(_numbered(_events(said))), streams=True, headers=headers)
    return Rendering((compact(_ended(said)).encode(),), streams=False, headers=headers)


def output_of(said: Said) -> list[dict[str, Any]]:
    """The items of the reply, complete."""
    items: list[dict[str, Any]] = []
    if said.thinking:
        summary = [{"type": "summary_text", "text": said.thinking}]
        items.append({"type": "reasoning", "id": f"rs_{said.send}", "summary": summary})
    if said.text:
        items.append(_message(said, "completed", [_part(said, said.text)]))
    items += [_call(call, "completed", call.arguments) for call in said.calls]
    return items


def _message(said: Said, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "message",
        "id": f"msg_{said.send}",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def _part(said: Said, text: str) -> dict[str, Any]:
    if said.ending is Ending.REFUSAL:
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call(call: Call, status: str, arguments: str) -> dict[str, Any]:
    kind, words = ("custom_tool_call", "input") if call.free_text else ("function_call", "arguments")
    return {
        "type": kind,
        "id": f"{'ctc' if call.free_text else 'fc'}_{call.id}",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        words: arguments,
        **({"namespace": call.namespace} if call.namespace else {}),
    }


def _response(said: Said, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
    }
    given = {name: said.echo[name] for name in _ECHOED if said.echo.get(name) is not None}
    return {
        "id": f"resp_{said.send}",
        "object": "response",
        "created_at": said.created_at,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": said.model,
        "output": output,
        "usage": None,
        **usual,
        **given,
    }


def _ended(said: Said) -> dict[str, Any]:
    cut_short = said.ending in {Ending.MAX_TOKENS, Ending.CONTEXT_FULL}
    return {
        **_response(said, "incomplete" if cut_short else "completed", output_of(said)),
        "incomplete_details": {"reason": "max_output_tokens"} if cut_short else None,
        "usage": _usage(said),
    }


def _usage(said: Said) -> dict[str, Any]:
    counts = said.counts
    return {
        "input_tokens": counts.input_tokens,
        "input_tokens_details": {
            "cached_tokens": counts.cache_read_tokens,
            "cache_write_tokens": counts.cache_write_tokens,
        },
        "output_tokens": counts.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts.input_tokens + counts.output_tokens,
    }


Event = tuple[str, dict[str, Any]]


def _numbered(events: Iterator[Event]) -> Iterator[bytes]:
    for number, (kind, fields) in zip(itertools.count(), events, strict=False):
        yield event(kind, {"type": kind, "sequence_number": number, **fields})


def _events(said: Said) -> Iterator[Event]:
    opened = _response(said, "in_progress", [])
    yield "response.created", {"response": opened}
    yield "response.in_progress", {"response": opened}
    for index, item in enumerate(output_of(said)):
        yield from _item_events(said, index, item)
    ended = _ended(said)
    yield f"response.{ended['status']}", {"response": ended}


def _item_events(said: Said, index: int, item: dict[str, Any]) -> Iterator[Event]:
    at = {"item_id": item["id"], "output_index": index}
    match item["type"]:
        case "message":
            yield (
                "response.output_item.added",
                {
                    "output_index": index,
                    "item": _message(said, "in_progress", []),
                },
            )
            yield from _message_events(said, {**at, "content_index": 0})
        case "reasoning":
            yield "response.output_item.added", {"output_index": index, "item": {**item, "summary": []}}
            yield from _summary_events({**at, "summary_index": 0}, said.thinking)
        case _:
            yield from _call_events(at, index, item)
    yield "response.output_item.done", {"output_index": index, "item": item}


def _message_events(said: Said, at: dict[str, Any]) -> Iterator[Event]:
    refused = said.ending is Ending.REFUSAL
    kind = "response.refusal" if refused else "response.output_text"
    more: dict[str, Any] = {} if refused else {"logprobs": []}
    yield "response.content_part.added", {**at, "part": _part(said, "")}
    for piece in pieces(said.text):
        yield f"{kind}.delta", {**at, "delta": piece, **more}
    yield f"{kind}.done", {**at, "refusal" if refused else "text": said.text, **more}
    yield "response.content_part.done", {**at, "part": _part(said, said.text)}


def _summary_events(at: dict[str, Any], thinking: str) -> Iterator[Event]:
    kind = "response.reasoning_summary"
    yield f"{kind}_part.added", {**at, "part": {"type": "summary_text", "text": ""}}
    for piece in pieces(thinking):
        yield f"{kind}_text.delta", {**at, "delta": piece}
    yield f"{kind}_text.done", {**at, "text": thinking}
    yield f"{kind}_part.done", {**at, "part": {"type": "summary_text", "text": thinking}}


def _call_events(at: dict[str, Any], index: int, item: dict[str, Any]) -> Iterator[Event]:
    free = item["type"] == "custom_tool_call"
    kind, words = (
        ("response.custom_tool_call_input", "input")
        if free
        else ("response.function_call_arguments", "arguments")
    )
    yield (
        "response.output_item.added",
        {
            "output_index": index,
            "item": {**item, "status": "in_progress", words: ""},
        },
    )
    for piece in pieces(item[words]):
        yield f"{kind}.delta", {**at, "delta": piece}
    name = {} if free else {"name": item["name"]}
    yield f"{kind}.done", {**at, words: item[words], **name}


ping = chat.ping
error = chat.error


def error_event(status: int, message: str, code: str | None = None) -> bytes:
    """Both spellings that clients look for: flat, and nested as in an error's body."""
    inner = error(status, message, code)["error"]
    return event("error", {**inner, "type": "error", "sequence_number": 0, "error": inner})


def failed_event(said: Said, fault: Fault) -> bytes:
    """How a response that broke off says so by itself."""
    code = fault.code or "server_error"
    response = {
        **_response(said, "failed", []),
        "error": {"code": code, "message": fault.message or "The server had an error."},
    }
    return event("response.failed", {"type": "response.failed", "sequence_number": 0, "response": response})
