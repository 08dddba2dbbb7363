"""Models' side: who may call them, what calls cost, what a task tree may spend, and which providers fail."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.db.models.base import Base, empty_list, false, now, one_of, zero


class RunToken(Base):
    """Leave to call models during one claim; the token itself is nowhere, only its SHA-256.

    It is good while the step has this fence, runs and has its lease, and until `expires_at`.
    """

    __tablename__ = "run_tokens"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "step_id"], ["steps.tenant_id", "steps.id"]),
        Index("uq_run_tokens_sha256", "sha256", unique=True),
        Index("ix_run_tokens_step", "tenant_id", "step_id"),
    )

    sha256: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str]
    root_id: Mapped[str]
    workflow_id: Mapped[str]
    step_id: Mapped[str]
    fence: Mapped[int]
    conversation: Mapped[int] = zero()
    agent_type: Mapped[str]
    models: Mapped[list[Any]] = empty_list()
    """Names, or patterns with `*`, of the models that the run may use."""
    issued_at: Mapped[datetime] = now()
    expires_at: Mapped[datetime]


class ModelCall(Base):
    """One request that was passed on to a provider. Without `ended_at` it is a reservation, which counts
    while its claim holds and its gateway lives."""

    __tablename__ = "model_calls"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "sha256"], ["run_tokens.tenant_id", "run_tokens.sha256"]),
        one_of("outcome", ("done", "failed", "cut", "lost")),
        Index("ix_model_calls_open", "tenant_id", "root_id", postgresql_where=text("ended_at IS NULL")),
        Index("ix_model_calls_task", "tenant_id", "task_id", "started_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    task_id: Mapped[str]
    root_id: Mapped[str]
    step_id: Mapped[str]
    fence: Mapped[int]
    conversation: Mapped[int] = zero()
    agent_type: Mapped[str]
    gateway_id: Mapped[str]
    provider: Mapped[str]
    model: Mapped[str]
    dialect: Mapped[str]
    streamed: Mapped[bool] = false()
    reserved_usd: Mapped[Decimal] = zero()
    reserved_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    outcome: Mapped[str | None]
    http_status: Mapped[int | None]
    error_code: Mapped[str | None]
    input_tokens: Mapped[int] = zero()
    output_tokens: Mapped[int] = zero()
    cache_read_tokens: Mapped[int] = zero()
    cache_write_tokens: Mapped[int] = zero()
    estimated: Mapped[bool] = false()
    """The provider didn't say how many tokens they were."""
    cost_usd: Mapped[Decimal | None]
    evidence_key: Mapped[str | None]
    started_at: Mapped[datetime] = now()
    first_byte_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class BudgetRow(Base):
    """What a whole task tree has spent on live models: the sums of its usage rows that a gateway wrote."""

    __tablename__ = "budgets"
    __table_args__ = (ForeignKeyConstraint(["tenant_id", "root_id"], ["tasks.tenant_id", "tasks.id"]),)

    root_id: Mapped[str] = mapped_column(primary_key=True)
    spent_usd: Mapped[Decimal] = zero()
    spent_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    calls: Mapped[int] = zero()
    warned_for: Mapped[dict[str, Any] | None]
    """The budget of which four fifths were once spent; a raised one is warned of again."""


class BreakerRow(Base):
    """Whether a provider or a type of agent may be used, as all who use it have found."""

    __tablename__ = "breakers"
    __table_args__ = (
        one_of("kind", ("provider", "agent_type")),
        one_of("state", ("closed", "open", "half_open")),
    )

    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(server_default=text("'closed'"))
    failures: Mapped[int] = zero()
    successes: Mapped[int] = zero()
    opened_at: Mapped[datetime | None]
    probing_until: Mapped[datetime | None]
    reason: Mapped[str | None]
    updated_at: Mapped[datetime] = now()


class Throttle(Base):
    """A provider asked for a pause: nothing is sent to this model before `until_at`."""

    __tablename__ = "throttles"

    provider: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    until_at: Mapped[datetime]
    status: Mapped[int]
    updated_at: Mapped[datetime] = now()


class Gateway(Base):
    """A gateway that runs, as long as its heartbeat is fresh; which providers it has a way to."""

    __tablename__ = "gateways"

    id: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str]
    providers: Mapped[list[Any]] = empty_list()
    started_at: Mapped[datetime] = now()
    heartbeat_at: Mapped[datetime] = now()
