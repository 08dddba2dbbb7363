"""The Responses API: our requests in its words, and its stream put together to a reply.

What a model reasoned comes encrypted and goes back to the same model as it came, in a block of its own kind:
{"type": "reasoning", "model": …, "item": …}. All others leave it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.engine.ports import (
    Block,
    CallAnnounced,
    CallCompleted,
    Reply,
    StreamEvent,
    TextDelta,
    Usage,
)
from orchestrator.engine.providers import meaning
from orchestrator.engine.providers.openai_errors import meaning_of_code
from orchestrator.engine.providers.stream import parsed_arguments, usable
from orchestrator.engine.untrusted import storable

_STANDING_STILL = frozenset({"response.queued", "response.in_progress", "response.created", "keepalive"})


def tools(schemas: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [
        {
            "type": "function",
            "name": schema["name"],
            "description": schema.get("description", ""),
            "parameters": schema["input_schema"],
            "strict": False,
        }
        for schema in schemas
    ]


def items(messages: Sequence[Mapping[str, Any]], model: str) -> list[Mapping[str, Any]]:
    """Each block is an item of its own, in order."""
    return [
        item for message in messages for block in message["content"] for item in _items(message, block, model)
    ]


def _items(message: Mapping[str, Any], block: Block, model: str) -> Iterator[Mapping[str, Any]]:
    match block["type"]:
        case "text":
            yield {"role": message["role"], "content": block["text"]}
        case "tool_use":
            yield {
                "type": "function_call",
                "call_id": block["id"],
                "name": block["name"],
                "arguments": json.dumps(block["input"], ensure_ascii=False),
            }
        case "tool_result":
            yield {
                "type": "function_call_output",
                "call_id": block["tool_use_id"],
                "output": said(block),
            }
        case "reasoning" if block.get("model") == model:
            yield block["item"]
        case _:
            return


def said(result: Block) -> str:
    """The text of a tool's result; that it is an error has no other place here."""
    content = result["content"]
    text = content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)
    return f"The call failed.\n{text}" if result.get("is_error") else text


class ResponsesAssembly:
    """Fed with events as plain dictionaries, in order; `reply` once the last one is in."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._items: dict[int, Mapping[str, Any]] = {}
        self._response: Mapping[str, Any] | None = None
        self.moved = False
        """Whether the last event brought the reply forward."""
        self.response_id: str | None = None

    def feed(self, event: Mapping[str, Any]) -> list[StreamEvent]:
        """What a listener may want to know of it. Raises `ModelError`."""
        try:
            return list(self._take(event))
        except (KeyError, TypeError, ValueError, AttributeError) as garbled:
            raise meaning.failure(meaning.GARBLED) from garbled

    def _take(self, event: Mapping[str, Any]) -> Iterator[StreamEvent]:
        self.moved = event["type"] not in _STANDING_STILL
        match event["type"]:
            case "response.output_item.added" if event["item"]["type"] == "function_call":
                yield CallAnnounced(event["item"]["name"])
            case "response.output_text.delta":
                yield TextDelta(storable(event["delta"]))
            case "response.output_item.done":
                item = event["item"]
                self._items[event["output_index"]] = item
                if item["type"] == "function_call":
                    yield _call(item)
            case "response.completed" | "response.incomplete":
                self._response = event["response"]
                self.response_id = self._response["id"]
            case "response.failed":
                raise _failed(event["response"].get("error") or {})
            case "error":
                raise _failed(event)
            case _:
                pass

    def reply(self, request_id: str | None) -> Reply:
        """Raises `ModelError` when the stream ended before the reply did, or the reply is a refusal."""
        if self._response is None:
            raise meaning.failure(meaning.TRUNCATED)
        try:
            return usable(self._reply(self._response, request_id))
        except (KeyError, TypeError, ValueError, AttributeError) as garbled:
            raise meaning.failure(meaning.GARBLED) from garbled

    def _reply(self, response: Mapping[str, Any], request_id: str | None) -> Reply:
        found = [self._items[index] for index in sorted(self._items)] or response.get("output") or []
        content = tuple(block for item in found for block in _blocks(item, self._model))
        return Reply(
            content=content,
            stop_reason=_stop_reason(response, content),
            usage=_usage(response.get("usage") or {}),
            model=response.get("model") or "",
            request_id=request_id,
        )


def _call(item: Mapping[str, Any]) -> CallCompleted:
    written = item.get("arguments") or ""
    arguments = parsed_arguments(written) if written else {}
    return CallCompleted(storable(item["call_id"]), storable(item["name"]), arguments)


def _blocks(item: Mapping[str, Any], model: str) -> Iterator[Block]:
    match item["type"]:
        case "message":
            for part in item["content"]:
                if part["type"] == "refusal":
                    raise meaning.failure(meaning.REFUSED, part.get("refusal"))
                if part["type"] == "output_text":
                    yield {"type": "text", "text": storable(part["text"])}
        case "function_call":
            yield _call(item).block()
        case "reasoning" if item.get("encrypted_content"):
            kept = ("type", "id", "summary", "encrypted_content")
            kept_item = {name: item[name] for name in kept if name in item}
            yield {"type": "reasoning", "model": model, "item": kept_item}
        case _:
            return


def _stop_reason(response: Mapping[str, Any], content: Sequence[Block]) -> str:
    if response.get("status") == "incomplete":
        reason = (response.get("incomplete_details") or {}).get("reason")
        if reason == "content_filter":
            raise meaning.failure(meaning.REFUSED)
        return "max_tokens"
    return "tool_use" if any(block["type"] == "tool_use" for block in content) else "end_turn"


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("input_tokens_details") or {}
    return split_usage(
        usage.get("input_tokens"),
        usage.get("output_tokens"),
        details.get("cached_tokens"),
        details.get("cache_write_tokens"),
    )


def split_usage(asked: object, answered: object, cached: object, written: object) -> Usage:
    """Ours don't overlap; here what was cached is counted as a part of the input."""
    whole, read, kept = _count(asked), _count(cached), _count(written)
    read = min(read, whole)
    kept = min(kept, whole - read)
    return Usage(whole - read - kept, _count(answered), read, kept)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _failed(error: Mapping[str, Any]) -> Exception:
    code = error.get("code") or error.get("type")
    return meaning.failure(meaning_of_code(str(code)) or meaning.SERVER, error.get("message"))
