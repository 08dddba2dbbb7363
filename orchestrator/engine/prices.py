"""What tokens cost. Prices as published by the providers, USD per million tokens; newer models are missing
until their price is entered here or in the settings: their cost is unknown, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from orchestrator.core.model_choice import ModelPrice
from orchestrator.engine.ports import Usage

_MILLION: Final = Decimal(1_000_000)
_TEN: Final = Decimal(10)
_FIVE_QUARTERS: Final = Decimal("1.25")
_HOUR_OF_FIVE_MINUTES: Final = Decimal("1.6")
_DATED: Final = re.compile(r"(.+)-(?:\d{4}-\d{2}-\d{2}|\d{8})")


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens. Where nothing else is said, cached input is read at 1/10 of the input's price,
    written for five minutes at 5/4 of it, and for an hour at 8/5 of that, which is twice the input's price:
    Anthropic's terms."""

    input: Decimal
    output: Decimal
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    cache_write_hour: Decimal | None = None
    long: tuple[int, Price] | None = None
    """A request with more input tokens than this, cached ones counted, costs that price as a whole."""

    def of(self, usage: Usage) -> Decimal:
        asked = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        if self.long is not None and asked > self.long[0]:
            return self.long[1].of(usage)
        read = self.input / _TEN if self.cache_read is None else self.cache_read
        write = self.input * _FIVE_QUARTERS if self.cache_write is None else self.cache_write
        hour = write * _HOUR_OF_FIVE_MINUTES if self.cache_write_hour is None else self.cache_write_hour
        kept = min(usage.cache_write_hour_tokens, usage.cache_write_tokens)
        return (
            self.input * usage.input_tokens
            + read * usage.cache_read_tokens
            + write * (usage.cache_write_tokens - kept)
            + hour * kept
            + self.output * usage.output_tokens
        ) / _MILLION


def _anthropic(asked: str, answered: str, cached: str | None = None) -> Price:
    return Price(Decimal(asked), Decimal(answered), None if cached is None else Decimal(cached))


def _openai(asked: str, answered: str, cached: str) -> Price:
    """Writing to the cache costs what input does."""
    return Price(Decimal(asked), Decimal(answered), Decimal(cached), Decimal(asked))


PRICES: Final[Mapping[str, Price]] = MappingProxyType(
    {
        "claude-fable-5-1": _anthropic("10", "50", "0.25"),
        "claude-fable-5": _anthropic("10", "50"),
        "claude-opus-5-5": _anthropic("4", "20", "0.20"),
        "claude-opus-5": _anthropic("5", "25"),
        "claude-opus-4-8": _anthropic("5", "25"),
        "claude-opus-4-7": _anthropic("5", "25"),
        "claude-opus-4-6": _anthropic("5", "25"),
        "claude-opus-4-5": _anthropic("5", "25"),
        "claude-opus-4-1": _anthropic("15", "75"),
        "claude-opus-4": _anthropic("15", "75"),
        "claude-sonnet-5-5": _anthropic("2", "10", "0.10"),
        "claude-sonnet-5": _anthropic("2", "10"),
        "claude-sonnet-4-6": _anthropic("3", "15"),
        "claude-sonnet-4-5": _anthropic("3", "15"),
        "claude-sonnet-4": _anthropic("3", "15"),
        "claude-haiku-5-5": replace(_anthropic("0.10", "0.50"), long=(100_000, _anthropic("0.50", "2.50"))),
        "claude-haiku-4-5": _anthropic("1", "5"),
        "gpt-5.2": _openai("1.75", "14", "0.175"),
        "gpt-5.2-codex": _openai("1.75", "14", "0.175"),
        "gpt-5.1": _openai("1.25", "10", "0.125"),
        "gpt-5": _openai("1.25", "10", "0.125"),
        "gpt-5-mini": _openai("0.25", "2", "0.025"),
        "gpt-5-nano": _openai("0.05", "0.40", "0.005"),
        "gpt-4.1": _openai("2", "8", "0.50"),
        "gpt-4.1-mini": _openai("0.40", "1.60", "0.10"),
        "gpt-4.1-nano": _openai("0.10", "0.40", "0.025"),
        "gpt-4o": _openai("2.50", "10", "1.25"),
        "gpt-4o-2024-05-13": _openai("5", "15", "5"),
        "gpt-4o-mini": _openai("0.15", "0.60", "0.075"),
        "o3": _openai("2", "8", "0.50"),
        "o4-mini": _openai("1.10", "4.40", "0.275"),
    }
)
"""By the model's id, without the date of its version."""


def with_entered(entered: Mapping[str, ModelPrice]) -> Mapping[str, Price]:
    """The known prices and those of the settings, which win."""
    return {
        **PRICES,
        **{
            name: Price(
                one.input,
                one.output,
                one.input if one.cache_read is None else one.cache_read,
                one.input if one.cache_write is None else one.cache_write,
                one.cache_write_hour,
            )
            for name, one in entered.items()
        },
    }


def price(model: str, prices: Mapping[str, Price] = PRICES) -> Price | None:
    """Of exactly this model, or of the one that it is a dated version of: the beginning of a name says
    nothing about the rest (`gpt-5-pro` costs twelve times what `gpt-5` does)."""
    dated = _DATED.fullmatch(model)
    return prices.get(model) or (prices.get(dated[1]) if dated else None)


def cost(model: str, usage: Usage, prices: Mapping[str, Price] = PRICES) -> Decimal | None:
    """USD; None when no price of this model is known."""
    found = price(model, prices)
    return None if found is None else found.of(usage)
