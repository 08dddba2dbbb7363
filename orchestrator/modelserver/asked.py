"""What a request asks for, whichever API it speaks: the part that scripts decide by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Dialect(StrEnum):
    MESSAGES = "messages"
    RESPONSES = "responses"
    CHAT = "chat"


class Speaker(StrEnum):
    """`TOOL` is the result of a call, whoever carries it in the API's own terms."""

    USER = "user"
    MODEL = "model"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing said. `call_id` is that of a call of the model's, or of the call that a result answers."""

    speaker: Speaker
    text: str
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool that the request offers. Namespaces are the Responses API's."""

    name: str
    schema: Mapping[str, Any]
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """`system` holds the instructions, `items` the conversation from its beginning, earlier turns included
    that the request only points at by `previous_response_id`.
    """

    dialect: Dialect
    model: str
    stream: bool
    system: str
    items: Sequence[Item]
    tools: Sequence[Offered]
    input_tokens: int
    options: Mapping[str, Any]

    @property
    def turn(self) -> int:
        return turn_of(self.items)

    @property
    def opening(self) -> str:
        """What the user said before the model first spoke."""
        texts: list[str] = []
        for item in self.items:
            if item.speaker is Speaker.MODEL:
                break
            texts.append(item.text)
        return "\n".join(texts)

    @property
    def latest(self) -> str:
        """What came after the model last spoke: results and words of the user."""
        texts: list[str] = []
        for item in reversed(self.items):
            if item.speaker is Speaker.MODEL:
                break
            texts.append(item.text)
        return "\n".join(reversed(texts))

    @property
    def everything(self) -> str:
        return "\n".join([self.system, *(item.text for item in self.items)])

    def offered(self, name: str) -> Offered | None:
        """By its own name, or by the name that joins its namespace and its own."""
        joined = (tool for tool in self.tools if name in {tool.name, f"{tool.namespace}__{tool.name}"})
        return next(joined, None)


_TURN_IN_ID: Final = re.compile(r"_t(\d{1,6})i\d+_")


def call_id(prefix: str, turn: int, index: int, send: str) -> str:
    """Says of which turn the call is, so that a shortened conversation doesn't lose count."""
    return f"{prefix}_t{turn}i{index}_{send}"


def turn_of(items: Sequence[Item]) -> int:
    """How many turns the model has had, which is the number of its next one.

    Calls of this server's carry their turn in their id. Other words of the model count as one turn for as
    long as nobody else speaks. Words of the model at the very end are a turn that isn't over: a client
    whose stream broke keeps what it has heard and asks for the rest.
    """
    turn, speaking = 0, False
    for item in _without_last_words(items):
        if item.speaker is not Speaker.MODEL:
            speaking = False
        elif (found := _TURN_IN_ID.search(item.call_id or "")) is not None:
            turn, speaking = max(turn, int(found[1]) + 1), True
        elif not speaking:
            turn, speaking = turn + 1, True
    return turn


def _without_last_words(items: Sequence[Item]) -> Sequence[Item]:
    end = len(items)
    while end and items[end - 1].speaker is Speaker.MODEL:
        end -= 1
    return items[:end]


def as_text(content: Any) -> str:
    """The words in any API's content: a string, or blocks with `text`, `content`, `output` or `refusal`."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "\n".join(filter(None, (as_text(part) for part in content)))
    if isinstance(content, Mapping):
        keys = ("text", "content", "output", "refusal", "thinking")
        return "\n".join(filter(None, (as_text(content.get(key)) for key in keys)))
    return ""


class NotUnderstood(Exception):
    """The request is none of its API's: the client gets a 400 that says why."""


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise NotUnderstood(f"{what} must be an object")
    return value


def sequence(value: Any, what: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise NotUnderstood(f"{what} must be an array")
    return value
