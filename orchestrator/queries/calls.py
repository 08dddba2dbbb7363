"""A task's calls of live models, and what they cost its whole tree by provider and model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.errors import Unknown
from orchestrator.db.sql import one, rows, statement
from orchestrator.queries.costs import UNCOUNTED_SQL, Money, money

MOST: Final = 500


@dataclass(frozen=True, slots=True)
class CallLine:
    """One call. `outcome` None: it is under way; `cost` None: nothing was used, or its price isn't known."""

    id: str
    step_id: str
    agent_type: str
    provider: str
    model: str
    dialect: str
    outcome: str | None
    http_status: int | None
    error_code: str | None
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    estimated: bool
    cost: Money | None
    has_evidence: bool
    started_at: datetime
    first_byte_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class CostLine:
    """What one kind of agent used of one model. `unpriced_calls` are not in `cost`."""

    agent_type: str | None
    provider: str | None
    model: str
    recorded: bool
    calls: int
    unpriced_calls: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost: Money


@dataclass(frozen=True, slots=True)
class TreeCosts:
    """Of a task and all that it belongs to: `root_id` with all subtasks. `budget` is the root's.

    `is_cost_complete` False: the price of some calls isn't known, or there were `uncounted_agents`, which
    spend what nobody here sees; `cost` is without either.
    """

    task_id: str
    root_id: str
    budget: dict[str, Any]
    cost: Money
    is_cost_complete: bool
    uncounted_agents: tuple[str, ...]
    lines: tuple[CostLine, ...]


_CALLS: Final = statement(
    f"""
    SELECT id, step_id, agent_type, provider, model, dialect, outcome, http_status, error_code, input_tokens,
        output_tokens, cache_read_tokens, cache_write_tokens, estimated, cost_usd,
        evidence_key IS NOT NULL AS has_evidence, started_at, first_byte_at, ended_at
    FROM model_calls WHERE tenant_id = :tenant AND task_id = :task
    ORDER BY started_at DESC, id DESC LIMIT {MOST}
    """
)
_EVIDENCE: Final = statement(
    "SELECT evidence_key FROM model_calls WHERE tenant_id = :tenant AND task_id = :task AND id = :call"
)
_ROOT: Final = statement(
    """
    SELECT t.root_id, r.budget FROM tasks t JOIN tasks r ON r.tenant_id = t.tenant_id AND r.id = t.root_id
    WHERE t.tenant_id = :tenant AND t.id = :task
    """
)
_COSTS: Final = statement(
    """
    SELECT u.agent_type, u.provider, u.model, u.recorded, count(*) AS calls,
        count(*) FILTER (WHERE u.cost_usd IS NULL) AS unpriced_calls,
        sum(u.input_tokens) AS input_tokens, sum(u.output_tokens) AS output_tokens,
        sum(u.cache_read_tokens) AS cache_read_tokens, sum(u.cache_write_tokens) AS cache_write_tokens,
        coalesce(sum(u.cost_usd), 0) AS cost_usd
    FROM tasks t JOIN usage u ON u.tenant_id = t.tenant_id AND u.task_id = t.id
    WHERE t.tenant_id = :tenant AND t.root_id = :root
    GROUP BY u.agent_type, u.provider, u.model, u.recorded
    ORDER BY cost_usd DESC, u.model
    """
)


_UNCOUNTED: Final = statement(
    f"""
    SELECT DISTINCT u.kind FROM tasks t CROSS JOIN LATERAL ({UNCOUNTED_SQL}) u
    WHERE t.tenant_id = :tenant AND t.root_id = :root ORDER BY u.kind
    """
)


def calls(connection: Connection, tenant_id: str, task_id: str) -> tuple[CallLine, ...]:
    """The latest first, and no more than MOST."""
    found = rows(connection, _CALLS, tenant=tenant_id, task=task_id)
    return tuple(CallLine(**_priced(row)) for row in found)


def evidence_key(connection: Connection, tenant_id: str, task_id: str, call_id: str) -> str:
    """Where the artifact store has what was said. Raises Unknown."""
    row = None
    if call_id.isprintable():
        row = one(connection, _EVIDENCE, tenant=tenant_id, task=task_id, call=call_id)
    if row is None or row["evidence_key"] is None:
        raise Unknown(
            "call-unknown",
            f"Nothing is kept of a call {call_id[:80]} of task {task_id}.",
            f"See its calls: orchestrator task calls {task_id}",
        )
    return str(row["evidence_key"])


def tree_costs(connection: Connection, tenant_id: str, task_id: str) -> TreeCosts:
    """`task_id` must be that of a task."""
    root = one(connection, _ROOT, tenant=tenant_id, task=task_id)
    assert root is not None  # noqa: S101 - the caller has resolved it
    found = rows(connection, _COSTS, tenant=tenant_id, root=root["root_id"])
    lines = tuple(CostLine(**_priced(row)) for row in found)
    total = sum((row["cost_usd"] for row in found), Decimal(0))
    elsewhere = rows(connection, _UNCOUNTED, tenant=tenant_id, root=root["root_id"])
    uncounted = tuple(row["kind"] for row in elsewhere)
    complete = not uncounted and all(line.recorded or not line.unpriced_calls for line in lines)
    return TreeCosts(task_id, root["root_id"], root["budget"], money(total), complete, uncounted, lines)


def _priced(row: dict[str, Any]) -> dict[str, Any]:
    amount = row["cost_usd"]
    kept = {name: value for name, value in row.items() if name != "cost_usd"}
    return {**kept, "cost": None if amount is None else money(amount)}
