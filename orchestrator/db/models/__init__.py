"""The tables, one module per subject."""

from orchestrator.db.models.base import Base
from orchestrator.db.models.evidence import Artifact, Effect, EventRow, Log, ToolCall, TurnRow, UsageRow
from orchestrator.db.models.fleet import Agent, Limit, Repository, Setting
from orchestrator.db.models.people import ApiKey, IdempotencyKey, Intervention, Message, Question
from orchestrator.db.models.work import (
    Attempt,
    PlanRevision,
    Step,
    StepNeed,
    Task,
    Workflow,
    WorkflowHistory,
)

__all__ = [
    "Agent",
    "ApiKey",
    "Artifact",
    "Attempt",
    "Base",
    "Effect",
    "EventRow",
    "IdempotencyKey",
    "Intervention",
    "Limit",
    "Log",
    "Message",
    "PlanRevision",
    "Question",
    "Repository",
    "Setting",
    "Step",
    "StepNeed",
    "Task",
    "ToolCall",
    "TurnRow",
    "UsageRow",
    "Workflow",
    "WorkflowHistory",
]
