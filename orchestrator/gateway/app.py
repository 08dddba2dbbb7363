"""The gateway's application: its paths, its health, and what runs beside them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final
from uuid import uuid4

import httpx2
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from orchestrator.bootstrap import Wiring
from orchestrator.core import run_token
from orchestrator.core.assignment import Budget
from orchestrator.db import run_tokens
from orchestrator.db.connect import SQLAlchemyError
from orchestrator.db.run_tokens import Run
from orchestrator.engine.prices import with_entered
from orchestrator.gateway.books import Books
from orchestrator.gateway.dialects import CALLS, CHAT, COUNTING, MESSAGES
from orchestrator.gateway.evidence import Evidence
from orchestrator.gateway.passing import HOW_TO_SHOW, Passing, shown_token
from orchestrator.gateway.providers import providers_of
from orchestrator.gateway.reading import Reading
from orchestrator.gateway.refusals import refuse
from orchestrator.gateway.relaying import Deadlines, Passage, respond
from orchestrator.gateway.room import Room

log: Final = structlog.get_logger(__name__)
_BEAT_SECONDS: Final = 5.0
_CONNECT_SECONDS: Final = 10.0
_SETTLE_SECONDS: Final = 5.0
_MOST_CONNECTIONS: Final = 512


@dataclass
class _Life:
    """What exists while the application runs. `heard`: the latest heartbeat reached the database."""

    passage: Passage | None = None
    heard: bool = False

    def running(self) -> Passage:
        assert self.passage is not None  # noqa: S101 - nothing is served before the start
        return self.passage


def create_gateway(wiring: Wiring) -> Starlette:
    """The gateway over one wiring; it holds the keys of `wiring.settings`."""
    life = _Life()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        settings = wiring.settings
        of_step = Budget(settings.max_turns, settings.max_tokens, settings.max_cost_usd)
        books = Books(wiring.engine, wiring.tenant_id, wiring.circuit_breaker, of_step)
        evidence = Evidence(wiring.engine, lambda: wiring.artifacts, wiring.redactor)
        timeout = httpx2.Timeout(None, connect=_CONNECT_SECONDS)
        limits = httpx2.Limits(max_connections=_MOST_CONNECTIONS, keepalive_expiry=30)
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        async with httpx2.AsyncClient(
            timeout=timeout, limits=limits, follow_redirects=False, cookies=no_cookies
        ) as client:
            gateway_id = f"{socket.gethostname()}/{os.getpid()}/{uuid4().hex[:8]}"
            life.passage = Passage(
                gateway_id,
                providers_of(settings, wiring.redactor),
                books,
                client,
                Deadlines(settings.gateway_first_byte, settings.gateway_stall, settings.gateway_call),
                settings.gateway_max_body_bytes,
                Room(settings.gateway_max_body_bytes),
                Reading(provider_tools=settings.gateway_provider_tools),
                evidence.take,
                with_entered(settings.prices),
                _tracing(wiring),
            )
            await _beat(life, wiring)
            beside = (
                asyncio.create_task(_keep_beating(life, wiring)),
                asyncio.create_task(evidence.write()),
            )
            try:
                yield
            finally:
                await evidence.written(_SETTLE_SECONDS)
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
                await books.close(gateway_id, _SETTLE_SECONDS)

    routes = [
        Route("/", _alive, methods=["GET", "HEAD"]),
        Route("/healthz", _alive, methods=["GET"]),
        Route("/readyz", _ready(life), methods=["GET"]),
        Route("/v1/models", _Models(life), methods=["GET"]),
        *(
            Route(path, Passing(life.running, dialect), methods=["POST"])
            for dialect in (*CALLS, COUNTING)
            for path in (dialect.path, dialect.path.removeprefix("/v1"))
        ),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={404: _unknown, 405: _unknown})


def _tracing(wiring: Wiring) -> Callable[[Run], Mapping[str, str]]:
    settings = wiring.settings

    def trace(run: Run) -> Mapping[str, str]:
        if not settings.gateway_traces:
            return {}
        told = dict.fromkeys(settings.task_id_headers[:1], run.step.task_id)
        now = wiring.clock().isoformat(timespec="milliseconds")
        return told | dict.fromkeys(settings.timestamp_headers[:1], now)

    return trace


async def _beat(life: _Life, wiring: Wiring) -> None:
    passage, settings = life.running(), wiring.settings
    url = f"http://{settings.gateway_host}:{settings.gateway_port}"
    try:
        await passage.books.beat(passage.gateway_id, url, sorted(map(str, passage.providers)))
        life.heard = True
    except SQLAlchemyError as error:
        life.heard = False
        log.warning("gateway_unheard", error=type(error).__name__)


async def _keep_beating(life: _Life, wiring: Wiring) -> None:
    while True:
        await asyncio.sleep(_BEAT_SECONDS if life.heard else 1.0)
        await _beat(life, wiring)


async def _alive(request: Request) -> Response:
    """The process answers, whatever else is away. Claude Code knocks at `/` before its first call."""
    del request
    return JSONResponse({"status": "ok"})


def _ready(life: _Life) -> Callable[[Request], Awaitable[Response]]:
    async def ready(request: Request) -> Response:
        """Whether calls can be let through: the database heard of this gateway just now."""
        del request
        if life.heard:
            return JSONResponse({"status": "ok", "providers": sorted(life.running().providers)})
        return JSONResponse({"status": "unavailable", "reason": "database"}, 503, {"Retry-After": "2"})

    return ready


class _Models:
    """The models that the run may use, spelled for both families' SDKs."""

    def __init__(self, life: _Life) -> None:
        self._life = life

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        dialect = MESSAGES if b"anthropic-version" in headers else CHAT
        token = shown_token(scope)
        if token is None:
            await respond(send, refuse(dialect, "run-token-invalid", HOW_TO_SHOW))
            return
        books, sha256 = self._life.running().books, run_token.digest(token)
        found = await books.let_in(sha256) or await books.find(sha256)
        if not isinstance(found, Run):
            await respond(send, refuse(dialect, found.code, found.message, found.retry_after))
            return
        await _listed(found)(scope, receive, send)


def _listed(run: Run) -> Response:
    entries = [
        {
            "id": name,
            "type": "model",
            "object": "model",
            "display_name": name,
            "created": 0,
            "created_at": "1970-01-01T00:00:00Z",
            "owned_by": "orchestrator",
        }
        for name in map(run_tokens.named, run.models)
        if name is not None
    ]
    first, last = (entries[0]["id"], entries[-1]["id"]) if entries else (None, None)
    return JSONResponse(
        {"object": "list", "data": entries, "has_more": False, "first_id": first, "last_id": last}
    )


async def _unknown(request: Request, error: Exception) -> Response:
    """Paths and methods that are not passed through."""
    del error
    dialect = MESSAGES if "anthropic-version" in request.headers else CHAT
    text = f"The gateway doesn't pass on {request.method} {request.url.path[:200]}."
    answer = refuse(dialect, "path-unknown", text)
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers)
