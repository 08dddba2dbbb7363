"""The errors of OpenAI's APIs, and of servers that speak like them, in our words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import httpx2
import openai

from orchestrator.engine.ports import ModelError
from orchestrator.engine.providers import meaning
from orchestrator.engine.providers.meaning import Meaning
from orchestrator.engine.providers.waiting import retry_after

FAILURES: Final = (
    openai.OpenAIError,
    httpx2.HTTPError,
    httpx2.StreamError,
    UnicodeError,
    json.JSONDecodeError,
    RecursionError,
)
_BY_CODE: Final[Mapping[str, Meaning]] = MappingProxyType(
    {
        "authentication_error": meaning.UNAUTHORIZED,
        "invalid_api_key": meaning.UNAUTHORIZED,
        "permission_error": meaning.UNAUTHORIZED,
        "insufficient_quota": meaning.BILLING,
        "billing_hard_limit_reached": meaning.BILLING,
        "model_not_found": meaning.UNKNOWN,
        "rate_limit_exceeded": meaning.RATE_LIMITED,
        "rate_limit_error": meaning.RATE_LIMITED,
        "overloaded_error": meaning.OVERLOADED,
        "server_overloaded": meaning.OVERLOADED,
        "slow_down": meaning.OVERLOADED,
        "server_error": meaning.SERVER,
        "context_length_exceeded": meaning.TOO_LONG,
        "string_above_max_length": meaning.TOO_LONG,
        "content_filter": meaning.REFUSED,
        "content_policy_violation": meaning.REFUSED,
        "bio_policy": meaning.REFUSED,
        "misalignment_policy_violation": meaning.REFUSED,
        "invalid_prompt": meaning.REFUSED,
        "invalid_request_error": meaning.INVALID,
    }
)
_PREVIOUS: Final = "previous_response_id"


def meaning_of_code(code: str) -> Meaning | None:
    return _BY_CODE.get(code)


def as_model_error(error: Exception) -> ModelError | None:
    """None for what is no failure of the provider."""
    return model_error(error) if isinstance(error, FAILURES) else None


def model_error(error: Exception) -> ModelError:
    """Any error of the SDK or of its HTTP client, in our words."""
    if isinstance(error, openai.APIStatusError):
        said = _message(error.body) or f"status {error.status_code}"
        if error.request_id:
            said = f"{said} (request {error.request_id})"
        found = meaning.failure(_of_status(error), said)
        found.retry_after = retry_after(error.response.headers)
        return found
    if isinstance(error, openai.APIError) and type(error) is openai.APIError:
        return meaning.failure(_of_body(error) or meaning.SERVER, _message(error.body))
    return meaning.failure(_of_transport(error))


def lost_its_past(error: Exception) -> bool:
    """Whether the server no longer has the response that the request goes on from."""
    if not isinstance(error, openai.APIStatusError) or error.status_code not in {400, 404}:
        return False
    said = _message(error.body).lower()
    return (
        error.code == "previous_response_not_found"
        or error.param == _PREVIOUS
        or ("previous response" in said and "not found" in said)
    )


def _of_transport(error: Exception) -> Meaning:
    """In mid-stream: a connection that was never made doesn't come this far."""
    if isinstance(error, (openai.APITimeoutError, httpx2.TimeoutException)):
        return meaning.SLOW
    if isinstance(error, (openai.APIConnectionError, httpx2.TransportError, httpx2.StreamError)):
        return meaning.DROPPED
    return meaning.GARBLED


def _of_status(error: openai.APIStatusError) -> Meaning:
    headers = error.response.headers
    if meaning.CODE_HEADER in headers:
        return meaning.of_status(error.status_code, headers)
    found = _of_body(error)
    general = found is None or found in {meaning.INVALID, meaning.SERVER}
    by_status = meaning.of_status(error.status_code, headers)
    return by_status if found is None or (general and by_status is not meaning.INVALID) else found


def _of_body(error: openai.APIError) -> Meaning | None:
    return (
        meaning.of_words(_message(error.body))
        or _BY_CODE.get(error.code or "")
        or _BY_CODE.get(error.type or "")
    )


def _message(body: object) -> str:
    """The server's own words, without the SDK's frame around them."""
    if isinstance(body, Mapping):
        return str(body.get("message") or "")
    return body if isinstance(body, str) and not body.lstrip().startswith("<") else ""
