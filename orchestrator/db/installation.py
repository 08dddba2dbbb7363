"""The installation's identity: made once, and the same for all who share the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from orchestrator.db.sql import one, statement


@dataclass(frozen=True, slots=True)
class Installation:
    """`store_marked`: the artifact store carries the id already, so whoever doesn't see it looks
    elsewhere."""

    id: str
    store_marked: bool


_MAKE: Final = statement(
    """
    INSERT INTO settings (tenant_id, name, value)
    VALUES ('default', 'installation',
        jsonb_build_object('id', CAST(gen_random_uuid() AS text), 'store_marked', false))
    ON CONFLICT DO NOTHING;
    SELECT value FROM settings WHERE tenant_id = 'default' AND name = 'installation' FOR UPDATE
    """
)
_MARKED: Final = statement(
    """
    UPDATE settings SET value = value || jsonb_build_object('store_marked', true),
        updated_at = clock_timestamp()
    WHERE tenant_id = 'default' AND name = 'installation'
    """
)


def installation(connection: Connection) -> Installation:
    """Reads it, locked; made at the first call."""
    row = one(connection, _MAKE)
    assert row is not None  # noqa: S101 - inserted just above
    return Installation(row["value"]["id"], row["value"]["store_marked"])


def mark_store(connection: Connection) -> None:
    connection.execute(_MARKED)
