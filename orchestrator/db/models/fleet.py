"""The workers' side: agents, repositories, limits, and settings that live in the database."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.db.models.base import Base, empty_list, empty_object, false, now, one_of


class Agent(Base):
    """One slot of a worker's pool. Stalled is not stored: it follows from the two clocks."""

    __tablename__ = "agents"
    __table_args__ = (
        one_of("status", ("provisioning", "idle", "busy", "draining", "offline", "released")),
        Index(
            "ix_agents_alive",
            "heartbeat_at",
            postgresql_where=text("status NOT IN ('offline', 'released')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'provisioning'"))
    node: Mapped[str]
    pid: Mapped[int]
    boot_id: Mapped[str]
    version: Mapped[str]
    queues: Mapped[list[Any]] = empty_list()
    capabilities: Mapped[list[Any]] = empty_list()
    models: Mapped[list[Any]] = empty_list()
    resources: Mapped[dict[str, Any]] = empty_object()
    step_id: Mapped[str | None]
    drain_requested: Mapped[bool] = false()
    registered_at: Mapped[datetime] = now()
    heartbeat_at: Mapped[datetime] = now()
    progress_at: Mapped[datetime | None]
    released_at: Mapped[datetime | None]


class Repository(Base):
    """A repository that tasks named; each worker mirrors it under `mirror_key`."""

    __tablename__ = "repositories"
    __table_args__ = (Index("uq_repositories_url", "tenant_id", "url", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str]
    kind: Mapped[str]
    mirror_key: Mapped[str | None]
    default_branch: Mapped[str | None]
    created_at: Mapped[datetime] = now()
    fetched_at: Mapped[datetime | None]


class Limit(Base):
    """At most `maximum` of something at once; what is in use is counted from the rows themselves."""

    __tablename__ = "limits"

    name: Mapped[str] = mapped_column(primary_key=True)
    maximum: Mapped[int]


class Setting(Base):
    """A value of this installation, such as its id or when Postgres was last seen to return."""

    __tablename__ = "settings"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JSONB)
    updated_at: Mapped[datetime] = now()
