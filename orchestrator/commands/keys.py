"""API keys: who may call, for which tenant, and what. Only a key's SHA-256 is kept."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection

from orchestrator.core import api_key
from orchestrator.core.errors import Denied, Refused
from orchestrator.db.sql import dumps, one, statement

CONFIGURED: Final = "configured"
"""The name of the key that this installation's settings hold."""


class Scope(StrEnum):
    """Each one includes those before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever showed a valid key."""

    tenant_id: str
    name: str
    scope: Scope

    def require(self, scope: Scope) -> None:
        """Raises Denied `scope-missing`."""
        order = tuple(Scope)
        if order.index(self.scope) < order.index(scope):
            raise Denied(
                "scope-missing",
                f"The key {self.name!r} may {self.scope}; this needs {scope}.",
                f"Use a key with the scope {scope}.",
            )


_FIND: Final = statement(
    """
    SELECT tenant_id, id, name, sha256, scopes, (revoked_at IS NOT NULL) AS revoked,
        coalesce(expires_at <= clock_timestamp(), false) AS expired,
        coalesce(last_used_at < clock_timestamp() - interval '1 minute', true) AS note
    FROM api_keys WHERE sha256 = :sha256
    """
)
_USED: Final = statement(
    "UPDATE api_keys SET last_used_at = clock_timestamp() WHERE tenant_id = :tenant AND id = :id"
)
_KEEP: Final = statement(
    """
    INSERT INTO api_keys (tenant_id, id, name, prefix, sha256, scopes)
    VALUES (:tenant, :id, :name, :prefix, :sha256, CAST(:scopes AS jsonb))
    ON CONFLICT (tenant_id, id) DO UPDATE SET revoked_at = NULL;
    UPDATE api_keys SET revoked_at = clock_timestamp()
    WHERE tenant_id = :tenant AND name = :name AND id <> :id AND revoked_at IS NULL
    """
)


def identify(connection: Connection, key: str) -> Caller:
    """Whose key this is. Raises Denied `key-invalid`, the same for unknown, revoked and expired ones."""
    row = None if api_key.mistyped(key) else one(connection, _FIND, sha256=_sha256(key))
    if (
        row is None
        or row["revoked"]
        or row["expired"]
        or not hmac.compare_digest(row["sha256"], _sha256(key))
    ):
        why = "This API key is mistyped." if api_key.mistyped(key) else "This API key is not valid."
        raise Denied("key-invalid", why, "Set ORCHESTRATOR_API_KEY to a key of this installation.")
    if row["note"]:
        connection.execute(_USED, {"tenant": row["tenant_id"], "id": row["id"]})
    return Caller(row["tenant_id"], row["name"], max(map(Scope, row["scopes"]), key=tuple(Scope).index))


def keep(connection: Connection, key: str, *, tenant_id: str, name: str, scope: Scope) -> None:
    """Makes this the one valid key of that name. Raises Refused `key-weak`."""
    if api_key.mistyped(key) or len(key) < api_key.SHORTEST:
        raise Refused(
            "key-weak",
            f"ORCHESTRATOR_API_KEY is mistyped, or shorter than {api_key.SHORTEST} characters.",
            "Let `orchestrator up` make one, or use 32 random characters or more.",
        )
    digest = _sha256(key)
    values = {"tenant": tenant_id, "id": f"key_{digest[:16]}", "name": name, "sha256": digest}
    connection.execute(_KEEP, {**values, "prefix": api_key.prefix(key), "scopes": dumps([scope])})


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
