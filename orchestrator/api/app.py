"""The application: routes, errors, and what runs beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final

import structlog
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from orchestrator.api import files, fleet, follow, models, openapi, problems, system, tasks
from orchestrator.api.edge import Edge
from orchestrator.api.wakeups import Wakeups
from orchestrator.bootstrap import Wiring
from orchestrator.commands import keys
from orchestrator.commands.keys import Scope
from orchestrator.db.connect import SQLAlchemyError
from orchestrator.db.sql import TaskRef
from orchestrator.queries.events import Mark, marks
from orchestrator.queries.reading import glance
from orchestrator.tasks.sweep import run_sweep

log: Final = structlog.get_logger(__name__)
_AGAIN_SECONDS: Final = 1.0


def create_api(wiring: Wiring) -> FastAPI:
    """The REST door over one wiring.

    Beside serving, it makes the configured key valid, and sweeps, since beat and the system's worker may be
    away. Raises Refused `key-weak` when it starts.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        kept = await run_in_threadpool(_keep_configured_key, wiring)
        beside = [asyncio.create_task(_sweep_too(wiring))]
        if not kept:
            beside.append(asyncio.create_task(_keep_key_later(wiring)))
        yield
        for task in beside:
            task.cancel()

    app = FastAPI(
        title="orchestrator",
        version=system.VERSION,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.wiring = wiring
    app.state.wakeups = Wakeups(lambda wanted: _marks(wiring, wanted))
    for router in (system.router, tasks.router, follow.router, files.router, models.router, fleet.router):
        app.include_router(router)
    problems.install(app)
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign]  # FastAPI's own way to extend it
    app.add_middleware(
        Edge, max_body_bytes=wiring.settings.max_body_bytes, listens_on=wiring.settings.api_host
    )
    return app


def _marks(wiring: Wiring, wanted: Collection[TaskRef]) -> dict[TaskRef, Mark]:
    with glance(wiring.engine) as connection:
        return marks(connection, wanted)


def _keep_configured_key(wiring: Wiring) -> bool:
    """False while the database is away, which must not keep the process from starting."""
    key = wiring.settings.api_key
    if key is None:
        log.warning("no_api_key", hint="Set ORCHESTRATOR_API_KEY; every request is refused until then.")
        return True
    try:
        with wiring.engine.begin() as connection:
            keys.keep(
                connection,
                key.get_secret_value(),
                tenant_id=wiring.tenant_id,
                name=keys.CONFIGURED,
                scope=Scope.ADMIN,
            )
    except SQLAlchemyError as error:
        log.warning("api_key_not_kept", error=type(error).__name__)
        return False
    return True


async def _keep_key_later(wiring: Wiring) -> None:
    kept = False
    while not kept:
        await asyncio.sleep(_AGAIN_SECONDS)
        kept = await run_in_threadpool(_keep_configured_key, wiring)


async def _sweep_too(wiring: Wiring) -> None:
    """Half as often as beat, and never at the same time as another sweep."""
    while True:
        await asyncio.sleep(wiring.settings.sweep_every.total_seconds() * 2)
        try:
            await run_in_threadpool(run_sweep, wiring)
        except Exception as error:  # noqa: BLE001 - whatever it was, the next one may work
            log.warning("sweep_failed", error=type(error).__name__)
