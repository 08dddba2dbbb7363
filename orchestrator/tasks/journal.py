"""The engine's journal, kept in Postgres."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from orchestrator.core.redaction import Redactor
from orchestrator.core.subtask import SubtaskRequest
from orchestrator.db import journal, lineage
from orchestrator.db.connect import Engine, at_once
from orchestrator.db.journal import FenceLost, Scope, Spent
from orchestrator.engine.ports import (
    Call,
    Compacted,
    Conversation,
    Corrected,
    Entry,
    Heard,
    LeaseLost,
    Spending,
    ToolResult,
    Turn,
    Usage,
)
from orchestrator.tasks import steering
from orchestrator.tasks.fenced import fenced_at_once

_KINDS: Final[Mapping[type[Entry], str]] = {Compacted: "compacted", Corrected: "corrected"}

Delegate = Callable[[Scope, Sequence[SubtaskRequest], str | None], None]
"""Starts subtasks from a checkpoint. Raises FenceLost, SubtaskRefused."""


@dataclass(frozen=True, slots=True)
class PostgresJournal:
    """Each method is a transaction under the claim's fence; what is kept is redacted first."""

    engine: Engine
    scope: Scope
    redactor: Redactor
    delegate: Delegate | None = None
    """Starts subtasks. None: this journal is only read."""

    def load(self) -> Conversation:
        with self.engine.connect() as connection:
            stored = journal.load(connection, self.scope)
            ended = lineage.ends(connection, self.scope.step, self.scope.conversation)
        entries = tuple(_entry(row["kind"], row["number"], row["message"]) for row in stored.turns)
        calls = tuple(
            Call(
                row["id"],
                ToolResult(row["result"], row["is_error"]) if row["finished_at"] is not None else None,
                row["checkpoint"],
                row["turn"],
            )
            for row in stored.calls
        )
        return Conversation(entries, calls, stored.answers, stored.digests, ended)

    def hear(self, before_turn: int, /) -> Sequence[Heard]:
        return steering.hear(self.engine, self.scope, self.redactor, before_turn)

    def spent_elsewhere(self) -> Spending:
        with at_once(self.engine) as direct:
            found = journal.spent_elsewhere(direct, self.scope)
        return Spending(int(found["turns"]), int(found["tokens"]), Decimal(found["cost_usd"]))

    def append_turn(self, turn: Turn, /) -> None:
        used = turn.usage
        spent = Spent(
            model=turn.model,
            recorded=turn.model_kind == "recorded",
            input_tokens=used.input_tokens,
            output_tokens=used.output_tokens,
            cache_read_tokens=used.cache_read_tokens,
            cache_write_tokens=used.cache_write_tokens,
            cost_usd=turn.cost_usd,
        )
        message = {
            "content": self.redactor.value([dict(block) for block in turn.content]),
            "stop_reason": turn.stop_reason,
            "usage": asdict(turn.usage),
            "model": turn.model,
            "model_kind": turn.model_kind,
            "request_id": turn.request_id,
            "cost_usd": None if turn.cost_usd is None else str(turn.cost_usd),
            "elapsed_seconds": turn.elapsed.total_seconds(),
            "reason": turn.reason,
        }
        counted = turn.metered or turn.model_kind == "live"  # by the gateway
        with fenced_at_once(self.engine) as direct:
            journal.append(direct, self.scope, "turn", turn.number, message, None if counted else spent)

    def append(self, entry: Compacted | Corrected, /) -> None:
        message = self.redactor.value(asdict(entry))
        if isinstance(entry, Compacted):
            message["cost_usd"] = None if entry.cost_usd is None else str(entry.cost_usd)
        with fenced_at_once(self.engine) as direct:
            journal.append(direct, self.scope, _KINDS[type(entry)], message.pop("before_turn"), message)

    def as_kept(self, arguments: Mapping[str, Any], /) -> Mapping[str, Any]:
        kept: Mapping[str, Any] = self.redactor.value(dict(arguments))
        return kept

    def begin_call(self, turn: int, call_id: str, name: str, arguments: Mapping[str, Any], /) -> None:
        kept = self.as_kept(arguments)
        with fenced_at_once(self.engine) as direct:
            journal.begin_call(direct, self.scope, turn, call_id, name, kept)

    def finish_call(self, call_id: str, result: ToolResult, checkpoint: str | None, /) -> None:
        text = self.redactor.text(result.text)
        output = None if result.output is None else self.redactor.text(result.output)
        with fenced_at_once(self.engine) as direct:
            journal.finish_call(direct, self.scope, call_id, text, result.is_error, checkpoint, output)

    def output(self, call_id: str, start: int, end: int, /) -> str | None:
        with self.engine.connect() as connection:
            return journal.output(connection, self.scope, call_id, start, end - start)

    def start_subtasks(self, requests: Sequence[SubtaskRequest], checkpoint: str | None, /) -> None:
        assert self.delegate is not None  # noqa: S101 - the desk's own journal has one
        clean = [replace(each, objective=self.redactor.text(each.objective)) for each in requests]
        try:
            self.delegate(self.scope, clean, checkpoint)
        except FenceLost:
            raise LeaseLost from None


def _entry(kind: str, number: int, message: Mapping[str, Any]) -> Entry:
    match kind:
        case "turn":
            return _turn(number, message)
        case "compacted":
            cost = None if message["cost_usd"] is None else Decimal(message["cost_usd"])
            return Compacted(number, **{**message, "usage": Usage(**message["usage"]), "cost_usd": cost})
        case "corrected":
            return Corrected(number, **message)
        case _:
            return Heard(number, message["text"])


def _turn(number: int, message: Mapping[str, Any]) -> Turn:
    cost = message["cost_usd"]
    return Turn(
        number=number,
        content=tuple(message["content"]),
        stop_reason=message["stop_reason"],
        usage=Usage(**message["usage"]),
        model=message["model"],
        model_kind=message["model_kind"],
        request_id=message["request_id"],
        cost_usd=None if cost is None else Decimal(cost),
        elapsed=timedelta(seconds=message["elapsed_seconds"]),
        reason=message.get("reason"),
    )
