"""Outside the versioned API: health, version, and what the error codes mean."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version as installed
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from orchestrator.api.explanations import EXPLANATIONS
from orchestrator.api.wiring import The, identify, shown_key
from orchestrator.bootstrap import Wiring
from orchestrator.core.errors import OrchestratorError, Unknown
from orchestrator.db import gateways
from orchestrator.db.connect import SQLAlchemyError
from orchestrator.db.upgrade import is_current
from orchestrator.queries.health import Vitals, vitals
from orchestrator.queries.reading import snapshot

router: Final = APIRouter(tags=["system"])
VERSION: Final = installed("orchestrator")
_MISSED_SWEEPS: Final = 6
_BROKER_SECONDS: Final = 2


@router.get("/livez", operation_id="system.live")
async def live() -> Response:
    """The process answers, whatever else is away."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", operation_id="system.ready")
def ready(wiring: The) -> Response:
    """Whether requests can be served: the database answers and has this version's schema."""
    reason = _not_ready(wiring)
    if reason is None:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "unavailable", "reason": reason}, 503, {"Retry-After": "2"})


def _not_ready(wiring: Wiring) -> str | None:
    try:
        return None if is_current(wiring.engine) else "schema"
    except (SQLAlchemyError, OrchestratorError):
        return "database"


@router.get("/health", operation_id="system.health")
def health(request: Request, wiring: The) -> Response:
    """ok, degraded or unavailable (503); with a key also each component and why."""
    key = shown_key(request)
    try:
        if key is not None:
            identify(wiring, key)
        components = _components(wiring)
    except SQLAlchemyError as error:
        components = {"database": {"status": "unavailable", "error": type(error).__name__}}
    worst = _worst(components)
    body: dict[str, Any] = {"status": worst, "version": VERSION}
    if key is not None:
        body["components"] = components
    return JSONResponse(body, 503 if worst == "unavailable" else 200)


def _worst(components: Mapping[str, Mapping[str, Any]]) -> str:
    """Without its database it can do nothing; without the rest, tasks are accepted and carried out later."""
    needed = {components.get(name, {}).get("status") for name in ("database", "schema")}
    if "unavailable" in needed:
        return "unavailable"
    return "ok" if all(component["status"] == "ok" for component in components.values()) else "degraded"


def _components(wiring: Wiring) -> dict[str, dict[str, Any]]:
    began = time.monotonic()
    with snapshot(wiring.engine) as connection:
        found = vitals(connection)
        heard = gateways.heard(connection, wiring.tenant_id)
    took = round((time.monotonic() - began) * 1000, 1)
    every = wiring.settings.sweep_every.total_seconds()
    late = found.swept_seconds_ago is None or found.swept_seconds_ago > every * _MISSED_SWEEPS
    alive = sum(found.agents.values())
    return {
        "database": {"status": "ok", "postgres": found.postgres, "milliseconds": took},
        "schema": {"status": "ok" if is_current(wiring.engine) else "unavailable"},
        "broker": _broker(wiring),
        "agents": {"status": "ok" if alive else "degraded", "alive": alive, "by_status": dict(found.agents)},
        "gateway": {
            "status": "degraded" if heard.silent and not heard.alive else "ok",
            "alive": heard.alive,
            "providers": sorted(heard.providers),
        },
        "queues": _queues(found),
        "sweep": {
            "status": "degraded" if late else "ok",
            "last_at": found.swept_at.isoformat() if found.swept_at else None,
            "seconds_ago": found.swept_seconds_ago,
        },
    }


def _queues(found: Vitals) -> dict[str, Any]:
    return {
        "status": "ok",
        "ready": dict(found.ready),
        "oldest_ready_seconds": found.oldest_ready_seconds,
        "running": found.running,
    }


def _broker(wiring: Wiring) -> dict[str, Any]:
    return _tried(lambda: _reach(wiring))


def _reach(wiring: Wiring) -> None:
    with wiring.app.connection_for_write(connect_timeout=_BROKER_SECONDS) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=_BROKER_SECONDS)
        connection.default_channel  # noqa: B018 - on Redis only a channel really connects


def _tried(reach: Callable[[], None]) -> dict[str, Any]:
    try:
        reach()
    except Exception as error:  # noqa: BLE001 - each broker's library has errors of its own
        return {"status": "unavailable", "error": type(error).__name__}
    return {"status": "ok"}


@router.get("/version", operation_id="system.version")
async def version() -> Response:
    return JSONResponse({"version": VERSION, "api": "v1", "python": platform.python_version()})


@router.get("/problems/{code}", operation_id="system.problem")
async def explain(code: str) -> Response:
    """What an error's `type` leads to."""
    found = EXPLANATIONS.get(code)
    if found is None:
        raise Unknown("not-found", f"There is no explanation of {code[:80]!r}.", "See /openapi.json.")
    return JSONResponse({"code": code, "title": found.title, "cause": found.cause, "fix": found.fix})
