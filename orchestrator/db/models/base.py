"""What all tables share: naming of constraints, the tenant, times by Postgres' clock."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import CheckConstraint, DateTime, MetaData, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from orchestrator.config import DEFAULT_TENANT


class Base(DeclarativeBase):
    """Every row belongs to one tenant, and every key begins with it: an id is unique within its tenant."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(none_as_null=True),
        list[Any]: JSONB(none_as_null=True),
        str: Text,
    }

    tenant_id: Mapped[str] = mapped_column(
        primary_key=True, server_default=text(f"'{DEFAULT_TENANT}'"), sort_order=-1
    )


def one_of(column: str, values: Iterable[str], name: str | None = None) -> CheckConstraint:
    """A CHECK that admits only these values (and null)."""
    listed = ", ".join(f"'{value}'" for value in sorted(values))
    return CheckConstraint(f"{column} IN ({listed})", name=name or column)


def empty_list() -> Any:
    return mapped_column(JSONB, server_default=text("'[]'::jsonb"))


def empty_object() -> Any:
    return mapped_column(JSONB, server_default=text("'{}'::jsonb"))


def now() -> Any:
    return mapped_column(server_default=func.clock_timestamp())


def zero() -> Any:
    return mapped_column(server_default=text("0"))


def false() -> Any:
    return mapped_column(server_default=text("false"))
