"""Gives tool calls to a model that has none: it writes them as tags in its text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.core.assignment import Stop
from orchestrator.engine.parsing.calls import CallParser
from orchestrator.engine.parsing.transcript import as_text
from orchestrator.engine.ports import (
    Block,
    CallCompleted,
    Model,
    ModelRequest,
    Reply,
    StreamEvent,
    TextDelta,
    counted,
)

_CUT_OFF = frozenset({"max_tokens"})


@dataclass(frozen=True, slots=True)
class TaggedModel:
    """Asks `model` for text, and finds the calls in it while it arrives."""

    model: Model

    @property
    def kind(self) -> Literal["live", "recorded"]:
        return self.model.kind

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def metered(self) -> bool:
        return bool(getattr(self.model, "metered", False))

    @property
    def context_tokens(self) -> int | None:
        return getattr(self.model, "context_tokens", None)

    def count(self, request: ModelRequest, /) -> int | None:
        return counted(self.model, as_text(request))

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        reading = _Reading(CallParser(request.tools), listen)
        reply = self.model.reply(as_text(request), reading.hear, stop)
        reading.end(cut_off=reply.stop_reason in _CUT_OFF)
        kept = [block for block in reply.content if block["type"] not in {"text", "tool_use"}]
        found = list(_blocks(reading.events))
        called = any(block["type"] == "tool_use" for block in found)
        reason = "tool_use" if called and reply.stop_reason == "end_turn" else reply.stop_reason
        return replace(reply, content=(*kept, *found), stop_reason=reason)


class _Reading:
    """One reply on its way through the parser."""

    def __init__(self, parser: CallParser, listen: Callable[[StreamEvent], None]) -> None:
        self._parser = parser
        self._listen = listen
        self.events: list[StreamEvent] = []

    def hear(self, event: StreamEvent) -> None:
        if isinstance(event, TextDelta):
            self._pass_on(self._parser.feed(event.text))

    def end(self, *, cut_off: bool) -> None:
        self._pass_on(self._parser.finish(cut_off=cut_off))

    def _pass_on(self, events: Iterable[StreamEvent]) -> None:
        for event in events:
            self.events.append(event)
            self._listen(event)


def _blocks(events: Iterable[StreamEvent]) -> Iterator[Block]:
    """Texts that belong together are one block; one of blanks alone, as between two calls, is left out."""
    text: list[str] = []
    for event in events:
        if isinstance(event, TextDelta):
            text.append(event.text)
        elif isinstance(event, CallCompleted):
            yield from _text(text)
            text = []
            yield event.block()
    yield from _text(text)


def _text(pieces: list[str]) -> Iterator[Block]:
    if (text := "".join(pieces)).strip():
        yield {"type": "text", "text": text}
