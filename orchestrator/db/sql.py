"""Small pieces that every statement shares."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, TextClause, text


@dataclass(frozen=True, slots=True)
class TaskRef:
    """Which task of which tenant."""

    tenant_id: str
    task_id: str


@dataclass(frozen=True, slots=True)
class StepRef:
    """Which step of which workflow; what a message names."""

    tenant_id: str
    task_id: str
    workflow_id: str
    step_id: str

    @property
    def task(self) -> TaskRef:
        return TaskRef(self.tenant_id, self.task_id)


def statement(sql: str) -> TextClause:
    """A parsed statement, made once at import. Several parts split by `;` run in one round trip, each on a
    snapshot of its own, and only the last one's rows come back (psycopg2's simple protocol)."""
    return text(sql)


def dumps(value: Mapping[str, Any] | Sequence[Any] | None) -> str | None:
    """JSON for a `CAST(:x AS jsonb)`; None stays SQL's null. NUL characters, which jsonb refuses, are
    shown."""
    return None if value is None else json.dumps(value, default=str).replace("\\u0000", "\\ufffd")


def rows(connection: Connection, sql: TextClause, **values: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(sql, values).mappings()]


def one(connection: Connection, sql: TextClause, **values: Any) -> dict[str, Any] | None:
    row = connection.execute(sql, values).mappings().one_or_none()
    return None if row is None else dict(row)
