"""A request that comes twice is done once: the answer is stored in the transaction that does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.core.errors import Conflict, Refused
from orchestrator.db.sql import dumps, one, statement

LONGEST_KEY: Final = 255
KEPT_DAYS: Final = 7


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What the first request was answered."""

    status_code: int
    body: Mapping[str, Any]
    headers: Mapping[str, str]


_LOCK: Final = statement(
    """
    SELECT pg_try_advisory_xact_lock(
        hashtextextended(CAST(jsonb_build_array(CAST(:tenant AS text), CAST(:key AS text)) AS text), 73)
    ) AS ours
    """
)
_FIND: Final = statement(
    f"""
    SELECT fingerprint, status_code, body, headers FROM idempotency_keys
    WHERE tenant_id = :tenant AND key = :key AND created_at > clock_timestamp() - interval '{KEPT_DAYS} days'
    """
)
_STORE: Final = statement(
    """
    INSERT INTO idempotency_keys (tenant_id, key, fingerprint, status_code, body, headers)
    VALUES (:tenant, :key, :fingerprint, :status_code, CAST(:body AS jsonb), CAST(:headers AS jsonb))
    ON CONFLICT (tenant_id, key) DO UPDATE SET fingerprint = excluded.fingerprint, body = excluded.body,
        status_code = excluded.status_code, headers = excluded.headers, created_at = clock_timestamp()
    """
)


def recall(connection: Connection, tenant_id: str, key: str, fingerprint: str) -> StoredAnswer | None:
    """The stored answer, or None: then this transaction has the key until it ends, and does the work.

    Raises Conflict `idempotency-in-progress` while another transaction has it, in whichever process, and
    Refused `idempotency-key-reused` when it came with another request.
    """
    row = one(connection, _LOCK, tenant=tenant_id, key=key)
    if row is None or not row["ours"]:
        raise Conflict(
            "idempotency-in-progress",
            "A request with this Idempotency-Key is being worked on.",
            "Send it again in a moment.",
            retryable=True,
        )
    found = one(connection, _FIND, tenant=tenant_id, key=key)
    if found is None:
        return None
    if found["fingerprint"] != fingerprint:
        raise Refused(
            "idempotency-key-reused",
            "This Idempotency-Key came before, with another request.",
            "Use a new key for each request, the same one only to repeat it.",
        )
    return StoredAnswer(found["status_code"], found["body"], found["headers"])


def remember(
    connection: Connection, tenant_id: str, key: str, fingerprint: str, answer: StoredAnswer
) -> None:
    """In the transaction of the work itself: both are committed, or neither."""
    connection.execute(
        _STORE,
        {
            "tenant": tenant_id,
            "key": key,
            "fingerprint": fingerprint,
            "status_code": answer.status_code,
            "body": dumps(answer.body),
            "headers": dumps(answer.headers),
        },
    )
