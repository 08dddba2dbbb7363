"""Small pieces that every statement shares."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, CursorResult, TextClause, text


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


_NAMED: Final = re.compile(r"(?<!:):([a-z_]+)\b")


class Prepared:
    """A statement, or several split by `;`, that each connection plans once.

    For what every single step needs: planning took longer than running. Otherwise as `statement`; parameters
    are text unless `types` says else.
    """

    def __init__(self, name: str, sql: str, **types: str) -> None:
        self.name = name
        self._preparations: list[str] = []
        calls = []
        for number, part in enumerate(sql.split(";")):
            names = list(dict.fromkeys(_NAMED.findall(part)))
            places = {parameter: f"${place}" for place, parameter in enumerate(names, start=1)}
            declared = ", ".join(types.get(parameter, "text") for parameter in names)
            body = part
            for parameter, place in sorted(places.items(), reverse=True):
                body = re.sub(rf"(?<!:):{parameter}\b", place, body)
            self._preparations.append(f"PREPARE {name}_{number} ({declared}) AS {body}")
            calls.append(f"EXECUTE {name}_{number} ({', '.join(f':{parameter}' for parameter in names)})")
        self._call = text("; ".join(calls))

    def on(self, connection: Connection) -> TextClause:
        """What to execute on this connection, which knows the statement from now on."""
        if self.name not in connection.info:
            for preparation in self._preparations:
                connection.exec_driver_sql(preparation)
            connection.info[self.name] = True
        return self._call


def dumps(value: Mapping[str, Any] | Sequence[Any] | None) -> str | None:
    """JSON for a `CAST(:x AS jsonb)`; None stays SQL's null. NUL characters, which jsonb refuses, are
    shown."""
    return None if value is None else json.dumps(value, default=str).replace("\\u0000", "\\ufffd")


def run(connection: Connection, sql: Prepared, values: Mapping[str, Any]) -> CursorResult[Any]:
    return connection.execute(sql.on(connection), values)


def rows(connection: Connection, sql: TextClause, **values: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(sql, values).mappings()]


def one(connection: Connection, sql: TextClause | Prepared, **values: Any) -> dict[str, Any] | None:
    clause = sql.on(connection) if isinstance(sql, Prepared) else sql
    row = connection.execute(clause, values).mappings().one_or_none()
    return None if row is None else dict(row)
