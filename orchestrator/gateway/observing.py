"""What a reply says of itself while it passes: how many tokens, how it ended, and what it was.

Nothing here changes or delays a byte. Replies are a stranger's: whatever can't be read is let go by.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from orchestrator.core.spending import BYTES_PER_TOKEN
from orchestrator.db.spending import Tokens
from orchestrator.gateway.dialects import CHAT, MESSAGES, MOST_PARTS, Dialect, parts_of
from orchestrator.gateway.frames import LONGEST, EventTooLong, Frames

_ANTHROPIC_NAMES: Final = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_read_input_tokens": "cache_read",
    "cache_creation_input_tokens": "cache_write",
}
_KEPT_FOR_AN_HOUR: Final = "ephemeral_1h_input_tokens"


@dataclass(slots=True)
class Seen:
    """What is known so far. `counted`: the provider has given the final number of tokens."""

    tokens: dict[str, int] = field(default_factory=dict)
    counted: bool = False
    ended: bool = False
    error: str | None = None
    written: int = 0
    """Characters of the reply."""
    content: Any = None
    """The reply put together, as its API spells it when it isn't streamed."""


class Parts(list[str]):
    """A text that comes in pieces."""


def joined(value: Any) -> Any:
    """With the pieces of its texts put together."""
    if isinstance(value, Parts):
        return "".join(value)
    if isinstance(value, Mapping):
        return {str(name): joined(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [joined(inner) for inner in value]
    return value


LONGEST_REPLY: Final = 32 * 1024 * 1024
"""Bytes of a streamed reply; one that isn't streamed is a single event."""


class ReplyTooLong(Exception):
    """No model says so much."""


class Reader(Protocol):
    """Takes one event of a stream, or a whole reply. May raise anything for what it can't read."""

    def event(self, seen: Seen, event: Mapping[str, Any]) -> None: ...

    def whole(self, seen: Seen, reply: Mapping[str, Any]) -> None: ...


class Observer:
    """Watches one reply of `dialect`. `bytes`: of the reply, so far."""

    def __init__(self, dialect: Dialect, *, streamed: bool) -> None:
        self.seen = Seen()
        self.bytes = 0
        self._reader = _reader(dialect)
        self._frames = Frames() if streamed else None
        self._body: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        """Gives each event that is whole now: as it was sent, and its data. Raises ReplyTooLong."""
        self.bytes += len(chunk)
        if self.bytes > (LONGEST if self._frames is None else LONGEST_REPLY):
            raise ReplyTooLong
        if self._frames is None:
            self._body.append(chunk)
            return
        try:
            for raw, data in self._frames.feed(chunk):
                self._take(data)
                yield raw, data
        except EventTooLong:
            raise ReplyTooLong from None

    def rest(self) -> bytes:
        """What came after the last whole event."""
        return b"" if self._frames is None else self._frames.rest()

    def _take(self, data: bytes | None) -> None:
        """One event's data."""
        event = _object(data)
        if event is None:
            if data is not None and data.strip() == b"[DONE]":
                self.seen.ended = True
            return
        try:
            self._reader.event(self.seen, event)
        except Exception:  # noqa: BLE001 - whatever a stranger's event does to its reader, the reply goes on
            return

    def close(self) -> None:
        """Nothing more comes."""
        if self._frames is not None or not self._body:
            return
        reply = _object(b"".join(self._body))
        self._body.clear()
        if reply is None:
            return
        self.seen.ended = True
        self.seen.content = reply
        try:
            self._reader.whole(self.seen, reply)
        except Exception:  # noqa: BLE001 - as above
            return

    def tokens(self, input_expected: int, output_expected: int = 0, *, for_an_hour: bool = False) -> Tokens:
        """As the provider counted; what it didn't say is estimated from lengths. `output_expected`: the least
        for a reply of which nobody saw the end, and that was perhaps written all the same.

        A provider may say how much was cached, but not for how long. With `for_an_hour` the request has asked
        for an hour somewhere, and all of it is taken for that: dearer, since a budget is a promise that no
        more is spent. Who hasn't asked for an hour gets five minutes."""
        seen, counts = self.seen, self.seen.tokens
        written = seen.written or self.bytes
        estimate = 0 if seen.counted else max(written // BYTES_PER_TOKEN + 1, output_expected)
        cached = counts.get("cache_write", 0)
        return Tokens(
            input=counts.get("input", 0 if seen.counted else input_expected),
            output=max(counts.get("output", 0), estimate),
            cache_read=counts.get("cache_read", 0),
            cache_write=cached,
            cache_write_hour=min(cached, counts.get("cache_write_hour", cached if for_an_hour else 0)),
            estimated=not seen.counted,
        )


def _object(data: bytes | None) -> Mapping[str, Any] | None:
    if not data or not data.lstrip().startswith(b"{") or parts_of(data) > MOST_PARTS:
        return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


MOST_TOKENS: Final = 5 * 10**8
"""No reply has more, whatever its provider says; four such counts together fit a column."""


def _count(value: object) -> int:
    return min(value, MOST_TOKENS) if isinstance(value, int) and value > 0 else 0


class _Messages:
    """Counts in a stream are totals so far: the latest ones hold."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[str, Any]] = {}

    def event(self, seen: Seen, event: Mapping[str, Any]) -> None:
        match event.get("type"):
            case "message_start":
                seen.content = {**event["message"], "content": []}
                self._use(seen, event["message"].get("usage"))
            case "content_block_start":
                self._blocks[event["index"]] = block = dict(event["content_block"])
                seen.content["content"].append(block)
            case "content_block_delta":
                self._extend(seen, self._blocks[event["index"]], event["delta"])
            case "message_delta":
                self._use(seen, event.get("usage"))
                seen.counted = "output_tokens" in (event.get("usage") or {})
                seen.content.update(event["delta"])
            case "message_stop":
                seen.ended = True
            case "error":
                seen.error = str(event["error"]["type"])[:80]

    def _extend(self, seen: Seen, block: dict[str, Any], delta: Mapping[str, Any]) -> None:
        """The arguments of a call stay the text that they are sent as."""
        for theirs, ours in (("text", "text"), ("thinking", "thinking"), ("partial_json", "input")):
            if theirs in delta:
                if not isinstance(block.get(ours), Parts):
                    block[ours] = Parts()
                block[ours].append(delta[theirs])
                seen.written += len(delta[theirs])

    def whole(self, seen: Seen, reply: Mapping[str, Any]) -> None:
        if reply.get("type") == "error":
            seen.error = str(reply["error"]["type"])[:80]
        elif isinstance(reply.get("usage"), dict):
            self._use(seen, reply["usage"])
            seen.counted = True

    def _use(self, seen: Seen, usage: Mapping[str, Any] | None) -> None:
        for theirs, ours in _ANTHROPIC_NAMES.items():
            if usage and isinstance(usage.get(theirs), int):
                seen.tokens[ours] = _count(usage[theirs])
        kept = usage.get("cache_creation") if usage else None
        if isinstance(kept, dict) and isinstance(kept.get(_KEPT_FOR_AN_HOUR), int):
            seen.tokens["cache_write_hour"] = _count(kept[_KEPT_FOR_AN_HOUR])


class _Responses:
    def event(self, seen: Seen, event: Mapping[str, Any]) -> None:
        kind = str(event.get("type", ""))
        if kind in {"response.completed", "response.incomplete", "response.failed"}:
            seen.ended = True
            seen.content = event["response"]
            self.whole(seen, event["response"])
        elif kind == "error":
            seen.error = str(event.get("code") or "error")[:80]
        elif kind.endswith(".delta") and isinstance(event.get("delta"), str):
            seen.written += len(event["delta"])

    def whole(self, seen: Seen, reply: Mapping[str, Any]) -> None:
        _hear_openai(seen, reply, "input_tokens", "output_tokens")


class _Chat:
    def event(self, seen: Seen, event: Mapping[str, Any]) -> None:
        self.whole(seen, event)
        if seen.content is None:
            seen.content = {"model": event.get("model"), "choices": {}}
        for choice in event.get("choices") or ():
            kept = seen.content["choices"].setdefault(choice.get("index", 0), {"message": {}})
            if choice.get("finish_reason"):
                kept["finish_reason"] = choice["finish_reason"]
                seen.ended = True  # not every server says [DONE]
            _grow(seen, kept["message"], choice.get("delta") or {})

    def whole(self, seen: Seen, reply: Mapping[str, Any]) -> None:
        _hear_openai(seen, reply, "prompt_tokens", "completion_tokens")


def _hear_openai(seen: Seen, reply: Mapping[str, Any], asked: str, answered: str) -> None:
    """Its error and its counts. What was cached is counted as a part of the input there, and not here."""
    error = reply.get("error")
    if isinstance(error, dict):
        seen.error = str(error.get("code") or error.get("type") or "error")[:80]
    usage = reply.get("usage")
    if isinstance(usage, dict):
        details = usage.get(f"{asked}_details") or {}
        whole = _count(usage.get(asked))
        read = min(whole, _count(details.get("cached_tokens")))
        written = min(whole - read, _count(details.get("cache_write_tokens")))
        seen.tokens = {
            "input": whole - read - written,
            "output": _count(usage.get(answered)),
            "cache_read": read,
            "cache_write": written,
        }
        seen.counted = True


def _grow(seen: Seen, into: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """A delta's texts are appended, its numbered lists item by item, all else replaced."""
    for name, value in delta.items():
        if isinstance(value, str) and name not in {"role", "id", "type"}:
            into.setdefault(name, Parts()).append(value)
            seen.written += len(value)
        elif isinstance(value, list):
            items = into.setdefault(name, {})
            for place, item in enumerate(value):
                _grow(seen, items.setdefault(item.get("index", place), {}), item)
        elif isinstance(value, dict):
            _grow(seen, into.setdefault(name, {}), value)
        elif value is not None:
            into[name] = value


def _reader(dialect: Dialect) -> Reader:
    if dialect is MESSAGES:
        return _Messages()
    return _Chat() if dialect is CHAT else _Responses()


def is_usage_chunk(data: bytes | None) -> bool:
    """The last chunk of a chat, which has no choices and tells what was used."""
    if data is None or b'"usage"' not in data:
        return False
    chunk = _object(data)
    return chunk is not None and not chunk.get("choices") and isinstance(chunk.get("usage"), dict)
