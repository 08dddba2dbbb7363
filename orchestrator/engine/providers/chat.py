"""The Chat Completions API: our requests in its words, and its stream put together to a reply."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

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
from orchestrator.engine.providers.responses import said, split_usage
from orchestrator.engine.providers.stream import parsed_arguments, usable
from orchestrator.engine.untrusted import storable

_STOP_REASONS: Final = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "length": "max_tokens",
}


def tools(schemas: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [
        {
            "type": "function",
            "function": {
                "name": schema["name"],
                "description": schema.get("description", ""),
                "parameters": schema["input_schema"],
            },
        }
        for schema in schemas
    ]


def messages(system: Sequence[str], asked: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Results are messages of their own, right after the calls that they answer."""
    opening = [{"role": "system", "content": text} for text in system]
    return [*opening, *(turned for message in asked for turned in _turned(message))]


def _turned(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    blocks = message["content"]
    texts = "\n\n".join(block["text"] for block in blocks if block["type"] == "text")
    if message["role"] == "assistant":
        calls = [_asked(block) for block in blocks if block["type"] == "tool_use"]
        yield {
            "role": "assistant",
            "content": texts or (None if calls else "(nothing)"),
            **({"tool_calls": calls} if calls else {}),
        }
        return
    for block in blocks:
        if block["type"] == "tool_result":
            yield {"role": "tool", "tool_call_id": block["tool_use_id"], "content": said(block)}
    if texts:
        yield {"role": "user", "content": texts}


def _asked(block: Block) -> Mapping[str, Any]:
    arguments = json.dumps(block["input"], ensure_ascii=False)
    return {
        "id": block["id"],
        "type": "function",
        "function": {"name": block["name"], "arguments": arguments},
    }


@dataclass(slots=True)
class _Call:
    """A call under way; servers that give no id get one from us."""

    call_id: str
    name: str
    pieces: list[str] = field(default_factory=list)

    def completed(self) -> CallCompleted:
        written = "".join(self.pieces)
        return CallCompleted(self.call_id, self.name, parsed_arguments(written) if written.strip() else {})


class ChatAssembly:
    """Fed with chunks as plain dictionaries, in order; `reply` once the last one is in.

    A call is complete when the next one begins or the reply says why it ends.
    """

    def __init__(self) -> None:
        self._model = ""
        self._texts: list[str] = []
        self._refusal: list[str] = []
        self._open: dict[int, _Call] = {}
        self._calls: list[CallCompleted] = []
        self._finish: str | None = None
        self._usage = Usage()
        self.moved = False
        """Whether the last chunk brought the reply forward."""
        self.response_id: str | None = None

    def feed(self, chunk: Mapping[str, Any]) -> list[StreamEvent]:
        """What a listener may want to know of it. Raises `ModelError` for one that can't be read."""
        try:
            return list(self._take(chunk))
        except (KeyError, TypeError, ValueError, AttributeError) as garbled:
            raise meaning.failure(meaning.GARBLED) from garbled

    def _take(self, chunk: Mapping[str, Any]) -> Iterator[StreamEvent]:
        self._model = chunk.get("model") or self._model
        if usage := chunk.get("usage"):
            self._usage = _usage(usage)
        self.moved = bool(usage)
        for choice in chunk["choices"]:
            if choice.get("index", 0):
                continue
            yield from self._delta(choice.get("delta") or {})
            if reason := choice.get("finish_reason"):
                self._finish, self.moved = reason, True
                yield from self._complete()

    def _delta(self, delta: Mapping[str, Any]) -> Iterator[StreamEvent]:
        self.moved = self.moved or any(value for name, value in delta.items() if name != "role")
        if text := delta.get("content"):
            self._texts.append(storable(text))
            yield TextDelta(text)
        if refusal := delta.get("refusal"):
            self._refusal.append(refusal)
        for piece in delta.get("tool_calls") or ():
            yield from self._call(piece)

    def _call(self, piece: Mapping[str, Any]) -> Iterator[StreamEvent]:
        index, function = piece.get("index") or 0, piece.get("function") or {}
        if index not in self._open or self._begins_another(self._open[index], piece):
            yield from self._complete()
            call_id = piece.get("id") or f"call_{uuid.uuid4().hex[:24]}"
            self._open[index] = _Call(storable(call_id), storable(function["name"]))
            yield CallAnnounced(function["name"])
        if written := function.get("arguments"):
            self._open[index].pieces.append(written)

    @staticmethod
    def _begins_another(call: _Call, piece: Mapping[str, Any]) -> bool:
        """Some servers number all calls alike. A piece with a new id and a name is a call of its own; one
        that repeats only one of them goes on with the call."""
        call_id, name = piece.get("id"), (piece.get("function") or {}).get("name")
        return bool(name) and bool(call_id) and storable(str(call_id)) != call.call_id

    def _complete(self) -> Iterator[StreamEvent]:
        for call in self._open.values():
            completed = call.completed()
            self._calls.append(completed)
            yield completed
        self._open = {}

    def reply(self, request_id: str | None) -> Reply:
        """Raises `ModelError` when the stream ended before the reply did, or the reply is a refusal."""
        if self._finish is None:
            raise meaning.failure(meaning.TRUNCATED)
        if self._refusal or self._finish == "content_filter":
            raise meaning.failure(meaning.REFUSED, "".join(self._refusal) or None)
        text = storable("".join(self._texts))
        reason = _STOP_REASONS.get(self._finish, "end_turn")
        found = Reply(
            content=(
                *([{"type": "text", "text": text}] if text else []),
                *(call.block() for call in self._calls),
            ),
            stop_reason="tool_use" if self._calls and reason == "end_turn" else reason,
            usage=self._usage,
            model=self._model,
            request_id=request_id,
        )
        return usable(found)


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    return split_usage(
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
        details.get("cached_tokens"),
        details.get("cache_write_tokens"),
    )
