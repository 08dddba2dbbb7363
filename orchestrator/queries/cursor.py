"""Opaque page cursors: where the next page begins, bound to the filter, and signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from orchestrator.core.errors import Refused

_MAC_BYTES: Final = 16


def encode(at: datetime, last_id: str, filters: Mapping[str, Any], secret: bytes) -> str:
    body = json.dumps([at.isoformat(), last_id, _digest(filters)], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_mac(body, secret) + body).rstrip(b"=").decode()


def decode(cursor: str, filters: Mapping[str, Any], secret: bytes) -> tuple[datetime, str]:
    """Time and id of the last item seen. Raises Refused `cursor-invalid`, or `cursor-mismatch` after another
    filter."""
    try:
        raw = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        genuine = hmac.compare_digest(mac, _mac(body, secret))
        at, last_id, digest = json.loads(body) if genuine else ("", "", "")
    except ValueError:
        genuine = False
    if not genuine:
        raise Refused("cursor-invalid", "This cursor is not one of ours.", "Start without a cursor.")
    if digest != _digest(filters):
        raise Refused(
            "cursor-mismatch",
            "This cursor belongs to a list with another filter.",
            "Start without a cursor, or use the filter that it came with.",
        )
    return datetime.fromisoformat(at), str(last_id)


def _mac(body: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, b"cursor:" + body, "sha256")[:_MAC_BYTES]


def _digest(filters: Mapping[str, Any]) -> str:
    text = json.dumps(filters, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
