"""Every error as `application/problem+json` (RFC 9457), in one place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from orchestrator.api.explanations import EXPLANATIONS
from orchestrator.commands.faults import in_words
from orchestrator.core.errors import (
    Conflict,
    Denied,
    OrchestratorError,
    Problem,
    Refused,
    Unavailable,
    Unknown,
)
from orchestrator.db.connect import SQLAlchemyError, is_away

log: Final = structlog.get_logger(__name__)

_BY_CODE: Final[Mapping[str, int]] = {
    "request-malformed": 400,
    "cursor-invalid": 400,
    "cursor-mismatch": 400,
    "filter-invalid": 400,
    "parameter-unknown": 400,
    "host-not-allowed": 400,
    "idempotency-key-invalid": 400,
    "key-missing": 401,
    "key-invalid": 401,
    "method-not-allowed": 405,
    "body-too-large": 413,
    "media-type-unsupported": 415,
    "range-invalid": 416,
    "internal-error": 500,
}
_BY_CLASS: Final[Mapping[type[OrchestratorError], int]] = {
    Refused: 422,
    Denied: 403,
    Unknown: 404,
    Conflict: 409,
    Unavailable: 503,
}
_HTTP: Final[Mapping[int, str]] = {404: "not-found", 405: "method-not-allowed", 413: "body-too-large"}
_COMMAND: Final = re.compile(r"(?:(?P<label>[^:]*): +)?(?P<cli>orchestrator [a-z].*)")
_RETRY_SECONDS: Final = "2"


def status_of(error: OrchestratorError) -> int:
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    return next((status for kind, status in _BY_CLASS.items() if isinstance(error, kind)), 500)


def problem(error: OrchestratorError, path: str, request_id: str) -> JSONResponse:
    """The answer to whoever sent the request to `path`."""
    status = status_of(error)
    body = {
        "type": f"/problems/{error.code}",
        "title": EXPLANATIONS[error.code].title if error.code in EXPLANATIONS else type(error).__name__,
        "status": status,
        "code": error.code,
        "detail": error.message,
        "instance": path,
        "request_id": request_id,
        "retryable": error.retryable or isinstance(error, Unavailable),
        "errors": [
            {"pointer": fault.pointer, "code": fault.code, "detail": fault.detail} for fault in error.problems
        ],
        "next_actions": [_next_action(error.hint)] if error.hint else [],
    }
    headers = {"Content-Language": "en"}
    if body["retryable"]:
        headers["Retry-After"] = _RETRY_SECONDS
    if status == 401:  # noqa: PLR2004 - the status that must name a scheme
        headers["WWW-Authenticate"] = 'Bearer realm="orchestrator"'
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def _next_action(hint: str) -> dict[str, str]:
    found = _COMMAND.fullmatch(hint)
    if found is None:
        return {"label": hint}
    return {"label": found["label"] or "Run", "cli": found["cli"]}


def database_away() -> Unavailable:
    return Unavailable(
        "database-unavailable",
        "The database can't be reached just now; nothing was written in part.",
        "See whether it runs: orchestrator ps",
        retryable=True,
    )


def install(app: FastAPI) -> None:
    """Translates what routes raise. What is left over is answered, and logged, by `edge`."""

    def known(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, OrchestratorError)  # noqa: S101 - what it is registered for
        return _answer(request, error)

    def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
        faults = tuple(
            Problem("/" + "/".join(map(str, fault["loc"])), fault["type"].replace("_", "-"), in_words(fault))
            for fault in error.errors()
        )
        message = f"{faults[0].pointer.lstrip('/')}: {faults[0].detail}"
        refused = Refused("request-invalid", message, "Correct the named parameters.", problems=faults)
        return _answer(request, refused)

    def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
        code = _HTTP.get(error.status_code, "request-malformed")
        kind = {404: Unknown, 405: Refused}.get(error.status_code, Refused)
        message = EXPLANATIONS[code].title + "."
        answer = _answer(request, kind(code, message, EXPLANATIONS[code].fix))
        answer.headers.update(error.headers or {})
        return answer

    def database(request: Request, error: Exception) -> JSONResponse:
        if not is_away(error):
            raise error
        log.warning("database_unavailable", error=type(error).__name__)
        return _answer(request, database_away())

    app.add_exception_handler(OrchestratorError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(SQLAlchemyError, database)


def _answer(request: Request, error: OrchestratorError) -> JSONResponse:
    return problem(error, request.url.path, request.scope["state"]["request_id"])
