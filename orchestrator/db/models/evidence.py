"""What happened: events, logs, turns, tool calls, usage, effects and artifacts. These tables only grow."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, ForeignKeyConstraint, Identity, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.db.models.base import Base, empty_object, false, now, zero


class EventRow(Base):
    """One applied transition or observation; numbers of a task rise from 1 without a gap."""

    __tablename__ = "events"
    __table_args__ = (ForeignKeyConstraint(["tenant_id", "task_id"], ["tasks.tenant_id", "tasks.id"]),)

    task_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    workflow_id: Mapped[str | None]
    step_id: Mapped[str | None]
    fence: Mapped[int | None]
    type: Mapped[str]
    name: Mapped[str]
    data: Mapped[dict[str, Any]] = empty_object()
    at: Mapped[datetime] = now()


class Log(Base):
    """A chunk of output, redacted; numbers of a task rise from 1 without a gap."""

    __tablename__ = "logs"
    __table_args__ = (ForeignKeyConstraint(["tenant_id", "task_id"], ["tasks.tenant_id", "tasks.id"]),)

    task_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    step_id: Mapped[str | None]
    attempt: Mapped[int | None]
    stream: Mapped[str]
    level: Mapped[str] = mapped_column(server_default=text("'info'"))
    text: Mapped[str]
    at: Mapped[datetime] = now()


class TurnRow(Base):
    """One finished turn of a step's conversation, or what came before one: a steering message, that less of
    the past is sent from then on, that the agent went in circles."""

    __tablename__ = "turns"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "step_id"], ["steps.tenant_id", "steps.id"]),
        Index(
            "uq_turns_number",
            "tenant_id",
            "step_id",
            "conversation",
            "number",
            unique=True,
            postgresql_where=text("kind = 'turn'"),
        ),
    )

    step_id: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    conversation: Mapped[int] = zero()
    """0, or the number of the conflict after which the step began anew."""
    kind: Mapped[str]
    number: Mapped[int]
    fence: Mapped[int]
    attempt: Mapped[int]
    message: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = now()


class ToolCall(Base):
    """A tool call, written down before it ran; without `finished_at` nobody knows whether it had an
    effect."""

    __tablename__ = "tool_calls"
    __table_args__ = (ForeignKeyConstraint(["tenant_id", "step_id"], ["steps.tenant_id", "steps.id"]),)

    step_id: Mapped[str] = mapped_column(primary_key=True)
    conversation: Mapped[int] = mapped_column(primary_key=True, server_default=text("0"))
    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(Identity())
    turn: Mapped[int]
    fence: Mapped[int]
    name: Mapped[str]
    arguments: Mapped[dict[str, Any]] = empty_object()
    result: Mapped[str | None]
    output: Mapped[str | None]
    """All that the call gave, where `result` shows the model a part of it."""
    is_error: Mapped[bool] = false()
    checkpoint: Mapped[str | None]
    started_at: Mapped[datetime] = now()
    finished_at: Mapped[datetime | None]


class Transcript(Base):
    """One entry of what an agent with sessions in files of its own wrote there; in order of `id`."""

    __tablename__ = "transcripts"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "step_id"], ["steps.tenant_id", "steps.id"]),
        Index("ix_transcripts_place", "tenant_id", "step_id", "project", "session", "subpath", "id"),
        Index(
            "uq_transcripts_uuid",
            "tenant_id",
            "step_id",
            "project",
            "session",
            "subpath",
            "uuid",
            unique=True,
            postgresql_where=text("uuid IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    step_id: Mapped[str]
    project: Mapped[str]
    session: Mapped[str]
    subpath: Mapped[str]
    """Empty for the main transcript of a session."""
    uuid: Mapped[str | None]
    fence: Mapped[int]
    entry: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = now()


class UsageRow(Base):
    """Tokens and money of one model call: a live one's as the gateway saw them (`call_id`), a recorded one's
    by its `turn`, which cost nothing."""

    __tablename__ = "usage"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "step_id"], ["steps.tenant_id", "steps.id"]),
        UniqueConstraint("tenant_id", "step_id", "conversation", "turn"),
        Index("ix_usage_task", "tenant_id", "task_id"),
        Index(
            "uq_usage_call", "tenant_id", "call_id", unique=True, postgresql_where=text("call_id IS NOT NULL")
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    task_id: Mapped[str]
    step_id: Mapped[str]
    conversation: Mapped[int] = zero()
    turn: Mapped[int | None]
    call_id: Mapped[str | None]
    provider: Mapped[str | None]
    agent_type: Mapped[str | None]
    model: Mapped[str]
    recorded: Mapped[bool] = false()
    input_tokens: Mapped[int] = zero()
    output_tokens: Mapped[int] = zero()
    cache_read_tokens: Mapped[int] = zero()
    cache_write_tokens: Mapped[int] = zero()
    cost_usd: Mapped[Decimal | None]
    at: Mapped[datetime] = now()


class Effect(Base):
    """Something that must happen once: the unique key is the promise. An outside one is confirmed
    afterwards."""

    __tablename__ = "effects"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "task_id"], ["tasks.tenant_id", "tasks.id"]),
        Index("ix_effects_task", "tenant_id", "task_id"),
    )

    key: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str]
    step_id: Mapped[str | None]
    fence: Mapped[int | None]
    kind: Mapped[str]
    data: Mapped[dict[str, Any]] = empty_object()
    created_at: Mapped[datetime] = now()
    confirmed_at: Mapped[datetime | None]


class Artifact(Base):
    """A stored file: `key` is its place in the artifact store."""

    __tablename__ = "artifacts"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "task_id"], ["tasks.tenant_id", "tasks.id"]),
        Index("ix_artifacts_task", "tenant_id", "task_id", "created_at"),
        UniqueConstraint("tenant_id", "task_id", "workflow_id", "name"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str]
    workflow_id: Mapped[str | None]
    step_id: Mapped[str | None]
    kind: Mapped[str]
    name: Mapped[str]
    media_type: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    key: Mapped[str]
    created_at: Mapped[datetime] = now()
