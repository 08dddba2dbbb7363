"""What a task tree may still spend on models: decided here, counted in `db.spending`.

A call is admitted while what is spent and what calls in flight have reserved stay below every bound; it then
reserves its own estimate, whether or not that still fits. So a small budget never blocks its first call, a
large `max_tokens` never blocks all others, and what is overspent in the end is at most what the calls in
flight cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from orchestrator.core.assignment import Budget

STOP: Final = "Stop"
"""The answer of who gives a task no higher budget."""
WARN_AT: Final = Decimal("0.8")
OUTPUT_RESERVED: Final = 4096
"""Tokens: few replies are longer, whatever `max_tokens` a caller allows itself."""
BYTES_PER_TOKEN: Final = 4
MOST_INPUT_RESERVED: Final = 1_000_000
"""Tokens: no model reads more; what is longer is images."""


@dataclass(frozen=True, slots=True)
class Spending:
    """Money, tokens and calls; of what was answered, or of what is reserved."""

    cost_usd: Decimal = Decimal(0)
    tokens: int = 0
    calls: int = 0

    def __add__(self, other: Spending) -> Spending:
        return Spending(self.cost_usd + other.cost_usd, self.tokens + other.tokens, self.calls + other.calls)


def budget_of(stored: Mapping[str, Any]) -> Budget:
    """From a task's row: {max_cost_usd, max_tokens, max_turns}; a model's turn is one call."""
    cost = stored.get("max_cost_usd")
    return Budget(
        stored.get("max_turns"), stored.get("max_tokens"), None if cost is None else Decimal(str(cost))
    )


def exhausted(budget: Budget, spent: Spending, in_flight: Spending, whose: str = "task") -> str | None:
    """Which part of the budget lets no further call begin, as a sentence; None: one may begin."""
    for taken, bound, what in _parts(budget, spent + in_flight):
        if taken >= bound:
            held = " with what calls in flight have reserved" if in_flight.calls else ""
            return f"{what} used by the {whose}{held}, its budget is {_shown(bound, what)}."
    return None


def nearly_exhausted(budget: Budget, spent: Spending) -> bool:
    """Four fifths of some part are gone."""
    return any(taken >= bound * WARN_AT for taken, bound, _ in _parts(budget, spent) if bound > 0)


def _parts(budget: Budget, taken: Spending) -> list[tuple[Decimal, Decimal, str]]:
    """What is taken, its bound, and what is taken in words, of each part that is bounded."""
    parts = (
        (taken.cost_usd, budget.cost_usd, f"${taken.cost_usd:.4f}"),
        (taken.tokens, budget.tokens, f"{taken.tokens:,} tokens"),
        (taken.calls, budget.turns, f"{taken.calls} model calls"),
    )
    return [(Decimal(amount), Decimal(bound), what) for amount, bound, what in parts if bound is not None]


def _shown(bound: Decimal, what: str) -> str:
    return dollars(bound) if what.startswith("$") else f"{bound:,}"


def dollars(amount: Decimal) -> str:
    """As people write it: $0.50, $12.00; and $0.0125 where cents don't suffice."""
    exact = amount.normalize()
    places = max(2, -int(exact.as_tuple().exponent))
    return f"${exact:.{places}f}"


def tokens_expected(body_bytes: int, max_output: int | None) -> tuple[int, int]:
    """Input and output tokens to reserve for a request of that length."""
    output = OUTPUT_RESERVED if max_output is None else max(1, min(max_output, OUTPUT_RESERVED))
    return min(body_bytes // BYTES_PER_TOKEN, MOST_INPUT_RESERVED) + 1, output


def price_missing(model: str) -> str:
    """Why a budget in dollars can't be kept with this model, and what to do."""
    name = "".join(letter for letter in model[:80] if letter.isprintable() and letter not in "\"'\\{}")
    example = f'{{"{name}": {{"input": "0.2", "output": "0.6"}}}}'
    return (
        f"The task has a budget in dollars, and the price of {name} is not known. Enter it, in USD per "
        f"million tokens, where gateway and API run: ORCHESTRATOR_PRICES='{example}'; or bound the task by "
        "tokens or turns instead."
    )
