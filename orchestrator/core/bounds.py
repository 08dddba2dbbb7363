"""The two bounds in time that a task may have, and what a step that meets one ends with.

deadline    a time after which the task may not go on
duration    how long after its workflow's first claim the task may not go on; waiting counts
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final


class Bound(StrEnum):
    """Which of them was met; both are reasons to stop an agent, by the same words."""

    DEADLINE = "deadline"
    DURATION = "duration"


CODES: Final[Mapping[Bound, str]] = MappingProxyType(
    {Bound.DEADLINE: "deadline-exceeded", Bound.DURATION: "duration-exceeded"}
)
_MESSAGES: Final[Mapping[Bound, str]] = MappingProxyType(
    {
        Bound.DEADLINE: "The task's deadline has passed.",
        Bound.DURATION: "The task took longer than its budget's max_duration allows.",
    }
)


def error_of(bound: Bound) -> dict[str, Any]:
    """What the step's row says. A retry has the same deadline, but a duration of its own."""
    return {
        "code": CODES[bound],
        "message": _MESSAGES[bound],
        "recoverable": bound is Bound.DURATION,
    }
