"""The three APIs that are passed through: what of a request the gateway must know, and the little it adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Family(StrEnum):
    """Who speaks it; also the provider's name."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API. `path` is where it is served, here and there."""

    name: str
    family: Family
    path: str
    max_output_fields: tuple[str, ...]
    items_field: str
    """What grows from turn to turn."""

    @property
    def provider(self) -> str:
        return str(self.family)


MESSAGES: Final = Dialect("messages", Family.ANTHROPIC, "/v1/messages", ("max_tokens",), "messages")
RESPONSES: Final = Dialect("responses", Family.OPENAI, "/v1/responses", ("max_output_tokens",), "input")
CHAT: Final = Dialect(
    "chat", Family.OPENAI, "/v1/chat/completions", ("max_completion_tokens", "max_tokens"), "messages"
)
COUNTING: Final = Dialect("count_tokens", Family.ANTHROPIC, "/v1/messages/count_tokens", (), "messages")
CALLS: Final = (MESSAGES, RESPONSES, CHAT)


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a model. `body` is sent; `hides_usage`: it asks for a chunk that the caller didn't ask
    for and must not see."""

    model: str
    streamed: bool
    max_output: int | None
    content: Mapping[str, Any]
    body: bytes
    hides_usage: bool = False


_MARKS: Final = (b",", b"{", b"[")
MOST_PARTS: Final = 500_000
"""Of one JSON text. What fills a model has half of that; as objects they take hundreds of bytes each."""


def parts_of(data: bytes) -> int:
    """At most so many values are in a JSON text, give or take one."""
    return sum(map(data.count, _MARKS))
