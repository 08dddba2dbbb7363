"""The gateways that run, which providers they have a way to, and the calls that dead ones left open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from orchestrator.db.sql import dumps, one, rows, statement

SILENT_SECONDS: Final = 30
"""A gateway that has not been heard for so long is dead, and its reservations with it."""

_BEAT: Final = statement(
    """
    INSERT INTO gateways (tenant_id, id, url, providers)
    VALUES (:tenant, :id, :url, CAST(:providers AS jsonb))
    ON CONFLICT (tenant_id, id) DO UPDATE SET url = excluded.url, providers = excluded.providers,
        heartbeat_at = clock_timestamp()
    """
)
_LOST: Final = statement(
    f"""
    UPDATE model_calls c SET outcome = 'lost', ended_at = clock_timestamp()
    WHERE c.tenant_id = :tenant AND c.ended_at IS NULL AND NOT EXISTS (
        SELECT 1 FROM gateways g WHERE g.tenant_id = c.tenant_id AND g.id = c.gateway_id
          AND g.heartbeat_at > clock_timestamp() - make_interval(secs => {SILENT_SECONDS}));
    DELETE FROM gateways WHERE tenant_id = :tenant
      AND heartbeat_at < clock_timestamp() - interval '1 day'
    """
)
_GO: Final = statement("DELETE FROM gateways WHERE tenant_id = :tenant AND id = :id")
_PROVIDERS: Final = statement(
    f"""
    SELECT DISTINCT p.name FROM gateways g, jsonb_array_elements_text(g.providers) AS p(name)
    WHERE g.tenant_id = :tenant
      AND g.heartbeat_at > clock_timestamp() - make_interval(secs => {SILENT_SECONDS})
    """
)


_HEARD: Final = statement(
    f"""
    SELECT count(*) FILTER (WHERE fresh) AS alive, count(*) FILTER (WHERE NOT fresh) AS silent
    FROM (SELECT heartbeat_at > clock_timestamp() - make_interval(secs => {SILENT_SECONDS}) AS fresh
          FROM gateways WHERE tenant_id = :tenant) g
    """
)


@dataclass(frozen=True, slots=True)
class Heard:
    """How many gateways live, and how many fell silent within a day without leaving in order."""

    alive: int
    silent: int
    providers: frozenset[str]


def heard(connection: Connection, tenant_id: str) -> Heard:
    row = one(connection, _HEARD, tenant=tenant_id)
    assert row is not None  # noqa: S101 - counts
    return Heard(row["alive"], row["silent"], providers(connection, tenant_id))


def beat(connection: Connection, tenant_id: str, gateway_id: str, url: str, providers: Sequence[str]) -> None:
    """That it lives; what dead ones left open is written off by the way."""
    told = {"tenant": tenant_id, "id": gateway_id, "url": url, "providers": dumps(list(providers))}
    connection.execute(_BEAT, told)
    connection.execute(_LOST, {"tenant": tenant_id})


def leave(connection: Connection, tenant_id: str, gateway_id: str) -> None:
    """In order: what it has not settled now, counts as lost."""
    connection.execute(_GO, {"tenant": tenant_id, "id": gateway_id})


def providers(connection: Connection, tenant_id: str) -> frozenset[str]:
    """To which providers some living gateway has a way."""
    return frozenset(row["name"] for row in rows(connection, _PROVIDERS, tenant=tenant_id))
