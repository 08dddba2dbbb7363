"""A step's conversation: it only grows, and only under the fence of the claim that speaks.

Every write locks nothing but the step's row, so that two steps of one task don't wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.db.sql import Direct, Prepared, StepRef, dumps, one, rows, statement

_CLAIM: Final = {"fence": "bigint", "attempt": "int", "conversation": "int"}
"""What a statement under a claim takes besides text."""
_HELD: Final = """
    SELECT 1 FROM steps WHERE tenant_id = :tenant AND id = :step AND fence = :fence AND status = 'running'
      AND lease_until IS NOT NULL FOR UPDATE
"""
_APPENDED: Final = f"""
    WITH held AS ({_HELD}), appended AS (
        INSERT INTO turns (tenant_id, step_id, conversation, kind, number, fence, attempt, message)
        SELECT :tenant, :step, :conversation, :kind, :number, :fence, :attempt, CAST(:message AS jsonb)
        FROM held
        RETURNING 1
    )
"""
_APPEND: Final = Prepared("append_turn", _APPENDED + "SELECT 1 FROM appended", **_CLAIM, number="int")
_APPEND_SPENT: Final = Prepared(
    "append_spent",
    _APPENDED
    + """
    INSERT INTO usage (tenant_id, task_id, step_id, conversation, turn, model, recorded, input_tokens,
        output_tokens, cache_read_tokens, cache_write_tokens, cost_usd)
    SELECT :tenant, :task, :step, :conversation, :number, :model, :recorded, :input, :output, :cache_read,
        :cache_write, :cost
    FROM appended
    RETURNING 1
    """,
    **_CLAIM,
    number="int",
    recorded="boolean",
    input="bigint",
    output="bigint",
    cache_read="bigint",
    cache_write="bigint",
    cost="numeric",
)
_BEGIN: Final = Prepared(
    "begin_call",
    f"""
    WITH held AS ({_HELD}), begun AS (
        INSERT INTO tool_calls (tenant_id, step_id, conversation, id, turn, fence, name, arguments)
        SELECT :tenant, :step, :conversation, :call, :turn, :fence, :name, CAST(:arguments AS jsonb) FROM held
        ON CONFLICT DO NOTHING
    )
    SELECT 1 FROM held
    """,
    **_CLAIM,
    turn="int",
)
_FINISH: Final = Prepared(
    "finish_call",
    f"""
    WITH held AS ({_HELD}), finished AS (
        UPDATE tool_calls SET result = :result, is_error = :is_error, checkpoint = :checkpoint,
            output = :output, finished_at = clock_timestamp()
        FROM held
        WHERE tenant_id = :tenant AND step_id = :step AND conversation = :conversation AND id = :call
          AND finished_at IS NULL
        RETURNING 1
    ), consumed AS (
        UPDATE questions SET consumed_at = coalesce(consumed_at, clock_timestamp())
        FROM finished
        WHERE tenant_id = :tenant AND step_id = :step AND call_id = :question AND answered_at IS NOT NULL
    )
    SELECT 1 FROM finished
    """,
    **_CLAIM,
    is_error="boolean",
)
_TURNS: Final = statement(
    """
    SELECT kind, number, message FROM turns
    WHERE tenant_id = :tenant AND step_id = :step AND conversation = :conversation AND kind <> 'session'
    ORDER BY id
    """
)
_SESSION: Final = statement(
    """
    SELECT message FROM turns
    WHERE tenant_id = :tenant AND step_id = :step AND conversation = :conversation AND kind = 'session'
    ORDER BY id DESC LIMIT 1
    """
)
_CALLS: Final = statement(
    """
    SELECT id, turn, result, is_error, checkpoint, finished_at FROM tool_calls
    WHERE tenant_id = :tenant AND step_id = :step AND conversation = :conversation ORDER BY number
    """
)
_OUTPUT: Final = statement(
    """
    SELECT substr(coalesce(output, result), :start + 1, :count) AS part FROM tool_calls
    WHERE tenant_id = :tenant AND step_id = :step AND conversation = :conversation AND id = :call
      AND finished_at IS NOT NULL
    """
)
_LONGEST: Final = 2**30
"""Characters of a text in Postgres; a model may ask for what comes after any number of them."""
_ANSWERS: Final = statement(
    """
    SELECT call_id, answer, subject_digest FROM questions WHERE tenant_id = :tenant AND step_id = :step
        AND answered_at IS NOT NULL
    """
)
_ELSEWHERE: Final = Prepared(
    "spent_elsewhere",
    """
    SELECT count(*) AS turns, coalesce(sum(u.cost_usd), 0) AS cost_usd,
        coalesce(sum(u.input_tokens + u.output_tokens + u.cache_read_tokens + u.cache_write_tokens), 0)
            AS tokens
    FROM (SELECT root_id FROM tasks WHERE tenant_id = :tenant AND id = :task) me
    CROSS JOIN LATERAL (
        SELECT id, workflow_number FROM tasks WHERE tenant_id = :tenant AND id = me.root_id
        UNION ALL
        SELECT id, workflow_number FROM tasks
        WHERE tenant_id = :tenant AND parent_id IS NOT NULL AND root_id = me.root_id
    ) t
    JOIN workflows w ON w.tenant_id = :tenant AND w.task_id = t.id AND w.number = t.workflow_number
    JOIN steps s ON s.tenant_id = :tenant AND s.workflow_id = w.id
    JOIN usage u ON u.tenant_id = :tenant AND u.step_id = s.id
    WHERE (u.step_id, u.conversation) <> (:step, :conversation)
    """,
    conversation="int",
)


def question_key(conversation: int, call_id: str = "") -> str:
    """What a question is known by besides its step: the ids of calls are a model's own, and may come again in
    the conversation that is begun anew after a conflict, for something else."""
    return f"{conversation}/{call_id}" if conversation else call_id


class FenceLost(Exception):
    """The claim that writes is not the latest, or its step doesn't run any more."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which conversation, and under which claim."""

    step: StepRef
    fence: int
    attempt: int
    conversation: int

    @property
    def keys(self) -> dict[str, Any]:
        return {
            "tenant": self.step.tenant_id,
            "step": self.step.step_id,
            "fence": self.fence,
            "conversation": self.conversation,
        }


@dataclass(frozen=True, slots=True)
class Spent:
    """What one turn used. `cost_usd` None: the model's price isn't known."""

    model: str
    recorded: bool
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_usd: Decimal | None


def append(
    connection: Connection | Direct,
    scope: Scope,
    kind: str,
    number: int,
    message: Mapping[str, Any],
    spent: Spent | None = None,
) -> None:
    """Appends a turn, or what came before one: `heard`, `compacted`, `corrected`. Raises FenceLost."""
    values = {
        **scope.keys,
        "kind": kind,
        "number": number,
        "attempt": scope.attempt,
        "message": dumps(message),
    }
    if spent is None:
        added = one(connection, _APPEND, **values)
    else:
        added = one(
            connection,
            _APPEND_SPENT,
            **values,
            task=scope.step.task_id,
            model=spent.model,
            recorded=spent.recorded,
            input=spent.input_tokens,
            output=spent.output_tokens,
            cache_read=spent.cache_read_tokens,
            cache_write=spent.cache_write_tokens,
            cost=spent.cost_usd,
        )
    if added is None:
        raise FenceLost


def begin_call(
    connection: Connection | Direct,
    scope: Scope,
    turn: int,
    call_id: str,
    name: str,
    arguments: Mapping[str, Any],
) -> None:
    """Writes a call down before it runs; one that was begun before stays as it is. Raises FenceLost."""
    begun = one(
        connection, _BEGIN, **scope.keys, turn=turn, call=call_id, name=name, arguments=dumps(arguments)
    )
    if begun is None:
        raise FenceLost


def finish_call(
    connection: Connection | Direct,
    scope: Scope,
    call_id: str,
    result: str,
    is_error: bool,
    checkpoint: str | None,
    output: str | None = None,
) -> None:
    """Its result, once, and its whole output where the result shows a part of it; an answer to a question
    that it carries counts as consumed. Raises FenceLost."""
    finished = one(
        connection,
        _FINISH,
        **scope.keys,
        call=call_id,
        question=question_key(scope.conversation, call_id),
        result=result.replace("\x00", "\ufffd"),
        is_error=is_error,
        checkpoint=checkpoint,
        output=None if output is None else output.replace("\x00", "\ufffd"),
    )
    if finished is None:
        raise FenceLost


def output(connection: Connection, scope: Scope, call_id: str, start: int, count: int) -> str | None:
    """That part of what a finished call gave, in characters from 0; None: there is no such call."""
    first = min(max(start, 0), _LONGEST)
    row = one(connection, _OUTPUT, **scope.keys, call=call_id, start=first, count=max(count, 0))
    return None if row is None else row["part"]


def spent_elsewhere(connection: Connection | Direct, scope: Scope) -> dict[str, Any]:
    """Turns, tokens and cost_usd of the current runs of the whole tree of tasks, without this
    conversation's."""
    row = one(connection, _ELSEWHERE, **scope.keys, task=scope.step.task_id)
    assert row is not None  # noqa: S101 - sums without GROUP BY
    return row


@dataclass(frozen=True, slots=True)
class Stored:
    """A whole conversation, as rows in order; `answers`: call id → the person's text; `digests`: call id →
    the digest of what leave was asked for."""

    turns: tuple[Mapping[str, Any], ...]
    calls: tuple[Mapping[str, Any], ...]
    answers: Mapping[str, str]
    digests: Mapping[str, str]


def session(connection: Connection, scope: Scope) -> Mapping[str, Any] | None:
    """The latest record of an external agent's session (kind `session`)."""
    row = one(connection, _SESSION, **scope.keys)
    return None if row is None else row["message"]


def load(connection: Connection, scope: Scope) -> Stored:
    keys, own = scope.keys, question_key(scope.conversation)
    found = rows(connection, _ANSWERS, **keys)
    answered = {row["call_id"].removeprefix(own): row for row in found if row["call_id"].startswith(own)}
    return Stored(
        tuple(rows(connection, _TURNS, **keys)),
        tuple(rows(connection, _CALLS, **keys)),
        {call_id: row["answer"]["text"] for call_id, row in answered.items()},
        {
            call_id: row["subject_digest"]
            for call_id, row in answered.items()
            if row["subject_digest"] is not None
        },
    )
