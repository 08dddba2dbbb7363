"""When a request may go on from an earlier response instead of telling the whole conversation again."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.engine.ports import ModelRequest, Reply


@dataclass(frozen=True, slots=True)
class Answered:
    """A response that the server keeps, and the conversation that it ended."""

    response_id: str
    system: str
    tools: tuple[Mapping[str, Any], ...]
    messages: tuple[Mapping[str, Any], ...]
    """All that was asked, and the reply to it as the conversation kept it comes next."""
    said: tuple[Mapping[str, Any], ...]

    def goes_on_in(self, request: ModelRequest) -> bool:
        """Whether the request tells the same and more: same prompt, tools and messages, then this reply."""
        length = len(self.messages)
        if len(request.messages) < length + 2 or request.system != self.system:  # the reply, and what is new
            return False
        earlier = tuple(request.messages[:length])
        reply = request.messages[length]
        return (
            earlier == self.messages
            and reply["role"] == "assistant"
            and tuple(reply["content"]) == self.said
            and tuple(request.tools) == self.tools
        )


class Continuity:
    """The last response of one conversation. Taking it takes it away: of two sends at once only one goes on
    from it, and a send that fails leaves none, so that the next one tells everything.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Answered | None = None

    def take(self, request: ModelRequest) -> Answered | None:
        with self._lock:
            found, self._last = self._last, None
        return found if found is not None and found.goes_on_in(request) else None

    def keep(self, request: ModelRequest, reply: Reply, response_id: str) -> None:
        answered = Answered(
            response_id, request.system, tuple(request.tools), tuple(request.messages), _kept(reply.content)
        )
        with self._lock:
            self._last = answered


def _kept(content: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """As a conversation keeps it: without texts of blanks alone."""
    return tuple(block for block in content if block["type"] != "text" or block["text"].strip())
