"""A reply as a value, before an API's own form is given to it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

_SHORTEST_PIECE: Final = 24
_MOST_PIECES: Final = 64
_BYTES_PER_TOKEN: Final = 4


class Ending(StrEnum):
    """Why the model stopped."""

    DONE = "done"
    CALLS = "calls"
    MAX_TOKENS = "max-tokens"
    REFUSAL = "refusal"
    CONTEXT_FULL = "context-full"


@dataclass(frozen=True, slots=True)
class Call:
    """`arguments` is the text that goes on the wire: JSON, unless a script wants it broken or free text."""

    id: str
    name: str
    arguments: str
    namespace: str | None = None
    free_text: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """`input_tokens` includes what was read from the cache; the APIs differ, and each form sees to that."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """`send` is unique per reply: ids are made of it."""

    send: str
    model: str
    text: str
    calls: tuple[Call, ...]
    ending: Ending
    counts: Counts
    thinking: str = ""
    created_at: int = 0
    echo: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rendering:
    """What goes over the wire: one frame and its length, or a stream of frames."""

    frames: tuple[bytes, ...]
    streams: bool
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def pieces(text: str) -> Iterator[str]:
    """The text as a stream would bring it, in pieces that don't respect words."""
    size = max(_SHORTEST_PIECE, math.ceil(len(text) / _MOST_PIECES))
    return (text[start : start + size] for start in range(0, len(text), size))


def tokens_in(text: str | bytes) -> int:
    """A plausible count, the same for the same text."""
    return max(1, math.ceil(len(text) / _BYTES_PER_TOKEN))


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def event(kind: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {compact(data)}\n\n".encode("utf-8", "replace")
