"""What people ask, answer, command and say; keys; and what makes a repeated request harmless."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKeyConstraint, Identity, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.db.models.base import Base, empty_list, empty_object, now, one_of


class Question(Base):
    """Something a person must answer; answered once, consumed once by the step that asked."""

    __tablename__ = "questions"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "step_id"], ["steps.tenant_id", "steps.id"]),
        Index("ix_questions_task", "tenant_id", "task_id"),
        Index("uq_questions_call", "tenant_id", "step_id", "call_id", unique=True),
        Index(
            "ix_questions_open",
            "tenant_id",
            "asked_at",
            postgresql_where=text("answered_at IS NULL AND withdrawn_at IS NULL"),
        ),
        Index(
            "ix_questions_expiring",
            "expires_at",
            postgresql_where=text("answered_at IS NULL AND withdrawn_at IS NULL AND expires_at IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str]
    workflow_id: Mapped[str]
    step_id: Mapped[str]
    call_id: Mapped[str]
    kind: Mapped[str] = mapped_column(server_default=text("'question'"))
    text: Mapped[str]
    options: Mapped[list[Any]] = empty_list()
    answer_schema: Mapped[dict[str, Any] | None]
    subject_digest: Mapped[str | None]
    expires_at: Mapped[datetime | None]
    """When silence counts; null: never."""
    on_expiry: Mapped[str | None]
    """What silence means then: fail, or default."""
    default_answer: Mapped[str | None]
    """The asker's own answer, should the policy allow one."""
    asked_at: Mapped[datetime] = now()
    answer: Mapped[dict[str, Any] | None]
    answered_by: Mapped[str | None]
    answered_at: Mapped[datetime | None]
    consumed_at: Mapped[datetime | None]
    withdrawn_at: Mapped[datetime | None]


class Intervention(Base):
    """A person's command over a running task: requested, acknowledged by the agent, applied."""

    __tablename__ = "interventions"
    __table_args__ = (
        one_of("state", ("requested", "acknowledged", "applied", "rejected", "timed_out")),
        one_of("command", ("pause", "resume", "cancel", "modify", "escalate", "override", "retry")),
        ForeignKeyConstraint(["tenant_id", "task_id"], ["tasks.tenant_id", "tasks.id"]),
        Index("ix_interventions_task", "tenant_id", "task_id", "requested_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str]
    command: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'requested'"))
    reason: Mapped[str | None]
    details: Mapped[dict[str, Any]] = empty_object()
    requested_by: Mapped[str]
    requested_at: Mapped[datetime] = now()
    acknowledged_at: Mapped[datetime | None]
    applied_at: Mapped[datetime | None]


class Message(Base):
    """A steering text for a running agent; `delivered_at` when a turn took it up."""

    __tablename__ = "messages"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "task_id"], ["tasks.tenant_id", "tasks.id"]),
        Index(
            "ix_messages_waiting",
            "tenant_id",
            "task_id",
            "id",
            postgresql_where=text("delivered_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    task_id: Mapped[str]
    step_id: Mapped[str | None]
    author: Mapped[str]
    text: Mapped[str]
    created_at: Mapped[datetime] = now()
    delivered_at: Mapped[datetime | None]


class ApiKey(Base):
    """Who may call: the secret itself is nowhere, only its SHA-256."""

    __tablename__ = "api_keys"
    __table_args__ = (Index("uq_api_keys_sha256", "sha256", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    prefix: Mapped[str]
    sha256: Mapped[str]
    scopes: Mapped[list[Any]] = empty_list()
    created_at: Mapped[datetime] = now()
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class IdempotencyKey(Base):
    """The stored answer to a request that may come twice; without `status_code` it is still being worked
    on."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    status_code: Mapped[int | None]
    body: Mapped[dict[str, Any] | None]
    headers: Mapped[dict[str, Any]] = empty_object()
    created_at: Mapped[datetime] = now()
