"""Room in the model's window: when it gets short, what is sent is made smaller, and the journal says how.

First the outputs of older turns are sent in short; if that is not enough, the model writes a summary, which
stands in for all but the latest turns. The task and the step, what a person said, answers, the plan and the
names of changed files are kept word for word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from orchestrator.core.recovery import ErrorClass
from orchestrator.engine import prompt
from orchestrator.engine.dialogue import CHARACTERS_PER_TOKEN, Dialogue
from orchestrator.engine.ports import Compacted, Model, ModelError, ModelRequest, Reply, counted
from orchestrator.engine.untrusted import cut, storable

WINDOW: Final = 200_000
"""Tokens of a model that doesn't say how many it has."""
_SUMMARY_CHARACTERS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Room:
    """How full the window may get; the rest is for the reply, and for what an estimate misses."""

    full: float = 0.75
    """Where it is made smaller."""
    enough: float = 0.55
    """Where outputs in short are enough, so that no summary is written."""
    tail: float = 0.15
    """What the latest turns, which stay as they are, may take."""
    latest: int = 8
    """The most of them."""


class Context:
    """Decides what to leave out. `ask` sends a request and gives its reply; `cost` prices it."""

    def __init__(
        self,
        model: Model,
        dialogue: Dialogue,
        request: Callable[[], ModelRequest],
        ask: Callable[[ModelRequest], Reply],
        cost: Callable[[Reply], Decimal | None],
        room: Room = Room(),
    ) -> None:
        self._model = model
        self._dialogue = dialogue
        self._request = request
        self._ask = ask
        self._cost = cost
        self._room = room

    @property
    def _window(self) -> int:
        return int(getattr(self._model, "context_tokens", None) or WINDOW)

    def is_full(self) -> bool:
        """The provider is asked for the exact number only where the estimate says that it is; where it gives
        none, the estimate counts."""
        full = self._window * self._room.full
        if self._dialogue.estimate >= full:
            with suppress(ModelError):
                if (tokens := counted(self._model, self._request())) is not None:
                    self._dialogue.counted(tokens)
        return self._dialogue.estimate >= full

    def shorter(self) -> Compacted | None:
        """Older outputs in short; None when there are none that are still sent whole."""
        to, dialogue = self._tail(), self._dialogue
        if to <= max(dialogue.shortened_to, dialogue.summarised_to):
            return None
        return Compacted(dialogue.turns + 1, to)

    def is_tight(self) -> bool:
        return self._dialogue.estimate >= self._window * self._room.enough

    def summary(self) -> Compacted | None:
        """The model's own words for all but the latest turns; None when there is nothing to sum up."""
        to = self._tail()
        if to <= self._dialogue.summarised_to:
            return None
        try:
            reply = self._ask(_asking_for_summary(self._request()))
        except ModelError as error:
            if error.error is not ErrorClass.CONTEXT_TOO_LONG:
                raise
            return self.without_summary()
        said = "\n".join(block["text"] for block in reply.content if block["type"] == "text").strip()
        summary = storable(cut(said, _SUMMARY_CHARACTERS)) or prompt.NO_SUMMARY
        return Compacted(self._dialogue.turns + 1, to, to, summary, reply.usage, self._cost(reply))

    def without_summary(self) -> Compacted | None:
        """The least that can be sent: the last turn, its outputs in short. None: it can't get less."""
        dialogue = self._dialogue
        if dialogue.shortened_to >= dialogue.turns:
            return None
        return Compacted(dialogue.turns + 1, dialogue.turns, dialogue.turns - 1, prompt.NO_SUMMARY)

    def _tail(self) -> int:
        characters = int(self._window * self._room.tail) * CHARACTERS_PER_TOKEN
        return self._dialogue.tail(characters, self._room.latest)


def _asking_for_summary(request: ModelRequest) -> ModelRequest:
    """The same request, so that the provider's cache holds, with the wish at its end."""
    *before, last = request.messages
    wish: Mapping[str, Any] = {"type": "text", "text": prompt.SUMMARISE}
    return replace(
        request,
        messages=[*before, {**last, "content": [*last["content"], wish]}],
        call=request.call and replace(request.call, purpose="summary"),
    )
