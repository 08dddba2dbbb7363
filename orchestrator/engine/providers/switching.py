"""Several models as one: the right one for the phase, and another when it fails.

A turn is one reply of one model. Models change between turns, or within one after a failed send, whose
connection is closed by then: no two sends are ever under way for one turn, and what was heard of a reply
that failed in its middle is void.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final, Literal

from orchestrator.core.assignment import Stop
from orchestrator.core.model_choice import Choice, ModelSelection, TaskType, another_may_answer, phase
from orchestrator.engine.ports import (
    Block,
    Model,
    ModelError,
    ModelRequest,
    ModelSwitched,
    Reply,
    StreamEvent,
    counted,
)

REST: Final = timedelta(minutes=1)
"""How long a model that failed is passed over, unless its provider asks for longer."""
_SIGNED: Final = "thought_by"
_THOUGHTS: Final = frozenset({"thinking", "redacted_thinking", "reasoning"})


@dataclass(slots=True)
class Switching:
    """`make` gives the model of a name; each is made when it is first needed. For one claim, one thread."""

    selection: ModelSelection
    make: Callable[[str], Model]
    reviews: bool = False
    metered: bool = False
    context_tokens: int | None = None
    """Of the smallest: a conversation must fit whichever answers next."""
    kind: Literal["live"] = "live"
    clock: Callable[[], float] = time.monotonic
    _made: dict[str, Model] = field(default_factory=dict)
    _resting: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Of a model that failed: until when, and why."""
    _current: str | None = None

    @property
    def name(self) -> str:
        return self._current or self.selection.primary

    def count(self, request: ModelRequest, /) -> int | None:
        """By the provider of the model that answered last."""
        return counted(self._model(self.name), own(request, self.name))

    def reply(self, request: ModelRequest, listen: Callable[[StreamEvent], None], stop: Stop, /) -> Reply:
        """Raises the last model's `ModelError` when none answered."""
        left = self._choices(request)
        while True:
            choice, *left = left
            self._tell(choice, listen)
            try:
                reply = self._model(choice.model).reply(own(request, choice.model), listen, stop)
            except ModelError as error:
                if not left or not another_may_answer(error.error, error.code):
                    raise
                self._rest(choice.model, error)
                left[0] = replace(left[0], reason=f"{choice.model} failed: {error.code}")
            else:
                return replace(reply, content=_signed(reply.content, choice.model), reason=choice.reason)

    def _choices(self, request: ModelRequest) -> list[Choice]:
        """Those that rest come last: they are asked only when nobody else is left."""
        found = list(self.selection.choices(self._phase(request)))
        fit = [choice for choice in found if not self._rests(choice.model)]
        if not fit or fit[0] == found[0]:
            return fit + [choice for choice in found if choice not in fit]
        because = self._resting[found[0].model][1]
        fit[0] = replace(fit[0], reason=f"{found[0].model} rests: {because}")
        return fit + [choice for choice in found if self._rests(choice.model)]

    def _phase(self, request: ModelRequest) -> TaskType | None:
        return phase(called(request.messages), reviews=self.reviews) if self.selection.specialized else None

    def _rests(self, model: str) -> bool:
        return model in self._resting and self.clock() < self._resting[model][0]

    def _rest(self, model: str, error: ModelError) -> None:
        seconds = max(REST, error.retry_after or REST).total_seconds()
        self._resting[model] = (self.clock() + seconds, error.code)

    def _tell(self, choice: Choice, listen: Callable[[StreamEvent], None]) -> None:
        if self._current not in {None, choice.model}:
            listen(ModelSwitched(choice.model, choice.reason))
        self._current = choice.model

    def _model(self, name: str) -> Model:
        if name not in self._made:
            self._made[name] = self.make(name)
        return self._made[name]


def own(request: ModelRequest, model: str) -> ModelRequest:
    """The request without what other models thought: thoughts are signed, and good for the model alone that
    had them."""
    if not any(_SIGNED in block for message in request.messages for block in message["content"]):
        return request
    return replace(request, messages=[_own(message, model) for message in request.messages])


def _own(message: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    if not any(_SIGNED in block for block in message["content"]):
        return message
    kept: list[Block] = [
        {name: value for name, value in block.items() if name != _SIGNED}
        for block in message["content"]
        if block.get(_SIGNED, model) == model
    ]
    return {**message, "content": kept or [{"type": "text", "text": "(nothing)"}]}


def _signed(content: Sequence[Block], model: str) -> tuple[Block, ...]:
    return tuple({**block, _SIGNED: model} if block["type"] in _THOUGHTS else block for block in content)


def called(messages: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The names of the tools that each turn has called, the latest first."""
    return (
        [block["name"] for block in message["content"] if block["type"] == "tool_use"]
        for message in reversed(messages)
        if message["role"] == "assistant"
    )
