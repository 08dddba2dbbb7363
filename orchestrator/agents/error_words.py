"""What an error says in its own words: read off the response of a gateway, or of a provider behind it."""

from __future__ import annotations

import json
import re
from typing import Final

from orchestrator.core.redaction import beginning

MOST_WORDS: Final = 500
_CHUNKED: Final = re.compile(rb"^transfer-encoding:[^\r]*\bchunked\b", re.IGNORECASE | re.MULTILINE)


def read_words(response: bytes) -> str:
    """Its kind and message in one line, e.g. "authentication_error: invalid x-api-key"; empty as long as the
    body isn't there whole, or if it is none that says so. `response`: its head and what has come of its body.
    """
    head, _, body = response.partition(b"\r\n\r\n")
    try:
        found = json.loads(_joined(body) if _CHUNKED.search(head) else body)
    except (ValueError, RecursionError):
        return ""
    return beginning(" ".join(_told(found).split()), MOST_WORDS)


def _told(found: object) -> str:
    """Of all three protocols of models, and of those who only put a text there."""
    if not isinstance(found, dict):
        return ""
    error = found.get("error", found)
    if isinstance(error, str):
        return error
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return ""
    kinds = (error.get("code"), error.get("type"))
    kind = next((kind for kind in kinds if kind and isinstance(kind, str)), "")
    return f"{kind}: {error['message']}" if kind else error["message"]


def _joined(body: bytes) -> bytes:
    """Of a body in chunks, those that have come."""
    parts = []
    while (line := body.partition(b"\r\n"))[1]:
        size = int(line[0].split(b";")[0], 16)
        if size <= 0:
            break
        parts.append(line[2][:size])
        body = line[2][size + 2 :]
    return b"".join(parts)
