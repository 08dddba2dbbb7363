"""What every call of ours carries besides its content: whose it is, when, which send. Put in here alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from orchestrator.engine.ports import CallFacts, ModelRequest


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Tracing:
    """Names of headers; each value is sent under every name of its list. Other programs know them as
    X-KILOCODE-TASK-ID and X-KILOCODE-TIMESTAMP-ISO.

    `in_system`: for a transport that passes no headers on. The facts are then a block of the system prompt,
    the last one and without a time: it asks for nothing, and stays the same for the whole conversation, so
    that prompts are still cached.
    """

    task: tuple[str, ...] = ("X-Task-Id",)
    time: tuple[str, ...] = ("X-Timestamp-Iso",)
    idempotency: tuple[str, ...] = ("Idempotency-Key",)
    in_system: bool = False
    clock: Callable[[], datetime] = _now

    def headers(self, request: ModelRequest, send: int = 1) -> Mapping[str, str]:
        """`send` counts the different requests that are made for one reply."""
        if (facts := request.call) is None or self.in_system:
            return {}
        values = (
            (self.task, facts.task_id),
            (self.time, self.clock().isoformat(timespec="milliseconds").replace("+00:00", "Z")),
            (self.idempotency, key(facts, len(request.messages), send)),
        )
        return {name: value for names, value in values for name in names}

    def system(self, request: ModelRequest) -> str | None:
        """What the system prompt says instead."""
        if (facts := request.call) is None or not self.in_system:
            return None
        return f"Metadata of this request, for logs alone: task {facts.task_id}, step {facts.step_id}."


BY_HEADERS: Final = Tracing()


def key(facts: CallFacts, messages: int, send: int) -> str:
    """The same for the same send, and for no other: a claim that has to ask again is another send, and so is
    a conversation that was made shorter."""
    return f"{facts.step_id}-{facts.fence}-{facts.turn}-{facts.purpose}-{messages}-{send}"
