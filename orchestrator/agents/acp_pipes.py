"""The Agent Client Protocol's transport: JSON-RPC, of which only what has its form gets through."""

from __future__ import annotations

import json
from typing import Any, Final

from orchestrator.agents.pipes import Pipes
from orchestrator.core.redaction import beginning

OPTIONAL: Final = "$/"
"""Notifications of JSON-RPC that a side may leave unread, such as $/cancel_request."""
UNKNOWN_ERROR: Final = -32603
MOST_WORDS: Final = 2000


class AcpPipes(Pipes):
    """The SDK's own reading believes every message to be well-formed, and ends where one isn't."""

    async def send(self, message: dict[str, Any]) -> None:
        await self.send_line(json.dumps(message, separators=(",", ":"), default=str).encode() + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        while (message := await super().receive()) is not None:
            if (formed := _formed(message)) is not None:
                return formed
        return None


def _formed(message: dict[str, Any]) -> dict[str, Any] | None:
    """None: it is to be passed over."""
    if "method" in message:
        method = message["method"]
        return message if isinstance(method, str) and not method.startswith(OPTIONAL) else None
    if not isinstance(message.get("id"), int | str):
        return None
    return {**message, "error": _error(message["error"])} if "error" in message else message


def _error(error: object) -> dict[str, Any]:
    told = error if isinstance(error, dict) else {"message": error}
    code, text = told.get("code"), told.get("message")
    return {
        "code": code if isinstance(code, int) else UNKNOWN_ERROR,
        "message": beginning(text if isinstance(text, str) else repr(text), MOST_WORDS),
        "data": told.get("data"),
    }
