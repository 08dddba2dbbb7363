"""How the gateway says no: by a status, a code of ours, and a body in the caller's own dialect."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Final

from orchestrator.engine.providers.meaning import CODE_HEADER
from orchestrator.gateway.dialects import Dialect, Family


@dataclass(frozen=True, slots=True)
class _Form:
    """The status of a code, and what each family of dialects calls such an error. `again`: an agent that
    retries by itself may."""

    status: int
    anthropic: str
    openai: str
    again: bool = False


_AUTH: Final = "authentication_error"
_FORMS: Final[Mapping[str, _Form]] = MappingProxyType(
    {
        "run-token-invalid": _Form(401, _AUTH, _AUTH),
        "budget-exhausted": _Form(402, "billing_error", "insufficient_quota"),
        "run-limit-reached": _Form(402, "billing_error", "insufficient_quota"),
        "model-not-allowed": _Form(403, "permission_error", "permission_error"),
        "price-unknown": _Form(403, "permission_error", "permission_error"),
        "path-unknown": _Form(404, "not_found_error", "invalid_request_error"),
        "body-too-large": _Form(413, "request_too_large", "invalid_request_error"),
        "request-malformed": _Form(400, "invalid_request_error", "invalid_request_error"),
        "provider-tools-off": _Form(400, "invalid_request_error", "invalid_request_error"),
        "too-many-calls": _Form(429, "rate_limit_error", "rate_limit_error", again=True),
        "provider-throttled": _Form(429, "rate_limit_error", "rate_limit_error", again=True),
        "provider-unreachable": _Form(502, "api_error", "server_error", again=True),
        "reply-too-long": _Form(502, "api_error", "server_error", again=True),
        "provider-timeout": _Form(504, "timeout_error", "server_error", again=True),
        "provider-missing": _Form(503, "api_error", "server_error"),
        "circuit-open": _Form(503, "overloaded_error", "server_error"),
        "gateway-unready": _Form(503, "api_error", "server_error", again=True),
    }
)
CODES: Final = frozenset(_FORMS)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def refuse(dialect: Dialect, code: str, message: str, retry_after: timedelta | None = None) -> Answer:
    form = _FORMS[code]
    text = f"{message} [{code}]"
    if dialect.family is Family.ANTHROPIC:
        content: dict[str, object] = {
            "type": "error",
            "error": {"type": form.anthropic, "message": text},
        }
    else:
        error = {"message": text, "type": form.openai, "param": None, "code": code}
        content = {"error": error}
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (CODE_HEADER.encode(), code.encode()),
        (b"x-should-retry", b"true" if form.again else b"false"),
    ]
    if retry_after is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(retry_after.total_seconds()))).encode()))
    return Answer(form.status, headers, body)
