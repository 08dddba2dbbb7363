"""Every name that another process may know us by on the broker."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

PREFIX: Final = "orchestrator."
"""Kept apart from the queues of users who share the broker: theirs may well be called `high`."""


class Lane(StrEnum):
    """What a worker may be told to serve, most urgent first; the first is for our own duties alone."""

    SYSTEM = "system"
    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class QueueName(StrEnum):
    """All queues of ours; `STEPS` exists on RabbitMQ, the four lanes on Redis, `SYSTEM` on both."""

    SYSTEM = f"{PREFIX}system"
    CRITICAL = f"{PREFIX}critical"
    HIGH = f"{PREFIX}high"
    MEDIUM = f"{PREFIX}medium"
    LOW = f"{PREFIX}low"
    STEPS = f"{PREFIX}steps"


class TaskName(StrEnum):
    """Celery's names of our tasks."""

    EXECUTE_TASK = f"{PREFIX}execute_task"
    RUN_STEP = f"{PREFIX}run_step"
    SWEEP = f"{PREFIX}sweep"


EXCHANGE: Final = "orchestrator"
