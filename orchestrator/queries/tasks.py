"""The list of tasks, filtered and in pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.errors import Refused
from orchestrator.core.priority import parse
from orchestrator.core.states import WAITS_FOR_PERSON, Status, WaitingOn
from orchestrator.db.sql import rows, statement
from orchestrator.queries.costs import COST_SQL, STEP_COUNT_SQL, Model, Money, is_complete, model, money
from orchestrator.queries.cursor import decode, encode
from orchestrator.queries.display import Display, shown
from orchestrator.queries.waits import WAIT_SQL, WAITS_FOR_SQL, awaited

MOST_PER_PAGE: Final = 200
MOST_QUERY: Final = 200
_ALIASES: Final[Mapping[str, tuple[str, str | None]]] = {
    "pending": (Status.QUEUED, None),
    "in_progress": (Status.RUNNING, None),
    "awaiting_subtask": (Status.RUNNING, WaitingOn.SUBTASK),
}


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A task as one line of a list."""

    id: str
    parent_id: str | None
    external_id: str | None
    title: str
    status: str
    waiting_on: str | None
    waiting_since: datetime | None
    waiting_detail: Mapping[str, Any] | None
    display: Display
    priority: str
    execution_mode: str
    agent_type: str | None
    model: Model
    repository_url: str | None
    steps_done: int
    steps_total: int
    open_questions: int
    cost: Money
    is_cost_complete: bool
    """False: models were used whose price isn't known, or agents that nobody counts; `cost` is without
    them."""
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class TaskPage:
    """Newest first; `next_cursor` leads to the older ones."""

    data: tuple[TaskLine, ...]
    has_more: bool
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """`statuses` may hold aliases; values within a field are alternatives, fields add up."""

    statuses: tuple[str, ...] = ()
    waiting_on: tuple[str, ...] = ()
    needs_person: bool = False
    priorities: tuple[str, ...] = ()
    q: str | None = None
    since: datetime | None = None


_LIST: Final = f"""
    SELECT t.id, t.parent_id, t.external_id, t.title, t.status, t.waiting_on, t.waiting_since,
        t.waiting_detail, t.outcome, t.priority, t.execution_mode, t.agent_type, t.model,
        t.repository_url, t.open_questions, t.created_at, t.updated_at, t.started_at,
        t.finished_at, t.cancel_requested_at, u.cost_usd, u.recorded_calls,
        u.unpriced_tokens, u.uncounted_agents, c.*, o.*
    FROM (SELECT * FROM tasks t WHERE {{where}} ORDER BY created_at DESC, id DESC LIMIT :limit) t
    CROSS JOIN LATERAL ({COST_SQL}) u CROSS JOIN LATERAL ({STEP_COUNT_SQL}) c
    CROSS JOIN LATERAL ({WAIT_SQL}) o
    ORDER BY t.created_at DESC, t.id DESC
"""


def tasks(
    connection: Connection,
    tenant_id: str,
    wanted: TaskFilter,
    *,
    limit: int,
    cursor: str | None,
    secret: bytes,
) -> TaskPage:
    """A page of at most `limit` (200) tasks. Raises Refused for a value that is none, or a foreign cursor."""
    limit = max(1, min(limit, MOST_PER_PAGE))
    filters, values = _where(wanted)
    conditions = ["tenant_id = :tenant", "archived_at IS NULL", *filters]
    keep = {"where": filters, **values}
    if cursor:
        at, last = decode(cursor, keep, secret)
        conditions.append("(created_at, id) < (CAST(:at AS timestamptz), :last)")
        values |= {"at": at, "last": last}
    sql = statement(_LIST.format(where=" AND ".join(conditions)))
    found = rows(connection, sql, tenant=tenant_id, limit=limit + 1, **values)
    lines = tuple(_line(row) for row in found[:limit])
    more = len(found) > limit
    return TaskPage(lines, more, encode(lines[-1].created_at, lines[-1].id, keep, secret) if more else None)


def _where(wanted: TaskFilter) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = []
    values: dict[str, Any] = {}
    if wanted.statuses:
        alternatives = []
        for place, (status, waiting_on) in enumerate(map(_status, wanted.statuses)):
            values[f"status{place}"] = status
            alternative = f"status = :status{place}"
            if waiting_on:
                values[f"status_wait{place}"] = waiting_on
                alternative += f" AND waiting_on = :status_wait{place}"
            alternatives.append(f"({alternative})")
        conditions.append(f"({' OR '.join(alternatives)})")
    if wanted.waiting_on:
        values["waits"] = [_one_of(value, WaitingOn, "waiting_on") for value in wanted.waiting_on]
        conditions.append(WAITS_FOR_SQL)
    if wanted.needs_person:
        values["person"] = sorted(WAITS_FOR_PERSON)
        conditions.append("(waiting_on = ANY(:person) OR open_questions > 0)")
    if wanted.priorities:
        values["priorities"] = [_priority(value) for value in wanted.priorities]
        conditions.append("priority = ANY(:priorities)")
    if wanted.since:
        values["since"] = wanted.since
        conditions.append("created_at >= :since")
    if wanted.q:
        conditions.append("concat_ws(' ', id, external_id, title, description, repository_url) ILIKE :q")
        escaped = wanted.q.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        values["q"] = f"%{escaped}%"
    return conditions, values


def _status(text: str) -> tuple[str, str | None]:
    name = text.strip().lower().replace("-", "_")
    if name in _ALIASES:
        return _ALIASES[name]
    return _one_of(name, Status, "status"), None


def _priority(text: str) -> str:
    try:
        return parse(text)
    except Refused as error:
        raise Refused("filter-invalid", f"{error.message}.", "Correct the filter.") from None


def _one_of(text: str, kind: type[Status | WaitingOn], name: str) -> str:
    try:
        return str(kind(text.strip().lower()))
    except ValueError:
        choice = ", ".join(kind)
        raise Refused(
            "filter-invalid", f"{name} must be one of {choice} (got {text[:40]!r}).", "Correct the filter."
        ) from None


def _line(row: Mapping[str, Any]) -> TaskLine:
    same = (
        "id parent_id external_id title status priority execution_mode agent_type"
        " steps_done steps_total open_questions created_at updated_at started_at finished_at repository_url"
    )
    waits = awaited(row)
    return TaskLine(
        **waits,
        display=shown({**row, **waits}),
        model=model(row),
        cost=money(row["cost_usd"]),
        is_cost_complete=is_complete(row),
        **{name: row[name] for name in same.split()},
    )
