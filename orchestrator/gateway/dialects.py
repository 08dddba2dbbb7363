"""The three APIs that are passed through: what of a request the gateway must know, and the little it adds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from orchestrator.gateway.reach import reaches_out


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
LONGEST_NAME: Final = 200
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


def read(dialect: Dialect, body: bytes) -> Request | str:
    """What a body asks for, or what is wrong with it: also whatever a provider could read otherwise than we
    do, or go on to charge for when the call has ended."""
    try:
        content = json.loads(body, object_pairs_hook=_once_each)
    except (ValueError, RecursionError):
        return "The body is not JSON, or names something twice."
    if not isinstance(content, dict) or not _is_name(content.get("model")):
        return "The body is not an object with a text `model`."
    if len({name.casefold() for name in content}) < len(content):
        return "The body names something twice, but for upper and lower case."
    if (what := reaches_out(content)) is not None:
        return f"It would make the provider call an address of the caller's ({what}), which is not passed on."
    if content.get("background"):
        return "A reply in the background is not passed on."
    streamed = content.get("stream") is True
    most = [content[name] for name in dialect.max_output_fields if isinstance(content.get(name), int)]
    hides = dialect is CHAT and streamed and not _asks_for_usage(content)
    if hides:
        options = content.get("stream_options")
        asked = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        body = json.dumps({**content, "stream_options": asked}).encode()
    return Request(content["model"], streamed, min(most, default=None), content, body, hides)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values of one name, ours could be another than the provider's."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice")
    return found


def _is_name(model: object) -> bool:
    return isinstance(model, str) and 0 < len(model) <= LONGEST_NAME and model.isprintable()


def _asks_for_usage(content: Mapping[str, Any]) -> bool:
    options = content.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True
