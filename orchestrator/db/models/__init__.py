"""The tables, one module per subject."""

from orchestrator.db.models.base import Base
from orchestrator.db.models.evidence import (
    Artifact,
    Effect,
    EventRow,
    Log,
    ToolCall,
    Transcript,
    TurnRow,
    UsageRow,
)
from orchestrator.db.models.fleet import Agent, Limit, Repository, Setting
from orchestrator.db.models.people import ApiKey, IdempotencyKey, Intervention, Message, Question
from orchestrator.db.models.spending import BreakerRow, BudgetRow, Gateway, ModelCall, RunToken, Throttle
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
    "BreakerRow",
    "BudgetRow",
    "Effect",
    "EventRow",
    "Gateway",
    "IdempotencyKey",
    "Intervention",
    "Limit",
    "Log",
    "Message",
    "ModelCall",
    "PlanRevision",
    "Question",
    "Repository",
    "RunToken",
    "Setting",
    "Step",
    "StepNeed",
    "Task",
    "Throttle",
    "ToolCall",
    "Transcript",
    "TurnRow",
    "UsageRow",
    "Workflow",
    "WorkflowHistory",
]
