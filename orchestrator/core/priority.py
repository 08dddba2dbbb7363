"""How urgent a task is, and how waiting makes it more so."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from orchestrator.core.errors import Refused


class Priority(StrEnum):
    """Most urgent first; nothing else defines the order."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


MOST_URGENT_FIRST: Final = tuple(Priority)
ALIASES: Final[Mapping[str, Priority]] = MappingProxyType({"normal": Priority.MEDIUM})


def parse(text: str) -> Priority:
    """The priority of this name or alias, in any case. Raises Refused `invalid-priority`."""
    name = text.strip().lower()
    if name in ALIASES:
        return ALIASES[name]
    try:
        return Priority(name)
    except ValueError:
        choice = ", ".join(MOST_URGENT_FIRST)
        raise Refused(
            "invalid-priority",
            f"priority must be one of {choice} (got {text[:40]!r})",
            f"Choose one of {choice}.",
        ) from None


def raised(priority: Priority, waited: timedelta, ageing: timedelta) -> Priority:
    """One priority higher for every `ageing` that a ready step has `waited`; an `ageing` of nothing is off.

    So after three ageings at most a step competes with the most urgent.
    """
    if ageing <= timedelta(0) or waited <= timedelta(0):
        return priority
    return MOST_URGENT_FIRST[max(0, MOST_URGENT_FIRST.index(priority) - waited // ageing)]
