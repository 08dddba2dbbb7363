"""What a task tree may use together: its root's budget."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from sqlalchemy import Connection

from orchestrator.core.assignment import Budget
from orchestrator.db.sql import TaskRef, dumps, one, statement

_RAISE: Final = statement(
    """
    UPDATE tasks r SET budget = r.budget || CAST(:bounds AS jsonb), updated_at = clock_timestamp()
    FROM tasks t WHERE t.tenant_id = :tenant AND t.id = :task AND r.tenant_id = t.tenant_id
      AND r.id = t.root_id
    RETURNING r.budget
    """
)


def raise_budget(connection: Connection, task: TaskRef, budget: Budget) -> Budget | None:
    """Sets the bounds that are given, of the whole tree; the others stay. None: no such task."""
    bounds = {
        "max_cost_usd": None if budget.cost_usd is None else str(budget.cost_usd),
        "max_tokens": budget.tokens,
        "max_turns": budget.turns,
    }
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    row = one(connection, _RAISE, tenant=task.tenant_id, task=task.task_id, bounds=dumps(given))
    if row is None:
        return None
    cost = row["budget"].get("max_cost_usd")
    return Budget(
        row["budget"].get("max_turns"),
        row["budget"].get("max_tokens"),
        None if cost is None else Decimal(str(cost)),
    )
