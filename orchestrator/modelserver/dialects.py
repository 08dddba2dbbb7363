"""The three APIs behind one small shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol

from orchestrator.modelserver import chat, messages, responses
from orchestrator.modelserver.asked import Asked, Dialect
from orchestrator.modelserver.said import Rendering, Said


class Render(Protocol):
    def __call__(self, said: Said, *, stream: bool) -> Rendering: ...


class Error(Protocol):
    def __call__(self, status: int, message: str, code: str | None = None) -> dict[str, Any]: ...


class ErrorEvent(Protocol):
    def __call__(self, status: int, message: str, code: str | None = None) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Form:
    """`ping` is a frame that says nothing."""

    read: Callable[[Mapping[str, Any]], Asked]
    render: Render
    error: Error
    error_event: ErrorEvent
    ping: Callable[[], bytes]


FORMS: Final[Mapping[Dialect, Form]] = MappingProxyType(
    {
        Dialect.MESSAGES: Form(
            messages.read, messages.render, messages.error, messages.error_event, messages.ping
        ),
        Dialect.RESPONSES: Form(
            responses.read, responses.render, responses.error, responses.error_event, responses.ping
        ),
        Dialect.CHAT: Form(chat.read, chat.render, chat.error, chat.error_event, chat.ping),
    }
)

PATHS: Final[Mapping[str, Dialect]] = MappingProxyType(
    {
        "/v1/messages": Dialect.MESSAGES,
        "/v1/responses": Dialect.RESPONSES,
        "/v1/chat/completions": Dialect.CHAT,
    }
)
