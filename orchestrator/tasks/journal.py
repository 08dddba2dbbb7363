"""The engine's journal, kept in Postgres."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from orchestrator.core.redaction import Redactor
from orchestrator.core.subtask import SubtaskRequest
from orchestrator.db import effects, journal, lineage
from orchestrator.db.connect import Connection, Engine
from orchestrator.db.journal import FenceLost, Scope, Spent
from orchestrator.engine.ports import Call, Conversation, Heard, LeaseLost, Spending, ToolResult, Turn, Usage

Delegate = Callable[[Scope, Sequence[SubtaskRequest], str | None], None]
"""Starts subtasks from a checkpoint. Raises FenceLost, SubtaskRefused."""


@dataclass(frozen=True, slots=True)
class PostgresJournal:
    """Each method is a transaction under the claim's fence; what is kept is redacted first."""

    engine: Engine
    scope: Scope
    redactor: Redactor
    alone: bool = False
    """The step's first conversation, and the plan has no other step: nobody else spends."""
    delegate: Delegate | None = None
    """Starts subtasks. None: this journal is only read."""

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except FenceLost:
            raise LeaseLost from None

    def load(self) -> Conversation:
        with self.engine.connect() as connection:
            stored = journal.load(connection, self.scope)
            ended = lineage.ends(connection, self.scope.step, self.scope.conversation)
        entries: list[Turn | Heard] = [
            _turn(row["number"], row["message"])
            if row["kind"] == "turn"
            else Heard(row["number"], row["message"]["text"])
            for row in stored.turns
        ]
        calls = tuple(
            Call(
                row["id"],
                ToolResult(row["result"], row["is_error"]) if row["finished_at"] is not None else None,
                row["checkpoint"],
            )
            for row in stored.calls
        )
        return Conversation(tuple(entries), calls, stored.answers, ended)

    def hear(self, before_turn: int, /) -> Sequence[Heard]:
        scope = self.scope
        with self._writing() as connection:
            if not effects.has_messages(connection, scope.step):
                return ()
            taken = effects.take_messages(connection, scope.step, scope.fence)
            heard = [Heard(before_turn, self.redactor.text(text)) for text in taken]
            for message in heard:
                journal.append(connection, scope, "heard", before_turn, {"text": message.text})
        return heard

    def spent_elsewhere(self) -> Spending:
        if self.alone:
            return Spending()
        with self.engine.connect() as connection:
            found = journal.spent_elsewhere(connection, self.scope)
        return Spending(int(found["turns"]), int(found["tokens"]), Decimal(found["cost_usd"]))

    def append_turn(self, turn: Turn, /) -> None:
        spent = Spent(
            model=turn.model,
            recorded=turn.model_kind == "recorded",
            input_tokens=turn.usage.input_tokens,
            output_tokens=turn.usage.output_tokens,
            cache_read_tokens=turn.usage.cache_read_tokens,
            cache_write_tokens=turn.usage.cache_write_tokens,
            cost_usd=turn.cost_usd,
        )
        message = {
            "content": self.redactor.value([dict(block) for block in turn.content]),
            "stop_reason": turn.stop_reason,
            "usage": {
                "input_tokens": turn.usage.input_tokens,
                "output_tokens": turn.usage.output_tokens,
                "cache_read_tokens": turn.usage.cache_read_tokens,
                "cache_write_tokens": turn.usage.cache_write_tokens,
            },
            "model": turn.model,
            "model_kind": turn.model_kind,
            "request_id": turn.request_id,
            "cost_usd": None if turn.cost_usd is None else str(turn.cost_usd),
            "elapsed_seconds": turn.elapsed.total_seconds(),
        }
        with self._writing() as connection:
            # What a live model used, the gateway has written down already.
            counted = spent if spent.recorded else None
            journal.append(connection, self.scope, "turn", turn.number, message, counted)

    def begin_call(self, turn: int, call_id: str, name: str, arguments: Mapping[str, Any], /) -> None:
        with self._writing() as connection:
            kept = self.redactor.value(dict(arguments))
            journal.begin_call(connection, self.scope, turn, call_id, name, kept)

    def finish_call(self, call_id: str, result: ToolResult, checkpoint: str | None, /) -> None:
        with self._writing() as connection:
            text = self.redactor.text(result.text)
            journal.finish_call(connection, self.scope, call_id, text, result.is_error, checkpoint)

    def start_subtasks(self, requests: Sequence[SubtaskRequest], checkpoint: str | None, /) -> None:
        assert self.delegate is not None  # noqa: S101 - the desk's own journal has one
        clean = [replace(each, objective=self.redactor.text(each.objective)) for each in requests]
        try:
            self.delegate(self.scope, clean, checkpoint)
        except FenceLost:
            raise LeaseLost from None


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
    )
