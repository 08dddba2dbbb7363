"""What models used and cost, and whether they were recorded ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Money:
    """A decimal as text, so that no client rounds it."""

    amount: str
    currency: str = "USD"


@dataclass(frozen=True, slots=True)
class Model:
    """Which model works. `recorded`: its words come from a recording, and nothing is paid."""

    name: str | None
    kind: str
    """live or recorded"""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the models of a task used so far. `recorded_calls` cost nothing.

    `is_cost_complete` False: `unpriced_tokens` were used of models whose price nobody has entered, or there
    were `uncounted_agents`, which spend what nobody here sees; `cost` is without either.
    """

    calls: int
    recorded_calls: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost: Money
    is_cost_complete: bool
    unpriced_tokens: int
    uncounted_agents: tuple[str, ...]


UNCOUNTED: Final = ("agentapi",)
"""Kinds of agent that call models with keys of their own, past the gateway."""
UNCOUNTED_SQL: Final = f"""
    SELECT DISTINCT coalesce(s.agent_type, t.agent_type) AS kind FROM steps s
    WHERE s.tenant_id = t.tenant_id AND s.task_id = t.id AND s.kind = 'agent' AND s.started_at IS NOT NULL
      AND s.waiting_on IS DISTINCT FROM 'agent'
      AND coalesce(s.agent_type, t.agent_type) IN ({", ".join(f"'{kind}'" for kind in UNCOUNTED)})
"""
"""Those that a task `t` has set to work: one that waits for such an agent has none yet."""
COST_SQL: Final = f"""
    SELECT coalesce(sum(cost_usd), 0) AS cost_usd, count(*) AS calls,
        count(*) FILTER (WHERE recorded) AS recorded_calls,
        coalesce(sum(input_tokens), 0) AS input_tokens, coalesce(sum(output_tokens), 0) AS output_tokens,
        coalesce(sum(cache_read_tokens), 0) AS cache_read_tokens,
        coalesce(sum(cache_write_tokens), 0) AS cache_write_tokens,
        coalesce(sum(input_tokens + output_tokens + cache_read_tokens + cache_write_tokens)
            FILTER (WHERE cost_usd IS NULL AND NOT recorded), 0) AS unpriced_tokens,
        ARRAY({UNCOUNTED_SQL}) AS uncounted_agents
    FROM usage WHERE tenant_id = t.tenant_id AND task_id = t.id
"""
STEP_COUNT_SQL: Final = """
    SELECT count(*) AS steps_total, count(*) FILTER (WHERE s.status = 'completed') AS steps_done,
        coalesce(bool_or(s.agent_type = 'replay'), false) AS replays
    FROM workflows w JOIN steps s ON s.tenant_id = w.tenant_id AND s.workflow_id = w.id
    WHERE w.tenant_id = t.tenant_id AND w.task_id = t.id AND w.number = t.workflow_number
"""


def model(row: Mapping[str, Any]) -> Model:
    replays = row["agent_type"] == "replay" or row["replays"] or row["recorded_calls"] > 0
    return Model(row["model"], "recorded" if replays else "live")


def money(amount: Decimal) -> Money:
    return Money(f"{amount:.4f}")


def usage(row: Mapping[str, Any]) -> Usage:
    """From a row of `COST_SQL`."""
    return Usage(
        row["calls"],
        row["recorded_calls"],
        row["input_tokens"],
        row["output_tokens"],
        row["cache_read_tokens"],
        row["cache_write_tokens"],
        money(row["cost_usd"]),
        is_complete(row),
        row["unpriced_tokens"],
        tuple(row["uncounted_agents"]),
    )


def is_complete(row: Mapping[str, Any]) -> bool:
    """Whether a row of `COST_SQL` has all that was spent."""
    return row["unpriced_tokens"] == 0 and not row["uncounted_agents"]
