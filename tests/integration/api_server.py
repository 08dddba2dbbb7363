"""A real API on a real port, over a real database, for the tests of the doors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from sqlalchemy import text

from orchestrator.api.app import create_api
from orchestrator.bootstrap import Wiring, load
from orchestrator.commands import keys
from orchestrator.commands.keys import Scope
from orchestrator.config import Settings
from orchestrator.db import connect, upgrade
from orchestrator.local import ports
from orchestrator.local.credentials import new_api_key
from tests.servers import PostgresServer

API_KEY = new_api_key()
DEAD_BROKER = "redis://127.0.0.1:1/0"


def schema(url: str) -> None:
    engine = connect.create(url, application="test")
    upgrade.upgrade(engine)
    engine.dispose()


def migrated(server: PostgresServer) -> str:
    """URL of a database of its own with the whole schema."""
    return server.fresh(server.template("schema", schema))


@dataclass
class Door:
    """A running API and what tests do with it."""

    url: str
    wiring: Wiring
    key: str = API_KEY
    clients: list[httpx2.Client] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def client(self) -> httpx2.Client:
        """One that shows the key."""
        if not self.clients:
            self.clients.append(self.new_client({"Authorization": f"Bearer {self.key}"}))
        return self.clients[0]

    def new_client(self, headers: dict[str, str] | None = None) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)

    def create(self, **body: Any) -> dict[str, Any]:
        answer = self.client.post("/api/v1/tasks", json={"description": "Do something", **body})
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    def get(self, path: str) -> dict[str, Any]:
        answer = self.client.get(f"/api/v1{path}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def sql(self, statement: str, **values: Any) -> list[Any]:
        with self.wiring.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    def new_key(self, scope: Scope, tenant_id: str = "default") -> str:
        key = new_api_key()
        with self.wiring.engine.begin() as connection:
            keys.keep(connection, key, tenant_id=tenant_id, name=f"{tenant_id} {scope}", scope=scope)
        return key


def wired(database_url: str, folder: Path, *, broker_url: str = DEAD_BROKER, **settings: Any) -> Wiring:
    """The wiring of an API process. A dead broker is the usual case here: nothing may depend on it."""
    loaded = load(
        "test-api",
        Settings(
            data_dir=folder,
            database_url=database_url,
            broker_url=broker_url,
            result_url=broker_url,
            message_secret="not a secret, a test's",
            api_key=API_KEY,
            sweep_every=timedelta(hours=1),
            **settings,
        ),
    )
    return replace(loaded, waits=False)


@contextmanager
def served(wiring: Wiring, port: int = 0) -> Iterator[Door]:
    """Until left; each has a server thread and, unless told which, a port of its own."""
    port = port or ports.choose(0)
    config = uvicorn.Config(
        create_api(wiring), host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    door = Door(f"http://127.0.0.1:{port}", wiring)
    try:
        _await_start(server, thread)
        yield door
    finally:
        for client in door.clients:
            client.close()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
        wiring.engine.dispose()
        wiring.app.close()


def _await_start(server: uvicorn.Server, thread: threading.Thread) -> None:
    pause = threading.Event()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        pause.wait(0.01)
