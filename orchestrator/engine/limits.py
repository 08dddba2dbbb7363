"""Where a step's agent stops by itself."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Final

from orchestrator.core.assignment import Budget, Limits
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.verdict import Broke
from orchestrator.engine.dialogue import Dialogue
from orchestrator.engine.ports import Spending

_NEXT_TO_NOTHING: Final = Decimal("0.000001")
"""Where a limit of nothing begins: a recorded model, which costs nothing, may work under it."""


def exceeded(
    limits: Limits, budget: Budget, dialogue: Dialogue, elsewhere: Spending, since_last_turn: timedelta
) -> Broke | None:
    """Which limit, or which part of the task's budget, allows no further request; tokens and cost are those
    of the requests already answered."""
    worked = dialogue.elapsed + since_last_turn
    turns, tokens = dialogue.turns + elsewhere.turns, dialogue.tokens + elsewhere.tokens
    cost = dialogue.cost_usd + elsewhere.cost_usd
    reached = (
        (dialogue.silent > 1, "mistakes", "the model answered twice in a row without calling a tool"),
        (
            dialogue.mistakes >= limits.consecutive_mistakes,
            "mistakes",
            f"{dialogue.mistakes} turns in a row had no call that could be run",
        ),
        (dialogue.turns >= limits.turns, "turns", f"not done after {dialogue.turns} turns"),
        (
            dialogue.tokens >= limits.tokens,
            "tokens",
            f"{dialogue.tokens:,} tokens used, {limits.tokens:,} allowed",
        ),
        (
            dialogue.cost_usd >= max(limits.cost_usd, _NEXT_TO_NOTHING),
            "cost",
            f"${dialogue.cost_usd:.4f} spent, ${limits.cost_usd} allowed",
        ),
        (
            budget.turns is not None and turns >= budget.turns,
            "turns",
            f"{turns} turns of the task, its budget is {budget.turns}",
        ),
        (
            budget.tokens is not None and tokens >= budget.tokens,
            "tokens",
            f"{tokens:,} tokens used by the task, its budget is {budget.tokens or 0:,}",
        ),
        (
            budget.cost_usd is not None and cost >= budget.cost_usd,
            "cost",
            f"${cost:.4f} spent by the task, its budget is ${budget.cost_usd}",
        ),
        (worked >= limits.wall_time, "wall-time", f"at work for {worked.total_seconds():.0f} seconds"),
    )
    for is_reached, limit, message in reached:
        if is_reached:
            return Broke(f"limit-{limit}", message, ErrorClass.LIMIT, retryable=False)
    return None
