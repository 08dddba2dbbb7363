"""A real gateway on a real port, over real rows, for tests of all that calls live models."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvicorn

from orchestrator.bootstrap import Wiring, load
from orchestrator.config import Settings
from orchestrator.core import run_token
from orchestrator.core.assignment import ModelAccess
from orchestrator.db import run_tokens
from orchestrator.db.claims import Claimed
from orchestrator.db.journal import Scope
from orchestrator.gateway.app import create_gateway
from orchestrator.local import ports
from tests.integration.ledger import Ledger

REAL_KEY = "sk-ant-api03-theRealKeyThatNobodyElseMayEverSee-0123456789"
MODEL = "claude-sonnet-4-6"


@dataclass(frozen=True)
class RunningGateway:
    """`upstream`: the server that it calls in place of both providers."""

    url: str
    wiring: Wiring

    def access(self, ledger: Ledger, claimed: Claimed, *models: str) -> ModelAccess:
        """A token for a claim, as the worker's desk issues it."""
        return ModelAccess(self.url, issue(ledger, claimed, *models))


def issue(ledger: Ledger, claimed: Claimed, *models: str, lifetime: timedelta = timedelta(hours=1)) -> str:
    token = run_token.new()
    scope = Scope(claimed.step, claimed.fence, claimed.attempt, claimed.conflicts)
    ledger.do(
        lambda connection: run_tokens.issue(
            connection,
            scope,
            sha256=run_token.digest(token),
            agent_type="engine",
            models=models or (MODEL,),
            lifetime=lifetime,
        )
    )
    return token


def wired(database_url: str, upstream: str | None, folder: Path, **more: Any) -> Wiring:
    """The wiring of a gateway whose providers are the server at `upstream`."""
    keys = {"anthropic_api_key": REAL_KEY, "openai_api_key": REAL_KEY} if upstream else {}
    settings: dict[str, Any] = {
        "data_dir": folder,
        "database_url": database_url,
        "broker_url": "redis://127.0.0.1:1/0",
        "message_secret": "the secret of the test installation",
        "anthropic_api_key": None,
        "openai_api_key": None,
        "anthropic_base_url": upstream,
        "openai_base_url": upstream and f"{upstream}/v1",
        "gateway_port": ports.choose(0),
        **keys,
        **more,
    }
    return replace(load(f"gateway-{uuid4().hex[:6]}", Settings(**settings)), waits=False)


@contextmanager
def serving_gateway(wiring: Wiring) -> Iterator[RunningGateway]:
    """Until left; several may serve one database."""
    settings = wiring.settings
    config = uvicorn.Config(
        create_gateway(wiring),
        host=settings.gateway_host,
        port=settings.gateway_port,
        log_level="critical",
        http="h11",
        ws="none",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    pause = threading.Event()
    try:
        while not server.started:
            assert thread.is_alive(), "the gateway did not start"
            pause.wait(0.01)
        yield RunningGateway(f"http://{settings.gateway_host}:{settings.gateway_port}", wiring)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the gateway did not stop"
        wiring.engine.dispose()


@contextmanager
def gateway_to(ledger: Ledger, upstream: str | None, folder: Path, **more: Any) -> Iterator[RunningGateway]:
    with serving_gateway(wired(ledger.url, upstream, folder, **more)) as running:
        yield running
