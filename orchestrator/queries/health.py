"""Whether the installation works, as far as its database can tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from orchestrator.db.sql import one, rows, statement


@dataclass(frozen=True, slots=True)
class Vitals:
    """`ready`: steps that could be claimed now, by priority. All counts are of the whole installation."""

    postgres: str
    ready: Mapping[str, int]
    oldest_ready_seconds: float | None
    running: int
    agents: Mapping[str, int]
    swept_at: datetime | None
    swept_seconds_ago: float | None


_VITALS: Final = statement(
    """
    SELECT current_setting('server_version') AS postgres,
        (SELECT extract(epoch FROM clock_timestamp() - min(ready_at)) FROM steps
         WHERE status = 'queued' AND ready_at IS NOT NULL
           AND (not_before IS NULL OR not_before <= now())) AS oldest,
        (SELECT count(*) FROM steps WHERE lease_until IS NOT NULL) AS running,
        (SELECT max(updated_at) FROM settings WHERE name = 'sweep') AS swept_at,
        (SELECT extract(epoch FROM clock_timestamp() - max(updated_at)) FROM settings
         WHERE name = 'sweep') AS ago
    """
)
_READY: Final = statement(
    """
    SELECT priority, count(*) AS n FROM steps
    WHERE status = 'queued' AND ready_at IS NOT NULL AND (not_before IS NULL OR not_before <= now())
    GROUP BY priority
    """
)
_AGENTS: Final = statement(
    "SELECT status, count(*) AS n FROM agents WHERE status NOT IN ('offline', 'released') GROUP BY status"
)


def vitals(connection: Connection) -> Vitals:
    row = one(connection, _VITALS)
    assert row is not None  # noqa: S101 - a SELECT without FROM
    ready = {"critical": 0, "high": 0, "medium": 0, "low": 0}
    ready |= {found["priority"]: found["n"] for found in rows(connection, _READY)}
    alive = {found["status"]: found["n"] for found in rows(connection, _AGENTS)}
    return Vitals(
        postgres=row["postgres"],
        ready=ready,
        oldest_ready_seconds=None if row["oldest"] is None else float(row["oldest"]),
        running=row["running"],
        agents=alive,
        swept_at=row["swept_at"],
        swept_seconds_ago=None if row["ago"] is None else float(row["ago"]),
    )
