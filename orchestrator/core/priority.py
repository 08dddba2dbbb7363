"""How urgent a task is, and how waiting makes it more so."""

from __future__ import annotations

from enum import StrEnum


class Priority(StrEnum):
    """Most urgent first."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
