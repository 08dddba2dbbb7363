"""Small pieces that every statement shares."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg2
from sqlalchemy import Connection, Dialect, TextClause, text
from sqlalchemy.exc import DBAPIError, MultipleResultsFound
from sqlalchemy.pool import PoolProxiedConnection


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


_OTHERWISE_PREPARED: Final = ("26000", "42P05")
"""SQLSTATEs: a statement isn't there, or is there already. Such a connection is of no more use: somebody
between cleared it, or an exception came in between a preparation and our writing it down."""


class Prepared:
    """A statement, or several split by `;`, that each connection plans once.

    For what every single step needs: planning took longer than running, and so did SQLAlchemy's view of the
    result, so it goes to the driver at once. Otherwise as `statement`; parameters are text unless `types`
    says else.
    """

    def __init__(self, name: str, sql: str, **types: str) -> None:
        self.name = name
        self._preparations: list[str] = []
        calls = []
        for number, part in enumerate(sql.split(";")):
            names = list(dict.fromkeys(_NAMED.findall(part)))
            places = {parameter: f"${place}" for place, parameter in enumerate(names, start=1)}
            declared = ", ".join(types.get(parameter, "text") for parameter in names)
            body = _NAMED.sub(lambda found, places=places: places[found[1]], part)  # type: ignore[misc]
            self._preparations.append(f"PREPARE {name}_{number} ({declared}) AS {body}")
            calls.append(f"EXECUTE {name}_{number} ({', '.join(f'%({parameter})s' for parameter in names)})")
        self._call = "; ".join(calls)

    def run(self, connection: Connection | Direct, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of the last statement, in the transaction that the connection is in. Raises SQLAlchemy's
        errors."""
        pooled = connection.connection
        known, driver = pooled.info, pooled.driver_connection
        assert driver is not None  # noqa: S101 - of an open connection
        with driver.cursor() as cursor:
            try:
                for preparation in self._preparations[known.get(self.name, 0) :]:
                    cursor.execute(preparation)
                    known[self.name] = known.get(self.name, 0) + 1
                self.execute(cursor, self._call, values)
                if cursor.description is None:
                    return []
                names = [column.name for column in cursor.description]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            except psycopg2.Error as error:
                lost = (
                    connection.dialect.is_disconnect(error, driver, cursor)  # type: ignore[arg-type]
                    or error.pgcode in _OTHERWISE_PREPARED
                )
                if lost:
                    connection.invalidate(error)
                raise failed(self.name, error, connection.dialect, lost=lost) from error

    def execute(self, cursor: Any, call: str, values: Mapping[str, Any]) -> None:
        """The one round trip."""
        cursor.execute(call, values)


@dataclass(frozen=True, slots=True)
class Direct:
    """A pooled connection without SQLAlchemy's layers, for prepared statements alone; see
    `connect.at_once`."""

    connection: PoolProxiedConnection
    dialect: Dialect

    def invalidate(self, error: BaseException) -> None:
        self.connection.invalidate(error)


def failed(what: str, error: psycopg2.Error, dialect: Dialect, *, lost: bool = False) -> DBAPIError:
    """The driver's error as SQLAlchemy's, as all that catch it expect."""
    found = DBAPIError.instance(
        what, None, error, psycopg2.Error, connection_invalidated=lost, dialect=dialect
    )
    assert isinstance(found, DBAPIError)  # noqa: S101 - for an error of the driver's
    return found


_UNKEPT: Final = re.compile(
    r"(?<!\\)((?:\\\\)*)(?:(\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})|\\u(?:0000|d[89a-f][0-9a-f]{2}))"
)
"""A NUL or half of a character, as JSON writes them; whole characters are found too, and kept. A backslash
before it that is itself written by two makes it a text about one."""


def dumps(value: Mapping[str, Any] | Sequence[Any] | None) -> str | None:
    """JSON for a `CAST(:x AS jsonb)`; None stays SQL's null. Of what jsonb refuses, NUL characters and lone
    surrogates (programs cut texts between two of them) are shown."""
    if value is None:
        return None
    written = json.dumps(value, default=str)
    if "\\u0000" not in written and "\\ud" not in written:
        return written
    return _UNKEPT.sub(lambda found: found[1] + (found[2] or r"\ufffd"), written)


def rows(connection: Connection | Direct, sql: TextClause | Prepared, **values: Any) -> list[dict[str, Any]]:
    if isinstance(sql, Prepared):
        return sql.run(connection, values)
    assert isinstance(connection, Connection)  # noqa: S101 - a direct one takes prepared statements alone
    return [dict(row) for row in connection.execute(sql, values).mappings()]


def one(connection: Connection | Direct, sql: TextClause | Prepared, **values: Any) -> dict[str, Any] | None:
    found = rows(connection, sql, **values)
    if len(found) > 1:
        raise MultipleResultsFound(f"{len(found)} rows where one was expected")
    return found[0] if found else None
