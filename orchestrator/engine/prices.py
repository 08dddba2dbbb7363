"""What tokens cost. Prices as published by Anthropic, USD per million tokens, read in 2026; newer models are
missing until their price is entered here: their cost is unknown, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from orchestrator.engine.ports import Usage

_MILLION: Final = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens; cached input is read at 1/10, written (5 minutes) at 5/4."""

    input: Decimal
    output: Decimal

    def of(self, usage: Usage) -> Decimal:
        cached = usage.cache_read_tokens / _TEN + usage.cache_write_tokens * _FIVE_QUARTERS
        return (self.input * (usage.input_tokens + cached) + self.output * usage.output_tokens) / _MILLION


_TEN: Final = Decimal(10)
_FIVE_QUARTERS: Final = Decimal("1.25")

PRICES: Final[Mapping[str, Price]] = MappingProxyType(
    {
        "claude-opus-4-6": Price(Decimal(5), Decimal(25)),
        "claude-opus-4-5": Price(Decimal(5), Decimal(25)),
        "claude-opus-4-1": Price(Decimal(15), Decimal(75)),
        "claude-sonnet-4": Price(Decimal(3), Decimal(15)),
        "claude-haiku-4-5": Price(Decimal(1), Decimal(5)),
    }
)
"""By the beginning of the model's id; the longest that fits counts."""


def cost(model: str, usage: Usage, prices: Mapping[str, Price] = PRICES) -> Decimal | None:
    """USD; None when no price of this model is known."""
    fitting = max((prefix for prefix in prices if model.startswith(prefix)), key=len, default=None)
    return None if fitting is None else prices[fitting].of(usage)
