"""Tasks, workflows, plans and steps: what is to be done, and how far it is."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Identity, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.core.priority import Priority
from orchestrator.core.states import (
    LIVE,
    TERMINAL,
    WAITS_FOR_MACHINE,
    WAITS_FOR_PERSON,
    WAITS_QUEUED,
    Phase,
    Status,
)
from orchestrator.db.models.base import Base, empty_list, empty_object, false, now, one_of, zero


def _quoted(values: frozenset[Any]) -> str:
    return ", ".join(f"'{value}'" for value in sorted(values))


_WAITING = (
    "waiting_on IS NULL"
    f" OR (status = 'pending_input' AND waiting_on IN ({_quoted(WAITS_FOR_PERSON)}))"
    f" OR (status = 'running' AND waiting_on IN ({_quoted(WAITS_FOR_MACHINE)}))"
    f" OR (status = 'queued' AND waiting_on IN ({_quoted(WAITS_QUEUED)}))"
)
_LIVE_ROWS = text(f"status IN ({_quoted(LIVE)})")


class Task(Base):
    """What a user asked for. `status` is what its steps say; a terminal row changes only by a new
    workflow."""

    __tablename__ = "tasks"
    __table_args__ = (
        one_of("status", Status),
        one_of("priority", Priority),
        one_of("execution_mode", ("auto", "strict", "dry_run")),
        one_of("on_step_failure", ("stop", "continue")),
        CheckConstraint(_WAITING, name="waiting_on"),
        CheckConstraint(
            f"(status IN ({_quoted(TERMINAL)})) = (finished_at IS NOT NULL)", name="finished_when_terminal"
        ),
        Index("ix_tasks_live", "tenant_id", "status", "created_at", postgresql_where=_LIVE_ROWS),
        Index("ix_tasks_created", "tenant_id", "created_at", "id"),
        Index(
            "ix_tasks_undelivered",
            "finished_at",
            postgresql_where=text("entry_signature IS NOT NULL AND entry_delivered_at IS NULL"),
        ),
        Index(
            "ix_tasks_deadline",
            "deadline",
            postgresql_where=text("finished_at IS NULL AND deadline > created_at"),
        ),
        # In UTC, since an index needs a sum that no setting changes.
        Index(
            "ix_tasks_duration",
            text("((started_at AT TIME ZONE 'UTC') + max_duration)"),
            postgresql_where=text("finished_at IS NULL AND max_duration IS NOT NULL"),
        ),
        Index("ix_tasks_parent", "tenant_id", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
        Index(
            "uq_tasks_parent_call",
            "tenant_id",
            "parent_step_id",
            "parent_conversation",
            "parent_call_id",
            unique=True,
            postgresql_where=text("parent_step_id IS NOT NULL"),
        ),
        Index("ix_tasks_tree", "tenant_id", "root_id", postgresql_where=text("parent_id IS NOT NULL")),
        Index(
            "ix_tasks_live_children",
            "tenant_id",
            "parent_step_id",
            postgresql_where=text("parent_id IS NOT NULL AND finished_at IS NULL"),
        ),
        # Partial, or a planner without statistics takes it for the way to a task by its tenant alone.
        Index(
            "uq_tasks_external_id",
            "tenant_id",
            "external_id",
            unique=True,
            postgresql_where=text("external_id IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    external_id: Mapped[str | None]
    title: Mapped[str]
    description: Mapped[str]
    priority: Mapped[str] = mapped_column(server_default=text("'medium'"))
    execution_mode: Mapped[str] = mapped_column(server_default=text("'auto'"))
    on_step_failure: Mapped[str] = mapped_column(server_default=text("'stop'"))
    status: Mapped[str] = mapped_column(server_default=text("'queued'"))
    waiting_on: Mapped[str | None]
    waiting_since: Mapped[datetime | None]
    waiting_detail: Mapped[dict[str, Any] | None]
    outcome: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    request: Mapped[dict[str, Any]] = empty_object()
    """The accepted request, redacted: what RETRY starts from."""
    warnings: Mapped[list[Any]] = empty_list()
    root_id: Mapped[str]
    parent_id: Mapped[str | None]
    parent_step_id: Mapped[str | None]
    parent_conversation: Mapped[int | None]
    parent_call_id: Mapped[str | None]
    """The tool call of that conversation of the parent's step: one call starts one subtask."""
    depth: Mapped[int] = zero()
    created_by: Mapped[str] = mapped_column(server_default=text("'unknown'"))
    account: Mapped[str | None]
    deadline: Mapped[datetime | None]
    """Binds unless it had passed when the task was created."""
    max_duration: Mapped[timedelta | None]
    """Of the budget: how long after `started_at` the task may not go on."""
    requirements: Mapped[list[Any]] = empty_list()
    stakeholders: Mapped[list[Any]] = empty_list()
    labels: Mapped[dict[str, Any]] = empty_object()
    budget: Mapped[dict[str, Any]] = empty_object()
    agent_type: Mapped[str | None]
    model: Mapped[str | None]
    repository_url: Mapped[str | None]
    repository_branch: Mapped[str | None]
    push: Mapped[bool] = false()
    base_commit: Mapped[str | None]
    """The commit that the work started from; the first step to run resolves it."""
    origin_commit: Mapped[str | None]
    """Of a subtask: the repository's own commit that `base_commit`, its parent's work, is built on."""
    tip_commit: Mapped[str | None]
    """The end of `agent/<task id>`: the truth, which the reference in the bare repository follows."""
    previous: Mapped[Any | None] = mapped_column(type_=Base.type_annotation_map[list[Any]])
    """What the step before it in a user's own canvas handed on."""
    workflow_number: Mapped[int] = mapped_column(server_default=text("1"))
    event_number: Mapped[int] = zero()
    log_number: Mapped[int] = zero()
    open_questions: Mapped[int] = zero()
    cancel_requested_at: Mapped[datetime | None]
    cancel_reason: Mapped[str | None]
    paused_at: Mapped[datetime | None]
    entry_signature: Mapped[dict[str, Any] | None]
    """The caller's own Celery signature, sent again when the workflow ends."""
    entry_lease_until: Mapped[datetime | None]
    entry_delivered_at: Mapped[datetime | None]
    entry_published_at: Mapped[datetime | None]
    """When the sweep sent the caller's message again, which was lost after the end."""
    entry_publications: Mapped[int] = zero()
    created_at: Mapped[datetime] = now()
    updated_at: Mapped[datetime] = now()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    archived_at: Mapped[datetime | None]
    notified_at: Mapped[datetime | None]


class Workflow(Base):
    """One run of a task; a retry is a new one."""

    __tablename__ = "workflows"
    __table_args__ = (
        one_of("phase", Phase),
        ForeignKeyConstraint(["tenant_id", "task_id"], ["tasks.tenant_id", "tasks.id"]),
        UniqueConstraint("tenant_id", "task_id", "number"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str]
    number: Mapped[int]
    phase: Mapped[str] = mapped_column(server_default=text("'pending'"))
    result: Mapped[dict[str, Any] | None]
    details: Mapped[dict[str, Any]] = empty_object()
    created_at: Mapped[datetime] = now()
    updated_at: Mapped[datetime] = now()
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class WorkflowHistory(Base):
    """Every change of a workflow's phase, in order."""

    __tablename__ = "workflow_history"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "workflow_id"], ["workflows.tenant_id", "workflows.id"]),
        Index("ix_workflow_history_workflow", "tenant_id", "workflow_id", "id"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    workflow_id: Mapped[str]
    from_state: Mapped[str | None]
    to_state: Mapped[str]
    at: Mapped[datetime] = now()
    details: Mapped[dict[str, Any]] = empty_object()


class PlanRevision(Base):
    """A plan as it was at one moment; an edit is a new revision."""

    __tablename__ = "plan_revisions"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "workflow_id"], ["workflows.tenant_id", "workflows.id"]),
    )

    workflow_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    plan: Mapped[dict[str, Any]]
    reason: Mapped[str | None]
    created_by: Mapped[str | None]
    created_at: Mapped[datetime] = now()


class Step(Base):
    """One unit of a plan. Running means: a lease, or a machine that it waits for; nothing else has a
    lease."""

    __tablename__ = "steps"
    __table_args__ = (
        one_of("status", Status),
        one_of("priority", (*Priority, "system")),
        one_of("published_by", ("canvas", "release", "sweep", "wake")),
        CheckConstraint(_WAITING, name="waiting_on"),
        CheckConstraint(
            "CASE WHEN status = 'running' THEN (lease_until IS NULL) = (waiting_on IS NOT NULL)"
            " ELSE lease_until IS NULL END",
            name="lease_or_machine",
        ),
        CheckConstraint("attempt >= 0 AND fence >= attempt", name="fence_rises"),
        CheckConstraint(
            f"(status IN ({_quoted(TERMINAL)})) = (finished_at IS NOT NULL)", name="finished_when_terminal"
        ),
        ForeignKeyConstraint(["tenant_id", "workflow_id"], ["workflows.tenant_id", "workflows.id"]),
        ForeignKeyConstraint(["tenant_id", "task_id"], ["tasks.tenant_id", "tasks.id"]),
        UniqueConstraint("tenant_id", "workflow_id", "number"),
        UniqueConstraint("tenant_id", "workflow_id", "key"),
        Index("ix_steps_task", "tenant_id", "task_id"),
        Index(
            "ix_steps_ready",
            "published_at",
            postgresql_where=text("status = 'queued' AND ready_at IS NOT NULL"),
        ),
        Index(
            "ix_steps_urgent",
            "published_at",
            postgresql_where=text(
                "status = 'queued' AND ready_at IS NOT NULL AND priority IN ('critical', 'high')"
            ),
        ),
        Index("ix_steps_leases", "lease_until", postgresql_where=text("lease_until IS NOT NULL")),
        Index(
            "ix_steps_not_before",
            "not_before",
            postgresql_where=text("status IN ('queued', 'running') AND not_before IS NOT NULL"),
        ),
        Index(
            "ix_steps_on_subtasks",
            "waiting_since",
            postgresql_where=text("status = 'running' AND waiting_on = 'subtask'"),
        ),
        Index("ix_steps_claimed", "priority", "claimed_at", postgresql_where=text("claimed_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str]
    workflow_id: Mapped[str]
    number: Mapped[int]
    plan_revision: Mapped[int] = mapped_column(server_default=text("1"))
    key: Mapped[str]
    kind: Mapped[str] = mapped_column(server_default=text("'agent'"))
    description: Mapped[str]
    spec: Mapped[dict[str, Any]] = empty_object()
    agent_type: Mapped[str | None]
    model: Mapped[str | None]
    priority: Mapped[str] = mapped_column(server_default=text("'medium'"))
    status: Mapped[str] = mapped_column(server_default=text("'queued'"))
    waiting_on: Mapped[str | None]
    waiting_since: Mapped[datetime | None]
    waiting_detail: Mapped[dict[str, Any] | None]
    attempt: Mapped[int] = zero()
    fence: Mapped[int] = zero()
    max_attempts: Mapped[int] = mapped_column(server_default=text("5"))
    given_back: Mapped[bool] = false()
    """Set by park, pause, slice and drain: the next claim goes on with the same attempt."""
    conflicts: Mapped[int] = zero()
    lease_until: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    progress_at: Mapped[datetime | None]
    ready_at: Mapped[datetime | None]
    """Since when all that it needs is completed; null before."""
    not_before: Mapped[datetime | None]
    published_at: Mapped[datetime | None]
    publications: Mapped[int] = zero()
    """How often the sweep has published it since it became ready."""
    published_by: Mapped[str] = mapped_column(server_default=text("'canvas'"))
    published_alone: Mapped[bool] = false()
    """It was once sent without its chain and chord, so Celery won't start what follows it."""
    signature: Mapped[dict[str, Any] | None]
    """The Celery request of the latest message, as a signature: sent again, its canvas goes on."""
    canvas: Mapped[int | None]
    """Which canvas of the plan begins with it, if that is one that the database releases."""
    agent_id: Mapped[str | None]
    start_commit: Mapped[str | None]
    result_commit: Mapped[str | None]
    """What the steps that need it start from: its changes on its own start, or that start if it changed
    nothing."""
    branch_commit: Mapped[str | None]
    """The commit that it added to the task's branch; null if it changed nothing."""
    summary: Mapped[str | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = now()
    claimed_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class StepNeed(Base):
    """An edge: `step_id` starts only when `need_id` is completed."""

    __tablename__ = "step_needs"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "step_id"], ["steps.tenant_id", "steps.id"]),
        ForeignKeyConstraint(["tenant_id", "need_id"], ["steps.tenant_id", "steps.id"]),
        Index("ix_step_needs_need", "tenant_id", "need_id", "step_id"),
    )

    step_id: Mapped[str] = mapped_column(primary_key=True)
    need_id: Mapped[str] = mapped_column(primary_key=True)


class Attempt(Base):
    """One try at a step, from its first claim until it ends, breaks or loses its lease."""

    __tablename__ = "attempts"
    __table_args__ = (ForeignKeyConstraint(["tenant_id", "step_id"], ["steps.tenant_id", "steps.id"]),)

    step_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    first_fence: Mapped[int]
    agent_id: Mapped[str | None]
    started_at: Mapped[datetime] = now()
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
