"""Puts a reply together from the events of the Messages API's stream.

Own code, since the SDK's accumulator takes a stream that ends early for a whole reply.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from orchestrator.engine.parsing.calls import UNPARSED
from orchestrator.engine.ports import (
    CallAnnounced,
    CallCompleted,
    Reply,
    StreamEvent,
    TextDelta,
    Usage,
)
from orchestrator.engine.providers.meaning import GARBLED, TRUNCATED, failure
from orchestrator.engine.untrusted import storable, storable_json

_KEPT_FOR_AN_HOUR: Final = "ephemeral_1h_input_tokens"


class Assembly:
    """Fed with events as plain dictionaries, in order; `reply` once the last one is in.

    Blocks and deltas of unknown types are kept as they started or ignored, never an error.
    """

    def __init__(self) -> None:
        self._model = ""
        self._usage: dict[str, int] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._pieces: dict[int, dict[str, list[str]]] = {}
        """Of blocks that are still open: what came of each of their texts."""
        self._stop_reason: str | None = None
        self._ended = False
        self.moved = False
        """Whether the last event brought the reply forward: a ping doesn't."""

    def feed(self, event: Mapping[str, Any]) -> StreamEvent | None:
        """What a listener may want to know of it. Raises `ModelError` for an event that can't be read."""
        self.moved = True
        try:
            return self._take(event)
        except (KeyError, TypeError, ValueError, AttributeError) as garbled:
            raise failure(GARBLED) from garbled

    def _take(self, event: Mapping[str, Any]) -> StreamEvent | None:
        match event["type"]:
            case "message_start":
                self._model = event["message"]["model"]
                self._count(event["message"].get("usage"))
            case "content_block_start":
                return self._open(event["index"], event["content_block"])
            case "content_block_delta":
                return self._extend(event["index"], event["delta"])
            case "content_block_stop":
                return self._close(event["index"])
            case "message_delta":
                self._stop_reason = event["delta"].get("stop_reason") or self._stop_reason
                self._count(event.get("usage"))
            case "message_stop":
                self._ended = True
            case _:
                self.moved = False
        return None

    def _open(self, index: int, block: Mapping[str, Any]) -> StreamEvent | None:
        self._blocks[index] = dict(block)
        self._pieces[index] = {}
        return CallAnnounced(block["name"]) if block["type"] == "tool_use" else None

    def _extend(self, index: int, delta: Mapping[str, Any]) -> StreamEvent | None:
        pieces = self._pieces[index]
        match delta["type"]:
            case "text_delta":
                pieces.setdefault("text", []).append(delta["text"])
                return TextDelta(storable(delta["text"]))
            case "input_json_delta":
                pieces.setdefault("input", []).append(delta["partial_json"])
            case "thinking_delta":
                pieces.setdefault("thinking", []).append(delta["thinking"])
            case "signature_delta":
                self._blocks[index]["signature"] = delta["signature"]
            case _:
                pass
        return None

    def _close(self, index: int) -> StreamEvent | None:
        """Joined once: a reply of megabytes takes no more than its length."""
        block, pieces = self._blocks[index], self._pieces.pop(index)
        written = "".join(pieces.pop("input", ()))
        for name, more in pieces.items():
            block[name] = "".join([block.get(name) or "", *more])
        if written:
            block["input"] = parsed_arguments(written)
        elif block["type"] == "tool_use":
            block["input"] = block.get("input") or {}
        self._blocks[index] = block = {key: storable_json(value) for key, value in block.items()}
        if not _is_usable(block):
            raise ValueError(block["type"])
        return (
            CallCompleted(block["id"], block["name"], block["input"]) if block["type"] == "tool_use" else None
        )

    def _count(self, usage: Mapping[str, Any] | None) -> None:
        """Counts in a stream are totals so far: the latest ones hold."""
        self._usage.update({name: count for name, count in (usage or {}).items() if isinstance(count, int)})
        kept = (usage or {}).get("cache_creation")
        if isinstance(kept, dict) and isinstance(kept.get(_KEPT_FOR_AN_HOUR), int):
            self._usage[_KEPT_FOR_AN_HOUR] = kept[_KEPT_FOR_AN_HOUR]

    def reply(self, request_id: str | None) -> Reply:
        """Raises `ModelError` when the stream ended before the reply did."""
        if not self._ended or self._stop_reason is None:
            raise failure(TRUNCATED)
        for index in list(self._pieces):
            self._close(index)
        found = Reply(
            content=tuple(self._blocks[index] for index in sorted(self._blocks)),
            stop_reason=self._stop_reason,
            usage=Usage(
                input_tokens=self._usage.get("input_tokens", 0),
                output_tokens=self._usage.get("output_tokens", 0),
                cache_read_tokens=self._usage.get("cache_read_input_tokens", 0),
                cache_write_tokens=self._usage.get("cache_creation_input_tokens", 0),
                # Our requests ask for five minutes only: what isn't told apart is that.
                cache_write_hour_tokens=self._usage.get(_KEPT_FOR_AN_HOUR, 0),
            ),
            model=self._model,
            request_id=request_id,
        )
        return usable(found)


def parsed_arguments(written: str) -> Mapping[str, Any]:
    """An object; what is none (a call cut off at the output limit) is kept as the text that it is."""
    try:
        arguments = storable_json(json.loads(written))
    except (ValueError, RecursionError):
        arguments = None
    return arguments if isinstance(arguments, dict) else {UNPARSED: storable(written[:2000])}


MOST_ID: Final = 1000
"""Bytes of a call's id, which is a part of keys in Postgres."""


def usable(reply: Reply) -> Reply:
    """The reply, if its blocks are what they say. Raises `ModelError` for one that can't be gone on with."""
    if not all(_is_usable(block) for block in reply.content):
        raise failure(GARBLED)
    return replace(
        reply,
        stop_reason=storable(str(reply.stop_reason)),
        model=storable(str(reply.model)),
        request_id=None if reply.request_id is None else storable(str(reply.request_id)),
    )


def _is_usable(block: Mapping[str, Any]) -> bool:
    match block:
        case {"type": "text"}:
            return isinstance(block.get("text"), str)
        case {"type": "tool_use"}:
            called, name = block.get("id"), block.get("name")
            is_named = (
                isinstance(called, str) and isinstance(name, str) and 0 < len(called.encode()) <= MOST_ID
            )
            return is_named and isinstance(block.get("input"), Mapping)
        case {"type": str()}:
            return True
    return False
