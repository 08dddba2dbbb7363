"""The messages of a conversation, built by appending, and what they have cost so far.

Live and from a journal the same calls are made, so a resumed step asks exactly what the unbroken one would
have asked. A turn adds to it in constant time, however long it has grown; only a compaction goes through all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from orchestrator.engine import prompt
from orchestrator.engine.memory import Memory
from orchestrator.engine.ports import Block, Compacted, ToolResult, Turn
from orchestrator.engine.tools.tool import Tool
from orchestrator.engine.untrusted import shortened

CHARACTERS_PER_TOKEN: Final = 3
"""On the safe side: code and English have more."""


def tool_calls(content: Iterable[Block]) -> list[Block]:
    return [block for block in content if block["type"] == "tool_use"]


class Dialogue:
    """Grows by one user and one assistant message per turn; what was sent changes by a compaction alone.

    `first` opens it; `tools` are those that the model may call.
    """

    def __init__(self, first: str, tools: Mapping[str, Tool[Any]]) -> None:
        self._tools = tools
        self._first = first
        self._messages: list[Mapping[str, Any]] = []
        self._calls: dict[str, Block] = {}
        self._results: dict[str, Block | None] = {}
        self._texts: list[Block] = [_text(first)]
        self._size = _Size(len(first))
        self.memory = Memory()
        self.turns = 0
        self.tokens = 0
        self.cost_usd = Decimal(0)
        self.elapsed = timedelta(0)
        self.mistakes = 0
        """Turns without a single usable call, in a row."""
        self.silent = 0
        """Turns without any call, in a row."""
        self.shortened_to = 0
        """The outputs of turns up to this one are sent in short."""
        self.summarised_to = 0
        """A summary stands in for the turns up to this one."""
        self.is_half_compacted = False
        """Since the last turn, outputs were made short and nothing was summed up."""

    def hear(self, text: str) -> None:
        self.memory.hear(text)
        self.tell(prompt.message(text))

    def tell(self, text: str) -> None:
        """Something that the loop itself has to say."""
        self._say(_text(text))

    def messages(self) -> list[Mapping[str, Any]]:
        """Ready to be sent: everything answered and heard is in the last user message."""
        if self._results or self._texts:
            answered = [block for block in self._results.values() if block is not None]
            heard = [*answered, *self._texts]
            if self._messages and self._messages[-1]["role"] == "user":  # nobody has answered it yet
                heard = [*self._messages.pop()["content"], *heard]
            self._messages.append({"role": "user", "content": heard})
            self._results, self._texts = {}, []
        return self._messages

    def add_turn(self, turn: Turn) -> None:
        spoken = [block for block in turn.content if block["type"] != "text" or block["text"].strip()]
        self.messages().append({"role": "assistant", "content": spoken or [_text("(nothing)")]})
        calls = tool_calls(turn.content)
        self._calls = {call["id"]: call for call in calls}
        self._results = dict.fromkeys(self._calls)
        self._size.grow(sum(size_of(block) for block in spoken))
        self._size.measure(turn.usage.total)
        self.turns = turn.number
        self.is_half_compacted = False
        self.tokens += turn.usage.total
        self.cost_usd += turn.cost_usd or 0
        self.elapsed += turn.elapsed
        self.silent = 0 if calls else self.silent + 1
        self.mistakes = 0 if any(self._usable(call) for call in calls) else self.mistakes + 1
        if not calls:
            self.tell(prompt.CUT_OFF if turn.stop_reason == "max_tokens" else prompt.NO_CALL)

    def add_result(self, call_id: str, result: ToolResult) -> None:
        """Results may come in any order; they are sent in the order of their calls."""
        block = {"type": "tool_result", "tool_use_id": call_id, "content": result.text or "(nothing)"}
        self._results[call_id] = {**block, "is_error": True} if result.is_error else block
        self._size.grow(len(result.text))
        call = self._calls[call_id]
        self.memory.keep(call, self._tools.get(call["name"]), result)

    # --- how large it is ------------------------------------------------------------------------------------

    @property
    def estimate(self) -> int:
        """Tokens of the next request: as the provider counted them last; what came since, by its length."""
        return self._size.tokens

    def counted(self, tokens: int) -> None:
        """The provider was asked how many tokens the next request has."""
        self._size.measure(tokens)

    # --- made smaller ---------------------------------------------------------------------------------------

    def compact(self, compacted: Compacted) -> None:
        """Does what was decided, in the same way whenever it is done."""
        self.is_half_compacted = compacted.summary is None
        self.tokens += compacted.usage.total
        self.cost_usd += compacted.cost_usd or 0
        messages = self.messages()
        for turn in range(max(self.shortened_to, self.summarised_to) + 1, compacted.shortened_to + 1):
            at = self._after(turn)
            messages[at] = {
                **messages[at],
                "content": [_in_short(block) for block in messages[at]["content"]],
            }
        self.shortened_to = max(self.shortened_to, compacted.shortened_to)
        if compacted.summary is not None:
            summed_up = prompt.summed_up(compacted.summary, self.memory.as_text())
            opening = {"role": "user", "content": [_text(self._first), _text(summed_up)]}
            messages[: self._after(compacted.summarised_to) + 1] = [opening]
            self.summarised_to = compacted.summarised_to
        self._size.shrink(sum(size_of(block) for message in messages for block in message["content"]))

    def tail(self, characters: int, most_turns: int) -> int:
        """The turn after which the latest ones have at most so many characters; never the last one's own."""
        messages, turn, length = self.messages(), self.turns, 0
        while turn > self.summarised_to and self.turns - turn < most_turns:
            at = self._after(turn)
            length += sum(
                size_of(block) for message in messages[at - 1 : at + 1] for block in message["content"]
            )
            if length > characters:
                break
            turn -= 1
        return min(turn, self.turns - 1)

    def _after(self, turn: int) -> int:
        """Where the user's message after this turn is."""
        return 2 * (turn - self.summarised_to)

    def _say(self, block: Block) -> None:
        self._texts.append(block)
        self._size.grow(len(block["text"]))

    def _usable(self, block: Block) -> bool:
        tool = self._tools.get(block["name"])
        return tool is not None and tool.problem(block["input"]) is None


class _Size:
    """Of a conversation, in characters, and in tokens where a provider has counted them."""

    def __init__(self, characters: int) -> None:
        self._characters = characters
        self._counted = 0
        self._counted_characters = 0

    @property
    def tokens(self) -> int:
        return self._counted + (self._characters - self._counted_characters) // CHARACTERS_PER_TOKEN

    def grow(self, characters: int) -> None:
        self._characters += characters

    def measure(self, tokens: int) -> None:
        if tokens:
            self._counted, self._counted_characters = tokens, self._characters

    def shrink(self, characters: int) -> None:
        tokens = self.tokens * characters // max(self._characters, 1)
        self._characters = characters
        self._counted, self._counted_characters = tokens, characters


def size_of(block: Block) -> int:
    """Characters of what the model reads of it."""
    match block["type"]:
        case "text":
            return len(block["text"])
        case "tool_result":
            return len(block["content"])
        case _:
            return len(json.dumps(block, ensure_ascii=False))


def _in_short(block: Block) -> Block:
    if block["type"] != "tool_result":
        return block
    return {**block, "content": shortened(block["content"], block["tool_use_id"])}


def _text(text: str) -> Block:
    return {"type": "text", "text": text}
