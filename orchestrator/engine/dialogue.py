"""The messages of a conversation, built by appending, and what they have cost so far.

Live and from a journal the same calls are made, so a resumed step asks exactly what the unbroken one would
have asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

from orchestrator.engine import prompt
from orchestrator.engine.ports import Block, ToolResult, Turn


def tool_calls(content: Iterable[Block]) -> list[Block]:
    return [block for block in content if block["type"] == "tool_use"]


class Dialogue:
    """Grows by one user and one assistant message per turn; what was sent is never changed.

    `first` opens it; `usable` says whether a tool_use block names a known tool with arguments that fit.
    """

    def __init__(self, first: str, usable: Callable[[Block], bool]) -> None:
        self._usable = usable
        self._messages: list[Mapping[str, Any]] = []
        self._results: dict[str, Block | None] = {}
        self._texts: list[Block] = [_text(first)]
        self.turns = 0
        self.tokens = 0
        self.cost_usd = Decimal(0)
        self.elapsed = timedelta(0)
        self.mistakes = 0
        """Turns without a single usable call, in a row."""
        self.silent = 0
        """Turns without any call, in a row."""

    def hear(self, text: str) -> None:
        self._texts.append(_text(prompt.message(text)))

    def messages(self) -> list[Mapping[str, Any]]:
        """Ready to be sent: everything answered and heard is in the last user message."""
        if self._results or self._texts:
            answered = [block for block in self._results.values() if block is not None]
            self._messages.append({"role": "user", "content": [*answered, *self._texts]})
            self._results, self._texts = {}, []
        return self._messages

    def add_turn(self, turn: Turn) -> None:
        spoken = [block for block in turn.content if block["type"] != "text" or block["text"].strip()]
        self.messages().append({"role": "assistant", "content": spoken or [_text("(nothing)")]})
        calls = tool_calls(turn.content)
        self._results = {call["id"]: None for call in calls}
        if not calls:
            self._texts.append(_text(prompt.CUT_OFF if turn.stop_reason == "max_tokens" else prompt.NO_CALL))
        self.turns = turn.number
        self.tokens += turn.usage.total
        self.cost_usd += turn.cost_usd or 0
        self.elapsed += turn.elapsed
        self.silent = 0 if calls else self.silent + 1
        self.mistakes = 0 if any(self._usable(call) for call in calls) else self.mistakes + 1

    def add_result(self, call_id: str, result: ToolResult) -> None:
        """Results may come in any order; they are sent in the order of their calls."""
        block = {"type": "tool_result", "tool_use_id": call_id, "content": result.text or "(nothing)"}
        self._results[call_id] = {**block, "is_error": True} if result.is_error else block


def _text(text: str) -> Block:
    return {"type": "text", "text": text}
