"""What an answer must be, by the kind of the question: a text, leave for a call, a higher budget."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from pydantic import ValidationError

from orchestrator.commands.request import BudgetRequest
from orchestrator.core.assignment import Budget
from orchestrator.core.errors import Refused
from orchestrator.core.leave import APPROVE, DENY, is_granted
from orchestrator.core.spending import STOP, Spending, dollars

MAX_ANSWER: Final = 20_000
PARTS: Final = ("max_cost_usd", "max_tokens", "max_turns")

_DENIED: Final = re.compile(r"deny\b[\s:.,;-]*(.*)", re.IGNORECASE | re.DOTALL)
_AMOUNT: Final = re.compile(
    r"\$?\s*((?:\d{1,3}(?:,\d{3})+|\d[\d_]*)(?:\.\d+)?)\s*(usd|dollars?|\$|tokens?|turns?)?",
    re.IGNORECASE | re.ASCII,
)
_BETWEEN: Final = re.compile(r"(?<!\d),|,(?!\d)")
"""A comma within a number belongs to it: as thousands, else it is a mistake, and not two amounts."""
_UNITS: Final = {"tok": "max_tokens", "tur": "max_turns"}


def text_of(given: str | Mapping[str, Any], options: Sequence[str]) -> str:
    """Of a text, `{"text": …}`, or `{"choice": n}`. Raises Refused `answer-invalid`."""
    if isinstance(given, Mapping) and "choice" in given:
        choice = given["choice"]
        if not isinstance(choice, int) or isinstance(choice, bool) or not 1 <= choice <= len(options):
            raise _invalid(f"There is no choice {choice!r}.", f"Choose a number from 1 to {len(options)}.")
        return str(options[choice - 1])
    text = given.get("text") if isinstance(given, Mapping) else given
    if not isinstance(text, str) or not text.strip():
        raise _invalid("The answer is empty.", 'Send {"text": "…"} or {"choice": n}.')
    if len(text) > MAX_ANSWER:
        raise _invalid(f"The answer is longer than {MAX_ANSWER} characters.", "Shorten it.")
    return text


def approval(text: str) -> str:
    """`Approve` alone, or `Deny`, with words for the agent or without. Raises Refused `answer-invalid`."""
    if is_granted(text):
        return APPROVE
    found = _DENIED.fullmatch(text.strip())
    if found is None:
        raise _invalid(
            f"It asks for an approval, and {text.strip()[:80]!r} is neither {APPROVE} nor {DENY}.",
            f"Answer {APPROVE}, or {DENY} and maybe what to do instead: '{DENY}: use the other file'.",
        )
    return f"{DENY}: {found[1]}" if found[1] else DENY


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a new maximum is held against: the tree's budget of now, and what is spent of it. `raised`: since
    the question was asked, by another one's answer, so that its own may leave the budget as it is."""

    now: Mapping[str, Any]
    spent: Spending
    raised: bool


def budget(given: str | Mapping[str, Any], options: Sequence[str], bounds: Bounds) -> Budget | None:
    """The new bounds, each above what is spent and what was allowed; None: stop. Raises Refused
    `answer-invalid`."""
    if isinstance(given, Mapping) and not given.keys().isdisjoint(PARTS):
        asked: dict[str, Any] = {name: given[name] for name in PARTS if given.get(name) is not None}
    else:
        text = text_of(given, options).strip()
        if text.casefold() == STOP.casefold():
            return None
        asked = _amounts(text)
    if not asked:
        raise _invalid("It asks for more budget, and the answer has no amount.", _HOW)
    try:
        wanted = BudgetRequest.model_validate(asked)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise _invalid(f"{fault['loc'][0]}: {fault['msg']}.", _HOW) from None
    for name in asked:
        _check_rise(name, getattr(wanted, name), bounds)
    return Budget(wanted.max_turns, wanted.max_tokens, wanted.max_cost_usd)


_HOW: Final = (
    "Give the new maximum, in US dollars (10), tokens (500000 tokens) or turns (200 turns), or answer Stop."
)


def _amounts(text: str) -> dict[str, Any]:
    """`10`, `$10`, `1,000 USD, 500_000 tokens`."""
    asked: dict[str, Any] = {}
    for part in _BETWEEN.split(text):
        found = _AMOUNT.fullmatch(part.strip())
        if found is None:
            raise _invalid(f"It asks for more budget, and {part.strip()[:80]!r} is no amount.", _HOW)
        name = _UNITS.get((found[2] or "")[:3].lower(), "max_cost_usd")
        if name in asked:
            raise _invalid(f"The answer says {name} twice.", _HOW)
        asked[name] = found[1].replace("_", "").replace(",", "")
    return asked


def _check_rise(name: str, wanted: Decimal | int, bounds: Bounds) -> None:
    there = {part: bounds.now[part] for part in PARTS if bounds.now.get(part) is not None}
    if name not in there:
        known = ", ".join(f"{part} {bound}" for part, bound in there.items()) or "no bound"
        raise _invalid(f"The task's budget has no {name}; it has {known}.", _HOW)
    allowed, rise = Decimal(str(there[name])), Decimal(wanted)
    if rise < allowed or (rise == allowed and not bounds.raised):
        raise _invalid(f"{name} {wanted} is not more than the {there[name]} of now.", _HOW)
    parts: dict[str, Decimal | int] = {
        "max_cost_usd": bounds.spent.cost_usd,
        "max_tokens": bounds.spent.tokens,
        "max_turns": bounds.spent.calls,
    }
    if rise <= parts[name]:
        raise _invalid(f"{name} {wanted} is not more than the {parts[name]} that are spent already.", _HOW)


def shown(raised: Budget) -> str:
    """In words, for the record and for the agent."""
    parts = (
        raised.cost_usd is not None and dollars(raised.cost_usd),
        raised.tokens is not None and f"{raised.tokens:,} tokens",
        raised.turns is not None and f"{raised.turns:,} turns",
    )
    return f"Raised to {', '.join(part for part in parts if part)}"


def _invalid(message: str, fix: str) -> Refused:
    return Refused("answer-invalid", message, fix)
