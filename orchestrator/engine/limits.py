"""Where a step's agent stops by itself, and where it has to wait: limits, the budget, a model's refusal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Final

from orchestrator.core.assignment import Budget, Limits
from orchestrator.core.recovery import ErrorClass
from orchestrator.core.spending import STOP, dollars
from orchestrator.core.states import WaitingOn
from orchestrator.core.verdict import Ask, Broke, NeedsInput, Verdict, Waits
from orchestrator.engine.dialogue import Dialogue
from orchestrator.engine.ports import ModelError, Spending

PARKED_AFTER: Final = timedelta(minutes=1)
"""A longer wish of the provider's is waited for without a worker."""
NOT_SENT: Final = frozenset({"provider-throttled", "too-many-calls"})
"""The gateway held the call back for the sake of others' calls: no attempt of this step has failed."""
SOONEST: Final = timedelta(seconds=1)
_NEXT_TO_NOTHING: Final = Decimal("0.000001")
"""Where a limit of nothing begins: a recorded model, which costs nothing, may work under it."""


def exceeded(limits: Limits, dialogue: Dialogue, since_last_turn: timedelta) -> Broke | None:
    """Which limit of the step allows no further request; tokens and cost are those of the requests already
    answered."""
    worked = dialogue.elapsed + since_last_turn
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
            f"${dialogue.cost_usd:.4f} spent, {dollars(limits.cost_usd)} allowed",
        ),
        (worked >= limits.wall_time, "wall-time", f"at work for {worked.total_seconds():.0f} seconds"),
    )
    for is_reached, limit, message in reached:
        if is_reached:
            return Broke(f"limit-{limit}", message, ErrorClass.LIMIT, retryable=False)
    return None


def exhausted(budget: Budget, spent: Spending) -> tuple[str, Budget] | None:
    """Which part of the task's budget allows no further request: as a sentence, and that part alone."""
    turns, tokens, cost = spent.turns, spent.tokens, spent.cost_usd
    if budget.turns is not None and turns >= budget.turns:
        return f"{turns} turns are used, {budget.turns} allowed.", Budget(turns=budget.turns)
    if budget.tokens is not None and tokens >= budget.tokens:
        return f"{tokens:,} tokens are used, {budget.tokens:,} allowed.", Budget(tokens=budget.tokens)
    if budget.cost_usd is not None and cost >= budget.cost_usd:
        return f"${cost:.4f} are spent, {dollars(budget.cost_usd)} allowed.", Budget(cost_usd=budget.cost_usd)
    return None


def ask_for_budget(what: str, used_up: Budget, spent: Spending, answers: Mapping[str, str]) -> Verdict:
    """Parks until a person has raised the budget; one who has said to stop isn't asked again. `spent`: by the
    whole tree until now."""
    asked = [call_id for call_id in answers if call_id.startswith("budget-")]
    last = f"budget-{len(asked)}"
    if last in answers and answers[last].strip().casefold() == STOP.casefold():
        return Broke("budget-refused", what, ErrorClass.LIMIT, retryable=False)
    options = (*filter(None, [_offered(used_up, spent)]), STOP)
    text = f"The budget of the task and its subtasks is used up: {what} What is its new maximum, or stop?"
    return NeedsInput(Ask(f"budget-{len(asked) + 1}", text, options, WaitingOn.BUDGET))


def _offered(budget: Budget, spent: Spending) -> str:
    """As an answer says it: twice the budget, or more where calls in flight have overspent that far."""
    parts = (
        (budget.cost_usd, spent.cost_usd, dollars, 2),
        (budget.tokens, spent.tokens, "{:.0f} tokens".format, 0),
        (budget.turns, spent.turns, "{:.0f} turns".format, 0),
    )
    return ", ".join(
        shown(max(Decimal(2 * bound), _above(Decimal(used), places)))
        for bound, used, shown, places in parts
        if bound is not None
    )


def _above(taken: Decimal, places: int) -> Decimal:
    """One and a half times of it, rounded up to two digits, and to no more places than that."""
    more = taken * 3 / 2
    digits = min(places, 1 - more.adjusted()) if more else places
    return more.quantize(Decimal(1).scaleb(-digits), ROUND_CEILING)


def taken(dialogue: Dialogue, elsewhere: Spending) -> Spending:
    """By the whole tree."""
    return Spending(
        dialogue.turns + elsewhere.turns,
        dialogue.tokens + elsewhere.tokens,
        dialogue.cost_usd + elsewhere.cost_usd,
    )


def refused(error: ModelError, budget: Budget, spent: Spending, answers: Mapping[str, str]) -> Verdict:
    """What follows from a model that gave no reply: ask, wait, or break (and perhaps try again)."""
    detail = {"code": error.code, "message": error.message}
    if error.code == "budget-exhausted":
        return ask_for_budget(error.message, budget, spent, answers)
    if error.code == "circuit-open":
        return Waits(WaitingOn.CIRCUIT_BREAKER, detail, error.retry_after)
    if error.code in NOT_SENT:
        return Waits(WaitingOn.RATE_LIMIT, detail, max(error.retry_after or timedelta(0), SOONEST))
    if error.error is ErrorClass.RATE_LIMIT and (error.retry_after or timedelta(0)) > PARKED_AFTER:
        return Waits(WaitingOn.RATE_LIMIT, detail, error.retry_after)
    return Broke(error.code, error.message, error.error, error.retryable, error.retry_after)
